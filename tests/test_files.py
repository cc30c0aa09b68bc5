"""Files are written whole or not at all, and told apart by digests."""

import errno
import functools
import hashlib
import os

import numpy as np
import pytest

from openshape_jax.data import files


@pytest.mark.parametrize(
    "content", ["Würfel\n", "Würfel\n".encode(), lambda file: file.write(b"W\xc3\xbcrfel\n")]
)
def test_text_bytes_and_functions_replace_what_was_there(tmp_path, content):
    path = tmp_path / "a.txt"
    path.write_text("before")
    files.write(path, content)
    assert path.read_bytes() == b"W\xc3\xbcrfel\n"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_an_array_gets_no_other_name(tmp_path):
    files.write(tmp_path / "table", functools.partial(np.save, arr=np.arange(3)))
    np.testing.assert_array_equal(np.load(tmp_path / "table"), [0, 1, 2])


def test_nothing_is_seen_of_a_file_before_it_is_complete(tmp_path):
    path = tmp_path / "a"
    path.write_text("before")
    with files.new_file(path) as file:
        file.write(b"half")
        file.flush()
        assert path.read_text() == "before"
        assert [p.suffix for p in tmp_path.iterdir() if p != path] == [files.TEMPORARY]
    assert path.read_text() == "half"


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("before", ["before", None])
def test_a_full_disk_leaves_what_was_there_and_keeps_its_words(tmp_path, monkeypatch, call, before):
    path = tmp_path / "a"
    if before:
        path.write_text(before)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space left on device") as found:
        files.write(path, "after")
    assert found.value.errno == errno.ENOSPC
    assert [p.read_text() for p in tmp_path.iterdir()] == ([before] if before else [])


def test_an_interruption_while_it_is_written_leaves_nothing(tmp_path):
    def stop(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write(tmp_path / "a", stop)
    assert not os.listdir(tmp_path)


def test_digests_are_of_content_names_and_values(tmp_path):
    (tmp_path / "a").write_bytes(b"\xc3\xbc")
    expected = hashlib.blake2b(b"\xc3\xbc", digest_size=16).hexdigest()
    assert files.digest("ü") == files.digest(b"\xc3\xbc") == files.digest_of_file(tmp_path / "a") == expected
    trees = [{"a": np.arange(3)}, {"b": np.arange(3)}, {"a": np.arange(3)[::-1]}]
    assert len({files.digest_of_arrays(tree) for tree in trees}) == 3
    assert files.digest_of_arrays({"a": np.arange(6)[::2]}) == files.digest_of_arrays(
        {"a": np.array([0, 2, 4])}
    )
