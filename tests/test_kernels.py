"""The Pallas kernels in interpret mode against brute force, their lowering, and the choice among them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.tpu_kernels import forms
from openshape_jax import config as config_lib
from openshape_jax import sharding, state, train
from openshape_jax.ops import ball_query, dispatch, farthest_point_sampling
from openshape_jax.ops.ball_query_gpu import ball_query_gpu
from openshape_jax.ops.ball_query_tpu import ball_query_tpu
from openshape_jax.ops.fps_gpu import fps_gpu
from openshape_jax.ops.fps_tpu import fps_tpu
from tests.test_ops import ball_oracle, fps_oracle, grid_cloud

FPS = {"tpu": fps_tpu, "gpu": fps_gpu}
BALL = {"tpu": ball_query_tpu, "gpu": ball_query_gpu}
TPU_CALL = "tpu_custom_call"


def clouds(count: int, n: int) -> np.ndarray:
    """(count, n, 3): scattered points first, then grids full of ties and duplicates."""
    scattered = np.random.default_rng(n).normal(size=(n, 3)).astype(np.float32)
    return np.stack([scattered] + [grid_cloud(seed, n) for seed in range(1, count)])


def far_centres(xyz: np.ndarray, count: int) -> np.ndarray:
    """The first points of each cloud as centres, and one that no ball reaches."""
    return np.concatenate([xyz[:, :count], np.full((len(xyz), 1, 3), 50, np.float32)], 1)


# 9 clouds do not fill the blocks of 8 on a TPU, nor 700 or 2,100 points the chunks of either kernel;
# 16,900 points are scanned in a loop that is not unrolled; 40 of 40 chooses duplicates last.
@pytest.mark.parametrize(("count", "n", "k"), [(9, 700, 130), (2, 40, 40), (2, 2100, 20), (1, 16900, 5)])
@pytest.mark.parametrize("platform", FPS)
def test_fps_kernel_equals_oracle(platform, count, n, k):
    if platform == "gpu" and n > 16384:
        n = 16384
    xyz, start = clouds(count, n), (np.arange(count, dtype=np.int32) * 7 - 1) % n
    got = jax.jit(lambda x, s: FPS[platform](x, k, s, interpret=True))(xyz, start)
    np.testing.assert_array_equal(got, [fps_oracle(x, k, s) for x, s in zip(xyz, start, strict=True)])


# 0.01 leaves most groups short, 9 makes every point a hit; 150 members need two registers of ranks.
@pytest.mark.parametrize(
    ("count", "n", "s", "radius", "k"),
    [(3, 700, 21, 0.3, 20), (2, 33, 7, 9.0, 150), (1, 4500, 69, 1.0, 150), (2, 4096, 3, 0.01, 4)],
)
@pytest.mark.parametrize("platform", BALL)
def test_ball_query_kernel_equals_oracle(platform, count, n, s, radius, k):
    xyz = clouds(count, n)
    centres = far_centres(xyz, s)
    got = jax.jit(lambda x, c: BALL[platform](x, c, radius, k, interpret=True))(xyz, centres)
    np.testing.assert_array_equal(
        got, [ball_oracle(x, c, radius, k) for x, c in zip(xyz, centres, strict=True)]
    )


def test_kernels_choose_the_indices_of_the_original(golden):
    start = jnp.zeros(len(golden["xyz"]), jnp.int32)
    for platform in FPS:
        fps = FPS[platform](golden["xyz"], 24, start, interpret=True)
        np.testing.assert_array_equal(fps, golden["fps_index"])
        centres = np.take_along_axis(golden["xyz"], np.asarray(fps)[..., None], 1)
        ball = BALL[platform](golden["xyz"], centres, 0.35, 16, interpret=True)
        np.testing.assert_array_equal(ball, golden["ball_index"])


def test_forms_of_the_compiler_study_equal_oracle():
    xyz = clouds(2, 300)
    fps = jax.vmap(lambda x: forms.fps_onehot(x, 30, jnp.int32(7)))(xyz)
    np.testing.assert_array_equal(fps, [fps_oracle(x, 30, 7) for x in xyz])
    centres = far_centres(xyz, 9)
    for form in (forms.ball_query_count, forms.ball_query_onehot):
        ball = jax.vmap(lambda x, c, form=form: form(x, c, 0.4, 20))(xyz, centres)
        expected = [ball_oracle(x, c, 0.4, 20) for x, c in zip(xyz, centres, strict=True)]
        np.testing.assert_array_equal(ball, expected)


def published_size(batch: int):
    """Shapes of a batch of the released model: 10,000 points, 384 centres."""
    f32 = jnp.float32
    return (
        jax.ShapeDtypeStruct((batch, 10_000, 3), f32),
        jax.ShapeDtypeStruct((batch, 384, 3), f32),
        jax.ShapeDtypeStruct((batch,), jnp.int32),
    )


def group(xyz, start):
    """Both operations on one cloud, at the released model's size."""
    chosen = farthest_point_sampling(xyz, 384, start)
    return chosen, ball_query(xyz, xyz[chosen], 0.2, 64)


def test_triton_takes_the_gpu_kernels(gpu_mesh):
    xyz, centres, start = published_size(8)
    sample = jax.jit(lambda x, s: fps_gpu(x, 384, s))
    query = jax.jit(lambda x, c: ball_query_gpu(x, c, 0.2, 64))
    with jax.sharding.use_abstract_mesh(gpu_mesh):
        for name, traced in (("fps", sample.trace(xyz, start)), ("ball_query", query.trace(xyz, centres))):
            text = traced.lower(lowering_platforms=("cuda",)).as_text()
            assert f"{name}_gpu" in text
            assert "triton" in text


def test_the_form_depends_on_the_platform_lowered_for():
    xyz, _, start = published_size(3)
    program = jax.jit(jax.vmap(group))
    only = {
        platform: jax.export.export(program, platforms=[platform])(xyz, start).mlir_module()
        for platform in ("cpu", "tpu", "cuda")
    }
    assert only["tpu"].count(TPU_CALL) == 2
    assert "while" not in only["tpu"]
    for platform in ("cpu", "cuda"):  # no GPU here: the plain form, whatever GPU will run it
        assert "custom_call" not in only[platform]


def test_vmap_joins_all_clouds_for_one_call():
    xyz, _, _ = published_size(4)
    inner = jax.vmap(lambda x, s: farthest_point_sampling(x, 16, s), (None, 0))  # two starts a cloud
    program = jax.jit(jax.vmap(inner, (0, None)))
    text = jax.export.export(program, platforms=["tpu"])(xyz, jnp.array([0, 5])).mlir_module()
    assert text.count(TPU_CALL) == 1
    assert "tensor<3x8x10240xf32>" in text  # 4 clouds x 2 starts: one block of 8
    small = clouds(4, 50)
    small_inner = jax.vmap(lambda x, s: farthest_point_sampling(x, 9, s), (None, 0))
    got = jax.vmap(small_inner, (0, None))(small, jnp.array([0, 5]))
    np.testing.assert_array_equal(got, [[fps_oracle(x, 9, s) for s in (0, 5)] for x in small])


def test_large_clouds_and_the_switch_take_the_plain_form(monkeypatch):
    def calls(n: int) -> int:
        xyz = jax.ShapeDtypeStruct((n, 3), jnp.float32)
        program = jax.jit(lambda x: ball_query(x, x[:5], 0.2, farthest_point_sampling(x, 3).shape[0]))
        return jax.export.export(program, platforms=["tpu"])(xyz).mlir_module().count(TPU_CALL)

    assert calls(1000) == 1  # farthest_point_sampling's result is not used
    assert calls(200_000) == 0
    monkeypatch.setenv("OPENSHAPE_KERNELS", "0")
    assert calls(1001) == 0
    xyz = clouds(3, 64)  # one program for several platforms needs the switch
    program = jax.jit(jax.vmap(lambda x: farthest_point_sampling(x, 11)))
    exported = jax.export.export(program, platforms=["cpu", "tpu"])(xyz)
    np.testing.assert_array_equal(exported.call(xyz), [fps_oracle(x, 11) for x in xyz])


def test_gradients_pass_by():
    xyz = jnp.asarray(clouds(2, 40))
    grad = jax.grad(lambda x: jax.vmap(lambda p: p[farthest_point_sampling(p, 5)])(x).sum())(xyz)
    assert float(grad.sum()) == 2 * 5 * 3


@pytest.mark.parametrize("count", [16, 5])  # over 8 devices: 2 clouds each; or all, by every device
@pytest.mark.parametrize("platform", FPS)
def test_sharded_batch_gives_the_same_indices(platform, count):
    mesh = sharding.make_mesh()
    assert mesh.size == 8
    xyz, start = clouds(count, 140), np.arange(count, dtype=np.int32)
    centres = far_centres(xyz, 5)
    place = sharding.by_row(mesh) if count == 16 else sharding.replicated(mesh)
    sample = dispatch.by_device(lambda x, s: FPS[platform](x, 12, s, interpret=True))
    query = dispatch.by_device(lambda x, c: BALL[platform](x, c, 0.4, 8, interpret=True))
    args = jax.device_put((xyz, start, centres), place)
    program = jax.jit(lambda x, s, c: (sample(x, s), query(x, c)), out_shardings=place)
    got_fps, got_ball = program(*args)
    np.testing.assert_array_equal(got_fps, [fps_oracle(x, 12, s) for x, s in zip(xyz, start, strict=True)])
    np.testing.assert_array_equal(
        got_ball, [ball_oracle(x, c, 0.4, 8) for x, c in zip(xyz, centres, strict=True)]
    )
    text = program.lower(*args).as_text()
    assert "manual_computation" in text or "shard_map" in text or "SPMDFullToShardShape" in text
    assert "all-gather" not in program.lower(*args).compile().as_text()


def small_config() -> config_lib.Config:
    config = config_lib.Config()
    config.batch_size, config.steps = 16, 10
    fields = dict(dim=32, depth=1, heads=1, mlp_dim=48, sa_dim=16, patches=8, nsample=8, embed_dim=24)
    for name, value in fields.items():
        setattr(config.model, name, value)
    return config


def test_sharded_train_step_and_evaluation_lower_for_tpus():
    """A Pallas call outside jax.shard_map is refused in a program for several devices."""
    config, mesh = small_config(), sharding.make_mesh()
    whole, rows = sharding.replicated(mesh), sharding.by_row(mesh)
    b = config.batch_size
    batch = {k: np.zeros(v.shape, v.dtype) for k, v in state.batch_shapes(config).items()}
    first = jax.device_put(state.init(config), whole)
    step = jax.jit(state.make_train_step(config), in_shardings=(whole, rows), out_shardings=(whole, whole))
    text = step.trace(first, sharding.put_batch(batch, mesh)).lower(lowering_platforms=("tpu",)).as_text()
    assert text.count(f"@{TPU_CALL}") == 4
    embed = train.make_embed(config, mesh)  # given arrays of the host, which know no mesh
    text = (
        embed.trace(
            state.evaluated(first), batch["xyz"], batch["rgb"], np.full(b, batch["xyz"].shape[1], np.int32)
        )
        .lower(lowering_platforms=("tpu",))
        .as_text()
    )
    assert text.count(f"@{TPU_CALL}") == 4
