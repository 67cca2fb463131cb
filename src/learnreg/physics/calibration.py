"""Calibration: the parameters of an operator from images and their measurements, without any
regularizer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from ..core.asking import offers
from ..core.errors import InputError
from ..core.measured import Measured, measured, tensors_of
from ..core.offers import Units
from ..core.params import flatten, set_theta, slope_in, trainable
from ..core.ranges import check_integer, check_positive, shown
from ..operators.foreign import LinearPhysicsLike
from ..operators.private import clone, promoted

MEMORY = 50
"""Curvature pairs: more than most kernels have taps, and few numbers beside an image."""


FLAT = 1e-13
"""A slope that is this small beside ||y||^2 is rounding in float64."""


class XY(Protocol):
    """Images and their measurements."""

    @property
    def x(self) -> Tensor | None: ...
    @property
    def y(self) -> Tensor | Measured: ...


class Holder(Protocol):
    """Anything with measurements; images may be missing."""

    @property
    def y(self) -> Tensor | Measured: ...


class WithParams(Protocol):
    """Pairs with parameters of the operator for every image."""

    params: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Calibration:
    """An operator fitted to pairs.

    Attributes:
        physics: a copy of what was handed in, with the fitted parameters.
        start, misfit: mean over the images of 1/2 ||A x - y||^2, before and after.
        rms: root mean square of an entry of A x - y; that of the noise where the model is right.
        slope: norm of the gradient in natural units, relative to that at the start.
        evaluations: of the misfit and its gradient, each one A and one vector-Jacobian product for
            all images.
    """

    physics: nn.Module
    start: float
    misfit: float
    rms: float
    slope: float
    evaluations: int


def calibrate(
    physics: nn.Module, pairs: XY, *, steps: int = 500, tolerance: float = 1e-6
) -> Calibration:
    """Fit an operator to images and measurements: min over theta of sum_i 1/2 ||A(theta) x_i -
    y_i||^2.

    No regularizer and no reconstruction take part: with white noise of one level this is the
    maximum likelihood estimate of theta, while what bilevel learning finds is the operator that
    reconstructs best with its regularizer. L-BFGS with a strong Wolfe line search (Nocedal and
    Wright, Algorithm 7.5) in float64, in natural units; convex where A is linear in theta
    (``Free``).

    Args:
        physics: a ``LearnedPhysics``, or another physics with trainable tensors; a copy is fitted.
        pairs: ``.x`` (n, c, ...) and ``.y``, with ``.params`` where the operator differs from image
            to image.
        steps: L-BFGS steps at most.
        tolerance: stop where the gradient is this much smaller than at the start.

    Raises:
        InputError: nothing to learn, pairs without images, measurements of another shape, images
            that say nothing of theta.

    >>> import deepinv, torch
    >>> from types import SimpleNamespace
    >>> from learnreg.physics import GaussianKernel, LearnedPhysics
    >>> x = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    >>> blur = deepinv.physics.Blur(torch.ones(1, 1, 3, 3) / 9, padding="circular")
    >>> learned = LearnedPhysics(blur, {"filter": GaussianKernel(3)})
    >>> found = calibrate(learned, SimpleNamespace(x=x, y=blur(x)))
    >>> found.misfit < 1e-6 * found.start
    True
    """
    check_integer("steps", steps, 1)
    check_positive("tolerance", tolerance)
    data = _data(pairs)
    wide = cast(LinearPhysicsLike, clone(physics)._apply(promoted))
    params = trainable(wide)
    if not params:
        raise InputError(
            "physics",
            given=f"{type(physics).__name__} without a trainable tensor",
            expected="something to learn",
            remedy='For example lr.physics.LearnedPhysics(blur, {"filter": '
            "lr.physics.GaussianKernel(5)}).",
        )
    units = (wide.units() if offers(wide, Units) else torch.ones(0)).to(params[0])
    fit = _Fit(wide, data, units if units.numel() else torch.ones_like(flatten(params)))
    v = (flatten(params) / fit.units).requires_grad_()
    start, slope = fit(v)
    first = float(slope.norm())
    # why not zero: images that say nothing leave the rounding of A x - y
    least = FLAT * sum(float(t.abs().square().sum()) for t in data.y) / len(data.x)
    if not first > least or not math.isfinite(start):
        raise InputError(
            "pairs",
            given=f"images and measurements with the misfit {start:.3g} and the slope {first:.3g}",
            expected="images that A x shows the parameters of",
            remedy="Use images with edges, and parameters that do not fit perfectly already.",
        )
    fit.minimize(v, steps, tolerance * first, start)
    misfit, slope = fit(v)

    fitted = clone(physics)
    set_theta(fitted, flatten(params))
    count = sum(t[0].numel() for t in tensors_of(data.y))
    return Calibration(
        fitted, start, misfit, math.sqrt(2 * misfit / count), float(slope.norm()) / first, fit.count
    )


@dataclass(frozen=True, eq=False)
class _Data:
    """Pairs in float64.

    Attributes:
        x: (n, c, ...).
        y: one tensor or several.
        params: of the operator, for every image.
    """

    x: Tensor
    y: tuple[Tensor, ...]
    params: Mapping[str, Tensor]


def _data(pairs: XY) -> _Data:
    """The pairs of any holder.

    Raises:
        InputError: no images, or another number of measurements.
    """
    given_as: object = pairs
    if not offers(given_as, Holder):
        raise InputError(
            "pairs",
            given=shown(given_as),
            expected="pairs with images .x and their measurements .y",
            remedy='For example lr.data.Pairs(x, y, physics, ("a", "b")).',
        )
    if pairs.x is None:
        raise InputError(
            "pairs",
            given="measurements without images",
            expected="images and their measurements",
            remedy="Without images learn by a loss of measurements, lr.BilevelProblem(energy, y, "
            "loss=...).",
        )
    _check_numbers("pairs.x", pairs.x)
    given = measured(pairs.y)
    for t in tensors_of(given.y):
        _check_numbers("pairs.y", t)
    own = given.params or (pairs.params if offers(pairs, WithParams) else {})
    y = tuple(promoted(t) for t in given.tensors)
    if len(pairs.x) == 0 or any(len(t) != len(pairs.x) for t in y):
        raise InputError(
            "pairs",
            given=f"{len(pairs.x)} images and {len(y[0])} measurements",
            expected="the same positive number of both",
        )
    return _Data(promoted(pairs.x), y, {name: promoted(t) for name, t in (own or {}).items()})


def _check_numbers(name: str, t: object) -> None:
    """Raises: InputError for what is no tensor of finite floating-point or complex numbers."""
    if not isinstance(t, Tensor) or not (t.is_floating_point() or t.is_complex()):
        raise InputError(
            name,
            given=shown(t),
            expected="a floating-point tensor",
            remedy="Convert with torch.as_tensor(...).float().",
        )
    if not bool(torch.isfinite(t).all()):
        raise InputError(
            name,
            given="NaN or Inf",
            expected="finite numbers",
            remedy="Remove or repair these images.",
        )


def _shapes(tensors: tuple[Tensor, ...]) -> str:
    return ", ".join(str(tuple(t.shape)) for t in tensors)


class _Fit:
    """The misfit as a function of theta in units.

    Attributes:
        units: (d,).
        count: evaluations.
    """

    def __init__(self, physics: LinearPhysicsLike, data: _Data, units: Tensor) -> None:
        self.physics, self.data, self.units, self.count = physics, data, units, 0

    def __call__(self, v: Tensor) -> tuple[float, Tensor]:
        """Value and gradient (d,)."""
        self.count += 1
        params = trainable(self.physics)
        set_theta(self.physics, v.detach() * self.units)
        with torch.enable_grad():
            made = tensors_of(self.physics.A(self.data.x, **self.data.params))
            if [t.shape for t in made] != [t.shape for t in self.data.y]:
                raise InputError(
                    "pairs",
                    given=f"measurements of shape {_shapes(self.data.y)}",
                    expected=f"{_shapes(made)}, as A x",
                    remedy="Fit the physics that made them, with its padding and factor.",
                )
            parts = [(a - b).abs().square().sum() for a, b in zip(made, self.data.y, strict=True)]
            total = torch.stack(parts).sum() / (2 * len(self.data.x))
            slope = slope_in(total, params)
        return float(total.detach()), slope * self.units

    def minimize(self, v: Tensor, steps: int, least: float, scale: float) -> None:
        """L-BFGS on v in place, until every entry of the gradient is below ``least``.

        What is minimized is divided by ``scale``: the first step of torch's L-BFGS, and where its
        line search gives up, know no units.
        """
        optimizer = torch.optim.LBFGS(
            [v],
            max_iter=steps,
            max_eval=4 * steps,
            history_size=MEMORY,
            tolerance_grad=least / scale / math.sqrt(v.numel()),
            tolerance_change=0.0,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            value, slope = self(v)
            v.grad = slope / scale
            return torch.tensor(value / scale, dtype=v.dtype)

        optimizer.step(closure)
