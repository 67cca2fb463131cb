"""The proximal point of a smooth regularizer, by accelerated gradients."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from ..core.batch import expand, norm
from ..core.bounds import Curvature
from ..core.errors import InputError, MissingPropertyError

MOST_STEPS = 10_000


class Differentiable(Protocol):
    """What is asked of R."""

    def grad(self, x: Tensor) -> Tensor: ...
    def bounds_for(self, x: Tensor) -> Curvature: ...


def proximal_point(r: Differentiable, x: Tensor, gamma: float | Tensor, tol: float) -> Tensor:
    """argmin_z gamma R(z) + 1/2 ||z - x||^2 for every image of x (b, ...).

    Accelerated gradient descent with constant momentum (Nesterov 2004, scheme 2.2.22): the function
    is m-strongly convex with m = 1 + gamma min(mu, 0) and has a Lipschitz constant L = 1 + gamma
    L_R of its gradient g, so that ||g(z)|| / m bounds the distance; it ends at tol ||x||. An image
    that is there waits for the others. Where x requires a gradient, autograd unrolls the steps.

    Args:
        gamma: positive, one number or one per image.
        tol: positive; below the rounding of the type of x it is raised to that.

    Raises:
        InputError: gamma not positive, or so large that a weakly convex R leaves no convexity.
        MissingPropertyError: R does not know its L.
    """
    sizes = torch.as_tensor(gamma, dtype=x.dtype, device=x.device).reshape(-1)
    if sizes.numel() not in (1, x.shape[0]) or not bool((sizes > 0).all()):
        raise InputError("gamma", given=gamma, expected="a positive number, or one for each image")
    known = r.bounds_for(x)
    if not math.isfinite(known.L.value):
        raise MissingPropertyError(
            "regularizer",
            given=f"{type(r).__name__} with unknown L",
            expected="a Lipschitz constant of its gradient",
            remedy="Declare L, or use an algorithm that needs gradients only.",
        )
    mu = min(known.mu.value, 0.0)
    if not bool((1 + sizes * mu > 0).all()):
        raise InputError(
            "gamma",
            given=gamma,
            expected=f"less than {-1 / mu:.4g}, so that the proximal point is unique",
        )
    g, m = expand(sizes, x), expand(1 + sizes * mu, x)
    return _accelerated(r, x, g, m, 1 + g * known.L.value, tol)


def _accelerated(
    r: Differentiable, x: Tensor, gamma: Tensor, m: Tensor, largest: Tensor, tol: float
) -> Tensor:
    """The recursion; an image whose distance is certified stays where it is."""
    root = (m / largest).sqrt()
    momentum = (1 - root) / (1 + root)
    rounding = 4 * torch.finfo(x.dtype).eps * largest.flatten()
    enough = torch.clamp_min(rounding, tol) * norm(x.detach()) * m.flatten()
    old = z = x
    ahead = x
    for _ in range(MOST_STEPS):
        slope = gamma * r.grad(ahead) + (ahead - x)
        done = norm(slope.detach()) <= enough
        if bool(done.all()):
            return ahead
        old, z = z, torch.where(expand(done, x), ahead, ahead - slope / largest)
        ahead = torch.where(expand(done, x), z, z + momentum * (z - old))
    return z
