"""Reading PyTorch's zip files without PyTorch and without running anything that they ask for."""

from __future__ import annotations

import pickletools
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from openshape_jax.convert.error import ConversionError

LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # torch.save before PyTorch 1.6
RESAVE = 'torch.save(torch.load("{name}", map_location="cpu", weights_only=True), "new.pt")'
SHARED = 4  # tensors may share memory, so that all together they are larger than the file, but not much
GROWTH = 1.1  # entries are stored, not compressed: all together they are no larger than the file


def load(path: Path) -> Any:
    """What was saved, with NumPy arrays for tensors: float32, float16, bfloat16, integers and so on.

    The pickle inside may ask for tensors, plain containers and NumPy scalars, nothing else.

    Raises:
      ConversionError: not a PyTorch zip file, cut off, damaged, or its pickle asks for something else;
        names the file, what is wrong and what to do.
    """
    import ml_dtypes
    import ptloader

    with path.open("rb") as file:
        start = file.read(64)
    _check_container(path, start)
    try:
        loaded = ptloader.load(
            path,
            torchscript_mode="strict",
            payload="data",
            storage_registry={"BFloat16Storage": np.dtype(ml_dtypes.bfloat16)},
            pickle_global_registry=_SAFE,
        )
        claimed, size = _bytes(loaded), path.stat().st_size
    except ptloader.CheckpointError as error:
        asked = str(error).partition("Unsupported pickle global: ")[2]
        if asked:
            raise ConversionError(
                f"{path}: its pickle asks for {asked}, which tensors and plain values do not need: refused, "
                "nothing of it was run. If it is yours, save the tensors alone with PyTorch: "
                'torch.save(model.state_dict(), "new.pt").'
            ) from None
        raise _damaged(path, error) from error
    except Exception as error:  # whatever a broken pickle or zip makes the readers raise
        raise _damaged(path, error) from error
    if claimed > SHARED * size:
        raise ConversionError(
            f"{path}: its tensors claim {claimed} bytes from a file of {size}, by repeating the same "
            "numbers: this is no checkpoint of a model."
        )
    return loaded


def _bytes(value: Any) -> int:
    """Of all arrays inside, as if each had its own memory."""
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, dict):
        return sum(map(_bytes, value.values()))
    return sum(map(_bytes, value)) if isinstance(value, (list, tuple)) else 0


def _damaged(path: Path, error: Exception) -> ConversionError:
    first = (str(error).strip().splitlines() or [""])[0][:200]
    return ConversionError(
        f"{path} is damaged, or holds something else than tensors ({type(error).__name__}: {first}). "
        "Download or save it again."
    )


def _check_container(path: Path, start: bytes) -> None:
    size = path.stat().st_size
    if start.startswith(b"version https://git-lfs"):
        raise ConversionError(
            f"{path} is a Git LFS pointer of {size} bytes, not the file itself: fetch it with git lfs pull."
        )
    if start.startswith(LEGACY):
        raise ConversionError(
            f"{path} was saved in PyTorch's old format (before 1.6), which cannot be read safely. Save it "
            f"again: {RESAVE.format(name=path.name)}"
        )
    if not size:
        raise ConversionError(f"{path} is empty. Download or copy it again.")
    if not zipfile.is_zipfile(path):
        if start.startswith(b"PK\x03\x04"):
            raise ConversionError(
                f"{path} is cut off: {size} bytes, and the list of contents at its end is missing. Download "
                "or copy it again."
            )
        raise ConversionError(
            f"{path} is no PyTorch checkpoint: it does not begin as a zip file but with {start[:8]!r}."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            _check_entries(path, archive, size)
    except ConversionError:
        raise
    except Exception as error:  # zipfile raises many kinds for a damaged directory
        raise _damaged(path, error) from error


def _check_entries(path: Path, archive: zipfile.ZipFile, size: int) -> None:
    total = sum(entry.file_size for entry in archive.infolist())
    if total > GROWTH * size:
        raise ConversionError(
            f"{path}: its entries unpack to {total} bytes from a file of {size}; PyTorch stores them without "
            "compression, so this is no checkpoint. It was not unpacked."
        )
    names = archive.namelist()
    pickles = [n for n in names if n == "data.pkl" or n.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ConversionError(
            f"{path} is a zip file but no PyTorch checkpoint: it holds {len(pickles)} entries data.pkl, "
            f"not one (its entries: {', '.join(names[:5])})."
        )
    if any(n.rpartition("/")[2] == "constants.pkl" for n in names):
        raise ConversionError(
            f"{path} is a TorchScript program, not a checkpoint. Save the tensors: "
            'torch.save(torch.jit.load("...").state_dict(), "new.pt").'
        )
    order = pickles[0].removesuffix("data.pkl") + "byteorder"
    if order in names and archive.read(order).strip() != b"little":
        raise ConversionError(
            f"{path} was written on a big-endian machine. Save it again on another one: "
            f"{RESAVE.format(name=path.name)}"
        )
    data = archive.read(pickles[0])
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name.endswith("BINPUT") and isinstance(argument, int) and argument > len(data):
            raise ConversionError(f"{path}: its pickle is not one that PyTorch writes (memo {argument}).")


# What a checkpoint of tensors, counters and accuracies may ask for, each by a constructor of ours.


class _DType:
    """A NumPy scalar type in a pickle; its state is checked, never applied."""

    def __init__(self, dtype: np.dtype[Any]):
        self.dtype = dtype

    def __setstate__(self, state: Any) -> None:
        order, *fields = state[1:5] if isinstance(state, tuple) and len(state) >= 5 else ("?",)
        if order not in ("<", "|", "=") or any(f is not None for f in fields):
            raise ValueError(f"NumPy type with state {state!r}")


def _dtype(name: Any, *_copy: Any) -> _DType:
    if not isinstance(name, str) or name.lstrip("<|=")[:1] not in {"f", "i", "u", "b"}:
        raise ValueError(f"NumPy type {name!r}")
    return _DType(np.dtype(name))


def _scalar(dtype: Any, data: Any = b"") -> Any:
    if not isinstance(dtype, _DType) or not isinstance(data, bytes) or len(data) != dtype.dtype.itemsize:
        raise ValueError("a NumPy scalar of another form")
    return np.frombuffer(data, dtype.dtype)[0].item()


def _encode(text: Any, encoding: Any = "utf-8") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise ValueError(f"bytes encoded as {encoding!r}")
    return text.encode("latin1")


def _size(values: Any = ()) -> tuple[Any, ...]:
    return tuple(values)


def _device(*where: Any) -> str:
    return ":".join(str(w) for w in where)


_SAFE = {
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _encode,
    ("torch", "Size"): _size,
    ("torch", "device"): _device,
}
