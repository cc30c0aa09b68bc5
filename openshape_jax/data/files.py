"""Reading files from a disk or a bucket whose reader may stumble for a moment."""

from __future__ import annotations

import os
from typing import Any

import tenacity
from etils import epath

ATTEMPTS = 4  # about seven seconds in all, for a server that is busy or a mount that is restarted
# Reading again mends none of these.
LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


def _transient(error: BaseException) -> bool:
    return isinstance(error, OSError) and not isinstance(error, LASTING)


@tenacity.retry(
    retry=tenacity.retry_if_exception(_transient),
    stop=tenacity.stop_after_attempt(ATTEMPTS),
    wait=tenacity.wait_exponential(max=10) + tenacity.wait_random(0, 0.5),
    reraise=True,
)
def _read(path: Any) -> bytes:
    return path.read_bytes()


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The content of a file: local, or `gs://...` and the like where the backend is installed.

    Errors that may pass (a time-out, a stale mount) are tried again for some seconds.

    Raises:
      OSError: it cannot be read; FileNotFoundError: it is not there.
    """
    try:
        return _read(epath.Path(path))
    except ImportError as error:
        raise OSError(f"{path} cannot be read here: {error} (pip install does it).") from error
