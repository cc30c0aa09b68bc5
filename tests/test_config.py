"""Config files, overrides and their errors."""

import json
from pathlib import Path

import pytest

from openshape_jax import config as config_lib
from openshape_jax.config import Config, ConfigError, apply_overrides, from_dict, to_dict

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.py"))


def test_all_config_files_are_there():
    names = {p.stem for p in CONFIGS}
    assert {"quickstart", "pointbert_s", "pointbert_m", "pointbert_l", "pointbert_xl"} <= names


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
@pytest.mark.parametrize("variant", ["", ":smoke"])
def test_every_config_loads_and_survives_json(path, variant):
    config = config_lib.load(f"{path}{variant}")
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    assert (config.data.datasets == ("primitives/tiny",)) == bool(variant)


def test_xl_is_scaling_5():
    model = config_lib.load(str(CONFIGS[0].parent / "pointbert_xl.py")).model
    assert (model.dim, model.depth, model.heads, model.mlp_dim, model.patches) == (768, 12, 12, 2304, 512)


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("optim.learning_rate=3e-4", "optim.learning_rate", 3e-4),
        ("steps=1_000", "steps", 1000),
        ("loss.class_aware=true", "loss.class_aware", True),
        ("data.datasets=primitives,sweethome3d", "data.datasets", ("primitives", "sweethome3d")),
        ("data.weights=(1, 2.5)", "data.weights", (1.0, 2.5)),
        ("eval.datasets=", "eval.datasets", ()),
        ("data.data_dir=/a=b", "data.data_dir", "/a=b"),
    ],
)
def test_overrides(override, path, value):
    found = apply_overrides(Config(), [override])
    for name in path.split("."):
        found = getattr(found, name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.learnin_rate=1", r"no field 'optim.learnin_rate'. Did you mean optim.learning_rate"),
        ("learning_rate=1", r"no field 'learning_rate'. Did you mean optim.learning_rate"),
        ("optin.ema=1", r"no field 'optin'. Did you mean optim\?"),
        ("optim.qqq=1", r"no field 'optim.qqq'. Fields: optim.name, optim.learning_rate"),
        ("steps=1.5", "steps is '1.5', which is not of type int"),
        ("steps=abc", "steps is 'abc', which is not of type int"),
        ("loss.class_aware=2", "loss.class_aware is '2', which is not of type bool"),
        ("optim.learning_rate=fast", "optim.learning_rate is 'fast', which is not of type float"),
        ("data.weights=a,b", r"data.weights is 'a,b', which is not of type tuple\[float, ...\]"),
        ("optim=1", "optim is a group of fields; set one of: optim.name, optim.learning_rate"),
        ("steps", "steps has no value"),
        ("steps.x=1", "no field 'steps.x'"),
    ],
)
def test_bad_overrides_name_the_fix(override, message):
    with pytest.raises(ConfigError, match=message):
        apply_overrides(Config(), [override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("batch_size=0", "batch_size is 0; it must be positive"),
        ("optim.schedule=linear", "optim.schedule is 'linear'; allowed: step, cosine, constant"),
        ("data.weights=1,2,3", "must be one positive number for each"),
        ("data.num_points=10", "data.num_points is 10 but model.patches"),
        ("model.train_patches=65", r"must be 0 to model.patches \(64\)"),
        ("optim.ema=1", r"optim.ema is 1.0; it must be from 0 to 0.99"),
        ("augment.gray=7", r"augment.gray is 7.0; it must be from 0 to 1"),
        ("augment.scale_low=5", r"augment.scale_low is 5.0; it must be from 0.001 to 1.25"),
        ("optim.weight_decay=nan", r"optim.weight_decay is nan; it must be from 0"),
        ("optim.learning_rate=inf", r"optim.learning_rate is inf; it must be from 0"),
        ("optim.warmup_steps=-5", r"optim.warmup_steps is -5"),
        ("seed=-1", r"seed is -1"),
        ("cpu_devices=0", r"cpu_devices is 0"),
        ("data.datasets=", "data.datasets is empty"),
    ],
)
def test_values_are_checked_at_the_start(override, message):
    with pytest.raises(ConfigError, match=message):
        config_lib.load(str(CONFIGS[0].parent / "quickstart.py"), [override])


def test_missing_files_and_variants(tmp_path):
    with pytest.raises(ConfigError, match="no such file. There are: .*quickstart.py"):
        config_lib.load(str(CONFIGS[0].parent / "quikstart.py"))
    with pytest.raises(ConfigError, match="unknown variant 'smokey'; this config has: smoke"):
        config_lib.load(f"{CONFIGS[0]}:smokey")
    empty = tmp_path / "empty.py"
    empty.write_text("")
    with pytest.raises(ConfigError, match="no function get_config"):
        config_lib.load(str(empty))


def test_difference_lists_every_changed_field():
    changed = apply_overrides(Config(), ["steps=7", "optim.ema=0.5"])
    assert config_lib.difference(to_dict(Config()), to_dict(changed)) == [
        "optim.ema: 0.0 -> 0.5",
        "steps: 100000 -> 7",
    ]
