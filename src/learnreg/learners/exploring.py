"""Descent that is guided by estimates: MAID's steps without their proofs, for blocks of them.

Where mu is tiny, certified distances are some hundred times the true ones (400 to 1000 times,
measured on MRI, tomography and deblurring with mu = 1e-3), and a step that is to be certified waits
for digits that no decision needs. Here the range of f around its corrected value c = g(x~) - <q, r>
(``Value.corrected``), r the gradient of the lower level at x~ and q the adjoint, is taken to be as
wide as the mean size of the corrections, |<q_i, r_i>| of every image (``Value.doubt``): an
*estimate* of first order for an error of second. It is what decides about a trial, and it says how
far to solve. The error of the gradient is not looked at; where a search fails, x~ and q are made
more exact. Nothing of it is certified: the end of the block is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ..core.objective import Halt, Objective, Value
from .descent import DescentRules, DescentState, descend

TRIALS = 3
"""Trials of a search, one more after each that has failed: a direction that has failed thrice comes
from a solution that is not exact enough, and shorter steps do not help."""

ADJOINT = 5.0
"""delta of the exploration over that of a certified step. Measured on CT and MRI: at a tenth of the
slope of the loss, hypergradients cost half as much and steps are as good."""


def exploring(rules: DescentRules) -> DescentRules:
    """The rules of a step that is to be certified, for one that is not."""
    return replace(
        rules,
        trials=min(TRIALS, rules.trials),
        test="estimated",
        error="none",
        decrease="estimated",
    )


def first_exploration(start: DescentState, delta0: float) -> DescentState:
    """Where an exploration begins that has none before it."""
    return replace(start, delta=ADJOINT * delta0, info={})


def moved_to(explored: DescentState, point: Value) -> DescentState:
    """The exploration goes on from the end of its block, which is certified now: the same theta,
    solved more exactly.
    """
    return replace(explored, point=point)


def explored_by_descent(
    rules: DescentRules,
    objective: Objective,
    state: DescentState,
    steps: int,
    enough: Callable[[], bool],
) -> tuple[DescentState | None, int]:
    """Up to ``steps`` steps by estimates; None where there was not one, and how many there were.

    Args:
        enough: asked after every step; True ends the block early.
    """
    inside, now = exploring(rules), state
    for done in range(steps):
        try:
            now = descend(inside, objective, now)
        except Halt:
            # what has been reached may be worth a certificate
            return (now if done else None), done
        if enough():
            return now, done + 1
    return now, steps
