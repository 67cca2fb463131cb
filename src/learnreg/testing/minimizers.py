"""Minimizers that owe nothing to the library's solvers, and how far an image is from them.

A is used as it is, its adjoint never: for small images as a matrix column by column, for larger
ones by automatic differentiation of A. The library's own regularizers are written out again in
``formulas``; of any other class its ``value``, ``grad`` and ``linearize`` are taken at their word
(``check_regularizer`` looks at those).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from ..core.batch import norm
from ..core.constraints import Interval
from ..core.errors import InputError, MissingPropertyError
from ..problems import Energy
from .bounded import Limits, bounded_newton
from .dense import Dense, newton
from .formulas import parts
from .measurements import Forward, of_data
from .nouns import Candidate
from .smooth import Smooth, newton_cg

MOST_PIXELS = 600
"""Up to which the Hessian is a matrix."""


@dataclass(frozen=True)
class Truth:
    """Exact minimizers, as far as double precision goes.

    Attributes:
        minimizer: (b, c, h, w), float64.
        uncertainty: (b,), how far they may be from the true ones: twice the length of the last
            Newton step, and the rounding of the gradient over the smallest curvature.
    """

    minimizer: Tensor
    uncertainty: Tensor


def truth(energy: Energy, y: Tensor, like: Tensor) -> Truth:
    """The minimizers of ``energy`` for the data y, found independently of the library's solvers.

    Args:
        energy: an ``Energy`` (with ``physics``, ``fidelity``, ``regularizer``); not a saddle point.
        y: measurements (b, ...), in the precision in which the energy is used.
        like: (b, c, h, w), images of the shape to be reconstructed; the search begins there.

    Raises:
        InputError: as many images as measurements are needed.
        MissingPropertyError: bounds of pixels, and images of more than ``MOST_PIXELS``, or an
            operator that is not linear.
        RuntimeError: the search did not arrive, so that nothing can be said.
    """
    if like.shape[0] != y.shape[0]:
        raise InputError("like", given=f"{like.shape[0]} images", expected=f"{y.shape[0]}")
    constraint, everyone = energy.constraint, torch.arange(y.shape[0])
    bounds = None if constraint is None else constraint.tied(like.detach().double())
    found = [
        _one(
            energy,
            y[i : i + 1],
            like[i : i + 1],
            None if bounds is None else bounds.select(everyone[i : i + 1]),
        )
        for i in range(y.shape[0])
    ]
    return Truth(torch.cat([t.minimizer for t in found]), torch.cat([t.uncertainty for t in found]))


def true_distance(energy: Energy, y: Tensor, x: Tensor) -> Tensor:
    """||x - x*|| per image (b,), float64, with x* from ``truth``.

    Args:
        energy: an ``Energy``.
        y: measurements (b, ...).
        x: (b, c, h, w), images from wherever they come.

    >>> import deepinv, torch, learnreg
    >>> physics = deepinv.physics.Denoising(deepinv.physics.GaussianNoise(0.1))
    >>> energy = learnreg.Energy(physics, learnreg.regularizers.Tikhonov(1.0))
    >>> y = torch.ones(1, 1, 2, 2)
    >>> round(float(true_distance(energy, y, y)), 6)
    1.0
    """
    return norm(x.detach().double() - truth(energy, y, x).minimizer)


def _one(energy: Energy, y: Tensor, x: Tensor, bounds: Interval | None) -> Truth:
    shape = x.shape[1:]
    forward, data = Forward(energy.physics, x.detach()), of_data(energy.fidelity, _wide(y))
    regularizer = cast(Candidate, energy.regularizer)
    known = parts(regularizer)
    start = x.detach().double()

    if start.numel() <= MOST_PIXELS:
        matrix, offset = forward.matrix(shape)
        if forward.linear(matrix, offset, shape):
            foreign = None if known is not None else _double(regularizer)
            dense = Dense(matrix, offset, y.shape[1:], data, known, foreign, shape)
            if bounds is None:
                return Truth(*newton(dense, start))
            ends = (b.expand_as(start).flatten() for b in (bounds.lower, bounds.upper))
            return Truth(*bounded_newton(dense, start, Limits(*ends)))

    if bounds is not None:
        raise MissingPropertyError(
            "energy",
            given=f"bounds of pixels, and images of {start.numel()}",
            expected=f"at most {MOST_PIXELS} pixels and a linear operator",
            remedy="Take smaller images.",
        )
    foreign = None if known is not None else _double(regularizer)
    return Truth(*newton_cg(Smooth(forward, data, known, foreign), start))


def _double(module: nn.Module) -> Candidate:
    return cast(Candidate, copy.deepcopy(module).to(torch.float64))


def _wide(y: Tensor) -> Tensor:
    return y.detach().to(torch.complex128 if y.is_complex() else torch.float64)
