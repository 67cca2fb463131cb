"""Steps inside a ball and a box: the convex trust-region subproblem, and the longest reach along a
direction.

    min_s  q(s) = 2 <g, s> + <s, H s>   over  lower <= s <= upper,  ||s|| <= radius,   H positive
    semidefinite.
For lambda >= 0 let s(lambda) minimize q(s) + lambda ||s||^2 over the box alone. Its length falls
with lambda, is at most ||g|| / lambda (the variational inequality at s = 0, which lies in the box),
and where it equals the radius, s(lambda) solves the subproblem with lambda as the multiplier of the
ball (Conn, Gould, Toint, Trust-Region Methods, Section 7.3, for the ball alone). The root is found
by bisection of log lambda; the box-constrained problems are solved by an active-set method, finite
because every one is strictly convex.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

SINGULAR = 1e-13
"""The least lambda, relative to trace(H): a Hessian that Gauss-Newton leaves singular is made
definite by it.
"""

ROOT_STEPS, ON_SPHERE = 100, 1e-9
"""Of the bisection, which ends when the step is as long as the radius up to this fraction of it."""


def constrained_step(
    g: np.ndarray, h: np.ndarray, lower: np.ndarray, upper: np.ndarray, radius: float
) -> np.ndarray:
    """The minimizer of q over ball and box.

    Args:
        g: (n,), half the gradient.
        h: (n, n), symmetric positive semidefinite.
        lower, upper: (n,), lower <= 0 <= upper, infinite where there is no bound.
        radius: positive.

    Returns:
        (n,), feasible to the last bit of the box, in the ball up to rounding.
    """
    eye = np.eye(len(g))
    steepest = float(np.linalg.norm(g))
    if steepest == 0:
        return np.zeros_like(g)
    largest = steepest / radius
    least = min(max(SINGULAR * float(np.trace(h)), SINGULAR * largest), largest)

    def at(multiplier: float) -> np.ndarray:
        return box_minimizer(g, h + multiplier * eye, lower, upper)

    return _in_ball(at, least, largest, radius)


def longest_step(
    direction: np.ndarray, lower: np.ndarray, upper: np.ndarray, radius: float
) -> np.ndarray:
    """The s in ball and box with the largest |<direction, s>|; arguments as in
    ``constrained_step``.
    """
    size = float(np.linalg.norm(direction))
    if size == 0:
        return np.zeros_like(direction)

    def reach(sign: float) -> np.ndarray:
        return _in_ball(
            lambda v: np.clip(sign * direction / v, lower, upper),
            1e-12 * size / radius,
            size / radius,
            radius,
        )

    return max((reach(1.0), reach(-1.0)), key=lambda s: abs(float(direction @ s)))


def box_minimizer(g: np.ndarray, h: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """argmin 2 <g, s> + <s, H s> over lower <= s <= upper, for positive definite H, by an
    active-set method.

    From s = 0: Newton steps in the free entries, cut at the first bound they meet, which becomes
    active; at a minimizer over the free entries the active bound that pulls hardest in the wrong
    direction is freed.
    """
    s = np.zeros_like(g)
    free, fixed = (lower < 0) & (upper > 0), lower >= upper
    for _ in range(50 * len(g) + 50):
        move = np.zeros_like(s)
        if free.any():
            move[free] = np.linalg.solve(h[np.ix_(free, free)], -(g + h @ s)[free])
        with np.errstate(divide="ignore", invalid="ignore"):
            room = np.where(
                move > 0, (upper - s) / move, np.where(move < 0, (lower - s) / move, np.inf)
            )
        first = int(np.argmin(room))
        if room[first] < 1:
            s = np.clip(s + room[first] * move, lower, upper)
            s[first] = upper[first] if move[first] > 0 else lower[first]
            free[first] = False
            continue
        s = np.clip(s + move, lower, upper)
        slope = g + h @ s
        pull = np.where(s <= lower, -slope, np.where(s >= upper, slope, 0.0)) * ~(free | fixed)
        hardest = int(np.argmax(pull))
        if pull[hardest] <= 1e-12 * float(np.abs(g).max()):
            break
        free[hardest] = True
    return s


def _in_ball(
    at: Callable[[float], np.ndarray], least: float, largest: float, radius: float
) -> np.ndarray:
    """s(lambda) at the lambda in [least, largest] where its length is the radius; s(least) if that
    is shorter.
    """
    s = at(least)
    if np.linalg.norm(s) <= radius:
        return s
    low, high, shorter = np.log(least), np.log(largest), at(largest)
    for _ in range(ROOT_STEPS):
        middle = 0.5 * (low + high)
        s = at(float(np.exp(middle)))
        excess = float(np.linalg.norm(s)) - radius
        if excess > 0:
            low = middle
        else:
            high, shorter = middle, s
        if abs(excess) <= ON_SPHERE * radius:
            break
    length = float(np.linalg.norm(shorter))
    return (
        shorter * min(1.0, radius / length) if length > 0 else shorter
    )  # towards 0, which keeps it in the box
