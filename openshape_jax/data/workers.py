"""Work spread over processes that end when the one that started them does."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TypeVar

Item, Result = TypeVar("Item"), TypeVar("Result")


def in_processes(
    work_on: Callable[[Item], Result], items: Sequence[Item], processes: int
) -> Iterator[tuple[Item, Result]]:
    """(item, result) of every item as it is done, by new processes.

    Ctrl-C ends them at once, wherever they are, and so does whoever takes no more results: what `work_on`
    writes must be whole or not count.

    Args:
      work_on: a function of a module; may run in any of the processes.

    Raises:
      BrokenProcessPool: a process died. Else what `work_on` raises.
    """
    with pool(min(processes, len(items))) as executor:
        futures = {executor.submit(work_on, item): item for item in items}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException as error:
            # The latter where Ctrl-C meets who takes the results.
            if isinstance(error, KeyboardInterrupt | GeneratorExit):
                for process in list(executor._processes.values()):  # in Python 3.14: terminate_workers()
                    process.terminate()
            executor.shutdown(wait=True, cancel_futures=True)
            raise


def pool(processes: int | None = None) -> ProcessPoolExecutor:
    """An executor of new processes (a fork would copy threads of other libraries) that obey this one.

    Args:
      processes: None: one for each core.
    """
    return ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), initializer=_obey)


def _obey() -> None:
    """Leaves Ctrl-C, which a terminal sends to workers too, to the parent, and ends with it.

    A parent that is killed tells nobody: its workers would wait for work for ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "only workers are started so"
    parent.join()
    os._exit(1)
