"""What an objective grants and what a learner needs, checked once and worded in one place."""

from __future__ import annotations

from enum import Flag, auto

from .errors import MissingPropertyError


class Grants(Flag):
    """What can be asked of an objective, or of the solution map behind it.

    Attributes:
        LOSS: the loss at any theta.
        GRADIENT: its gradient, inexact.
        BRACKET: a range that contains the exact loss.
        ADAPTIVE: accuracy means something: a smaller eps gives a better loss and gradient.
        ESTIMATE: an estimate of the error of the gradient.
        BOUND: a proven bound of it, which eps and delta make as small as one likes.
        RESIDUALS: the loss as a sum of squares with known residuals.
        SUBSETS: the same objective on some of the images.
        DATA: derivatives with respect to the measurements.
        STATELESS: a reconstruction depends on theta and data alone, not on where the solve before
            it ended.
    """

    NONE = 0
    LOSS = auto()
    GRADIENT = auto()
    BRACKET = auto()
    ADAPTIVE = auto()
    ESTIMATE = auto()
    BOUND = auto()
    RESIDUALS = auto()
    SUBSETS = auto()
    DATA = auto()
    STATELESS = auto()


STEADY = Grants.DATA | Grants.STATELESS
"""Of solution maps that are functions of theta and data, and differentiable in both."""


REFUSALS: dict[Grants, tuple[str, str, str]] = {
    Grants.ADAPTIVE: (
        "hypergradient",
        "a strategy whose lower level is solved as accurately as {who} asks for",
        "Use start='solution', or a learner that needs no accuracy, such as a stochastic one.",
    ),
    Grants.BOUND: (
        "hypergradient",
        "an error bound that eps and delta make as small as the test asks for",
        "Use Implicit(), or MAID(test='estimated').",
    ),
    Grants.BRACKET: (
        "loss",
        "a loss with a range around its value, which {who} compares",
        "Use a loss with known constants such as SquaredError(), or LBFGSB().",
    ),
    Grants.RESIDUALS: (
        "loss",
        "a sum of squares whose residuals are known to an accuracy, for {who}",
        "Use SquaredError() or another loss >= 0 with a known smoothness, or MAID().",
    ),
    Grants.GRADIENT: (
        "objective",
        "an objective that can be differentiated, for {who}",
        "Use a learner that needs losses only: DFO(), GridSearch(), RandomSearch().",
    ),
    Grants.SUBSETS: (
        "objective",
        "an objective of independent images, of which {who} takes a few at a time",
        "Use a learner that looks at all images, such as MAID().",
    ),
    Grants.LOSS: ("objective", "an objective that tells its loss", "Use another objective."),
    Grants.ESTIMATE: (
        "hypergradient",
        "an estimate of the error of the hypergradient, for {who}",
        "Use Implicit().",
    ),
    Grants.STATELESS: (
        "hypergradient",
        "a strategy whose reconstruction depends on theta and data alone, for {who}",
        "Use Implicit() or Piggyback().",
    ),
    Grants.DATA: (
        "hypergradient",
        "a strategy that differentiates with respect to the measurements, for {who}",
        "Use Implicit().",
    ),
}
"""What is said where a need is not met: of what, expected, remedy."""


def check_needs(who: str, needs: Grants, grants: Grants, given: str) -> None:
    """Refuse what lacks a grant, before the first iteration.

    Args:
        who: the learner, for the message.
        given: the description of what was handed in.

    Raises:
        MissingPropertyError: names the first missing grant, and what to use instead.
    """
    for grant in needs:
        if grant not in grants:
            what, expected, remedy = REFUSALS[grant]
            raise MissingPropertyError(
                what, given=given, expected=expected.format(who=who), remedy=remedy
            )
