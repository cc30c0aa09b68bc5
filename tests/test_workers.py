"""Processes that work for another one: results, errors, and their end when it is killed or interrupted."""

import math
import signal
import subprocess
import sys

import pytest

from openshape_jax.data import workers

SLEEPERS = """
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell runs in the background ignores it
from openshape_jax.data import workers
for item, _ in workers.in_processes(time.sleep, [0, 100, 100], 2):
    print("did", item, flush=True)
"""


def test_results_come_with_their_items_and_errors_are_raised():
    assert dict(workers.in_processes(math.sqrt, [1, 4, 9], 2)) == {1: 1, 4: 2, 9: 3}
    with pytest.raises(ValueError, match="nonnegative|math domain"):
        list(workers.in_processes(math.sqrt, [-1, 4], 2))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_they_end_with_the_process_that_started_them(how):
    with subprocess.Popen(
        [sys.executable, "-c", SLEEPERS], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "did 0\n"
        process.send_signal(how)
        process.communicate(timeout=20)  # ends when every process that could write to it is gone
    assert process.returncode


def test_they_end_where_the_results_are_no_longer_taken():
    command = [sys.executable, "-c", SLEEPERS + "    raise KeyboardInterrupt\n"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert ended.stdout == "did 0\n" and "KeyboardInterrupt" in ended.stderr
