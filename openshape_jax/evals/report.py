"""The HTML report of a run: one self-contained page that opens from disk.

This file reads the run directory and the data set and writes the page; report_page.py holds its sections.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from openshape_jax import metrics, render
from openshape_jax.data import files, schema, sources

SHOWN = 12  # right answers in the gallery, and as many wrong ones
QUERIES = 6  # retrieval rows of each kind
NEIGHBOURS = 7  # shapes of a retrieval row
PIXELS = 160  # of a picture's side
LARGEST_ICON = 48_000  # bytes; larger ones are made smaller
# Words that no model is labelled with: a search by meaning should find their kinds all the same.
WIDER_WORDS = ("furniture", "animal", "vehicle", "tableware", "toy", "musical instrument")
ARRAYS = ("uid", "label", "shape_emb", "class_names", "class_emb")


@dataclass
class Embedded:
    """What an evaluation says of every shape."""

    uid: list[str]
    label: np.ndarray  # (n,) index of the true class
    shape_emb: np.ndarray  # (n, D) unit vectors
    class_names: list[str]
    class_emb: np.ndarray  # (C, D) unit vectors

    def scores(self) -> np.ndarray:
        """(n, C) cosines."""
        return self.shape_emb @ self.class_emb.T


@dataclass
class Result:
    """One evaluation: its numbers, its embeddings unless they are missing, and what is wrong with it."""

    name: str
    values: dict[str, Any]
    embedded: Embedded | None = None
    problem: str = ""

    @property
    def dataset(self) -> str:
        """The evaluated data set."""
        return str(self.values.get("dataset") or self.name.removesuffix("_lvis"))

    @property
    def over_lvis(self) -> bool:
        """Whether the names of LVIS were told apart, not the data set's classes ("objaverse_lvis" has its own)."""
        return self.name == self.dataset.replace("/", "_") + "_lvis"


@dataclass
class Choice:
    """The shapes that the page shows, as indices into the evaluated ones."""

    ranked: np.ndarray  # (n, C) classes, the best first
    right: list[int]  # of the gallery
    wrong: list[int]
    by_word: list[tuple[str, np.ndarray, list[int]]]  # word, (n,) cosines, shapes found
    by_shape: list[tuple[int, np.ndarray, list[int]]]  # query, (n,) cosines, shapes found

    def drawn(self) -> set[int]:
        """Every index that needs a picture."""
        found = [i for row in (*self.by_word, *self.by_shape) for i in row[2]]
        return {*self.right, *self.wrong, *found, *(query for query, _, _ in self.by_shape)}


@dataclass
class Shapes:
    """Names, pictures and icons (PNG bytes) by uid; `problem` says why some are missing."""

    names: dict[str, str] = field(default_factory=dict)
    pictures: dict[str, bytes] = field(default_factory=dict)
    icons: dict[str, bytes] = field(default_factory=dict)
    problem: str = ""


@dataclass
class Credits:
    """The makers of the models of every data set of the run."""

    entries: list[dict[str, Any]] = field(default_factory=list)
    problem: str = ""


def write(workdir: str | Path, data_dir: str | Path | None = None) -> Path:
    """WORKDIR/report/index.html, written from the run directory and the data set it was evaluated on.

    What is missing (no evaluation yet, data set gone) is said in its place on the page.

    Args:
      workdir: the run directory of a training run, or the folder of an evaluation (`openshape eval --output`).
      data_dir: folder of the data sets; default: the one in the evaluation or the config, else TFDS's.

    Raises:
      ValueError: workdir is neither, or its config.json or eval.json is damaged.
    """
    from openshape_jax.evals import report_page, suite

    workdir = Path(workdir)
    evaluated = suite.read(workdir) if (workdir / "eval.json").exists() else None
    config = _read_config(workdir, evaluated)
    results = list(_read_results(workdir, config))
    main = next((r for r in results if r.embedded), None)
    choice = choose(main.embedded) if main and main.embedded else None
    named = [main.values.get("data_dir") if main else None, (config.get("data") or {}).get("data_dir")]
    data_dirs = [str(data_dir)] if data_dir else [*(str(p) for p in named if p), ""]
    shapes = _read_shapes(main, choice, data_dirs) if main and choice else Shapes()
    page = report_page.page(
        name=workdir.resolve().name,
        config=config,
        lines=metrics.read(workdir),
        results=results,
        main=main,
        choice=choice,
        shapes=shapes,
        credits=_read_credits(config, results, data_dirs),
        evaluated=evaluated,
    )
    return save(page, workdir / "report" / "index.html")


def save(page: str, path: Path) -> Path:
    """`path`, where the page is written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, page)
    return path


def choose(embedded: Embedded, seed: int = 0) -> Choice:
    """The shapes to show: as many wrong answers as right ones where there are enough, drawn by `seed`."""
    rng = np.random.default_rng(seed)
    names, label, shape_emb = embedded.class_names, embedded.label, embedded.shape_emb
    ranked = np.argsort(-embedded.scores(), axis=1, kind="stable")
    correct = ranked[:, 0] == label
    right, wrong = (rng.permutation(np.flatnonzero(mask))[:SHOWN].tolist() for mask in (correct, ~correct))

    counts = np.bincount(label, minlength=len(names))
    frequent = [int(c) for c in np.argsort(-counts, kind="stable") if counts[c]]
    wider = list(_wider_words(embedded))[:2]
    queries = [(names[c], embedded.class_emb[c]) for c in frequent[: QUERIES - len(wider)]] + wider
    by_word = []
    for word, vector in queries:
        cosine = shape_emb @ vector
        by_word.append((word, cosine, _nearest(cosine, NEIGHBOURS)))

    # One query a class, of classes that have something to find.
    repeated = [c for c in frequent if counts[c] > 1]
    classes = rng.permutation(repeated or frequent)[:QUERIES]
    by_shape = []
    for query in sorted(int(rng.choice(np.flatnonzero(label == c))) for c in classes):
        cosine = shape_emb @ shape_emb[query]
        found = [i for i in _nearest(cosine, NEIGHBOURS + 1) if i != query][:NEIGHBOURS]
        by_shape.append((query, cosine, found))
    return Choice(ranked, right, wrong, by_word, by_shape)


def _nearest(cosine: np.ndarray, count: int) -> list[int]:
    return np.argsort(-cosine, kind="stable")[:count].tolist()


def _wider_words(embedded: Embedded) -> Iterator[tuple[str, np.ndarray]]:
    """Words outside the classes with their vectors, if the run's text space is the vocabulary's."""
    from openshape_jax.data import vocabulary

    words = vocabulary.load()
    if embedded.class_emb.shape[1] != words.features.shape[1]:
        return
    try:
        same = np.allclose(words.encode(embedded.class_names[:1])[0], embedded.class_emb[0], atol=1e-3)
    except vocabulary.UnknownLabel:
        return
    for word in WIDER_WORDS:
        if same and word not in embedded.class_names:
            yield word, words.encode([word])[0]


def _read_config(workdir: Path, evaluated: dict[str, Any] | None) -> dict[str, Any]:
    """The config of the run; where there was none here, that of the training which the model remembers."""
    path = workdir / "config.json"
    if not path.exists() and evaluated is not None:
        known = {"model": evaluated["model"]["model"], "data": {"datasets": evaluated["model"]["trained_on"]}}
        asked = {"datasets": list(evaluated["datasets"]), **evaluated["options"]}
        return {**known, **evaluated["trained_with"], "eval": asked}
    if not path.exists():
        raise ValueError(f"{workdir} has no config.json; give the --workdir of a training run.")
    try:
        config = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}); copy it from a backup or train again.") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds a {type(config).__name__}; it must be one JSON object.")
    return config


def _read_results(workdir: Path, config: dict[str, Any]) -> Iterable[Result]:
    """The evaluations, those that the config names first, each followed by its larger label set."""
    wanted = [str(n).replace("/", "_") for n in (config.get("eval") or {}).get("datasets", [])]

    def place(path: Path) -> tuple[int, bool, str]:
        base = path.stem if path.stem in wanted else path.stem.removesuffix("_lvis")
        return (wanted.index(base) if base in wanted else len(wanted), path.stem != base, path.stem)

    for path in sorted((workdir / "eval").glob("*.json"), key=place):
        try:
            values = json.loads(path.read_text())
        except (json.JSONDecodeError, UnicodeDecodeError):
            yield Result(path.stem, {}, problem=f"{path.name} is damaged and was left out.")
            continue
        try:
            yield Result(path.stem, dict(values), _read_embedded(path.with_suffix(".npz")))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            yield Result(path.stem, dict(values), problem=f"The embeddings could not be read: {error}")


def _read_embedded(path: Path) -> Embedded:
    # Opened here: NumPy leaves the file open where it is no zip.
    with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
        missing = [k for k in ARRAYS if k not in file]
        if missing:
            raise ValueError(f"{path.name} has no array {', '.join(missing)}")
        arrays = {k: file[k] for k in ARRAYS}
    n, label = len(arrays["uid"]), arrays["label"]
    fits = len(label) == len(arrays["shape_emb"]) == n and len(arrays["class_names"]) == len(
        arrays["class_emb"]
    )
    if not fits or n == 0 or label.min() < 0 or label.max() >= len(arrays["class_names"]):
        raise ValueError(f"the arrays of {path.name} do not fit together")
    if not (np.isfinite(arrays["shape_emb"]).all() and np.isfinite(arrays["class_emb"]).all()):
        raise ValueError(f"{path.name} holds NaN or infinite embeddings")
    texts = {k: [str(x) for x in arrays[k]] for k in ("uid", "class_names")}
    return Embedded(**texts, **{k: arrays[k] for k in ("label", "shape_emb", "class_emb")})


def _open(name: str, split: str | None, data_dirs: Sequence[str]) -> tuple[Any, Any]:
    """(records or None, info) from the first folder that has the data set.

    Raises:
      ValueError: in none of them, without that split, or damaged.
    """
    import tensorflow_datasets as tfds

    problem: Exception = ValueError(f"data set {name!r} was looked for nowhere.")
    for folder in dict.fromkeys(data_dirs):
        try:
            if split is None:
                return None, tfds.builder_from_directory(str(sources.find(name, folder))).info
            return sources.open_split(name, split, folder)
        except Exception as error:  # a damaged data set fails in many ways, deep inside TFDS
            problem = error
    raise ValueError(f"Data set {name!r}: {problem}")


def _read_shapes(result: Result, choice: Choice, data_dirs: Sequence[str]) -> Shapes:
    """Names of all evaluated shapes; pictures and icons of those that are shown."""
    embedded, shapes, damaged = result.embedded, Shapes(), 0
    assert embedded is not None
    try:
        records, _ = _open(result.dataset, str(result.values.get("split", "test")), data_dirs)
    except ValueError as error:
        return Shapes(problem=f"The shapes could not be drawn. {error}")
    known, drawn = set(embedded.uid), {embedded.uid[i] for i in choice.drawn()}
    for index in range(len(records)):
        try:
            record = records[index]
        except (ValueError, RuntimeError, OSError):  # a wrong checksum, a file cut or gone
            damaged += 1
            continue
        uid = record["uid"]
        if uid in known:
            shapes.names[uid] = record["name"] or uid
        if uid in drawn:
            xyz, rgb = schema.dequantize_xyz(record["xyz"]), np.asarray(record["rgb"]) / 255
            shapes.pictures[uid] = render.png(render.picture(xyz, rgb, PIXELS))
            shapes.icons[uid] = _icon(record["icon"])
    gone = len(known - set(shapes.names))
    if gone:
        shapes.problem = f"{gone} of {len(known)} evaluated shapes are not in the data set that was found" + (
            f" ({damaged} damaged records)." if damaged else "; it was built again since, or is another."
        )
    return shapes


def _icon(data: Any) -> bytes:
    """A PNG file of moderate size, or nothing where there is none or it cannot be read."""
    from PIL import Image

    data = data if isinstance(data, bytes) else b""
    if not data.startswith(b"\x89PNG\r\n") or len(data) > LARGEST_ICON:
        import io

        try:
            picture = Image.open(io.BytesIO(data)).convert("RGBA")
        except (OSError, ValueError, SyntaxError):
            return b""
        picture.thumbnail((PIXELS, PIXELS))
        buffer = io.BytesIO()
        picture.save(buffer, "png", optimize=True)
        return buffer.getvalue()
    return data


def _read_credits(config: dict[str, Any], results: Sequence[Result], data_dirs: Sequence[str]) -> Credits:
    """Attribution of the data sets that were trained and evaluated on, each creator once per licence."""
    groups = [(config.get(k) or {}).get("datasets", []) for k in ("data", "eval")]
    names = dict.fromkeys([*(str(n) for group in groups for n in group), *(r.dataset for r in results)])
    entries, missing = [], []
    for name in names:
        try:
            _, info = _open(name, None, data_dirs)
        except ValueError:
            missing.append(name)
            continue
        listed = dict(info.metadata or {}).get("attribution", [])
        entries += [{**entry, "dataset": name} for entry in listed]
    problem = f"Not found, so that its creators cannot be listed: {', '.join(missing)}." if missing else ""
    return Credits(entries, problem)
