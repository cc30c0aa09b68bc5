"""The frame of every report page: style, heading, navigation."""

from __future__ import annotations

import html
from collections.abc import Sequence
from importlib import resources

esc = html.escape


def page(
    name: str, kicker: str, about: str, facts: str, sections: Sequence[tuple[str, str]], warning: str = ""
) -> str:
    """A page of this look: title, introduction, navigation, and (title, HTML) sections.

    Args:
      facts, warning: HTML; the other strings are escaped.
    """
    body = "".join(f'<section id="{t.lower()}"><h2>{t}</h2>{content}</section>' for t, content in sections)
    nav = "".join(f'<a href="#{t.lower()}">{t}</a>' for t, _ in sections)
    css = (resources.files("openshape_jax") / "assets" / "report.css").read_text()
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{esc(name)}: openshape_jax</title><style>{css}</style></head>'
        f"<body><header><div><p class=kicker>openshape_jax · {esc(kicker)}</p><h1>{esc(name)}</h1>"
        f"<p>{esc(about)}</p><p class=facts>{facts}</p></div></header>"
        f'<nav aria-label="sections"><div>{nav}</div></nav><main>{warning}{body}</main>'
        "</body></html>\n"
    )
