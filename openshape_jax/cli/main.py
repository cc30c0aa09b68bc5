"""`openshape VERB ...`: parses the command line and runs the verb."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from openshape_jax.cli import classify, convert, data, info, mine, report, targets
from openshape_jax.cli import eval as eval_verb
from openshape_jax.version import __version__


def parser() -> argparse.ArgumentParser:
    """The parser of all verbs; each verb's module imports heavy parts only when it runs."""
    top = argparse.ArgumentParser(prog="openshape", description="Embeddings of 3D shapes in CLIP's space.")
    top.add_argument("--version", action="version", version=__version__)
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb in (data, targets, classify, eval_verb, mine, report, convert, info):
        verb.add_parser(verbs)
    return top


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one verb; exits with 1 and a message on bad input, 130 on Ctrl-C."""
    args = parser().parse_args(argv)
    try:
        code = args.run(args)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        code = 130
    except Exception as error:
        from openshape_jax.errors import explain

        code = explain(error)
    sys.exit(code)


if __name__ == "__main__":
    main()
