"""Batches of seeds and their neighbours, and the loss that leaves out probable false negatives."""

import dataclasses
import json
import shutil
from contextlib import closing
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from openshape_jax import config as config_lib
from openshape_jax import sharding, state, train
from openshape_jax.data import mining, pipeline, sources
from tests.loss_cases import contrastive, false_negatives

ROOT = Path(__file__).parent.parent
DATA = "primitives/tiny"


def small(data_dir: str, *overrides: str) -> config_lib.Config:
    fixed = ["batch_size=16", "model.depth=1", "eval.report=false", f"data.data_dir={data_dir}"]
    return config_lib.load(str(ROOT / "configs/quickstart.py:smoke"), [*fixed, *overrides])


@pytest.fixture(scope="module")
def file(data_dir, tmp_path_factory) -> Path:
    """Neighbours of the tiny set: the next six records, around a ring."""
    records, _ = sources.open_split(DATA, "train", data_dir)
    n, path = len(records), tmp_path_factory.mktemp("mined") / "ring.npz"
    index = (np.arange(n)[:, None] + np.arange(1, 7)) % n
    mining.write(path, mining.Neighbours(sources.uids(records), index, np.ones((n, 6)), {}))
    return path


@pytest.fixture
def config(data_dir, file) -> config_lib.Config:
    return small(data_dir, f"data.hard_negatives={file}", "data.group_size=4")


def places(config, batch):
    """Which record each row of a batch is of, by its whole set of points."""
    records, _ = sources.open_split(DATA, "train", config.data.data_dir)
    at = {np.sort(records[i]["xyz"], axis=0).tobytes(): i for i in range(len(records))}
    return [at[np.sort(rows, axis=0).tobytes()] for rows in batch["xyz"]]


def test_a_batch_is_seeds_with_their_neighbours(config, file, data_dir):
    near = mining.read(file)
    records, _ = sources.open_split(DATA, "train", data_dir)
    config.data.num_points = sources.num_points_of(records[0])
    stream, seen = pipeline.dataset(config), []
    for step in range(len(records) // 4):
        batch = stream[step]
        assert batch["group"].tolist() == np.repeat(np.arange(4), 4).tolist()
        assert batch["group"].dtype == np.int32
        groups = np.array(places(config, batch)).reshape(4, 4)
        for seed, *members in groups.tolist():
            assert set(members) <= set(near.index[seed].tolist())
            assert len(set(members)) == 3
            seen.append(seed)
    assert len(set(seen)) == len(seen) > len(records) - 4  # within an epoch no shape leads a second group
    again = [np.array(places(config, stream[step])).reshape(4, 4) for step in range(4)]
    later = [np.array(places(config, stream[step + len(records) // 4])).reshape(4, 4) for step in range(4)]
    assert not np.array_equal(again, later)


def test_batches_with_groups_are_a_function_of_seed_and_step(config):
    whole = pipeline.dataset(config)
    with closing(pipeline.batches(config, 5)) as late:
        for step in (5, 6):
            batch = next(late)
            assert batch.keys() == whole[step].keys()
            for key, value in whole[step].items():
                np.testing.assert_array_equal(batch[key], value, err_msg=key)
    other = pipeline.dataset(dataclasses.replace(config, seed=1))[5]
    assert not np.array_equal(other["xyz"], whole[5]["xyz"])


@pytest.mark.parametrize("hosts", [2, 4, 8])
def test_hosts_read_their_rows_of_the_global_batch(config, hosts):
    whole = pipeline.dataset(config)[3]
    parts = [pipeline.dataset(config, host, hosts)[3] for host in range(hosts)]
    for key, value in whole.items():
        np.testing.assert_array_equal(np.concatenate([part[key] for part in parts]), value, err_msg=key)


def test_worker_processes_make_the_same_batches(config):
    config.data.workers = 2
    whole = pipeline.dataset(config)
    with closing(pipeline.batches(config, 3)) as stream:
        for step in range(3, 6):
            for key, value in next(stream).items():
                np.testing.assert_array_equal(value, whole[step][key], err_msg=f"{step} {key}")


def test_without_mining_a_batch_has_no_groups(data_dir):
    assert "group" not in pipeline.dataset(small(data_dir))[0]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.group_size=5"], r"data.group_size is 5; it must be at least 2 and divide batch_size \(16\)"),
        (["data.group_size=1"], "data.group_size is 1"),
        (
            ["data.group_size=4", "data.datasets=a,b"],
            r"within one data set, but data.datasets is \('a', 'b'\)",
        ),
        (["data.group_size=4", "loss.false_negative_margin=7"], "must be from -3 to 3"),
    ],
)
def test_config_is_checked(data_dir, overrides, message):
    with pytest.raises(config_lib.ConfigError, match=message):
        small(data_dir, "data.hard_negatives=n.npz", *overrides)
    if "data.datasets=a,b" not in overrides and "loss.false_negative_margin=7" not in overrides:
        small(data_dir, *overrides)  # nobody asks for groups


def test_uids_of_parts_and_of_listed_sets(data_dir, tmp_path):
    shutil.copytree(data_dir, tmp_path / "data")
    records, _ = sources.open_split(DATA, "train", tmp_path / "data")
    read = sources.uids(records)
    part = sources.Subset(records, np.array([5, 2]))
    assert sources.uids(part) == [read[5], read[2]]
    listed = [f"listed {i}" for i in range(len(read))]
    records.uid_file.write_text("\n".join(listed) + "\n")
    assert sources.uids(records) == listed
    assert sources.uids(part) == ["listed 5", "listed 2"]
    records.uid_file.write_text("one\n")
    with pytest.raises(ValueError, match=f"lists 1 shapes but there are {len(read)}"):
        sources.uids(records)


# ---------------------------------------------------------------- the loss


def false_negative_oracle(image, text, has_both, group, margin):
    cosine = lambda a, b: a @ b / np.sqrt((a @ a) * (b @ b))  # noqa: E731
    out = np.zeros((len(image), len(image)), bool)
    for i in range(len(image)):
        for j in range(len(image)):
            if i != j and group[i] == group[j] and has_both[i] and has_both[j]:
                out[i, j] = cosine(image[i], text[i]) - cosine(image[i], text[j]) <= margin
    return out


def targets(rows=12, dim=6, seed=0):
    rng = np.random.default_rng(seed)
    image, text = rng.normal(size=(2, rows, dim))
    text[: rows // 2] += 2 * image[: rows // 2]
    text[1] = text[0]  # the same text twice in a group
    has_both = np.ones(rows, bool)
    has_both[[2, 7]] = False
    image[2] = 0
    text[7] = 0
    return image.astype(np.float32), text.astype(np.float32), has_both, np.arange(rows) // 4


def test_false_negatives_equal_the_oracle():
    image, text, has_both, group = targets()
    for margin in (0.1, -0.2, 0.5):
        found = false_negatives(image, text, has_both, group, margin)
        expected = false_negative_oracle(
            *(a.astype(np.float64) for a in (image, text)), has_both, group, margin
        )
        np.testing.assert_array_equal(found, expected)
        assert 0 < expected.sum() < 36 - 12
    assert false_negatives(image, text, has_both, group, 0.1)[0, 1]
    assert not false_negatives(image, text, has_both, group, -3).any()
    order = np.random.default_rng(1).permutation(12)  # of rows, with their groups
    there = false_negatives(image[order], text[order], has_both[order], group[order], 0.1)
    np.testing.assert_array_equal(
        there, false_negatives(image, text, has_both, group, 0.1)[np.ix_(order, order)]
    )


def masked_oracle(x, t, scale, has, ignored):
    """The two cross-entropies row by row over the columns that are left."""
    x, t = (a / np.maximum(np.linalg.norm(a, axis=1, keepdims=True), 1e-9) for a in (x, t))
    logits, total = scale * x @ t.T, 0.0
    for i in np.flatnonzero(has):
        for row, out in ((logits[i], ignored[i]), (logits[:, i], ignored[:, i])):
            kept = [j for j in np.flatnonzero(has) if not out[j]]
            total -= row[i] - np.log(np.exp(row[kept]).sum())
    return total / 2 / has.sum()


def test_ignored_pairs_leave_both_softmaxes():
    image, text, has_both, group = targets()
    x = np.random.default_rng(5).normal(size=image.shape).astype(np.float32)
    has = np.arange(12) != 7
    ignored = np.asarray(false_negatives(image, text, has_both, group, 0.1))
    got, _ = contrastive(x, text, 9.0, has, None, ignored)
    np.testing.assert_allclose(got, masked_oracle(x, text, 9.0, has, ignored), rtol=1e-5)
    none = np.zeros_like(ignored)
    plain = contrastive(x, text, 9.0, has)
    assert [float(v) for v in contrastive(x, text, 9.0, has, None, none)] == [float(v) for v in plain]
    assert got < plain[0]


def test_a_positive_is_never_ignored():
    image, text, _, _ = targets()
    x = np.random.default_rng(5).normal(size=image.shape).astype(np.float32)
    everything = np.ones((12, 12), bool)
    assert contrastive(x, text, 9.0, None, None, everything)[0] == 0  # only the diagonal is left
    positives = np.zeros((12, 12), bool)
    positives[0, 1] = positives[1, 0] = True
    value, grad = jax.value_and_grad(lambda a: contrastive(a, text, 9.0, None, positives, everything)[0])(
        jnp.asarray(x)
    )
    assert np.isfinite(value)
    assert np.isfinite(grad).all()
    assert np.asarray(grad)[:2].any()
    assert not np.asarray(grad)[2:].any()


def test_gradients_are_finite_on_bad_input():
    image, text, has_both, group = targets()
    x = np.random.default_rng(5).normal(size=image.shape).astype(np.float32)
    x[3] = 0
    for has in (has_both, np.zeros(12, bool)):
        ignored = false_negatives(image, text, has, group, 3.0)  # all pairs of a group
        value, grad = jax.value_and_grad(
            lambda a, h=has, i=ignored: contrastive(a, text, 14.0, h, None, i)[0]
        )(jnp.asarray(x))
        assert np.isfinite(value)
        assert np.isfinite(grad).all()


def test_the_step_uses_it_for_both_targets_whatever_the_number_of_devices(config, monkeypatch):
    monkeypatch.setattr(state.models, "apply", lambda c, p, stats, xyz, rgb, **_: (xyz, stats))
    batch = {k: v for k, v in pipeline.dataset(config)[0].items() if k != "uid"}
    partner = batch["text"][np.arange(16) ^ 1]  # this set has no images: each shows a pair of a group
    batch["image"], batch["has_image"] = (batch["text"] + partner) / 2, np.arange(16)[:, None] != 5
    params = {"encoder": {}, "logit_scale": np.log(np.float32(9))}
    emb = np.random.default_rng(0).normal(size=batch["text"][:, 0].shape).astype(np.float32)
    image, text, x = (a.astype(np.float64) for a in (batch["image"][:, 0], batch["text"][:, 0], emb))
    ignored = false_negative_oracle(image, text, batch["has_image"][:, 0], batch["group"], 0.1)
    assert ignored.sum() >= 14  # the pairs, less that of row 5
    for count in (1, 8):
        mesh = sharding.make_mesh(devices=jax.devices()[:count])
        whole, rows = sharding.replicated(mesh), sharding.by_row(mesh)
        loss = jax.jit(lambda p, x, b: state.loss(config, p, {}, x, x, b)[1][1], out_shardings=whole)
        placed = jax.device_put((params, emb, batch), (whole, rows, rows))
        found = {k: float(v) for k, v in loss(*placed).items() if v.ndim == 0}
        assert (found["text_ignored_pairs"], found["image_ignored_pairs"]) == (ignored.sum() / 16,) * 2
        for name, target in (("text", text), ("image", image)):
            expected = masked_oracle(x, target, 9.0, batch[f"has_{name}"][:, 0], ignored)
            np.testing.assert_allclose(found[f"{name}_loss"], expected, rtol=1e-5)


def test_training_with_the_file(data_dir, file, tmp_path):
    given = [f"data.hard_negatives={file}", "data.group_size=4", "steps=2", "log_every=1", "eval.datasets="]
    given += ["augment.enabled=false", "optim.name=adamw"]
    workdir = train.run(small(data_dir, *given), tmp_path / "run")
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["train/text_ignored_pairs"] for line in lines if "train/loss" in line] == [
        0,
        0,
    ]  # no images there
