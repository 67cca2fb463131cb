"""Budget: how long a run may take, in seconds, evaluations or accepted steps."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.errors import InputError
from ..core.ranges import check_integer, check_positive, tidy
from ..core.results import StopReason


@dataclass(frozen=True)
class Budget:
    """The run ends when the first limit is reached; the step in progress is then given up.

    Args:
        seconds: wall-clock time, earlier sessions of a resumed run included.
        work: evaluations of the energy per image (mean over images), see ``Cost.work``.
        steps: accepted steps.

    Raises:
        InputError: no limit at all, or one that is not positive.
    """

    seconds: float | None = None
    work: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        tidy(self)
        limits = {"seconds": self.seconds, "work": self.work, "steps": self.steps}
        if all(v is None for v in limits.values()):
            raise InputError(
                "budget",
                given="no limit",
                expected="seconds, work or steps",
                remedy="For example Budget(seconds=60).",
            )
        for name in ("seconds", "work"):
            check_positive(f"budget {name}", limits[name], optional=True)
        check_integer("budget steps", self.steps, 1, optional=True)

    def spent(self, seconds: float, work_per_image: float, steps: int) -> StopReason | None:
        """The reason to stop, or None."""
        for name, limit, used in (
            ("seconds", self.seconds, seconds),
            ("work", self.work, work_per_image),
            ("steps", self.steps, steps),
        ):
            if limit is not None and used >= limit:
                unit = {
                    "seconds": "seconds",
                    "work": "evaluations per image",
                    "steps": "accepted steps",
                }[name]
                return StopReason("budget", f"the budget of {limit:g} {unit} was used up")
        return None
