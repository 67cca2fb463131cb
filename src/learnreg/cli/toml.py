"""Sections as TOML text, with their descriptions as comments."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from typing import Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

WIDTH = 116


def write(section: BaseModel, comments: bool) -> str:
    """The tables of a configuration, one per field; keys without a value become comments."""
    lines: list[str] = []
    for name, field in type(section).model_fields.items():
        given = getattr(section, name)
        if given is not None:
            lines += ["", *_table(name, given, comments)]
        elif comments:
            lines += ["", *_commented(f"# [{name}]", _notes(field))]
    return "\n".join(lines).strip() + "\n"


def value(x: object) -> str:
    """One TOML value.

    >>> value(True), value(1e-5), value('a "b"')
    ('true', '1e-05', '"a \\\\"b\\\\""')
    """
    if isinstance(x, bool):
        return str(x).lower()
    if isinstance(x, str):
        return json.dumps(x, ensure_ascii=False).replace("\x7f", "\\u007F")
    if isinstance(x, list | tuple):
        return f"[{', '.join(value(v) for v in x)}]"
    if isinstance(x, dict):
        return f"{{{', '.join(f'{value(k)} = {value(v)}' for k, v in x.items())}}}"
    return repr(x) if isinstance(x, int | float) else str(x)


def _table(name: str, section: BaseModel, comments: bool, brackets: str = "[]") -> Iterator[str]:
    """A table: plain keys first, then the tables inside it."""
    title = " ".join((type(section).__doc__ or "").split("\n\n")[0].split())
    half = len(brackets) // 2
    yield brackets[:half] + name + brackets[half:] + (_comment(title) if comments and title else "")

    inner: list[str] = []
    for key, field in type(section).model_fields.items():
        given = getattr(section, key)
        if isinstance(given, BaseModel):
            inner += ["", *_table(f"{name}.{key}", given, comments)]
        elif isinstance(given, list) and given and isinstance(given[0], BaseModel):
            for item in given:
                inner += ["", *_table(f"{name}.{key}", item, comments, "[[]]")]
        elif comments or given is not None:
            line = f"# {key} =" if given is None else f"{key} = {value(given)}"
            yield from _commented(line, _notes(field)) if comments else [line]
    yield from inner


def _notes(field: FieldInfo) -> str:
    """The description of a key, and the words that it accepts if there are only a few."""
    words = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    choice = " or ".join(value(w) for w in words) if len(words) > 1 else ""
    description = " ".join((field.description or "").split())
    return ": ".join(part for part in (choice, description) if part)


def _commented(line: str, note: str) -> Iterator[str]:
    """The comment behind the line if both fit, otherwise above it."""
    if not note:
        yield line
    elif len(line) + len(_comment(note)) <= WIDTH:
        yield line + _comment(note)
    else:
        yield from textwrap.wrap(note, WIDTH, initial_indent="# ", subsequent_indent="# ")
        yield line


def _comment(text: str) -> str:
    return f"  # {text}"
