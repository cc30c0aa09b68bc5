"""Reading strangers' .npy files: everything plain comes through, nothing else runs."""

import io
import os
import pickle
import struct
from typing import Any

import numpy as np
import pytest
from etils import epath

from openshape_jax.data import files, safe_npy

VALUES = {
    "matrix": np.arange(6.0, dtype=np.float32).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "big endian": np.arange(3, dtype=">i4"),
    "half": np.full((2, 2), 1.5, np.float16),
    "no rows": np.zeros((0, 5), np.float16),
    "words": np.array(["ab", "jalapeño"]),
    "objects": np.array([{"x": [1]}, None, "z"], object),
    "scalar": np.float32(2.5),
    "type": np.dtype("<f4"),
    "list": ["x", b"y\xff", b"", 2**100, -1, 1.5, True, None, 1j, (1, (2,))],
    "set": {1, "two"},
    "empty": [{}, [], (), set(), ""],
}


def npy(value: Any, protocol: int = 4, fix: Any = lambda pickled: pickled) -> bytes:
    """A .npy file of an object, as np.save writes it."""
    array = np.empty((), object)
    array[()] = value
    return header(()) + fix(pickle.dumps(array, protocol=protocol))


def header(shape: tuple, descr: Any = "|O", fortran: bool = False) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": fortran, "shape": shape})
    return file.getvalue()


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_come_back(protocol):
    shared = [1]
    found = safe_npy.loads(npy({**VALUES, "twice": [shared, shared]}, protocol), "f.npy")
    assert found.keys() == {*VALUES, "twice"}
    for key, value in VALUES.items():
        assert type(found[key]) is type(value), key
        np.testing.assert_equal(found[key], value)
    assert found["big endian"].dtype == np.dtype(">i4")
    assert found["twice"] == [[1], [1]] and found["twice"][0] is found["twice"][1]


@pytest.mark.parametrize("array", [*(v for v in VALUES.values() if isinstance(v, np.ndarray)), np.float64(3)])
def test_files_of_arrays_read_as_numpy_reads_them(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    np.testing.assert_equal(safe_npy.load(tmp_path / "a.npy"), np.asarray(array))


def test_objects_in_fortran_order(tmp_path):
    array = np.asfortranarray(np.array([[1, "a"], [2, "b"], [3, "c"]], object))
    np.save(tmp_path / "a.npy", array)
    np.testing.assert_array_equal(safe_npy.load(tmp_path / "a.npy"), array)


@pytest.mark.parametrize("protocol", [2, 4])
def test_the_module_names_of_numpy_1(protocol):
    old = npy({"x": np.arange(3.0), "s": np.int64(4)}, protocol)
    # "numpy._core.multiarray" is one letter longer, which only a length before it and a frame notice.
    body = old[len(header(())) :].replace(b"numpy._core", b"numpy.core")
    if protocol == 4:
        body = body.replace(b"\x8c\x16numpy.core", b"\x8c\x15numpy.core")
        body = body[:3] + struct.pack("<Q", len(body) - 11) + body[11:]
    found = safe_npy.loads(header(()) + body, "f.npy")
    np.testing.assert_array_equal(found["x"], np.arange(3.0))
    assert found["s"] == 4 and type(found["s"]) is np.int64


# {'n': np.arange(2, dtype='<i2'), 'text': 'caf\xc3\xa9'} as Python 2.7 with NumPy 1.16 pickles it.
PYTHON_2 = (
    b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85U\x01b\x87Rq\x03"
    b"(K\x01)cnumpy\ndtype\nq\x04U\x02O8K\x00K\x01\x87Rq\x05(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK?"
    b"tb\x89]q\x06}q\x07(U\x01nh\x01h\x02K\x00\x85U\x01b\x87R(K\x01K\x02\x85h\x04U\x02i2K\x00K\x01\x87R(K\x03U\x01<"
    b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x04\x00\x00\x01\x00tbU\x04textU\x05caf\xc3\xa9uatb."
)


def test_files_of_python_2():
    text = b"{'descr': '|O', 'fortran_order': False, 'shape': (), }\n"
    found = safe_npy.loads(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + PYTHON_2, "f.npy")
    np.testing.assert_array_equal(found["n"], np.array([0, 1], np.int16))
    assert found["text"] == "cafÃ©"  # its UTF-8, read as Latin-1
    longs = b"{'descr': '<i2', 'fortran_order': False, 'shape': (2L,), }\n"
    found = safe_npy.loads(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(longs)) + longs + b"\1\0\2\0", "f")
    np.testing.assert_array_equal(found, [1, 2])


class Asks:
    """Pickles as a call of a function."""

    def __init__(self, function: Any, *args: Any, state: Any = None):
        self._reduced = (function, args) if state is None else (function, args, state)

    def __reduce__(self) -> Any:
        return self._reduced


class Subclass(np.ndarray):
    pass


TOUCH = "touch /tmp/openshape_safe_npy_was_run"
MALICIOUS = {
    "os.system": (Asks(os.system, TOUCH), r"posix\.system"),
    "eval": (Asks(eval, "1+1"), r"(builtins|__builtin__)\.eval"),
    "in an object array": ({"xyz": np.array([1, Asks(os.system, TOUCH)], object)}, r"posix\.system"),
    "a subclass of ndarray": (np.zeros(3).view(Subclass), r"tests\.test_safe_npy\.Subclass"),
    "a matrix": (np.zeros((2, 2)).view(np.matrix), r"numpy\.matrix"),
    "a class as a value": ([np.ndarray], "a function or class as a value"),
    "ndarray as a function": (Asks(np.ndarray, (10**12,)), "numpy.ndarray itself"),
    "getattr": (Asks(getattr, "", "format"), r"(builtins|__builtin__)\.getattr"),
    "numpy.load": (Asks(np.load, "/etc/passwd"), r"numpy\.load"),
    "a structured type": (np.zeros(2, [("a", "O"), ("b", "i4")]), "NumPy type 'V12'"),
    "a type of other state": (
        Asks(np.dtype, "f4", False, True, state=(3, "<", None, ("a",), {"a": (1, 0)}, 8, 1, 0)),
        "NumPy type with the state",
    ),
    "an ordered dict": (__import__("collections").OrderedDict(a=1), r"collections\.OrderedDict"),
}  # fmt: skip


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("case", MALICIOUS)
def test_anything_else_is_refused_by_name_and_not_run(case, protocol):
    value, asked = MALICIOUS[case]
    with pytest.raises(ValueError, match=rf"(?s)^bad\.npy: refused: the file asks for .*({asked})"):
        safe_npy.loads(npy(value, protocol), "bad.npy")
    assert not os.path.exists(TOUCH.split()[1])


@pytest.mark.parametrize(
    "body",
    [
        b"\x80\x04cnumpy\ndtype\n}X\x0b\x00\x00\x00__doc__text\x8c\x01xsb.",  # a state for our own function
        b"\x80\x04cnumpy\ndtype\nN}X\x0c\x00\x00\x00__defaults__)s\x86b.",  # attributes for it
        b"\x80\x04cnumpy\nndarray\n)\x81.",  # made without a call
    ],
)
def test_what_a_pickle_may_call_cannot_be_changed(body):
    with pytest.raises(ValueError, match=r"bad\.npy.*(asks for a change of|NEWOBJ)"):
        safe_npy.loads(header(()) + body, "bad.npy")
    np.testing.assert_equal(safe_npy.loads(npy(VALUES), "good")["matrix"], VALUES["matrix"])


def numbers(shape: tuple, descr: str = "<f4", data: bytes = b"\0" * 8) -> bytes:
    return header(shape, descr) + data


def reconstructed(shape: str, data: str) -> bytes:
    """An object file whose array says this of itself (protocol 0)."""
    return header(()) + (
        "cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n"
        f"{shape}cnumpy\ndtype\n(S'f4'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\n{data}tb."
    ).encode("latin1")


GOOD = npy(VALUES)
DAMAGED = {
    "empty": (b"", "it is empty"),
    "foreign": (b"PK\x03\x04 a zip file", "begins with b'PK"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    "version": (b"\x93NUMPY\x09\x00" + b" " * 20, "version 9"),
    "cut in the magic": (GOOD[:7], "cut off"),
    "cut in the header": (GOOD[:40], "cut off"),
    "cut in the pickle": (GOOD[:-40], "f.npy is no usable .npy file"),
    "only the header": (header(()), "f.npy is no usable .npy file"),
    "more after the end": (GOOD + b"more", "4 bytes follow its end"),
    "header is no dict": (b"\x93NUMPY\x01\x00\x08\x00['descr']"[:18], "f.npy is no usable"),
    "header of code": (header(()).replace(b"'shape': ()", b"'shape': f()"), "f.npy is no usable"),
    "cut numbers": (numbers((3,)), "8 bytes for an array of .3,. float32, which takes 12"),
    "huge": (numbers((10**15,)), "which takes 4000000000000000"),
    "huge and nothing": (numbers((10**15,), "|S0", b""), "takes 0"),
    "negative": (numbers((-1, -2)), "no shape of an array"),
    "huge inside": (reconstructed("(I1000000000000\nt", "S'abcd'\n"), "which takes 4000000000000"),
    "other than the header": (header((10**12,)) + GOOD[len(header(())) :], r"header says objects of shape"),
    "numbers under an object header": (reconstructed("(t", "S'abcd'\n"), "its pickle holds float32"),
    "no array": (header(()) + pickle.dumps({"a": 1}), "its pickle holds dict"),
    "memo": (header(()) + b"\x80\x02Nr\xff\xff\xff\x7f.", "numbers 2147483647 objects"),
    "objects and numbers": (header((), [("a", "O"), ("b", "i4")]), "mixes objects and numbers"),
    "contains itself": (header(()) + b"\x80\x02]q\x00h\x00a.", "contains itself"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_files_are_named(case):
    data, message = DAMAGED[case]
    with pytest.raises(ValueError, match=message) as error:
        safe_npy.loads(data, "f.npy")
    assert "f.npy" in str(error.value) and "again" in str(error.value)


def test_every_cut_is_noticed():
    data = npy({"a": np.arange(3), "b": ["x", {1}]})
    for length in range(len(data)):
        with pytest.raises(ValueError, match=r"f\.npy"):
            safe_npy.loads(data[:length], "f.npy")


def test_flipped_bytes_give_values_or_value_errors():
    data = npy(VALUES)
    rng = np.random.default_rng(0)
    for position, byte in zip(rng.integers(0, len(data), 500), rng.integers(0, 256, 500), strict=True):
        changed = bytearray(data)
        changed[position] = byte
        try:
            safe_npy.loads(bytes(changed), "f.npy")
        except ValueError as error:
            assert "f.npy" in str(error)


def test_objects_shared_very_often_are_read_once():
    value: Any = np.ones(3)
    for _ in range(100):
        value = [value, value]
    found = safe_npy.loads(npy(value), "f.npy")
    for _ in range(100):
        found = found[0]
    np.testing.assert_array_equal(found, np.ones(3))


class Stumbles:
    def __init__(self, *errors: Exception):
        self.errors = list(errors)

    def read_bytes(self) -> bytes:
        if self.errors:
            raise self.errors.pop(0)
        return b"content"


def test_passing_errors_are_tried_again(monkeypatch, tmp_path):
    monkeypatch.setattr(files, "FIRST_WAIT", 0)
    stumbling = Stumbles(OSError(5, "Input/output error"), TimeoutError("busy"), OSError(116, "Stale handle"))
    assert files.persistently(stumbling.read_bytes, files._transient) == b"content"
    with pytest.raises(OSError, match="busy"):
        files.persistently(Stumbles(*[OSError("busy")] * files.ATTEMPTS).read_bytes, files._transient)
    for lasting in (
        FileNotFoundError("gone"),
        PermissionError("no"),
        IsADirectoryError("folder"),
        KeyError("x"),
    ):
        left = Stumbles(lasting, RuntimeError("tried again"))
        with pytest.raises(type(lasting)):
            files.persistently(left.read_bytes, files._transient)
        assert len(left.errors) == 1
    with pytest.raises(FileNotFoundError):
        files.read_bytes(tmp_path / "none.npy")
    (tmp_path / "some").write_bytes(b"x")
    assert files.read_bytes(str(tmp_path / "some")) == b"x"


def test_a_bucket_without_its_backend_says_what_to_install(monkeypatch):
    def read(self: Any) -> bytes:
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(type(epath.Path("gs://bucket/x")), "read_bytes", read)
    with pytest.raises(OSError, match=r"gs://bucket/x\.npy cannot be read here: Please install gcsfs"):
        files.read_bytes("gs://bucket/x.npy")
