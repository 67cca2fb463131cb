"""Budget: how long a run may take, in seconds, evaluations or accepted steps, and when it has come
to rest.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass

from ..core.errors import InputError
from ..core.ranges import check_integer, check_number, check_positive, tidy
from ..core.results import StopReason

UNITS = {"seconds": "seconds", "work": "evaluations per image", "steps": "accepted steps"}


class Course:
    """How a loss went with the work, as the best seen so far."""

    def __init__(self) -> None:
        self.work: list[float] = []
        self.best: list[float] = []

    def add(self, work: float, loss: float | None) -> None:
        """One more point; what is not a number is passed over."""
        if loss is None or not math.isfinite(loss):
            return
        self.work.append(work)
        self.best.append(min([loss, *self.best[-1:]]))

    def gain(self, patience: float) -> float | None:
        """How much better the best became within the latest ``patience``, relative to its size
        before; None where so much work has not been done.
        """
        if not self.work:
            return None
        since = bisect.bisect_right(self.work, self.work[-1] - patience) - 1
        if since < 0:
            return None
        before, now = self.best[since], self.best[-1]
        if before == now:
            return 0.0
        return (before - now) / abs(before) if before else math.inf


@dataclass(frozen=True)
class Budget:
    """The run ends when the first limit is reached; the step in progress is then given up.

    Args:
        seconds: wall-clock time, earlier sessions of a resumed run included.
        work: evaluations of the energy per image (mean over images), see ``Cost.work``.
        steps: accepted steps.
        patience: evaluations per image; the run also ends when the best loss has fallen by less
            than ``plateau`` over the last so many of them; that of the validation pairs, where
            there are any. Never when None.
        plateau: the share of the loss of ``patience``.

    Raises:
        InputError: no limit at all, or one that is not positive; ``plateau`` not in (0, 1).

    Example:
        >>> from learnreg import Budget
        >>> Budget(seconds=600, patience=500).plateau  # rest: 500 evaluations for less than 0.1 %
        0.001
    """

    seconds: float | None = None
    work: float | None = None
    steps: int | None = None
    patience: float | None = None
    plateau: float = 1e-3

    def __post_init__(self) -> None:
        tidy(self)
        if not self.limits:
            raise InputError(
                "budget",
                given="no limit",
                expected="seconds, work, steps or patience",
                remedy="For example Budget(seconds=60).",
            )
        for name in ("seconds", "work", "patience"):
            check_positive(f"budget {name}", vars(self)[name], optional=True)
        check_integer("budget steps", self.steps, 1, optional=True)
        check_number("budget plateau", self.plateau, lambda v: 0 < v < 1, "a number in (0, 1)")

    @property
    def limits(self) -> dict[str, float]:
        """What ends the run, by name."""
        named = {
            "seconds": self.seconds,
            "work": self.work,
            "steps": self.steps,
            "patience": self.patience,
        }
        return {name: limit for name, limit in named.items() if limit is not None}

    def spent(self, seconds: float, work_per_image: float, steps: int) -> StopReason | None:
        """The reason to stop, or None."""
        for name, used in (("seconds", seconds), ("work", work_per_image), ("steps", steps)):
            limit = self.limits.get(name)
            if limit is not None and used >= limit:
                return StopReason("budget", f"the budget of {limit:.4g} {UNITS[name]} was used up")
        return None

    def used(self, seconds: float, work_per_image: float) -> float:
        """The part of the seconds or of the work that is used up, whichever is more; 0 where
        neither is limited.
        """
        limits = ((seconds, self.seconds), (work_per_image, self.work))
        return max((spent / limit for spent, limit in limits if limit is not None), default=0.0)

    def rested(self, course: Course, what: str = "loss") -> StopReason | None:
        """The reason to stop because a loss has come to rest, or None.

        Args:
            course: of the loss.
            what: its name, for the sentence.
        """
        gain = None if self.patience is None else course.gain(self.patience)
        if gain is None or gain >= self.plateau:
            return None
        return StopReason(
            "plateau",
            f"the {what} fell by less than {self.plateau:.2g} of its size over the last "
            f"{self.patience:g} evaluations per image",
        )
