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
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.batch import dot, expand, norm, select_fields
from ..core.bounds import constants_of
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

    def __post_init__(self) -> None:
        tidy(self)
        check_number("optimism", self.optimism, lambda v: 0 < v <= 1, "a number in (0, 1]")

    def init(self, f: Potential, x0: Tensor) -> AGDState:
        """One gradient at x0."""
        constants, size = constants_of(f), x0.shape[0]
        start = torch.maximum(constants.mu, self.optimism * constants.L)
        L, mu, most = (c.to(x0).expand(size).clone() for c in (start, constants.mu, constants.L))
        g = f.grad(x0)
        return AGDState(x0, g, x0, L, mu, most, norm(g), Cost(gradients=size))

    def step(self, f: Potential, state: AGDState) -> AGDState:
        """One gradient step with momentum."""
        x = state.point - state.g / expand(state.L, state.g)
        move = x - state.x
        root = torch.sqrt(state.mu / state.L)
        beta = (1 - root) / (1 + root)
        beta = torch.where(dot(state.g, move) > 0, 0.0, beta)
        point = torch.addcmul(x, move, expand(beta, move))
        g = f.grad(point)
        ratio = norm(g - state.g) / norm(point - state.point)
        raised = torch.where(ratio > state.L, torch.minimum(1.05 * ratio, state.most), state.L)
        cost = Cost(gradients=x.shape[0])
        return AGDState(point, g, x, raised, state.mu, state.most, norm(g), cost)
