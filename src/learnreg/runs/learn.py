"""The only upper-level loop: budget, record, checkpoint, progress; the learner decides the
steps.
"""

from __future__ import annotations

import dataclasses
import json
import math
import platform
import time
import typing
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Generic, Protocol, TypeVar, cast, runtime_checkable

import torch
from torch import Tensor

from .. import __version__
from ..core.cost import Cost
from ..core.errors import CheckpointError, InputError, MissingPropertyError
from ..core.grants import check_needs
from ..core.guards import check_problem, check_strategy, isolated
from ..core.locks import locked
from ..core.maps import SolutionMap
from ..core.measured import Measured
from ..core.meter import OutOfBudget, never, nothing
from ..core.objective import Evaluated, Halt, Learner, Objective, Row, State
from ..core.packing import check_kept, outline, pack, unpack, widened
from ..core.ranges import check_flag, check_integer, check_object, plain, shown
from ..core.results import RunRecord, StopReason
from ..core.words import named
from ..objectives.bilevel import Bilevel
from ..problems import BilevelProblem
from ..problems.bilevel import PairsLike
from .budget import Budget, Course
from .checkpoint import FILE, check_folder, fingerprint, load_checkpoint, save_checkpoint
from .digest import digest_of
from .provenance import setup_of
from .run import Run
from .validation import KEYS, Validation

S = TypeVar("S", bound=State)


@isolated
def learn(
    problem: BilevelProblem | Objective,
    learner: Learner[S],
    *,
    hypergradient: SolutionMap | None = None,
    budget: Budget,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    solver: str = "auto",
    progress: Callable[[Row], None] | None = None,
    name: str = "",
    promote: bool = True,
    validation: PairsLike | Tensor | Measured | None = None,
) -> Run:
    """Learn theta: min_theta mean_i loss(x_i(theta)).

    Args:
        problem: a BilevelProblem, or another objective such as ScoreMatching.
        learner: MAID(), HOAG(), LBFGSB(), Stochastic(), DFO() ... or one of your own.
        hypergradient: the solution map of a BilevelProblem; ``Implicit()`` when None,
            ``Piggyback()`` for a SaddleEnergy; the learner asks for the error estimate that it
            needs.
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
        validation: held-out pairs, neither trained on nor tested on. Their loss and PSNR are put
            into the record (``validation_loss``, ``validation_psnr``, ``validation_work``) at the
            first step, the last, and as many in between as take a tenth of the work;
            ``Budget(patience=...)`` then looks at their loss. The budget of work is the learner's
            alone, that of seconds is for both. A look does not change what is learned.

    Returns:
        Run, with the last accepted step; ``Run.best_step`` and ``Run.at`` give the one that was
        best in validation. An interruption from the keyboard ends the run, it does not lose it.

    Raises:
        InputError: a budget that is none, or a learner that is none; validation pairs that do not
            fit to the problem; what a learner of one's own returns cannot be recorded, or a
            checkpoint could not give its state back.
        MissingPropertyError: the lower level is not strongly convex, or the objective does not
            grant what the learner needs.
        CheckpointError: a folder that another run is using; ``resume`` without a checkpoint, with a
            damaged one, one of another run or of another ``seed`` or ``solver``; a checkpoint
            folder that is a file or read-only.
    """
    objective = objective_of(problem, hypergradient, solver)
    _check_settings(learner, budget, checkpoint, progress, name)
    seed = check_integer("seed", seed, 0)
    check_flag("resume", resume)
    check_flag("promote", promote)
    if resume and checkpoint is None:
        raise CheckpointError(
            "resume",
            given="no checkpoint folder",
            expected="checkpoint=...",
            remedy="Name the folder of the interrupted run.",
        )
    needs, given = learner.needs, _given(objective)
    check_needs(type(learner).__name__, needs, objective.grants, given)
    if checkpoint is not None:
        check_folder(Path(checkpoint), resume)

    folder = Path(checkpoint) if checkpoint else None
    watch = None if validation is None else Validation(objective, validation)
    session = _Session(objective, learner, budget, seed, folder, progress, promote, watch)
    settings = {
        "seed": seed,
        "budget": vars(budget),
        "solver": solver,
        "version": __version__,
        "dtype": str(objective.theta.dtype),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "device": str(objective.device),
    }
    with locked(folder) if folder else nullcontext():
        stop = session.run(resume)
    record = RunRecord(
        objective.describe(),
        repr(learner),
        objective.size,
        tuple(session.rows),
        settings,
        objective.names,
        setup_of(objective, learner, objective.device),
    )
    last = session.thetas[-1]
    energy = objective.learned(last)
    thetas = torch.stack([t.to(last.dtype) for t in session.thetas])
    return Run(record, stop, last, thetas, energy, name or named(energy))


def objective_of(
    problem: BilevelProblem | Objective, strategy: SolutionMap | None, solver: str
) -> Objective:
    """What is minimized: a bilevel problem through its solution map, or an objective as it is.

    Raises:
        InputError: neither.
    """
    check_strategy(strategy, "hypergradient")
    if isinstance(problem, type) or not isinstance(problem, Evaluated):
        check_problem(problem)
        return Bilevel(cast(BilevelProblem, problem), strategy, solver)
    if strategy is not None:
        raise InputError(
            "hypergradient",
            given=f"{shown(strategy)} for {type(problem).__name__}",
            expected="a BilevelProblem, which has a lower level to be differentiated",
            remedy="Leave hypergradient out.",
        )
    return problem


def _given(objective: Objective) -> str:
    """What was handed in, in the words of a refusal."""
    return repr(objective.strategy) if isinstance(objective, Bilevel) else objective.describe()


def check_budget(budget: object) -> None:
    """Refuse what is no Budget."""
    if not isinstance(budget, Budget):
        raise InputError(
            "budget",
            given=shown(budget),
            expected="a Budget",
            remedy="For example Budget(seconds=60).",
        )


def _check_settings(
    learner: object, budget: object, checkpoint: object, progress: object, name: object
) -> None:
    """What needs no problem to be refused."""
    check_budget(budget)
    check_object(
        "learner",
        learner,
        ("init", "step", "needs"),
        "a learner such as MAID()",
        "For example learn(problem, MAID(), budget=Budget(seconds=60)).",
    )
    _check_rest(checkpoint, progress, name)


def _check_rest(checkpoint: object, progress: object, name: object) -> None:
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


CLOCKED = ("step", "work", "seconds", "cpu_seconds", *KEYS)
"""What the loop itself puts into every row, the counters aside."""

VALIDATED = "loss of the validation pairs"


def _form(theta: Tensor) -> tuple[object, ...]:
    """What two thetas of a run have in common."""
    return theta.shape, theta.dtype, theta.device


def _words(theta: Tensor) -> str:
    """The same in words."""
    return f"shape {tuple(theta.shape)}, {theta.dtype}, on {theta.device}"


def _row(what: str, row: object, cost: Cost) -> Row:
    """A row of a learner with numbers of Python's own.

    Raises:
        InputError: no table, one without a loss, one of other things than plain values, or one that
            says what the loop says.
    """
    remedy = "For example row_of(value, {...}) from learnreg.core.objective."
    if not isinstance(row, dict) or not all(isinstance(key, str) for key in row):
        raise InputError(
            what, given=shown(row), expected="a table with words as keys", remedy=remedy
        )
    found = {key: plain(value) for key, value in row.items()}
    loss = found.get("loss")
    if not isinstance(loss, int | float) or isinstance(loss, bool):
        given = f"the loss {shown(loss)}" if "loss" in found else "no loss"
        raise InputError(what, given=given, expected="the loss, a number", remedy=remedy)
    if taken := [key for key in (*CLOCKED, *cost.to_dict()) if key in found]:
        raise InputError(
            what,
            given=", ".join(map(repr, taken)),
            expected="names that the loop does not use itself",
            remedy="Choose another name; steps, work and time are recorded for every learner.",
        )
    for key, value in found.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            raise InputError(
                what,
                given=f"{key} = {shown(value)}",
                expected="numbers, words, None, and lists and tables of these",
                remedy="Use tolist() for a tensor.",
            ) from None
    return found


def _settings_of(objective: Objective, seed: int) -> dict[str, object]:
    """What the numbers of a run depend on besides problem and learner, in words that are the same
    in every process.
    """
    settings: dict[str, object] = {"seed": seed}
    if isinstance(objective, Bilevel):
        solver = objective.solver
        unnamed = type(solver).__repr__ is object.__repr__  # its words would be an address
        settings["solver"] = type(solver).__qualname__ if unnamed else repr(solver)
        settings["max_steps"] = objective.max_steps
    return settings


class _Session(Generic[S]):
    """One call of ``learn``."""

    def __init__(
        self,
        objective: Objective,
        learner: Learner[S],
        budget: Budget,
        seed: int,
        folder: Path | None,
        progress: Callable[[Row], None] | None,
        promote: bool,
        validation: Validation | None,
    ) -> None:
        self.objective: Objective = objective
        self.learner, self.budget, self.seed = learner, budget, seed
        self.folder, self.progress, self.promote = folder, progress, promote
        self.validation, self.course = validation, Course()
        self.identity = fingerprint(objective, learner) if folder else ""
        self.settings = _settings_of(objective, seed)
        if folder and validation is not None:
            self.settings["validation"] = digest_of(*validation.identity())
        self.meter = objective.meter
        self.state: S | None = None
        self.header: dict[str, object] = {}
        self.rows: list[Row] = []
        self.thetas: list[Tensor] = []
        self.wall = self.cpu = 0.0
        self._last_wall, self._last_cpu = time.perf_counter(), time.process_time()
        self._saved_rows, self._saved_at, self._saving = 0, -math.inf, 0.0
        self._warned = False
        self._checked: set[object] = set()

    def run(self, resume: bool) -> StopReason:
        """Steps until something ends them; whatever that is, the latest state is kept."""
        # an objective may have served another run before, and may serve one later
        self.meter.cost, self.meter.should_stop = Cost(), never
        try:
            stop = self._run(resume)
        finally:
            self.meter.should_stop, self.meter.used = never, nothing
            if self.state is not None and self._saved_rows < len(self.rows):
                self._save()
        if stop.code != "interrupted":  # who interrupts does not want to wait
            self._look_at_last()
        return stop

    def _run(self, resume: bool) -> StopReason:
        stop = None
        try:
            if resume and self.folder is not None and (self.folder / FILE).exists():
                self._resume()
            else:  # without a budget yet: there is always a theta_0 with its loss
                objective = self.objective
                self._record(self.learner.init(objective, objective.theta, self.seed))
            self.meter.should_stop = lambda: self._spent() is not None
            self.meter.used = self._used
            while (stop := self._spent() or self._rested()) is None:
                assert self.state is not None
                self._record(self._step(self.state))
        except OutOfBudget:
            stop = self._spent()
        except Halt as halt:
            if not self.rows:  # there is no theta to hand back, and nothing to look at
                raise MissingPropertyError(
                    "theta",
                    given=f"a start at which nothing can be done: {halt.reason}",
                    expected="parameters at which the objective can be evaluated",
                    remedy="Start elsewhere.",
                ) from halt
            stop = halt.reason
        except KeyboardInterrupt:
            if not self.rows:
                raise
            stop = StopReason(
                "interrupted", "interrupted from the keyboard; the last accepted step was kept"
            )
        assert stop is not None
        return stop

    def _step(self, state: S) -> S:
        try:
            return self.learner.step(self.objective, state)
        except Halt as halt:
            wide = state.theta.dtype == torch.float64
            if halt.reason.code != "rounding_floor" or wide or not self.promote:
                raise
        self.objective = self.objective.widened()
        return self.learner.step(self.objective, widened(state, self.objective.adopt))

    def _clock(self) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        self.wall, self.cpu = self.wall + wall - self._last_wall, self.cpu + cpu - self._last_cpu
        self._last_wall, self._last_cpu = wall, cpu

    def _spent(self) -> StopReason | None:
        self._clock()
        return self.budget.spent(
            self.wall, self.meter.cost.work / self.objective.size, len(self.rows) - 1
        )

    def _used(self) -> float:
        self._clock()
        return self.budget.used(self.wall, self.meter.cost.work / self.objective.size)

    def _rested(self) -> StopReason | None:
        return self.budget.rested(self.course, "loss" if self.validation is None else VALIDATED)

    def _look(self) -> None:
        """Validate the last step if it is due, and note where its loss stands."""
        row, watch = self.rows[-1], self.validation
        if watch is not None and watch.due(self.rows):
            row |= watch.look(self.thetas[-1], self.rows)
        work = row["work"] / self.objective.size
        self.course.add(work, row["loss"] if watch is None else row.get(KEYS[0]))

    def _look_at_last(self) -> None:
        """Validate the last step whatever it takes; a checkpoint does not have it, so that a
        resumed run looks at the same steps as an uninterrupted one.
        """
        watch, row = self.validation, self.rows[-1]
        if watch is not None and row.get(KEYS[-1]) is None:
            self.rows[-1] = row | watch.look(self.thetas[-1], self.rows)

    def _record(self, state: S) -> None:
        self._clock()
        cost = self.meter.cost
        theta, told = self._returned(state)
        row = {
            "step": len(self.rows),
            **told,
            **cost.to_dict(),
            "work": cost.work,
            "seconds": self.wall,
            "cpu_seconds": self.cpu,
            **({} if self.validation is None else dict.fromkeys(KEYS)),
        }
        self.rows.append(row)
        self.thetas.append(theta.detach().clone())  # a learner may go on in the same memory
        self.state = state
        self.header = {
            "fingerprint": self.identity,
            "settings": self.settings,
            "rows": self.rows,
            "total": cost.to_dict(),
            "wall": self.wall,
            "cpu": self.cpu,
        }  # what a step in progress spends is not part of it
        self._look()
        # after every step, unless that would take more than a twentieth of the time
        if self.wall - self._saved_at >= 20 * self._saving:
            self._save()
        if self.progress is not None:
            self.progress(row)

    def _returned(self, state: S) -> tuple[Tensor, Row]:
        """theta and the row of a state, once they are what a record can hold.

        Raises:
            InputError: names the learner and what is wrong with it.
            Halt: theta is not finite any more.
        """
        name, call = type(self.learner).__name__, "step" if self.rows else "init"
        check_object(
            f"what {name}.{call} returned",
            state,
            ("theta", "row"),
            "a state with theta and row()",
            "Return a frozen dataclass with these.",
        )
        theta, like = state.theta, self.objective.theta
        if not isinstance(theta, Tensor) or _form(theta) != _form(like):
            raise InputError(
                f"theta of {name}.{call}",
                given=f"one of {_words(theta)}" if isinstance(theta, Tensor) else shown(theta),
                expected=f"a tensor of {_words(like)}, as the objective's",
                remedy="Return theta in the form in which the learner was given it.",
            )
        if not bool(theta.isfinite().all()):
            sentence = f"NaN or Inf appeared in theta after a step of {name}"
            if self.rows:
                raise Halt(StopReason("not_finite", sentence))
            raise InputError(
                f"theta of {name}.{call}",
                given=shown(theta),
                expected="finite numbers",
                remedy="Start from finite parameters.",
            )
        return theta, _row(f"the row of {name}", state.row(), self.meter.cost)

    def _save(self) -> None:
        self._saved_rows = len(self.rows)  # a write that failed is not tried again
        if self.folder is None:
            return
        begin = time.perf_counter()
        assert self.state is not None
        self._check_kept(self.state)
        try:
            save_checkpoint(self.folder, pack(self.state), self.thetas, self.header)
        except OSError as error:  # a full disk must not end what can go on
            self._warn(error)
        self._saved_at, self._saving = self.wall, time.perf_counter() - begin

    def _check_kept(self, state: S) -> None:
        """Refuse a state that could not be resumed, at the first save of one that is made so."""
        made_of = outline(state)
        if made_of not in self._checked:
            try:
                kind: type = self._state_class()
            except CheckpointError:  # said on resume: all that is missing is an annotation
                kind = type(state)
            check_kept(state, kind, type(self.learner).__name__)
            self._checked.add(made_of)

    def _warn(self, error: OSError) -> None:
        """Say once that checkpoints cannot be written."""
        if not self._warned:
            warnings.warn(
                f"The checkpoint in {self.folder} could not be written ({error}); the run goes on "
                "and tries again. Make room, or stop it with Ctrl-C and choose another folder.",
                RuntimeWarning,
                stacklevel=2,
            )
        self._warned = True

    def _resume(self) -> None:
        assert self.folder is not None
        packed, self.thetas, header = load_checkpoint(
            self.folder, self.objective.device, self.identity
        )
        self._check_resumed(header.get("settings", {}))
        if self.thetas[-1].dtype != self.objective.theta.dtype:  # it had gone on in float64
            self.objective = self.objective.widened()
        self.rows, self.wall, self.cpu = header["rows"], header["wall"], header["cpu"]
        kind = self._state_class()
        self.state = unpack(kind, packed, self.objective.restore)
        self.meter.cost = Cost(**header["total"])
        self._saved_rows = len(self.rows)
        for row in self.rows[:-1]:
            loss = row["loss"] if self.validation is None else row.get(KEYS[0])
            self.course.add(row["work"] / self.objective.size, loss)
        self._look()  # at what was interrupted before it was looked at

    def _check_resumed(self, before: dict[str, object]) -> None:
        """Refuse to go on with other settings: the numbers would be those of no single run.

        Raises:
            CheckpointError: names the setting.
        """
        for name, given in self.settings.items():
            if name in before and before[name] != given:
                raise CheckpointError(
                    f"{name} for the checkpoint {self.folder}",
                    given=given,
                    expected=f"{before[name]}, as in the interrupted run",
                    remedy=f"Resume with {name}={before[name]}, or start without resume.",
                )

    def _state_class(self) -> type[S]:
        """The class of the states of the learner: what it declares, or what ``init`` returns.

        Raises:
            CheckpointError: it does not say.
        """
        learner = self.learner
        if isinstance(learner, Stated):
            return learner.state
        try:
            found = typing.get_type_hints(type(learner).init).get("return")
        except NameError:  # a name that only type checkers see
            found = None
        if isinstance(found, type) and dataclasses.is_dataclass(found):
            return cast(type[S], found)
        raise CheckpointError(
            "resume",
            given=f"{type(learner).__name__}, whose states are of no known class",
            expected="a learner whose init says which dataclass it returns",
            remedy="Annotate it: def init(self, objective, theta, seed=0) -> MyState.",
        )


@runtime_checkable
class Stated(Protocol[S]):
    """A learner that declares the class of its states."""

    state: type[S]
