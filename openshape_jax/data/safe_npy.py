"""Reading `.npy` files of strangers, also those that hold pickled objects, without running anything.

A pickle is a program: `np.load(allow_pickle=True)` runs whatever a file asks for. Here it may ask for NumPy
arrays and scalars of plain types, and for plain containers, each made by a function of ours that checks
what it is given. Everything else is refused before anything of it runs.
"""

from __future__ import annotations

import ast
import io
import math
import os
import pickle
import pickletools
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from openshape_jax.data import files

MAGIC = b"\x93NUMPY"
MAX_HEADER = 10_000  # characters: NumPy's own limit
PLAIN_TYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248]|c8|c16|[SU]\d{1,9})")
PLAIN_VALUES = (str, bytes, bytearray, int, float, complex, bool, type(None), np.generic)


class _Refused(Exception):
    """The file asks for something that is not admitted; says for what."""


def load(path: str | os.PathLike[str]) -> Any:
    """The array of a `.npy` file; where it holds a single pickled object, as after np.save(f, dict), that.

    Arrays are read-only and share the file's bytes. Python 2's strings are read as Latin-1.

    Raises:
      ValueError: no `.npy` file, cut off, damaged, or it asks for anything but arrays and plain values;
        names the file. OSError: it cannot be read.
    """
    return loads(files.read_bytes(path), str(path))


def loads(data: bytes, name: str) -> Any:
    """As `load`, of a file's content; `name` is for messages."""
    try:
        dtype, shape, fortran, start = _header(data)
        if dtype.kind != "O":
            return _array(dtype, shape, fortran, memoryview(data)[start:])
        found = _unpickle(data[start:])
    except _Refused as asked:
        raise ValueError(
            f"{name}: refused: the file asks for {asked}, which arrays and plain values do not need; nothing "
            "of it was run. If it is yours, save NumPy arrays, str, numbers, list, tuple and dict only."
        ) from None
    except Exception as error:  # whatever a broken header or pickle makes the readers raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ValueError(f"{name} is no usable .npy file: {reason}. Fetch or save it again.") from error
    if not isinstance(found, np.ndarray) or found.dtype.kind != "O" or found.shape != shape:
        what = f"{found.dtype} {found.shape}" if isinstance(found, np.ndarray) else type(found).__name__
        raise ValueError(
            f"{name} is no usable .npy file: its header says objects of shape {shape}, its pickle holds "
            f"{what}. Fetch or save it again."
        )
    return found if shape else found.item()


def _header(data: bytes) -> tuple[np.dtype[Any], tuple[int, ...], bool, int]:
    """(type, shape, whether in Fortran order, where the data start)."""
    if not data:
        raise ValueError("it is empty")
    if data.startswith(b"version https://git-lfs"):
        raise ValueError("it is a Git LFS pointer, not the file itself (git lfs pull fetches it)")
    if not data.startswith(MAGIC):
        raise ValueError(f"it begins with {data[:8]!r}, not with {MAGIC!r}")
    version = data[6] if len(data) > 7 else 0
    if version not in (1, 2, 3) and len(data) > 7:
        raise ValueError(f"its format has version {version}; 1, 2 and 3 are known")
    width = 2 if version == 1 else 4
    start = 8 + width + int.from_bytes(data[8 : 8 + width], "little")
    if start > min(len(data), MAX_HEADER) or len(data) < 10:
        raise ValueError(f"it is cut off or damaged in its header ({len(data)} bytes)")
    text = data[8 + width : start].decode("utf-8" if version == 3 else "latin1")
    header = ast.literal_eval(re.sub(r"(\d)L\b", r"\1", text).strip())  # Python 2 writes 3L for long numbers
    if not isinstance(header, dict) or header.keys() != {"descr", "fortran_order", "shape"}:
        raise ValueError(f"its header is {text[:80]!r}")
    dtype = np.lib.format.descr_to_dtype(header["descr"])
    if dtype.hasobject and dtype.kind != "O":
        raise ValueError(f"its type {dtype} mixes objects and numbers")
    return dtype, _shape(header["shape"]), bool(header["fortran_order"]), start


def _shape(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"{str(shape)[:80]} is no shape of an array")
    return shape


def _array(dtype: np.dtype[Any], shape: tuple[int, ...], fortran: bool, data: Any) -> np.ndarray:
    """A read-only view of the bytes; never larger than they are."""
    size = math.prod(shape)
    wanted = size * dtype.itemsize
    if wanted != len(data) or (size and not wanted):
        raise ValueError(f"{len(data)} bytes for an array of {shape} {dtype}, which takes {wanted}")
    flat = np.frombuffer(data, dtype) if size else np.empty(0, dtype)
    flat.flags.writeable = False
    return flat.reshape(shape, order="F" if fortran else "C")


def _unpickle(data: bytes) -> Any:
    end = 0
    for opcode, argument, at in pickletools.genops(data):  # complains where the bytes end too early
        if "PUT" in opcode.name and isinstance(argument, int) and argument > len(data):
            raise ValueError(f"its pickle numbers {argument} objects in {len(data)} bytes")
        end = (at or 0) + 1
    if end != len(data):
        raise ValueError(f"{len(data) - end} bytes follow its end")
    return _Plain().of(_Unpickler(io.BytesIO(data), encoding="latin1").load())


# Stand-ins for what a pickle builds in two steps. Their state is checked before NumPy sees it, because
# NumPy's own __setstate__ trusts it.


class _Built:
    __hash__ = None  # type: ignore[assignment]


class _DType(_Built):
    """A type: made by its name, then given a byte order."""

    def __init__(self, name: Any = None, *_flags: Any):
        if not isinstance(name, str) or not (PLAIN_TYPE.fullmatch(name) or re.fullmatch(r"\|?O[48]?", name)):
            raise _Refused(f"the NumPy type {str(name)[:80]!r}")
        self.dtype = np.dtype(object if "O" in name else name)

    def __setstate__(self, state: Any) -> None:
        order, *fields = state[1:5] if isinstance(state, tuple) and len(state) >= 5 else ("?",)
        if order not in ("<", ">", "|", "=") or any(f is not None for f in fields):
            raise _Refused(f"a NumPy type with the state {str(state)[:80]}")
        if self.dtype.kind != "O" and order in "<>":
            self.dtype = self.dtype.newbyteorder(order)


class _Array(_Built):
    """An array: made empty, then filled once."""

    content: Any = None  # an ndarray, or for objects (shape, list)

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) not in (4, 5) or self.content is not None:
            raise ValueError("an array is filled with something else than an array's state")
        shape, dtype, fortran, data = state[-4:]
        if not isinstance(dtype, _DType):
            raise ValueError(f"an array has the type {str(dtype)[:80]}")
        if dtype.dtype.kind != "O":
            self.content = _array(dtype.dtype, _shape(shape), bool(fortran), _raw(data))
        elif isinstance(data, list) and len(data) == math.prod(_shape(shape)):
            self.content = (shape, data)  # in C order whatever `fortran` says
        else:
            raise ValueError(f"an array of objects of shape {str(shape)[:80]} has another number of them")


def _raw(data: Any) -> Any:
    if isinstance(data, str):  # Python 2's
        return data.encode("latin1")
    if not isinstance(data, (bytes, bytearray)):
        raise ValueError(f"an array's bytes are a {type(data).__name__}")
    return data


def _reconstruct(kind: Any = None, *_shape_and_code: Any) -> _Array:
    if kind is not _NDARRAY:
        raise _Refused("an array of another class than numpy.ndarray")
    return _Array()


def _frombuffer(data: Any = b"", dtype: Any = None, shape: Any = (), order: Any = "C") -> _Array:
    array = _Array()
    array.__setstate__((shape, dtype, order == "F", data))
    return array


def _scalar(dtype: Any = None, data: Any = b"") -> Any:
    if not isinstance(dtype, _DType) or dtype.dtype.kind == "O":
        raise ValueError("a NumPy scalar of another form")
    return _array(dtype.dtype, (), False, _raw(data))[()]


def _encode(text: Any = None, encoding: Any = "utf-8") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise _Refused(f"_codecs.encode to {str(encoding)[:80]!r}")
    return text.encode("latin1")


def _bytes(data: Any = b"", encoding: Any = "latin-1") -> bytes:
    return data if isinstance(data, bytes) else _encode(data, encoding)


def _set(items: Any = ()) -> set[Any]:
    if not isinstance(items, (list, tuple)):
        raise ValueError(f"a set is made of a {type(items).__name__}")
    return set(items)


def _complex(real: Any = 0.0, imag: Any = 0.0) -> complex:
    return complex(float(real), float(imag))


class _Call(_Built):
    """A function that a pickle can call, but neither change nor take apart."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]):
        object.__setattr__(self, "_function", function)

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setattr__(self, name: str, value: Any) -> None:
        raise _Refused(f"a change of {self._function.__name__}")

    def __setstate__(self, state: Any) -> None:
        raise _Refused(f"a change of {self._function.__name__}")


def _ndarray(*_args: Any) -> Any:
    raise _Refused("numpy.ndarray itself")  # it is only named, for _reconstruct


_NDARRAY = _Call(_ndarray)
_ADMITTED = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _Call(_DType),
    ("_codecs", "encode"): _Call(_encode),
    **{
        (module, name): _Call(function)
        for core in ("numpy.core", "numpy._core")  # NumPy 1 and 2
        for module, name, function in (
            (f"{core}.multiarray", "_reconstruct", _reconstruct),
            (f"{core}.multiarray", "scalar", _scalar),
            (f"{core}.numeric", "_frombuffer", _frombuffer),
        )
    },
    **{
        (module, function.__name__.removeprefix("_")): _Call(function)
        for module in ("builtins", "__builtin__")  # Python 3 and 2
        for function in (_set, _bytes, _complex)
    },
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise _Refused(f"{module}.{name}"[:200]) from None


class _Plain:
    """Replaces stand-ins by what they stand for."""

    def __init__(self) -> None:
        self._done: dict[int, Any] = {}  # by identity: objects may be shared very often
        self._kept: list[Any] = []  # alive, so that no identity is given twice

    def of(self, value: Any) -> Any:
        kind = type(value)
        if kind in PLAIN_VALUES or isinstance(value, np.generic) or kind is set:  # a set's items have hashes
            return value
        if id(value) in self._done:
            found = self._done[id(value)]
            if found is self:
                raise ValueError("an object contains itself")
            return found
        self._kept.append(value)
        self._done[id(value)] = self
        self._done[id(value)] = made = self._make(value)
        return made

    def _make(self, value: Any) -> Any:
        kind = type(value)
        if kind in (list, tuple):
            return kind(map(self.of, value))
        if kind is dict:
            return {key: self.of(item) for key, item in value.items()}
        if kind is _DType:
            return value.dtype
        if kind is _Call:
            raise _Refused("a function or class as a value")
        if kind is not _Array or value.content is None:
            raise ValueError(f"it holds a {kind.__name__.removeprefix('_')} that was never filled")
        if isinstance(value.content, np.ndarray):
            return value.content
        shape, items = value.content
        flat = np.empty(len(items), object)
        for i, item in enumerate(items):
            flat[i] = self.of(item)
        return flat.reshape(shape)
