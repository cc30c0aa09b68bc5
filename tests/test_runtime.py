"""What is settled before JAX starts."""

import os

import numpy as np
import pytest

import openshape_jax
from openshape_jax import runtime


@pytest.mark.parametrize(("version", "added"), [("0.10.2", False), ("0.12.0.1", True)])
def test_sums_are_xlas_own_where_others_are_wrong(version, added, monkeypatch):
    monkeypatch.setattr(runtime, "version", lambda _: version)
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x")
    runtime.keep_sums_right()
    runtime.keep_sums_right()
    flags = os.environ["XLA_FLAGS"].split()
    assert flags == ["--xla_dump_to=x"] + ["--xla_cpu_experimental_ynn_fusion_type=-reduce"] * added


def test_embeddings_that_are_not_finite_are_an_error(trained):
    model = openshape_jax.load(trained)
    model._embed = lambda weights, xyz, rgb, count: np.where(np.arange(len(xyz))[:, None] == 1, np.nan, 1.0)
    with pytest.raises(FloatingPointError, match=r"clouds \[1\]"):
        model.embed(np.random.default_rng(0).random((2, 50, 3), np.float32))
