"""PointBERT's tensors under their PyTorch names and layouts, and as our parameter tree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from openshape_jax.config import ModelConfig
from openshape_jax.convert.error import ConversionError

PREFIXES = ("module.", "pc_encoder.", "")  # training code, demo files, bare
STEM = "ppat."  # absent where the encoder is not wrapped with a projection (demo B/32)
ROOTS = ("cls_token", "sa.", "lift.", "transformer.")  # what an encoder's names begin with
COUNTERS = tuple(f"ppat.sa.mlp_bns.{i}.num_batches_tracked" for i in range(3))

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """How a PyTorch file names the tensors of an encoder.

    Attributes:
      prefix: in front of every name.
      stem: whether the encoder's names continue with "ppat.".
      wrapped: whether they lie under "state_dict", beside the logit scale and the training's state.
    """

    prefix: str = "module."
    stem: bool = True
    wrapped: bool = True

    def canonical(self, name: str) -> str:
        """The name without prefix and with stem; names of something else stay as they are."""
        if not name.startswith(self.prefix):
            return name
        rest = name[len(self.prefix) :]
        return STEM + rest if not self.stem and rest.startswith(ROOTS) else rest

    def named(self, canonical: str) -> str:
        """The inverse of `canonical` for the encoder's own names."""
        return self.prefix + (canonical if self.stem else canonical.removeprefix(STEM))


def find_layout(names: Mapping[str, Any], wrapped: bool) -> Layout | None:
    """The layout under which most names are an encoder's; None where no name is."""
    best, most = None, 0
    for prefix in PREFIXES:
        for stem in (True, False):
            roots = tuple(prefix + (STEM if stem else "") + root for root in ROOTS)
            count = sum(name.startswith(roots) for name in names)
            if count > most:
                best, most = Layout(prefix, stem, wrapped), count
    return best


@dataclass(frozen=True)
class Rule:
    """One tensor: its PyTorch name, and where it lies in our tree.

    Attributes:
      name: with {} for the number of a block in front of its own name.
      path: keys into {"encoder": ..., "stats": ...}; a block's tensors are stacked along axis 0 there.
      kernel: PyTorch's (out, in, 1, ...) is our (in, out); the number counts the axes of length one.
    """

    name: str
    path: tuple[str | int, ...]
    kernel: int | None = None

    def ours(self, x: np.ndarray) -> np.ndarray:
        return x if self.kernel is None else x.reshape(x.shape[:2]).T

    def shape(self, ours: Shape) -> Shape:
        """PyTorch's shape of our tensor (of one block, where blocks are stacked)."""
        return ours if self.kernel is None else (*reversed(ours), *[1] * self.kernel)

    def theirs(self, x: np.ndarray) -> np.ndarray:
        return np.array(x if self.kernel is None else x.T.reshape(self.shape(x.shape)), order="C")


def _rules() -> Iterator[Rule]:
    yield Rule("ppat.cls_token", ("encoder", "cls_token"))
    for i in range(3):
        conv, at = f"ppat.sa.mlp_convs.{i}", ("encoder", "sa", "convs", i)
        yield Rule(f"{conv}.weight", (*at, "kernel"), 2)
        yield Rule(f"{conv}.bias", (*at, "bias"))
    for i in range(3):
        norm = f"ppat.sa.mlp_bns.{i}"
        yield Rule(f"{norm}.weight", ("encoder", "sa", "norms", i, "scale"))
        yield Rule(f"{norm}.bias", ("encoder", "sa", "norms", i, "bias"))
        yield Rule(f"{norm}.running_mean", ("stats", "sa", "norms", i, "mean"))
        yield Rule(f"{norm}.running_var", ("stats", "sa", "norms", i, "var"))
    yield Rule("ppat.lift.0.weight", ("encoder", "lift", "kernel"), 1)
    yield Rule("ppat.lift.0.bias", ("encoder", "lift", "bias"))
    yield Rule("ppat.lift.2.weight", ("encoder", "lift_scale"))
    yield Rule("ppat.lift.2.bias", ("encoder", "lift_bias"))


BLOCK_NAME = "ppat.transformer.layers.{}."
_BLOCK = [
    Rule(BLOCK_NAME + name, ("encoder", "transformer", ours), kernel)
    for name, ours, kernel in (
        ("0.norm.weight", "norm1_scale", None),
        ("0.norm.bias", "norm1_bias", None),
        ("0.fn.to_qkv.weight", "qkv", 0),
        ("0.fn.to_out.0.weight", "out_kernel", 0),
        ("0.fn.to_out.0.bias", "out_bias", None),
        ("1.norm.weight", "norm2_scale", None),
        ("1.norm.bias", "norm2_bias", None),
        ("1.fn.net.0.weight", "up_kernel", 0),
        ("1.fn.net.0.bias", "up_bias", None),
        ("1.fn.net.3.weight", "down_kernel", 0),
        ("1.fn.net.3.bias", "down_bias", None),
    )
]
_PLAIN = list(_rules())
_PROJECTION = [
    Rule("proj.weight", ("encoder", "proj", "kernel"), 0),
    Rule("proj.bias", ("encoder", "proj", "bias")),
]


def expected(config: ModelConfig) -> dict[str, Shape]:
    """PyTorch's name -> shape of every tensor of this encoder, BatchNorm's counters left out."""
    import jax
    from flax import nnx

    from openshape_jax import models

    encoder, stats = jax.eval_shape(lambda: models.split(models.build(config, nnx.Rngs(0))))
    tree = {"encoder": encoder, "stats": stats}
    shapes = {}
    for rule, block in _all(config):
        ours = _get(tree, rule.path).shape
        shapes[rule.name.format(block)] = rule.shape(ours if block is None else ours[1:])
    return shapes


def from_torch(tensors: Mapping[str, np.ndarray], config: ModelConfig, where: str) -> dict[str, Any]:
    """Our {"encoder", "stats"} in float32 of tensors under canonical PyTorch names.

    Raises:
      ConversionError: lists every missing, unexpected, misshapen or unusable tensor.
    """
    shapes = expected(config)
    problems = [f"missing: {name} {shape}" for name, shape in shapes.items() if name not in tensors]
    for name, x in tensors.items():
        if name in COUNTERS:
            continue
        if name not in shapes:
            problems.append(f"unexpected: {name} {x.shape}")
        elif x.shape != shapes[name]:
            problems.append(f"misshapen: {name} is {x.shape}, expected {shapes[name]}")
        elif x.dtype.kind != "f" and x.dtype.name != "bfloat16":
            problems.append(f"not floating point: {name} is {x.dtype}")
        elif not np.isfinite(x.astype(np.float32)).all():
            problems.append(f"not finite: {name} holds NaN or infinite values")
    if problems:
        raise ConversionError(
            f"{where}: its tensors are not those of a PointBERT of dim {config.dim}, depth {config.depth}, "
            f"heads {config.heads}, mlp {config.mlp_dim}, sa_dim {config.sa_dim}, D {config.embed_dim}; "
            f"{len(problems)} do not fit:\n  " + "\n  ".join(problems) + "\nA tensor that the model does "
            "not need can be left out by name with ignore= (openshape convert --ignore NAME)."
        )
    weights: dict[str, Any] = {}
    stacked: dict[tuple[str | int, ...], list[np.ndarray]] = {}
    for rule, block in _all(config):
        x = rule.ours(np.asarray(tensors[rule.name.format(block)], np.float32))
        if block is None:
            _put(weights, rule.path, np.array(x, order="C"))
        else:
            stacked.setdefault(rule.path, []).append(x)
    for path, blocks in stacked.items():
        _put(weights, path, np.stack(blocks))
    return weights


def to_torch(weights: Mapping[str, Any], config: ModelConfig, counts: list[int]) -> dict[str, np.ndarray]:
    """Tensors under canonical PyTorch names, in the original's order; the inverse of `from_torch`.

    Args:
      counts: batches that each BatchNorm has seen (PyTorch's num_batches_tracked, int64).
    """
    out = {}
    for rule, block in _all(config):
        x = np.asarray(_get(weights, rule.path), np.float32)
        out[rule.name.format(block)] = rule.theirs(x if block is None else x[block])
        if rule.name.endswith("running_var"):
            index = int(rule.path[3])
            out[COUNTERS[index]] = np.array(counts[index], np.int64)
    return out


def count_parameters(shapes: Mapping[str, Shape]) -> int:
    """Trainable numbers, running statistics left out."""
    return sum(int(np.prod(s)) for n, s in shapes.items() if "running_" not in n and n not in COUNTERS)


def _all(config: ModelConfig) -> Iterator[tuple[Rule, int | None]]:
    for rule in _PLAIN:
        yield rule, None
    for block in range(config.depth):
        for rule in _BLOCK:
            yield rule, block
    if config.project:
        for rule in _PROJECTION:
            yield rule, None


def _get(tree: Any, path: tuple[str | int, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _put(tree: dict[Any, Any], path: tuple[str | int, ...], value: np.ndarray) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value
