"""Writing PyTorch's zip files without PyTorch: stored entries, tensors aligned to 64 bytes."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

ALIGNMENT = 64  # bytes, so that torch.load(mmap=True) can use the tensors in place
STORAGES = {
    "float64": "DoubleStorage", "float32": "FloatStorage", "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage", "int64": "LongStorage", "int32": "IntStorage",
    "int16": "ShortStorage", "int8": "CharStorage", "uint8": "ByteStorage", "bool": "BoolStorage",
}  # fmt: skip


def save(value: Mapping[str, Any], file: BinaryIO, name: str = "archive") -> None:
    """Writes nested dicts of NumPy arrays, numbers, strings and None as torch.save would.

    `torch.load(weights_only=True)` reads it; arrays come back as tensors.

    Args:
      name: of the folder inside the zip file; PyTorch uses the file's name without suffix.

    Raises:
      TypeError: a value of another type. OSError: the file cannot be written.
    """
    arrays: list[np.ndarray] = []
    body = b"\x80\x02" + _pickle(value, arrays) + b"."
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        _entry(archive, f"{name}/data.pkl", body)
        _entry(archive, f"{name}/.format_version", b"1")
        _entry(archive, f"{name}/.storage_alignment", str(ALIGNMENT).encode())
        _entry(archive, f"{name}/byteorder", b"little")
        for index, x in enumerate(arrays):
            little = x.astype(x.dtype.newbyteorder("<")) if x.dtype.byteorder == ">" else x
            _entry(archive, f"{name}/data/{index}", little.tobytes())
        _entry(archive, f"{name}/version", b"3\n")


def _entry(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    """Adds an entry whose bytes start at a multiple of ALIGNMENT: padded by an extra field "FB", as in
    PyTorch."""
    info = zipfile.ZipInfo(name)  # dated 1980: equal weights give equal files
    begin = archive.start_dir + 30 + len(name.encode()) + 4  # local header, name, header of the field
    padding = -begin % ALIGNMENT
    info.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    archive.writestr(info, data)


def _pickle(value: Any, arrays: list[np.ndarray]) -> bytes:
    """Protocol 2 opcodes that leave `value` on the stack; tensors are collected in `arrays`."""
    if value is None:
        return b"N"
    if isinstance(value, bool):
        return b"\x88" if value else b"\x89"
    if isinstance(value, int):
        data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        return b"\x8a" + bytes([len(data)]) + data  # LONG1
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        data = value.encode("utf-8", "surrogatepass")
        return b"X" + struct.pack("<I", len(data)) + data
    if isinstance(value, tuple):
        return b"(" + b"".join(_pickle(v, arrays) for v in value) + b"t"
    if isinstance(value, Mapping):
        items = b"".join(_pickle(k, arrays) + _pickle(v, arrays) for k, v in value.items())
        return b"}(" + items + b"u"
    if isinstance(value, np.ndarray):
        return _tensor(value, arrays)
    raise TypeError(f"{type(value).__name__} cannot be written to a PyTorch file")


def _tensor(x: np.ndarray, arrays: list[np.ndarray]) -> bytes:
    if x.dtype.name not in STORAGES:
        raise TypeError(f"arrays of type {x.dtype} cannot be written to a PyTorch file")
    x = np.array(x, order="C")
    arrays.append(x)
    strides = tuple(s // x.itemsize for s in x.strides)
    storage = (
        b"(" + _pickle("storage", arrays) + b"ctorch\n" + STORAGES[x.dtype.name].encode() + b"\n"
        + _pickle(str(len(arrays) - 1), arrays) + _pickle("cpu", arrays) + _pickle(x.size, arrays) + b"tQ"
    )  # fmt: skip
    call = b"ctorch._utils\n_rebuild_tensor_v2\n("
    rest = _pickle(0, arrays) + _pickle(x.shape, arrays) + _pickle(strides, arrays) + b"\x89"
    return call + storage + rest + b"ccollections\nOrderedDict\n)R" + b"tR"
