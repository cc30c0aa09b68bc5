"""Reading files from a disk or a bucket whose reader may stumble for a moment; writing them whole."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import tenacity
from etils import epath

T = TypeVar("T")
ATTEMPTS, FIRST_WAIT = 4, 1.0  # seven seconds in all, for a server that is busy or a mount that is restarted
TEMPORARY = ".tmp"  # suffix of what was not finished
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


@contextlib.contextmanager
def new_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write, which takes `path`'s place, in a folder that is there, when all of it is on the disk.

    After an error, which is passed on, what was at `path` before is still there, and nothing else.
    """
    path = Path(path)
    # No process number: those of two machines that share the folder may be equal.
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(4)}{TEMPORARY}")
    try:
        with unfinished.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write(path: str | os.PathLike[str], content: str | bytes | Callable[[BinaryIO], Any]) -> None:
    """Writes text (as UTF-8), bytes, or what a function writes to the open file, as `new_file` does."""
    with new_file(path) as file:
        if callable(content):
            content(file)
        else:
            file.write(content.encode() if isinstance(content, str) else content)


def digest(content: str | bytes) -> str:
    """A digest of 32 hexadecimal digits of text (as UTF-8) or bytes."""
    data = content.encode() if isinstance(content, str) else content
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def digest_of_file(path: Path) -> str:
    """Of its content, as `digest` gives it."""
    return digest(path.read_bytes())


def digest_of_arrays(tree: Any) -> str:
    """Of the values of all arrays of a pytree, with their names, as `digest` gives it."""
    import jax
    import numpy as np

    found = hashlib.blake2b(digest_size=16)
    for path, value in jax.tree_util.tree_flatten_with_path(tree)[0]:
        found.update(jax.tree_util.keystr(path).encode())
        found.update(np.ascontiguousarray(value).tobytes())
    return found.hexdigest()
