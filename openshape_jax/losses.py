"""Contrastive losses between shape embeddings and CLIP targets over the global batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def normalize(x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """Rows scaled to length 1; a zero row stays zero and has a finite gradient."""
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-12)


def contrastive(
    shape_emb: Float[Array, "B D"],
    target: Float[Array, "B D"],
    logit_scale: Float[Array, ""],
    has_target: Bool[Array, B] | None = None,
    positives: Bool[Array, "B B"] | None = None,
    ignored: Bool[Array, "B B"] | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(loss, accuracy): the mean of the shape-to-target and target-to-shape cross-entropies.

    The softmax runs over the rows that have a target. With `positives`, the wanted distribution of a
    row is uniform over its positives (the supervised contrastive loss of arXiv 2004.11362, with the
    sum outside the logarithm); without, it is InfoNCE as in CLIP. No target at all gives loss 0.

    Args:
      shape_emb: (B, D), any length. target: (B, D), any length.
      logit_scale: the factor on cosines, exp of the learnt parameter.
      has_target: (B,) rows that take part; None: all.
      positives: (B, B), [i, j] true where target j also describes shape i; the diagonal is implied.
      ignored: (B, B), [i, j] true where target j is no negative of shape i, in either direction; a positive
        stays one. None: every other pair is a negative.
    """
    b = shape_emb.shape[0]
    has = jnp.ones(b, bool) if has_target is None else has_target
    logits = logit_scale * normalize(shape_emb) @ normalize(target).T
    wanted = jnp.eye(b, dtype=bool) if positives is None else positives | jnp.eye(b, dtype=bool)
    pair = has[:, None] & has[None, :]
    kept = pair if ignored is None else pair & (wanted | ~ignored)
    logits = jnp.where(kept, logits, -jnp.inf)
    wanted = wanted & pair
    count = jnp.maximum(has.sum(), 1)

    def one_way(logits, wanted):
        safe = jnp.where(has[:, None], logits, 0.0)  # rows without target: finite, then masked out
        log_prob = jax.nn.log_softmax(safe, axis=-1)
        share = wanted / jnp.maximum(wanted.sum(-1, keepdims=True), 1)
        row = -jnp.where(wanted, log_prob * share, 0.0).sum(-1)
        return jnp.where(has, row, 0.0).sum() / count

    best = jnp.argmax(jnp.where(has[:, None], logits, 0.0), -1)
    hit = jnp.take_along_axis(wanted, best[:, None], 1)[:, 0] & has
    return 0.5 * (one_way(logits, wanted) + one_way(logits.T, wanted.T)), hit.sum() / count


def shared_text(text_id: Int[Array, B], text_ids: Int[Array, "B T"]) -> Bool[Array, "B B"]:
    """[i, j] true where the text drawn for shape j is also one of the texts of shape i.

    Args:
      text_id: (B,) id of the drawn text, -1 for none.
      text_ids: (B, T) ids of all texts of a shape, padded with -1.
    """
    return ((text_ids[:, :, None] == text_id[None, None, :]) & (text_id >= 0)).any(1)


def false_negatives(
    image: Float[Array, "B D"],
    text: Float[Array, "B D"],
    has_both: Bool[Array, B],
    group: Int[Array, B],
    margin: float,
) -> Bool[Array, "B B"]:
    """[i, j] true where shape j, of the group of shape i, probably is no negative: its text fits i's image.

    That is cos(image_i, text_i) - cos(image_i, text_j) <= margin (arXiv 2305.10764, "hard negative mining"),
    the same pairs for texts and images. A pair in which a shape lacks an image or a text stays a negative:
    nothing is known of it. Departure: the authors' code multiplies such logits by 0 instead of leaving them
    out, and fails where a text is missing.

    Args:
      image, text: (B, D) targets, any length. has_both: (B,) shapes with both. group: (B,) ids of groups.
    """
    sims = jnp.matmul(normalize(image), normalize(text).T, precision=jax.lax.Precision.HIGHEST)
    near = jnp.diagonal(sims)[:, None] - sims <= margin
    other = ~jnp.eye(len(group), dtype=bool)
    return near & other & (group[:, None] == group) & has_both[:, None] & has_both
