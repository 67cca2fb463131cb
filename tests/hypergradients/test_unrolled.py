"""Unrolled differentiation: autograd through the loop written out, finite differences, checkpoints,
learners.
"""

from __future__ import annotations

import math
import weakref
from dataclasses import replace

import pytest
import torch
from tests.hypergradients.pulls import gradient_of
from tests.hypergradients.test_jacobian_free import Counted, CountedAt, WithoutConvexity, solved
from tests.hypergradients.test_triangle import NAMES, Pairs, close, oracle
from tests.learners.cases import Watched, assert_certified, exact_loss, pictures, run
from tests.regularizers.cases import denoising, newton
from torch import Tensor

from learnreg.core.errors import MissingPropertyError, SolveError
from learnreg.core.grants import Grants, check_needs
from learnreg.core.maps import Limits, Posed
from learnreg.core.results import Solution
from learnreg.core.status import Status
from learnreg.hypergradients import Implicit, JacobianFree, Unrolled, hypergradient
from learnreg.learners import MAID, FixedAccuracy
from learnreg.objectives.bilevel import Bilevel
from learnreg.problems import BilevelProblem, gallery
from learnreg.regularizers import TV, Tikhonov

FEW = ["quadratic", "scalar_tv", "tv", "foe"]
METHODS = ["gd", "agd"]
STARTS = ["data", "solution"]


def constants(p: BilevelProblem, strategy: Unrolled) -> tuple[float, float]:
    """tau and beta at the present theta, from the formulas of the docstring."""
    bounds = p.energy.with_theta(p.theta).at(p.pairs.y).bounds()
    mu, L = bounds.mu.value, bounds.L.value
    tau = strategy.step or (2 / (L + mu) if strategy.method == "gd" else 1 / L)
    root = math.sqrt(mu * tau)
    return tau, 0.0 if strategy.method == "gd" else (1 - root) / (1 + root)


def written_out(name: str, strategy: Unrolled, x0: Tensor) -> tuple[Tensor, Tensor]:
    """x_K and the gradient of its mean loss by autograd through the loop."""
    p, formula = oracle(name).problem, oracle(name).formula
    theta, (tau, beta) = p.theta.requires_grad_(), constants(p, strategy)
    x = before = x0.clone()
    for _ in range(strategy.steps):
        z = x + beta * (x - before)
        x, before = z - tau * formula(z, theta), x
    (gradient,) = torch.autograd.grad(p.loss.value(x, p.pairs.x).mean(), theta)
    return x.detach(), gradient


def k_steps(strategy: Unrolled, energy: object, y: Tensor) -> Solution:
    """x_K from the data."""
    return strategy.solve(Posed(energy, y), 1.0, None, Limits())


def minimizers(p: BilevelProblem, energy) -> Tensor:
    """In closed form, or by dense Newton steps."""
    return p.exact_solution(p.theta) if hasattr(p, "exact_solution") else newton(energy, p.pairs.y)


# --- what is computed -----------------------------------------------------------------------------


@pytest.mark.parametrize("step", [None, 0.06])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("name", NAMES)
def test_it_is_autograd_through_the_loop(name, start, method, step):
    p, energy, solution = solved(name, eps=0.1)
    for steps in (1, 2, 11):
        strategy = Unrolled(steps, start, method, step)
        x0 = energy.start(p.pairs.y) if start == "data" else solution.value
        x, expected = written_out(name, strategy, x0)
        result = gradient_of(strategy, p, energy, solution, 1e-3)
        close(result.value, expected, 1e-10)
        assert not result.value.requires_grad and all(s.ok for s in result.status)
        if start == "data":
            torch.testing.assert_close(
                k_steps(strategy, energy, p.pairs.y).value, x, rtol=0, atol=1e-12
            )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["scalar_tv", "tv", "foe"])
def test_with_a_given_step_it_is_the_derivative_of_the_loss_of_k_steps(name, method):
    p, h = oracle(name).problem, 1e-5
    strategy, theta = Unrolled(12, method=method, step=0.1), p.theta
    result = hypergradient(p, 1.0, 1.0, strategy=strategy)
    g = torch.Generator().manual_seed(0)
    for _ in range(4):
        e = torch.randn(theta.shape, generator=g, dtype=torch.float64)
        e /= e.norm()
        up, down = (
            hypergradient(p, 1.0, 1.0, strategy=strategy, theta=theta + s * h * e).loss
            for s in (1, -1)
        )
        assert (up - down) / (2 * h) == pytest.approx(
            float(result.value @ e), abs=1e-6 * float(result.value.norm())
        )


def test_the_default_step_is_held_constant_in_the_differentiation():
    """L of TV depends on theta: the loss with a step that follows it has another slope, with a
    frozen one the same.
    """
    p, h = oracle("tv").problem, 1e-5
    default = Unrolled(6, method="gd")
    frozen = replace(default, step=constants(p, default)[0])
    z = hypergradient(p, 1.0, 1.0, strategy=default).value
    assert torch.equal(z, hypergradient(p, 1.0, 1.0, strategy=frozen).value)

    def slopes(strategy: Unrolled) -> Tensor:
        moves = h * torch.eye(2, dtype=torch.float64)
        losses = [
            [
                hypergradient(p, 1.0, 1.0, strategy=strategy, theta=p.theta + s * e).loss
                for s in (1, -1)
            ]
            for e in moves
        ]
        return torch.tensor([(up - down) / (2 * h) for up, down in losses], dtype=torch.float64)

    close(z, slopes(frozen), 1e-6)
    assert float((z - slopes(default)).norm()) > 1e-3 * float(z.norm())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("name", FEW)
def test_many_steps_are_the_closed_form(name, start, method):
    exact = oracle(name).exact
    errors = [
        float(
            (
                hypergradient(
                    oracle(name).problem, 1e-3, 1.0, strategy=Unrolled(k, start, method)
                ).value
                - exact
            ).norm()
        )
        / float(exact.norm())
        for k in (4, 30, 240)
    ]
    assert errors[2] < 1e-6 and errors[2] < 1e-2 * errors[1] and errors[1] < errors[0]


@pytest.mark.parametrize("terms", [1, 7])
@pytest.mark.parametrize("name", FEW)
def test_gradient_steps_from_the_solution_are_the_neumann_series(name, terms):
    p, energy, solution = solved(name, eps=1e-11)
    unrolled = gradient_of(Unrolled(terms, "solution", "gd"), p, energy, solution, 1.0)
    series = gradient_of(JacobianFree(terms), p, energy, solution, 1.0)
    close(unrolled.value, series.value, 1e-7)
    close(unrolled.adjoint, series.adjoint, 1e-7)


@pytest.mark.parametrize("name", FEW)
def test_the_adjoint_tends_to_that_of_the_linear_system(name):
    p, energy, solution = solved(name, eps=1e-10)
    q = gradient_of(Implicit(), p, energy, solution, 1e-11).adjoint
    result = gradient_of(Unrolled(300, "solution"), p, energy, solution, 1.0)
    close(result.adjoint, q, 1e-6)
    assert result.residual.shape == (p.size,) and result.residual.isnan().all()
    assert result.certified is None and result.estimated is None and result.correction is None


@pytest.mark.parametrize("name", FEW)
def test_loss_and_bracket_are_those_of_the_reconstruction(name):
    p, energy, solution = solved(name)
    truth = float(p.loss.value(minimizers(p, energy), p.pairs.x).mean())
    x_k = k_steps(Unrolled(5), energy, p.pairs.y)
    elsewhere = replace(solution, value=solution.value + 1, error=solution.error + 100)
    cases = [(start, s) for start in STARTS for s in (x_k, solution, elsewhere)]
    for start, of in cases:
        result = gradient_of(Unrolled(5, start), p, energy, of, 1.0)
        assert result.bracket[0] <= truth <= result.bracket[1] and result.bracket_kind.certifies
        of_it = float(p.loss.value(of.value, p.pairs.x).mean())
        assert result.loss == pytest.approx(of_it, rel=1e-12)

    fixed = gradient_of(Unrolled(5), p, energy, x_k, 1.0)
    again = gradient_of(Unrolled(5), p, energy, elsewhere, 1e-9, adjoint=elsewhere.value)
    assert torch.equal(again.value, fixed.value), "x_K is differentiated, whatever was handed in"


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("name", FEW)
def test_the_batch_is_a_list_of_strangers(name, start):
    p, energy, solution = solved(name)
    whole, parts = gradient_of(Unrolled(7, start), p, energy, solution, 1.0), []
    for i in ([2], [*range(2), *range(3, p.size)]):
        part = BilevelProblem(p.energy, Pairs(x=p.pairs.x[i], y=p.pairs.y[i]), p.loss)
        of = replace(solution, value=solution.value[i], error=solution.error[i])
        parts.append(gradient_of(Unrolled(7, start, group=1), part, energy, of, 1.0))
        torch.testing.assert_close(parts[-1].adjoint, whole.adjoint[i], rtol=1e-12, atol=1e-14)
    close(sum(len(r.status) * r.value for r in parts) / p.size, whole.value, 1e-12)


# --- checkpoints ----------------------------------------------------------------------------------


def expected_gradients(steps: int, segment: int) -> int:
    """Forward K, and again all but the last step of every segment but the last."""
    return steps + ((steps - 1) // segment) * (segment - 1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("segment", [None, 1, 2, 3, 5, 10, 11, 12, 50])
def test_segments_change_the_cost_and_nothing_else(segment, method):
    p, energy, solution = solved("tv")
    whole, parts = (
        gradient_of(Unrolled(11, "solution", method, segment=s), p, energy, solution, 1.0)
        for s in (11, segment)
    )
    close(parts.value, whole.value, 1e-13)
    close(parts.adjoint, whole.adjoint, 1e-13)
    assert whole.cost.gradients == 11 * p.size
    assert parts.cost.gradients == expected_gradients(11, segment or 4) * p.size < 2 * 11 * p.size


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize(
    ("steps", "segment"), [(1, None), (2, None), (9, None), (10, None), (10, 3), (10, 10)]
)
def test_everything_is_counted(steps, segment, start, method):
    p, energy, solution = solved("scalar_tv")
    counted, strategy = Counted(energy), Unrolled(steps, start, method, segment=segment, group=2)
    cost = gradient_of(strategy, p, counted, solution, 1.0).cost
    counted.check(cost)
    assert counted.largest == 2, "images in one reverse-mode call"
    length = segment or math.ceil(math.sqrt(steps))
    assert cost.gradients == expected_gradients(steps, length) * p.size
    assert cost.mixed_products == steps * p.size
    assert cost.linearizations == cost.hessian_products == (steps - 1) * p.size
    if start == "data":
        counted.calls.clear()
        cost = k_steps(strategy, counted, p.pairs.y).cost
        counted.check(cost)
        assert cost.gradients == (steps + 1) * p.size, "one closes x_K"


class Remembered(CountedAt):
    """Notes how many of the points at which a gradient was taken are still in memory when a Hessian
    is.
    """

    def __init__(self, f) -> None:
        self.f, self.seen, self.alive = f, [], 0

    def grad(self, x: Tensor) -> Tensor:
        self.seen.append(weakref.ref(x))
        return self.f.grad(x)

    def linearize(self, x: Tensor):
        self.alive = max(self.alive, len({id(r()) for r in self.seen if r() is not None}))
        return self.f.linearize(x)


class Remembering(Counted):
    def at(self, y: Tensor, x: Tensor | None = None) -> Remembered:
        self.made = Remembered(self.energy.at(y, x))
        return self.made


def test_memory_grows_as_the_square_root_of_the_steps():
    p, energy, solution = solved("tv")
    alive = {}
    for segment in (None, 100, 10):
        watched = Remembering(energy)
        gradient_of(Unrolled(100, "solution", "gd", segment=segment), p, watched, solution, 1.0)
        alive[segment] = watched.made.alive
    assert alive[None] == alive[10] <= 2 * 10 + 1 and alive[100] >= 99


# --- the map of K steps as a lower level ----------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", FEW)
def test_the_distance_of_the_reconstruction_is_certified(name, method, dtype):
    p = oracle(name).problem.to(dtype)
    energy, wide = (p.energy.with_theta(t) for t in (p.theta, p.theta.double()))
    y = p.pairs.y
    truth = minimizers(p, wide)
    for steps in (1, 6, 40):
        solution = k_steps(Unrolled(steps, method=method), energy, y)
        true = (solution.value.double() - truth).flatten(1).norm(dim=1)
        assert (true <= solution.error * (1 + 1e-9) + 1e-12).all() and solution.kind.certifies
        assert solution.value.dtype == dtype and solution.error.dtype == torch.float64
        gradient = energy.widened().at(y.double()).grad(solution.value.double())
        torch.testing.assert_close(solution.gradient_norm, gradient.flatten(1).norm(dim=1))
        torch.testing.assert_close(solution.gradient, gradient.to(dtype))
        assert solution.ok and solution.steps.tolist() == [steps] * p.size
        assert solution.solver == f"unrolled {method}, {steps} steps"


def test_an_image_that_overflows_keeps_its_start_and_says_so():
    p, energy, solution = solved("tv")
    y = torch.cat([p.pairs.y[:1], torch.zeros_like(p.pairs.y[:1])])
    wild = Unrolled(3, step=1e160)
    x = k_steps(wild, energy, y)
    assert x.status == (Status.NOT_FINITE, Status.CONVERGED), "zero stays zero, whatever the step"
    assert torch.equal(x.value, y) and x.error[0] == math.inf and x.error[1] == 0
    assert x.gradient.isfinite().all()
    assert Status.NOT_FINITE in gradient_of(wild, p, energy, solution, 1.0).status
    with pytest.raises(SolveError, match="NaN or Inf"):
        hypergradient(p, 1.0, 1.0, strategy=wild)


@pytest.mark.parametrize("name", FEW)
def test_the_front_door_makes_the_steps_and_solves_nothing(name):
    p = oracle(name).problem
    coarse, fine = (hypergradient(p, eps, 1.0, strategy=Unrolled(9)) for eps in (10.0, 1e-13))
    assert torch.equal(coarse.value, fine.value) and coarse.cost == fine.cost
    assert coarse.cost.gradients == (9 + 1 + expected_gradients(9, 3)) * p.size
    solution = solved(name)[2]
    assert torch.equal(
        coarse.value, gradient_of(Unrolled(9), p, p.energy.with_theta(p.theta), solution, 1.0).value
    )
    free = hypergradient(p, 1e-2, 1.0, strategy=Unrolled(9, "solution"))
    assert free.cost.gradients == solution.cost.gradients + expected_gradients(9, 3) * p.size


def test_a_lower_level_of_fixed_steps_knows_neither_accuracy_nor_warm_start():
    p = pictures()
    lower, free = (Bilevel(p, Unrolled(5, start)) for start in STARTS)
    x0 = p.energy.start(p.pairs.y)
    point, other = (
        lower.evaluate(p.theta, 1.0, x0),
        lower.evaluate(p.theta, 1e-9, torch.rand_like(x0)),
    )
    assert torch.equal(point.solution.value, other.solution.value) and not point.failed
    assert lower.meter.cost.gradients == 2 * (5 + 1) * p.size
    assert lower.refine(point, 1e-9) is point
    assert lower.meter.cost.gradients == 2 * (5 + 1) * p.size
    z = lower.gradient(point, 1.0, None)
    assert torch.equal(z.value, hypergradient(p, 1.0, 1.0, strategy=Unrolled(5)).value)
    assert point.loss == pytest.approx(z.loss) and point.loss > 0
    half = lower.subset(torch.tensor([1]))
    assert half.refine(point, 1e-9) is point, "the strategy goes with it"
    solved_to = free.evaluate(p.theta, 1e-2, x0)
    assert (solved_to.solution.error <= 1e-2).all() and (point.solution.error > 1e-2).any()
    assert (free.refine(solved_to, 1e-4).solution.error <= 1e-4).all()


def test_descending_along_it_decreases_the_loss_of_k_steps():
    p = pictures(TV(0.01, 0.02))
    lower, theta, losses = Bilevel(p, Unrolled(8)), p.theta, []
    for _ in range(6):
        point = lower.evaluate(theta, 1.0)
        losses.append(point.loss)
        theta = theta - 0.3 * lower.gradient(point, 1.0, None).value
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.8 * losses[0]


# --- learners -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "learner", [MAID(), MAID(memory=0), FixedAccuracy(eps=1e-2)], ids=lambda v: type(v).__name__
)
def test_every_accepted_step_decreases_the_exact_loss(learner, method):
    p, watched = pictures(TV(0.01, 0.02)), Watched(learner)
    outcome = run(p, watched, steps=6, hypergradient=Unrolled(10, "solution", method))
    losses = [exact_loss(p, theta) for theta in outcome.thetas]
    assert_certified(p, watched, outcome, losses)
    assert len(losses) > 3 and losses[-1] < 0.8 * losses[0]
    assert all(
        row["omega_estimated"] is None and row["omega_certified"] is None
        for row in outcome.record.rows
    )


def test_many_steps_lead_maid_to_the_optimum():
    p = gallery.quadratic(images=3, n=6, d=3, condition=20.0)
    outcome = run(p, MAID(rounds=5), steps=200, hypergradient=Unrolled(120, "solution"))
    assert p.exact_loss(outcome.theta) - p.exact_loss(p.exact_optimum()) < 1e-9


@pytest.mark.parametrize("learner", [MAID(), FixedAccuracy()])
def test_learners_that_certify_refuse_fixed_steps_and_nothing_else(learner):
    p = gallery.quadratic(images=2, n=3, d=2)
    message = rf"start='data'.*{type(learner).__name__} asks for.*Use start='solution'"
    with pytest.raises(MissingPropertyError, match=message):
        run(p, learner, hypergradient=Unrolled())
    assert Grants.ADAPTIVE in learner.needs and Grants.ADAPTIVE not in Unrolled().grants
    for strategy in (Unrolled(start="solution"), JacobianFree(), Implicit()):
        assert Grants.ADAPTIVE in strategy.grants
        check_needs("a learner", learner.needs, Bilevel(p, strategy).grants, "it")
        assert len(run(p, learner, steps=1, hypergradient=strategy).record.rows) == 2
    outcome = run(p, learner, steps=1, hypergradient=Implicit(estimate=True, certify=True))
    assert all(row["omega_certified"] is None for row in outcome.record.rows), "nobody asked"


def test_the_certified_test_refuses_a_strategy_without_a_bound():
    p, learner = gallery.quadratic(images=2, n=3, d=2), MAID(test="certified")
    with pytest.raises(MissingPropertyError, match=r"Unrolled\(.*MAID\(test='estimated'\)"):
        run(p, learner, hypergradient=Unrolled(start="solution"))


# --- bad values -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *(
            ({"steps": v}, f"steps: given {v}; expected an integer >= 1")
            for v in (0, -2, 2.5, True, None)
        ),
        *(
            ({"segment": v}, f"segment: given {v}; expected an integer >= 1 or None")
            for v in (0, 1.5, False)
        ),
        *(
            ({"step": v}, f"step: given {v}; expected a positive finite number")
            for v in (0.0, -1.0, math.nan, math.inf)
        ),
        ({"group": 0}, "group: given 0; expected an integer >= 1"),
        ({"start": "zero"}, "start: given 'zero'; expected 'data' or 'solution'"),
        ({"start": None}, "start: given None"),
        ({"method": "adam"}, "method: given 'adam'; expected 'gd' or 'agd'"),
    ],
)
def test_bad_values_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Unrolled(**arguments)


def test_bad_accuracies_are_refused_although_they_play_no_role():
    for eps, delta in ((0.0, 1.0), (1.0, -1.0)):
        with pytest.raises(ValueError, match="expected a positive finite distance"):
            hypergradient(oracle("tv").problem, eps, delta, strategy=Unrolled())


def test_a_lower_level_without_strong_convexity_is_refused():
    p, _, solution = solved("tv")
    flat = denoising(WithoutConvexity().double())
    with pytest.raises(MissingPropertyError, match="mu > 0"):
        k_steps(Unrolled(), flat, p.pairs.y)
    with pytest.raises(MissingPropertyError, match="mu > 0"):
        gradient_of(Unrolled(start="solution"), p, flat, solution, 1.0)


def test_a_step_beyond_the_strong_convexity_is_plain():
    """mu tau > 1 leaves no momentum: agd is gd there."""
    p, _, solution = solved("tv")
    p = BilevelProblem(denoising(TV(0.05, 0.2) + Tikhonov(3.0).double()).double(), p.pairs)
    plain, accelerated = (
        gradient_of(Unrolled(4, "solution", m, step=0.26), p, p.energy, solution, 1.0)
        for m in METHODS
    )
    assert torch.equal(plain.value, accelerated.value)


def test_nothing_lent_is_changed():
    p, energy, solution = solved("foe")
    lent = [p.pairs.x, p.pairs.y, solution.value, *energy.parameters()]
    kept, random = [t.detach().clone() for t in lent], torch.get_rng_state()
    for start in STARTS:
        gradient_of(Unrolled(4, start), p, energy, solution, 1.0)
    k_steps(Unrolled(4), energy, p.pairs.y)
    assert all(torch.equal(a, b) for a, b in zip(lent, kept, strict=True))
    assert all(q.grad is None for q in energy.parameters()) and torch.equal(
        torch.get_rng_state(), random
    )
