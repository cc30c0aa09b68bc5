"""Makes tests/fixtures/clip_*: small CLIPs of transformers and open_clip, random weights and their outputs.

    pip install torch torchvision transformers open_clip_torch     # in an environment of its own
    python experiments/clip_fixtures/make.py tests/fixtures

Weights are stored as float16 and were rounded to it before anything was computed, in float32.
"""

import argparse
import contextlib
import gzip
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import open_clip
import torch
from open_clip.transform import image_transform
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

MERGES = 126
VOCABULARY = 512 + MERGES + 2
CONTEXT = 16
RECORDED = 3  # rows whose outputs of every block are kept
TEXTS = [
    "chair",
    "A photo of a Red  Chair.",
    "it's the table's 3rd leg, isn't it?",
    "",
    "   spaces\t and\nlines ",
    "caf\u00e9 cafe\u0301 na\u00efve \u6905\u5b50 \U0001f6cb\ufe0f",
    "salt &amp; pepper &amp;lt;shaker&amp;gt;",
    "a point cloud model of an embroidered ottoman with many, many, many words that do not fit",
    "12 345 6.7 x-ray/y_axis (left) #1",
    "it\u2019s a \u201cquoted\u201d lamp",
]


def vocabulary(folder: Path) -> open_clip.tokenizer.SimpleTokenizer:
    """Writes the first MERGES merges of CLIP's vocabulary as vocab.json and merges.txt; open_clip's tokenizer
    over the same."""
    with gzip.open(open_clip.tokenizer.default_bpe()) as file:
        merges = file.read().decode().split("\n")[1 : MERGES + 1]
    with tempfile.NamedTemporaryFile(suffix=".gz") as small:
        small.write(gzip.compress("\n".join(["#version", *merges]).encode()))
        small.flush()
        tokenizer = open_clip.tokenizer.SimpleTokenizer(small.name, context_length=CONTEXT)
    start, end = tokenizer.all_special_ids
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocab = {names.get(token, token): index for token, index in tokenizer.encoder.items()}
    assert (start, end, len(vocab)) == (VOCABULARY - 2, VOCABULARY - 1, VOCABULARY)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False, indent=0) + "\n")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    return tokenizer


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Weights under which every parameter matters, representable in float16."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        if name == "logit_scale":
            value = torch.tensor(3.25)
        elif p.ndim == 1:
            is_gain = name.endswith("weight") and ("norm" in name or "ln_" in name or "layrnorm" in name)
            value = is_gain + 0.3 * noise
        else:
            value = noise * (1.5 * p[0].numel() ** -0.5 if "embedding" not in name else 0.7)
        p.data.copy_(value.half().float())


@contextlib.contextmanager
def recorded(blocks: list[torch.nn.Module]):
    """A list that gets the output of every block."""
    seen: list[np.ndarray] = []

    def keep(_module, _inputs, output):
        seen.append((output[0] if isinstance(output, tuple) else output)[:RECORDED].numpy())

    hooks = [block.register_forward_hook(keep) for block in blocks]
    yield seen
    for hook in hooks:
        hook.remove()


def save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    kept = {k: v.half().contiguous() if v.is_floating_point() else v for k, v in tensors.items()}
    save_file(kept, path, metadata={"format": "pt"})
    path.chmod(0o644)


def of_transformers(folder: Path, texts: list[str], pixels: torch.Tensor) -> dict[str, np.ndarray]:
    text = dict(
        hidden_size=32, intermediate_size=96, num_hidden_layers=3, num_attention_heads=2,
        max_position_embeddings=CONTEXT, vocab_size=VOCABULARY, bos_token_id=VOCABULARY - 2,
        eos_token_id=VOCABULARY - 1, pad_token_id=VOCABULARY - 1, hidden_act="quick_gelu",
    )  # fmt: skip
    vision = dict(
        hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4, image_size=32,
        patch_size=8, hidden_act="quick_gelu",
    )  # fmt: skip
    tokenizer = CLIPTokenizer(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))
    ids = tokenizer(texts, padding="max_length", max_length=CONTEXT, truncation=True, return_tensors="pt")
    out = {"ids": ids["input_ids"].numpy().astype(np.int32)}
    for activation in ("quick_gelu", "gelu"):
        text["hidden_act"] = vision["hidden_act"] = activation
        config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
        model = CLIPModel(config).eval()
        randomise(model, 0)
        if activation == "quick_gelu":
            save(model.state_dict(), folder / "model.safetensors")
            config.save_pretrained(folder)
            processor().save_pretrained(folder)
        towers = model.text_model.encoder, model.vision_model.encoder
        with recorded(towers[0].layers) as text_layers, recorded(towers[1].layers) as image_layers:
            result = model(**ids, pixel_values=pixels)
        out |= {
            f"{activation}_text_layers": np.stack(text_layers),
            f"{activation}_text": result.text_embeds.numpy(),
            f"{activation}_image_layers": np.stack(image_layers),
            f"{activation}_image": result.image_embeds.numpy(),
            f"{activation}_logits": result.logits_per_image.numpy(),
        }  # fmt: skip
        # The rule of configs from before July 2023, which OpenAI's repositories still have.
        model.text_model.eos_token_id = 2
        same = model(**ids, pixel_values=pixels).text_embeds.numpy()
        assert np.array_equal(same, result.text_embeds.numpy())
    return out


def of_open_clip(folder: Path, tokenizer, texts: list[str], pixels: torch.Tensor) -> dict[str, np.ndarray]:
    model_config = dict(
        embed_dim=40,
        vision_cfg=dict(
            image_size=32, layers=2, width=52, head_width=26, mlp_ratio=4.9231, patch_size=8
        ),
        text_cfg=dict(context_length=CONTEXT, vocab_size=VOCABULARY, width=32, heads=4, layers=2),
    )  # fmt: skip
    model = open_clip.CLIP(**model_config).eval()
    randomise(model, 1)
    save(model.state_dict(), folder / "open_clip_model.safetensors")
    preprocess = dict(mean=[0.5] * 3, std=[0.5] * 3, interpolation="bicubic", resize_mode="shortest")
    described = {"model_cfg": model_config, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(described, indent=1) + "\n")
    ids = tokenizer(texts)
    with (
        recorded(list(model.transformer.resblocks)) as text_layers,
        recorded(list(model.visual.transformer.resblocks)) as image_layers,
    ):
        text, image = model.encode_text(ids, normalize=True), model.encode_image(pixels, normalize=True)
    return {
        "ids": ids.numpy().astype(np.int32), "text_layers": np.stack(text_layers), "text": text.numpy(),
        "image_layers": np.stack(image_layers), "image": image.numpy(),
    }  # fmt: skip


def processor(**options) -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, **options)


def of_images() -> dict[str, np.ndarray]:
    """Images of awkward sizes, and what open_clip's transform and the Pillow backend of transformers make of
    them, 32 x 32, not normalised by mean and deviation."""
    out = {}
    plain = dict(mean=(0, 0, 0), std=(1, 1, 1))
    transform = image_transform(32, is_train=False, **plain)
    rng = np.random.default_rng(0)
    for index, (height, width) in enumerate([(32, 32), (40, 67), (65, 33), (20, 27), (9, 60)]):
        coarse = rng.integers(0, 256, (4, 5, 3), np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
        image = np.clip(smooth.astype(int) + rng.integers(-30, 30, smooth.shape), 0, 255).astype(np.uint8)
        pil = Image.fromarray(image)
        ours = transform(pil).permute(1, 2, 0).numpy() * 255
        theirs = (
            processor(do_normalize=False)(pil, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
            * 255
        )
        out |= {
            f"image_{index}": image, f"open_clip_{index}": np.rint(ours).astype(np.uint8),
            f"transformers_{index}": np.rint(theirs).astype(np.uint8),
        }  # fmt: skip
    return out


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    parts = {name: folder / f"clip_{name}" for name in ("transformers", "open_clip")}
    for part in parts.values():
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
    tokenizer = vocabulary(parts["transformers"])
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2)).half().float()
    channels_last = pixels.permute(0, 2, 3, 1).numpy().astype(np.float16)
    found = of_transformers(parts["transformers"], TEXTS, pixels)
    np.savez_compressed(parts["transformers"] / "expected.npz", pixels=channels_last, **found)
    found = of_open_clip(parts["open_clip"], tokenizer, TEXTS, pixels)
    np.savez_compressed(parts["open_clip"] / "expected.npz", pixels=channels_last, **found)
    (parts["transformers"] / "texts.json").write_text(json.dumps(TEXTS, indent=1) + "\n")
    np.savez_compressed(folder / "clip_images.npz", **of_images())


if __name__ == "__main__":
    main()
