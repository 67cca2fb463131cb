"""The only upper-level loop: budget, record, checkpoint, progress; the learner decides the
steps.
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import __version__
from ..core.cost import Cost
from ..core.errors import CheckpointError, InputError
from ..core.guards import check_problem, check_strategy, isolated
from ..core.protocols import Strategy
from ..core.ranges import check_flag, check_integer, shown
from ..core.results import RunRecord, StopReason
from ..hypergradients.piggyback import natural_strategy
from .budget import Budget
from .checkpoint import FILE, check_folder, fingerprint, load_checkpoint, save_checkpoint
from .lower_level import LowerLevel, OutOfBudget
from .run import Run
from .state import Halt


@isolated
def learn(
    problem: Any,
    learner: Any,
    *,
    hypergradient: Strategy | None = None,
    budget: Budget,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    solver: str = "auto",
    progress: Callable[[dict[str, Any]], None] | None = None,
    name: str = "",
    promote: bool = True,
) -> Run:
    """Learn theta: min_theta mean_i loss(x_i(theta)).

    Args:
        problem: a BilevelProblem.
        learner: MAID(), HOAG(), LBFGSB(), Stochastic(), DFO() ...
        hypergradient: the strategy; ``Implicit()`` when None, ``Piggyback()`` for a SaddleEnergy;
            the learner switches on the error estimate that it needs.
        budget: when to stop.
        seed: of everything that a learner draws at random; the descent learners draw nothing.
        checkpoint: a folder; the state is written there after every step (less often where writing
            would take more than a twentieth of the time) and at the end, whatever ends the run.
        resume: continue from ``checkpoint``, to the same numbers as an uninterrupted run.
        solver: lower-level solver, as in ``solve``.
        progress: called with every new row of the record.
        name: of the run in reports; the regularizer's class when empty.
        promote: go on in float64 when float32 cannot be solved accurately enough for the next
            decision; False stops there.

    Returns:
        Run. An interruption from the keyboard ends the run with the last accepted step, it does not
        lose it.

    Raises:
        InputError: a budget that is none, or a learner that is none.
        MissingPropertyError: the lower level is not strongly convex.
        CheckpointError: ``resume`` without a checkpoint, with a damaged one or one of another run;
            a checkpoint folder that is a file or read-only.
    """
    check_problem(problem)
    if not isinstance(budget, Budget):
        raise InputError(
            "budget",
            given=shown(budget),
            expected="a Budget",
            remedy="For example Budget(seconds=60).",
        )
    if isinstance(learner, type) or not (hasattr(learner, "init") and hasattr(learner, "step")):
        raise InputError(
            "learner",
            given=shown(learner),
            expected="a learner such as MAID()",
            remedy="For example learn(problem, MAID(), budget=Budget(seconds=60)).",
        )
    seed = check_integer("seed", seed, 0)
    check_strategy(hypergradient, "hypergradient")
    check_flag("resume", resume)
    check_flag("promote", promote)
    _check_rest(checkpoint, progress, name)
    if resume and checkpoint is None:
        raise CheckpointError(
            "resume",
            given="no checkpoint folder",
            expected="checkpoint=...",
            remedy="Name the folder of the interrupted run.",
        )
    if checkpoint is not None:
        check_folder(Path(checkpoint), resume)
    strategy = learner.strategy(hypergradient or natural_strategy(problem.energy))
    session = _Session(
        problem,
        learner,
        LowerLevel(problem, strategy, solver),
        budget,
        seed,
        Path(checkpoint) if checkpoint else None,
        fingerprint(problem, learner, strategy),
        progress,
        promote,
    )
    settings = {
        "seed": seed,
        "budget": vars(budget),
        "solver": solver,
        "version": __version__,
        "dtype": str(problem.theta.dtype),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "device": str(problem.pairs.x.device),
    }
    stop = session.run(resume)
    record = RunRecord(
        problem.describe(),
        repr(learner),
        problem.size,
        tuple(session.rows),
        settings,
        tuple(n.removeprefix("regularizer.") for n in problem.parameter_names),
    )
    last = session.thetas[-1]
    return Run(
        record,
        stop,
        last,
        torch.stack([t.to(last.dtype) for t in session.thetas]),
        problem.energy,
        name or _title(problem.energy),
    )


def _check_rest(checkpoint: Any, progress: Any, name: Any) -> None:
    """The settings that are no numbers."""
    for what, value, kinds, expected in (
        ("checkpoint", checkpoint, str | Path | None, "a folder or None"),
        ("name", name, str, "a text"),
    ):
        if not isinstance(value, kinds):
            raise InputError(
                what, given=shown(value), expected=expected, remedy=f"For example {what}='run'."
            )
    if progress is not None and (isinstance(progress, type) or not callable(progress)):
        raise InputError(
            "progress",
            given=shown(progress),
            expected="a function of one row of the record, or None",
            remedy="For example progress=print.",
        )


def _title(energy: Any) -> str:
    """The class of the regularizer, or of an energy without one; scalings are looked through."""
    part = getattr(energy, "regularizer", energy)
    while hasattr(part, "regularizer"):
        part = part.regularizer
    return type(part).__name__


class _Session:
    """One call of ``learn``."""

    def __init__(
        self,
        problem: Any,
        learner: Any,
        lower: LowerLevel,
        budget: Budget,
        seed: int,
        folder: Path | None,
        identity: str,
        progress: Callable[[dict[str, Any]], None] | None,
        promote: bool,
    ) -> None:
        self.problem, self.learner, self.lower, self.budget, self.seed = (
            problem,
            learner,
            lower,
            budget,
            seed,
        )
        self.folder, self.identity, self.progress, self.promote = (
            folder,
            identity,
            progress,
            promote,
        )
        self.meter = lower.meter
        self.state: Any = None
        self.header: dict[str, Any] = {}
        self.rows: list[dict[str, Any]] = []
        self.thetas: list[Tensor] = []
        self.wall = self.cpu = 0.0
        self._last_wall, self._last_cpu = time.perf_counter(), time.process_time()
        self._saved_rows, self._saved_at, self._saving = 0, -math.inf, 0.0

    def run(self, resume: bool) -> StopReason:
        """Steps until something ends them; whatever that is, the latest state is kept."""
        try:
            return self._run(resume)
        finally:
            if self._saved_rows < len(self.rows):
                self._save()

    def _run(self, resume: bool) -> StopReason:
        stop = None
        try:
            if resume and self.folder is not None and (self.folder / FILE).exists():
                self._resume()
            else:  # without a budget yet: there is always a theta_0 with its loss
                self._record(self.learner.init(self.lower, self.problem.theta, self.seed))
            self.meter.should_stop = lambda: self._spent() is not None
            while (stop := self._spent()) is None:
                self._record(self._step(self.state))
        except OutOfBudget:
            stop = self._spent()
        except Halt as halt:
            stop = halt.reason
        except KeyboardInterrupt:
            if not self.rows:
                raise
            stop = StopReason(
                "interrupted", "interrupted from the keyboard; the last accepted step was kept"
            )
        assert stop is not None
        return stop

    def _step(self, state: Any) -> Any:
        try:
            return self.learner.step(self.lower, state)
        except Halt as halt:
            wide = state.theta.dtype == torch.float64
            if halt.reason.code != "rounding_floor" or wide or not self.promote:
                raise
        self.lower = self.lower.on(self.problem.to(torch.float64))
        return self.learner.step(self.lower, state.double(self.lower))

    def _clock(self) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        self.wall, self.cpu = self.wall + wall - self._last_wall, self.cpu + cpu - self._last_cpu
        self._last_wall, self._last_cpu = wall, cpu

    def _spent(self) -> StopReason | None:
        self._clock()
        return self.budget.spent(
            self.wall, self.meter.cost.work / self.problem.size, len(self.rows) - 1
        )

    def _record(self, state: Any) -> None:
        self._clock()
        cost = self.meter.cost
        row = {
            "step": len(self.rows),
            **state.row(self.problem),
            **cost.to_dict(),
            "work": cost.work,
            "seconds": self.wall,
            "cpu_seconds": self.cpu,
        }
        self.rows.append(row)
        self.thetas.append(state.theta)
        self.state = state
        self.header = {
            "fingerprint": self.identity,
            "rows": self.rows,
            "total": cost.to_dict(),
            "wall": self.wall,
            "cpu": self.cpu,
        }  # what a step in progress spends is not part of it
        # after every step, unless that would take more than a twentieth of the time
        if self.wall - self._saved_at >= 20 * self._saving:
            self._save()
        if self.progress is not None:
            self.progress(row)

    def _save(self) -> None:
        self._saved_rows = len(self.rows)  # a write that failed is not tried again
        if self.folder is None:
            return
        begin = time.perf_counter()
        save_checkpoint(self.folder, self.state.pack(), self.thetas, self.header)
        self._saved_at, self._saving = self.wall, time.perf_counter() - begin

    def _resume(self) -> None:
        assert self.folder is not None
        packed, self.thetas, header = load_checkpoint(
            self.folder, self.problem.pairs.x.device, self.identity
        )
        if self.thetas[-1].dtype != self.problem.theta.dtype:  # it had gone on in float64
            self.lower = self.lower.on(self.problem.to(torch.float64))
        self.state = self.learner.restore(self.lower, packed)
        self.rows, self.wall, self.cpu = header["rows"], header["wall"], header["cpu"]
        self.meter.cost = Cost(**header["total"])
        self._saved_rows = len(self.rows)
