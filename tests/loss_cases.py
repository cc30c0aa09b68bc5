"""Contrastive losses of one target for each shape, with pairs given as whole matrices."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from openshape_jax import losses, relations


def relation(matrix: Any) -> losses.Relation | None:
    """The relation that a (B, B) matrix of shapes and of the targets' owners says."""
    return None if matrix is None else lambda a, b: jnp.asarray(matrix)[a.owner[:, None], b.owner[None]]


def contrastive(x, t, scale, has=None, positives=None, ignored=None, block=0, **form):
    """(loss, accuracy); x (B, D), t (B, D) or (B, M, D), has (B,) or (B, M)."""
    t = jnp.asarray(t) if np.ndim(t) == 3 else jnp.asarray(t)[:, None]
    has = jnp.ones(t.shape[:2], bool) if has is None else jnp.asarray(has).reshape(t.shape[:2])
    form = losses.Form(relation(positives), relation(ignored), **form)
    shapes = losses.shapes(jnp.asarray(x))
    task = losses.Task(t, has, jnp.float32(scale), form)
    [(loss, seen)] = losses.contrastive(shapes, [task], block)
    return loss, seen["top1"]


def false_negatives(image, text, has_both, group, margin):
    """(B, B) as `relations.false_negatives` finds them."""
    notes = relations.pair_notes(image, text, has_both, group)
    shapes = losses.shapes(image, notes)
    targets = losses.targets(shapes, text[:, None], jnp.ones((len(text), 1), bool))
    return relations.false_negatives(margin)(shapes, targets)
