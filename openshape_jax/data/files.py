"""Reading files from a disk or a bucket whose reader may stumble for a moment."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

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
