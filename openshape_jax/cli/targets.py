"""`openshape targets STAGE --work DIR ...`: pictures, captions, texts and features of raw shapes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from openshape_jax.cli import targets_flags as flags

if TYPE_CHECKING:
    from openshape_jax.making.endpoint import Chat
    from openshape_jax.making.shapes import Shape, Source


class Opened(NamedTuple):
    """A work folder and the shapes that it is for."""

    folder: Path
    source: Source
    every: list[Shape]


# What checks a stage's flags, files and names, before anything is done, and returns what runs the stage.
Plan = Callable[[argparse.Namespace, Opened], Callable[[], None]]


def add_parser(verbs: argparse._SubParsersAction) -> None:
    """Adds the verb with its stages."""
    p = verbs.add_parser(
        "targets",
        help="make training targets from raw shapes: pictures, captions, texts, CLIP features",
        description="Makes a training set from shapes that have nothing but their form, in stages that go on "
        "where they were interrupted. docs/targets.md shows all of them on one's own folder.",
    )
    stages = p.add_subparsers(dest="stage", required=True, metavar="STAGE")
    for name, (about, groups, plan) in STAGES.items():
        stage = stages.add_parser(name, help=about, description=about[0].upper() + about[1:] + ".")
        flags.add_shapes(stage)
        for add in groups:
            add(stage)
        stage.set_defaults(run=_interruptible(plan), stage=name)


def _open(args: argparse.Namespace) -> Opened:
    from openshape_jax.making import shapes

    folder = Path(args.work).expanduser().resolve()
    asked = None
    if args.source or args.data:
        asked = shapes.Source(
            args.source,
            args.captions,
            args.up,
            args.class_from,
            args.data,
            args.data_dir if args.data else "",
        )
    elif args.captions or args.up or args.class_from:
        raise ValueError("--captions, --up and --class-from belong to --source DIR: give it, too.")
    source = shapes.open_source(folder, asked)
    every = shapes.read(source)
    shapes.by_uid(every)
    shapes.note_source(folder, source)  # not before: a misspelt path is no bond
    return Opened(folder, source, every)


def _interruptible(plan: Plan) -> Callable[[argparse.Namespace], int]:
    def guarded(args: argparse.Namespace) -> int:
        try:
            plan(args, _open(args))()
        except KeyboardInterrupt:
            print(f"\ninterrupted: the same command goes on with what is in {args.work}", file=sys.stderr)
            return 130
        return 0

    return guarded


def render(args: argparse.Namespace, opened: Opened) -> Callable[[], None]:
    """Draws what is not drawn. Raises as `making.pictures.render`."""
    from openshape_jax.making import pictures

    if not 32 <= args.size <= 4096:
        raise ValueError(f"--size is {args.size}; it must lie in 32 to 4096 pixels.")
    if args.jobs < 0:
        raise ValueError(f"--jobs is {args.jobs}; give the number of processes, or 0 for one a core.")
    return lambda: pictures.render(*opened, args.size, args.jobs)


def caption(args: argparse.Namespace, opened: Opened) -> Callable[[], None]:
    """Captions what has no caption. Raises as `making.captions.caption`."""
    from openshape_jax.data import files
    from openshape_jax.making import cameras, captions

    folder, source, every = opened
    ways = [bool(args.endpoint), bool(args.blip), bool(args.captions_from)]
    if sum(ways) != 1:
        raise ValueError("give one captioner: --endpoint URL, --blip MODEL or --captions-from FILE.")
    views = flags.numbers("--views", args.views, len(cameras.CAMERAS))
    if args.captions_from:
        path = Path(args.captions_from).expanduser()
        said = captions.by_file(path, [shape.uid for shape in every], source.folder or source.data)
        settings = {"captioner": "file", "file": str(path), "digest": files.digest_of_file(path)}
        return lambda: captions.caption(folder, every, lambda: said, settings, views)
    if args.blip:
        settings = {"captioner": "transformers", "model": args.blip, "max_new_tokens": captions.BLIP_TOKENS}
        return lambda: captions.caption(
            folder,
            every,
            lambda: captions.by_blip(args.blip),
            settings,
            views,
            again_empty=args.again_empty,
        )
    endpoint, prompt = flags.endpoint(args), flags.prompt(args.prompt, "caption_prompt.txt")
    settings = {"captioner": "endpoint", "model": endpoint.model, **flags.told(prompt)}

    def run() -> None:
        with flags.counted(folder, "caption", endpoint) as chat:
            ask = captions.by_endpoint(chat, prompt)
            captions.caption(folder, every, lambda: ask, settings, views, args.parallel, args.again_empty)

    return run


def choose(args: argparse.Namespace, opened: Opened) -> Callable[[], None]:
    """Judges what is not judged. Raises as `making.texts.choose`."""
    from openshape_jax.making import judging, texts

    folder, _, every = opened
    settings: dict[str, Any] = texts.settings_of_rules() if args.by != "llm" else {}
    if args.by == "rules":
        if args.endpoint:
            raise ValueError("--endpoint is given, but --by is rules: say --by both or --by llm.")
        return lambda: texts.choose(folder, every, settings)
    endpoint, prompt = flags.endpoint(args), flags.prompt(args.prompt, "filter_prompt.txt")
    settings |= {"model": endpoint.model, **flags.told(prompt)}

    def judge(chat: Chat, left: list[str]) -> dict[str, judging.Verdict]:
        return judging.judge(
            folder,
            left,
            chat,
            prompt,
            batch=args.batch,
            asks=args.asks,
            parallel=args.parallel,
            again_unknown=args.again_unknown,
            json_mode=not args.no_json_mode,
        )

    def run() -> None:
        with flags.counted(folder, "filter", endpoint) as chat:
            texts.choose(folder, every, settings, args.by == "both", lambda left: judge(chat, left))

    return run


def retrieve(args: argparse.Namespace, opened: Opened) -> Callable[[], None]:
    """Embeds pictures, then looks for texts of a bank. Raises as `making.retrieve.retrieve`."""
    from openshape_jax.making import embed, retrieve

    if not args.bank:
        raise ValueError("--bank PATH is missing: pairs of an image feature and a text (docs/targets.md).")
    if args.k < 1 or not -1 <= args.min_similarity <= 1:
        raise ValueError(
            f"--k is {args.k} and --min-similarity {args.min_similarity}; they must be at least 1, and in "
            "-1 to 1."
        )
    folder, _, every = opened
    bank = retrieve.read_bank(Path(args.bank).expanduser())
    flags.find_clip(args)

    def run() -> None:
        clip, about = flags.load_clip(args)
        shown = embed.image_pass(folder, every, clip, about)
        retrieve.retrieve(folder, every, shown, about, bank, args.k, args.min_similarity)

    return run


def embed(args: argparse.Namespace, opened: Opened) -> Callable[[], None]:
    """Embeds pictures and texts and builds the data set. Raises as `making.embed.embed`."""
    from openshape_jax.making import embed as stage

    flags.check_name(args.name)
    folder, _, every = opened
    flags.find_clip(args)

    def run() -> None:
        clip, about = flags.load_clip(args)
        if args.images_only:
            stage.image_pass(folder, every, clip, about)
        else:
            stage.embed(folder, every, clip, about, args.name, args.data_dir, args.jobs)

    return run


def everything(args: argparse.Namespace, opened: Opened) -> Callable[[], None]:
    """All stages that the flags give what they need, one after the other; all flags are checked first."""
    plans = [render(args, opened)]
    if args.captions_from or args.blip or args.caption_endpoint:
        plans.append(caption(flags.for_caption(args), opened))
    else:
        plans.append(lambda: print("caption: left out (no --caption-endpoint, --blip or --captions-from)"))
    plans.append(choose(flags.for_filter(args), opened))
    plans.append(retrieve(args, opened) if args.bank else lambda: print("retrieve: left out (no --bank)"))
    plans.append(embed(args, opened))

    def run() -> None:
        for plan in plans:
            plan()

    return run


STAGES: dict[str, tuple[str, tuple[Callable[[argparse.ArgumentParser], None], ...], Plan]] = {
    "render": ("twelve pictures of every shape", (flags.add_render,), render),
    "caption": (
        "what a captioner says of the pictures",
        (flags.add_captioner, flags.add_endpoint),
        caption,
    ),
    "filter": (
        "which of a shape's texts say what it is",
        (flags.add_filter, flags.add_endpoint),
        choose,
    ),
    "retrieve": (
        "texts of a bank's pictures that look alike",
        (flags.add_clip, flags.add_bank),
        retrieve,
    ),
    "embed": (
        "CLIP features of pictures and texts, and the data set",
        (flags.add_clip, flags.add_dataset),
        embed,
    ),
    "all": (
        "all stages in a row",
        (flags.add_render, flags.add_all, flags.add_clip, flags.add_bank, flags.add_dataset),
        everything,
    ),
}
