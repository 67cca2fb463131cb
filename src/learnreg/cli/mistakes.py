"""Mistakes in configuration files, in the words of this library: where, what was given, what would
be accepted.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, TypeAlias, TypeVar, cast

from pydantic import BaseModel, ValidationError

from ..core.errors import ConfigError
from . import toml
from .measured_section import DATA
from .physics_section import FIDELITIES, NOISES, PHYSICS
from .sections import Built
from .settings import LEARNERS, REGULARIZERS, SADDLES, STRATEGIES
from .tables import read_tables, unusable_texts

__all__ = [
    "Mistakes",
    "gathered",
    "nearest",
    "one_of_words",
    "read_tables",
    "translated",
]

LONGEST = 120
"""Characters of a value that was given, in a message."""

_EXPECTED = {
    "model_type": "a table",
    "dict_type": "a table",
    "list_type": "tables [[...]]",
    "too_short": "at least one",
    "missing": "at least one",
    "string_too_short": "a text that is not empty",
}
_CHOICES: dict[str, Mapping[str, type[BaseModel]]] = {
    "data": DATA,
    "learner": LEARNERS,
    "learners": LEARNERS,
    "hypergradient": STRATEGIES,
    "physics": PHYSICS,
    "noise": NOISES,
    "fidelity": FIDELITIES,
}


M = TypeVar("M", bound=BaseModel)
Tables: TypeAlias = dict[str, Any]
Check: TypeAlias = tuple[tuple[str, ...], Callable[[M, Tables], object]]
"""What sections alone do not show: the sections that it looks at, and a function of the whole and
of its tables that raises ConfigError.
"""


class Mistakes(ConfigError):
    """Several mistakes in one file; ``what``, ``given``, ``expected``, ``remedy`` are of the first.

    Attributes:
        mistakes: all of them.
    """

    def __init__(self, path: str, mistakes: Sequence[ConfigError]) -> None:
        first, self.path, self.mistakes = mistakes[0], path, tuple(mistakes)
        super().__init__(
            f"{path}: {first.what}",
            given=first.given,
            expected=first.expected,
            remedy=first.remedy,
        )
        lines = "".join(f"\n  {mistake}" for mistake in mistakes)
        self.args = (f"{path}: {len(mistakes)} mistakes{lines}",)

    def __reduce__(self) -> tuple[object, ...]:
        return (Mistakes, (self.path, self.mistakes))


def gathered(
    path: str,
    tables: Tables,
    root: type[M],
    tags: Mapping[str, type[BaseModel]],
    checks: Sequence[Check[M]],
) -> M:
    """A whole file as its model, checked; or all its mistakes at once.

    What has been found wrong is left out, and the rest is read again, until nothing more is found:
    a section whose own values are refused one at a time still tells all of them.

    Args:
        path: the file, as messages name it.
        tables: its content.
        root: the model of the whole.
        tags: the sections that a key ``type`` chooses.
        checks: of whole sections, and of sections together; one is left out where a section that it
            looks at cannot be read at all.

    Raises:
        ConfigError: the mistake; Mistakes where there are several.
    """
    rest, found = copy.deepcopy(tables), dict[str, ConfigError]()
    for text in unusable_texts(tables):
        found[text] = ConfigError(
            f"the text {text!r}"[:80],
            given="a character that no file can be named by",
            expected="printable text",
        )
    if found:
        raise _one_of(path, list(found.values()))
    changed, lost = set[str](), set[str]()
    while True:
        try:
            config = root.model_validate(rest)
        except ValidationError as errors:
            before = len(found), len(lost), repr(rest)
            for error in errors.errors():
                place = _place(error["loc"], rest)
                section = str(next(iter(place), ""))  # a validator of the whole has no place
                if not (error["type"] == "missing" and section in changed):  # a consequence
                    wrong = _translated(error, root, tags)
                    found.setdefault(str(wrong), wrong)
                changed.add(section)
                if not _left_out(rest, place, error["type"]):
                    lost.add(section)
            if (len(found), len(lost), repr(rest)) == before or any(
                info.is_required() and name in lost for name, info in root.model_fields.items()
            ):
                raise _one_of(path, _in_order(found.values(), tables)) from None
            continue
        wrongs = _refused(checks, config, rest, lost)
        for sections, wrong in wrongs:
            place = _parsed(wrong.what)
            whole = len(place) < 2
            if not (whole and changed.intersection(sections)):  # else a consequence of it
                found.setdefault(str(wrong), wrong)
            if whole or not _left_out(rest, place, ""):
                lost.update(sections)
            changed.update(str(part) for part in place[:1])
        if not wrongs:
            break
    if found:
        raise _one_of(path, _in_order(found.values(), tables))
    return config


def _refused(
    checks: Sequence[Check[M]], config: M, tables: Tables, lost: set[str]
) -> list[tuple[tuple[str, ...], ConfigError]]:
    """What the checks say, each of what it can look at."""
    found = []
    for sections, check in checks:
        if lost.isdisjoint(sections):
            try:
                check(config, tables)
            except ConfigError as error:
                found.append((sections, error))
    return found


def _one_of(path: str, mistakes: Sequence[ConfigError]) -> ConfigError:
    """The only mistake with its file, or all of them."""
    if len(mistakes) > 1:
        return Mistakes(path, mistakes)
    (only,) = mistakes
    return ConfigError(
        f"{path}: {only.what}", given=only.given, expected=only.expected, remedy=only.remedy
    )


def _in_order(mistakes: Iterable[ConfigError], tables: Tables) -> list[ConfigError]:
    """As the sections come in the file; those of sections that are not there come last."""
    order = {name: number for number, name in enumerate(tables)}
    return sorted(
        mistakes, key=lambda m: order.get(str(next(iter(_parsed(m.what)), "")), len(order))
    )


# --- places in a file -----------------------------------------------------------------------------


def _place(location: tuple[int | str, ...], tables: Tables) -> list[int | str]:
    """The keys that lead to where pydantic found a mistake; the tags of unions are no part of a
    file.
    """
    place, item = list[int | str](), cast(Any, tables)
    for number, part in enumerate(location):
        last = number == len(location) - 1
        inside = isinstance(item, dict) and part in item
        inside = inside or (isinstance(item, list) and isinstance(part, int) and part < len(item))
        if inside:
            item = item[part]
        if inside or (last and isinstance(item, dict)):
            place.append(part)
    return place or list(location[:1])


def _parsed(what: str) -> list[int | str]:
    """The keys that a message names: ``[a.b(2)] key`` is a, b, 1, key."""
    found = re.match(r"\[([^\]]*)\]\s*(\S*)", what)
    if found is None:
        return []
    place = list[int | str]()
    for part in found[1].split("."):
        name, _, number = part.removesuffix(")").partition("(")
        place += [name, int(number) - 1] if number.isdigit() else [part]
    return [*place, *([found[2]] if found[2] else [])]


def _left_out(tables: Tables, place: Sequence[int | str], kind: str) -> bool:
    """Take a wrong key out of the tables; where that does not mend it, the whole section.

    Returns:
        Whether the section is still there.
    """
    if not place:
        return False
    item: Any = tables
    for part in place[:-1]:
        listed = isinstance(item, list) and isinstance(part, int) and part < len(item)
        if not listed and not (isinstance(item, dict) and part in item):
            item = None
            break
        item = item[part]
    key = place[-1]
    chooses = kind.startswith("union_tag") or (key == "type" and kind != "extra_forbidden")
    if isinstance(item, dict) and key in item and not chooses:
        del item[key]
        return len(place) > 1 or kind == "extra_forbidden"
    tables.pop(str(place[0]), None)
    return False


# --- words ----------------------------------------------------------------------------------------


def translated(
    path: str, errors: ValidationError, root: type[BaseModel], tags: Mapping[str, type[BaseModel]]
) -> ConfigError:
    """The errors that pydantic found: one, or all of them as ``Mistakes``.

    Args:
        path: the file, as the message names it.
        errors: what ``root.model_validate`` raised.
        root: the model of the whole file.
        tags: the sections that a key ``type`` chooses.
    """
    return _one_of(path, [_translated(error, root, tags) for error in errors.errors()])


def _translated(
    error: Any, root: type[BaseModel], tags: Mapping[str, type[BaseModel]]
) -> ConfigError:
    """An error of pydantic in our words."""
    if not error["loc"]:
        words = error["msg"].removeprefix("Value error, ")
        return ConfigError("the sections together", given="what does not fit", expected=words)
    kind, given, remedy = error["type"], error["input"], ""
    place = error["loc"]
    if kind in ("model_type", "dict_type") and place[-1] in tags:
        place = place[:-1]  # no table at all, so nothing in it has chosen
    section, key, model = _locate(place, root, tags)
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
        expected = described or _EXPECTED.get(kind) or _plain(error["msg"])
        expected = f"a number {expected}" if kind.startswith(("greater", "less")) else expected
    return ConfigError(where, given=_short(shown), expected=expected, remedy=remedy)


def _short(text: str) -> str:
    """What was given, so that it can be recognized."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 20]} ... ({len(text)} characters)"


def _plain(message: str) -> str:
    """What would be accepted, without the opening of pydantic's sentences."""
    return message.removeprefix("Input should be ").removeprefix("Value error, ")


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
