"""Noise levels by the user's word: where a model is brought to another one than it learned."""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor

from ..core.errors import InputError
from ..problems.energy import Energy
from ..problems.saddle import SaddleEnergy

E = TypeVar("E", bound=Energy | SaddleEnergy)


def parse_sigma(text: str) -> float | str:
    """A noise level in words: ``0.1``, ``25/255`` or ``auto``.

    Raises:
        InputError: none of them, or not positive.

    >>> parse_sigma("25/255"), parse_sigma("auto")
    (0.09803921568627451, 'auto')
    """
    if text.strip().lower() == "auto":
        return "auto"
    above, slash, below = text.partition("/")
    try:
        value = float(above) / (float(below) if slash else 1.0)
    except (ValueError, ZeroDivisionError):
        value = float("nan")
    if not 0 < value < float("inf"):
        raise InputError(
            "--sigma",
            given=text,
            expected="a positive noise level such as 0.1 or 25/255, or auto",
            remedy="Leave it out for the noise that the model was learned for.",
        )
    return value


def at_sigma(energy: E, y: Tensor, sigma: float | str | None) -> E:
    """The energy for images y of noise level sigma; itself when None.

    Raises:
        InputError: no rule is known.
    """
    if sigma is None:
        return energy
    raise InputError(
        "sigma",
        given=sigma,
        expected="the noise level that the model was learned for",
        remedy="Leave it out.",
    )
