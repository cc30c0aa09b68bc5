"""The last sections of the report's page: configuration, versions, machine, and who made the models."""

from __future__ import annotations

import html
import os
import platform
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from openshape_jax.evals.report import Credits

PACKAGES = ("openshape_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain",
            "tensorflow-datasets", "numpy")  # fmt: skip
LICENCES = {
    "CC0-1.0": "https://creativecommons.org/publicdomain/zero/1.0/",
    "CC-BY-3.0": "https://creativecommons.org/licenses/by/3.0/",
    "CC-BY-3.0-US": "https://creativecommons.org/licenses/by/3.0/us/",
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/",
}
OURS = "openshape_jax"  # the creator in data sets that this package makes; nobody to thank
esc = html.escape


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in values.items():
        path = f"{prefix}{key}"
        pairs += _flat(value, f"{path}.") if isinstance(value, Mapping) and value else [(path, value)]
    return pairs


def configuration(config: Mapping[str, Any]) -> str:
    """Every field of the config, the packages and the machine."""
    groups: dict[str, list[tuple[str, Any]]] = {}
    for path, value in _flat(config):
        groups.setdefault(path.partition(".")[0] if "." in path else "run", []).append((path, value))
    tables = "".join(
        f"<table><caption>{esc(group)}</caption>"
        + "".join(f"<tr><td><code>{esc(k)}</code></td><td>{esc(_plain(v))}</td></tr>" for k, v in rows)
        + "</table>"
        for group, rows in groups.items()
    )
    versions = "".join(f"<li>{esc(k)} <b>{esc(v)}</b></li>" for k, v in _versions())
    count = sum(len(rows) for rows in groups.values())
    return (
        "<p>What was asked for. The same values train the same model again; any of them can be changed on the "
        "command line as <code>--config.NAME=VALUE</code>.</p>"
        f'<details open><summary>All {count} fields of the config</summary><div class="config">{tables}</div>'
        f'</details><h3>Versions and machine <small>where this page was written</small></h3><ul class="columns">'
        f"{versions}</ul>"
    )


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_plain(v) for v in value) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "“”" if value == "" else str(value)


def _versions() -> list[tuple[str, str]]:
    found = [("Python", platform.python_version())]
    for name in PACKAGES:
        try:
            found.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            found.append((name, "not installed as a package"))
    cpuinfo = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else []
    system = f"{platform.system()} {platform.machine()}"
    found += [
        ("System", system),
        ("Processor", f"{os.cpu_count()} cores, {models[0] if models else platform.processor()}"),
    ]
    try:
        import jax

        devices = jax.devices()
    except (ImportError, RuntimeError) as error:
        return [*found, ("Accelerator", f"unknown ({error})")]
    return [*found, ("JAX device", f"{len(devices)} of kind {devices[0].device_kind}")]


def attribution(credits: Credits) -> str:
    """Every creator but ourselves with licence and number of models, and the source of the text vectors."""
    notice = " ".join((resources.files("openshape_jax") / "assets" / "NOTICE").read_text().split())
    words = f"<h3>Words</h3><p>{esc(notice)}</p>"
    ours = [entry for entry in credits.entries if entry.get("creator") == OURS]
    theirs = [entry for entry in credits.entries if entry.get("creator") != OURS]
    own = _own(ours) if ours else ""
    if not theirs:
        gap = credits.problem or ("" if ours else "The data sets name no creators.")
        return own + (f'<p class="missing">{esc(gap)}</p>' if gap else "") + words
    groups: dict[tuple[str, ...], int] = {}
    for entry in theirs:
        key = tuple(str(entry.get(k) or "not named") for k in ("creator", "license", "library", "dataset"))
        groups[key] = groups.get(key, 0) + int(entry.get("count") or 0)
    rows = sorted(groups.items(), key=lambda item: (-item[1], item[0][0].lower()))
    licences = Counter()
    for (_, licence, _, _), count in rows:
        licences[licence] += count
    summary = ", ".join(f"{n:,} under {_licence(k)}" for k, n in licences.most_common())
    table = "".join(
        f'<tr><td>{esc(c)}</td><td class="n">{n:,}</td><td>{esc(lic)}</td><td>{esc(lib)}</td><td>{esc(d)}</td></tr>'
        for (c, lic, lib, d), n in rows
    )
    makers = len({key[0] for key in groups})
    return (
        f"<p>The models are the work of {makers:,} creators, with thanks: {summary}. For this run each was "
        "turned into a cloud of coloured points, centred and scaled. The icons are the catalogues' own.</p>"
        + own
        + (f'<p class="missing">{esc(credits.problem)}</p>' if credits.problem else "")
        + '<h3>Models</h3><div class="credits" tabindex="0" role="region" aria-label="creators"><table><thead><tr>'
        '<th>creator</th><th class="n">models</th><th>licence</th><th>library</th><th>data set</th></tr></thead>'
        f"<tbody>{table}</tbody></table></div>{words}"
    )


def _own(entries: Sequence[Mapping[str, Any]]) -> str:
    """One sentence on the shapes that this package made itself."""
    count = sum(int(entry.get("count") or 0) for entry in entries)
    names = ", ".join(f"<code>{esc(str(entry['dataset']))}</code>" for entry in entries)
    licences = ", ".join(
        sorted({_licence(str(entry.get("license") or "no licence named")) for entry in entries})
    )
    return f"<p>The {count:,} synthetic shapes of {names} are this package's own ({licences}).</p>"


def _licence(name: str) -> str:
    url = LICENCES.get(name)
    return f'<a href="{url}" rel="noreferrer">{esc(name)}</a>' if url else esc(name)
