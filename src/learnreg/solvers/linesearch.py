"""Line searches that need gradients only: when a trial along a descent direction is good enough,
and what to try next.

slope(alpha) = <grad h(x + alpha d), d>, slope(0) < 0. A trial is accepted when
    slope(alpha) <= RISE |slope(0)|
(the approximate Wolfe condition of Hager and Zhang, SIAM J. Optim. 2005). Where that alone has not
helped for a while,
    slope(alpha) <= DESCENT slope(0) < 0
is asked for instead, which for a convex h implies the Armijo decrease h(x + alpha d) <= h(x) +
DESCENT alpha slope(0).
"""

from __future__ import annotations

import torch
from torch import Tensor

RISE, DESCENT = 0.8, 1e-4

PATIENCE = 15
"""Steps without a halved gradient norm after which an image is held to the proven decrease."""


def accepts(slope: Tensor, first: Tensor, waiting: Tensor) -> Tensor:
    """Whether a trial with ``slope`` is good enough, per image (b,); ``first`` is the slope at 0.

    A NaN passes, so that it reaches the evidence and with it the loop.
    """
    return ~(slope > torch.where(waiting > PATIENCE, DESCENT, -RISE) * first)


def shorter(alpha: Tensor, slope: Tensor, first: Tensor, rejected: Tensor | int = 0) -> Tensor:
    """The next step size by the secant rule, between a tenth and a half of ``alpha``; (b,).

    A tenth after ``rejected`` > 2 trials in a row: beyond a kink the slope says nothing of the
    distance.
    """
    cut = (first / (first - slope)).clamp(0.1, 0.5).nan_to_num(0.1)
    return alpha * torch.where(torch.as_tensor(rejected) > 2, 0.1, cut)


def watch(size: Tensor, best: Tensor, waiting: Tensor) -> tuple[Tensor, Tensor]:
    """``best`` and ``waiting`` after a step that ended with gradient norm ``size``; all (b,)."""
    halved = size < 0.5 * best
    return torch.where(halved, size, best), torch.where(halved, 0, waiting + 1)
