"""Noise levels: how much regularization another one wants, and the words for one not meant."""

from __future__ import annotations

import warnings
from typing import Protocol, Self, TypeVar, cast

from torch import Tensor

from .asking import offers
from .errors import DataWarning, MissingPropertyError

DIRECT, INDIRECT = 1.2, 1.5
"""p of the rule k = (sigma / learned)^p where every pixel is measured or not, and where the
measurements mix them; ``docs/noise_levels.md`` has the numbers behind it.
"""

TOLERANCE = 0.3
"""Relative difference of noise levels that is worth a word.

Measured: a regularizer that is off by so much costs up to 0.7 dB, and estimates on photographs
are off by less.
"""

ROUNDING = 1e-6
"""Relative difference of noise levels that is no difference: they are kept in float32."""


def factor(sigma: Tensor, learned: float, exponent: float) -> Tensor:
    """k (b,): what R is multiplied by at the noise levels sigma (b,)."""
    return (sigma.double() / learned) ** exponent


def same_level(sigma: Tensor, learned: float) -> bool:
    """Whether all levels (b,) are the learned one, up to the rounding of float32."""
    return bool((sigma.double() / learned - 1).abs().max() < ROUNDING)


def differs(learned: float, sigma: float) -> bool:
    """Whether two noise levels, in the same units, are further apart than ``TOLERANCE``."""
    return abs(sigma - learned) > TOLERANCE * learned


def mismatch(
    learned: float,
    sigma: float,
    *,
    estimated: bool = False,
    remedy: str = "Pass --sigma auto, or --sigma with the level you know.",
) -> str | None:
    """What to say where a model meets noise that it was not learned for; None if it is close.

    Args:
        learned: the standard deviation in the training data.
        sigma: that of the image, in the same units.
        estimated: whether ``sigma`` comes from the image itself.
        remedy: a full sentence; that of the command ``reconstruct`` by default.

    >>> mismatch(0.1, 0.11) is None
    True
    >>> print(mismatch(0.1, 0.2, estimated=True, remedy="Say so."))
    noise: standard deviation 0.2 (estimated), but the model was learned at 0.1. Too little \
regularization leaves noise. Say so.
    """
    if not differs(learned, sigma):
        return None
    source = " (estimated)" if estimated else ""
    harm = (
        "Too little regularization leaves noise."
        if sigma > learned
        else "Too much regularization blurs details."
    )
    return (
        f"noise: standard deviation {sigma:.2g}{source}, but the model was learned at "
        f"{learned:.2g}. {harm} {remedy}"
    )


# --- energies -------------------------------------------------------------------------------------


class FollowsNoise(Protocol):
    """An energy that knows the noise level of its physics (b,), and can be used at others."""

    @property
    def noise_level(self) -> Tensor | None: ...

    def regularizer_factor(self, learned: float, sigma: Tensor) -> Tensor: ...

    def following(self, learned: float, sigma: Tensor | None = None) -> Self: ...


class HasOtherNoise(Protocol):
    """An energy whose physics has noise of a kind for which there is no level."""

    @property
    def other_noise(self) -> str | None: ...


E = TypeVar("E")


def single_level(levels: Tensor | None) -> float | None:
    """The noise level if it is one for all images."""
    if levels is None or bool((levels != levels[0]).any()):
        return None
    return float(levels[0])


def learned_level(energy: object) -> float | None:
    """The Gaussian noise level of an energy's physics, where it is one for all images."""
    levels = energy.noise_level if offers(energy, FollowsNoise) else None
    return single_level(levels)


def followed(
    energy: E, learned: float | None, sigma: Tensor | None = None, *, stacklevel: int = 2
) -> E:
    """An energy learned at one noise level, at that of its physics (``Tied.following``).

    Args:
        energy: with the physics of the measurements.
        learned: the level of the training data; None where it is not known.
        sigma: (b,), the levels in the place of those of the physics.
        stacklevel: of the warning, 2 for the caller of this function.

    Returns:
        The energy itself where a level is not known, they are the same, or there is no rule.

    Warns:
        DataWarning: noise of another kind, or far from what was learned and no rule for it.
    """
    if learned is None:
        return energy
    if not offers(energy, FollowsNoise):
        if offers(energy, HasOtherNoise):
            words = _other_kind(str(energy.other_noise), learned)
            warnings.warn(words, DataWarning, stacklevel=stacklevel)
        return energy
    levels = energy.noise_level if sigma is None else sigma
    if levels is None:
        return cast(E, energy)
    try:
        # why a cast: a copy of the energy, whatever its class
        return cast(E, energy.following(learned, levels))
    except MissingPropertyError as error:
        rule = f"Its data term ({error.given}) has no rule for other levels: learn at this one."
        far = [mismatch(learned, float(level), remedy=rule) for level in levels.tolist()]
        for words in [w for w in far if w is not None][:1]:
            warnings.warn(words, DataWarning, stacklevel=stacklevel)
        return cast(E, energy)


def _other_kind(kind: str, learned: float) -> str:
    return (
        f"noise: {kind} in the physics, but the model was learned for Gaussian noise of standard "
        f"deviation {learned:.2g}. No rule is known for it: learn with this noise."
    )
