"""Regularizers R(x; theta) with closed-form derivatives and proven constants, and those given as
saddle points.
"""

from __future__ import annotations

from typing import Any

from ..core.errors import ModelFileError
from .base import LinearizedHessian, Regularizer, Scaled, Sum
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
}
"""Classes that a model file can name. A new regularizer adds one line here."""


def from_spec(spec: dict[str, Any]) -> Any:
    """Rebuild a regularizer from its ``spec()``; its parameters are start values until theta is
    set.

    Raises:
        ModelFileError: an unknown type or arguments that do not fit it.
    """
    arguments = dict(spec)
    kind = arguments.pop("type", None)
    try:
        if kind == "Sum":
            return Sum([from_spec(t) for t in arguments["terms"]])
        if kind == "Scaled":
            return Scaled(arguments["factor"], from_spec(arguments["regularizer"]))
        return KNOWN[kind](**arguments)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFileError(
            "regularizer",
            given=f"{kind!r} ({type(error).__name__}: {error})",
            expected=f"one of {', '.join([*KNOWN, 'Sum', 'Scaled'])} with its own arguments",
            remedy="For a regularizer of your own pass it as load_model(path, regularizer=...).",
        ) from error


__all__ = [
    "ICNN",
    "KNOWN",
    "TGV",
    "TV",
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
]
