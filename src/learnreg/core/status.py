"""Status per sample: why a computation ended, with the sentence the user reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from enum import Enum


class Status(Enum):
    """Why the computation of one image ended; the value is the sentence shown to the user."""

    CONVERGED = "the accuracy asked for was reached"
    ROUNDING_FLOOR = (
        "the accuracy asked for lies below what this floating-point type can reach; "
        "ask for a larger eps or use float64"
    )
    MAX_STEPS = (
        "the largest number of steps was reached before the accuracy; raise max_steps or loosen eps"
    )
    NOT_FINITE = "NaN or Inf appeared; check the input and the parameters"
    INDEFINITE = (
        "the matrix or its preconditioner is not positive definite; "
        "MINRES takes any symmetric matrix"
    )
    BUDGET = "the budget was used up before the accuracy was reached"

    @property
    def ok(self) -> bool:
        return self is Status.CONVERGED


def summarize(statuses: Iterable[Status]) -> str:
    """One sentence for many images.

    >>> summarize([Status.CONVERGED, Status.CONVERGED])
    'all 2: the accuracy asked for was reached'
    """
    counts = Counter(statuses)
    total = sum(counts.values())
    parts = [
        f"{'all ' if n == total else ''}{n}{'' if n == total else f' of {total}'}: {status.value}"
        for status, n in counts.most_common()
    ]
    return "; ".join(parts)
