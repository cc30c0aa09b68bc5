"""`openshape eval`: the command on built sets, its bad input, and --mode=eval of a run."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from openshape_jax import checkpoint, models, sharding, state, train
from openshape_jax import config as config_lib
from openshape_jax.cli import main as cli
from openshape_jax.config import ModelConfig
from openshape_jax.data import class_features, schema, sources
from openshape_jax.evals.zero_shot import ZeroShot
from tests import eval_files
from tests.eval_files import MODELNET, built, records_of

ROOT = Path(__file__).parent.parent
MEASURES = ("top1", "top3", "top5", "mean_class")


@pytest.fixture(scope="module", params=["z mirrored", "y"])
def model_1280(request, tmp_path_factory) -> tuple[Path, str]:
    """(folder of an untrained encoder of width 1280, the axes of the clouds it was made for)."""
    small = ModelConfig(dim=32, depth=1, heads=1, mlp_dim=32, sa_dim=16, patches=8, nsample=8, embed_dim=1280)
    first = state.init(config_lib.Config(model=small))
    metadata = {
        "model": config_lib.to_dict(small), "text_space": "OpenCLIP ViT-bigG-14 (laion2b_s39b_b160k)",
        "embed_dim": 1280, "up": request.param[0], "mirrored": "mirrored" in request.param,
        "colour": schema.COLOUR, "num_points": eval_files.POINTS,
        "views": 1, "trained_on": [], "version": "0", "logit_scale": 14.28,
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("model")
    checkpoint.save_weights(folder, state.evaluated(first), metadata, 0)
    return folder, request.param


def command(*arguments: str) -> object:
    with pytest.raises(SystemExit) as done:
        cli.main(["eval", *arguments])
    return done.value.code


def test_evaluate_a_built_set(model_1280, tmp_path, capsys):
    folder, up = model_1280
    eval_files.modelnet_released(tmp_path / "raw")
    stored = class_features.load(built("modelnet40", tmp_path / "raw", tmp_path))
    output = tmp_path / "result"
    options = ("--checkpoint", str(folder), "--data_dir", str(tmp_path), "--batch_size", "4")
    assert not command("--dataset", "modelnet40", "--output", str(output), *options)
    shown = capsys.readouterr().out
    assert "modelnet40: split test, 6 shapes; 48 points a shape" in shown
    assert f"report: {output / 'report' / 'index.html'}" in shown
    section = json.loads((output / "eval.json").read_text())["datasets"]["modelnet40"]
    values = section["zero_shot"]["modelnet40"]
    assert f"top-1  {100 * values['top1']:.1f}" in " ".join(shown.split()).replace("top-1 ", "top-1  ")
    weights, metadata, _ = checkpoint.load_weights(folder)
    encoder = config_lib.from_dict(metadata["model"], ModelConfig)
    records, _ = records_of("modelnet40", "test", tmp_path)
    rank = []
    for record in records.values():
        xyz = schema.dequantize_xyz(record["xyz"])
        xyz = schema.to_y_up(xyz) if up == "y" else xyz * [1, -1, 1]
        order = np.random.default_rng(len(rank)).permutation(eval_files.POINTS)
        rgb = record["rgb"][order].astype(np.float32) / 255
        out, _ = models.apply(encoder, weights["encoder"], weights["stats"], xyz[order][None], rgb[None])
        scores = stored.features @ np.asarray(out)[0]
        rank.append((scores > scores[MODELNET.index(record["label"])]).sum())
    assert values["top1"] == pytest.approx(np.mean(np.array(rank) < 1))
    assert values["top3"] == pytest.approx(np.mean(np.array(rank) < 3))
    assert values["top5"] == pytest.approx(np.mean(np.array(rank) < 5))
    assert (values["split"], values["num_shapes"]) == ("test", 6)


def test_evaluate_gives_the_numbers_of_the_trainings_own_evaluation(data_dir, tmp_path):
    small = ModelConfig(dim=32, depth=1, heads=1, mlp_dim=32, sa_dim=16, patches=8, nsample=8, embed_dim=512)
    config = config_lib.Config(model=small)
    config.eval.num_points = 256
    weights = state.evaluated(state.init(config))
    checkpoint.save_weights(tmp_path, weights, {**train.describe(config), "logit_scale": 14.28}, 0)
    embed = train.make_embed(config, sharding.make_mesh())
    evaluator = ZeroShot("primitives/tiny", config.eval, data_dir, 512)
    expected = dict(evaluator.run(lambda *points: embed(weights, *points)))
    options = ("--checkpoint", str(tmp_path), "--data_dir", data_dir, "--output", str(tmp_path / "out"))
    assert not command("--dataset", "primitives/tiny", *options)
    found = json.loads((tmp_path / "out" / "eval.json").read_text())["datasets"]["primitives/tiny"][
        "zero_shot"
    ]
    assert {f"eval/{t}/{k}": v for t, r in found.items() for k, v in r.items() if k in MEASURES} == expected
    assert max(expected.values()) > 0


def test_evaluate_says_what_is_wrong(model_1280, tmp_path):
    options = ("--checkpoint", str(model_1280[0]), "--data_dir", str(tmp_path))
    assert "openshape data build modelnet40" in str(command("--dataset", "modelnet40", *options))
    eval_files.scan_released(tmp_path / "raw", width=0)
    built("scanobjectnn/released", tmp_path / "raw", tmp_path)
    message = str(command("--dataset", "scanobjectnn/released", "--split", "train_test", *options))
    assert "embeddings of width 1280 (of the model's CLIP, OpenCLIP ViT-bigG-14" in message
    assert "it has no class features, and the vocabulary's vectors (CLIP ViT-B/32) have 512" in message
    assert "it has train_test" in str(command("--dataset", "scanobjectnn/released", *options))
    assert "--batch_size is 0" in str(
        command("--dataset", "scanobjectnn/released", "--batch_size", "0", *options)
    )
    assert command("--dataset", "a", "--npz", "b", *options) == 2  # argparse: one of them
    assert "--seeds is 0" in str(command("--dataset", "a", "--seeds", "0", *options))
    assert "the suite has the part 'nn'; its parts are zero_shot, few_shot" in str(
        command("--dataset", "a", "--suite", "knn,nn", *options)
    )
    assert "--checkpoint is missing" in str(command("--dataset", "a"))
    assert "--npz is evaluated zero-shot and once" in str(command("--npz", "a", "--suite", "all", *options))


def test_a_list_of_classes_that_does_not_match_the_features(model_1280, tmp_path):
    folder, _ = model_1280
    eval_files.modelnet_released(tmp_path / "raw")
    home = built("modelnet40", tmp_path / "raw", tmp_path)
    options = ("--checkpoint", str(folder), "--data_dir", str(tmp_path), "--dataset", "modelnet40")
    others = [*MODELNET[1:], "spaceship"]
    class_features.save(home, class_features.of_rows(others, np.eye(40, 1280), "test"))
    message = str(command(*options))
    assert (
        "data set 'modelnet40' lists 40 classes, but its class_features.npz has the vectors of 40" in message
    )
    assert "without a vector: airplane; vectors of no class: spaceship" in message
    np.savez(home / class_features.FILE, names=np.array(MODELNET), features=np.eye(39, 1280))
    assert "has 39 class features, but there are 40 classes" in str(command(*options))


def test_features_of_another_clip_name_both(model_1280, tmp_path):
    folder, _ = model_1280
    eval_files.modelnet_released(tmp_path / "raw", width=768)
    built("modelnet40", tmp_path / "raw", tmp_path)
    message = str(
        command("--checkpoint", str(folder), "--data_dir", str(tmp_path), "--dataset", "modelnet40")
    )
    assert "embeddings of width 1280 (of the model's CLIP, OpenCLIP ViT-bigG-14" in message
    assert "its class_features.npz has width 768" in message


def test_a_label_outside_the_list_and_an_empty_split(model_1280, tmp_path, monkeypatch):
    folder, _ = model_1280
    eval_files.modelnet_released(tmp_path / "raw")
    built("modelnet40", tmp_path / "raw", tmp_path)
    options = ("--checkpoint", str(folder), "--data_dir", str(tmp_path), "--dataset", "modelnet40")
    original = sources.TfdsRecords.__getitem__
    with monkeypatch.context() as patch:
        patch.setattr(sources.TfdsRecords, "__getitem__", lambda s, i: {**original(s, i), "label": "yeti"})
        message = str(command(*options))
    assert "has shapes of the class 'yeti', for which its class_features.npz has no vector" in message
    assert "its 40 classes are airplane, bathtub" in message
    with monkeypatch.context() as patch:
        patch.setattr(sources.TfdsRecords, "__len__", lambda s: 0)
        message = str(command(*options))
    assert "the split 'test' of data set 'modelnet40' is empty: take another of its splits (test)" in message


def test_a_run_is_evaluated_by_mode_eval(data_dir, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    before = json.loads((tmp_path / "run/eval/primitives_tiny.json").read_text())
    options = [f"--config.data.data_dir={data_dir}", "--config.eval.suite=zero_shot,knn"]
    command = [sys.executable, "-m", "openshape_jax.main", f"--config={ROOT}/configs/quickstart.py:smoke"]
    done = subprocess.run(
        [*command, f"--workdir={tmp_path}/run", "--mode=eval", *options],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert "primitives/tiny, kNN" in done.stdout
    result = json.loads((tmp_path / "run/eval.json").read_text())
    assert result["step"] == 8
    after = result["datasets"]["primitives/tiny"]["zero_shot"]["primitives_tiny"]
    assert {k: after[k] for k in MEASURES} == {k: before[k] for k in MEASURES}
    page = (tmp_path / "run/report/index.html").read_text()
    for title in ("Training", "Probes", "Confusions"):
        assert f"<h2>{title}</h2>" in page
    assert "at step 8 of" in page
