"""Deferred certification: explore freely, certify blocks of steps instead of single ones.

MAID certifies a decrease at every step. Its convergence needs less: a certified decrease of
lambda alpha_k ||z_k||^2 along a subsequence, as in the watchdog technique (Chamberlain, Lemarechal,
Pedersen and Powell 1982) and non-monotone searches (Grippo, Lampariello and Lucidi 1986). A block
starts at theta_k with a certified bracket [L_k, U_k] and a gradient z_k that passes the descent
test, explores by a stochastic method that is guided by estimates only, and is accepted when

    U(theta') + lambda alpha_k ||z_k||^2 <= L_k,

where alpha_k is the length of the latest certified step relative to its gradient. A block that
cannot be certified is given up, and MAID makes the step from theta_k, which renews alpha_k. The
gradient z_k is renewed in every fourth block; in between the decrease that is asked for stays. So
the sum of lambda alpha_k ||z_k||^2 over the blocks with a gradient of their own is bounded by the
loss, and along them z_k tends to zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..core.errors import InputError, MissingPropertyError
from ..core.grants import Grants
from ..core.objective import Halt, Objective, Row, Value, row_of
from ..core.ranges import check_fraction, check_number, shown, tidy
from .accuracy import Adaptive
from .curvature import CurvaturePairs
from .descent import DescentState, descend, tighten
from .maid import MAID
from .stochastic import Seen, Stochastic, StochasticState
from .warm_starts import InMemory

SHORTEST = 4
"""Steps of a block at least, unless the learner starts with fewer."""

FIRST_SHARE = 0.5
"""A block is never longer than this part of all steps made before it, so that a budget that ends in
the middle of a block loses little.
"""

RENEWED = 4
"""Blocks that share a gradient z_k: one costs as much as a tenth of a short block."""

WORTHLESS = 0.02
"""A gain that is estimated to be below this part of both brackets is not worth tightening for."""

HOPELESS = 1.1
"""Exploration ends early when the running loss exceeds the certified one by this factor."""

SLOWER = 10
"""A solve inside a block may take so many times the steps of the certified one, and 200."""

SOLVE_STEPS = 2000
"""Steps of the solve at the end of a block, unless the certified one took a tenth of that."""

LOWEST_CUT, LEAST_CUT = 0.02, 0.5
"""A tightening multiplies eps by a factor in this range."""


@dataclass(frozen=True)
class DeferredState:
    """Between two blocks.

    Attributes:
        certified: theta_k with its bracket, as MAID keeps it.
        explored: where the exploration was left: its optimizer, warm starts, schedules.
        length: steps of the next block.
        steps: mini-batch steps so far, those of blocks that were given up included.
        safe: alpha_k; None before the first certified step.
        gradient: ||z_k||, the latest one that passed the descent test.
        age: blocks since.
        eps0, delta0: the accuracies at theta_0, where the schedules of the exploration start.
        seed: of the order of the images.
        info: what the record shows.
    """

    certified: DescentState
    explored: StochasticState | None
    length: int
    steps: int
    safe: float | None
    gradient: float
    age: int
    eps0: float
    delta0: float
    seed: int
    info: Row

    @property
    def theta(self) -> Tensor:
        """(d,), the certified parameters."""
        return self.certified.theta

    def row(self) -> Row:
        """The certified point, and how it was reached."""
        return row_of(self.certified.point, self.info)


@dataclass(frozen=True)
class Deferred:
    """Blocks of stochastic steps, each with a certified decrease at its end.

    Inside a block nothing is certified: steps follow estimates, as those of ``explore`` do. Every
    row of the record is the end of a block: its bracket is proven where MAID's would be, and its
    exact loss is lower than that of the row before. Where many images, long budgets or loose
    constants make MAID spend its work on certificates, this spends about ``share`` of it.

    Args:
        explore: the method inside a block; its theta and optimizer live on from block to block.
        certify: the method that makes the step when a block fails; its constants are those of the
            certified decrease.
        length: steps of the first block.
        share: part of the work that certification may take; blocks are made longer beyond it.
        longest: steps of a block at most.

    Raises:
        InputError: a value out of range.

    >>> from learnreg.learners import Deferred
    >>> Deferred(length=20).length
    20
    """

    explore: Stochastic = Stochastic.preset("iadam")
    certify: MAID = MAID()
    length: int = 10
    share: float = 0.15
    longest: int = 1000

    def __post_init__(self) -> None:
        tidy(self)
        for name, kind in (("explore", Stochastic), ("certify", MAID)):
            given = vars(self)[name]
            if not isinstance(given, kind):
                raise InputError(
                    name,
                    given=shown(given),
                    expected=f"a {kind.__name__}",
                    remedy=f"For example {name}=lr.{kind.__name__}().",
                )
        for name in ("box", "store", "record"):
            if vars(self.explore)[name] is not None:
                raise InputError(
                    f"explore.{name}",
                    given=shown(vars(self.explore)[name]),
                    expected="None: blocks keep all solutions in memory, and know no box",
                    remedy=f"Leave it out, or use Stochastic({name}=...) by itself.",
                )
        if self.certify.box is not None:
            raise InputError(
                "certify.box",
                given=shown(self.certify.box),
                expected="None: blocks know no box",
                remedy="Use MAID(box=...) or Stochastic(box=...) by itself.",
            )
        check_number("length", self.length, lambda v: v >= 1, "an integer >= 1", integer=True)
        check_number(
            "longest",
            self.longest,
            lambda v: v >= self.length,
            f"an integer >= length = {self.length}",
            integer=True,
        )
        check_fraction("share", self.share)

    state: ClassVar[type[DeferredState]] = DeferredState

    @property
    def needs(self) -> Grants:
        """Those of both methods."""
        return self.explore.needs | self.certify.needs

    def init(self, objective: Objective, theta: Tensor, seed: int = 0) -> DeferredState:
        """Solve all images at theta_0."""
        first = self.certify.init(objective, theta, seed)
        info = {**first.info, "block": 0, "explored": 0, "certifying": None}
        return DeferredState(
            first, None, self.length, 0, None, 0.0, 0, first.eps, first.delta, seed, info
        )

    def step(self, objective: Objective, state: DeferredState) -> DeferredState:
        """One block with a certified decrease, or the step of MAID in its place."""
        work = [objective.meter.cost.work]
        gradient = self._descent(objective, state)
        if state.safe is None or gradient is None:
            return self._fall_back(objective, state, state.explored, 0)

        work.append(objective.meter.cost.work)
        explored, steps = self._explored(objective, state)
        work.append(objective.meter.cost.work)
        exploring = work[2] - work[1]
        found = None
        if explored is not None:
            wanted = self.certify.sufficient * state.safe * gradient**2
            found = self._certified(objective, state, wanted, explored, exploring)
        if explored is None or found is None:
            return self._fall_back(objective, state, None, steps)

        whole = objective.meter.cost.work - work[0]
        share = 1 - exploring / max(whole, 1)
        info = {
            **found.info,
            "gradient_norm": gradient,
            "block": steps,
            "explored": state.steps + steps,
            "certifying": share,
        }
        # why: the bracket of a longer block may be wider, and it is certified less often
        length = 2 * state.length if share > self.share else state.length
        return replace(
            state,
            certified=found,
            explored=explored,
            length=self._bounded(length, state.steps + steps),
            steps=state.steps + steps,
            gradient=gradient,
            age=(state.age + 1) % RENEWED,
            info=info,
        )

    def _bounded(self, length: int, steps: int) -> int:
        """The length of a block after so many steps."""
        late = max(int(FIRST_SHARE * steps), self.length)
        return max(min(length, late, self.longest), min(SHORTEST, self.length))

    # --- the start of a block ---------------------------------------------------------------------
    def _descent(self, objective: Objective, state: DeferredState) -> float | None:
        """||z_k||, or None where it does not pass the descent test of MAID: then MAID sharpens
        it.
        """
        if state.safe is None or state.age:
            return state.gradient
        rules, start = self.certify, state.certified
        z = objective.gradient(start.point, start.delta, start.adjoint, "estimate")
        if not bool(torch.isfinite(z.value).all()):
            return None
        passes = z.along(z.value, "estimated") <= (1 - rules.eta) * z.norm**2
        return z.norm if passes and z.norm > rules.gradient_tolerance else None

    # --- exploration ------------------------------------------------------------------------------
    def _explored(
        self, objective: Objective, state: DeferredState
    ) -> tuple[StochasticState | None, int]:
        """Where a block of steps has led, None where it went astray; and how many they were."""
        now = self._at_start(objective, state)
        best = state.certified.point.loss
        visits, limit = 0, max(200, SLOWER * state.certified.point.steps)
        for done in range(state.length):
            try:
                now = self.explore.mini_batch(objective, now, limit)
            except Halt:
                return None, done + 1
            visits += min(self.explore.batch, objective.size)
            loss = now.seen.mean_loss(objective, now.theta)
            seen_all = visits >= objective.size
            if not math.isfinite(loss) or (seen_all and loss > HOPELESS * best):
                return None, done + 1
        return now, state.length

    def _at_start(self, objective: Objective, state: DeferredState) -> StochasticState:
        """The exploration at theta_k: solutions of all images are at hand."""
        point, everyone = state.certified.point, list(range(objective.size))
        solutions: InMemory = InMemory.empty(objective.size)
        if point.warm is not None:
            solutions = solutions.put(everyone, point.warm)
        seen = Seen.empty(objective.size).updated(torch.arange(objective.size), point)
        old = state.explored
        if old is not None:
            return replace(old, theta=point.theta, solutions=solutions, seen=seen)

        return StochasticState(
            point.theta,
            0,
            self.explore.alpha0,
            self.explore.eps0 or state.eps0,
            self.explore.delta0 or state.delta0,
            state.seed,
            {},
            solutions,
            InMemory.empty(objective.size),
            seen,
            {},
        )

    # --- the end of a block -----------------------------------------------------------------------
    def _certified(
        self,
        objective: Objective,
        state: DeferredState,
        wanted: float,
        explored: StochasticState,
        allowance: int,
    ) -> DescentState | None:
        """The end of a block with its certified decrease; None where it has none, or where to show
        it costs more than the block did.
        """
        rules = self.certify.rules
        old = state.certified
        new = _evaluated(objective, explored, old.point)
        begun = objective.meter.cost.work
        while new is not None and not new.failed:
            if new.upper + wanted <= old.point.lower:
                return _moved(objective, old, new, explored, rules.accuracy)
            adjoint = _adjoints(objective, explored, old)
            gain = old.point.corrected(adjoint) - new.corrected(adjoint) - wanted
            slack = old.point.width + new.width
            impossible = new.lower + wanted > old.point.upper
            dear = objective.meter.cost.work - begun > allowance
            stuck = new.at_floor and old.point.at_floor
            if impossible or dear or stuck or gain <= WORTHLESS * slack:
                return None

            cut = min(LEAST_CUT, max(LOWEST_CUT, 0.5 * gain / slack))
            if (new.width >= old.point.width and not new.at_floor) or old.point.at_floor:
                new = objective.refine(new, min(new.eps, float(new.error.max())) * cut)
            else:
                old = tighten(rules, objective, old, cut)
        return None

    def _fall_back(
        self,
        objective: Objective,
        state: DeferredState,
        explored: StochasticState | None,
        steps: int,
    ) -> DeferredState:
        """One step of MAID; a shorter block comes next where one has failed, with shorter steps."""
        found = descend(self.certify.rules, objective, state.certified)
        moved = float((found.theta - state.theta).norm())
        size = found.info["gradient_norm"]
        length = state.length
        if steps:
            length = self._bounded(state.length // 2, state.steps + steps)
        if explored is None and state.explored is not None:
            old = state.explored
            alpha0 = None if old.alpha0 is None else 0.5 * old.alpha0
            explored = replace(
                old, memory={}, alpha0=alpha0, adjoints=InMemory.empty(objective.size)
            )
        info = {**found.info, "block": 0, "explored": state.steps + steps, "certifying": None}
        return replace(
            state,
            certified=found,
            explored=explored,
            length=length,
            steps=state.steps + steps,
            safe=moved / size if size else state.safe,
            gradient=size or state.gradient,
            age=1,
            info=info,
        )


def _evaluated(objective: Objective, explored: StochasticState, near: Value) -> Value | None:
    """The end of a block on all images, as exact as its start; None where it cannot be solved."""
    warm = explored.solutions.take(list(range(objective.size)), near.warm)
    start = near if warm is None else warm.to(objective.device)
    try:
        limit = max(SOLVE_STEPS, SLOWER * near.steps)
        return objective.evaluate(explored.theta, near.eps, start, limit)
    except MissingPropertyError:  # parameters so far out that there are no constants
        return None


def _adjoints(objective: Objective, explored: StochasticState, old: DescentState) -> Tensor | None:
    """The latest q of every image, for estimates of the exact loss."""
    found = explored.adjoints.take(list(range(objective.size)), old.adjoint)
    return old.adjoint if found is None else found.to(objective.device)


def _moved(
    objective: Objective,
    old: DescentState,
    new: Value,
    explored: StochasticState,
    accuracy: object,
) -> DescentState:
    """MAID's state at the end of a block; accuracies loosen as after a step of its own."""
    loosen = accuracy.loosen if isinstance(accuracy, Adaptive) else 1.0
    info = {
        "eps": new.eps,
        "delta": old.delta,
        "step_size": explored.info["step_size"],
        "trials": 0,
        "refinements": 0,
        "curvature_pairs": 0,
    }
    return DescentState(
        new,
        _adjoints(objective, explored, old),
        max(old.eps * loosen, new.eps),
        old.delta * loosen,
        old.step_size,
        CurvaturePairs.empty(new.theta),
        None,
        old.squares,
        info,
    )
