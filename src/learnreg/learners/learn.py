"""The only upper-level loop: budget, record, checkpoint, progress; the learner decides the steps."""

from __future__ import annotations

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
from ..core.results import RunRecord, StopReason
from ..hypergradients.implicit import Implicit
from ..metrics import psnr
from .budget import Budget
from .checkpoint import FILE, fingerprint, load_checkpoint, save_checkpoint
from .descent import Halt
from .lower_level import LowerLevel, OutOfBudget
from .run import Run
from .state import in_double


def learn(problem: Any, learner: Any, *, hypergradient: Implicit | None = None, budget: Budget, seed: int = 0,
          checkpoint: str | Path | None = None, resume: bool = False, solver: str = "auto",
          progress: Callable[[dict[str, Any]], None] | None = None, name: str = "", promote: bool = True) -> Run:
    """Learn theta: min_theta mean_i loss(x_i(theta)).

    Args:
        problem: a BilevelProblem.
        learner: MAID(), FixedAccuracy(), ...
        hypergradient: the strategy; the learner switches on the error estimate that it needs.
        budget: when to stop.
        seed: recorded; the descent learners draw no random numbers.
        checkpoint: a folder; the state is written there after every accepted step.
        resume: continue from ``checkpoint`` if it holds a state, to the same numbers as an uninterrupted run.
        solver: lower-level solver, as in ``solve``.
        progress: called with every new row of the record.
        name: of the run in reports; the regularizer's class when empty.
        promote: go on in float64 when float32 cannot be solved accurately enough for the next decision; False stops
            there.

    Returns:
        Run. An interruption from the keyboard ends the run with the last accepted step, it does not lose it.

    Raises:
        InputError: a budget that is none, or a learner that is none.
        MissingPropertyError: the lower level is not strongly convex.
        CheckpointError: ``resume`` with a damaged checkpoint or one of another run.
    """
    if not isinstance(budget, Budget):
        raise InputError("budget", given=budget, expected="a Budget", remedy="For example Budget(seconds=60).")
    if isinstance(learner, type) or not (hasattr(learner, "init") and hasattr(learner, "step")):
        raise InputError("learner", given=getattr(learner, "__name__", type(learner).__name__),
                         expected="a learner such as MAID()")
    if resume and checkpoint is None:
        raise CheckpointError("resume", given="no checkpoint folder", expected="checkpoint=...",
                              remedy="Name the folder of the interrupted run.")
    strategy = learner.strategy(hypergradient or Implicit())
    session = _Session(problem, learner, LowerLevel(problem, strategy, solver), budget,
                       Path(checkpoint) if checkpoint else None, fingerprint(problem, learner, strategy), progress,
                       promote)
    settings = {"seed": seed, "budget": vars(budget), "solver": solver, "version": __version__,
                "dtype": str(problem.theta.dtype), "torch": torch.__version__, "python": platform.python_version(),
                "threads": torch.get_num_threads(), "device": str(problem.pairs.x.device)}
    stop = session.run(resume)
    record = RunRecord(problem.describe(), repr(learner), problem.size, tuple(session.rows), settings,
                       tuple(n.removeprefix("regularizer.") for n in problem.parameter_names))
    last = session.thetas[-1]
    return Run(record, stop, last, torch.stack([t.to(last.dtype) for t in session.thetas]), problem.energy,
               name or _title(problem.energy))


def _title(energy: Any) -> str:
    """The class of the regularizer, or of an energy without one; scalings are looked through."""
    part = getattr(energy, "regularizer", energy)
    while hasattr(part, "regularizer"):
        part = part.regularizer
    return type(part).__name__


class _Session:
    """One call of ``learn``."""

    def __init__(self, problem: Any, learner: Any, lower: LowerLevel, budget: Budget, folder: Path | None,
                 identity: str, progress: Callable[[dict[str, Any]], None] | None, promote: bool) -> None:
        self.problem, self.learner, self.lower, self.budget = problem, learner, lower, budget
        self.folder, self.identity, self.progress, self.promote = folder, identity, progress, promote
        self.rows: list[dict[str, Any]] = []
        self.thetas: list[Tensor] = []
        self.wall = self.cpu = 0.0
        self._last_wall, self._last_cpu = time.perf_counter(), time.process_time()

    def run(self, resume: bool) -> StopReason:
        """Steps until something ends them."""
        stop = None
        self.lower.should_stop = lambda: self._spent() is not None
        try:
            if resume and self.folder is not None and (self.folder / FILE).exists():
                state = self._resume()
            else:
                self.lower.should_stop = lambda: False  # there is always a theta_0 with its loss
                state = self.learner.init(self.lower, self.problem.theta)
                self.lower.should_stop = lambda: self._spent() is not None
                self._record(state)
            while (stop := self._spent()) is None:
                state = self._step(state)
                self._record(state)
        except OutOfBudget:
            stop = self._spent()
        except Halt as halt:
            stop = halt.reason
        except KeyboardInterrupt:
            if not self.rows:
                raise
            stop = StopReason("interrupted", "interrupted from the keyboard; the last accepted step was kept")
        assert stop is not None
        return stop

    def _step(self, state: Any) -> Any:
        try:
            return self.learner.step(self.lower, state)
        except Halt as halt:
            wide = state.point.theta.dtype == torch.float64
            if halt.reason.code != "rounding_floor" or wide or not self.promote:
                raise
        self.lower = self._double_lower()
        return self.learner.step(self.lower, in_double(state, self.lower))

    def _double_lower(self) -> LowerLevel:
        """The same lower level in float64, with the counters so far."""
        lower = LowerLevel(self.problem.to(torch.float64), self.lower.strategy, self.lower.solver, self.lower.max_steps)
        lower.cost, lower.should_stop = self.lower.cost, self.lower.should_stop
        return lower

    def _clock(self) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        self.wall, self.cpu = self.wall + wall - self._last_wall, self.cpu + cpu - self._last_cpu
        self._last_wall, self._last_cpu = wall, cpu

    def _spent(self) -> StopReason | None:
        self._clock()
        return self.budget.spent(self.wall, self.lower.cost.work / self.problem.size, len(self.rows) - 1)

    def _record(self, state: Any) -> None:
        self._clock()
        point, cost = state.point, self.lower.cost
        row = {"step": len(self.rows), "loss": point.loss, "lower": point.lower, "upper": point.upper,
               "psnr": float(psnr(point.solution.value, self.problem.pairs.x).mean()), **state.info, **cost.to_dict(),
               "work": cost.work, "seconds": self.wall, "cpu_seconds": self.cpu}
        self.rows, self.thetas = [*self.rows, row], [*self.thetas, point.theta]  # both or none, should Ctrl-C fall here
        if self.folder is not None:
            save_checkpoint(self.folder, state, self.thetas, {
                "fingerprint": self.identity, "rows": self.rows, "total": cost.to_dict(), "wall": self.wall,
                "cpu": self.cpu})
        if self.progress is not None:
            self.progress(row)

    def _resume(self) -> Any:
        assert self.folder is not None
        state, self.thetas, header = load_checkpoint(self.folder, self.lower, self.identity)
        if state.point.theta.dtype != self.problem.theta.dtype:  # it had gone on in float64
            self.lower = self._double_lower()
            state, self.thetas, header = load_checkpoint(self.folder, self.lower, self.identity)
        self.rows, self.wall, self.cpu = header["rows"], header["wall"], header["cpu"]
        self.lower.cost = Cost(**header["total"])
        return state
