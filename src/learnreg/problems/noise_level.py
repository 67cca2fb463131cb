"""Energies at another noise level than the one that they were learned at: D + k R.

k = (sigma / learned)^p, and since D + k R has the minimizers of D / k + R, it is the data term that
changes: theta, the names of its parameters and the constants of R stay what they are, for saddle
points as well.
"""

from __future__ import annotations

import copy
import math
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from ..convex import Convex
from ..core.bounds import Curvature
from ..core.errors import InputError, MissingPropertyError
from ..core.noise import single_level
from ..core.params import trainable
from ..core.ranges import check_positive
from ..operators.physics import TiedMap
from ..operators.private import noise_of
from .data_functions import Quadratic
from .fidelity import L2, DataTerm, Huber, SaddleDataTerm, WeightedL2
from .per_image import fitted


class Levelled(Protocol):
    """An energy as this file sees it; both kinds are."""

    physics: nn.Module

    @property
    def noise_level(self) -> Tensor | None: ...

    def with_physics(self, physics: nn.Module) -> Self: ...

    def following(
        self, learned: float, sigma: Tensor | None = None, exponent: float | None = None
    ) -> Self: ...


E = TypeVar("E", bound=Levelled)


def noise_level(physics: nn.Module) -> Tensor | None:
    """The standard deviation of the Gaussian noise of a physics, float64, (1,) or (b,).

    None where the noise is of another kind, of no size, or where nothing is said of it.
    """
    from deepinv.physics import GaussianNoise

    noise = dict(physics.named_children()).get("noise_model")
    if not isinstance(noise, GaussianNoise):
        return None
    return known_level(noise_of(physics).get("sigma"))


def other_noise(physics: nn.Module) -> str | None:
    """The kind of noise of a physics, where there is some and it is not Gaussian of one size."""
    from deepinv.physics import GaussianNoise, ZeroNoise

    noise = dict(physics.named_children()).get("noise_model")
    silent = noise is None or isinstance(noise, GaussianNoise | ZeroNoise)
    return None if silent else type(noise).__name__


def known_level(sigma: object) -> Tensor | None:
    """A noise level as a tensor (1,) or (b,), float64; None unless all are positive and finite."""
    if not isinstance(sigma, Tensor | int | float):
        return None
    levels = torch.as_tensor(sigma).detach().double().flatten()
    usable = levels.numel() > 0 and bool((torch.isfinite(levels) & (levels > 0)).all())
    return levels if usable else None


def at_noise_level(
    energy: E,
    sigma: float | Tensor,
    *,
    learned: float | None = None,
    exponent: float | None = None,
) -> E:
    """The energy for measurements with Gaussian noise of standard deviation sigma.

    R is weighed by k = (sigma / learned)^exponent against the data term. The regularizer is shared,
    not copied; certificates and hypergradients are those of the new energy. The rule was measured
    (``docs/noise_levels.md``): it is good for regularizers learned at one level and used between a
    quarter and three times of it, for any linear physics.

    Args:
        energy: an Energy or a SaddleEnergy with the data term L2, WeightedL2 or Huber.
        sigma: positive, in the units of the measurements; a tensor (b,) for one level per image.
        learned: the level of the training data; that of the energy's physics when None.
        exponent: p above; 1.2 for denoising and masks and 1.5 for all other physics when None.

    Returns:
        An energy whose physics has the noise level sigma.

    Raises:
        InputError: sigma, learned or exponent not positive, learned neither given nor known.
        MissingPropertyError: a data term for noise that is not Gaussian, or one that is learned.

    Example:
        ``lr.solve(lr.problems.at_noise_level(run.energy, 0.2), y, eps=1e-2)``
    """
    levels = _checked(sigma)
    check_positive("exponent", exponent, optional=True)
    if learned is None:
        learned = single_level(energy.noise_level)
    if learned is None:
        raise InputError(
            "learned",
            given=f"nothing, and {type(energy.physics).__name__} without one Gaussian noise level",
            expected="the noise level that the energy was learned at",
            remedy="Pass learned=0.1, or whatever it was.",
        )
    check_positive("learned", learned)
    other = energy.with_physics(_with_noise(energy.physics, levels))
    return other.following(learned, levels, exponent)


def _checked(sigma: float | Tensor) -> Tensor:
    """(1,) or (b,), float64.

    Raises:
        InputError: not positive, not finite, or of another shape.
    """
    if not isinstance(sigma, Tensor):
        return torch.tensor([check_positive("sigma", sigma)], dtype=torch.float64)
    levels = known_level(sigma) if sigma.dim() <= 1 and not sigma.is_complex() else None
    if levels is None:
        raise InputError(
            "sigma",
            given=f"a tensor of shape {tuple(sigma.shape)}"
            if sigma.dim() > 1
            else str(sigma.tolist()),
            expected="a positive number, or a tensor (b,) of such",
        )
    return levels


def _with_noise(physics: nn.Module, levels: Tensor) -> nn.Module:
    """A copy of the physics that shares all tensors, with Gaussian noise of these levels."""
    from deepinv.physics import GaussianNoise

    copied = copy.copy(physics)
    copied.__dict__ = dict(physics.__dict__)
    copied._modules = dict(physics._modules)
    sigma: float | Tensor = float(levels[0]) if levels.numel() == 1 else levels.float()
    copied.noise_model = GaussianNoise(sigma)
    return copied


# --- data terms -----------------------------------------------------------------------------------


def data_term_at(fidelity: object, factors: Tensor, ratios: Tensor) -> DataTerm | SaddleDataTerm:
    """D / k.

    Args:
        fidelity: D.
        factors: k, (1,) or (b,), float64.
        ratios: sigma / learned: what residuals grow by.

    Raises:
        MissingPropertyError: no rule for this data term.
    """
    if isinstance(fidelity, nn.Module) and trainable(fidelity):
        raise _no_rule(f"{type(fidelity).__name__} with parameters to learn")
    alike = single_level(factors)
    if type(fidelity) is L2:
        if alike is not None:
            return L2(fidelity.sigma * math.sqrt(alike))
        return PerImage(torch.full((1, 1), fidelity.weight, dtype=torch.float64), 1 / factors)
    if type(fidelity) is WeightedL2:
        if alike is not None:
            return WeightedL2(fidelity.weights / alike)
        return PerImage(fidelity.weights, 1 / factors)
    if type(fidelity) is Huber:
        ratio = single_level(ratios)
        if alike is not None and ratio is not None:
            # what counts as an outlier grows with the noise
            return Huber(fidelity.threshold * ratio, fidelity.weight / alike)
        raise _no_rule("Huber and one noise level per image", "Solve image by image.")
    raise _no_rule(type(fidelity).__name__)


def _no_rule(given: str, remedy: str = "") -> MissingPropertyError:
    return MissingPropertyError(
        "fidelity",
        given=given,
        expected="L2, WeightedL2 or Huber with fixed numbers: data terms for Gaussian noise",
        remedy=remedy or "Learn at the noise level that you need; no rule is known.",
    )


class PerImage(WeightedL2):
    """WeightedL2 times a number for every image.

    Args:
        weights: as for ``WeightedL2``.
        shares: (b,), positive.
    """

    shares: Tensor

    def __init__(self, weights: Tensor, shares: Tensor) -> None:
        super().__init__(weights.detach())
        self.register_buffer("shares", shares)

    def replaced(self, **tensors: Tensor) -> Self:
        return type(self)(tensors["weights"], self.shares)

    def of(self, y: Tensor) -> WeightedL2:
        """For the real measurements y (b, ...).

        Raises:
            InputError: another number of images.
        """
        if self.shares.numel() != y.shape[0]:
            raise InputError(
                "sigma",
                given=f"{self.shares.numel()} noise levels",
                expected=f"one for all images, or {y.shape[0]}",
            )
        shares = self.shares.to(y).reshape(-1, *[1] * (y.dim() - 1))
        return WeightedL2(fitted("weights", self.weights, y) * shares)

    def tie(self, y: Tensor) -> Quadratic:
        return self.of(y).tie(y)

    def bounds(self, operator: TiedMap, x: Tensor) -> Curvature:
        spectrum = super().bounds(operator, x)
        return Curvature(
            spectrum.mu * float(self.shares.min()), spectrum.L * float(self.shares.max())
        )

    def of_image(self, operator: TiedMap, y: Tensor, u: Tensor, tikhonov: float) -> Convex | None:
        return self.of(y).of_image(operator, y, u, tikhonov)

    def of_data(self, y: Tensor) -> Convex:
        return self.of(y).of_data(y)
