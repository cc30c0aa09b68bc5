"""The fixtures' PyTorch names as our parameter tree."""

import numpy as np


def group(golden: dict, prefix: str) -> dict:
    return {k[len(prefix) :]: v for k, v in golden.items() if k.startswith(prefix)}


def encoder(w: dict, depth: int = 2) -> dict:
    def stacked(name):
        return np.stack([w[f"ppat.transformer.layers.{i}.{name}"] for i in range(depth)])

    def kernel(name):
        return stacked(name).swapaxes(1, 2)

    convs = {
        i: {
            "kernel": w[f"ppat.sa.mlp_convs.{i}.weight"][:, :, 0, 0].T,
            "bias": w[f"ppat.sa.mlp_convs.{i}.bias"],
        }
        for i in range(3)
    }
    norms = {
        i: {"scale": w[f"ppat.sa.mlp_bns.{i}.weight"], "bias": w[f"ppat.sa.mlp_bns.{i}.bias"]}
        for i in range(3)
    }
    return {
        "sa": {"convs": convs, "norms": norms},
        "lift": {"kernel": w["ppat.lift.0.weight"][:, :, 0].T, "bias": w["ppat.lift.0.bias"]},
        "lift_scale": w["ppat.lift.2.weight"],
        "lift_bias": w["ppat.lift.2.bias"],
        "cls_token": w["ppat.cls_token"],
        "transformer": {
            "norm1_scale": stacked("0.norm.weight"), "norm1_bias": stacked("0.norm.bias"),
            "qkv": kernel("0.fn.to_qkv.weight"),
            "out_kernel": kernel("0.fn.to_out.0.weight"), "out_bias": stacked("0.fn.to_out.0.bias"),
            "norm2_scale": stacked("1.norm.weight"), "norm2_bias": stacked("1.norm.bias"),
            "up_kernel": kernel("1.fn.net.0.weight"), "up_bias": stacked("1.fn.net.0.bias"),
            "down_kernel": kernel("1.fn.net.3.weight"), "down_bias": stacked("1.fn.net.3.bias"),
        },
        "proj": {"kernel": w["proj.weight"].T, "bias": w["proj.bias"]},
    }  # fmt: skip


def stats(w: dict) -> dict:
    return {
        "sa": {
            "norms": {
                i: {
                    "mean": w[f"ppat.sa.mlp_bns.{i}.running_mean"],
                    "var": w[f"ppat.sa.mlp_bns.{i}.running_var"],
                }
                for i in range(3)
            }
        }
    }
