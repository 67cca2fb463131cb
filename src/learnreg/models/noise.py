"""Noise levels by the user's word: where a model is brought to another one than it learned."""

from __future__ import annotations

import math
import warnings
from typing import TypeVar

from torch import Tensor

from ..core.errors import DataWarning, InputError
from ..core.noise import learned_level, mismatch
from ..metrics import estimate_sigma
from ..physics.noise import level
from ..problems import at_noise_level
from ..problems.energy import Energy
from ..problems.saddle import SaddleEnergy

E = TypeVar("E", bound=Energy | SaddleEnergy)

UNSURE = 1.6
"""An estimate within this factor of the learned level is no reason for a warning."""

LEAST = 20.0
"""An estimated level is taken for at least this part of the learned one."""


HALF = 0.5
"""More noise than this part of the range of images leaves nothing to learn from."""

FARTHEST = 50.0
"""Levels above so many times the learned one are taken for a mistake in the units; the rule has
been measured up to three times.
"""


def parse_sigma(text: str) -> float | str:
    """A noise level in words: ``0.1``, ``25/255`` or ``auto``.

    Raises:
        InputError: none of them, or not positive.

    >>> parse_sigma("25/255"), parse_sigma("auto")
    (0.09803921568627451, 'auto')
    """
    if text.strip().lower() == "auto":
        return "auto"
    try:
        value = level(text)
    except InputError:
        value = 0.0
    if not value > 0:
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
        InputError: the data term has no rule, there is no telling how noisy y is, or the level is
            one of other units.

    Warns:
        DataWarning: sigma is None, and the noise does not look like that of the training data.
    """
    learned = learned_level(energy)
    if sigma is None:
        _compare(y, learned)
        return energy
    check_level(energy, sigma)
    if sigma != "auto":
        # why a cast: parse_sigma leaves no other words
        return at_noise_level(energy, float(sigma))
    return at_noise_level(energy, _floored(estimate_sigma(y), learned))


def _floored(found: Tensor, learned: float | None) -> Tensor:
    # why a floor: a constant image seems to have no noise at all
    return found.clamp_min((learned or 1.0) / LEAST)


def check_level(energy: Energy | SaddleEnergy, sigma: float | str | None) -> None:
    """Refuse a level that cannot be one of the images a model was learned from: mostly one of
    grey values, or in the units of a file.

    Raises:
        InputError: more than half the range of images, or ``FARTHEST`` times what was learned.
    """
    learned = learned_level(energy)
    if learned is None or sigma is None or sigma == "auto":
        return
    level = float(sigma)
    most = FARTHEST * learned
    if energy.operator.is_identity and learned <= HALF:
        most = min(most, HALF)
    if level > most:
        raise InputError(
            "sigma",
            given=f"{level:g} for a model that was learned at {learned:g}",
            expected=f"at most {most:g}, where black is 0 and white is 1",
            remedy="Divide a level in the units of a file by the range that becomes [0, 1]: write "
            f'"{level:g}/255" for grey values of 8 bits, or take "auto".',
        )


def noise_remarks(energy: Energy | SaddleEnergy, y: Tensor) -> list[str | None]:
    """For each of the measurements y (b, ...): what is wrong with its noise, if anything is."""
    learned = learned_level(energy)
    return (
        [_remark(level, learned) for level in _levels(y)]
        if learned is not None
        else [None] * (y.shape[0])
    )


def estimated_levels(energy: Energy | SaddleEnergy, y: Tensor) -> list[float]:
    """The levels (b) that "auto" takes for y (b, ...)."""
    return _floored(estimate_sigma(y), learned_level(energy)).tolist()


def _levels(y: Tensor) -> list[float | None]:
    """Estimates for each of y (b, ...); None where there is no telling: too small, masked,
    complex. One of those does not take the word from the others.
    """
    try:
        return list(estimate_sigma(y).tolist())
    except InputError:
        return [None] if y.shape[0] == 1 else [x for part in y for x in _levels(part[None])]


def _remark(level: float | None, learned: float) -> str | None:
    # why not the tolerance of levels that are known: textures pass for noise where there is little
    if level is None or 1 / UNSURE < level / learned < UNSURE:
        return None
    return mismatch(learned, level, estimated=True)


def _compare(y: Tensor, learned: float | None) -> None:
    """Warn once, of the measurement that is farthest from what was learned."""
    found = [x for x in _levels(y) if x is not None] if learned is not None else []
    if learned is None or not found:
        return
    farthest = max(found, key=lambda x: abs(math.log(max(x, 1e-12) / learned)))
    words = _remark(farthest, learned)
    if words is not None:
        warnings.warn(words, DataWarning, stacklevel=4)
