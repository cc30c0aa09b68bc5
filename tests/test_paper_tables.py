"""The commands of the paper's tables: every row is a config that loads, and a command that can be started."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from openshape_jax import config as config_lib

ROOT = Path(__file__).parent.parent
FILE = ROOT / "experiments" / "paper_tables" / "run.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("paper_tables_run", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_row_is_a_valid_config_and_rows_differ(script):
    full = (script.TABLE1, script.ABLATIONS, script.scaling_rows())
    for rows in (*full, *script.PROOF.values()):
        small = () if rows in full else script.SMALL
        configs = []
        for row in rows:
            config = config_lib.load(str(ROOT / row.config), [*small, *row.overrides])
            configs.append((config_lib.to_dict(config), row.mined_from))
            assert row.mined_from in ("", *(r.name for r in rows))
        assert all(configs[i] not in configs[:i] for i in range(len(configs)))
    widths = [
        config_lib.load(str(ROOT / r.config), list(r.overrides)).model.dim for r in script.scaling_rows()
    ]
    assert widths[:5] == [256, 512, 512, 512, 768]


def test_a_share_of_the_data_is_a_split_of_it(script, data_dir):
    from openshape_jax.data import sources

    script.write_share("primitives/tiny", 10, data_dir)
    records, _ = sources.open_split("primitives/tiny", "share_10", data_dir)
    assert len(records) == 17  # of 166
    assert len({records[i]["uid"] for i in range(17)}) == 17


def test_printed_commands_are_of_the_package():
    done = subprocess.run(
        [sys.executable, str(FILE), "ablations", "--print"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2 * 8 + 1  # a training and an evaluation each, and one search for neighbours
    mined = [line for line in lines if " mine " in line]
    assert len(mined) == 1
    assert sum("--mode=eval" in line for line in lines) == 8
    assert "pointbert_l.py:no_rgb" in done.stdout
