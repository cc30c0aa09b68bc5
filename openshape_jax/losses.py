"""Contrastive losses between shape embeddings and CLIP targets over the global batch.

A batch has B shapes and K targets, each of one shape. The K logits of a shape are made in blocks of targets,
and again for the gradients, so that memory grows with B and not with B x K; one block holds all of a small
batch.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from openshape_jax.ops.placement import batch_axes, whole

LOGITS = 1 << 22  # of a device's rows and others that stand in memory together
NONE = -1e30  # the logarithm of no term at all; finite, so that gradients are

# (shapes, targets), both with what `Rows.notes` holds -> (I, J) [i, j] of shape i and target j
Relation = Callable[["Rows", "Rows"], Bool[Array, "I J"]]
Axes = tuple[str, ...]  # of the mesh, over which rows are split; (): they are not


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rows:
    """Shapes or targets, one in a row."""

    emb: Float[Array, "n D"]  # any length, any float type
    owner: Int[Array, n]  # the shape that a row is or describes
    has: Bool[Array, n]  # False: the row is padding
    notes: dict[str, Array] = field(default_factory=dict)  # (n, ...) what relations need


@dataclass(frozen=True)
class Form:
    """Which form of the contrastive loss; the default is CLIP's InfoNCE.

    The wanted targets of a shape are its own and those that `positives` adds. Its negatives are all others
    but those that `ignored` takes out.
    """

    positives: Relation | None = None  # further wanted pairs
    ignored: Relation | None = None  # pairs that are no negatives; wanted ones stay
    # beta of hard-negative sampling (arXiv 2010.04592, eq. 4): a negative counts in proportion to exp(beta x
    # its logit), all of them together as many as they are; 0: each once.
    hardness: float = 0.0
    top_k: int = 0  # only the k negatives nearest to a row count; 0: all
    # Each wanted target competes with the negatives alone (HOLA, arXiv 2606.01334); False: with the other
    # wanted ones too, as in the supervised contrastive loss (arXiv 2004.11362, the sum outside the
    # logarithm).
    decoupled: bool = False


def shapes(emb: Float[Array, "B D"], notes: dict[str, Array] | None = None) -> Rows:
    """B shapes as rows; notes: (B, ...) of each."""
    return Rows(emb, jnp.arange(len(emb)), jnp.ones(len(emb), bool), notes or {})


def targets(
    shapes: Rows, emb: Float[Array, "B M D"], has: Bool[Array, "B M"], notes: dict[str, Array] | None = None
) -> Rows:
    """M targets of each shape as rows, with the notes of their shape.

    Args:
      has: which of the targets are there. notes: (B, M, ...) of the targets alone.
    """
    m = has.shape[1]
    of_shapes = {key: jnp.repeat(note, m, axis=0) for key, note in shapes.notes.items()}
    own = {key: note.reshape(-1, *note.shape[2:]) for key, note in (notes or {}).items()}
    owner = jnp.repeat(shapes.owner, m)
    return Rows(emb.reshape(len(owner), -1), owner, has.reshape(-1), {**of_shapes, **own})


def normalize(x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """Rows scaled to length 1, float32; a zero row stays zero and has a finite gradient."""
    x = x.astype(jnp.float32)
    return x * _rate(x)[..., None]


def _rate(x: Float[Array, "... D"]) -> Float[Array, ...]:
    """1 / length, 1e6 at most."""
    return jax.lax.rsqrt(jnp.square(x).sum(-1) + 1e-12)


@dataclass(frozen=True)
class Task:
    """Targets that the shapes shall find, and be found by."""

    targets: Rows  # as many for each shape as for the next, in the shapes' order
    logit_scale: Float[Array, ""]  # the factor on cosines, exp of the learnt parameter
    form: Form = field(default_factory=Form)


Outcome = tuple[Float[Array, ""], dict[str, Float[Array, ""]]]


def contrastive(shapes: Rows, tasks: Sequence[Task], block: int = 0) -> list[Outcome]:
    """(loss, what shapes see) of each task: the loss is the mean of the shape-to-target and target-to-shape
    cross-entropies.

    A row's loss is the mean over its wanted partners w of -log(exp(l_w) / (exp(l_w) + other wanted +
    negatives)), l being logit_scale times the cosine. No target at all gives loss 0.
    Shapes see "top1", the share of them whose best target is a wanted one, and with `ignored` also
    "ignored_pairs", how many targets are left out for a shape on average.

    Of rows that are split over devices, the shapes are exchanged once for all tasks and each task's targets
    once, in the type that they come in; the gradient of the shapes is summed in float32.

    Args:
      shapes: emb (B, D). Those without a target take no part in a task.
      block: rows of the other side whose logits are held at once; all of them or more: no blocks; 0: as many
        as make LOGITS with a device's own.
    """
    mesh, axes, devices = batch_axes(shapes.emb)
    # Once, so that the gradients of all its uses meet in float32: else they would be rounded before they do.
    emb = shapes.emb.astype(jnp.float32)
    every, shapes = whole(emb, shapes.emb.dtype), dataclasses.replace(shapes, emb=emb)
    forms = [task.form for task in tasks]
    tensors = shapes, [task.targets for task in tasks], [task.logit_scale for task in tasks]
    if devices == 1 or len(shapes.has) % devices:
        return _by_device(forms, block, (), every, *tensors)
    rows = PartitionSpec(axes)
    return jax.shard_map(
        functools.partial(_by_device, forms, block, axes),
        mesh=mesh,
        in_specs=(PartitionSpec(), rows, rows, PartitionSpec()),
        out_specs=PartitionSpec(),
        axis_names=set(axes),
        check_vma=False,
    )(every, *tensors)


def _by_device(
    forms: list[Form],
    block: int,
    axes: Axes,
    every: Float[Array, "B D"],
    shapes: Rows,
    targets: list[Rows],
    scales: list[Array],
) -> list[Outcome]:
    """`contrastive`, of a device's own rows and all devices' together; every: the shapes' of all devices."""

    def together(tree: Any) -> Any:
        """All devices' rows, in the type that they come in."""
        return jax.tree.map(lambda x: jax.lax.all_gather(x, axes, tiled=True), tree) if axes else tree

    every_shape, found = Rows(every, *together((shapes.owner, shapes.has, shapes.notes))), []
    for form, own, scale in zip(forms, targets, scales, strict=True):
        all_targets = together(own)
        forth = _one_way(_with_targets(shapes, own), all_targets, scale, form, block, axes, forward=True)
        back = _one_way(own, _with_targets(every_shape, all_targets), scale, form, block, axes, forward=False)
        found.append((0.5 * (forth[0] + back[0]), forth[1]))
    return found


def _with_targets(shapes: Rows, targets: Rows) -> Rows:
    """The shapes, those without a target as padding."""
    return dataclasses.replace(shapes, has=targets.has.reshape(len(shapes.has), -1).any(1))


def _one_way(
    rows: Rows, keys: Rows, scale: Array, form: Form, block: int, axes: Axes, forward: bool
) -> Outcome:
    """(mean loss, what they see) of all devices' `rows`, each to find its partners among `keys`; rows are
    shapes if `forward`."""
    count = len(keys.has)
    block = block or max(LOGITS // len(rows.has), 1)
    blocks = _blocks(keys, block) if count > block else None
    unit = normalize(rows.emb)

    def related(part: Rows) -> tuple[Array, Array, Array, Array]:
        """(logits, wanted, negative, ignored), each (rows, keys of the part)."""
        pair = (lambda f: f(rows, part)) if forward else (lambda f: f(part, rows).T)
        emb = part.emb.astype(jnp.float32)
        logits = jnp.matmul(unit, emb.T, precision=jax.lax.Precision.HIGHEST) * (scale * _rate(emb))
        both = rows.has[:, None] & part.has
        wanted = rows.owner[:, None] == part.owner
        if form.positives is not None:
            wanted = wanted | pair(form.positives)
        ignored = both & False if form.ignored is None else both & ~wanted & pair(form.ignored)
        return logits, wanted & both, both & ~wanted & ~ignored, ignored

    def over_blocks(step: Callable[[Any, Rows], Any], start: Any) -> Any:
        if blocks is None:
            return step(start, keys)
        return jax.lax.scan(lambda seen, part: (jax.checkpoint(step)(seen, part), None), start, blocks)[0]

    def gather(seen: dict[str, Array], part: Rows) -> dict[str, Array]:
        logits, wanted, negative, ignored = related(part)
        kept = jax.lax.stop_gradient(jnp.where(wanted | negative, logits, NONE))
        place = jnp.argmax(kept, 1)[:, None]
        best = jnp.take_along_axis(kept, place, 1)[:, 0]
        better = best > seen["best"]
        new = {
            "wanted": _and(seen["wanted"], logits, wanted),
            "wanted_sum": seen["wanted_sum"] + jnp.where(wanted, logits, 0).sum(1),
            "wanted_count": seen["wanted_count"] + wanted.sum(1),
            "best": jnp.where(better, best, seen["best"]),
            "hit": jnp.where(better, jnp.take_along_axis(wanted, place, 1)[:, 0], seen["hit"]),
            "ignored": seen["ignored"] + ignored.sum(1),
        }
        if form.top_k:
            every = jnp.concatenate([seen["hardest"], jnp.where(negative, logits, NONE)], 1)
            return {**new, "hardest": jax.lax.top_k(every, form.top_k)[0]}
        return {**new, **_negatives(form, seen, logits, negative)}

    none, zero = jnp.full(len(rows.has), NONE), jnp.zeros(len(rows.has))
    empty = {"negatives": none, "weights": none, "negative_count": zero}
    start = {key: zero for key in ("wanted_sum", "wanted_count", "ignored")}
    start |= {"wanted": none, "best": none, "hit": rows.has & False}
    if form.top_k:
        start["hardest"] = jnp.full((len(rows.has), form.top_k), NONE)
    else:
        start |= empty
    seen = over_blocks(gather, start)
    if form.top_k:
        seen |= _negatives(form, empty, seen["hardest"], seen["hardest"] > NONE / 2)
    negatives = seen["negatives"]
    if form.hardness:
        weighted = negatives - seen["weights"] + jnp.log(jnp.maximum(seen["negative_count"], 1))
        negatives = jnp.where(seen["negative_count"] > 0, weighted, NONE)

    counted = jnp.maximum(seen["wanted_count"], 1)
    if form.decoupled:

        def compete(total: Array, part: Rows) -> Array:
            logits, wanted, _, _ = related(part)
            cost = jax.nn.softplus(jnp.where(wanted, negatives[:, None] - logits, 0))
            return total + jnp.where(wanted, cost, 0).sum(1)

        loss = over_blocks(compete, zero) / counted
    else:
        loss = jnp.logaddexp(seen["wanted"], negatives) - seen["wanted_sum"] / counted
    sums = {"has": rows.has.sum(), "loss": jnp.where(rows.has, loss, 0).sum()}
    sums |= {"hit": (seen["hit"] & rows.has).sum(), "ignored": seen["ignored"].sum(), "rows": len(rows.has)}
    sums = jax.lax.psum(sums, axes) if axes else sums
    total = jnp.maximum(sums["has"], 1)
    found = {"top1": sums["hit"] / total}
    if form.ignored is not None:
        found["ignored_pairs"] = sums["ignored"] / sums["rows"]
    return sums["loss"] / total, found


def _negatives(form: Form, seen: dict[str, Array], logits: Array, negative: Array) -> dict[str, Array]:
    """Sums over the negatives, as logarithms: of their (weighted) terms, and of their weights."""
    beta = form.hardness
    out = {key: seen[key] for key in ("weights", "negative_count")}
    if beta:
        out["weights"] = _and(seen["weights"], beta * logits, negative)
        out["negative_count"] = seen["negative_count"] + negative.sum(1)
    return {**out, "negatives": _and(seen["negatives"], (1 + beta) * logits, negative)}


def _and(log_sum: Float[Array, R], logits: Float[Array, "R C"], mask: Bool[Array, "R C"]) -> Float[Array, R]:
    """The logarithm of exp(log_sum) and of exp(logits) where mask, summed up."""
    return jnp.logaddexp(log_sum, jax.nn.logsumexp(jnp.where(mask, logits, NONE), axis=1))


def _blocks(keys: Rows, block: int) -> Rows:
    """The keys in blocks (n, block, ...), the last one padded with rows that do not take part."""
    short = -len(keys.has) % block

    def cut(x: Array) -> Array:
        padded = jnp.pad(x, [(0, short)] + [(0, 0)] * (x.ndim - 1))
        return padded.reshape(-1, block, *x.shape[1:])

    return jax.tree.map(cut, keys)


def shared_text(shapes: Rows, targets: Rows) -> Bool[Array, "I J"]:
    """[i, j] true where target j is one of the texts of shape i.

    Needs the notes text_ids (I, T) of shapes, all texts of each padded with -1, and text_id (J,) of targets.
    """
    text_ids, text_id = shapes.notes["text_ids"], targets.notes["text_id"]
    return ((text_ids[:, :, None] == text_id) & (text_id >= 0)).any(1)


def false_negatives(margin: float) -> Relation:
    """[i, j] true where target j, of a shape of the group of shape i, probably is no negative of it.

    That is where the shape's text fits i's image: cos(image_i, text_i) - cos(image_i, text_j) <= margin
    (arXiv 2305.10764, "hard negative mining"), the same pairs for texts and images. A pair in which a shape
    lacks an image or a text stays a negative: nothing is known of it. Departure: the authors' code
    multiplies such logits by 0 instead of leaving them out, and fails where a text is missing.

    Needs `pair_notes` as notes of the shapes and of their targets.
    """

    def ignored(shapes: Rows, targets: Rows) -> Array:
        a, b = shapes.notes, targets.notes
        sims = jnp.matmul(a["image_of"], b["text_of"].T, precision=jax.lax.Precision.HIGHEST)
        near = a["fit"][:, None] - sims <= margin
        other = shapes.owner[:, None] != targets.owner
        return near & other & (a["group"][:, None] == b["group"]) & a["has_both"][:, None] & b["has_both"]

    return ignored


def pair_notes(image: Float[Array, "B D"], text: Array, has_both: Bool[Array, B], group: Array) -> dict:
    """What `false_negatives` needs of each shape: its image and text, and which group it belongs to.

    Args:
      image, text: (B, D) any length. has_both: (B,) shapes with both. group: (B,) ids.
    """
    image, text = normalize(image), normalize(text)
    fit = (image * text).sum(-1)
    return {"image_of": image, "text_of": text, "fit": fit, "has_both": has_both, "group": group}
