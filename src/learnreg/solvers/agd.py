"""Accelerated gradient for strongly convex energies, with restart and a local estimate of L, all
per image.

Recursion (Nesterov, Lectures on Convex Optimization, scheme 2.2.22, constant momentum), g_k = grad
h(y_k):
    x_{k+1} = y_k - g_k / L,   y_{k+1} = x_{k+1} + beta (x_{k+1} - x_k),   beta = (1 - sqrt(mu/L)) /
    (1 + sqrt(mu/L)).
Restart (O'Donoghue and Candes 2015, gradient scheme): beta = 0 for one step when <g_k, x_{k+1} -
x_k> > 0. Local L: starts at a fraction of the proven bound and is raised, never above the bound,
whenever the observed ratio
||g_k - g_{k-1}|| / ||y_k - y_{k-1}||, a lower bound of L along the path, exceeds it. The
certificate does not use L.

Within bounds both steps are projected, x_{k+1} = P(y_k - g_k / L) and y_{k+1} = P(...), so that the
energy is never asked outside, and L (y_k - x_{k+1}) stands in for g_k in the restart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..core.batch import dot, expand, norm, select_fields
from ..core.bounds import constants_of
from ..core.constraints import domain_of
from ..core.cost import Cost
from ..core.protocols import Potential
from ..core.ranges import check_number, tidy


@dataclass
class AGDState:
    """``point`` is y_k, where the gradient ``g`` is known; ``x`` is the last x_k; the rest is
    (b,): the local L, and mu and L as proven, in the type of the images.
    """

    point: Tensor
    g: Tensor
    x: Tensor
    L: Tensor
    mu: Tensor
    most: Tensor
    evidence: Tensor
    cost: Cost

    def select(self, index: Tensor) -> AGDState:
        """The images ``index`` of the running batch."""
        return select_fields(self, index)


@dataclass(frozen=True)
class AGD:
    """Accelerated gradient; one gradient per step, no function values.

    Args:
        optimism: the first L is this fraction of the proven bound (1 switches the local estimate
            off), in (0, 1].

    Raises:
        InputError: ``optimism`` out of range.
    """

    optimism: float = 0.25
    name: str = "agd"
    bounded: ClassVar[bool] = True

    def __post_init__(self) -> None:
        tidy(self)
        check_number("optimism", self.optimism, lambda v: 0 < v <= 1, "a number in (0, 1]")

    def init(self, f: Potential, x0: Tensor) -> AGDState:
        """One gradient at x0."""
        constants, size, domain = constants_of(f), x0.shape[0], domain_of(f)
        x0 = domain.project(x0)
        start = torch.maximum(constants.mu, self.optimism * constants.L)
        L, mu, most = (c.to(x0).expand(size).clone() for c in (start, constants.mu, constants.L))
        g = f.grad(x0)
        evidence = norm(domain.slope(x0, g))
        return AGDState(x0, g, x0, L, mu, most, evidence, Cost(gradients=size))

    def step(self, f: Potential, state: AGDState) -> AGDState:
        """One gradient step with momentum."""
        domain = domain_of(f)
        x = domain.project(state.point - state.g / expand(state.L, state.g))
        move = x - state.x
        root = torch.sqrt(state.mu / state.L)
        beta = (1 - root) / (1 + root)
        descent = state.g if domain.everywhere else state.point - x
        beta = torch.where(dot(descent, move) > 0, 0.0, beta)
        point = domain.project(torch.addcmul(x, move, expand(beta, move)))
        g = f.grad(point)
        ratio = norm(g - state.g) / norm(point - state.point)
        raised = torch.where(ratio > state.L, torch.minimum(1.05 * ratio, state.most), state.L)
        cost = Cost(gradients=x.shape[0])
        evidence = norm(domain.slope(point, g))
        return AGDState(point, g, x, raised, state.mu, state.most, evidence, cost)
