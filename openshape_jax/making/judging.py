"""A language model's judgement of texts: batches, checked answers, each distinct text paid for once."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from openshape_jax.making import rules, work
from openshape_jax.making.endpoint import Chat, in_parallel

CACHE = "judged.jsonl"  # in the work folder: answers by text, model and prompt; never thrown away
KEEP, REJECT, UNKNOWN = "keep", "reject", "unknown"
LONGEST = 500  # characters of a text that are shown to the model


class BadAnswer(ValueError):
    """An answer that is not what the prompt asked for; says what is wrong with it."""


class Verdict(NamedTuple):
    """What was found of a text."""

    verdict: str  # KEEP, REJECT or UNKNOWN: the model never answered as asked
    reason: str = (
        ""  # of a reject: one of rules.REASONS, or the model's own word; else what was wrong with its answers
    )
    by: str = "rules"  # or the model's name


def key_of(text: str, model: str, prompt: str) -> str:
    """The key of a judgement in the cache."""
    return work.digest([text, model, prompt])


def read_answer(answer: str, count: int) -> tuple[dict[int, Verdict], str]:
    """({id: verdict} of what is right in an answer about `count` texts, what is wrong or "").

    Args:
      answer: a JSON object {"results": [{"id", "keep", "reason"}]}; code fences around it are forgiven.
    """
    fenced = re.search(r"```(?:json)?\s*(.*?)```", answer, re.S)
    try:
        value = json.loads(fenced[1] if fenced else answer)
    except ValueError as error:
        return {}, f"it is no JSON ({error})"
    results = value.get("results") if isinstance(value, dict) else value
    if not isinstance(results, list):
        return {}, 'it has no list "results"'
    found: dict[int, Verdict] = {}
    wrong, twice = [], set()
    for entry in results:
        number = entry.get("id") if isinstance(entry, dict) else None
        keep = entry.get("keep") if isinstance(entry, dict) else None
        reason = entry.get("reason", "") if isinstance(entry, dict) else None
        if type(number) is not int or type(keep) is not bool or not isinstance(reason, str | None):
            wrong.append(
                f"the entry {json.dumps(entry)[:80]} has not an id, keep true or false, and a reason"
            )
        elif not 0 <= number < count:
            wrong.append(f"there is no text {number}")
        elif number in found:
            twice.add(number)
        else:
            reason = (reason or "").strip().lower().replace(" ", "_")[:40]
            found[number] = Verdict(KEEP) if keep else Verdict(REJECT, reason or "not_said")
    for number in twice:  # which of the two is meant?
        del found[number]
        wrong.append(f"the text {number} is there twice")
    missing = [i for i in range(count) if i not in found]
    if missing:
        wrong.append(f"there is no usable entry for {', '.join(map(str, missing[:10]))}")
    return found, "; ".join(wrong[:3])


def judge_batch(
    chat: Chat, prompt: str, texts: Sequence[str], asks: int, json_mode: bool = True
) -> list[Verdict]:
    """The verdicts of some texts; what is missing or wrong in an answer is asked for again.

    Args:
      asks: requests at most.

    Raises:
      EndpointError: the endpoint fails for good.
    """
    verdicts = [Verdict(UNKNOWN, by=chat.endpoint.model)] * len(texts)
    left, complaint = list(range(len(texts))), ""
    form = {"response_format": {"type": "json_object"}} if json_mode else {}
    for _ in range(asks):
        listed = [{"id": i, "text": texts[place][:LONGEST]} for i, place in enumerate(left)]
        asked = json.dumps(listed, ensure_ascii=False)
        if complaint:
            asked += f"\n\nYour last answer was wrong: {complaint}. Answer again, in the form asked for."
        messages = [{"role": "system", "content": prompt}, {"role": "user", "content": asked}]
        answer = chat.ask(messages, temperature=0, **form)
        found, complaint = read_answer(answer.text, len(left))
        for number, verdict in found.items():
            verdicts[left[number]] = verdict._replace(by=chat.endpoint.model)
        left = [place for number, place in enumerate(left) if number not in found]
        if not left:
            break
    for place in left:
        verdicts[place] = verdicts[place]._replace(reason=complaint[:200])
    return verdicts


def judge(
    folder: Path,
    texts: Iterable[str],
    chat: Chat,
    prompt: str,
    *,
    batch: int = 20,
    asks: int = 3,
    parallel: int = 1,
    again_unknown: bool = False,
    json_mode: bool = True,
) -> dict[str, Verdict]:
    """{text: verdict} of each distinct text, from FOLDER/judged.jsonl where it is there.

    Args:
      prompt: what the model is told; see assets/filter_prompt.txt.
      batch: texts in a request. asks: requests at most until each has a usable answer.
      parallel: requests at once.
      again_unknown: ask again for those that never got a usable answer.
      json_mode: ask the server for JSON (response_format), which few refuse.

    Raises:
      EndpointError: the endpoint fails for good; what is done is kept.
    """
    model = chat.endpoint.model
    keys = {text: key_of(text, model, prompt) for text in dict.fromkeys(texts)}
    with work.Journal(folder / CACHE) as journal:
        left = [
            text
            for text, key in keys.items()
            if key not in journal.kept or (again_unknown and journal.kept[key]["verdict"] == UNKNOWN)
        ]
        batches = [left[i : i + batch] for i in range(0, len(left), batch)]
        with tqdm(total=len(keys), initial=len(keys) - len(left), unit="text", desc="judge") as bar:
            for mine, verdicts in in_parallel(
                batches, lambda part: judge_batch(chat, prompt, part, asks, json_mode), parallel
            ):
                for text, verdict in zip(mine, verdicts, strict=True):
                    line: dict[str, Any] = {"key": keys[text], "text": text, **verdict._asdict()}
                    journal.add(line)
                bar.update(len(mine))
        return {
            text: Verdict(*(journal.kept[key][field] for field in Verdict._fields))
            for text, key in keys.items()
        }


def by_rules(texts: Iterable[str]) -> dict[str, Verdict]:
    """{text: verdict} by the rules."""
    return {
        text: Verdict(REJECT, reason) if (reason := rules.judge(text)) else Verdict(KEEP) for text in texts
    }
