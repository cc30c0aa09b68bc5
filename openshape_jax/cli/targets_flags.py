"""The flags of `openshape targets`, and what they stand for."""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openshape_jax.cli.arguments import add_data_dir

if TYPE_CHECKING:
    from openshape_jax.clip import Clip
    from openshape_jax.making.endpoint import Chat, Endpoint


def add_shapes(p: argparse.ArgumentParser) -> None:
    """Adds what every stage takes."""
    p.add_argument("--work", required=True, metavar="DIR", help="work folder; made where it is not there")
    p.add_argument(
        "--source", default="", metavar="DIR", help="folder of meshes and point files (first stage only)"
    )
    p.add_argument(
        "--captions",
        default="",
        metavar="FILE",
        help="CSV or JSON of names, classes and captions of --source",
    )
    p.add_argument(
        "--up", default="", choices=("y", "z"), help="up axis; default: y for obj, glb, gltf, else z"
    )
    p.add_argument("--class-from", default="", choices=("folder",), help="class of a shape without one")
    p.add_argument(
        "--data", default="", metavar="NAME", help="instead of --source: a built data set, drawn as points"
    )
    p.add_argument(
        "--jobs", type=int, default=0, metavar="N", help="processes that draw or build (default: one a core)"
    )
    add_data_dir(p)


def add_render(p: argparse.ArgumentParser) -> None:
    """Adds the flags of `render`."""
    p.add_argument("--size", type=int, default=512, help="pixels of a side (default 512)")


def add_captioner(p: argparse.ArgumentParser) -> None:
    """Adds the flags of `caption` but for those of an endpoint."""
    p.add_argument(
        "--blip", default="", metavar="MODEL", help="a BLIP or BLIP-2 of transformers: folder or repository"
    )
    p.add_argument(
        "--captions-from", default="", metavar="FILE", help="captions from a CSV or JSON file (file,caption)"
    )
    p.add_argument(
        "--views",
        default="0",
        metavar="I,J",
        help="pictures that are shown, 0 to 11 (default 0, front right)",
    )
    p.add_argument("--prompt", default="", metavar="FILE", help="what an endpoint is told (default: ours)")
    p.add_argument(
        "--again-empty", action="store_true", help="caption again what got no usable caption before"
    )


def add_filter(p: argparse.ArgumentParser) -> None:
    """Adds the flags of `filter` but for those of an endpoint."""
    p.add_argument(
        "--by",
        choices=("rules", "llm", "both"),
        default="rules",
        help="rules need no model; both: what the rules leave is shown to the model (default rules)",
    )
    p.add_argument("--prompt", default="", metavar="FILE", help="what the model is told (default: ours)")
    p.add_argument("--batch", type=int, default=20, help="texts of a request (default 20)")
    p.add_argument(
        "--asks", type=int, default=3, help="requests until each has a usable answer, at most (default 3)"
    )
    p.add_argument(
        "--again-unknown", action="store_true", help="ask again for those that never got a usable answer"
    )
    p.add_argument("--no-json-mode", action="store_true", help="for servers that know no response_format")


def add_endpoint(p: argparse.ArgumentParser) -> None:
    """Adds the flags of an OpenAI-compatible endpoint."""
    g = p.add_argument_group("endpoint")
    g.add_argument(
        "--endpoint", default="", metavar="URL", help="OpenAI-compatible base, e.g. http://localhost:8000/v1"
    )
    g.add_argument("--model", default="", metavar="NAME", help="its name there")
    _add_patience(g)


def _add_patience(g: Any) -> None:
    g.add_argument(
        "--key-env",
        default="OPENAI_API_KEY",
        metavar="NAME",
        help="environment variable of the API key (this default)",
    )
    g.add_argument(
        "--timeout", type=float, default=120.0, metavar="S", help="seconds for an answer (default 120)"
    )
    g.add_argument(
        "--attempts", type=int, default=6, metavar="N", help="tries of a request that may pass (default 6)"
    )
    g.add_argument("--parallel", type=int, default=4, metavar="N", help="requests at once (default 4)")
    g.add_argument("--price-in", type=float, default=0.0, metavar="USD", help="of a million tokens asked")
    g.add_argument("--price-out", type=float, default=0.0, metavar="USD", help="of a million tokens answered")


def add_clip(p: argparse.ArgumentParser) -> None:
    """Adds the flags of the CLIP."""
    p.add_argument(
        "--clip",
        required=True,
        metavar="NAME",
        help="openai-b32, openclip-bigg14, ...: as openshape_jax.load_clip",
    )
    p.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of its products"
    )
    p.add_argument(
        "--clip-batch", type=int, metavar="B", help="texts or pictures at once (default 8 on CPUs, else 64)"
    )


def add_bank(p: argparse.ArgumentParser) -> None:
    """Adds the flags of `retrieve`."""
    p.add_argument(
        "--bank",
        default="",
        metavar="PATH",
        help=".npz (image_features, texts), or folder (image_features.npy, texts.txt)",
    )
    p.add_argument("--k", type=int, default=5, help="texts of a shape, at most (default 5)")
    p.add_argument(
        "--min-similarity", type=float, default=0.5, metavar="C", help="least cosine (default 0.5)"
    )


def add_dataset(p: argparse.ArgumentParser) -> None:
    """Adds the flags of `embed`."""
    p.add_argument("--name", default="default", help="the data set is targets/NAME")
    p.add_argument("--images-only", action="store_true", help="embed pictures and stop")


def add_all(p: argparse.ArgumentParser) -> None:
    """Adds the flags of `all` that its stages have under other names."""
    add_captioner(p)
    p.add_argument("--caption-endpoint", default="", metavar="URL", help="caption by this vision endpoint")
    p.add_argument("--caption-model", default="", metavar="NAME", help="its model")
    p.add_argument("--by", choices=("rules", "llm", "both"), default="rules", help="how texts are filtered")
    p.add_argument("--filter-endpoint", default="", metavar="URL", help="of the language model that filters")
    p.add_argument("--filter-model", default="", metavar="NAME", help="its name there")
    p.add_argument("--filter-prompt", default="", metavar="FILE", help="what it is told (default: ours)")
    _add_patience(p)


def for_caption(args: argparse.Namespace) -> argparse.Namespace:
    """The flags of `all` as `caption` has them."""
    return argparse.Namespace(
        **{**vars(args), "endpoint": args.caption_endpoint, "model": args.caption_model}
    )


def for_filter(args: argparse.Namespace) -> argparse.Namespace:
    """The flags of `all` as `filter` has them."""
    defaults = {"batch": 20, "asks": 3, "again_unknown": False, "no_json_mode": False}
    own = {"endpoint": args.filter_endpoint, "model": args.filter_model, "prompt": args.filter_prompt}
    return argparse.Namespace(**{**vars(args), **defaults, **own})


def numbers(flag: str, text: str, count: int) -> list[int]:
    """The numbers of "0,5", each from 0 to count - 1."""
    try:
        found = [int(word) for word in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 <= n < count for n in found):
        raise ValueError(f"{flag} is {text!r}; give numbers from 0 to {count - 1}, e.g. 0,5.")
    return found


def endpoint(args: argparse.Namespace) -> Endpoint:
    """The endpoint of the flags."""
    from openshape_jax.making.endpoint import Endpoint

    for name in ("parallel", "batch", "asks"):
        if getattr(args, name, 1) < 1:
            raise ValueError(f"--{name} is {getattr(args, name)}; it must be at least 1.")
    if not args.endpoint:
        raise ValueError(
            "no endpoint is given: --endpoint URL --model NAME of an OpenAI-compatible server (`all` has "
            "them as --caption-endpoint, --caption-model, --filter-endpoint and --filter-model)."
        )
    return Endpoint(
        args.endpoint,
        args.model,
        key_env=args.key_env,
        timeout=args.timeout,
        attempts=args.attempts,
        price_in=args.price_in,
        price_out=args.price_out,
    )


def check_name(name: str) -> None:
    """Returns if targets/NAME can be a data set; raises ValueError, before any work is done."""
    from tfds_builders.targets import Targets

    Targets.own_config(name)


def prompt(path: str, ours: str) -> str:
    """The text of a prompt file, or of ours in the package's assets.

    Raises:
      ValueError: the file cannot be read, or is empty.
    """
    if path:
        try:
            text = Path(path).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"the prompt file {path} cannot be read ({error}).") from error
        if not text.strip():
            raise ValueError(f"the prompt file {path} is empty; leave it out for ours.")
        return text
    return (resources.files("openshape_jax") / "assets" / ours).read_text(encoding="utf-8")


def told(text: str) -> dict[str, str]:
    """What the record of a stage says of a prompt."""
    return {"prompt_hash": hashlib.blake2b(text.encode(), digest_size=8).hexdigest(), "prompt": text}


@contextlib.contextmanager
def counted(folder: Path, stage: str, endpoint: Endpoint) -> Iterator[Chat]:
    """A chat with an endpoint; what was asked is added to usage.json and printed, however it ends."""
    from openshape_jax.making import work
    from openshape_jax.making.endpoint import Chat

    with Chat(endpoint) as chat:
        try:
            yield chat
        finally:
            use, told = chat.usage, chat.usage.describe(endpoint)
            if use.requests:
                work.add_usage(folder, stage, endpoint.model, told)
                price = f", {told['usd']:.4f} USD" if endpoint.price_in or endpoint.price_out else ""
                print(
                    f"  asked: {use.requests} requests ({use.retries} again), {use.prompt_tokens:,} tokens "
                    f"in, {use.completion_tokens:,} out{price}"
                )
            if use.uncounted:
                print(f"  {use.uncounted} answers did not say how many tokens they were: the cost is higher")


def find_clip(args: argparse.Namespace) -> None:
    """Returns if the CLIP's weights are here or can be downloaded. Raises as `openshape_jax.load_clip`."""
    from openshape_jax.convert import clip_files

    clip_files.locate(args.clip)


def load_clip(args: argparse.Namespace) -> tuple[Clip, dict[str, Any]]:
    """(the CLIP on all devices, what identifies it); one that is asked for twice in a row is read once."""
    return _load_clip(args.clip, args.dtype, args.clip_batch)


@functools.lru_cache(maxsize=1)
def _load_clip(name: str, dtype: str, batch_size: int | None) -> tuple[Clip, dict[str, Any]]:
    from openshape_jax import clip, runtime, sharding
    from openshape_jax.making import features

    runtime.prepare()
    found = clip.load(name, dtype=dtype, batch_size=batch_size, mesh=sharding.make_mesh())
    return found, features.describe(found)
