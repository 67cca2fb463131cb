"""The scale of a regularizer first: a search along one direction, on a few images, by estimates.

The right weight of a regularizer depends on the norm of the operator, the units of the data and the
noise; a start that fits one of them is off by orders of magnitude for another, and too large a
weight makes every solve dear. Along s with R(theta + t s) = e^t R(theta) the loss has, as a rule,
one valley. It is looked for at the start, and at the start times the curvature of the data (the
weights of regularizers are meant for operators of norm one and data of weight one); then it is
walked down in doubling steps and closed in by parabolas, on two images or an
eighth of them, so that it costs little more than a few evaluations of each image.

Nothing of this is certified: whoever uses it certifies what comes of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..core.asking import offers
from ..core.errors import MissingPropertyError
from ..core.objective import Objective, Rescaling, Value

PART, LEAST = 8, 2
"""One of so many images is looked at, and so many at least."""

FARTHEST = 31.0
"""In |t|: a factor of 3e13."""

SURE = 0.1
"""A loss that is lower by less than this part is none the better: two images are not all of them
(measured on MRI, where the valley is flat and a gain of 6 % on two was a loss on all).
"""

DOWN = 0.01
"""The loss has to fall by this part for a direction to be walked into."""

NARROW = 1.4
"""The valley is known well enough when its sides are no farther apart, in t."""

LOOKS = 4
"""Parabolas at most."""

FINER = 0.1
"""Accuracy of a look, over the one that an objective derives for a start."""


def rescaled(objective: Objective, theta: Tensor) -> Tensor:
    """theta with the scale at which the estimated loss of some images is lowest; itself where no
    scale is known, or none is better by a tenth.

    Raises:
        OutOfBudget: the budget was used up.
    """
    known: object = objective
    if not offers(known, Rescaling):
        return theta
    direction = known.scaling.to(theta)
    if not bool(direction.any()):
        return theta

    count = min(objective.size, max(LEAST, objective.size // PART))
    places = torch.linspace(0, objective.size - 1, count).round().long()
    loss = _Look(objective.subset(places), theta, direction)
    return theta + lowest(loss, known.stiffness(theta)) * direction


class _Look:
    """t -> estimated loss; every look starts from the solution of the one before."""

    def __init__(self, objective: Objective, theta: Tensor, direction: Tensor) -> None:
        self.objective, self.theta, self.direction = objective, theta, direction
        self.near: Value | None = None

    def __call__(self, t: float) -> float:
        theta = self.theta + t * self.direction
        try:
            eps, _ = self.objective.accuracies(theta, None, 1.0)
            if self.near is None:
                found: Value | None = self.objective.evaluate(theta, FINER * eps)
            else:
                found = self.objective.trial(theta, FINER * eps, self.near)
        except MissingPropertyError:  # so far out that there are no constants
            return math.inf
        if found is None or found.failed:
            return math.inf
        self.near = found
        return found.loss


def lowest(loss: Callable[[float], float], guess: float = 0.0) -> float:
    """The t of a low loss, from 0 or from the guess; 0 where none is lower by a tenth.

    >>> round(lowest(lambda t: 1 + (t + 5.2) ** 2), 1)
    -5.2
    >>> round(lowest(lambda t: min(9.0, (t - 14.2) ** 2 + 1), guess=13.0), 1)
    14.2
    >>> lowest(lambda t: 1.0)
    0.0
    """
    known = {t: loss(t) for t in ([0.0, guess] if abs(guess) >= 1 else [0.0])}
    for start in sorted(known, key=lambda t: known[t]):
        before = min(known.values())
        _walk(loss, known, start)
        # why go on: where R counts for nothing, or for all, the loss is flat
        if min(known.values()) < (1 - SURE) * before:
            break

    for _ in range(LOOKS):
        best = min(known, key=lambda t: known[t])
        inside = _inside(known, best)
        if inside is None:
            break
        known[inside] = loss(inside)
    best = min(known, key=lambda t: known[t])
    return best if known[best] < (1 - SURE) * known[0.0] else 0.0


def _walk(loss: Callable[[float], float], known: dict[float, float], start: float) -> None:
    """Down from a start, in steps that double; adds to what is known."""
    for side in (-1.0, 1.0):
        step = side
        known[start + step] = loss(start + step)
        if known[start + step] < (1 - DOWN) * known[start]:
            break
    else:
        return
    while abs(step) < FARTHEST:
        farther = 2 * step + side
        known[start + farther] = loss(start + farther)
        if known[start + farther] >= known[start + step]:
            return
        step = farther


def _inside(known: dict[float, float], best: float) -> float | None:
    """The next place to look at between the neighbours of the best one; None where they are near
    enough, or it has none on one side.
    """
    below = [t for t in known if t < best]
    above = [t for t in known if t > best]
    if not below or not above:
        return None
    a, b = max(below), min(above)
    if b - a <= NARROW:
        return None

    fa, f, fb = known[a], known[best], known[b]
    middle = best + 0.38 * (a - best if best - a > b - best else b - best)
    if not math.isfinite(fa + fb):
        return middle
    p = (best - a) ** 2 * (f - fb) - (best - b) ** 2 * (f - fa)
    q = (best - a) * (f - fb) - (best - b) * (f - fa)
    t = best - 0.5 * p / q if q else middle
    # a parabola that only repeats what is known, or leaves the valley
    margin = 0.1 * (b - a)
    near = min(abs(t - s) for s in (a, best, b)) < margin
    return middle if near or not a < t < b else t
