"""Mistakes in configuration files, in the words of this library: where, what was given, what would
be accepted.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from ..core.errors import ConfigError
from . import toml
from .sections import Built
from .settings import LEARNERS, REGULARIZERS, SADDLES, STRATEGIES

_EXPECTED = {
    "model_type": "a table",
    "dict_type": "a table",
    "list_type": "tables [[...]]",
    "too_short": "at least one",
    "missing": "at least one",
    "string_too_short": "a text that is not empty",
}
_CHOICES = {"learner": LEARNERS, "learners": LEARNERS, "hypergradient": STRATEGIES}


def read_tables(path: Path, command: str) -> dict[str, Any]:
    """The content of a TOML file.

    Args:
        command: that can write an example of such a file.

    Raises:
        ConfigError: no such file, or no valid TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            str(path),
            given=error.strerror or error,
            expected="a configuration file in TOML",
            remedy=f"Write one with: learnreg {command} --example > config.toml",
        ) from error
    except ValueError as error:
        raise ConfigError(
            str(path),
            given=f"no valid TOML ({error})",
            expected="tables of key = value",
            remedy=f"Compare with: learnreg {command} --example",
        ) from error


def _words(message: str) -> str:
    """What pydantic, or a check of ours, says it expected."""
    return message.removeprefix("Input should be ").removeprefix("Value error, ")


def translated(
    path: str, errors: ValidationError, root: type[BaseModel], tags: Mapping[str, type[BaseModel]]
) -> ConfigError:
    """The first of the errors that pydantic found, and how many more there are.

    Args:
        path: the file, as the message names it.
        errors: what ``root.model_validate`` raised.
        root: the model of the whole file.
        tags: the sections that a key ``type`` chooses.
    """
    error, *more = errors.errors()
    section, key, model = _locate(error["loc"], root, tags)
    kind, given, remedy = error["type"], error["input"], ""
    where = f"[{section}] {key}".strip() if section else f"[{key}]"
    field = model.model_fields.get(str(key))
    shown = "nothing" if kind == "missing" else toml.value(given)
    if kind == "extra_forbidden":
        known = list(model.model_fields)
        shown, expected = f"an unknown {'key' if section else 'section'}", one_of_words(known)
        remedy = nearest(str(key), known) or "Remove it."
        if issubclass(model, Built) and key in model.refused:
            shown, expected, remedy = toml.value(given), model.refused[key], "Remove it."
    elif kind.startswith("union_tag"):
        choices = _CHOICES.get(str(key) or section.partition("(")[0])
        kinds = list(choices) if choices else [*REGULARIZERS, *(["Sum"] if key else [])]
        tag = given.get("type") if isinstance(given, dict) else given
        term = section.endswith(")") and section.rpartition("(")[0].endswith("terms")
        kinds = [k for k in kinds if k not in SADDLES] if term else kinds
        where, shown, expected = (
            f"{where} type",
            "nothing" if tag is None else toml.value(tag),
            one_of_words(kinds),
        )
        remedy = (
            nearest(tag, kinds) if isinstance(tag, str) else ""
        ) or f"For example type = {toml.value(kinds[0])}."
        if term and tag in SADDLES:
            remedy = f"{tag} is a saddle point, which cannot be a term of a sum."
    else:
        described = field.description if kind == "missing" and field is not None else None
        expected = described or _EXPECTED.get(kind) or _words(error["msg"])
        expected = f"a number {expected}" if kind.startswith(("greater", "less")) else expected
    others = (
        f" ({len(more)} more mistake{'s' if len(more) > 1 else ''} in this file.)" if more else ""
    )
    return ConfigError(
        f"{path}: {where}", given=shown, expected=expected, remedy=(remedy + others).strip()
    )


def _locate(
    place: tuple[int | str, ...], root: type[BaseModel], tags: Mapping[str, type[BaseModel]]
) -> tuple[str, str, type[BaseModel]]:
    """(section, key, model of the section) of a pydantic error; the tags of unions are no part of a
    file.
    """
    model, path = root, list[str]()
    for part in place:
        field = model.model_fields.get(part) if isinstance(part, str) else None
        inner = field.annotation if field else None
        if field is None and part in tags and part != place[-1]:
            model = tags[str(part)]
        elif isinstance(part, int):
            path[-1] += f"({part + 1})"
        else:
            path.append(str(part))
            model = inner if isinstance(inner, type) and issubclass(inner, BaseModel) else model
    key = "" if isinstance(place[-1], int) else path.pop()
    return ".".join(path), key, model


def nearest(word: str, known: list[str]) -> str:
    """A question with the most similar known word, or nothing."""
    lower = {k.lower(): k for k in known}
    found = get_close_matches(word.lower(), lower, n=1, cutoff=0.5)
    return f"Did you mean {lower[found[0]]!r}?" if found else ""


def one_of_words(names: Iterable[str]) -> str:
    """``one of a, b, c``."""
    return f"one of {', '.join(names)}"
