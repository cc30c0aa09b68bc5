"""The stage `filter`: which of a shape's texts say what it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from openshape_jax.making import captions, judging, rules, work
from openshape_jax.making.judging import KEEP, REJECT, UNKNOWN, Verdict
from openshape_jax.making.shapes import Said, Shape

FILE = "filter.jsonl"
EXAMPLES = 5  # rejects that are printed


def said_of(folder: Path, every: Sequence[Shape]) -> dict[str, list[Said]]:
    """{uid: what is said of it}: its own words, and captions where that stage has run.

    Raises:
      FileNotFoundError: captioning was interrupted.
    """
    made: dict[str, list[str]] = {}
    if work.completed(folder, "caption"):
        made = {line["uid"]: line["texts"] for line in work.read_lines(folder / captions.FILE)}
    return {
        shape.uid: list(
            dict.fromkeys([*shape.said, *(Said(text, "caption") for text in made.get(shape.uid, []))])
        )
        for shape in every
    }


def choose(
    folder: Path,
    every: Sequence[Shape],
    settings: dict[str, Any],
    use_rules: bool = True,
    model: Callable[[list[str]], dict[str, Verdict]] | None = None,
) -> None:
    """Writes FOLDER/filter.jsonl: a line for every text of every shape, with its verdict; prints a summary.

    Args:
      settings: what decides the verdicts.
      use_rules: texts that the rules turn down are not shown to the model.
      model: judges what is left; None: the rules alone.

    Raises:
      EndpointError: the model's endpoint fails for good; its answers so far are kept.
    """
    with work.locked(folder, "filter"):
        said = said_of(folder, every)
        work.start(folder, "filter", settings)
        judged = list(dict.fromkeys(t.text for texts in said.values() for t in texts if not t.trusted))
        verdicts = judging.by_rules(judged) if use_rules else dict.fromkeys(judged, Verdict(KEEP))
        if model is not None:
            verdicts |= model([text for text in judged if verdicts[text].verdict == KEEP])
        lines = []
        for uid, texts in said.items():
            for text in texts:
                found = Verdict(KEEP, by="trusted") if text.trusted else verdicts[text.text]
                lines.append({"uid": uid, "source": text.source, "text": text.text, **found._asdict()})
        work.write_lines(folder / FILE, lines)
        counts = Counter(line["verdict"] for line in lines)
        reasons = Counter(line["reason"] for line in lines if line["verdict"] == REJECT)
        told = {"texts": len(lines), **{kind: counts[kind] for kind in (KEEP, REJECT, UNKNOWN)}}
        work.finish(folder, "filter", settings, {**told, "reasons": dict(reasons.most_common())})
    print(
        f"filter: {len(lines)} texts of {len(said)} shapes: {counts[KEEP]} kept, {counts[REJECT]} turned "
        f"down, {counts[UNKNOWN]} unknown (kept), in {folder / FILE}"
    )
    if reasons:
        print("  turned down: " + ", ".join(f"{reason} {count}" for reason, count in reasons.most_common()))
    turned_down = [line for line in lines if line["verdict"] == REJECT]
    for line in turned_down[:EXAMPLES]:
        print(f"  {line['reason']}: {line['text'][:60]!r}")
    for line in [line for line in lines if line["verdict"] == UNKNOWN][:1]:
        print(
            f"  unknown, e.g. {line['text'][:60]!r}: the answers of {line['by']} were of no use "
            f"({line['reason']}); --again-unknown asks again"
        )


def chosen(folder: Path, every: Sequence[Shape]) -> dict[str, list[tuple[Said, bool]]]:
    """{uid: (text, whether it is to be a target)}; without a filter's verdicts all are.

    Raises:
      FileNotFoundError: the filter was interrupted. ValueError: there are texts that it has not seen.
    """
    said = said_of(folder, every)
    if work.completed(folder, "filter") is None:
        return {uid: [(text, True) for text in texts] for uid, texts in said.items()}
    verdicts = {
        (line["uid"], line["source"], line["text"]): line["verdict"] != REJECT
        for line in work.read_lines(folder / FILE)
    }
    unseen = [
        (uid, t.text) for uid, texts in said.items() for t in texts if (uid, t.source, t.text) not in verdicts
    ]
    if unseen:
        uid, text = unseen[0]
        raise ValueError(
            f"{len(unseen)} texts are new since filter ran, first {text[:60]!r} of {uid!r}: run `openshape "
            "targets filter` again."
        )
    return {uid: [(t, verdicts[uid, t.source, t.text]) for t in texts] for uid, texts in said.items()}


def settings_of_rules() -> dict[str, Any]:
    """What identifies the rules."""
    return {"rules": rules.VERSION}
