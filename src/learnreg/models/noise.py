"""Noise levels by the user's word: where a model is brought to another one than it learned."""

from __future__ import annotations

import warnings
from typing import TypeVar

from torch import Tensor

from ..core.errors import DataWarning, InputError
from ..core.noise import learned_level, mismatch
from ..metrics import estimate_sigma
from ..problems import at_noise_level
from ..problems.energy import Energy
from ..problems.saddle import SaddleEnergy

E = TypeVar("E", bound=Energy | SaddleEnergy)

UNSURE = 1.6
"""An estimate within this factor of the learned level is no reason for a warning."""

LEAST = 20.0
"""An estimated level is taken for at least this part of the learned one."""


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
    """The energy for images y of noise level sigma; as learned when None.

    Args:
        y: measurements (b, ...); "auto" estimates a level for each of them.

    Raises:
        InputError: the data term has no rule, or there is no telling how noisy y is.

    Warns:
        DataWarning: sigma is None, and the noise does not look like that of the training data.
    """
    learned = learned_level(energy)
    if sigma is None:
        if learned is not None:
            _compare(y, learned)
        return energy
    if sigma != "auto":
        # why a cast: parse_sigma leaves no other words
        return at_noise_level(energy, float(sigma))
    found = estimate_sigma(y)
    # why a floor: a constant image seems to have no noise at all
    floor = (learned or 1.0) / LEAST
    return at_noise_level(energy, found.clamp_min(floor))


def _compare(y: Tensor, learned: float) -> None:
    """Warn once, of the measurement that is farthest from what was learned."""
    try:
        found = estimate_sigma(y)
    except InputError:  # too small, masked, complex: no telling
        return
    farthest = float(found[(found.clamp_min(1e-12) / learned).log().abs().argmax()])
    words = mismatch(learned, farthest, estimated=True)
    # why not the tolerance of levels that are known: textures pass for noise where there is little
    unsure = 1 / UNSURE < farthest / learned < UNSURE
    if words is not None and not unsure:
        warnings.warn(words, DataWarning, stacklevel=4)
