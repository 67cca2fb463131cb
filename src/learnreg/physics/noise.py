"""Noise by name: small frozen settings, which build deepinv's noise models."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

from torch import nn

from ..core.errors import InputError
from ..core.ranges import check_flag, check_number, check_positive, shown, tidy

Level: TypeAlias = float | str
"""A noise level: a number, or a fraction as text such as "25/255"."""

WIDEST = 0.5
"""Standard deviation beyond which noise on images in [0, 1] is taken for a mistake."""


@runtime_checkable
class Noise(Protocol):
    """What measurements suffer."""

    def build(self) -> nn.Module:
        """The noise model of deepinv."""
        ...


def level(value: object) -> float:
    """A noise level as a number.

    >>> level("25.5/255"), level(0.1)
    (0.1, 0.1)

    Raises:
        InputError: a text that is no number and no fraction.
    """
    if not isinstance(value, str):
        # why: what is no number is refused, in words, by the range that it has to be in
        return value  # type: ignore[return-value]
    above, slash, below = value.partition("/")
    try:
        number = float(above) / (float(below) if slash else 1.0)
    except (ValueError, ZeroDivisionError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(
            "sigma",
            given=shown(value),
            expected='a number such as 0.1, or a fraction as text such as "25/255"',
        )
    return number


def check_level(sigma: float, name: str = "sigma") -> None:
    """Refuse a noise level that is one of images in [0, 255] where images are in [0, 1].

    Raises:
        InputError: names the fraction that was meant.
    """
    if sigma > WIDEST:
        meant = f"{sigma:g}/255" if sigma >= 1 else "25/255"
        raise InputError(
            name,
            given=f"{sigma:g}",
            expected=f"at most {WIDEST:g} for images in [0, 1]",
            remedy=f'Grey values are divided by 255: write {name} = "{meant}" for a level of '
            f"{meant.split('/')[0]} grey values.",
        )


@dataclass(frozen=True)
class NoNoise:
    """Measurements without noise."""

    def build(self) -> nn.Module:
        """``deepinv.physics.ZeroNoise``."""
        from deepinv.physics import ZeroNoise

        return _module(ZeroNoise())


@dataclass(frozen=True)
class Gaussian:
    """Gaussian noise of one standard deviation.

    Args:
        sigma: standard deviation, in units of the measurements; a fraction may be a text: "25/255"
    """

    sigma: Level = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigma", level(self.sigma))
        tidy(self)
        check_positive("sigma", self.sigma)

    def build(self) -> nn.Module:
        """``deepinv.physics.GaussianNoise``."""
        from deepinv.physics import GaussianNoise

        return _module(GaussianNoise(level(self.sigma)))


@dataclass(frozen=True)
class Poisson:
    """Counts: y = Poisson(A x / gain + background), times the gain where ``normalized``.

    Args:
        gain: what a count is worth in units of A x; small is little noise
        background: expected counts without an image
        normalized: multiply the counts by the gain, so that y is of the size of A x
    """

    gain: Level = 0.02
    background: float = 0.0
    normalized: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "gain", level(self.gain))
        tidy(self)
        check_positive("gain", self.gain)
        check_number("background", self.background, lambda v: v >= 0, "a number >= 0")
        check_flag("normalized", self.normalized)
        if self.background and self.normalized:
            raise InputError(
                "normalized",
                given=f"True with a background of {self.background:g}",
                expected="False: counts above a background stay counts",
                remedy="Set normalized = false, or background = 0.",
            )

    def build(self) -> nn.Module:
        """``deepinv.physics.PoissonNoise``, or ``Counts`` where there is a background."""
        from deepinv.physics import PoissonNoise

        from .own import Counts

        gain = level(self.gain)
        if self.background:
            return _module(Counts(gain, self.background))
        # operators with filters may give small negative numbers
        return _module(PoissonNoise(gain, normalize=self.normalized, clip_positive=True))


@dataclass(frozen=True)
class PoissonGaussian:
    """Counts times the gain, then Gaussian noise: y = gain Poisson(A x / gain) + sigma n.

    Args:
        gain: what a count is worth in units of A x; small is little noise
        sigma: standard deviation of the Gaussian part; a fraction may be a text: "5/255"
    """

    gain: Level = 0.02
    sigma: Level = 0.05

    def __post_init__(self) -> None:
        for name in ("gain", "sigma"):
            object.__setattr__(self, name, level(vars(self)[name]))
            check_positive(name, vars(self)[name])
        tidy(self)

    def build(self) -> nn.Module:
        """``deepinv.physics.PoissonGaussianNoise``."""
        from deepinv.physics import PoissonGaussianNoise

        gain, sigma = level(self.gain), level(self.sigma)
        return _module(PoissonGaussianNoise(gain, sigma, clip_positive=True))


@dataclass(frozen=True)
class SaltPepper:
    """Some measurements are replaced by 1 (salt) or 0 (pepper).

    Args:
        salt: share of measurements that become 1
        pepper: share of measurements that become 0
    """

    salt: float = 0.05
    pepper: float = 0.05

    def __post_init__(self) -> None:
        tidy(self)
        for name in ("salt", "pepper"):
            check_number(name, vars(self)[name], lambda v: 0 <= v < 1, "a number in [0, 1)")
        total = self.salt + self.pepper
        if not 0 < total < 1:
            raise InputError(
                "salt and pepper",
                given=f"{total:g} together",
                expected="more than 0 and less than 1",
                remedy="Leave some measurements as they are.",
            )

    def build(self) -> nn.Module:
        """``deepinv.physics.SaltPepperNoise``."""
        from deepinv.physics import SaltPepperNoise

        return _module(SaltPepperNoise(p=self.pepper, s=self.salt))


@dataclass(frozen=True)
class Uniform:
    """Noise that is uniform in [-width, width].

    Args:
        width: largest deviation; a fraction may be a text: "10/255"
    """

    width: Level = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "width", level(self.width))
        tidy(self)
        check_positive("width", self.width)

    def build(self) -> nn.Module:
        """``deepinv.physics.UniformNoise``."""
        from deepinv.physics import UniformNoise

        return _module(UniformNoise(level(self.width)))


def _module(noise: nn.Module) -> nn.Module:
    """For type checkers: deepinv has no types."""
    return noise


NOISES = {
    "none": NoNoise,
    "gaussian": Gaussian,
    "poisson": Poisson,
    "poisson_gaussian": PoissonGaussian,
    "salt_pepper": SaltPepper,
    "uniform": Uniform,
}
"""Noise by the names of configuration files."""
