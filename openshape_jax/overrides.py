"""Typed configurations as nested dicts, and the reading of `a.b=value` overrides; knows no field by name."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

C = TypeVar("C")


class ConfigError(ValueError):
    """A field that does not exist or a value of the wrong type; the message says what would fit."""


def split_argv(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """(argv without config overrides, overrides "path=value") from --config.path=value (or a space)."""
    rest, overrides, arguments = [argv[0]], [], iter(argv[1:])
    for argument in arguments:
        body = argument.lstrip("-")
        if argument.startswith("-") and body.startswith("config."):
            body = body.removeprefix("config.")
            overrides.append(body if "=" in body else f"{body}={next(arguments, '')}")
        else:
            rest.append(argument)
    return rest, overrides


def to_dict(config: Any) -> dict[str, Any]:
    """The config as nested dicts of JSON types."""
    return dataclasses.asdict(
        config, dict_factory=lambda kv: {k: list(v) if isinstance(v, tuple) else v for k, v in kv}
    )


def from_dict(values: dict[str, Any], cls: type) -> Any:
    """The `cls` that `to_dict` wrote.

    Raises:
      ConfigError: an unknown field or a wrong type.
    """
    config = cls()
    for name, value in values.items():
        _require(config, name, name, cls)
        current = getattr(config, name)
        if dataclasses.is_dataclass(current) and isinstance(value, dict):
            setattr(config, name, from_dict(value, type(current)))
        else:
            setattr(
                config, name, _coerce(cls, name, tuple(value) if isinstance(value, list) else value, name)
            )
    return config


def apply_overrides(config: C, overrides: Sequence[str]) -> C:
    """The config with `path=value` overrides set, e.g. "optim.learning_rate=3e-4".

    Tuples are given as comma-separated values: "data.datasets=primitives,sweethome3d".

    Raises:
      ConfigError: an unknown field (with close matches) or a value that does not parse.
    """
    for override in overrides:
        path, sep, text = override.partition("=")
        if not sep:
            raise ConfigError(f"--config.{path} has no value; write --config.{path}=VALUE.")
        *parents, leaf = path.split(".")
        target: Any = config
        for depth, parent in enumerate(parents):
            _require(target, parent, ".".join(parents[: depth + 1]), type(config))
            target = getattr(target, parent)
        _require(target, leaf, path, type(config))
        if dataclasses.is_dataclass(getattr(target, leaf)):
            names = ", ".join(f"{path}.{f.name}" for f in dataclasses.fields(getattr(target, leaf)))
            raise ConfigError(f"--config.{path} is a group of fields; set one of: {names}.")
        setattr(target, leaf, _coerce(type(target), leaf, text, path))
    return config


def _require(target: Any, name: str, path: str, root: type) -> None:
    known = [f.name for f in dataclasses.fields(target)] if dataclasses.is_dataclass(target) else []
    if name in known:
        return
    prefix = path[: len(path) - len(name)]
    everywhere = _all_paths(root)
    close = difflib.get_close_matches(name, known, 3, 0.6) or [
        p
        for p in everywhere
        if p.rpartition(".")[2] in difflib.get_close_matches(name, [q.rpartition(".")[2] for q in everywhere])
    ]
    hint = " or ".join(c if "." in c else prefix + c for c in close[:3])
    fields = f"Did you mean {hint}?" if hint else f"Fields: {', '.join(prefix + k for k in known)}."
    raise ConfigError(f"the config has no field {path!r}. {fields}")


def _all_paths(cls: Any, prefix: str = "") -> list[str]:
    paths = []
    hints = typing.get_type_hints(cls)
    for f in dataclasses.fields(cls):
        kind = hints[f.name]
        paths += (
            _all_paths(kind, f"{prefix}{f.name}.") if dataclasses.is_dataclass(kind) else [prefix + f.name]
        )
    return paths


def _coerce(cls: type, name: str, value: Any, path: str) -> Any:
    kind = typing.get_type_hints(cls)[name]
    try:
        return _parse(kind, value)
    except (ValueError, TypeError):
        wanted = (
            kind.__name__
            if isinstance(kind, type) and not isinstance(kind, types.GenericAlias)
            else str(kind)
        )
        raise ConfigError(f"{path} is {value!r}, which is not of type {wanted}.") from None


def _parse(kind: Any, value: Any) -> Any:
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        parts = [p for p in value.strip("()[]").split(",") if p.strip()] if isinstance(value, str) else value
        return tuple(_parse(item, p.strip(" '\"") if isinstance(p, str) else p) for p in parts)
    if kind is bool:
        named = {"true": True, "1": True, "false": False, "0": False, True: True, False: False}
        return (
            named[value.lower() if isinstance(value, str) else value]
            if value in named or (isinstance(value, str) and value.lower() in named)
            else _fail()
        )
    if kind is int:
        if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
            _fail()
        if isinstance(value, str):
            return int(value.replace("_", ""))
        return int(value)
    if kind is float:
        return _fail() if isinstance(value, bool) else float(value)
    return value if isinstance(value, str) else _fail()


def _fail() -> typing.NoReturn:
    raise ValueError


def difference(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Lines "path: old -> new" for every field that differs between two `to_dict` results."""
    lines = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key, "(absent)"), new.get(key, "(absent)")
        if isinstance(a, dict) and isinstance(b, dict):
            lines += difference(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {a} -> {b}")
    return lines
