"""`openshape evaluate --dataset`: the command on built sets."""

import json
from pathlib import Path

import numpy as np
import pytest

from openshape_jax import checkpoint, models, sharding, state, train
from openshape_jax import config as config_lib
from openshape_jax.cli import main as cli
from openshape_jax.config import ModelConfig
from openshape_jax.data import class_features, schema
from openshape_jax.evals.zero_shot import ZeroShot
from tests import eval_files
from tests.eval_files import MODELNET, built, records_of

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
        cli.main(["evaluate", *arguments])
    return done.value.code


def test_evaluate_a_built_set(model_1280, tmp_path, capsys):
    folder, up = model_1280
    eval_files.modelnet_released(tmp_path / "raw")
    stored = class_features.load(built("modelnet40", tmp_path / "raw", tmp_path))
    result = tmp_path / "result.json"
    options = ("--checkpoint", str(folder), "--data_dir", str(tmp_path), "--batch_size", "4")
    assert not command("--dataset", "modelnet40", "--output", str(result), *options)
    assert "modelnet40, split test, 6 shapes, 40 classes: top1" in capsys.readouterr().out
    values = json.loads(result.read_text())["modelnet40"]
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
    result = tmp_path / "result.json"
    options = ("--checkpoint", str(tmp_path), "--data_dir", data_dir, "--output", str(result))
    assert not command("--dataset", "primitives/tiny", *options)
    found = json.loads(result.read_text())
    assert {f"eval/{t}/{k}": v for t, r in found.items() for k, v in r.items() if k in MEASURES} == expected
    assert max(expected.values()) > 0


def test_evaluate_says_what_is_wrong(model_1280, tmp_path):
    options = ("--checkpoint", str(model_1280[0]), "--data_dir", str(tmp_path))
    assert "openshape data build modelnet40" in str(command("--dataset", "modelnet40", *options))
    eval_files.scan_released(tmp_path / "raw", width=0)
    built("scanobjectnn/released", tmp_path / "raw", tmp_path)
    message = str(command("--dataset", "scanobjectnn/released", "--split", "train_test", *options))
    assert "it has no class features, and the vocabulary's vectors have 512" in message
    assert "it has train_test" in str(command("--dataset", "scanobjectnn/released", *options))
    assert "--batch_size is 0" in str(
        command("--dataset", "scanobjectnn/released", "--batch_size", "0", *options)
    )
    assert command("--dataset", "a", "--npz", "b", *options) == 2  # argparse: one of them
