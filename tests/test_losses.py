"""The contrastive loss against NumPy, with masks, shared positives and bad rows."""

import jax
import jax.numpy as jnp
import numpy as np

from openshape_jax import losses


def oracle(x, t, scale, has, positives):
    """Rows and columns one at a time, in float64."""
    x, t = (np.asarray(a, np.float64) for a in (x, t))
    x, t = x / np.linalg.norm(x, axis=1, keepdims=True), t / np.linalg.norm(t, axis=1, keepdims=True)
    keep = np.flatnonzero(has)
    logits = scale * x[keep] @ t[keep].T
    wanted = (positives | np.eye(len(has), dtype=bool))[np.ix_(keep, keep)]
    total = 0.0
    for z, w in ((logits, wanted), (logits.T, wanted.T)):
        for row, mask in zip(z, w, strict=True):
            total -= (row - np.log(np.exp(row).sum()))[mask].mean()
    return total / 2 / len(keep)


def inputs(rows=7, dim=5):
    rng = np.random.default_rng(0)
    return rng.normal(size=(rows, dim)).astype(np.float32), rng.normal(size=(rows, dim)).astype(np.float32)


def test_equals_oracle_with_mask_and_shared_positives():
    x, t = inputs()
    has = np.array([1, 0, 1, 1, 1, 0, 1], bool)
    positives = np.random.default_rng(1).random((7, 7)) < 0.3
    for mask, shared in ((has, positives), (np.ones(7, bool), positives), (has, np.zeros((7, 7), bool))):
        got, _ = losses.contrastive(x, t, jnp.float32(9.0), mask, jnp.asarray(shared))
        np.testing.assert_allclose(got, oracle(x, t, 9.0, mask, shared), rtol=1e-5)


def test_rows_without_target_change_nothing():
    x, t = inputs()
    has = np.array([1, 1, 1, 1, 1, 0, 0], bool)
    garbage = t.copy()
    garbage[5:] = 1e6
    for target in (t, garbage):
        got, _ = losses.contrastive(x, target, jnp.float32(4.0), has)
        np.testing.assert_allclose(got, losses.contrastive(x[:5], t[:5], jnp.float32(4.0))[0], rtol=1e-6)


def test_class_aware_loss_does_not_push_equal_texts_apart():
    t = np.eye(4, dtype=np.float32)[[0, 0, 1, 2]]
    ids = np.array([3, 3, 5, 7])
    shared = losses.shared_text(ids, ids[:, None])
    aware = losses.contrastive(t, t, jnp.float32(100.0), None, shared)[0]
    plain = losses.contrastive(t, t, jnp.float32(100.0))[0]
    # Two of four rows share their text: at best each of the two gets probability 1/2.
    np.testing.assert_allclose([aware, plain], [np.log(2) / 2] * 2, atol=1e-4)
    grad = jax.grad(lambda x: losses.contrastive(x, t, jnp.float32(100.0), None, shared)[0])(jnp.asarray(t))
    np.testing.assert_allclose(grad, 0, atol=1e-4)


def test_shared_text():
    text_ids = np.array([[1, 2, -1], [2, -1, -1], [-1, -1, -1], [1, -1, -1]])
    drawn = np.array([2, 2, -1, 1])
    expected = [[1, 1, 0, 1], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    np.testing.assert_array_equal(losses.shared_text(drawn, text_ids), np.array(expected, bool))


def test_accuracy_counts_any_positive():
    t = np.eye(3, dtype=np.float32)
    x = t[[1, 1, 2]]
    assert losses.contrastive(x, t, jnp.float32(9.0))[1] == np.float32(2 / 3)
    positives = np.zeros((3, 3), bool)
    positives[0, 1] = True
    assert losses.contrastive(x, t, jnp.float32(9.0), None, positives)[1] == 1


def test_gradients_are_finite_on_bad_input():
    x, t = inputs()
    x[0] = 0
    t[1] = 0
    for has in (np.zeros(7, bool), np.eye(7, dtype=bool)[2], np.ones(7, bool)):
        value, grad = jax.value_and_grad(lambda a, h=has: losses.contrastive(a, t, jnp.float32(14.0), h)[0])(
            jnp.asarray(x)
        )
        assert np.isfinite(value)
        assert np.isfinite(grad).all()
        if not has.any():
            assert value == 0
            assert not np.asarray(grad).any()
