"""What the sections of a configuration are made of: sections that describe themselves by the
signature of the class that they stand for, and unions of them.

A section built by ``described`` has the keys, types, defaults and comments of the class that it
stands for, so a new argument of that class is a new key here. Ranges are checked where they are
written down: in the class itself.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable
from types import TracebackType
from typing import Annotated, Any, ClassVar, Literal, Union, get_type_hints

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, create_model

from ..core.errors import ConfigError, InputError
from ..learners.box import Ranges

INHERITED = {
    "channels": "those of [data] when left out",
    "in_channels": "those of [data] when left out",
    "seed": "that of [run] when left out",
}
"""Arguments that a regularizer takes from another section unless they are given."""


class Section(BaseModel):
    """One table of a configuration file: an unknown key, a wrong type, NaN and Inf are errors."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Built(Section):
    """A section that stands for an object of the library.

    Attributes:
        target: the class of the object.
        inherited: those of its keys that another section stands in for.
        refused: keys that others of its kind have, with what is said of them here.
        aside: keys that are no arguments of the object.
    """

    target: ClassVar[Callable[..., object]]
    inherited: ClassVar[frozenset[str]] = frozenset()
    refused: ClassVar[dict[str, str]] = {}
    aside: ClassVar[frozenset[str]] = frozenset({"type", "scale"})

    def build(self, where: str = "", **inherited: object) -> Any:
        """The object.

        Args:
            where: name of the section, for error messages.
            inherited: values for keys that were left out.

        Raises:
            ConfigError: a value that the object refuses.
        """
        arguments = {}
        for key in type(self).model_fields:
            value = getattr(self, key)
            if isinstance(value, Built):
                arguments[key] = value.build(f"{where}.{key}")
            elif key not in self.aside:
                own = value is not None or key not in self.inherited
                arguments[key] = value if own else inherited.get(key.removeprefix("in_"))
        with located(where):
            return type(self).target(
                **{k: v for k, v in arguments.items() if k not in self.inherited or v is not None}
            )


class located:
    """Within this block an InputError becomes a ConfigError that names the section."""

    def __init__(self, where: str) -> None:
        self.where = where

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, InputError):
            key = error.what.removeprefix(self.where.rsplit(".", 1)[-1]).strip()
            raise ConfigError(
                f"[{self.where}] {key}".strip(),
                given=error.given,
                expected=error.expected,
                remedy=error.remedy,
            ) from error


def described(
    target: Callable[..., object],
    tag: str | None = None,
    *,
    like: object | None = None,
    **extra: object,
) -> type[Built]:
    """The section of a class: one key per argument, with its type, default and description.

    Args:
        tag: the value of the key ``type`` that chooses this class.
        like: an object of the class that has the defaults; those of the class when None.
        extra: further keys, as pydantic fields.
    """
    fields: dict[str, Any] = {} if tag is None else {"type": (Literal[tag], tag)}
    hints, comments = get_type_hints(target.__init__), comments_of(target)
    parameters = inspect.signature(target).parameters
    given_elsewhere = frozenset(INHERITED) & set(parameters)
    # a choice of words under such a name, as of TV, is its own
    given_elsewhere = frozenset(name for name in given_elsewhere if hints[name] is int)
    if "in_channels" in parameters:  # then ``channels`` are those of its own feature maps
        given_elsewhere -= {"channels"}
    for name, parameter in parameters.items():
        default, hint = parameter.default, hints[name]
        if name == "name":  # of a solver, for its results: nothing to choose
            continue
        if hint == Ranges:
            hint = Any  # its class says better than a union of types what is wrong with a box
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            inner = described(hint, like=default if isinstance(default, hint) else None)
            fields[name] = (inner, Field(default_factory=inner, description=comments.get(name)))
        elif name in given_elsewhere:
            fields[name] = (hint | None, Field(None, description=INHERITED[name]))
        else:
            default = default if like is None else getattr(like, name)
            given = ... if default is inspect.Parameter.empty else default
            fields[name] = (hint, Field(given, description=comments.get(name)))
    fields.update(extra)
    model = create_model(getattr(target, "__name__", "Section"), __base__=Built, **fields)
    model.target, model.inherited = target, given_elsewhere
    model.__doc__ = (inspect.getdoc(target) or "").split("\n")[0].replace("``", "")
    return model


def comments_of(target: Callable[..., object]) -> dict[str, str]:
    """The descriptions under ``Args:`` in a docstring, by argument.

    >>> from learnreg import Budget
    >>> comments_of(Budget)["steps"]
    'accepted steps'
    """
    block = re.search(r"^Args:\n((?:[ ]+.*\n?|\n)*)", inspect.getdoc(target) or "", re.MULTILINE)
    entries = (
        re.findall(r"^ {4}(\w[\w, ]*): (.*(?:\n {5,}.*)*)", block[1], re.MULTILINE) if block else []
    )
    plain = {
        names: " ".join(text.split())
        .replace("``", "")
        .replace("when None", "when left out")
        .rstrip(".")
        for names, text in entries
    }
    return {name.strip(): text for names, text in plain.items() for name in names.split(",")}


def one_of(sections: dict[str, type[Built]], default: str | None = None) -> Any:
    """A union of sections told apart by ``type``; a table with ``terms`` is a Sum."""

    def choose(table: object) -> str | None:
        if isinstance(table, Built):
            return tag_of(table)
        if not isinstance(table, dict):
            return None
        chosen = table.get("type", "Sum" if "terms" in table else default)
        return None if chosen is None else str(chosen)

    members = tuple(Annotated[model, Tag(tag)] for tag, model in sections.items())
    return Annotated[Union[members], Discriminator(choose)]  # noqa: UP007 - of a tuple


def tag_of(section: Built) -> str:
    """The ``type`` that has chosen a section."""
    return str(getattr(section, "type", None))
