"""Bilevel learning as learners see it: warm starts, brackets of the loss, honest counters."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from ..core.asking import offers
from ..core.batch import dot
from ..core.bounds import Kind
from ..core.cost import Cost
from ..core.errors import InputError, MissingPropertyError
from ..core.grants import Grants
from ..core.maps import Ask, Level, Limits, Posed, SolutionMap, Upper, upper_at
from ..core.meter import Meter, OutOfBudget
from ..core.objective import ErrorWord, PerImage, Row, Value, chosen, same_images
from ..core.offers import Rescalable
from ..core.packing import Packed
from ..core.protocols import AnySolver
from ..core.results import Hypergradient, Solution
from ..core.status import Status
from ..hypergradients.choose import check_map, natural_map
from ..hypergradients.evaluate import pulled
from ..metrics import data_psnr
from ..problems import BilevelProblem, EnergyAt
from ..problems.fidelity import data_constants
from ..solvers.select import check_solver
from ..solvers.solve import start_distance

START_FRACTION = 0.02
"""eps0 and delta0, when not given, are this fraction of the start's distance bound and of ||grad
loss||.
"""

TRIAL_STEPS = 2000
"""Solver steps of a trial, unless the present solution took more than a tenth of that; beyond, the
trial has failed.
"""


@dataclass(frozen=True)
class Squares:
    """A loss as a sum of squares, see ``core.objective.Residuals``."""

    values: Tensor
    error: float


@dataclass(frozen=True, eq=False)
class BilevelValue:
    """A theta with its lower-level solution.

    Attributes:
        theta: (d,).
        solution: x~ with certified distances.
        eps: the distance that was asked for.
        loss: mean loss at x~, penalty included.
        lower, upper: bracket of f(theta).
        kind: how the bracket is known.
        posed: the lower level at theta, with its data.
        problem: what is learned from.
        images: (b,), which images of the whole; None for all of them.
    """

    theta: Tensor
    solution: Solution
    eps: float
    loss: float
    lower: float
    upper: float
    kind: Kind
    posed: Posed
    problem: BilevelProblem
    images: Tensor | None = None

    @property
    def upper_loss(self) -> Upper:
        """The upper loss at theta."""
        return upper_at(self.problem.upper, self.posed.energy)

    @property
    def width(self) -> float:
        """Of the bracket."""
        return self.upper - self.lower

    @property
    def certified(self) -> bool:
        """Whether the bracket is proven."""
        return self.kind.certifies

    @property
    def error(self) -> Tensor:
        """(b,), the distance of every image."""
        return self.solution.error

    @property
    def steps(self) -> int:
        """The most steps that an image took."""
        return int(self.solution.steps.max())

    @property
    def warm(self) -> Tensor:
        """What another solve starts from."""
        return self.solution.warm

    @property
    def at_floor(self) -> bool:
        """Some image is as exact as its floating-point type allows."""
        return Status.ROUNDING_FLOOR in self.solution.status

    @property
    def limited(self) -> bool:
        """Some image ended at the limit of steps."""
        return Status.MAX_STEPS in self.solution.status

    @property
    def failed(self) -> bool:
        """Some image has no usable certificate (NaN, or the step limit), or the loss is NaN."""
        broken = self.limited or Status.NOT_FINITE in self.solution.status
        return broken or not math.isfinite(self.loss)

    @property
    def trouble(self) -> str:
        """What went wrong, for the first image with which something did."""
        bad = (s.value for s in self.solution.status if not s.ok)
        unknown = "no distance is known"
        return next(bad, unknown if math.isfinite(self.loss) else f"the loss is {self.loss}")

    def corrected(self, adjoint: Tensor | None) -> float:
        """Estimate of f(theta) that is of second order in eps: mean of g(x~) - <q, grad h(x~)>,
        free of charge.

        Newton's model of h at x~ moves x~ by -H^-1 grad h(x~), which changes g by -<q, grad h(x~)>
        with H q = grad g; the q of a nearby theta serves as well. Not a bound;
        ``hypergradients.error_bound.corrected_bracket`` has the proven form.
        """
        if adjoint is None:
            return self.loss
        slope = self.solution.gradient
        return self.loss - float(dot(adjoint.double(), slope.double()).mean())

    def doubt(self, adjoint: Tensor | None) -> float:
        """An estimate of how far ``corrected`` may be off: the mean size of the corrections."""
        if adjoint is None:
            return 0.0
        return float(dot(adjoint.double(), self.solution.gradient.double()).abs().mean())

    def residuals(self, pixels: bool) -> Squares | None:
        """Residuals r_i = sqrt(2 g_i), and sqrt(2 n p) of the penalty, so that F = sum_i r_i^2 =
        2 n f for n images.

        With ``pixels`` an image has the entries of grad g as its residuals, whose squares must sum
        to 2 g: those of x - x_true for the squared error; None for other losses.

        The residual of an image is off by at most sqrt(L_g) ||x~_i - x_i||, L_g the Lipschitz
        constant of grad g. Proof: g >= 0 falls by at least ||grad g||^2 / (2 L_g) in a gradient
        step, so ||grad g||^2 <= 2 L_g g; hence the gradient of sqrt(2 g), that is grad g / sqrt(2
        g), is at most sqrt(L_g) long where g > 0, and along a segment sqrt(2 g) changes by at most
        sqrt(L_g) times its length (parts where g = 0 add nothing).

        Raises:
            InputError: a loss below zero.
        """
        upper, x = self.upper_loss, self.solution.value.double()
        values = upper.value(x)
        if bool((values < 0).any()):
            raise InputError(
                "loss",
                given=f"the value {float(values.min()):.3g}",
                expected="values >= 0",
                remedy="Gauss-Newton models its square root; use MAID, which needs no such form.",
            )
        if pixels:
            slope = upper.grad(x)
            if not torch.allclose(0.5 * dot(slope, slope), values, rtol=1e-9, atol=0.0):
                return None
            found = slope.flatten()
        else:
            found = (2 * values).sqrt()

        if self.problem.penalty is not None:
            of_theta = 2 * self.problem.size * self.problem.penalty_at(self.theta)[0]
            found = torch.cat([found, found.new_tensor([math.sqrt(of_theta)])])
        return Squares(found, math.sqrt(upper.smooth.value) * float(self.error.max()))

    def per_image(self) -> PerImage:
        """Losses and PSNR of every image."""
        x, truth = self.solution.value, self.problem.truth
        loss = self.upper_loss.value(x.double())
        if truth is None:
            return PerImage(loss, torch.full_like(loss, math.nan))
        return PerImage(loss, data_psnr(x, truth).double())

    def row(self) -> Row:
        """What the record shows."""
        truth = self.problem.truth
        quality = None
        if truth is not None:
            quality = float(data_psnr(self.solution.value, truth).mean())
        return {
            "loss": self.loss,
            "lower": self.lower,
            "upper": self.upper,
            "kind": self.kind.label,
            "psnr": quality,
        }

    def pack(self) -> Packed:
        """theta and its solution."""
        s = self.solution
        tensors = {
            "theta": self.theta,
            "value": s.value,
            "error": s.error,
            "steps": s.steps,
            "gradient_norm": s.gradient_norm,
            "gradient": s.gradient,
        }
        tensors |= {} if s.state is None else {"state": s.state}
        tensors |= {} if self.images is None else {"images": self.images}
        numbers: dict[str, object] = {
            "point_eps": self.eps,
            "kind": int(s.kind),
            "status": [v.name for v in s.status],
            "solver": s.solver,
            "cost": s.cost.to_dict(),
            "theorem": list(s.theorem),
        }
        return Packed(tensors, numbers)


class WithRegularizer(Protocol):
    """A lower level that is put together of parts."""

    regularizer: object


class Bilevel:
    """f(theta) = mean_i g(x_i(theta)) + p(theta) through a solution map; it counts what it asks.

    Args:
        problem: the learning problem.
        strategy: the solution map; the natural one of the energy when None.
        solver: name or object, as in ``solve``.
        max_steps: of one solve, as in ``solve`` when None; reaching it is reported, never silent.
        meter: counters and budget; new ones when None.

    Raises:
        MissingPropertyError: a solution map for lower levels of another kind.
    """

    def __init__(
        self,
        problem: BilevelProblem,
        strategy: SolutionMap | None = None,
        solver: str | AnySolver = "auto",
        max_steps: int | None = None,
        meter: Meter | None = None,
    ) -> None:
        check_solver(solver)
        if strategy is not None:
            check_map(strategy, problem.energy)
        self.problem, self.max_steps, self.solver = problem, max_steps, solver
        self.strategy: SolutionMap = strategy or natural_map(problem.energy)
        self.meter = meter or Meter()
        self.images: Tensor | None = None

    @property
    def grants(self) -> Grants:
        """What the solution map grants, and what the loss does."""
        grants = Grants.LOSS | Grants.BRACKET | Grants.SUBSETS | self.strategy.grants
        upper = self.problem.upper
        squares = math.isfinite(upper.smooth.value) and not upper.signed
        return grants | Grants.RESIDUALS if squares else grants

    @property
    def theta(self) -> Tensor:
        """The start."""
        return self.problem.theta

    @property
    def names(self) -> tuple[str, ...]:
        """One per entry of theta."""
        return tuple(n.removeprefix("regularizer.") for n in self.problem.parameter_names)

    @property
    def units(self) -> Tensor:
        """A natural step of every entry."""
        return self.problem.units

    @property
    def scaling(self) -> Tensor:
        """The direction along which the regularizer is multiplied by e^t; zeros where nobody
        knows it.
        """
        none, energy = torch.zeros_like(self.theta), self.problem.energy
        regularizer = energy.regularizer if offers(energy, WithRegularizer) else None
        if not offers(regularizer, Rescalable):
            return none
        own = regularizer.scaling().to(none)
        # parameters of data term and physics stand behind those of the regularizer
        return torch.cat([own, none[own.numel() :]])

    def stiffness(self, theta: Tensor) -> float:
        """The logarithm of ||A||^2 times the curvature of D, mean over images; 0 where nobody knows
        it.
        """
        potential = self._posed(theta).at()
        if not isinstance(potential, EnergyAt):
            return 0.0
        of_data = data_constants(potential.data, potential.operator, potential.back).L
        mean = float(of_data.mean())
        return math.log(mean) if math.isfinite(mean) and mean > 0 else 0.0

    @property
    def size(self) -> int:
        """Number of images."""
        return self.problem.size

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self.problem.device

    def describe(self) -> str:
        """One sentence: what is learned from what."""
        return self.problem.describe()

    def identity(self) -> tuple[object, ...]:
        """Everything that the numbers of a run depend on."""
        p = self.problem
        return (self.strategy, p.theta, p.truth, p.data, p.energy, p.loss, p.penalty)

    def learned(self, theta: Tensor) -> Level:
        """The lower level at theta."""
        return cast(Level, self.problem.energy.with_theta(theta))

    def penalty(self, theta: Tensor) -> float:
        """p(theta)."""
        return self.problem.penalty_at(theta)[0]

    def on(self, problem: BilevelProblem) -> Bilevel:
        """The same for another problem (some of the images, or another type of number), with the
        same counters.
        """
        return self._on(problem, None)

    def subset(self, index: Tensor) -> Bilevel:
        """That of some images."""
        index = index.to(self.device)
        return self._on(self.problem.select(index), chosen(index, self.images, self.size))

    def widened(self) -> Bilevel:
        """That in float64."""
        return self._on(self.problem.to(torch.float64), self.images)

    def _on(self, problem: BilevelProblem, images: Tensor | None) -> Bilevel:
        other = Bilevel(problem, self.strategy, self.solver, self.max_steps, self.meter)
        other.images = images
        return other

    def _for(self, images: Tensor | None) -> Bilevel:
        """That of the images that a value was made of."""
        if same_images(images, self.images):
            return self
        assert images is not None and self.images is None, "a value of other images"
        return self.subset(images)

    # --- accuracies -------------------------------------------------------------------------------
    def accuracies(
        self, theta: Tensor, eps: float | None, delta: float | None
    ) -> tuple[float, float]:
        """eps0 and delta0 as given, or derived at theta_0 from how far the first x0 is from the
        solution.
        """
        if eps is not None and delta is not None:
            return eps, delta
        x0 = self._start(theta)
        found = self.start_residual(theta, x0)
        distance, slope = (v if math.isfinite(v) else 0.0 for v in found)
        scale = float(x0.flatten(1).norm(dim=1).mean())
        return (
            eps or START_FRACTION * (distance or scale) or START_FRACTION,
            delta or START_FRACTION * slope or START_FRACTION,
        )

    def distance_for(self, tolerance: float) -> float:
        """See ``BilevelValue.residuals``."""
        return tolerance / math.sqrt(self.problem.upper.smooth.value)

    def start_residual(self, theta: Tensor, x0: Tensor) -> tuple[float, float]:
        """(mean distance bound of x0, mean ||grad loss(x0)||), counted as one gradient per
        image.
        """
        posed = self._posed(theta)
        potential = posed.at(x0)
        residual = start_distance(potential, x0).mean()
        self.meter.cost += Cost(gradients=x0.shape[0])
        upper = upper_at(self.problem.upper, posed.energy)
        slope = upper.grad(x0).flatten(1).norm(dim=1).mean()
        return float(residual), float(slope)

    # --- evaluations ------------------------------------------------------------------------------
    def evaluate(
        self,
        theta: Tensor,
        eps: float,
        start: Value | Tensor | None = None,
        max_steps: int | None = None,
    ) -> BilevelValue:
        """Solve at theta to eps; ``max_steps`` replaces the general limit.

        Raises:
            OutOfBudget: the budget was used up before or during the solve.
        """
        first = start if start is None or isinstance(start, Tensor) else start.warm
        if first is None:
            first = self._start(theta)
        return self._solve(theta, self._posed(theta), eps, first, max_steps)

    def trial(self, theta: Tensor, eps: float, near: Value) -> BilevelValue | None:
        """A theta that may be hopeless, with a limit of steps so that it costs little.

        None where some image could not be solved, or the energy has no finite constants so far out.
        """
        limit = max(TRIAL_STEPS, 10 * near.steps)
        try:
            value = self.evaluate(theta, eps, near, limit)
        except MissingPropertyError:
            return None
        return None if value.failed else value

    def refine(self, value: Value, eps: float) -> BilevelValue:
        """The same theta to a smaller eps, going on from its x~; a fixed number of steps has
        nothing to go on with.
        """
        own = self._own(value)
        if Grants.ADAPTIVE not in self.strategy.grants:
            return own
        if own.at_floor or bool((own.error <= eps).all()):
            return replace(own, eps=eps)
        return self._solve(own.theta, own.posed, eps, own.warm)

    def gradient(
        self,
        value: Value,
        delta: float,
        warm: Tensor | None = None,
        error: ErrorWord | None = None,
    ) -> Hypergradient:
        """The hypergradient at a value.

        Raises:
            OutOfBudget: the budget was used up before it.
        """
        self.meter.check()
        own = self._own(value)
        result = pulled(
            self.strategy,
            self.problem,
            own.posed,
            own.solution,
            Ask(delta, warm, error),
            theta=own.theta,
        )
        self.meter.cost += result.cost
        return result

    def adopt(self, value: Value) -> BilevelValue:
        """A value in float32 for this objective in float64; its certificate stays valid, a float32
        image is one in float64 too.
        """
        own = self._own(value)
        here, s = self._for(own.images), own.solution
        status = tuple(Status.CONVERGED if v is Status.ROUNDING_FLOOR else v for v in s.status)
        solution = replace(
            s,
            value=s.value.double(),
            gradient=s.gradient.double(),
            state=None if s.state is None else s.state.double(),
            status=status,
        )
        theta = value.theta.double()
        return here._value(theta, here._posed(theta), solution, value.eps)

    def restore(self, packed: Packed) -> BilevelValue:
        """The inverse of ``BilevelValue.pack``."""
        t, n = packed.tensors, cast("dict[str, Any]", packed.numbers)
        solution = Solution(
            t["value"],
            t["error"],
            Kind(n["kind"]),
            tuple(Status[s] for s in n["status"]),
            t["steps"],
            Cost(**n["cost"]),
            n["solver"],
            t["gradient_norm"],
            t["gradient"],
            t.get("state"),
            tuple(n.get("theorem", ())),
        )
        theta, here = t["theta"], self._for(t.get("images"))
        return here._value(theta, here._posed(theta), solution, n["point_eps"])

    # --- parts ------------------------------------------------------------------------------------
    def _own(self, value: Value) -> BilevelValue:
        assert isinstance(value, BilevelValue), "a value of another objective"
        return value

    def _posed(self, theta: Tensor) -> Posed:
        return Posed(self.problem.energy.with_theta(theta), self.problem.data)

    def _start(self, theta: Tensor) -> Tensor:
        """The first x0 of a run: A^T y.

        Raises:
            InputError: reconstructions would have another shape than the ground truth.
        """
        posed, truth = self._posed(theta), self.problem.truth
        x0 = posed.energy.start(posed.y)
        if truth is not None and x0.shape != truth.shape:
            raise InputError(
                "pairs",
                given=f"ground truth of shape {tuple(truth.shape)}",
                expected=f"shape {tuple(x0.shape)}, that of the reconstructions",
                remedy="Make the pairs with the physics of the energy; tensors of the physics with "
                "one slice per image belong into lr.Measured(y, params) or Pairs(params=...).",
            )
        return x0

    def _solve(
        self,
        theta: Tensor,
        posed: Posed,
        eps: float,
        start: Tensor,
        max_steps: int | None = None,
    ) -> BilevelValue:
        self.meter.check()
        limits = Limits(self.solver, max_steps or self.max_steps, self.meter.should_stop)
        upper = upper_at(self.problem.upper, posed.energy)
        solution = self.strategy.solve(posed, eps, start, limits, upper)
        self.meter.cost += solution.cost
        if Status.BUDGET in solution.status:
            raise OutOfBudget
        return self._value(theta, posed, solution, eps)

    def _value(self, theta: Tensor, posed: Posed, solution: Solution, eps: float) -> BilevelValue:
        """Bracket the loss, penalty included, at a solution."""
        upper = upper_at(self.problem.upper, posed.energy)
        lower, highest = upper.bracket(solution.value, solution.error)
        values = upper.value(solution.value.double())
        means = torch.stack([values.mean(), lower.mean(), highest.mean()])
        mean, low, high = (means + self.penalty(theta)).tolist()
        kind = min(solution.kind, upper.kind)
        return BilevelValue(
            theta, solution, eps, mean, low, high, kind, posed, self.problem, self.images
        )
