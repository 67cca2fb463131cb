"""Regularizers R(x; theta) with closed-form derivatives and proven constants, and those given as
saddle points.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

from ..core.errors import InputError, ModelFileError
from .base import LinearizedHessian, Regularizer, Scaled, Sum
from .black_box import BlackBox
from .described import Described
from .exact_tv import ExactTV
from .foe import FoE
from .huber import HuberTV
from .icnn import ICNN
from .learned_tv import LearnedTV
from .saddle import SaddleRegularizer
from .tgv import TGV
from .tikhonov import Tikhonov
from .tv import TV

KNOWN: dict[str, type[Regularizer] | type[SaddleRegularizer]] = {
    "TV": TV,
    "HuberTV": HuberTV,
    "FoE": FoE,
    "Tikhonov": Tikhonov,
    "ExactTV": ExactTV,
    "TGV": TGV,
    "LearnedTV": LearnedTV,
    "ICNN": ICNN,
    "BlackBox": BlackBox,
}
"""Classes that a model file can name. A new regularizer adds one line here; yours come by
``register``.
"""

C = TypeVar("C", bound="type[Described]")


def register(cls: C) -> C:
    """Let model files name a regularizer class of your own; also a class decorator.

    ``spec()`` then has to return the class name under ``type`` and the arguments that build it.
    Register it before ``load_model``, in every process that loads.

    Args:
        cls: derives from ``Regularizer`` or ``SaddleRegularizer`` and has its own ``spec``.

    Raises:
        InputError: another class, one without ``spec``, or a name that is taken.
    """
    if not (isinstance(cls, type) and issubclass(cls, Regularizer | SaddleRegularizer)):
        raise InputError(
            "cls",
            given=cls,
            expected="a class that derives from Regularizer or SaddleRegularizer",
            remedy="Wrap any other module in BlackBox.",
        )
    if cls.spec is Described.spec:
        raise InputError(
            "cls",
            given=f"{cls.__name__} without spec()",
            expected="a method spec() that describes its arguments",
            remedy=f"Return {{'type': '{cls.__name__}', ...}} from it.",
        )
    known = KNOWN.get(cls.__name__)
    again = known is not None and _place(known) == _place(cls)  # a cell of a notebook run twice
    if cls.__name__ in ("Sum", "Scaled") or (known is not None and not again):
        raise InputError(
            "cls",
            given=f"a second class of the name {cls.__name__}",
            expected="a name that is not taken",
            remedy="Rename yours.",
        )
    KNOWN[cls.__name__] = cls
    return cls


def _place(cls: type) -> tuple[str, str]:
    return cls.__module__, cls.__qualname__


def from_spec(spec: Mapping[str, object]) -> Regularizer | SaddleRegularizer:
    """Rebuild a regularizer from its ``spec()``; its parameters are start values until theta is
    set.

    Raises:
        ModelFileError: an unknown type or arguments that do not fit it.
    """
    arguments: dict[str, Any] = dict(spec)
    kind = arguments.pop("type", None)
    try:
        if kind == "Sum":
            return Sum([_term(t) for t in arguments["terms"]])
        if kind == "Scaled":
            return Scaled(arguments["factor"], _term(arguments["regularizer"]))
        return KNOWN[kind](**arguments)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFileError(
            "regularizer",
            given=f"{kind!r} ({type(error).__name__}: {error})",
            expected=f"one of {', '.join([*KNOWN, 'Sum', 'Scaled'])} with its own arguments",
            remedy="For a regularizer of your own use register, or pass an instance as "
            "load_model(path, regularizer=...).",
        ) from error


def _term(spec: Mapping[str, object]) -> Regularizer:
    """One term of a sum."""
    # why a cast: only sums of such terms have a spec
    return cast(Regularizer, from_spec(spec))


__all__ = [
    "ICNN",
    "KNOWN",
    "TGV",
    "TV",
    "BlackBox",
    "ExactTV",
    "FoE",
    "HuberTV",
    "LearnedTV",
    "LinearizedHessian",
    "Regularizer",
    "SaddleRegularizer",
    "Scaled",
    "Sum",
    "Tikhonov",
    "from_spec",
    "register",
]
