"""Deferred certification: explore freely, certify blocks of steps instead of single ones.

MAID certifies a decrease at every step. Its convergence needs less: a certified decrease of
lambda alpha_k ||z_k||^2 along a subsequence, as in the watchdog technique (Chamberlain, Lemarechal,
Pedersen and Powell 1982) and non-monotone searches (Grippo, Lampariello and Lucidi 1986). A block
starts at theta_k with a certified bracket [L_k, U_k] and a gradient z_k that passes the descent
test, explores by a method that is guided by estimates only, mini-batches (``stochastic``) or
descent (``exploring``), and is accepted when

    U(theta') + lambda alpha_k ||z_k||^2 <= L_k,

where alpha_k is the length of the latest certified step relative to its gradient (before there is
one, any positive number). A block that
cannot be certified is given up, and MAID makes the step from theta_k, which renews alpha_k. The
gradient z_k is renewed in every fourth block; in between the decrease that is asked for stays. So
the sum of lambda alpha_k ||z_k||^2 over the blocks with a gradient of their own is bounded by the
loss, and along them z_k tends to zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from ..core.errors import InputError, MissingPropertyError
from ..core.grants import Grants
from ..core.objective import Halt, Objective, Row, Value, row_of
from ..core.ranges import check_choice, check_flag, check_fraction, check_number, shown, tidy
from .accuracy import Adaptive
from .curvature import CurvaturePairs
from .descent import DescentState, descend, tighten
from .exploring import explored_by_descent, first_exploration, moved_to
from .maid import MAID
from .rescaling import rescaled
from .stochastic import Seen, Stochastic, StochasticState
from .warm_starts import InMemory

Blocks = Literal["auto", "batches", "descent"]
"""What blocks consist of."""

SHORTEST = 4
"""Steps of a block at least, unless the learner starts with fewer."""

FIRST_SHARE = 0.5
"""A block is never longer than this part of all steps made before it, so that a budget that ends in
the middle of a block loses little.
"""

FEW = 64
"""With at most so many images, steps of descent on all of them are ahead of mini-batches."""

RESERVE = {"first": 1.0, "later": 0.5}
"""Work of a certificate over that of its block, for which a budget keeps room at its end. Measured:
0.3 to 0.9 for first blocks, a tenth to a fifth for later ones.
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
        explored: where an exploration by batches was left: its optimizer, warm starts, schedules.
        descended: where one by descent was left: its curvature, accuracies.
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
    descended: DescentState | None
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
    """Blocks of steps that follow estimates, each with a certified decrease at its end.

    Inside a block nothing is certified. Every row of the record is the end of a block: its bracket
    is proven where MAID's would be, and its exact loss is lower than that of the row before. Where
    many images, long budgets or loose constants make MAID spend its work on certificates, this
    spends about ``share`` of it. On ill-posed physics (MRI, tomography) it is the learner to take.

    Args:
        explore: the stochastic method of blocks of batches; its theta and optimizer live on from
            block to block.
        certify: the method that makes the step when a block fails; its constants are those of the
            certified decrease.
        steps: what a block consists of. ``batches``: steps of ``explore``. ``descent``: steps of
            ``certify`` on all images, decided by estimates of the loss in the place of its bracket
            (``learners.exploring``). ``auto``: descent for at most 64 images, batches for more, or
            where another ``explore`` is given.
        length: steps of the first block.
        share: part of the work that certification may take; blocks are made longer beyond it.
        longest: steps of a block at most.
        rescale: begin with the scale of the regularizer (``learners.rescaling``): the run, and its
            row 0, start from theta_0 with the factor in front of R at which an estimate of the loss
            of some images is lowest; from theta_0 itself where none is better by a tenth.

    Raises:
        InputError: a value out of range.

    >>> from learnreg.learners import Deferred
    >>> Deferred(length=20).length
    20
    """

    explore: Stochastic = Stochastic.preset("iadam")
    certify: MAID = MAID()
    steps: Blocks = "auto"
    length: int = 10
    share: float = 0.15
    longest: int = 1000
    rescale: bool = True

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
        check_choice("steps", self.steps, get_args(Blocks))
        check_flag("rescale", self.rescale)

    state: ClassVar[type[DeferredState]] = DeferredState

    @property
    def needs(self) -> Grants:
        """Those of both methods."""
        return self.explore.needs | self.certify.needs

    def init(self, objective: Objective, theta: Tensor, seed: int = 0) -> DeferredState:
        """Solve all images at theta_0, rescaled."""
        start = rescaled(objective, theta) if self.rescale else theta
        first = self.certify.init(objective, start, seed)
        info = {**first.info, "block": 0, "explored": 0, "certifying": None}
        return DeferredState(
            first, None, None, self.length, 0, None, 0.0, 0, first.eps, first.delta, seed, info
        )

    def step(self, objective: Objective, state: DeferredState) -> DeferredState:
        """One block with a certified decrease, or the step of MAID in its place."""
        work = [objective.meter.cost.work]
        by_descent = self._by_descent(objective)
        start = self._descent(objective, state, by_descent)
        if start is None:
            return self._fall_back(objective, state, False, 0)

        work.append(objective.meter.cost.work)
        after, steps = self._explored(objective, start, by_descent)
        work.append(objective.meter.cost.work)
        exploring = work[2] - work[1]
        found = None
        if after is not None:
            end = _end_by_descent(after) if by_descent else _end_by_batches(objective, after)
            found = self._certified(objective, after, end, exploring)
        if after is None or found is None:
            return self._fall_back(objective, start, True, steps)

        whole = objective.meter.cost.work - work[0]
        share = 1 - exploring / max(whole, 1)
        info = {
            **found.info,
            "gradient_norm": start.gradient,
            "block": steps,
            "explored": state.steps + steps,
            "certifying": share,
        }
        # why: the bracket of a longer block may be wider, and it is certified less often
        length = 2 * state.length if share > self.share else state.length
        return replace(
            after,
            certified=found,
            length=self._bounded(length, state.steps + steps),
            steps=state.steps + steps,
            age=(state.age + 1) % RENEWED,
            info=info,
        )

    def _bounded(self, length: int, steps: int) -> int:
        """The length of a block after so many steps."""
        late = max(int(FIRST_SHARE * steps), self.length)
        return max(min(length, late, self.longest), min(SHORTEST, self.length))

    # --- the start of a block ---------------------------------------------------------------------
    def _by_descent(self, objective: Objective) -> bool:
        """Whether blocks consist of steps of descent."""
        if self.steps == "auto":
            # a method that somebody has chosen is taken
            return self.explore == Deferred.explore and objective.size <= FEW
        return self.steps == "descent"

    def _descent(
        self, objective: Objective, state: DeferredState, first: bool
    ) -> DeferredState | None:
        """With the gradient z_k, or None where it does not pass the descent test of MAID: then MAID
        sharpens it.

        Args:
            first: whether a run may begin without a step of MAID.
        """
        if state.safe is None and not first:
            return None
        if state.safe is not None and state.age:
            return state
        rules, start = self.certify, state.certified
        z = objective.gradient(start.point, start.delta, start.adjoint, "estimate")
        if not bool(torch.isfinite(z.value).all()):
            return None
        passes = z.along(z.value, "estimated") <= (1 - rules.eta) * z.norm**2
        if not passes or z.norm <= rules.gradient_tolerance:
            return None
        return replace(state, certified=replace(start, adjoint=z.adjoint), gradient=z.norm)

    # --- exploration ------------------------------------------------------------------------------
    def _explored(
        self, objective: Objective, state: DeferredState, by_descent: bool
    ) -> tuple[DeferredState | None, int]:
        """Where a block of steps has led, None where it went astray; and how many they were."""
        if by_descent:
            return self._descended(objective, state)
        now = self._at_start(objective, state)
        best = state.certified.point.loss
        visits, limit = 0, max(200, SLOWER * state.certified.point.steps)
        enough = _reserve(objective, state)
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
            if enough():
                return replace(state, explored=now), done + 1
        return replace(state, explored=now), state.length

    def _descended(
        self, objective: Objective, state: DeferredState
    ) -> tuple[DeferredState | None, int]:
        """``_explored`` by steps of descent on all images."""
        old, start = state.descended, state.certified
        now = first_exploration(start, state.delta0) if old is None else moved_to(old, start.point)
        found, steps = explored_by_descent(
            self.certify.rules, objective, now, state.length, _reserve(objective, state)
        )
        if found is None:
            return None, max(steps, 1)
        safe = state.safe
        if safe is None:
            # the first alpha may be any: a block that is given up renews it
            way = float((found.theta - start.theta).norm())
            safe = way / (steps * state.gradient)
        return replace(state, descended=found, safe=safe), steps

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
        self, objective: Objective, state: DeferredState, end: _End | None, allowance: int
    ) -> DescentState | None:
        """The end of a block with its certified decrease; None where it has none, or where to show
        it costs more than the block did.
        """
        if end is None or state.safe is None:
            return None
        rules = self.certify.rules
        old, new = state.certified, end.point
        adjoint = old.adjoint if end.adjoint is None else end.adjoint
        wanted = self.certify.sufficient * state.safe * state.gradient**2
        begun = objective.meter.cost.work
        while not new.failed:
            if new.upper + wanted <= old.point.lower:
                return _moved(old, new, end, rules.accuracy)
            gain = old.point.corrected(adjoint) - new.corrected(adjoint) - wanted
            slack = old.point.width + new.width
            impossible = new.lower + wanted > old.point.upper
            dear = objective.meter.cost.work - begun > allowance
            stuck = new.at_floor and old.point.at_floor
            if impossible or dear or stuck or gain <= end.worth * slack:
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
        failed: bool,
        steps: int,
    ) -> DeferredState:
        """One step of MAID; a shorter block comes next where one has failed, with shorter steps."""
        found = descend(self.certify.rules, objective, state.certified)
        moved = float((found.theta - state.theta).norm())
        size = found.info["gradient_norm"]
        length = state.length
        if steps:
            length = self._bounded(state.length // 2, state.steps + steps)
        explored, descended = state.explored, state.descended
        if failed and explored is not None:
            alpha0 = None if explored.alpha0 is None else 0.5 * explored.alpha0
            explored = replace(
                explored, memory={}, alpha0=alpha0, adjoints=InMemory.empty(objective.size)
            )
        info = {**found.info, "block": 0, "explored": state.steps + steps, "certifying": None}
        return replace(
            state,
            certified=found,
            explored=explored,
            descended=None if failed else descended,
            length=length,
            steps=state.steps + steps,
            safe=moved / size if size else state.safe,
            gradient=size or state.gradient,
            age=1,
            info=info,
        )


def _reserve(objective: Objective, state: DeferredState) -> Callable[[], bool]:
    """Whether a block that begins now should end, so that the budget still certifies it: what is
    lost otherwise is the whole block.
    """
    meter = objective.meter
    begun = meter.used()
    share = RESERVE["later" if state.steps else "first"]

    def enough() -> bool:
        used = meter.used()
        return used + share * (used - begun) >= 1

    return enough


@dataclass(frozen=True)
class _End:
    """The end of a block, before it is certified.

    Attributes:
        point: its theta with the lower-level solutions.
        adjoint: of the latest gradients, for estimates of the exact loss; that of the start when
            None.
        step_size: the latest.
        worth: a gain below this part of both brackets is given up.
    """

    point: Value
    adjoint: Tensor | None
    step_size: float | None
    worth: float


def _end_by_batches(objective: Objective, state: DeferredState) -> _End | None:
    """All images at the end of a block, as exact as its start; None where they cannot be solved."""
    explored, near = state.explored, state.certified.point
    assert explored is not None
    everyone = list(range(objective.size))
    warm = explored.solutions.take(everyone, near.warm)
    start = near if warm is None else warm.to(objective.device)
    limit = max(SOLVE_STEPS, SLOWER * near.steps)
    try:
        point = objective.evaluate(explored.theta, near.eps, start, limit)
    except MissingPropertyError:  # parameters so far out that there are no constants
        return None
    adjoint = explored.adjoints.take(everyone, state.certified.adjoint)
    found = None if adjoint is None else adjoint.to(objective.device)
    return _End(point, found, explored.info["step_size"], WORTHLESS)


def _end_by_descent(state: DeferredState) -> _End:
    """The end of a block that knows its solutions. Brackets are wide there, whatever the gain:
    their width says nothing against it.
    """
    end = state.descended
    assert end is not None
    return _End(end.point, end.adjoint, end.info["step_size"], 0.0)


def _moved(old: DescentState, new: Value, end: _End, accuracy: object) -> DescentState:
    """MAID's state at the end of a block; accuracies loosen as after a step of its own."""
    loosen = accuracy.loosen if isinstance(accuracy, Adaptive) else 1.0
    info = {
        "eps": new.eps,
        "delta": old.delta,
        "step_size": end.step_size,
        "trials": 0,
        "refinements": 0,
        "curvature_pairs": 0,
    }
    return DescentState(
        new,
        old.adjoint if end.adjoint is None else end.adjoint,
        max(old.eps * loosen, new.eps),
        old.delta * loosen,
        old.step_size,
        CurvaturePairs.empty(new.theta),
        None,
        old.squares,
        info,
    )
