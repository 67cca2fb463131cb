"""Comparisons: several learners on one problem, over seeds, each measured alike afterwards.

The losses that a learner itself computes are as inexact as it chose, so every run is evaluated
again (``trajectory``). ``reports.Comparison.of(*compare(...))`` makes the page.
"""

from __future__ import annotations

import copy
import hashlib
import json
import platform
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeAlias, cast

import torch
from torch import nn

from .. import __version__
from ..core.errors import InputError, LearnregError
from ..core.files import write_atomically
from ..core.grants import Grants
from ..core.guards import check_pairs
from ..core.maps import SolutionMap
from ..core.meter import Meter
from ..core.objective import Evaluated, Learner, Objective, Row, State
from ..core.ranges import check_integer, check_object, shown
from ..core.results import RunRecord
from ..core.words import slug
from ..objectives.bilevel import Bilevel
from ..problems import BilevelProblem
from ..problems.bilevel import data_of
from .budget import Budget
from .checkpoint import FILE, fingerprint
from .digest import digest_of
from .learn import check_budget, learn, objective_of
from .run import Run, TruePairs
from .trajectory import check_measure, trajectory

CHECKPOINT, CURVE, HISTORY = "checkpoint", "curve.json", "history.safetensors"
LEARNING = "learning.json"
"""What the folder of a run holds: its checkpoint, its results, the finished run, and a word that
changes with what it learned from.
"""

SCHEDULE = ("step", "eps", "delta", "step_size")
SCHEDULE_ROWS = 200
"""A record may have many thousand rows; so many of them show how the accuracies went."""

NAME_LENGTH = 48
"""Of a learner in the name of a folder; paths have a limit."""

Problem: TypeAlias = BilevelProblem | Objective
Instance: TypeAlias = tuple[Problem, TruePairs]
"""A learning problem and held-out pairs."""

Progress: TypeAlias = Callable[[Row], None]


class Outcome(NamedTuple):
    """What ``reports.Comparison.of`` takes.

    Attributes:
        runs: one table per run, failed ones included.
        settings: how they were done.
    """

    runs: list[Row]
    settings: Row


@dataclass(frozen=True)
class Measure:
    """How a finished run is measured, see ``trajectory``."""

    points: int = 12
    relative: float = 1e-4
    eps_test: float = 1e-2

    def __post_init__(self) -> None:
        check_measure(self.points, self.relative, self.eps_test)


@dataclass(frozen=True, eq=False)
class Entry:
    """One run of a comparison, ready to be sent to another process.

    Attributes:
        name: of the learner.
        learner, strategy, solver, budget, seed: as in ``learn``.
        instance: the problem with its held-out pairs, or a function that makes them of the seed.
        measure: what comes afterwards.
        folder: for checkpoint and results; None keeps nothing.
    """

    name: str
    learner: Learner[State]
    strategy: SolutionMap | None
    solver: str
    budget: Budget
    seed: int
    instance: Instance | Callable[[int], Instance]
    measure: Measure
    folder: Path | None

    def made(self) -> Instance:
        """The problem of this seed.

        Raises:
            InputError: a function of the seed that gives something else.
        """
        if not callable(self.instance):
            return self.instance
        made: object = self.instance(self.seed)
        if not (isinstance(made, tuple | list) and len(made) == 2):
            raise InputError(
                f"problem({self.seed})",
                given=shown(made),
                expected="a problem and held-out pairs",
                remedy="Return both from the function of the seed: return problem, test.",
            )
        problem, test = made
        check_pairs(test)
        return problem, test

    def fresh(self) -> Entry:
        """With a learner and a solution map that no other run sees: they may keep something."""
        strategy = copy.deepcopy(self.strategy)
        return replace(self, learner=copy.deepcopy(self.learner), strategy=strategy)


def compare(
    problem: Problem | Callable[[int], Instance],
    learners: Mapping[str, Learner[State]],
    *,
    budget: Budget,
    test: TruePairs | None = None,
    seeds: Iterable[int] = (0,),
    hypergradient: SolutionMap | Mapping[str, SolutionMap] | None = None,
    solver: str = "auto",
    points: int = 12,
    relative: float = 1e-4,
    eps_test: float = 1e-2,
    folder: str | Path | None = None,
    executor: Executor | None = None,
    progress: Callable[[str, Row], None] | None = None,
) -> Outcome:
    """Run every learner with every seed on the same problem, and measure all runs alike.

    Args:
        problem: a BilevelProblem or another objective; or a function of the seed that gives such a
            problem and held-out pairs, for other crops and noise with every seed.
        learners: by name; step rules of your own as well. Every run has a copy.
        budget: of every run.
        test: held-out pairs; with a function of the seed, which gives its own, None.
        seeds: of what learners draw, and of the function.
        hypergradient: the solution map, for all or by name; the natural one when None.
        solver: of the lower level, as in ``solve``.
        points, relative, eps_test: see ``trajectory``.
        folder: keeps checkpoints and results, so that an interrupted comparison goes on where it
            was: call it again. Nothing is kept when None.
        executor: any ``concurrent.futures.Executor``, for example a ``ProcessPoolExecutor`` (what
            is sent must then be picklable, and each process should use few threads); one run after
            the other in this process when None.
        progress: called with the title of a run and what is known of it; in this process only.

    Returns:
        Outcome, for ``lr.Comparison.of(*outcome)``. A run that failed is in it with the reason.

    Raises:
        InputError: no learners, names that are no words, no seeds, solution maps for learners that
            there are not, or no held-out pairs.
    """
    maps = hypergradient if isinstance(hypergradient, Mapping) else {}
    common = None if isinstance(hypergradient, Mapping) else hypergradient
    instance = _instance(problem, test, (common, *maps.values()), solver)
    _check(learners, maps, budget)
    seeds = _seeds(seeds)
    measure = Measure(points, relative, eps_test)
    entries = [
        Entry(
            name,
            learner,
            maps.get(name, common),
            solver,
            budget,
            seed,
            instance,
            measure,
            None if folder is None else Path(folder) / "runs" / f"{_place(name)}--seed-{seed}",
        )
        for seed in seeds
        for name, learner in learners.items()
    ]
    settings = _settings(budget, seeds, measure, solver) | {"same_images": not callable(instance)}
    return Outcome(_all(entries, executor, progress), settings)


def _instance(
    problem: Problem | Callable[[int], Instance],
    test: TruePairs | None,
    maps: Sequence[SolutionMap | None],
    solver: str,
) -> Instance | Callable[[int], Instance]:
    known = isinstance(problem, Evaluated | BilevelProblem | nn.Module | type)
    if callable(problem) and not known:
        if test is not None:
            raise InputError(
                "test",
                given="held-out pairs beside a function of the seed",
                expected="None: the function gives them with every problem",
                remedy="Return them from it: return problem, test.",
            )
        return problem
    for strategy in maps:
        objective_of(cast(Problem, problem), strategy, solver)
    if test is None:
        raise InputError(
            "test",
            given=None,
            expected="held-out pairs",
            remedy="For example train, test = lr.data.pairs(...), compare(..., test=test).",
        )
    check_pairs(test)
    return cast(Problem, problem), test


def _check(
    learners: Mapping[str, Learner[State]], maps: Mapping[str, SolutionMap], budget: Budget
) -> None:
    if not isinstance(learners, Mapping) or not learners:
        raise InputError(
            "learners",
            given=shown(learners),
            expected="learners by name",
            remedy="For example {'MAID': lr.MAID(), 'Adam': lr.Stochastic.preset('iadam')}.",
        )
    for name, learner in learners.items():
        remedy = "For example lr.MAID()."
        check_object(f"learner {name!r}", learner, ("init", "step", "needs"), "a learner", remedy)
    slugs = [slug(str(name)) for name in learners]
    if len(set(slugs)) < len(slugs):
        raise InputError(
            "learners",
            given=", ".join(map(str, learners)),
            expected="names that differ in letters or digits",
        )
    unknown = [name for name in maps if name not in learners]
    if unknown:
        raise InputError(
            "hypergradient",
            given=f"a solution map for {', '.join(map(repr, unknown))}",
            expected=f"names of learners: {', '.join(map(repr, learners))}",
            remedy="A learner that is not named has the natural map.",
        )
    check_budget(budget)


def _seeds(given: Iterable[int]) -> tuple[int, ...]:
    """All of them, whatever they come in."""
    words = isinstance(given, str | bytes)
    try:
        seeds = () if words else tuple(given)
    except TypeError:
        words = True
    if words or not seeds:
        told = shown(given) if words else "none"
        raise InputError("seeds", given=told, expected="at least one", remedy="seeds=(0, 1, 2).")
    return tuple(check_integer("seeds", seed, 0) for seed in seeds)


def _place(name: str) -> str:
    """The name of a learner in that of a folder, short but not that of another one."""
    whole = slug(name)
    if len(whole) <= NAME_LENGTH:
        return whole
    return f"{whole[: NAME_LENGTH - 9]}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


def _all(
    entries: Sequence[Entry],
    executor: Executor | None,
    progress: Callable[[str, Row], None] | None,
) -> list[Row]:
    """The outcomes, in order."""
    if executor is None:
        found = []
        for entry in entries:
            title = f"{entry.name}, seed {entry.seed}"
            found.append(attempt(entry, _told(title, progress)))
        return found

    futures: list[Future[Row]] = [executor.submit(attempt, entry) for entry in entries]
    try:
        return [_outcome(e, future) for e, future in zip(entries, futures, strict=True)]
    except BaseException:
        for future in futures:
            future.cancel()
        raise


def _told(title: str, progress: Callable[[str, Row], None] | None) -> Progress | None:
    if progress is None:
        return None
    tell = progress
    return lambda row: tell(title, row)


def _outcome(entry: Entry, future: Future[Row]) -> Row:
    """What a run in another process came to; one that could not be sent there has failed."""
    try:
        return future.result()
    except Exception as error:
        return _named(entry) | {"failure": f"{type(error).__name__}: {error}"}


def _named(entry: Entry) -> Row:
    return {
        "learner": entry.name,
        "name": entry.name,
        "grid": {},
        "start": "",
        "seed": entry.seed,
    }


def attempt(entry: Entry, progress: Progress | None = None) -> Row:
    """One run, measured; an exception becomes its failure, so that the others go on.

    Raises:
        KeyboardInterrupt: the run was interrupted; its checkpoint is kept.
    """
    try:
        found: Row = {"failure": None, **_kept(entry.fresh(), progress)}
    except (Exception, SystemExit) as error:  # whatever it is, the other runs go on
        kind = "" if isinstance(error, LearnregError) else f"{type(error).__name__}: "
        found = {"failure": f"{kind}{error}", "traceback": traceback.format_exc()}
    return _named(entry) | found


def _kept(entry: Entry, progress: Progress | None) -> Row:
    """The results of the folder if they are those of this very run, else of the run."""
    problem, test = entry.made()
    if entry.folder is None:
        return measured_run(problem, test, entry, progress)

    identity = digest_of(_learning(problem, entry), entry.measure, test.x, data_of(test))
    path = entry.folder / CURVE
    before = read_json(path)
    if before.get("identity") == identity:
        return before
    found = {"identity": identity, **measured_run(problem, test, entry, progress)}
    content = json.dumps(found, indent=1, allow_nan=False).encode()
    _keep(entry.folder, partial(write_atomically, path, content))
    return found


def _keep(folder: Path, write: Callable[[], object]) -> bool:
    """Write results, and whether that could be done; a full disk must not lose what was computed,
    so it is said and no more.
    """
    try:
        write()
        return True
    except OSError as error:
        warnings.warn(
            f"The results in {folder} could not be written ({error}); the comparison goes on, but "
            "a second call will compute them again. Make room, or choose another folder.",
            RuntimeWarning,
            stacklevel=2,
        )
        return False


def _learning(problem: Problem, entry: Entry) -> str:
    """Changes when anything does that the thetas of the run depend on."""
    objective = objective_of(problem, entry.strategy, entry.solver)
    print_ = fingerprint(objective, entry.learner)
    return digest_of(print_, entry.budget, entry.seed, entry.solver)


def measured_run(
    problem: Problem, test: TruePairs, entry: Entry, progress: Progress | None = None
) -> Row:
    """Learn (going on from a checkpoint, if there is one), and measure.

    Args:
        progress: called with ``phase`` ("learning" or "measuring") and what is known of it.

    Raises:
        KeyboardInterrupt: the run was interrupted; its checkpoint is kept.
    """
    problem = _own(problem)
    objective = objective_of(problem, entry.strategy, entry.solver)
    run = _learned(problem, objective, entry, progress)

    def tell(done: int, total: int) -> None:
        if progress is not None:
            progress({"phase": "measuring", "done": done, "of": total})

    measure = entry.measure
    points = trajectory(
        run,
        problem,
        test,
        points=measure.points,
        relative=measure.relative,
        eps_test=measure.eps_test,
        strategy=entry.strategy,
        progress=tell,
    )
    strategy = objective.strategy if isinstance(objective, Bilevel) else None
    return {
        "problem": run.record.problem,
        "method": run.record.learner,
        "strategy": "" if strategy is None else repr(strategy),
        "adaptive": Grants.ADAPTIVE in objective.grants,
        "solver": entry.solver,
        "images": objective.size,
        "held_out": len(test),
        "steps": run.record.rows[-1]["step"],
        "stop": [run.stop.code, run.stop.sentence],
        "points": points,
        "schedule": _schedule(run.record),
    }


def _own(problem: Problem) -> Problem:
    """The problem, or an objective with counters of its own: others may be running beside it."""
    if not isinstance(problem, Evaluated):
        return problem
    twin = copy.copy(problem)
    vars(twin)["meter"] = Meter()
    return twin


def _learned(
    problem: Problem, objective: Objective, entry: Entry, progress: Progress | None
) -> Run:
    """The finished run of the folder, or a new one."""
    folder, same = entry.folder, False
    if folder is not None:
        learning = {"identity": _learning(problem, entry)}
        same = read_json(folder / LEARNING) == learning
        if same and (folder / HISTORY).exists():
            return Run.load(folder, energy=cast(nn.Module, objective.learned(objective.theta)))
        if not _keep(folder, partial(_begin, folder, None if same else learning)):
            folder = None  # what is in it may be of another run, and would be taken for this one

    def show(row: Row) -> None:
        if progress is not None:
            told = {key: row.get(key) for key in ("step", "loss", "seconds")}
            progress({"phase": "learning", **told, "work": row["work"] / objective.size})

    checkpoint = None if folder is None else folder / CHECKPOINT
    run = learn(
        problem,
        entry.learner,
        hypergradient=entry.strategy,
        budget=entry.budget,
        seed=entry.seed,
        checkpoint=checkpoint,
        resume=same and checkpoint is not None and (checkpoint / FILE).exists(),
        solver=entry.solver,
        progress=show,
        name=entry.name,
    )
    if run.stop.code == "interrupted":
        raise KeyboardInterrupt
    if folder is not None:
        _keep(folder, partial(run.save if run.has_model else run.save_history, folder))
    return run


def _begin(folder: Path, learning: Row | None) -> None:
    """Say what is being learned, before anything else is: what is in the folder is of another
    run, unless ``learning`` is None.
    """
    (folder / HISTORY).unlink(missing_ok=True)
    if learning is not None:
        write_atomically(folder / LEARNING, json.dumps(learning).encode())


def _settings(budget: Budget, seeds: Sequence[int], measure: Measure, solver: str) -> Row:
    """How the runs were done, for the report."""
    return {
        "seeds": list(seeds),
        "budget": budget.limits,
        **vars(measure),
        "solver": solver,
        "threads": torch.get_num_threads(),
        "version": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def _schedule(record: RunRecord) -> dict[str, list[object]]:
    """Accuracies and step sizes, by column; evenly thinned out where there are many rows."""
    count = len(record.rows)
    kept = sorted({round(i * (count - 1) / (SCHEDULE_ROWS - 1)) for i in range(SCHEDULE_ROWS)})
    return {key: [_finite(record.rows[k].get(key)) for k in kept] for key in SCHEDULE}


def _finite(value: object) -> object:
    return None if isinstance(value, float) and value - value != 0 else value


def read_json(path: Path) -> Row:
    """A table in JSON; an empty one if the file is not there or not whole."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
