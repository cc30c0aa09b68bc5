"""The TFDS builder of Sweet Home 3D's furniture models (ArrayRecord; needs no TensorFlow)."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from openshape_jax.data import schema, vocabulary
from tfds_builders import SourceNotFound
from tfds_builders.sweethome3d import catalogue, libraries

LABELS = Path(__file__).with_name("labels.csv")
NUM_POINTS = 10_000
TEXT_DIM = 512


class Label(NamedTuple):
    """One line of labels.csv, written by hand: see README.md."""

    key: str  # vocabulary key, "lvis:armchair"; "" where no name fits
    synonyms: tuple[str, ...]
    caption: str
    split: str  # "train" or "test"


def read_labels(path: Path = LABELS) -> dict[str, Label]:
    """The labels by uid.

    Raises:
      ValueError: a split other than train and test.
    """
    labels = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["split"] not in ("train", "test"):
                raise ValueError(
                    f"{path}: {row['uid']} has split {row['split']!r}; it must be train or test."
                )
            synonyms = tuple(s.strip() for s in row["synonyms"].split(";") if s.strip())
            labels[row["uid"]] = Label(row["class"], synonyms, row["caption"], row["split"])
    return labels


def texts_of(name: str, label: Label, words: vocabulary.Vocabulary) -> tuple[list[schema.Text], str]:
    """(the texts of a model, the canonical name of its class or "").

    The class has a feature; a synonym and the catalogue's name have one if the vocabulary knows exactly
    them (plurals included); the caption has none.
    """

    def text(phrase: str, source: str) -> schema.Text:
        index = words.find(phrase)
        return schema.Text(phrase, source, None if index is None else words.features[index])

    texts, canonical = [], ""
    if label.key:
        index = words.lookup(label.key)
        canonical = words.names[index]
        texts.append(schema.Text(canonical, "class", words.features[index]))
    said = {canonical}
    for phrase in label.synonyms:
        if phrase not in said:
            texts.append(text(phrase, "synonym"))
            said.add(phrase)
    if name:
        texts.append(text(name.lower(), "name")._replace(text=name))
    if label.caption:
        texts.append(schema.Text(label.caption, "caption"))
    return texts, canonical


class Sweethome3d(tfds.core.GeneratorBasedBuilder):
    """Coloured point clouds of the furniture libraries of Sweet Home 3D; see README.md."""

    name = "sweethome3d"
    # TFDS 4.9 finds this by itself only where importlib_resources is installed, which it does not ask for
    code_path = epath.Path(__file__)
    VERSION = tfds.core.Version("1.2.0")
    RELEASE_NOTES = {  # noqa: RUF012 - TFDS's way
        "1.0.0": "The five libraries of release 1.8: 820 models.",
        "1.1.0": "Classes and captions of 31 models corrected by eye.",
        "1.2.0": "Also the program's own catalogue: 912 models. Records with room for prompt-averaged text "
        "features and kinds of images; synonyms and captions of every model.",
    }
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Only where neither apt nor the network can be reached: put the .sh3f libraries of Sweet Home 3D, or "
        "Debian's sweethome3d-furniture_*.deb, into the manual directory."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        words = vocabulary.load()
        keys = {label.key for label in read_labels().values() if label.key}
        return tfds.core.DatasetInfo(
            builder=self,
            description="912 coloured, named 3D models of furniture, people, plants and vehicles as points.",
            features=schema.features(text_dim=TEXT_DIM),
            homepage="https://www.sweethome3d.com/freeModels.jsp",
            license="CC0-1.0, CC-BY-3.0, CC-BY-3.0-US or GPL-2.0-or-later: see `license` and `creator`.",
            metadata=tfds.core.MetadataDict(
                classes=sorted({words.names[words.lookup(key)] for key in keys}),
                text_space=vocabulary.TEXT_SPACE,
                up="z",
                unit="cm (xyz * scale + center)",
                num_points=NUM_POINTS,
                version=str(self.VERSION),
            ),
        )

    @property
    def _metadata(self) -> dict[str, Any]:
        assert self.info.metadata is not None
        return self.info.metadata

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        paths, source = libraries.find(dl_manager)
        print(f"{len(paths)} libraries from {source}: {', '.join(p.stem for p in paths)}")
        try:
            program, where = libraries.find(dl_manager, libraries.PROGRAM)
            print(f"the program's own catalogue from {where}")
            paths = [*paths, *program]
        except SourceNotFound as error:
            print(f"WITHOUT the program's own catalogue (92 of the training models): {error}")
        entries = catalogue.read_all(paths)
        self._metadata.update(
            source=f"Sweet Home 3D furniture libraries, {source.partition(' (')[0]}",
            libraries=[p.name for p in paths],
            attribution=catalogue.attribution(entries),
            skipped=0,
        )
        labels = read_labels()
        unknown = Label("", (), "", "train")  # a model that a newer release added
        by_split: dict[str, list] = {"train": [], "test": []}
        for entry in entries:
            label = labels.get(entry.uid, unknown)
            by_split[label.split].append((entry, label))
        return {split: self._examples(pairs) for split, pairs in by_split.items() if pairs}

    def _generate_examples(self) -> None:
        """Required by TFDS; `_split_generators` calls `_examples`."""

    def _examples(self, pairs: list[tuple[catalogue.Entry, Label]]) -> Iterator[tuple[str, dict[str, Any]]]:
        words = vocabulary.load()
        shapes = catalogue.load_all([entry for entry, _ in pairs], NUM_POINTS, min(os.cpu_count() or 1, 8))
        for (entry, label), shape in zip(pairs, shapes, strict=True):
            record = None
            if not shape.error:
                try:
                    record = self._record(entry, label, shape, words)
                except ValueError as error:
                    shape = shape._replace(error=str(error))
            if record is None:
                self._reject(entry, shape.error)
                continue
            yield entry.uid, record

    def _record(
        self, entry: catalogue.Entry, label: Label, shape: catalogue.Shape, words: vocabulary.Vocabulary
    ) -> dict[str, Any]:
        texts, canonical = texts_of(entry.name, label, words)
        return schema.encode(
            uid=entry.uid,
            dataset=self.name,
            xyz=shape.xyz,
            rgb=np.asarray(shape.rgb),
            texts=texts,
            text_dim=TEXT_DIM,
            icon=shape.icon,
            meta={
                "name": entry.name,
                "label": canonical,
                "category": entry.category,
                "tags": entry.tags,
                "creator": entry.creator,
                "license": entry.license,
            },
        )

    def _reject(self, entry: catalogue.Entry, error: str) -> None:
        """Notes a model that cannot be used in rejects.jsonl, beside the records."""
        self._metadata["skipped"] += 1
        line = {"uid": entry.uid, "name": entry.name, "library": entry.library, "error": error}
        with (Path(self.data_dir) / "rejects.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
