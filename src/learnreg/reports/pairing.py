"""Statistics of a comparison, paired: learners are compared on the same problem instance, then over
instances.

Another seed means other crops and other noise, hence another problem with another best loss. A mean
over seeds mixes the two; the gap to the best loss of the same instance (seed and start) does not.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean, median, stdev
from typing import Any, TypeAlias

from ..core.objective import Row

NEAR = 0.01
"""A run has arrived when its loss is within this fraction of the best one of its instance."""

Instance: TypeAlias = tuple[int, str]
"""(seed, start): the problem with its data, and where learning begins."""


@dataclass(frozen=True)
class ComparedRun:
    """One run of a comparison, as far as a report shows it.

    Attributes:
        learner: name of the learner; runs of one grid share it.
        name: the same with the values of the grid.
        grid: the values of the grid, empty without one.
        start, seed: of the instance.
        failure: why there are no results, or None.
        points: evaluated steps, rows of ``trajectory``.
        schedule: columns ``step``, ``eps``, ``delta``, ``step_size``.
        steps: accepted ones.
        stop: (code, sentence) of why it ended.
        problem, method, strategy, solver: sentences.
        adaptive: whether the lower level was solved to an accuracy; else the learner minimizes the
            loss of a number of lower-level steps, not the exact one.
        images, held_out: numbers of training and of held-out images.
    """

    learner: str
    name: str
    grid: Mapping[str, object]
    start: str
    seed: int
    failure: str | None = None
    points: Sequence[Row] = ()
    schedule: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    steps: int | None = None
    stop: Sequence[str] = ("", "")
    problem: str = ""
    method: str = ""
    strategy: str = ""
    solver: str = ""
    adaptive: bool = True
    images: int | None = None
    held_out: int | None = None

    @property
    def instance(self) -> Instance:
        return self.seed, self.start

    @property
    def title(self) -> str:
        return ", ".join(part for part in (self.name, self.start, f"seed {self.seed}") if part)

    @property
    def final(self) -> Row | None:
        """The last evaluated step, if its loss is known."""
        return self.points[-1] if self.points and self.points[-1]["loss"] is not None else None

    @property
    def trouble(self) -> str | None:
        """Why the final loss is not known."""
        if self.failure is None and self.final is None:
            return (self.points[-1]["note"] if self.points else None) or "nothing was evaluated"
        return self.failure

    def curve(self, x: str, y: str) -> list[tuple[float, float]]:
        """The evaluated (x, y) where both are known."""
        return [(p[x], p[y]) for p in self.points if p.get(x) is not None and p.get(y) is not None]


def best_losses(runs: Iterable[ComparedRun]) -> dict[Instance, float]:
    """The lowest loss that any run reached, for every instance."""
    best: dict[Instance, float] = {}
    for run in runs:
        for point in run.points:
            if point["loss"] is not None:
                best[run.instance] = min(point["loss"], best.get(run.instance, math.inf))
    return best


def gap(run: ComparedRun, best: Mapping[Instance, float]) -> float | None:
    """How far the final loss is above the best one of the instance, relative to it; None if not
    known.
    """
    lowest = best.get(run.instance, 0.0)
    return None if run.final is None or lowest <= 0 else max(0.0, run.final["loss"] / lowest - 1)


def arrival(run: ComparedRun, best: Mapping[Instance, float], column: str) -> float | None:
    """Work or seconds at which the loss first came within ``NEAR`` of the best one; None if it
    never did.

    Between two evaluated steps log(loss) is interpolated linearly over log(work).
    """
    target = (1 + NEAR) * best.get(run.instance, -math.inf)
    before: tuple[float, float] | None = None
    for x, loss in run.curve(column, "loss"):
        if loss <= target:
            if before is None or min(x, before[0], loss) <= 0:
                return x
            share = math.log(before[1] / target) / math.log(before[1] / loss)
            return before[0] * (x / before[0]) ** share
        before = x, loss
    return None


@dataclass(frozen=True)
class Spread:
    """Some numbers in a few: mean, sample standard deviation (None for one), median, range.

    >>> Spread.of([1.0, 3.0]).middle, Spread.of([]) is None
    (2.0, True)
    """

    count: int
    mean: float
    deviation: float | None
    middle: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        """None for no numbers; unknown ones are passed over."""
        known = [v for v in values if v is not None and math.isfinite(v)]
        if not known:
            return None
        return cls(
            len(known),
            mean(known),
            stdev(known) if len(known) > 1 else None,
            median(known),
            min(known),
            max(known),
        )


@dataclass(frozen=True)
class Summary:
    """What a table says of one learner, or of one point of its grid.

    Attributes:
        name, learner: which.
        settings: how many points of a grid are pooled here, 1 for none.
        runs: how many there are; ``ended`` of them have a final loss.
        loss, psnr, psnr_own, gap, steps: of the runs that ended.
        arrived: how many of them came within ``NEAR``; ``work`` and ``seconds`` are those at which
            they did.
        stops: how often each reason ended a run.
        troubles: (run, why there is no final loss).
    """

    name: str
    learner: str
    settings: int
    runs: int
    ended: int
    loss: Spread | None
    psnr: Spread | None
    psnr_own: Spread | None
    gap: Spread | None
    steps: Spread | None
    arrived: int
    work: Spread | None
    seconds: Spread | None
    stops: Mapping[str, int]
    troubles: Sequence[tuple[str, str]]


def summaries(
    runs: Sequence[ComparedRun], best: Mapping[Instance, float], key: Callable[[ComparedRun], str]
) -> list[Summary]:
    """One Summary for each value of ``key``, in the order of the runs."""
    found = []
    for name in dict.fromkeys(map(key, runs)):
        mine = [run for run in runs if key(run) == name]
        ended = [run for run in mine if run.final is not None]
        work, seconds = ([arrival(run, best, c) for run in ended] for c in ("work", "seconds"))
        finals = [run.final or {} for run in ended]
        loss, psnr, own = (
            Spread.of(f.get(c) for f in finals) for c in ("loss", "psnr_test", "psnr_test_own")
        )
        found.append(
            Summary(
                name=name,
                learner=mine[0].learner,
                settings=len({run.name for run in mine}),
                runs=len(mine),
                ended=len(ended),
                loss=loss,
                psnr=psnr,
                psnr_own=own,
                gap=Spread.of(gap(run, best) for run in ended),
                steps=Spread.of(run.steps for run in ended),
                arrived=sum(w is not None for w in work),
                work=Spread.of(work),
                seconds=Spread.of(seconds),
                stops=Counter(run.stop[0] for run in mine if run.failure is None),
                troubles=[(run.title, run.trouble) for run in mine if run.trouble is not None],
            )
        )
    return found


@dataclass(frozen=True)
class Lead:
    """How two competitors compare, instance by instance.

    Attributes:
        first, second: names.
        differences: (loss of second) / (loss of first) - 1, by instance.
        undecided: instances on which the brackets of the two losses overlap.
    """

    first: str
    second: str
    differences: Mapping[Instance, float]
    undecided: int

    @property
    def spread(self) -> Spread:
        found = Spread.of(self.differences.values())
        assert found is not None
        return found

    @property
    def wins(self) -> int:
        return sum(d > 0 for d in self.differences.values())

    @property
    def consistent(self) -> bool:
        """Whether the first is ahead on every instance, and by more than the brackets leave
        open.
        """
        return self.undecided == 0 and self.wins == len(self.differences)


def lead(runs: Sequence[ComparedRun], best: Mapping[Instance, float]) -> Lead | None:
    """The best learner and the next one, by the median gap of the best point of their grids.

    Points of one grid are compared with each other where there is one learner only. None unless two
    of those to be compared have a final loss on every instance.
    """
    finals: dict[str, dict[Instance, Row]] = {}
    learner = {run.name: run.learner for run in runs}
    for run in runs:
        if run.final is not None and run.final["loss"] > 0:
            finals.setdefault(run.name, {})[run.instance] = run.final
    complete = {name: found for name, found in finals.items() if set(found) == set(best)}
    ranked = sorted(
        complete,
        key=lambda name: median(found["loss"] / best[i] for i, found in complete[name].items()),
    )
    alone = len(set(learner.values())) == 1
    others = [name for name in ranked[1:] if alone or learner[name] != learner[ranked[0]]]
    if not others:
        return None
    one, two = complete[ranked[0]], complete[others[0]]
    differences = {i: two[i]["loss"] / one[i]["loss"] - 1 for i in one}
    return Lead(ranked[0], others[0], differences, sum(_overlap(one[i], two[i]) for i in one))


def _overlap(one: Row, two: Row) -> bool:
    """Whether the two losses cannot be told apart; brackets that are not known leave everything
    open.
    """
    ends = (one["lower"], one["upper"], two["lower"], two["upper"])
    return any(v is None for v in ends) or (
        one["lower"] <= two["upper"] and two["lower"] <= one["upper"]
    )
