"""Held-out pairs that a run looks at now and then while it learns: whether what it learns is still
good for other images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from ..core.errors import InputError, MissingPropertyError
from ..core.measured import Measured
from ..core.meter import Meter
from ..core.objective import Objective, Row
from ..core.ranges import shown
from ..objectives.bilevel import Bilevel
from ..problems import BilevelProblem
from ..problems.bilevel import PairsLike

SHARE = 0.1
"""Validation takes no more of the work than this; the first and the last step are always looked
at.
"""

FINER = 0.1
"""Accuracy of the reconstructions, relative to that with which learning would start."""

MOST_STEPS = 5000
"""Of one solve: what a learner left where nothing can be solved must not take longer than the
learning.
"""

KEYS = ("validation_loss", "validation_psnr", "validation_work")
"""What a row of the record gets; None where the step was not looked at."""


class Validation:
    """Looks at steps of a run with held-out pairs.

    Every look starts from the data, not from the look before: what it finds depends on theta alone,
    and a resumed run finds the same.

    Args:
        objective: what is learned.
        pairs: held-out pairs of the same kind.

    Raises:
        InputError: an objective without a lower level, or pairs that do not fit to it.
    """

    def __init__(self, objective: Objective, pairs: PairsLike | Tensor | Measured) -> None:
        if not isinstance(objective, Bilevel):
            raise InputError(
                "validation",
                given=f"{shown(type(pairs))} for {type(objective).__name__}",
                expected="None: only a BilevelProblem has images to be validated",
                remedy="Leave validation out.",
            )
        learned = objective.problem
        try:
            held_out = BilevelProblem(learned.energy, pairs, learned.loss).to(learned.dtype)
        except InputError as error:
            raise InputError(
                f"validation {error.what}",
                given=error.given,
                expected=error.expected,
                remedy=error.remedy,
            ) from error
        self.objective = objective.on(held_out)
        self.objective.meter = Meter()  # its work is not the learner's

    def identity(self) -> tuple[object, ...]:
        """The pairs: a run that goes on with others would compare what cannot be compared."""
        return self.objective.problem.truth, self.objective.problem.data

    def due(self, rows: Sequence[Row]) -> bool:
        """Whether the last row is to be looked at: the first is, and others where the share of the
        work allows it.
        """
        looks = [row[KEYS[-1]] for row in rows if row.get(KEYS[-1]) is not None]
        if not looks or len(rows) == 1:
            return not looks
        latest = looks[-1] - (looks[-2] if len(looks) > 1 else 0)
        return rows[-1].get(KEYS[-1]) is None and looks[-1] + latest <= SHARE * rows[-1]["work"]

    def look(self, theta: Tensor, rows: Sequence[Row]) -> Row:
        """Loss and PSNR at theta, None where nothing can be solved, and the work of all looks."""
        found = [row[KEYS[-1]] for row in rows if row.get(KEYS[-1]) is not None]
        before = found[-1] if found else 0
        objective = self.objective
        if theta.dtype != objective.theta.dtype:
            objective = objective.widened()
        spent = objective.meter.cost.work
        loss = quality = None
        try:
            eps, _ = objective.accuracies(objective.theta, None, 1.0)
            value = objective.evaluate(theta, FINER * eps, None, MOST_STEPS)
            if not value.failed:
                loss, quality = value.loss, value.row()["psnr"]
        except MissingPropertyError:  # so far out that the energy has no finite constants
            pass
        work = before + objective.meter.cost.work - spent
        return dict(zip(KEYS, (_finite(loss), _finite(quality), work), strict=True))


def best_step(rows: Sequence[Row]) -> int | None:
    """The step whose validation loss was the smallest, the first of several; None without any."""
    seen = [row for row in rows if row.get(KEYS[0]) is not None]
    return min(seen, key=lambda row: row[KEYS[0]])["step"] if seen else None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
