"""The Colab notebook, executed top to bottom in a fresh process on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.small_run import XLA_FLAGS

NOTEBOOK = Path(__file__).parent.parent / "experiments" / "colab_eval.ipynb"
# As a notebook does it: every cell in turn in one namespace; an error ends it.
RUNNER = """
import json, sys
namespace = {"__name__": "__main__"}
for number, cell in enumerate(json.load(open(sys.argv[1], encoding="utf-8"))["cells"]):
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), namespace)
"""


def test_the_notebook_runs_top_to_bottom(data_dir, tmp_path):
    code = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in code)  # as committed: nothing that a person has run
    settings = {"TFDS_DATA_DIR": data_dir, "OPENSHAPE_WORK": str(tmp_path / "work"), "OPENSHAPE_STEPS": "12"}
    environment = {**os.environ, **settings, "XLA_FLAGS": XLA_FLAGS}
    command = [sys.executable, "-c", RUNNER, str(NOTEBOOK)]
    done = subprocess.run(command, cwd=NOTEBOOK.parents[1], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert any(line.startswith("pointbert, D = 512") for line in lines)
    start = lines.index("nearest to the mesh:")
    assert len(lines) == start + 18  # three searches of five shapes
    assert all(" primitives#" in line for line in lines[start + 1 : start + 6])
    result = json.loads((tmp_path / "work/eval/eval.json").read_text())["datasets"]["primitives/tiny"]
    assert result["zero_shot"]["primitives_tiny"]["draws"] == 2
    assert result["knn"]["neighbours"]
    assert (tmp_path / "work/eval/report/index.html").exists()
    assert "512 points -> 512 numbers of length 1.000" in done.stdout
