"""Upper losses that need measurements only: learning without ground truth.

- ``SURE``, Stein's unbiased risk estimate, for Gaussian noise of known size. Stein, Ann. Statist.
  9, 1981; the divergence by one random probe: Ramani, Blu, Unser, IEEE Trans. Image Process. 17,
  2008.
- ``Whiteness`` of the residual A x - y, for white noise of unknown size. Lanza, Pragliola,
  Sgallari, Residual whiteness principle, Electron. Trans. Numer. Anal. 53, 2020; in bilevel
  learning: Santambrogio, Pragliola, Lanza, Donatelli, Calatroni, arXiv 2403.07026.

Both see the reconstruction through A, so they tell how well A x is known, not x.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ..core.batch import dot, expand, norm
from ..core.bounds import Bound, Kind
from ..core.errors import InputError, MissingPropertyError
from ..core.maps import Upper
from ..core.measured import Measured, measured
from ..core.params import trainable
from ..core.ranges import check_integer, check_positive, tidy
from ..operators.physics import TiedMap
from .losses import along_gradient
from .per_image import expected
from .tied import AnyTied

PROBE = 0.1
"""The probe of the divergence moves the measurements by this part of the noise."""


@dataclass(frozen=True, eq=False)
class Tying:
    """A loss tied to measurements.

    Attributes:
        data: the measurements whose reconstructions are judged.
        upper: the loss of these reconstructions; its mean is the loss of the batch.
        copies: how often every given measurement occurs, all of them once before any twice.
    """

    data: Tensor | Measured
    upper: Upper
    copies: int = 1


@runtime_checkable
class MeasurementLoss(Protocol):
    """A loss that needs no ground truth."""

    def tie_to(self, energy: AnyTied, data: Tensor | Measured, /) -> Tying:
        """The loss for the measurements of a batch."""
        ...


@dataclass(frozen=True, eq=False)
class Sight:
    """A and A^T in any type, computed in no narrower one than the images or the operator have.

    Attributes:
        operator: of some images.
        dtype: that of the operator.
    """

    operator: TiedMap
    dtype: torch.dtype

    def forward(self, x: Tensor) -> Tensor:
        """A x in the type of x."""
        operator, dtype = self._wide(x)
        return operator.forward(x.to(dtype)).to(x.dtype)

    def adjoint(self, y: Tensor) -> Tensor:
        """A^T y in the type of y."""
        operator, dtype = self._wide(y)
        return operator.adjoint(y.to(dtype)).to(y.dtype)

    def select(self, index: Tensor) -> Sight:
        """Those of the images ``index``."""
        return replace(self, operator=self.operator.select(index))

    def _wide(self, like: Tensor) -> tuple[TiedMap, torch.dtype]:
        if like.dtype == torch.float64 and self.dtype != torch.float64:
            return self.operator.double(), torch.float64
        return self.operator, self.dtype


@dataclass(frozen=True)
class SURE:
    """Stein's unbiased risk estimate: in expectation the mean squared error of A x per measured
    number, for y = A x_true + noise of standard deviation sigma.

    For an image with m measured numbers (those that A can make different from zero: masked ones do
    not count),
        ||A x(y) - y||^2 / m - sigma^2 + 2 sigma^2 / (m tau) <b, A x(y + tau b) - A x(y)>,
    b = +-1 at random. It is a sum of a function of x(y) and a linear one of x(y + tau b), so the
    lower level is solved for twice as many measurements, each with a loss of its own, and every
    bracket is as exact as the norm of A.

    Args:
        sigma: of the noise, positive.
        tau: length of the probe; 0.1 sigma when None.
        seed: of b, which is drawn once.

    Raises:
        InputError: a value out of range.

    >>> SURE(0.1)
    SURE(sigma=0.1, tau=None, seed=0)
    """

    sigma: float
    tau: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        tidy(self)
        check_positive("sigma", self.sigma)
        check_positive("tau", self.tau, optional=True)
        check_integer("seed", self.seed, 0)

    def tie_to(self, energy: AnyTied, data: Tensor | Measured) -> Tying:
        """See ``MeasurementLoss``."""
        refuse_learned_operator(energy, "SURE")
        given = measured(data)
        operator, y, _ = energy.tie(data, None)
        _refuse_shared(operator, given)
        _refuse_units(energy.data_term(data), y)
        tau = self.tau or PROBE * self.sigma

        generator = torch.Generator().manual_seed(self.seed)
        signs = torch.randint(0, 2, y.shape, generator=generator).to(y) * 2 - 1
        seen = _measured_numbers(operator, y)
        signs, y_seen = signs * seen, y * seen
        doubled = _native(operator, torch.cat([y, y + tau * signs]), given)

        half = torch.ones(len(y), dtype=y.dtype, device=y.device)
        per_number = 1 / seen.flatten(1).sum(dim=1).clamp_min(1)
        slope = 2 * self.sigma**2 / tau * per_number
        probe = expand(slope, signs) * signs
        # doubled, for the mean over twice as many reconstructions
        upper = QuadraticUpper(
            Sight(energy.tie(doubled, None)[0], y.dtype),
            torch.cat([y_seen, y_seen]),
            2 * torch.cat([per_number, 0 * half]),
            2 * torch.cat([-probe, probe]),
            -2 * self.sigma**2 * torch.cat([half, 0 * half]),
        )
        return Tying(doubled, upper, copies=2)


def _refuse_units(term: object, y: Tensor) -> None:
    """Refuse measurements that A x is not compared with: counts with a gain or a background.

    Raises:
        InputError: names the data term.
    """
    if not torch.allclose(expected(term, y), y, rtol=1e-4, atol=1e-4 * float(y.abs().max())):
        raise InputError(
            "loss",
            given=f"SURE with {type(term).__name__}, whose A x is gain (y - background)",
            expected="measurements y = A x + Gaussian noise",
            remedy="Use lr.DataConsistency() or lr.Whiteness(), which know gains and backgrounds, "
            "or lr.L2() with measurements in the units of A x.",
        )


def _measured_numbers(operator: TiedMap, y: Tensor) -> Tensor:
    """1 where A x can be different from zero, else 0; the shape of y."""
    like = operator.adjoint(y)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(like.shape, generator=generator).to(like)
    return (operator.forward(x) != 0).to(y)


def _native(operator: TiedMap, y: Tensor, given: Measured) -> Tensor | Measured:
    """Twice as many real measurements as those that the energy takes."""
    both = operator.layout.data_out(y)
    params = {name: torch.cat([t, t]) for name, t in given.params.items()}
    if isinstance(both, Tensor) and not both.is_complex() and not params:
        return both
    return Measured(both, params)


def _refuse_shared(operator: TiedMap, given: Measured) -> None:
    """Refuse tensors per image that the physics keeps to itself: there will be twice as many.

    Raises:
        InputError: says where they belong.
    """
    own = operator.names - set(given.params)
    if own:
        name = min(own)
        raise InputError(
            "physics",
            given=f"one slice per image in {', '.join(sorted(own))}",
            expected="these tensors beside the measurements",
            remedy=f"Pass lr.Measured(y, {{{name!r}: physics.{name}}}) in the place of y.",
        )


@dataclass(frozen=True, eq=False)
class QuadraticUpper:
    """g(x) = w ||A x - y||^2 + <c, A x> + k per image, with w >= 0.

    Attributes:
        sight: A of these images.
        y: (b, ...), real measurements.
        weight: w, (b,).
        linear: c, (b, ...).
        constant: k, (b,).
    """

    sight: Sight
    y: Tensor
    weight: Tensor
    linear: Tensor
    constant: Tensor

    @property
    def signed(self) -> bool:
        """The linear part has no sign."""
        return True

    @cached_property
    def smooth(self) -> Bound:
        """2 w ||A||^2 of the worst image."""
        constants = self.sight.operator.spectrum(self.sight.adjoint(self.y))
        value = 2 * float(self.weight.double().amax() * constants.L.amax())
        return Bound(value, constants.L_kind)

    @property
    def kind(self) -> Kind:
        return self.smooth.kind

    def value(self, x: Tensor) -> Tensor:
        """(b, ...) -> (b,)."""
        a = self.sight.forward(x)
        residual = a - self.y.to(a)
        quadratic = self.weight.to(a) * dot(residual, residual)
        return quadratic + dot(self.linear.to(a), a) + self.constant.to(a)

    def grad(self, x: Tensor) -> Tensor:
        """A^T (2 w (A x - y) + c)."""
        residual = self.sight.forward(x) - self.y.to(x)
        weight = self.weight.to(x).view(-1, *[1] * (residual.dim() - 1))
        return self.sight.adjoint(2 * weight * residual + self.linear.to(x))

    def bracket(self, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """g(x) -+ ||grad g(x)|| eps, above plus L eps^2 / 2; below, convexity needs no more."""
        x = x.double()
        middle, half = self.value(x), norm(self.grad(x)) * eps
        return middle - half, middle + half + 0.5 * self.smooth.value * eps**2

    def select(self, index: Tensor) -> QuadraticUpper:
        return QuadraticUpper(
            self.sight.select(index),
            self.y[index],
            self.weight[index],
            self.linear[index],
            self.constant[index],
        )

    def to(self, dtype: torch.dtype) -> QuadraticUpper:
        return QuadraticUpper(
            self.sight,
            self.y.to(dtype),
            self.weight.to(dtype),
            self.linear.to(dtype),
            self.constant.to(dtype),
        )


@dataclass(frozen=True)
class Whiteness:
    """How far the residual r = A x - y is from white noise: ||r * r||^2 / ||r||^4 with the periodic
    autocorrelation r * r, averaged over channels.

    At least 1 (a flat spectrum), about 2 for white Gaussian noise, and up to the number of pixels
    for a residual that is one wave. The size of the noise plays no part. Brackets are estimated
    (see ``Custom``).
    """

    def tie_to(self, energy: AnyTied, data: Tensor | Measured) -> Tying:
        """See ``MeasurementLoss``.

        Raises:
            InputError: measurements without neighbours, such as a list of numbers per image.
        """
        refuse_learned_operator(energy, "Whiteness")
        operator, y, _ = energy.tie(data, None)
        if y.dim() < 3 or y[0, 0].numel() < 2:
            raise InputError(
                "y",
                given=f"shape {tuple(y.shape)}",
                expected="shape (b, c, ...) with at least one axis of neighbours",
                remedy="Use SURE(sigma), which needs no neighbours.",
            )
        seen = expected(energy.data_term(data), y)
        return Tying(data, WhitenessUpper(Sight(operator, y.dtype), seen))


@dataclass(frozen=True, eq=False)
class WhitenessUpper:
    """``Whiteness`` tied to the measurements.

    Attributes:
        sight: A of these images.
        y: (b, c, ...), real measurements.
    """

    sight: Sight
    y: Tensor

    @property
    def signed(self) -> bool:
        """At least 1."""
        return False

    @property
    def smooth(self) -> Bound:
        """Nobody knows."""
        return Bound.unknown()

    @property
    def kind(self) -> Kind:
        return Kind.ESTIMATE

    def value(self, x: Tensor) -> Tensor:
        """(b, ...) -> (b,)."""
        return self._of(self._residual(x))

    def grad(self, x: Tensor) -> Tensor:
        """A^T of the derivative in the residual, by autograd."""
        residual = self._residual(x).detach()
        with torch.enable_grad():
            at = residual.requires_grad_()
            (slope,) = torch.autograd.grad(self._of(at).sum(), at)
        return self.sight.adjoint(slope)

    def bracket(self, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """Estimated, see ``along_gradient``."""
        x = x.double()
        return along_gradient(self.value, self.value(x), self.grad(x), x, eps.double())

    def select(self, index: Tensor) -> WhitenessUpper:
        return WhitenessUpper(self.sight.select(index), self.y[index])

    def to(self, dtype: torch.dtype) -> WhitenessUpper:
        return replace(self, y=self.y.to(dtype))

    def _residual(self, x: Tensor) -> Tensor:
        return self.sight.forward(x) - self.y.to(x)

    @staticmethod
    def _of(residual: Tensor) -> Tensor:
        """N sum |R|^4 / (sum |R|^2)^2 with the Fourier transform R of N pixels (Parseval)."""
        axes = tuple(range(2, residual.dim()))
        power = torch.fft.fftn(residual, dim=axes).abs().square().flatten(2)
        total = power.sum(dim=2).clamp_min(torch.finfo(residual.dtype).tiny ** 0.5)
        return (power.shape[2] * power.square().sum(dim=2) / total**2).mean(dim=1)


def refuse_learned_operator(energy: AnyTied, who: str) -> None:
    """Refuse a loss of A x where A is learned as well: it could be made small by A alone.

    Raises:
        MissingPropertyError: names the remedy.
    """
    if trainable(energy.physics):
        raise MissingPropertyError(
            "loss",
            given=f"{who} with an operator that is learned",
            expected="an operator without trainable parameters",
            remedy="Fix them with requires_grad_(False), or learn from ground truth.",
        )
