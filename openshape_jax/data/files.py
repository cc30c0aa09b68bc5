"""Reading files from a disk or a bucket whose reader may stumble for a moment."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import tenacity
from etils import epath

T = TypeVar("T")
ATTEMPTS, FIRST_WAIT = 4, 1.0  # seven seconds in all, for a server that is busy or a mount that is restarted
# Reading again mends none of these.
LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


def _transient(error: BaseException) -> bool:
    return isinstance(error, OSError) and not isinstance(error, LASTING)


def persistently(read: Callable[[], T], may_pass: Callable[[BaseException], bool]) -> T:
    """What `read` returns, called again for some seconds while it raises what may pass."""
    attempts = tenacity.Retrying(
        retry=tenacity.retry_if_exception(may_pass),
        stop=tenacity.stop_after_attempt(ATTEMPTS),
        wait=tenacity.wait_exponential(FIRST_WAIT, max=10) + tenacity.wait_random(0, FIRST_WAIT / 2),
        reraise=True,
    )
    return attempts(read)


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The content of a file: local, or `gs://...` and the like where the backend is installed.

    Errors that may pass (a time-out, a stale mount) are tried again for some seconds.

    Raises:
      OSError: it cannot be read; FileNotFoundError: it is not there.
    """
    try:
        return persistently(epath.Path(path).read_bytes, _transient)
    except ImportError as error:
        raise OSError(f"{path} cannot be read here: {error} (pip install does it).") from error


def parse_json(data: bytes, path: str | os.PathLike[str]) -> Any:
    """What the JSON of a fetched file says.

    Raises:
      ValueError: it is damaged; names `path`, the file.
    """
    try:
        return json.loads(data)
    except ValueError as error:  # of the syntax, or no UTF-8
        raise ValueError(f"{path} is cut off or no JSON ({error}): fetch it again.") from error


@contextlib.contextmanager
def full_disk_told(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Turns the words that the ArrayRecord writer has for a full disk into the OSError that it is."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        if "no space left" in str(error).lower() or "RESOURCE_EXHAUSTED" in str(error):
            raise OSError(errno.ENOSPC, "No space left on device", os.fspath(folder)) from error
        raise
