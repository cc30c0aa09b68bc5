"""TFDS builders of this project, one folder a data set; `openshape data build NAME` builds one.

This file imports nothing heavy: importing a builder imports tensorflow_datasets.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any


class SourceNotFound(FileNotFoundError):
    """No source of a data set's raw files can be reached; the message lists what was tried and what to do."""


def names() -> list[str]:
    """The data sets that can be built, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.ispkg)


def check_name(name: str) -> None:
    """Returns if there is a builder called `name`.

    Raises:
      ValueError: there is none; the message lists those there are.
    """
    if name not in names():
        raise ValueError(f"there is no builder for {name!r}; known: {', '.join(names())}.")


def builder_class(name: str) -> Any:
    """The TFDS builder class of the data set `name`.

    Raises:
      ValueError: there is no such builder; the message lists those there are.
    """
    check_name(name)
    import tensorflow_datasets as tfds

    module = importlib.import_module(f"{__name__}.{name}")
    for value in vars(module).values():
        if isinstance(value, type) and issubclass(value, tfds.core.DatasetBuilder) and value.name == name:
            return value
    raise ValueError(
        f"{module.__name__} exports no TFDS builder called {name!r}; its __init__.py must import it."
    )
