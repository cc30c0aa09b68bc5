"""Contrastive losses between shape embeddings and CLIP targets over the global batch.

A batch has B shapes and K targets, each of one shape. The K logits of a shape are made in blocks of targets,
and again for the gradients, so that memory grows with B and not with B x K; one block holds all of a small
batch.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from openshape_jax.ops.placement import batch_axes, gather_rows, scatter_sum

LOGITS = 1 << 22  # of a device's rows and others that stand in memory together
HIGHEST = jax.lax.Precision.HIGHEST
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
    """1 / length, 1e6 at most; float32."""
    return jax.lax.rsqrt(jnp.square(x.astype(jnp.float32)).sum(-1) + 1e-12)


@dataclass(frozen=True)
class Task:
    """M targets of each shape that the shapes shall find, and be found by."""

    emb: Float[Array, "B M D"]  # any length, any float type
    has: Bool[Array, "B M"]  # which of the targets are there
    logit_scale: Float[Array, ""]  # the factor on cosines, exp of the learnt parameter
    form: Form = field(default_factory=Form)
    notes: dict[str, Array] = field(default_factory=dict)  # (B, M, ...) of the targets alone


Outcome = tuple[Float[Array, ""], dict[str, Float[Array, ""]]]


def contrastive(shapes: Rows, tasks: Sequence[Task], block: int = 0) -> list[Outcome]:
    """(loss, what shapes see) of each task: the loss is the mean of the shape-to-target and target-to-shape
    cross-entropies.

    A row's loss is the mean over its wanted partners w of -log(exp(l_w) / (exp(l_w) + other wanted +
    negatives)), l being logit_scale times the cosine. No target at all gives loss 0.
    Shapes see "top1", the share of them whose best target is a wanted one, and with `ignored` also
    "ignored_pairs", how many targets are left out for a shape on average.

    Of rows that are split over devices, the shapes and their notes are exchanged once for all tasks and each
    task's targets once, in the type that they come in. Gradients are summed over devices in float32; those
    of targets are rounded to the targets' type before.

    Args:
      shapes: emb (B, D). Those without a target take no part in a task.
      block: rows of the other side whose logits are held at once; all of them or more: no blocks; 0: as many
        as make LOGITS with a device's own.

    Raises:
      ValueError: a task's shapes do not fit.
    """
    for task in tasks:
        if task.has.shape != task.emb.shape[:2] or len(task.has) != len(shapes.has):
            raise ValueError(
                f"a task has emb {task.emb.shape} and has {task.has.shape}; they must be (B, M, D) "
                f"and (B, M) with B = {len(shapes.has)}, the number of shapes."
            )
    mesh, axes, devices = batch_axes(shapes.emb)
    forms = [task.form for task in tasks]
    tensors = shapes, [(t.emb, t.has, t.notes) for t in tasks], [t.logit_scale for t in tasks]
    if devices == 1 or len(shapes.has) % devices:
        shares = _by_device(forms, block, (), *tensors)
    else:
        rows = PartitionSpec(axes)
        shares = jax.shard_map(
            functools.partial(_by_device, forms, block, axes),
            mesh=mesh,
            in_specs=(rows, rows, PartitionSpec()),
            out_specs=rows,
            axis_names=set(axes),
            check_vma=False,
        )(*tensors)
    # Not among the devices' own work: there the gradient of a sum would be exchanged too.
    return jax.tree.map(lambda x: x.sum(0), shares)


def _by_device(
    forms: list[Form],
    block: int,
    axes: Axes,
    shapes: Rows,
    tasks: list[tuple[Array, Array, dict[str, Array]]],
    scales: list[Array],
) -> list[Any]:
    """What a device's own rows add to each `Outcome`, (1,); tasks: their emb, has and notes."""

    def together(tree: Any) -> Any:
        return jax.tree.map(lambda x: gather_rows(x, axes), tree)

    wire = shapes.emb.dtype
    # Once, so that the gradients of all its uses meet in float32: else they would be rounded before they do.
    shapes = dataclasses.replace(shapes, emb=shapes.emb.astype(jnp.float32))
    every_emb, shape_rate = _everywhere(axes, wire, shapes.emb)
    every_shape = Rows(every_emb, *together((shapes.owner, shapes.has, shapes.notes)))
    forth, sides = [], []
    for form, (emb, has, notes), scale in zip(forms, tasks, scales, strict=True):
        own = targets(shapes, emb, has, notes)
        # What they have of their shapes is not sent again.
        every_emb, rate = _everywhere(axes, emb.dtype, emb)
        every_has, every_notes = together((has, notes))
        every = targets(every_shape, every_emb, every_has, every_notes)
        some, every_some = has.any(1), every_has.any(1)  # shapes without a target are padding
        asking = _Side(dataclasses.replace(shapes, has=some), every.has, every_some.sum(), scale, form, True)
        forth += _one_way([asking], every, rate.reshape(-1), block)
        sides.append(_Side(own, every_some, every.has.sum(), scale, form, False))
    # At once, as all of them look among the shapes: the gradient to these is one product.
    back, found = _one_way(sides, every_shape, shape_rate, block), []
    for form, ahead, behind in zip(forms, forth, back, strict=True):
        seen = {"top1": ahead["hit"]}
        if form.ignored is not None:
            seen["ignored_pairs"] = ahead["ignored"] / len(every_shape.has)
        found.append((0.5 * (ahead["loss"] + behind["loss"]), seen))
    return jax.tree.map(lambda x: x[None], found)


def _exchanged(axes: Axes, wire: Any, emb: Float[Array, "n ... D"]) -> tuple[Array, Array]:
    """(emb, 1 / its length) of all devices' rows, of which the product alone may be used.

    Each device measures its own rows only. The gradient to emb, as if the lengths were constant, is summed up
    over all devices; then each adds what the lengths of its own rows make of it.

    Args:
      wire: the type that emb is sent in.
    """
    return gather_rows(emb.astype(wire), axes).astype(emb.dtype), gather_rows(_rate(emb), axes)


def _exchanged_slope(axes: Axes, wire: Any, emb: Array, slopes: tuple[Array, Array]) -> tuple[Array]:
    g, emb32 = scatter_sum(slopes[0].astype(jnp.float32), axes), emb.astype(jnp.float32)
    along = (emb32 * g).sum(-1) * jnp.square(_rate(emb))
    return ((g - along[..., None] * emb32).astype(emb.dtype),)


_everywhere = jax.custom_vjp(_exchanged, nondiff_argnums=(0, 1))
_everywhere.defvjp(lambda axes, wire, emb: (_exchanged(axes, wire, emb), emb), _exchanged_slope)


@dataclass(frozen=True)
class _Side:
    """A device's rows of one task, each to find its partners among keys."""

    rows: Rows
    has: Bool[Array, K]  # which of the keys take part
    total: Int[Array, ""]  # rows of all devices that do
    scale: Float[Array, ""]
    form: Form
    forward: bool  # rows are shapes and keys are targets; else the other way round

    def start(self) -> dict[str, Array]:
        """What is seen of no keys."""
        none, zero = jnp.full(len(self.rows.has), NONE), jnp.zeros(len(self.rows.has))
        seen = {key: zero for key in ("wanted_sum", "wanted_count", "ignored", "negative_count")}
        seen |= {key: none for key in ("wanted", "negatives", "weights", "best")}
        seen["hit"] = self.rows.has & False
        if self.form.top_k:
            seen["hardest"] = jnp.full((len(none), self.form.top_k), NONE)
        return seen

    def related(self, cosines: Array, part: Rows) -> tuple[Array, Array, Array, Array]:
        """(logits, wanted, negative, ignored), each (rows, keys of the part)."""
        rows, form = self.rows, self.form
        pair = (lambda f: f(rows, part)) if self.forward else (lambda f: f(part, rows).T)
        both = rows.has[:, None] & part.has
        wanted = rows.owner[:, None] == part.owner
        if form.positives is not None:
            wanted = wanted | pair(form.positives)
        ignored = both & False if form.ignored is None else both & ~wanted & pair(form.ignored)
        return self.scale * cosines, wanted & both, both & ~wanted & ~ignored, ignored

    def gather(self, seen: dict[str, Array], cosines: Array, part: Rows) -> dict[str, Array]:
        """`seen`, and a part of the keys."""
        logits, wanted, negative, ignored = self.related(cosines, part)
        kept = jax.lax.stop_gradient(jnp.where(wanted | negative, logits, NONE))
        place = jnp.argmax(kept, 1)[:, None]
        best = jnp.take_along_axis(kept, place, 1)[:, 0]
        better = best > seen["best"]
        new = {
            **seen,
            "wanted": _and(seen["wanted"], logits, wanted),
            "wanted_sum": seen["wanted_sum"] + jnp.where(wanted, logits, 0).sum(1),
            "wanted_count": seen["wanted_count"] + wanted.sum(1),
            "best": jnp.where(better, best, seen["best"]),
            "hit": jnp.where(better, jnp.take_along_axis(wanted, place, 1)[:, 0], seen["hit"]),
            "ignored": seen["ignored"] + ignored.sum(1),
        }
        if self.form.top_k:
            every = jnp.concatenate([seen["hardest"], jnp.where(negative, logits, NONE)], 1)
            return {**new, "hardest": jax.lax.top_k(every, self.form.top_k)[0]}
        return {**new, **_negatives(self.form, seen, logits, negative)}

    def negatives(self, seen: dict[str, Array]) -> Float[Array, R]:
        """The logarithm of what the negatives count."""
        if self.form.top_k:
            seen = seen | _negatives(self.form, seen, seen["hardest"], seen["hardest"] > NONE / 2)
        if not self.form.hardness:
            return seen["negatives"]
        weighted = seen["negatives"] - seen["weights"] + jnp.log(jnp.maximum(seen["negative_count"], 1))
        return jnp.where(seen["negative_count"] > 0, weighted, NONE)

    def compete(
        self, negatives: Float[Array, R], costs: Float[Array, R], cosines: Array, part: Rows
    ) -> Float[Array, R]:
        """`costs`, and what each wanted target costs against the negatives alone, if decoupled."""
        if not self.form.decoupled:
            return costs
        logits, wanted, _, _ = self.related(cosines, part)
        cost = jax.nn.softplus(jnp.where(wanted, negatives[:, None] - logits, 0))
        return costs + jnp.where(wanted, cost, 0).sum(1)

    def shares(self, seen: dict[str, Array], costs: Float[Array, R]) -> dict[str, Float[Array, ""]]:
        """What the rows add to the mean loss of all devices' rows, and to what these see.

        Args:
          costs: what `compete` has found.
        """
        counted, negatives = jnp.maximum(seen["wanted_count"], 1), self.negatives(seen)
        if self.form.decoupled:
            loss = costs / counted
        else:
            loss = jnp.logaddexp(seen["wanted"], negatives) - seen["wanted_sum"] / counted
        total = jnp.maximum(self.total, 1)
        mean = {"loss": jnp.where(self.rows.has, loss, 0), "hit": seen["hit"] & self.rows.has}
        return {"ignored": seen["ignored"].sum(), **{key: of.sum() / total for key, of in mean.items()}}


def _one_way(
    sides: list[_Side], keys: Rows, rate: Float[Array, K], block: int
) -> list[dict[str, Float[Array, ""]]]:
    """`_Side.shares` of each, all to look among the same keys; rate: 1 / the keys' lengths."""
    units = [normalize(side.rows.emb) for side in sides]
    asking, ends = jnp.concatenate(units), list(itertools.accumulate(map(len, units)))
    block = block or max(LOGITS // ends[-1], 1)
    every = keys, rate, [side.has for side in sides]
    blocks = _blocks(every, block) if len(keys.has) > block else None

    def over_blocks(steps: list[Callable[[Any, Array, Rows], Any]], start: list[Any]) -> list[Any]:
        """What each side's step(seen, cosines, part of the keys) has seen of all keys."""

        def one(seen: list[Any], of_keys: tuple[Rows, Array, list[Array]]) -> list[Any]:
            part, rate, has = of_keys
            products = jnp.matmul(asking, part.emb.astype(jnp.float32).T, precision=HIGHEST)
            cosines = jnp.split(products * rate, ends[:-1])
            parts = [dataclasses.replace(part, has=h) for h in has]
            given = zip(steps, seen, cosines, parts, strict=True)
            return [step(before, cosine, some) for step, before, cosine, some in given]

        if blocks is None:
            return one(start, every)
        return jax.lax.scan(lambda seen, part: (jax.checkpoint(one)(seen, part), None), start, blocks)[0]

    seen = over_blocks([side.gather for side in sides], [side.start() for side in sides])
    costs = [jnp.zeros(len(unit)) for unit in units]
    if any(side.form.decoupled for side in sides):
        negatives = [side.negatives(s) for side, s in zip(sides, seen, strict=True)]
        steps = [functools.partial(side.compete, n) for side, n in zip(sides, negatives, strict=True)]
        costs = over_blocks(steps, costs)
    return [side.shares(s, cost) for side, s, cost in zip(sides, seen, costs, strict=True)]


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


def _blocks(keys: Any, block: int) -> Any:
    """Rows (count, ...) in blocks (n, block, ...), the last one padded with rows that do not take part."""

    def cut(x: Array) -> Array:
        padded = jnp.pad(x, [(0, -len(x) % block)] + [(0, 0)] * (x.ndim - 1))
        return padded.reshape(-1, block, *x.shape[1:])

    return jax.tree.map(cut, keys)
