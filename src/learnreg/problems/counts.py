"""Data terms of counts: the Kullback-Leibler distance, and its shift for read-out noise.

Counts are y = Poisson(u) with the expectation u = A x / gain + background. A background differs
from detector to detector (scatter and random coincidences in emission tomography) and from image
to image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

from ..convex import Convex, KullbackLeibler, Squares, Zero, ridged
from ..core.bounds import Bound, Curvature
from ..core.errors import InputError
from ..core.ranges import Record, check_flag, check_number, check_positive, tidy
from ..operators.physics import TiedMap
from .count_functions import PoissonFunction
from .per_image import checked, fitted

Numbers = float | Tensor
"""A number, or a tensor (1, ...) for all images or (b, ...) with one slice for each."""


class _OfCounts:
    """What the two data terms share: tensors per image, and blocks of saddle points."""

    background: Numbers
    gain: Numbers

    def _tensors(self, settings: Record) -> dict[str, Tensor]:
        named = {field.name: vars(self)[field.name] for field in fields(settings)}
        return {name: v for name, v in named.items() if isinstance(v, Tensor)}

    def bounds(self, operator: TiedMap, x: Tensor) -> Curvature:
        """No curvature that holds everywhere: add ``tikhonov`` where a distance is to be
        certified.
        """
        return Curvature(Bound.exact(0.0), Bound.unknown())

    def of_image(self, operator: TiedMap, y: Tensor, u: Tensor, tikhonov: float) -> Convex | None:
        """For denoising."""
        return ridged(self.of_data(y), tikhonov) if operator.is_identity else None

    def of_data(self, y: Tensor) -> Convex:
        """D(., y): with v = gain u, sum of (v - gain y + gain y log(gain y / v)) / gain.

        Raises:
            InputError: negative counts, or a shape that does not fit.
        """
        counts, background, gain, _ = self.counted(y)
        if isinstance(gain, float) and gain == 1:
            return KullbackLeibler(counts, background)
        return KullbackLeibler(counts * gain, background * gain, 1 / gain)

    def target(self, y: Tensor, above: bool = True) -> Tensor:
        """What A x would be without noise for measurements y, (b, ...): gain (counts -
        background), or gain times the counts where not ``above`` the background.
        """
        counts, background, gain, _ = self.counted(y)
        return (counts - background) * gain if above else counts * gain

    def rest(self, tikhonov: float) -> Convex:
        return Squares(tikhonov) if tikhonov else Zero()

    def counted(self, y: Tensor) -> tuple[Tensor, Numbers, Numbers, Numbers]:
        """Counts, background and gain for measurements y, and the derivative of the counts by y."""
        raise NotImplementedError

    def tie(self, y: Tensor) -> PoissonFunction:
        """Raises: InputError for negative counts, and for entries without a background."""
        counts, background, gain, slope = self.counted(y)
        _check_smooth(background)
        return PoissonFunction(counts, background, gain, slope)


def _check_smooth(background: Numbers) -> None:
    """Refuse a likelihood whose curvature is unbounded.

    Raises:
        InputError: zeros in the background.
    """
    least = float(background.min()) if isinstance(background, Tensor) else background
    if not least > 0:
        raise InputError(
            "background",
            given="0, for which the likelihood of counts is not smooth",
            expected="background > 0 for every measurement in an Energy",
            remedy="Give the expected number of counts without an image (a fraction of one count "
            "will do), or use a SaddleEnergy, which takes 0.",
        )


@dataclass(frozen=True, eq=False)
class KL(_OfCounts):
    """D(Ax, y) = sum u - y + y log(y / u) with u = A x / gain + background: counts y.

    Up to a constant the negative log-likelihood of Poisson counts, as
    ``deepinv.optim.PoissonLikelihood``. In an Energy it is continued below A x = 0 by its parabola
    there (see ``PoissonFunction``), which changes no minimizer with A x >= 0.

    Counts need not be whole numbers: expected counts and those that were corrected for something
    are taken as they are.

    Args:
        background: r, expected counts without an image: a number, a tensor (1, ...) like y, or one
            (b, ...) with a slice for every image, as ``params={"background": ...}`` gives it.
            Positive in an Energy, where a small one means a large curvature y / (gain r)^2; zero is
            allowed in a SaddleEnergy.
        gain: positive, what a count is worth in units of A x; a number or a tensor, as the
            background. Counts are then y = Poisson(A x / gain + r).
        scaled: y is gain times the counts.

    Raises:
        InputError: not positive, not finite; later on also negative counts, and tensors that do
            not fit y.

    Example:
        >>> import torch, deepinv, learnreg as lr
        >>> physics = deepinv.physics.Denoising()
        >>> y = torch.full((1, 1, 4, 4), 7.0)
        >>> r = torch.full((1, 1, 4, 4), 2.0)
        >>> ridge = lr.regularizers.Tikhonov(1e-3, learned=False)
        >>> energy = lr.Energy(physics, lr.regularizers.TV(1e-3) + ridge, lr.KL(background=r))
        >>> round(float(lr.solve(energy, y, eps=1e-2).value.mean()), 1)
        5.0
    """

    background: Numbers = 1.0
    gain: Numbers = 1.0
    scaled: bool = False

    def __post_init__(self) -> None:
        tidy(self)
        _check(self)
        check_flag("scaled", self.scaled)

    def __eq__(self, other: object) -> bool:
        return _equal(self, other)

    def __hash__(self) -> int:
        return hash((type(self), self.scaled))

    def check_smooth(self) -> None:
        """Raises: InputError for a background that is zero somewhere."""
        _check_smooth(self.background)

    @property
    def per_image(self) -> frozenset[str]:
        """Names that may be given per image."""
        return frozenset({"background", "gain"})

    def tensors(self) -> dict[str, Tensor]:
        """Background and gain, where they are tensors."""
        return self._tensors(self)

    def replaced(self, **tensors: Tensor) -> Self:
        """With another background or gain."""
        background = tensors.get("background", self.background)
        return replace(self, background=background, gain=tensors.get("gain", self.gain))

    def counted(self, y: Tensor) -> tuple[Tensor, Numbers, Numbers, Numbers]:
        background, gain = _fitted(self, y)
        if bool((y < 0).any()):
            raise InputError(
                "y",
                given=f"counts down to {float(y.min()):.3g}",
                expected="counts >= 0",
                remedy="The Kullback-Leibler distance is one of counts; use PoissonGaussian, L2 or "
                "Huber for data with noise below zero.",
            )
        return (y / gain, background, gain, 1 / gain) if self.scaled else (y, background, gain, 1.0)


Poisson = KL
"""The negative log-likelihood of Poisson counts is the Kullback-Leibler distance, up to a constant.
"""


@dataclass(frozen=True, eq=False)
class PoissonGaussian(_OfCounts):
    """Counts with read-out noise: y = gain Poisson(A x / gain + background) + N(0, sigma^2).

    The exact likelihood is an infinite sum. This is the shifted Poisson one, which is convex:
    y / gain + sigma^2 / gain^2 has the mean and the variance of a Poisson variable of expectation
    A x / gain + background + sigma^2 / gain^2, and is taken for one (Snyder, Helstrom, Lanterman,
    Faisal and White, J. Opt. Soc. Am. A 12, 1995, on cameras with read-out noise; Chakrabarti and
    Zickler, arXiv:1204.2994, for restoration). Measurements below -sigma^2 / gain, which read-out
    noise alone makes, are taken for that. The shift is a background, so that D is smooth with
    proven constants even where the background is zero.

    As an alternative, ``WeightedL2`` with the weights of ``count_weights``.

    Args:
        background: expected counts without an image, >= 0; as for ``KL``.
        gain: positive, what a count is worth in units of y and of A x; as for ``KL``.
        sigma: standard deviation of the read-out noise in units of y, positive; a number or a
            tensor, as the background.

    Raises:
        InputError: out of range, or tensors that do not fit y.

    Example:
        >>> import deepinv, learnreg as lr
        >>> noise = deepinv.physics.PoissonGaussianNoise(0.02, 0.05)
        >>> term = lr.problems.PoissonGaussian(gain=0.02, sigma=0.05)
        >>> term.tie(deepinv.physics.Denoising(noise)(0.5 * __import__("torch").ones(1, 1, 2, 2)))
        ... # doctest: +ELLIPSIS
        PoissonFunction(...)
    """

    background: Numbers = 0.0
    gain: Numbers = 1.0
    sigma: Numbers = 1.0

    def __post_init__(self) -> None:
        tidy(self)
        _check(self)
        _check_number_or_tensor("sigma", self.sigma, above=True)

    def __eq__(self, other: object) -> bool:
        return _equal(self, other)

    def __hash__(self) -> int:
        return hash(type(self))

    @property
    def per_image(self) -> frozenset[str]:
        """Names that may be given per image."""
        return frozenset({"background", "gain", "sigma"})

    def tensors(self) -> dict[str, Tensor]:
        """Background, gain and sigma, where they are tensors."""
        return self._tensors(self)

    def replaced(self, **tensors: Tensor) -> Self:
        """With another background, gain or sigma."""
        return replace(self, **tensors)

    def counted(self, y: Tensor) -> tuple[Tensor, Numbers, Numbers, Numbers]:
        background, gain = _fitted(self, y)
        sigma = fitted("sigma", self.sigma, y) if isinstance(self.sigma, Tensor) else self.sigma
        shift = (sigma / gain) ** 2
        counts = y / gain + shift
        slope = (counts > 0).to(y.dtype) / gain
        return counts.clamp_min(0), background + shift, gain, slope


def count_weights(
    y: Tensor, *, gain: Numbers = 1.0, sigma: Numbers = 0.0, least: float = 1.0
) -> Tensor:
    """Weights for ``WeightedL2``: one over the variance of counts, estimated from the counts.

    y = gain Poisson(u) + N(0, sigma^2) has the variance gain^2 u + sigma^2, and y / gain estimates
    u. Small counts estimate it badly: no fewer than ``least`` are assumed. Weighted least squares
    with these weights is quadratic, so everything is proven about it, and is biased for few counts
    (below about 10; there take ``PoissonGaussian``).

    Args:
        y: (b, ...), with the background in it; subtract gain times the background from what the
            energy gets.
        gain, sigma: as for ``PoissonGaussian``; sigma may be 0.
        least: expected counts at least, positive.

    Returns:
        (b, ...) like y, for ``params={"weights": ...}``.

    Raises:
        InputError: out of range, or tensors that do not fit y.
    """
    _check_number_or_tensor("gain", gain, above=True)
    _check_number_or_tensor("sigma", sigma)
    check_positive("least", least)
    g = fitted("gain", gain, y) if isinstance(gain, Tensor) else gain
    s = fitted("sigma", sigma, y) if isinstance(sigma, Tensor) else sigma
    weights: Tensor = 1 / (g * g * (y / g).clamp_min(least) + s * s)
    return weights


def _check_number_or_tensor(name: str, value: Numbers, *, above: bool = False) -> None:
    """Raises: InputError for what is neither, or out of range."""
    if isinstance(value, Tensor):
        checked(name, value, above=above)
    elif above:
        check_positive(name, value)
    else:
        check_number(name, value, lambda v: v >= 0, "a finite number >= 0")


def _check(term: _OfCounts) -> None:
    _check_number_or_tensor("background", term.background)
    _check_number_or_tensor("gain", term.gain, above=True)


def _fitted(term: _OfCounts, y: Tensor) -> tuple[Numbers, Numbers]:
    """Background and gain for measurements y."""
    given: Mapping[str, Numbers] = {"background": term.background, "gain": term.gain}
    background, gain = (
        fitted(name, v, y) if isinstance(v, Tensor) else float(v) for name, v in given.items()
    )
    return background, gain


def _equal(one: Record, other: object) -> bool:
    """Equality of settings of which some are tensors."""
    if type(one) is not type(other):
        return False
    mine, theirs = vars(one), vars(other)
    return all(_alike(mine[field.name], theirs[field.name]) for field in fields(one))


def _alike(a: object, b: object) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b)
    return a == b
