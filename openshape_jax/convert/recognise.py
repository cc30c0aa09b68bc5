"""Which PointBERT a set of tensors is, and what the tensors do not tell: patches, target, up axis."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from openshape_jax.config import ModelConfig
from openshape_jax.convert.error import ConversionError, Undecided
from openshape_jax.convert.names import BLOCK_NAME, Layout, Shape

SIZES: tuple[int | str, ...] = (1, 2, 3, 4, 5, 6, "demo_l14", "demo_b32")
BIGG = "OpenCLIP ViT-bigG-14 (laion2b_s39b_b160k)"
CLIP_VITB32 = "CLIP ViT-B/32"
UNKNOWN = "unknown"
FOUR = ("Objaverse", "ShapeNetCore", "3D-FUTURE", "ABO")


@dataclass(frozen=True)
class Release:
    """A PointBERT that the authors released (https://huggingface.co/OpenShape).

    Attributes:
      name: of the repository, which also shows in the path of a downloaded file.
      scaling: of `pointbert.size`.
      embed_dim: D, the width of the CLIP space.
      up: the axis that points up in its training data.
      prefix: of the tensors' names.
    """

    name: str
    scaling: int | str
    embed_dim: int
    up: str
    text_space: str
    trained_on: tuple[str, ...]
    prefix: str


RELEASES = (
    Release("openshape-pointbert-vitg14-rgb", 4, 1280, "z", BIGG, FOUR, "module."),
    Release("openshape-pointbert-no-lvis", 4, 1280, "z", BIGG, (*FOUR, "without Objaverse-LVIS"), "module."),
    Release("openshape-pointbert-shapenet", 4, 1280, "z", BIGG, ("ShapeNetCore",), "module."),
    Release(
        "openshape-pointbert-vitl14-rgb", "demo_l14", 768, "y", "CLIP ViT-L/14", (UNKNOWN,), "pc_encoder."
    ),
    Release("openshape-pointbert-vitb32-rgb", "demo_b32", 512, "y", CLIP_VITB32, (UNKNOWN,), "pc_encoder."),
)

# Where each width can be read: (name, axis, from the length of the axis).
_SAME: Callable[[int], int] = lambda n: n  # noqa: E731
_EVIDENCE: dict[str, list[tuple[str, int, Callable[[int], int]]]] = {
    "dim": [
        ("ppat.cls_token", 0, _SAME), ("ppat.lift.0.weight", 0, _SAME), ("ppat.lift.0.bias", 0, _SAME),
        ("ppat.lift.2.weight", 0, _SAME), ("ppat.lift.2.bias", 0, _SAME),
        (BLOCK_NAME + "0.norm.weight", 0, _SAME),
    ],
    "heads": [
        (BLOCK_NAME + "0.fn.to_qkv.weight", 0, lambda n: n // 192),
        (BLOCK_NAME + "0.fn.to_out.0.weight", 1, lambda n: n // 64),
    ],
    "mlp_dim": [
        (BLOCK_NAME + "1.fn.net.0.weight", 0, _SAME), (BLOCK_NAME + "1.fn.net.0.bias", 0, _SAME),
        (BLOCK_NAME + "1.fn.net.3.weight", 1, _SAME),
    ],
    "sa_dim": [
        ("ppat.sa.mlp_convs.2.weight", 0, _SAME), ("ppat.sa.mlp_convs.2.bias", 0, _SAME),
        ("ppat.sa.mlp_bns.2.weight", 0, _SAME), ("ppat.lift.0.weight", 1, lambda n: n - 3),
    ],
    "embed_dim": [("proj.weight", 0, _SAME), ("proj.bias", 0, _SAME)],
}  # fmt: skip


def architecture(shapes: Mapping[str, Shape], where: str) -> ModelConfig:
    """The encoder whose tensors have these canonical names and shapes.

    Patches, radius and nsample do not show in tensors: they are left at 0. A width is what most of the
    tensors that show it say, so that a single misshapen one is found out later.

    Raises:
      ConversionError: a width or the depth shows in no tensor.
    """
    numbers = [int(m[1]) for m in (_BLOCK_NUMBER.match(name) for name in shapes) if m]
    depth = max(numbers, default=-1) + 1
    if depth > len(shapes):  # an absurd number in one name
        depth = len(set(numbers))
    if not depth:
        raise ConversionError(f"{where} has no transformer block: no tensor {BLOCK_NAME.format(0)}*.")
    found: dict[str, int] = {}
    for width, places in _EVIDENCE.items():
        votes: Counter[int] = Counter()
        for name, axis, read in places:
            for block in range(depth) if "{}" in name else (0,):
                shape = shapes.get(name.format(block), ())
                if len(shape) > axis and read(shape[axis]) > 0:
                    votes[read(shape[axis])] += 1
        if votes:
            found[width] = votes.most_common(1)[0][0]
    project = "embed_dim" in found
    found.setdefault("embed_dim", found.get("dim", 0))
    missing = [width for width in _EVIDENCE if not found.get(width)]
    if missing:
        names = ", ".join(_EVIDENCE[missing[0]][0][:1]).format(0)
        raise ConversionError(
            f"{where}: {missing[0]} cannot be read: there is no tensor {names}, nor its like."
        )
    return ModelConfig(
        name="pointbert",
        dim=found["dim"],
        depth=depth,
        heads=found["heads"],
        mlp_dim=found["mlp_dim"],
        sa_dim=found["sa_dim"],
        embed_dim=found["embed_dim"],
        project=project,
        patches=0,
        radius=0.0,
        nsample=0,
    )


_BLOCK_NUMBER = re.compile(re.escape(BLOCK_NAME).replace(r"\{\}", r"(\d{1,6})"))


def fitting_sizes(config: ModelConfig) -> list[int | str]:
    """The published sizes whose tensors have the shapes of `config`."""
    from openshape_jax.models import pointbert

    sampling = dict(patches=0, radius=0.0, nsample=0)
    plain = dataclasses.replace(config, **sampling)
    return [n for n in SIZES if dataclasses.replace(pointbert.size(n, config.embed_dim), **sampling) == plain]


def find_release(config: ModelConfig, layout: Layout, where: str) -> Release | None:
    """The release that the file is: by a name in its path, else by layout and shapes; None if unsure.

    A name counts only where D and shapes are that release's. Without one, a release must be the only one
    of its names' prefix and shapes.
    """
    sizes = fitting_sizes(config)
    fits = [r for r in RELEASES if r.scaling in sizes and r.embed_dim == config.embed_dim]
    parts = {p.partition(".")[0].lower() for p in re.split(r"[/\\]|--", where)}
    named = [r for r in fits if parts & {r.name, r.name.removeprefix("openshape-")}]
    if named:
        return named[0]
    alike = [r for r in fits if r.prefix == layout.prefix or sizes == [r.scaling]]
    return alike[0] if len(alike) == 1 else None


def sampling(
    config: ModelConfig, release: Release | None, given: Mapping[str, float | None], where: str
) -> ModelConfig:
    """`config` with patches, radius and nsample: those given, the rest of the published size that fits.

    Raises:
      Undecided: no published size fits, or several do; names them and what to give.
    """
    from openshape_jax.models import pointbert

    asked = {k: v for k, v in given.items() if v is not None}
    for name, value in asked.items():
        if not value > 0:
            raise ConversionError(f"{name} is {value}; it must be positive.")
    sizes = [release.scaling] if release else fitting_sizes(config)
    tables = {n: pointbert.size(n, config.embed_dim) for n in sizes}
    values = {n: {k: getattr(t, k) for k in ("patches", "radius", "nsample")} for n, t in tables.items()}
    options = {tuple({**v, **asked}.values()): {**v, **asked} for v in values.values()}
    agreeing = {n: v for n, v in values.items() if all(v[k] == x for k, x in asked.items())}
    if len(asked) == 3:
        chosen = dict(asked)
    elif len(options) == 1:
        chosen = next(iter(options.values()))
    elif len(agreeing) == 1:
        chosen = next(iter(agreeing.values()))
    else:
        why = (
            "of no published size"
            if not values
            else "the same for "
            + " and ".join(
                f"size {n} (patches {v['patches']}, radius {v['radius']}, nsample {v['nsample']})"
                for n, v in values.items()
            )
        )
        raise Undecided(
            f"{where}: the tensors (dim {config.dim}, depth {config.depth}, heads {config.heads}, mlp "
            f"{config.mlp_dim}, sa_dim {config.sa_dim}, D {config.embed_dim}) are {why}, and patches, radius "
            "and nsample do not show in tensors. Give those it was trained with: patches=, radius=, "
            "nsample= (openshape convert --patches --radius --nsample)."
        )
    return dataclasses.replace(
        config,
        patches=int(chosen["patches"]),
        radius=float(chosen["radius"]),
        nsample=int(chosen["nsample"]),
    )


def up_axis(config: ModelConfig, release: Release | None, given: str | None, where: str) -> str:
    """The axis that points up in the clouds the model was trained on: "y" or "z".

    Every model of the authors' training code with D = 1280 (CLIP ViT-bigG-14) is z-up, both demo models
    are y-up.

    Raises:
      Undecided: another D and not given. ConversionError: given, but neither "y" nor "z".
    """
    if given is not None:
        if given not in ("y", "z"):
            raise ConversionError(f"up is {given!r}; it must be 'y' or 'z'.")
        return given
    if release:
        return release.up
    if config.embed_dim == 1280:
        return "z"
    raise Undecided(
        f"{where}: the axis that points up in the model's training data does not show in its tensors, and "
        f"this (D = {config.embed_dim}) is no known release. Give it: up='z' or up='y' (openshape convert "
        "--up)."
    )


def text_space(config: ModelConfig, release: Release | None) -> str:
    """The CLIP whose space the embeddings live in, "unknown" where nothing tells."""
    if release:
        return release.text_space
    return BIGG if config.embed_dim == 1280 else UNKNOWN
