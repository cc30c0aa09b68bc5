"""Where the sweethome3d builder gets its libraries: every source, with programs and servers made here."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

import tfds_builders
from tests.mesh_examples import MODELS, make_library
from tfds_builders.sweethome3d import libraries


@pytest.fixture
def nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No installed package, no apt and no network; gives the folder for programs."""
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    monkeypatch.setenv("PATH", str(bin_))
    monkeypatch.setattr(
        libraries.find, "__defaults__", (libraries.FURNITURE, print, tmp_path / "not_installed")
    )
    return bin_


class Downloads(SimpleNamespace):
    """A stand-in for TFDS's download manager without a manual directory or a network."""

    @property
    def manual_dir(self) -> Path:
        if not self.manual.is_dir():
            raise AssertionError(f"Manual directory {self.manual} does not exist or is empty. Create it.")
        return self.manual

    def download(self, url: str) -> Path:
        if self.archive is None:
            raise ConnectionError(f"no route to {url}")
        return self.archive


@pytest.fixture
def downloads(tmp_path: Path) -> Downloads:
    return Downloads(download_dir=tmp_path / "dl", manual=tmp_path / "dl" / "manual", archive=None)


def program(folder: Path, name: str, body: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{body}\n")
    (folder / name).chmod(0o755)


def make_deb(path: Path, library: Path, programs: Path) -> None:
    """A file that stands for a package: dpkg-deb, also made here, prints it as the package's tar."""
    with tarfile.open(path, "w") as tar:
        tar.add(library, "./usr/share/sweethome3d/furniture/A.sh3f")
        tar.add(library, "./usr/share/doc/copyright")
    program(programs, "dpkg-deb", 'exec cat "$2"')


def test_all_sources_missing_lists_each(nothing: Path, downloads: Downloads) -> None:
    with pytest.raises(tfds_builders.SourceNotFound) as error:
        libraries.find(downloads)
    said = str(error.value)
    for words in (
        "not_installed",
        "manual directory",
        "earlier download",
        "apt is not installed",
        "ConnectionError",
    ):
        assert words in said
    assert "sourceforge" in said and "sweethome3d-furniture" in said


def test_manual_directory_with_libraries_or_package(
    nothing: Path, downloads: Downloads, tmp_path: Path
) -> None:
    downloads.manual.mkdir(parents=True)
    library = make_library(tmp_path / "made" / "A.sh3f", MODELS, "x")
    make_deb(downloads.manual / "sweethome3d-furniture_1.8-1_all.deb", library, nothing)
    found, source = libraries.find(downloads)
    assert source == "manual directory" and [p.name for p in found] == ["A.sh3f"]
    assert found[0].read_bytes() == library.read_bytes()
    (downloads.manual / "Own.sh3f").write_bytes(library.read_bytes())
    found, _ = libraries.find(downloads)
    assert found == [downloads.manual / "Own.sh3f"]


@pytest.fixture
def apt_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """apt's folder of package indices as it stands before the first update."""
    lists = tmp_path / "lists"
    for name in ("partial", "auxfiles"):
        (lists / name).mkdir(parents=True)
    (lists / "lock").touch()
    monkeypatch.setattr(libraries, "APT_LISTS", lists)
    return lists


def fake_apt(programs: Path, index: Path, packages: Path) -> Path:
    """Programs of apt that know the package once `index` is there, as after an update; gives their log."""
    log = programs / "log"
    program(
        programs, "apt-cache", f'[ -e {index} ] && echo "  Candidate: 1.8-1" || echo "  Candidate: (none)"'
    )
    program(
        programs,
        "apt-get",
        f'echo "$@" >> {log}\ncase "$*" in *update) touch {index};; *) cp {packages}/a.deb x.deb;; esac',
    )
    return log


@pytest.mark.parametrize("root", [True, False])
@pytest.mark.parametrize("indexed", [True, False])
def test_apt_updates_a_missing_index_as_root_only(
    nothing: Path,
    downloads: Downloads,
    tmp_path: Path,
    apt_lists: Path,
    root: bool,
    indexed: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(libraries.os, "geteuid", lambda: 0 if root else 1000)
    library = make_library(tmp_path / "made" / "A.sh3f", MODELS, "x")
    make_deb(tmp_path / "a.deb", library, nothing)
    index = apt_lists / "deb.debian.org_debian_dists_bookworm_main_binary-amd64_Packages.lz4"
    log = fake_apt(nothing, index, tmp_path)
    if indexed:
        index.touch()
    said: list[str] = []
    if not indexed and not root:
        with pytest.raises(
            tfds_builders.SourceNotFound, match=r"no package index, and only root .*\n.*upstream"
        ):
            libraries.find(downloads, libraries.FURNITURE, said.append, tmp_path / "none")
        assert not log.exists()
        return
    found, source = libraries.find(downloads, libraries.FURNITURE, said.append, tmp_path / "none")
    assert source.startswith("apt-get download") and found[0].read_bytes() == library.read_bytes()
    assert log.read_text().splitlines() == ["update"] * (not indexed) + ["download sweethome3d-furniture"]
    assert ("the package index is missing: apt-get update ..." in said) is not indexed
    assert [p.name for p in (tmp_path / "dl").iterdir()] == ["sweethome3d"]  # the package itself is gone
    # the next build finds what was fetched
    assert libraries.find(downloads)[1].startswith("earlier download")


def test_apt_whose_index_lacks_the_package_is_left_alone(
    nothing: Path, downloads: Downloads, tmp_path: Path, apt_lists: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libraries.os, "geteuid", lambda: 0)
    (apt_lists / "archive.ubuntu.com_ubuntu_dists_noble_InRelease").touch()
    log = fake_apt(nothing, tmp_path / "never", tmp_path)
    with pytest.raises(
        tfds_builders.SourceNotFound, match=r"index has no such package.*\n.*upstream.*Connection"
    ):
        libraries.find(downloads)
    assert not log.exists()
    library = make_library(tmp_path / "made" / "A.sh3f", MODELS, "x")
    downloads.archive = tmp_path / "up.zip"
    with zipfile.ZipFile(downloads.archive, "w") as archive:
        archive.write(library, "3DModels-1.8/A.sh3f")
    assert libraries.find(downloads)[1].startswith("upstream")


def test_apt_that_fails_and_a_damaged_package(nothing: Path, downloads: Downloads, tmp_path: Path) -> None:
    program(nothing, "apt-cache", 'echo "  Candidate: 1.8-1"')
    program(nothing, "apt-get", 'echo "W: first" >&2; echo "E: Unable to fetch" >&2; exit 100')
    with pytest.raises(tfds_builders.SourceNotFound, match="E: Unable to fetch"):
        libraries.find(downloads)
    program(nothing, "apt-get", "echo nonsense > x.deb")
    program(nothing, "dpkg-deb", 'exec cat "$2"')
    with pytest.raises(tfds_builders.SourceNotFound, match="is damaged"):
        libraries.find(downloads)
    assert not (tmp_path / "dl" / "sweethome3d").exists()


def test_upstream_archive(nothing: Path, downloads: Downloads, tmp_path: Path) -> None:
    library = make_library(tmp_path / "made" / "A.sh3f", MODELS, "x")
    downloads.archive = tmp_path / "up.zip"
    with zipfile.ZipFile(downloads.archive, "w") as archive:
        archive.write(library, "3DModels-1.8/A.sh3f")
        archive.writestr("3DModels-1.8/README.TXT", "x")
    found, source = libraries.find(downloads)
    assert source.startswith("upstream") and found[0].read_bytes() == library.read_bytes()
    downloads.archive.write_bytes(b"<html>not here</html>")
    shutil.rmtree(tmp_path / "dl")
    with pytest.raises(tfds_builders.SourceNotFound, match="no zip archive"):
        libraries.find(downloads)
