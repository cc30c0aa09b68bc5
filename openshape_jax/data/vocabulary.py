"""Names with CLIP ViT-B/32 text vectors, and the lookup of a phrase among them."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Sequence
from importlib import resources

import numpy as np

TEXT_SPACE = "clip_vitb32_names_centred"
RAW_TEXT_SPACE = "CLIP ViT-B/32"  # before centring: the space of OpenShape's B/32 model

# Names that people and benchmarks use for what the vocabulary calls otherwise.
ALIASES = {
    "night stand": "nightstand", "bedside table": "nightstand", "night table": "nightstand",
    "tv": "television set", "television": "television set", "computer screen": "monitor (computer equipment)",
    "display": "monitor (computer equipment)", "staircase": "stairs", "plant": "houseplant",
    "potted plant": "houseplant", "range hood": "fume hood", "extractor hood": "fume hood",
    "shelves": "shelf", "laptop": "laptop computer", "notebook computer": "laptop computer",
    "fridge": "refrigerator", "washing machine": "automatic washer", "couch": "sofa", "settee": "sofa",
    "bath": "bathtub", "wc": "toilet", "chest of drawers": "dresser", "bookshelf": "bookcase",
    "car": "car (automobile)", "speaker": "speaker (stero equipment)", "mantel": "fireplace",
    "loudspeaker": "speaker (stero equipment)", "flower pot": "flowerpot", "bag": "tote bag",
    "mobile phone": "cellular telephone", "bin": "trash can", "trash bin": "trash can", "human": "person",
    "desktop computer": "computer box",
}  # fmt: skip
IRREGULAR = {
    "people": "person",
    "men": "man",
    "women": "woman",
    "children": "child",
    "mice": "mouse",
    "feet": "foot",
}
ARTICLES = ("a ", "an ", "the ", "some ")


class UnknownLabel(ValueError):
    """A phrase that is no name of the vocabulary; the message lists the nearest ones."""


class Vocabulary:
    """About 2,000 object names with their text vectors.

    The vectors are unit rows, centred: raw cosines between unrelated names are about 0.74, because all
    CLIP text vectors share a large common part, so the mean over the vocabulary is subtracted from the
    normalised rows, which are then normalised again (unrelated names: about 0).

    Attributes:
      names: canonical names, lower case with spaces, e.g. "armchair", "chicken (animal)".
      keys: the first source key of every name, e.g. "lvis:armchair".
      features: (V, 512) float32 unit rows, centred.
    """

    def __init__(self, names: list[str], keys: list[str], synonyms: list[str], raw: np.ndarray):
        self.names = names
        self._keys = [k.split("|") for k in keys]
        self.keys = [k[0] for k in self._keys]
        unit = raw.astype(np.float32) / np.linalg.norm(raw.astype(np.float32), axis=1, keepdims=True)
        self._uncentred = unit
        centred = unit - unit.mean(0)
        self.features = centred / np.linalg.norm(centred, axis=1, keepdims=True)
        self._index = {_clean(name): i for i, name in enumerate(names)}
        self._key_index = {k.lower(): i for i, ks in enumerate(self._keys) for k in ks}
        self._also = self._other_names(synonyms)

    def _other_names(self, synonyms: list[str]) -> dict[str, int]:
        """Synonyms and names without their parentheses, where they mean one name."""
        claims: dict[str, set[int]] = {}
        for i, (name, others) in enumerate(zip(self.names, synonyms, strict=True)):
            for other in [name, *others.split("|")]:
                for form in {_clean(other), _clean(re.sub(r"\s*\(.*?\)", "", other))} - {""}:
                    claims.setdefault(form, set()).add(i)
        # LVIS names are objects told apart by experts: among several claims theirs wins.
        first = {
            form: [i for i in found if self.keys[i].startswith("lvis:")] or list(found)
            for form, found in claims.items()
        }
        single = {form: found[0] for form, found in first.items() if len(found) == 1}
        aliases = {a: self._index[n] for a, n in ALIASES.items() if n in self._index}
        return {**single, **aliases}

    def names_of(self, source: str) -> list[str]:
        """The canonical names of "lvis" (1,203, in order of their ids), "oid" or "o365"."""
        found = [
            (k, n)
            for ks, n in zip(self._keys, self.names, strict=True)
            for k in ks
            if k.startswith(source + ":")
        ]
        if not found:
            raise ValueError(f"unknown source {source!r}; there are lvis, oid and o365.")
        return [n for _, n in found]

    def find(self, phrase: str) -> int | None:
        """The index of the name that the phrase is: exactly, as key, synonym or plural; else None."""
        if phrase.lower() in self._key_index:
            return self._key_index[phrase.lower()]
        words = _clean(phrase)
        for form in (words, *_singulars(words)):
            for table in (self._index, self._also):
                if form in table:
                    return table[form]
        return None

    def lookup(self, phrase: str) -> int:
        """The index of a phrase's name: as `find`, else by its head noun ("rattan garden chair" is a chair).

        Raises:
          UnknownLabel: nothing fits; lists the nearest names.
        """
        found = self.find(phrase)
        if found is not None:
            return found
        head = re.split(r"\s(?:with|of|for|in|on|and|from)\s", _clean(phrase))[0].split()
        for first in range(len(head)):
            found = self.find(" ".join(head[first:]))
            if found is not None:
                return found
        known = [*self._index, *self._also]
        near = difflib.get_close_matches(_clean(phrase), sorted(set(known)), 5, 0.5)
        hint = f"nearest known names: {', '.join(near)}" if near else "no name comes near it"
        raise UnknownLabel(
            f"unknown label {phrase!r}; {hint}. Use one of the vocabulary's names or a synonym."
        )

    def encode(self, phrases: Sequence[str], centred: bool = True) -> np.ndarray:
        """(n, 512) float32 unit rows of phrases, in TEXT_SPACE or, not centred, in RAW_TEXT_SPACE.

        Raises:
          UnknownLabel: one of them is unknown.
        """
        return (self.features if centred else self._uncentred)[[self.lookup(p) for p in phrases]]


def _clean(phrase: str) -> str:
    words = re.sub(r"[_\-\s]+", " ", phrase.lower()).strip(" .,;:!?'\"")
    for article in ARTICLES:
        words = words.removeprefix(article)
    return words


def _singulars(words: str) -> list[str]:
    """Candidates for the singular of a phrase's last word."""
    *front, last = words.split() or [""]
    forms = [IRREGULAR[last]] if last in IRREGULAR else []
    for ending, replacement in (("ies", "y"), ("ves", "f"), ("ves", "fe"), ("es", ""), ("s", "")):
        if last.endswith(ending) and len(last) > len(ending) + 1 and not last.endswith("ss"):
            forms.append(last[: -len(ending)] + replacement)
    return [" ".join([*front, form]) for form in forms]


@functools.cache
def load() -> Vocabulary:
    """The vocabulary shipped with the package (openshape_jax/assets/NOTICE says where it comes from)."""
    path = resources.files("openshape_jax") / "assets" / "clip_vitb32_text.npz"
    with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
        names, keys, synonyms = ([str(x) for x in file[k]] for k in ("names", "keys", "synonyms"))
        return Vocabulary(names, keys, synonyms, file["features"])
