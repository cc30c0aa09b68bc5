"""Hard-negative mining: the command, its file, and the groups drawn from it."""

from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest

from openshape_jax import checkpoint, state, train
from openshape_jax import config as config_lib
from openshape_jax.cli import main, mine
from openshape_jax.data import files, mining, pipeline, sources

ROOT = Path(__file__).parent.parent
DATA = "primitives/tiny"


def small(data_dir: str, *overrides: str) -> config_lib.Config:
    fixed = ["batch_size=16", "model.depth=1", "eval.report=false", f"data.data_dir={data_dir}"]
    return config_lib.load(str(ROOT / "configs/quickstart.py:smoke"), [*fixed, *overrides])


def save_model(folder: Path, data_dir: str, seed: int = 0) -> Path:
    config = small(data_dir, f"seed={seed}")
    weights = state.evaluated(state.init(config))
    metadata = {**train.describe(config), "logit_scale": 14.28}
    checkpoint.save_weights(folder, jax.tree.map(np.asarray, weights), metadata, step=7)
    return folder


@pytest.fixture(scope="module")
def model(data_dir, tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "first", data_dir)


@pytest.fixture(scope="module", autouse=True)
def small_blocks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mine, "EMBEDDED", 32)
        patch.setattr(mine, "ROWS", 64)
        yield


def openshape(*arguments: str) -> int | str | None:
    with pytest.raises(SystemExit) as done:
        main.main(["mine", *arguments])
    return done.value.code


def mined(model: Path, data_dir: str, out: Path, *more: str) -> int | str | None:
    given = ["--checkpoint", str(model), "--data", DATA, "--data_dir", data_dir, "--k", "6"]
    return openshape(*given, "--batch", "16", "--out", str(out), *more)


@pytest.fixture(scope="module")
def file(model, data_dir, small_blocks, tmp_path_factory) -> Path:
    """What the command writes when nothing comes between."""
    out = tmp_path_factory.mktemp("mined") / "neighbours.npz"
    assert not mined(model, data_dir, out)
    return out


# ---------------------------------------------------------------- the command


def test_the_file_holds_the_nearest_by_the_models_embeddings(file, model, data_dir):
    from openshape_jax import load

    found = mining.read(file)
    records, _ = sources.open_split(DATA, "train", data_dir)
    assert found.uids == [records[i]["uid"] for i in range(len(records))]
    encoder = load(model)
    random = (np.random.default_rng(i) for i in range(len(records)))
    drawn = [pipeline.draw_points(records[i], encoder.num_points, rng) for i, rng in enumerate(random)]
    emb = np.asarray(encoder.embed_stored(*(np.stack([d[k] for d in drawn]) for k in ("xyz", "rgb"))))
    sims = emb @ emb.T
    np.fill_diagonal(sims, -np.inf)
    expected = -np.sort(-sims, axis=1)[:, :6]
    assert found.index.dtype == np.int32
    assert found.similarity is not None
    assert found.similarity.dtype == np.float16
    np.testing.assert_allclose(found.similarity, expected, atol=1e-3)
    np.testing.assert_allclose(np.take_along_axis(sims, found.index, 1), expected, atol=1e-6)
    told = {k: v for k, v in found.metadata.items() if k != "job"}
    assert told == {
        "dataset": DATA, "split": "train", "checkpoint": str(model), "step": 7, "num_shapes": len(records),
        "k": 6, "precision": "float32", "version": "0.1.0",
    }  # fmt: skip
    assert [p.name for p in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("writes", [2, 5])
def test_an_interrupted_run_goes_on_and_ends_identical(
    file, model, data_dir, tmp_path, monkeypatch, capsys, writes
):
    out, real, left = tmp_path / "cut.npz", files.write, [writes]

    def interrupted(path, save):
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        real(path, save)

    monkeypatch.setattr(files, "write", interrupted)
    assert mined(model, data_dir, out) == 130
    assert "the same command goes on" in capsys.readouterr().err
    work = tmp_path / "cut.npz.partial"
    kept = {p: p.stat().st_mtime_ns for p in work.glob("*-*.np?")}
    assert len(kept) == writes - 1  # job.json was the first
    (work / "emb-00000000.123.tmp").write_bytes(b"half")  # what a killed process leaves behind

    def watched(path, save):
        assert path not in kept
        real(path, save)

    monkeypatch.setattr(files, "write", watched)
    assert not mined(model, data_dir, out)
    assert out.read_bytes() == file.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["cut.npz"]


def test_another_job_starts_again_and_says_so(file, model, data_dir, tmp_path, monkeypatch, capsys):
    out, work = tmp_path / "n.npz", tmp_path / "n.npz.partial"
    other = save_model(tmp_path / "other", data_dir, seed=1)
    real = mining.write
    monkeypatch.setattr(mining, "write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert mined(other, data_dir, out) == 130
    embeddings = {p.name: p.read_bytes() for p in work.glob("emb-*")}
    assert embeddings
    assert mined(other, data_dir, out, "--k", "5") == 130
    assert "another k or precision: its embeddings are kept" in capsys.readouterr().out
    assert {p.name: p.read_bytes() for p in work.glob("emb-*")} == embeddings
    monkeypatch.setattr(mining, "write", real)
    assert not mined(model, data_dir, out)
    assert "of another checkpoint or data set: starting again" in capsys.readouterr().out
    assert out.read_bytes() == file.read_bytes()
    assert not mined(model, data_dir, out)
    assert "is there already: nothing to do" in capsys.readouterr().out
    assert not mined(other, data_dir, out, "--k", "5")
    assert f"is of another checkpoint, data set or setting ({model} at step 7" in capsys.readouterr().out
    assert mining.read(out).index.shape[1] == 5


def test_bad_arguments_are_refused_before_the_work(model, data_dir, tmp_path):
    records, _ = sources.open_split(DATA, "train", data_dir)
    n = len(records)
    given = [
        "--checkpoint",
        str(model),
        "--data",
        DATA,
        "--data_dir",
        data_dir,
        "--out",
        str(tmp_path / "n.npz"),
    ]
    assert f"--k is {n} but 'primitives/tiny' has {n} shapes" in str(openshape(*given, "--k", str(n)))
    assert "batch_size is 12 but there are 8 devices" in str(openshape(*given, "--batch", "12"))
    assert "must end in .npz" in str(openshape(*given, "--out", str(tmp_path / "n.npy")))
    (tmp_path / "n.npz").write_text("my thesis")
    assert "is no file of neighbours" in str(openshape(*given))
    assert (tmp_path / "n.npz").read_text() == "my thesis"
    assert "is not built" in str(openshape(*given, "--data", "nothing"))
    assert [p.name for p in tmp_path.iterdir()] == ["n.npz"]


def test_a_broken_model_writes_no_embeddings(data_dir, tmp_path):
    config = small(data_dir)
    weights = jax.tree.map(lambda x: np.full(x.shape, np.nan, x.dtype), state.evaluated(state.init(config)))
    checkpoint.save_weights(tmp_path / "m", weights, {**train.describe(config), "logit_scale": 1.0}, 1)
    assert "is NaN or infinite: this model is broken" in str(
        mined(tmp_path / "m", data_dir, tmp_path / "n.npz")
    )
    assert not list((tmp_path / "n.npz.partial").glob("emb-*"))


# ---------------------------------------------------------------- the file


def neighbours(n: int, k: int, dataset: str = "d") -> mining.Neighbours:
    """Shape i's neighbours are i + 1, i + 2, ... around a ring."""
    index = (np.arange(n)[:, None] + np.arange(1, k + 1)) % n
    sims = np.tile(np.linspace(0.9, 0.1, k, dtype=np.float16), (n, 1))
    return mining.Neighbours([f"ü/{i}" for i in range(n)], index.astype(np.int32), sims, {"dataset": dataset})


def test_round_trip_and_damage(tmp_path):
    path = tmp_path / "folder" / "n.npz"
    before = neighbours(9, 3)
    mining.write(path, before)
    after = mining.read(path)
    assert (after.uids, after.metadata) == (before.uids, before.metadata)
    np.testing.assert_array_equal(after.index, before.index)
    np.testing.assert_array_equal(after.similarity, before.similarity)
    with np.load(path, allow_pickle=False) as file:
        assert {k: v.dtype.name for k, v in file.items()} == {
            "uids": "uint8", "index": "int32", "similarity": "float16", "metadata": "uint8",
        }  # fmt: skip
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"\x93NUMPY" + content):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"n.npz is no file of neighbours, or damaged .*openshape mine"):
            mining.read(path)
    with pytest.raises(FileNotFoundError, match="Make it with `openshape mine"):
        mining.read(tmp_path / "nowhere.npz")
    with pytest.raises(ValueError, match="has a line end"):
        mining.write(path, before._replace(uids=["a\nb", *before.uids[1:]]))
    with pytest.raises(ValueError, match="do not fit together"):
        mining.write(path, before._replace(uids=before.uids[1:]))


def test_a_file_of_another_format_or_with_wrong_indices(tmp_path, monkeypatch):
    path = tmp_path / "n.npz"
    monkeypatch.setattr(mining, "FORMAT", 2)
    mining.write(path, neighbours(5, 2))
    monkeypatch.undo()
    with pytest.raises(ValueError, match="has format 2; this version of openshape_jax reads format 1"):
        mining.read(path)
    wrong = neighbours(5, 2)
    wrong.index[3, 1] = 5
    mining.write(path, wrong)
    with pytest.raises(ValueError, match="neighbours from 0 to 5 among 5 shapes"):
        mining.read(path)


@pytest.mark.parametrize("as_dict", [True, False])
def test_the_released_file(tmp_path, as_dict):
    ring = neighbours(8, 3)
    own = np.arange(8)[:, None]
    listed = np.concatenate([own, ring.index], 1)  # a shape leads its own list
    listed[4] = listed[4][[1, 0, 2, 3]]  # a duplicate may come before it
    index = {uid: row.tolist() for uid, row in zip(ring.uids, listed, strict=True)} if as_dict else listed
    path = tmp_path / "point_feat_knn.npy"
    np.save(path, {"name": np.array(ring.uids), "index": index}, allow_pickle=True)
    found = mining.read(path)
    assert (found.uids, found.similarity) == (ring.uids, None)
    np.testing.assert_array_equal(found.index, ring.index)
    np.save(path, {"other": 1}, allow_pickle=True)
    with pytest.raises(ValueError, match="not OpenShape's point_feat_knn.npy"):
        mining.read(path)


def test_the_released_file_names_shapes_by_their_ids_alone(tmp_path):
    names = ["a", "b", "c", "d", "away"]
    near = {name: [i, *(j for j in range(5) if j != i)] for i, name in enumerate(names)}
    np.save(tmp_path / "k.npy", {"name": names, "index": near}, allow_pickle=True)
    built = ["ABO/0/c", "Objaverse/000-001/a", "ShapeNet/1/b", "ShapeNet/2/b", "3D-FUTURE/d"]
    groups = mining.Groups(mining.read(tmp_path / "k.npy"), built, 4)
    assert groups.num_short() == 0
    for seed, others in ((0, {1, 2, 4}), (1, {0, 2, 4}), (2, {0, 1, 4}), (3, {0, 1, 4})):
        drawn = [set(groups.draw(seed, np.random.default_rng(i)).tolist()) for i in range(50)]
        assert set.union(*drawn) == others | {seed}


# ---------------------------------------------------------------- groups


def test_members_are_drawn_uniformly_from_the_neighbours_without_replacement():
    ring = neighbours(100, 8)
    groups = mining.Groups(ring, ring.uids, 5)
    assert groups.num_short() == 0
    drawn = np.array([groups.draw(40, np.random.default_rng(i)) for i in range(4000)])
    assert (drawn[:, 0] == 40).all()
    assert all(len(set(row)) == 5 for row in drawn.tolist())
    counts = Counter(drawn[:, 1:].ravel().tolist())
    assert set(counts) == set(range(41, 49))
    assert all(abs(count / 4000 - 4 / 8) < 0.03 for count in counts.values())
    np.testing.assert_array_equal(
        groups.draw(3, np.random.default_rng(1)), groups.draw(3, np.random.default_rng(1))
    )


def test_only_members_of_the_split_and_others_at_random_where_they_are_too_few():
    ring = neighbours(60, 8)
    ring.index[10] = [10, 11, 11, -1, -1, -1, 12, 30]  # itself, a duplicate, none, and 11 is not in the split
    split = [ring.uids[i] for i in (*range(0, 60, 2), 13)] + ["unknown"]
    place = {uid: i for i, uid in enumerate(split)}
    groups = mining.Groups(ring, split, 5)
    assert groups.num_short() == 2  # shape 10 has two; the unknown one none
    seed = place[ring.uids[10]]
    known = {place[ring.uids[12]], place[ring.uids[30]]}
    others = Counter()
    for i in range(2000):
        group = groups.draw(seed, np.random.default_rng(i)).tolist()
        assert group[0] == seed
        assert len(set(group)) == 5
        assert known <= set(group)
        others.update(set(group) - known - {seed})
    assert set(others) == set(range(len(split))) - known - {seed}
    assert len(set(groups.draw(place["unknown"], np.random.default_rng(0)).tolist())) == 5
    # With all of its neighbours in the split, a shape gets no other.
    inside = {place[ring.uids[i]] for i in (22, 24, 26, 28)}
    assert set(groups.draw(place[ring.uids[20]], np.random.default_rng(0))[1:].tolist()) == inside


def test_too_few_shapes_and_a_file_of_another_set():
    ring = neighbours(10, 3, "openshape_ensemble")
    with pytest.raises(ValueError, match="data.group_size is 5 but there are 4 shapes"):
        mining.Groups(ring, ring.uids[:4], 5)
    with pytest.raises(ValueError, match=r"none of the 6 shapes .* of neighbours \(openshape_ensemble\)"):
        mining.Groups(ring, list("abcdef"), 5)
