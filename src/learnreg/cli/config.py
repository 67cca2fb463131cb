"""Typed configuration files: what a run is made of, checked before anything is computed.

Every mistake is a ConfigError that names the file, the section, the key, what was given and what would have been
accepted, with the nearest key if one was misspelt.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from ..core.errors import ConfigError
from . import toml
from .settings import (
    LEARNERS,
    REGULARIZERS,
    BudgetSection,
    Data,
    Learner,
    Physics,
    Regularizer,
    Section,
    Settings,
    Terms,
    build_regularizer,
    leaves,
)

_TAGS: dict[str, type[BaseModel]] = {**LEARNERS, **REGULARIZERS, "Sum": Terms}
_EXPECTED = {"model_type": "a table", "dict_type": "a table", "list_type": "tables [[...]]",
             "too_short": "at least one", "missing": "at least one", "string_too_short": "a text that is not empty"}
_HEAD = """\
# A run of learnreg; start it with: learnreg learn config.toml
# Every key may be left out: the values below are the defaults. Paths are relative to the folder you start in.
# Learners: {learners}. Regularizers: {regularizers}, each with its own keys.
# A sum of regularizers has one table [[regularizer.terms]] per term in the place of type and keys.

"""


class Config(Section):
    """A whole configuration; ``Config()`` is the default run."""

    data: Data = Data()
    physics: Physics = Physics()
    regularizer: Regularizer = REGULARIZERS["FoE"]()
    learner: Learner = LEARNERS["maid"]()
    budget: BudgetSection = BudgetSection.model_validate({"seconds": 120.0})
    run: Settings = Settings()

    def build_regularizer(self) -> Any:
        """The start of the regularizer."""
        return build_regularizer(self.regularizer, channels=self.data.channels, seed=self.run.seed)

    def build_learner(self) -> Any:
        """The learner."""
        return self.learner.build("learner")

    def build_budget(self) -> Any:
        """The Budget."""
        return self.budget.build("budget")

    @property
    def name(self) -> str:
        """What is learned, for example ``TV + Tikhonov``."""
        return " + ".join(part.type for part in leaves(self.regularizer))

    def to_toml(self, comments: bool = False) -> str:
        """A file that ``load_config`` reads back to the same configuration."""
        return toml.write(self, comments)


def example() -> str:
    """The default configuration as a commented file."""
    names = {"learners": _words(LEARNERS), "regularizers": _words(REGULARIZERS)}
    return _HEAD.format(**names) + Config().to_toml(comments=True)


def load_config(path: str | Path, changes: Mapping[tuple[str, str], Any] | None = None) -> Config:
    """Read and check a configuration file.

    Args:
        path: a TOML file.
        changes: values that replace those of the file, by (section, key); None leaves the file's value.

    Raises:
        ConfigError: no such file, no valid TOML, an unknown section or key, a value of another type or out of range.
    """
    tables = _read(Path(path))
    for (section, key), given in (changes or {}).items():
        if given is not None and isinstance(tables.setdefault(section, {}), dict):
            tables[section][key] = given
    try:
        config = Config.model_validate(tables)
    except ValidationError as error:
        first, *more = error.errors()
        raise _translate(str(path), first, len(more)) from None
    try:
        for build in (config.build_regularizer, config.build_learner, config.build_budget):
            build()
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.what}", given=error.given, expected=error.expected,
                          remedy=error.remedy) from error
    return config


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(str(path), given=error.strerror or error, expected="a configuration file in TOML",
                          remedy="Write one with: learnreg learn --example > config.toml") from error
    except ValueError as error:
        raise ConfigError(str(path), given=f"no valid TOML ({error})", expected="tables of key = value",
                          remedy="Compare with: learnreg learn --example") from error


def _translate(path: str, error: Any, more: int) -> ConfigError:
    """A pydantic error in the words of this library."""
    section, key, model = _locate(error["loc"])
    kind, given, remedy = error["type"], error["input"], ""
    where = f"[{section}] {key}".strip() if section else f"[{key}]"
    shown = "nothing" if kind == "missing" else toml.value(given)
    if kind == "extra_forbidden":
        known = list(model.model_fields)
        shown, expected = f"an unknown {'key' if section else 'section'}", _words(known)
        remedy = _nearest(str(key), known) or "Remove it."
    elif kind.startswith("union_tag"):
        tags = list(LEARNERS) if key == "learner" else [*REGULARIZERS, *(["Sum"] if key else [])]
        tag = given.get("type") if isinstance(given, dict) else given
        where, shown, expected = f"{where} type", "nothing" if tag is None else toml.value(tag), _words(tags)
        remedy = (_nearest(tag, tags) if isinstance(tag, str) else "") or f"For example type = {toml.value(tags[0])}."
    else:
        expected = _EXPECTED.get(kind) or error["msg"].removeprefix("Input should be ")
        expected = f"a number {expected}" if kind.startswith(("greater", "less")) else expected
    others = f" ({more} more mistake{'s' if more > 1 else ''} in this file.)" if more else ""
    return ConfigError(f"{path}: {where}", given=shown, expected=expected, remedy=(remedy + others).strip())


def _locate(place: tuple[int | str, ...]) -> tuple[str, str, type[BaseModel]]:
    """(section, key, model of the section) of a pydantic error; the tags of unions are no part of a file."""
    model: type[BaseModel] = Config
    path: list[str] = []
    for part in place:
        inner = model.model_fields[part].annotation if isinstance(part, str) and part in model.model_fields else None
        if part in _TAGS and part != place[-1]:
            model = _TAGS[str(part)]
        elif isinstance(part, int):
            path[-1] += f"({part + 1})"
        else:
            path.append(str(part))
            model = inner if isinstance(inner, type) and issubclass(inner, BaseModel) else model
    key = "" if isinstance(place[-1], int) else path.pop()
    return ".".join(path), key, model


def _nearest(word: str, known: list[str]) -> str:
    """A question with the most similar known word, or nothing."""
    lower = {k.lower(): k for k in known}
    found = get_close_matches(word.lower(), lower, n=1, cutoff=0.5)
    return f"Did you mean {lower[found[0]]!r}?" if found else ""


def _words(names: Any) -> str:
    return f"one of {', '.join(names)}"
