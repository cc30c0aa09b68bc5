"""The evaluation job: a run's latest checkpoint, or any checkpoint, through the suite to its report."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax

from openshape_jax import api, sharding
from openshape_jax.config import Config, EvalConfig
from openshape_jax.evals import report, suite, summary


def run(config: Config, workdir: str | Path) -> dict[str, Any]:
    """Evaluates the latest checkpoint of WORKDIR as `config.eval` says, and writes the run's report again.

    Only `config.eval` and `config.data.data_dir` count: the model is the run's own. Of several hosts the
    first evaluates, on its own devices.

    Raises:
      CheckpointError: there is no checkpoint. Others as `suite.run`.
    """
    if not sharding.is_first_host():
        return {}
    weights, metadata, step = api.read(workdir)
    e = config.eval
    model = api.Model(weights, {**metadata, "views": e.views, "num_points": e.num_points}, step)
    return evaluate(model, e, config.data.data_dir, str(workdir), workdir)


def evaluate(
    model: api.Model,
    config: EvalConfig,
    data_dir: str = "",
    checkpoint: str = "",
    output: str | Path | None = None,
) -> dict[str, Any]:
    """What `suite.run` gives; prints it as a table, and writes OUTPUT/eval.json and OUTPUT/report/index.html.

    Batches are split over this host's devices.
    """
    mesh = sharding.make_mesh(devices=jax.local_devices())
    fitting = -(-config.batch_size // mesh.size) * mesh.size  # each device needs a row
    fitted = dataclasses.replace(config, batch_size=fitting)
    result = suite.run(model, fitted, data_dir, checkpoint, mesh, output)
    print(summary.suite_table({"": result}))
    for name, section in result["datasets"].items():
        for line in summary.notes(section):
            print(f"{name}: {line}")
    if output is not None:
        print(f"results: {Path(output).resolve() / 'eval.json'}")
        print(f"report: {report.write(output, data_dir).resolve()}")
    return result
