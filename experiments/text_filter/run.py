"""How well titles that say nothing are found: by the rules, by a language model, and by both.

    python experiments/text_filter/run.py
    python experiments/text_filter/run.py --endpoint http://localhost:8000/v1 --model NAME

`titles.csv` has 200 titles; every other one, from the first on, was looked at while the rules were written.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
from collections import Counter
from importlib import resources
from pathlib import Path

from openshape_jax.data import vocabulary
from openshape_jax.making import judging, rules
from openshape_jax.making.endpoint import Chat, Endpoint

HERE = Path(__file__).parent
REAL = HERE.parent.parent / "tfds_builders" / "sweethome3d" / "labels.csv"


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def measure(rows: list[dict[str, str]], reasons: dict[str, str]) -> dict[str, object]:
    """Precision and recall of turning a title down, what was missed and what was wronged."""
    rejected = [row for row in rows if reasons[row["text"]]]
    right = [row for row in rejected if row["label"] == "reject"]
    wanted = [row for row in rows if row["label"] == "reject"]
    missed = [row for row in wanted if not reasons[row["text"]]]
    same = sum(reasons[row["text"]] == row["reason"] for row in right)
    return {
        "titles": len(rows),
        "to_turn_down": len(wanted),
        "precision": round(len(right) / max(len(rejected), 1), 3),
        "recall": round(len(right) / len(wanted), 3),
        "reason_right": round(same / max(len(right), 1), 3),
        "wronged": [row["text"] for row in rejected if row["label"] == "keep"],
        "missed": [row["text"] for row in missed],
    }


def real_texts() -> dict[str, list[str]]:
    """Texts that all say what a thing is, written by others before there were rules."""
    captions = [row["caption"] for row in read(REAL) if row["caption"]]
    return {"names of the vocabulary": vocabulary.load().names, "captions of sweethome3d": captions}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--endpoint", default="", help="OpenAI-compatible base URL")
    p.add_argument("--model", default="", help="its name there")
    p.add_argument("--key-env", default="OPENAI_API_KEY", help="environment variable of the API key")
    p.add_argument("--price-in", type=float, default=0.0, help="USD for a million tokens asked")
    p.add_argument("--price-out", type=float, default=0.0, help="USD for a million tokens answered")
    p.add_argument("--out", default=str(HERE / "results.json"))
    args = p.parse_args()

    rows = read(HERE / "titles.csv")
    texts = [row["text"] for row in rows]
    ways = {"rules": {text: rules.judge(text) for text in texts}}
    usage = None
    if args.endpoint:
        endpoint = Endpoint(
            args.endpoint, args.model, args.key_env, price_in=args.price_in, price_out=args.price_out
        )
        prompt = (resources.files("openshape_jax") / "assets" / "filter_prompt.txt").read_text(
            encoding="utf-8"
        )
        with Chat(endpoint) as chat, tempfile.TemporaryDirectory() as folder:
            verdicts = judging.judge(Path(folder), texts, chat, prompt, parallel=4)
            usage = chat.usage.describe(endpoint)
        model = {text: v.reason if v.verdict == judging.REJECT else "" for text, v in verdicts.items()}
        ways[args.model] = model
        ways["both"] = {text: ways["rules"][text] or model[text] for text in texts}
    else:
        print("no --endpoint: the language model's side is not measured (see README.md)\n")

    found = {
        way: {"looked at": measure(rows[::2], reasons), "held out": measure(rows[1::2], reasons)}
        for way, reasons in ways.items()
    }
    print(
        f"{'':14} {'half':10} {'precision':>9} {'recall':>7} {'reason':>7}   of {len(rows) // 2} titles each"
    )
    for way, halves in found.items():
        for half, m in halves.items():
            print(f"{way:14.14} {half:10} {m['precision']:9.3f} {m['recall']:7.3f} {m['reason_right']:7.3f}")
            print(f"{'':14} wronged: {m['wronged']}\n{'':14} missed: {m['missed']}")
    real = {}
    for name, every in real_texts().items():
        wronged = [text for text in every if rules.judge(text)]
        real[name] = {"texts": len(every), "wronged": len(wronged), "examples": wronged[:8]}
        print(f"\n{name}: the rules turn down {len(wronged)} of {len(every)}: {wronged[:8]}")
    kinds = Counter(row["reason"] for row in rows if row["reason"])
    told = {"rules": rules.VERSION, "kinds": dict(kinds), "found": found, "real": real, "usage": usage}
    Path(args.out).write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
