"""The contrastive losses against NumPy: masks, several positives, hard negatives, blocks, devices, bad
rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from openshape_jax import hlo, losses, sharding
from openshape_jax.ops import placement
from openshape_jax.relations import shared_text
from tests.loss_cases import contrastive, relation

FORMS = {
    "plain": {},
    "hardness": {"hardness": 0.7},
    "top k": {"top_k": 3},
    "both": {"top_k": 4, "hardness": 1.5},
    "decoupled": {"decoupled": True},
    "all": {"decoupled": True, "top_k": 4, "hardness": 0.5},
}


def oracle(x, t, scale, has, positives, ignored=None, hardness=0.0, top_k=0, decoupled=False):
    """Rows and columns one at a time, in float64. t (B, M, D), has (B, M), the others (B, B) or None."""
    b, m = has.shape
    x, t = np.asarray(x, np.float64), np.asarray(t, np.float64).reshape(b * m, -1)
    x, t = x / np.linalg.norm(x, axis=1, keepdims=True), t / np.linalg.norm(t, axis=1, keepdims=True)
    owner, there = np.repeat(np.arange(b), m), has.reshape(-1)
    wanted = np.eye(b, dtype=bool) if positives is None else positives | np.eye(b, dtype=bool)
    wanted = wanted[:, owner] & there & has.any(1)[:, None]
    left = np.ones((b, b), bool) if ignored is None else ~ignored
    negative = left[:, owner] & there & has.any(1)[:, None] & ~wanted
    logits, losses_ = scale * x @ t.T, []
    for z, w, n, takes_part in (
        (logits, wanted, negative, has.any(1)),
        (logits.T, wanted.T, negative.T, there),
    ):
        rows = []
        for row, positive, other in zip(z[takes_part], w[takes_part], n[takes_part], strict=True):
            negatives = np.sort(row[other])[::-1]
            negatives = negatives[:top_k] if top_k else negatives
            weight = np.exp(hardness * negatives)
            total = (
                len(negatives) * (weight * np.exp(negatives)).sum() / weight.sum() if len(negatives) else 0
            )
            others = np.exp(row[positive]) if decoupled else np.exp(row[positive]).sum()
            rows.append(-(row[positive] - np.log(total + others)).mean())
        losses_.append(np.mean(rows))
    return np.mean(losses_)


def inputs(rows=7, dim=5, targets=1):
    rng = np.random.default_rng(0)
    return rng.normal(size=(rows, dim)).astype(np.float32), rng.normal(size=(rows, targets, dim)).astype(
        np.float32
    )


def relations(rows=7):
    rng = np.random.default_rng(1)
    ignored = rng.random((rows, rows)) < 0.3
    return rng.random((rows, rows)) < 0.3, ignored


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_equals_the_oracle(form):
    x, t = inputs(targets=3)
    has = np.random.default_rng(2).random((7, 3)) < 0.6
    has[1], has[2] = False, True
    positives, ignored = relations()
    for mask in (has, np.ones((7, 3), bool)):
        for pairs in ((None, None), (positives, None), (None, ignored), (positives, ignored)):
            got, _ = contrastive(x, t, 9.0, mask, *pairs, **form)
            np.testing.assert_allclose(got, oracle(x, t, 9.0, mask, *pairs, **form), rtol=1e-5)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_blocks_and_devices_change_neither_loss_nor_gradients(form):
    x, t = inputs(rows=24, targets=2)
    has = np.random.default_rng(2).random((24, 2)) < 0.7
    has[[3, 4]] = False
    positives, ignored = relations(24)
    mesh = sharding.make_mesh()
    rows = sharding.by_row(mesh)

    def value(x, t, scale, block):
        return contrastive(x, t, scale, has, positives, ignored, block, **form)[0]

    gradient = jax.value_and_grad(value, argnums=(0, 1, 2))
    alone = jax.jit(gradient, static_argnums=3)

    def split(x, t, *more):
        return alone(*jax.device_put((x, t), rows), *more)

    expected = alone(x, t, 9.0, 10**6)
    # Whole blocks and a last one that is padded both are among those of 16: 48 targets, 24 shapes.
    for how, block in ((alone, 5), (alone, 16), (split, 16), (split, 48)):
        got = how(x, t, 9.0, block)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, expected)


@pytest.mark.parametrize(
    ("rows", "most"), [(24, 16), (24, 4), (20, 16)], ids=["split", "in two steps", "does not divide"]
)
def test_two_tasks_of_half_precision_on_eight_devices_equal_one(monkeypatch, rows, most):
    for name in ("SCATTERED", "GATHERED", "NEIGHBOURS"):
        monkeypatch.setattr(placement, name, most)
    x, texts = inputs(rows, targets=2)
    images = inputs(rows + 1)[1][1:]
    has = np.random.default_rng(2).random((2, rows, 2)) < 0.7
    ids = np.random.default_rng(3).integers(0, 9, (rows, 2)).astype(np.int32)
    arrays = x.astype(jnp.bfloat16), texts.astype(np.float16), images.astype(np.float16), ids

    def value(x, texts, images, ids):
        shapes = losses.shapes(x, {"text_ids": ids})
        form = losses.Form(shared_text)
        tasks = [
            losses.Task(texts, has[0], jnp.float32(9.0), form, {"text_id": ids}),
            losses.Task(images, has[1][:, :1], jnp.float32(4.0)),
        ]
        (a, _), (b, seen) = losses.contrastive(shapes, tasks)
        return a + 2 * b, seen["top1"]

    mesh = sharding.make_mesh()
    place = sharding.by_row(mesh) if rows % mesh.size == 0 else sharding.replicated(mesh)
    gradient = jax.value_and_grad(value, has_aux=True)
    (expected, top1), slope = jax.jit(gradient)(*arrays)
    (got, seen), split = jax.jit(gradient)(*jax.device_put(arrays, place))
    np.testing.assert_allclose([got, seen], [expected, top1], rtol=1e-5)
    # Of the type of the embeddings, each rounded once.
    np.testing.assert_allclose(split.astype(np.float32), slope.astype(np.float32), rtol=2**-7, atol=1e-5)


def test_devices_exchange_each_array_once():
    """Shapes and their notes for both tasks and all their targets."""
    b, d, m, notes = 16, 32, 3, {"image_of": 32, "text_of": 32}
    mesh = sharding.make_mesh()
    place = sharding.by_row(mesh)

    def value(x, texts, images, of_shapes):
        def near(a, c):
            return (a.notes["image_of"] @ c.notes["text_of"].T) > 1

        form, has = losses.Form(ignored=near), jnp.ones((b, m), bool)
        tasks = [losses.Task(t, has, jnp.float32(9.0), form) for t in (texts, images)]
        (one, _), (two, _) = losses.contrastive(losses.shapes(x, of_shapes), tasks)
        return one + two

    x, t = (jax.ShapeDtypeStruct(shape, np.float32, sharding=place) for shape in ((b, d), (b, m, d)))

    def exchanges(fn) -> dict[str, list[int]]:
        text = jax.jit(fn).lower(x, t, t, dict.fromkeys(notes, x)).compile().as_text()
        kinds = {kind: [] for kind in hlo.COLLECTIVES}
        for op in hlo.operations(text):
            if op.kind in kinds:
                kinds[op.kind].append(hlo.exchanged(op))
        return kinds

    wide = b * d * 4 * (1 + 2 * m + len(notes))
    assert wide <= sum(exchanges(value)["all-gather"]) < wide + b * d * 4  # and some numbers of each row
    back = exchanges(jax.grad(value))
    assert back["reduce-scatter"] == [b * d * 4]  # the shapes' gradient, of both tasks
    assert max(back["all-reduce"], default=0) < 100  # sums of the loss


def test_memory_grows_with_the_batch_and_not_with_its_square():
    def temporary(rows: int) -> int:
        emb = jax.ShapeDtypeStruct((rows, 16), np.float32)
        loss = jax.grad(lambda x, t: contrastive(x, t, 9.0, block=128)[0], argnums=(0, 1))
        return jax.jit(loss).lower(emb, emb).compile().memory_analysis().temp_size_in_bytes

    assert temporary(8192) < 6 * temporary(2048)  # the square would be 16 times as large
    assert temporary(8192) < 8192 * 8192


def test_rows_without_target_change_nothing():
    x, t = inputs()
    has = np.array([1, 1, 1, 1, 1, 0, 0], bool)
    garbage = t.copy()
    garbage[5:] = 1e6
    for target in (t, garbage):
        got, _ = contrastive(x, target, 4.0, has)
        np.testing.assert_allclose(got, contrastive(x[:5], t[:5], 4.0)[0], rtol=1e-6)


def test_class_aware_loss_does_not_push_equal_texts_apart():
    t = np.eye(4, dtype=np.float32)[[0, 0, 1, 2]]
    ids = jnp.array([3, 3, 5, 7])
    shapes = losses.shapes(jnp.asarray(t), {"text_ids": ids[:, None]})
    own = jnp.asarray(t)[:, None], jnp.ones((4, 1), bool), jnp.float32(100.0)
    forms = losses.Form(shared_text), losses.Form()
    notes = {"text_id": ids[:, None]}
    found = losses.contrastive(shapes, [losses.Task(*own, form, notes) for form in forms])
    (aware, _), (plain, _) = found
    # Two of four rows share their text: at best each of the two gets probability 1/2.
    np.testing.assert_allclose([aware, plain], [np.log(2) / 2] * 2, atol=1e-4)
    grad = jax.grad(lambda x: contrastive(x, t, 100.0, None, ids[:, None] == ids)[0])(jnp.asarray(t))
    np.testing.assert_allclose(grad, 0, atol=1e-4)


def test_decoupled_positives_do_not_compete():
    """Two equal targets of a shape share one softmax in halves; apart, each can have all."""
    x, t = np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32)[:, None].repeat(2, 1)
    together, apart = (contrastive(x, t, 100.0, decoupled=d)[0] for d in (False, True))
    np.testing.assert_allclose([together, apart], [np.log(2) / 2, 0], atol=1e-4)


def test_the_limits_of_hard_negatives():
    """Of endless hardness, negatives count as the nearest one; the k nearest of no more than k are all."""
    x, t = inputs()
    unit = [np.asarray(losses.normalize(v)) for v in (x, t[:, 0])]
    logits = 4.0 * unit[0] @ unit[1].T
    expected = 0.0
    for z in (logits, logits.T):
        nearest = np.where(np.eye(7, dtype=bool), -np.inf, z).max(1)
        expected += np.log1p(6 * np.exp(nearest - np.diag(z))).mean() / 2
    np.testing.assert_allclose(contrastive(x, t, 4.0, hardness=100.0)[0], expected, rtol=1e-4)
    plain = contrastive(x, t, 4.0)[0]
    np.testing.assert_allclose(contrastive(x, t, 4.0, top_k=6)[0], plain, rtol=1e-6)
    assert contrastive(x, t, 4.0, top_k=1)[0] < plain < contrastive(x, t, 4.0, hardness=0.5)[0]


def test_shared_text():
    text_ids = jnp.array([[1, 2, -1], [2, -1, -1], [-1, -1, -1], [1, -1, -1]])
    drawn = jnp.array([2, 2, -1, 1])
    expected = [[1, 1, 0, 1], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    shapes = losses.shapes(jnp.zeros((4, 2)), {"text_ids": text_ids})
    own = {"text_id": drawn[:, None]}
    targets = losses.targets(shapes, jnp.zeros((4, 1, 2)), jnp.ones((4, 1), bool), own)
    np.testing.assert_array_equal(shared_text(shapes, targets), np.array(expected, bool))


def test_accuracy_counts_any_positive():
    t = np.eye(3, dtype=np.float32)
    x = t[[1, 1, 2]]
    assert contrastive(x, t, 9.0)[1] == np.float32(2 / 3)
    positives = np.zeros((3, 3), bool)
    positives[0, 1] = True
    for block in (1, 2, 3):
        assert contrastive(x, t, 9.0, None, positives, block=block)[1] == 1


def test_ignored_pairs_are_counted():
    x, t = inputs()
    _, ignored = relations()
    shapes = losses.shapes(jnp.asarray(x))
    form = losses.Form(ignored=relation(ignored))
    task = losses.Task(jnp.asarray(t), jnp.ones((7, 1), bool), jnp.float32(9.0), form)
    for block in (2, 7):
        [(_, seen)] = losses.contrastive(shapes, [task], block)
        np.testing.assert_allclose(seen["ignored_pairs"], (ignored & ~np.eye(7, dtype=bool)).sum() / 7)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_gradients_are_finite_on_bad_input(form):
    x, t = inputs()
    x[0] = 0
    t[1] = 0
    for block in (3, 7):
        loss = lambda a, h, b=block: contrastive(a, t, 14.0, h, block=b, **form)[0]  # noqa: E731
        both = jax.jit(jax.value_and_grad(loss))
        for has in (np.zeros(7, bool), np.eye(7, dtype=bool)[2], np.ones(7, bool)):
            value, grad = both(x, has)
            assert np.isfinite(value)
            assert np.isfinite(grad).all()
            if has.sum() < 2:
                np.testing.assert_allclose(value, 0, atol=1e-6)
                assert not np.asarray(grad).any()
