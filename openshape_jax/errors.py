"""Turns expected errors into one readable message; anything else keeps its traceback."""

from __future__ import annotations

import errno
import os


def explain(error: Exception) -> str | int:
    """The message for `sys.exit`; re-raises what is not an expected error.

    Expected are bad input (ValueError), files (OSError), checkpoints and interruptions. Set
    OPENSHAPE_DEBUG=1 to see the traceback of those too.
    """
    from openshape_jax.checkpoint import CheckpointError
    from openshape_jax.watch import Interrupted

    expected = (ValueError, OSError, FloatingPointError, CheckpointError, Interrupted)
    if os.environ.get("OPENSHAPE_DEBUG") or not isinstance(error, expected):
        raise error
    if isinstance(error, Interrupted):
        print(f"\n{error}")
        return error.code
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        where = error.filename or error
        return f"error: the disk is full ({where}). Free some space and start the same command again."
    if isinstance(error, OSError) and error.filename and error.strerror and not error.filename2:
        return f"error: {error.filename}: {error.strerror}."
    return f"error: {error}"
