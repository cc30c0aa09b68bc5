"""Finding the furniture libraries and the program's own catalogue: installed, handed over, or fetched."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any, NamedTuple

from tfds_builders import SourceNotFound

INSTALLED = Path("/usr/share/sweethome3d")
APT_LISTS = Path("/var/lib/apt/lists")
_TIMEOUT = 600  # seconds for one command of apt


class Package(NamedTuple):
    """A Debian package, and which of its files are wanted."""

    name: str
    suffix: str  # of the wanted files' names
    megabytes: int  # to fetch
    cache: str  # folder below TFDS's download directory
    upstream: str = ""  # an archive that holds the same files


FURNITURE = Package(
    "sweethome3d-furniture",
    ".sh3f",
    120,
    "sweethome3d",
    "https://downloads.sourceforge.net/project/sweethome3d/SweetHome3D-models/3DModels-1.8/3DModels-1.8.zip",
)
PROGRAM = Package("sweethome3d", "sweethome3d.jar", 17, "sweethome3d_program")


class _Missing(Exception):
    """This source has nothing, and why."""


def find(
    dl_manager: Any,
    package: Package = FURNITURE,
    say: Callable[[str], None] = print,
    installed: Path = INSTALLED,
) -> tuple[list[Path], str]:
    """(the package's wanted files sorted by name, where they come from in words).

    The sources in order: the installed package, TFDS's manual directory (the files or the .deb), what an
    earlier build fetched, `apt-get download`, the upstream archive. Nothing needs root, but only root fetches
    a package index that is missing.

    Args:
      dl_manager: of TFDS; gives the manual directory, the download directory and the download itself.
      say: called with one line where a download starts.
      installed: the folder of the installed package.

    Raises:
      SourceNotFound: none has them; the message lists why each failed.
    """
    cache = Path(dl_manager.download_dir) / package.cache
    sources: list[tuple[str, Callable[[], list[Path]]]] = [
        (f"installed package ({installed})", lambda: _in_folder(installed, package)),
        ("manual directory", lambda: _manual(dl_manager, cache, package)),
        (f"earlier download ({cache})", lambda: _in_folder(cache, package)),
        (f"apt-get download {package.name}", lambda: _apt(cache, say, package)),
    ]
    if package.upstream:
        fetch = lambda: _upstream(dl_manager, cache, say, package)  # noqa: E731
        sources.append((f"upstream ({package.upstream})", fetch))
    tried = []
    for name, source in sources:
        try:
            return source(), name
        except _Missing as reason:
            tried.append(f"  {name}: {reason}")
    manual = Path(dl_manager.download_dir) / "manual"
    raise SourceNotFound(
        f"no source of Sweet Home 3D's models (*{package.suffix}) can be reached:\n"
        + "\n".join(tried)
        + f"\nInstall the package {package.name}, or put its .deb or those files into {manual},"
        " and start the same command again."
    )


def _in_folder(folder: Path, package: Package) -> list[Path]:
    """The package's wanted files below a folder."""
    if not folder.is_dir():
        raise _Missing("there is no such folder")
    wanted = (p for p in folder.rglob(f"*{package.suffix}") if zipfile.is_zipfile(p))
    found = sorted(wanted, key=lambda p: p.name)
    if not found:
        raise _Missing(f"it holds no *{package.suffix}")
    return found


def _manual(dl_manager: Any, cache: Path, package: Package) -> list[Path]:
    try:
        folder = Path(dl_manager.manual_dir)
    except (AssertionError, ValueError) as error:  # TFDS: none given, missing or empty
        raise _Missing(str(error).splitlines()[0].rstrip(".")) from error
    try:
        return _in_folder(folder, package)
    except _Missing:
        debs = sorted(folder.rglob(f"{package.name}_*.deb"))
        if not debs:
            message = f"{folder} holds neither *{package.suffix} nor {package.name}_*.deb"
            raise _Missing(message) from None
        return _unpack_deb(debs[-1], cache, package)


def _save(members: Iterable[tuple[str, IO[bytes]]], cache: Path) -> None:
    """Writes (name, contents) into the folder `cache`: all of them or none."""
    part = cache.with_name(cache.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        for name, contents in members:
            with (part / Path(name).name).open("wb") as file:
                shutil.copyfileobj(contents, file, 1 << 20)
        shutil.rmtree(cache, ignore_errors=True)
        part.replace(cache)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _unpack_deb(deb: Path, cache: Path, package: Package) -> list[Path]:
    """The wanted files of a Debian package, unpacked one by one out of its file archive."""
    if shutil.which("dpkg-deb") is None:
        raise _Missing(f"{deb} needs dpkg-deb to be unpacked, which is not installed")
    process = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE)
    try:
        with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
            _save(
                (
                    (m.name, file)
                    for m in tar
                    if m.name.endswith(package.suffix) and (file := tar.extractfile(m))
                ),
                cache,
            )
    except tarfile.TarError as error:
        raise _Missing(f"{deb} is damaged ({error}); delete it") from error
    finally:
        assert process.stdout is not None
        process.stdout.close()
        process.wait()
    return _in_folder(cache, package)


def _run(command: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=_TIMEOUT)
    except subprocess.TimeoutExpired as error:
        raise _Missing(f"{' '.join(command)} took longer than {_TIMEOUT} s") from error


def _apt(cache: Path, say: Callable[[str], None], package: Package) -> list[Path]:
    """Fetches the package with apt's own configuration, and its package index where there is none yet."""
    if shutil.which("apt-get") is None or shutil.which("apt-cache") is None:
        raise _Missing("apt is not installed here")
    folder = cache.with_name(cache.name + "_apt")
    folder.mkdir(parents=True, exist_ok=True)
    if not _has_candidate(folder, package):
        if _has_index():  # how old it may be is the owner's choice
            raise _Missing("apt's package index has no such package; `apt-get update` renews it")
        if os.geteuid() != 0:
            raise _Missing("apt has no package index, and only root can fetch it: `sudo apt-get update`")
        say("the package index is missing: apt-get update ...")
        update = _run(["apt-get", "update"], folder)
        if not _has_candidate(folder, package):
            raise _Missing(f"the package is not in the index that apt-get update left: {_last_line(update)}")
    say(f"apt-get download {package.name} ({package.megabytes} MB) ...")
    for old in folder.glob("*.deb"):
        old.unlink()
    result = _run(["apt-get", "download", package.name], folder)
    debs = list(folder.glob("*.deb"))
    if result.returncode or not debs:
        raise _Missing(_last_line(result))
    found = _unpack_deb(debs[0], cache, package)
    shutil.rmtree(folder, ignore_errors=True)
    return found


def _has_index() -> bool:
    """Whether apt has ever read a package index; it keeps three entries of its own beside it."""
    own = ("lock", "partial", "auxfiles")
    return APT_LISTS.is_dir() and any(entry.name not in own for entry in APT_LISTS.iterdir())


def _has_candidate(cwd: Path, package: Package) -> bool:
    policy = _run(["apt-cache", "policy", package.name], cwd).stdout
    return any(line.strip().startswith("Candidate:") and "(none)" not in line for line in policy.splitlines())


def _last_line(result: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in (result.stderr or result.stdout).splitlines() if line.strip()]
    return lines[-1].strip() if lines else f"it ended with status {result.returncode}"


def _upstream(dl_manager: Any, cache: Path, say: Callable[[str], None], package: Package) -> list[Path]:
    say(f"downloading {package.upstream} ...")
    try:
        archive = Path(dl_manager.download(package.upstream))
    except Exception as error:  # requests', urllib3's and TFDS's own errors have no common base
        raise _Missing(f"the download failed ({type(error).__name__}: {str(error)[:200]})") from error
    try:
        with zipfile.ZipFile(archive) as files:
            wanted = [n for n in files.namelist() if n.endswith(package.suffix)]
            _save(((n, files.open(n)) for n in wanted), cache)
    except zipfile.BadZipFile as error:
        raise _Missing(f"the file that was downloaded is no zip archive ({error})") from error
    return _in_folder(cache, package)
