"""Which pairs of a shape and another's target a contrastive loss treats in a way of their own."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from openshape_jax.losses import HIGHEST, Relation, Rows, normalize


def shared_text(shapes: Rows, targets: Rows) -> Bool[Array, "I J"]:
    """[i, j] true where target j is one of the texts of shape i.

    Needs the notes text_ids (I, T) of shapes, all texts of each padded with -1, and text_id (J,) of targets.
    """
    text_ids, text_id = shapes.notes["text_ids"], targets.notes["text_id"]
    same = jnp.zeros((len(text_ids), len(text_id)), bool)
    for one in text_ids.T:  # a TPU takes ten times as long for a reduction over the axis T
        same |= one[:, None] == text_id
    return same & (text_id >= 0)


def false_negatives(margin: float) -> Relation:
    """[i, j] true where target j, of a shape of the group of shape i, probably is no negative of it.

    That is where the shape's text fits i's image: cos(image_i, text_i) - cos(image_i, text_j) <= margin
    (arXiv 2305.10764, "hard negative mining"), the same pairs for texts and images. A pair in which a shape
    lacks an image or a text stays a negative: nothing is known of it. Departure: the authors' code
    multiplies such logits by 0 instead of leaving them out, and fails where a text is missing.

    Needs `pair_notes` as notes of the shapes.
    """

    def ignored(shapes: Rows, targets: Rows) -> Array:
        a, b = shapes.notes, targets.notes
        sims = jnp.matmul(a["image_of"], b["text_of"].T, precision=HIGHEST)
        near = a["fit"][:, None] - sims <= margin
        other = shapes.owner[:, None] != targets.owner
        return near & other & (a["group"][:, None] == b["group"]) & a["has_both"][:, None] & b["has_both"]

    return ignored


def pair_notes(image: Float[Array, "B D"], text: Array, has_both: Bool[Array, " B"], group: Array) -> dict:
    """What `false_negatives` needs of each shape: its image and text, and which group it belongs to.

    Args:
      image, text: (B, D) any length. has_both: (B,) shapes with both. group: (B,) ids.
    """
    image, text = normalize(image), normalize(text)
    fit = (image * text).sum(-1)
    return {"image_of": image, "text_of": text, "fit": fit, "has_both": has_both, "group": group}
