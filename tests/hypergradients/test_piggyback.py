"""Hypergradients of saddle points: closed forms, dense Newton truths, finite differences; refusals
and counters.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tests.hypergradients import saddle_cases as cases
from tests.hypergradients.pulls import gradient_of
from tests.hypergradients.saddle_cases import (
    Matrix,
    curved,
    normal,
    picture,
    pictured,
    posed,
    quadratic,
    reached,
    truth,
    variables,
)
from tests.regularizers.cases import Pairs, denoising
from torch import Tensor

from learnreg.convex import Squares
from learnreg.core.errors import InputError, MissingPropertyError
from learnreg.core.maps import Limits, Posed
from learnreg.core.status import Status
from learnreg.hypergradients import (
    Implicit,
    JacobianFree,
    JointPiggyback,
    Piggyback,
    Unrolled,
    adjoint_saddle,
    hypergradient,
    piggyback,
)
from learnreg.hypergradients.choose import natural_map
from learnreg.learners import MAID
from learnreg.problems import KL, L1, L2, BilevelProblem, SaddleEnergy
from learnreg.regularizers import TV, ExactTV
from learnreg.runs import Budget, learn
from learnreg.solvers import solve
from learnreg.solvers.pdhg import PDHG


def relative(z: Tensor, exact: Tensor) -> float:
    return float((z - exact).norm() / exact.norm())


def assert_near(found: Tensor, expected: object, atol: float) -> None:
    torch.testing.assert_close(
        found, torch.as_tensor(expected, dtype=torch.float64), rtol=0, atol=atol
    )


def tight(problem: BilevelProblem, **settings: object):
    return hypergradient(problem, 1e-11, 1e-11, strategy=Piggyback(**settings))


# --- closed forms ---------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [True, False], ids=["offset", "centre"])
@pytest.mark.parametrize(("k", "mg", "mf"), [(0.7, 1.5, 2.0), (-2.0, 0.3, 0.1), (3.0, 1.0, 5.0)])
def test_the_scalar_quadratic_has_its_closed_form(k, mg, mf, offset):
    """g = mg/2 x^2 - r x, f* = mf/2 y^2 - q y: x, y, X, Y, dl/dk by hand; q is an offset or moves
    the centre of f.
    """
    r, q, target = 0.8, -0.6, 1.3
    one = torch.ones(1, dtype=torch.float64)
    regularizer = Matrix(
        k * one.view(1, 1),
        1,
        Squares(1 / mf, None if offset else -q * one.view(1, 1, 1)),
        shift=q * one if offset else None,
    ).double()
    y = (r / mg * one).view(1, 1, 1, 1)
    problem = BilevelProblem(
        SaddleEnergy(cases.denoising(), regularizer, L2(mg**-0.5)),
        Pairs(x=target * torch.ones_like(y), y=y),
    )
    s = mg + k**2 / mf
    x = (r - k * q / mf) / s
    p = (k * x + q) / mf
    X = -(x - target) / s
    Y = k * X / mf
    solution = solve(problem.energy, y, 1e-12)
    assert_near(variables(problem, solution.state), [[x, p]], 1e-11)
    found = tight(problem)
    assert_near(variables(problem, -found.adjoint), [[X, Y]], 1e-10)
    slope = p * X + Y * x
    assert slope == pytest.approx(X * (2 * k * x + q) / mf)
    expected = [slope, Y] if offset else [slope]
    assert_near(found.value, expected, 1e-10)
    assert found.loss == pytest.approx(0.5 * (x - target) ** 2)
    assert found.bracket[0] <= found.loss <= found.bracket[1] and found.status == (
        Status.CONVERGED,
    )


T1 = {
    "plain": {"shift": False},
    "offset": {},
    "auxiliary": {"auxiliary": True},
    "data": {"data": True},
    "all": {"auxiliary": True, "data": True},
}


def eye(n: int) -> Tensor:
    return torch.eye(n, dtype=torch.float64)


def dense_gradient(problem: BilevelProblem) -> Tensor:
    """The lower level as one linear system in x alone, differentiated by autograd."""
    energy, y, x_true = problem.energy, problem.pairs.y.flatten(1), problem.pairs.x.flatten(1)
    r = energy.regularizer
    names = dict(r.named_parameters())
    leaves = {name: q.detach().clone().requires_grad_() for name, q in names.items()}
    table, n = leaves["table"], r.pixels
    shift = leaves.get("shift", torch.zeros(table.shape[0], dtype=torch.float64))
    a = eye(n) if energy.operator.is_identity else energy.physics.matrix
    own = 1.5 * a.T @ a + energy.tikhonov * eye(n)
    curvature = torch.block_diag(own, *([r.own.weight * eye(table.shape[1] - n)] if r.own else []))
    pulled = torch.nn.functional.pad(1.5 * y @ a, (0, table.shape[1] - n))
    matrix = curvature + r.rows.weight * table.T @ table
    x = torch.linalg.solve(matrix, (pulled - r.rows.weight * shift @ table).T).T[:, :n]
    loss = 0.5 * (x - x_true).square().sum(dim=1).mean()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(leaves.values()))])


def check_quadratic(problem: BilevelProblem) -> None:
    """What the negative controls must fail."""
    assert relative(tight(problem, max_steps=200).value, dense_gradient(problem)) < 1e-9


@pytest.mark.parametrize("name", T1)
def test_quadratics_agree_with_a_dense_solve_and_autograd(name):
    check_quadratic(quadratic(**T1[name]))


def test_the_truth_by_newton_is_that_of_the_dense_solve():
    for settings in T1.values():
        problem = quadratic(**settings)
        assert relative(truth(problem).z, dense_gradient(problem)) < 1e-11


def _wrong_sign(monkeypatch) -> None:
    right = adjoint_saddle.AdjointSaddle.adjoint
    monkeypatch.setattr(
        adjoint_saddle.AdjointSaddle, "adjoint", lambda self, p: tuple(-t for t in right(self, p))
    )


def _exchanged(monkeypatch) -> None:
    right = piggyback.mixed_saddle

    def wrong(f, state, adjoint, group):
        X, Y = f.unpack(adjoint)
        return right(
            f,
            state,
            f.pack(
                tuple(t.view_as(s) for s, t in zip(X, Y, strict=True)),
                tuple(s.view_as(t) for s, t in zip(X, Y, strict=True)),
            ),
            group,
        )

    monkeypatch.setattr(piggyback, "mixed_saddle", wrong)


def _wrong_slope(monkeypatch) -> None:
    right = piggyback.linearized
    monkeypatch.setattr(piggyback, "linearized", lambda f, x, p, slope: right(f, x, p, -slope))


@pytest.mark.parametrize("spoil", [_wrong_sign, _exchanged, _wrong_slope])
def test_the_check_can_fail(spoil, monkeypatch):
    """A wrong sign between K^T and K, X and Y exchanged, the slope of the loss with the other
    sign.
    """
    problem = quadratic(n=3, m=3)
    check_quadratic(problem)
    spoil(monkeypatch)
    with pytest.raises(AssertionError):
        check_quadratic(problem)


# --- finite differences ---------------------------------------------------------------------------


CURVED = {"plain": {"shift": False}, "offset": {}, "data": {"data": True}}


def assert_differences(
    problem: BilevelProblem,
    z: Tensor,
    value,
    h: float,
    tolerance: float,
    count: int = 4,
    order: int = 2,
) -> None:
    """<z, d> in random directions, relative to |z|."""
    for seed in range(count):
        d = normal(z.numel(), seed=50 + seed)
        d /= d.norm()
        slope = cases.central_difference(value, problem.theta, d, h, order)
        assert abs(slope - float(z @ d)) < tolerance * float(z.norm()), (seed, slope, float(z @ d))


@pytest.mark.parametrize("name", CURVED)
def test_curved_saddles_agree_with_finite_differences(name):
    problem = curved(**CURVED[name])
    exact, found = truth(problem), tight(problem)
    assert relative(found.value, exact.z) < 1e-9
    assert_near(variables(problem, -found.adjoint), variables(problem, exact.adjoint), 1e-8)
    assert_differences(
        problem,
        found.value,
        lambda t: cases.exact_loss(problem, t, exact.state),
        1e-5,
        1e-8,
        count=2,
    )


@pytest.mark.parametrize(
    ("name", "physics"),
    [
        ("learned", "denoising"),
        ("learned", "blur"),
        ("learned-zero", "denoising"),
        ("learned-zero", "inpainting"),
        ("learned-zero", "blur"),
    ],
)
def test_learned_filters_have_the_gradient_of_a_dense_linear_solve(name, physics):
    """All entries of theta."""
    problem, exact = picture(name, physics)
    found = hypergradient(problem, 1e-9, 1e-9, strategy=Piggyback())
    assert relative(found.value, exact.z) < 1e-7
    assert found.loss == pytest.approx(exact.loss, abs=1e-8)


def test_learned_filters_on_8_by_8_pixels_agree_with_finite_differences():
    problem = pictured("learned", size=(8, 8), count=1)
    solution = reached(problem, 1e-11)
    found = hypergradient(problem, 1e-11, 1e-11, strategy=Piggyback())

    def value(theta: Tensor) -> float:
        image = reached(problem, 1e-11, theta, solution.state).value
        return float(problem.loss.value(image, problem.pairs.x).mean())

    assert_differences(problem, found.value, value, 1e-3, 1e-7, count=2, order=4)


@pytest.mark.parametrize(
    ("name", "physics", "eps", "h", "tolerance"),
    [
        ("tv", "denoising", 1e-8, 1e-4, 1e-4),
        ("tv-anisotropic", "denoising", 1e-8, 1e-4, 1e-4),
        ("tv-rounding", "blur", 1e-9, 1e-4, 1e-5),
        ("tv", "inpainting", 1e-8, 1e-4, 1e-4),
        ("tgv-curvature", "denoising", 1e-9, 1e-4, 1e-4),
        ("tgv", "denoising", 3e-7, 1e-3, 1e-3),
    ],
)
def test_pictures_with_edges_agree_with_finite_differences_almost_everywhere(
    name, physics, eps, h, tolerance
):
    problem = pictured(name, physics, (4, 4), count=1)
    solution = reached(problem, eps)
    found = hypergradient(problem, 3 * eps, 1e-9, strategy=Piggyback())
    assert found.certified is None, "no Hessian, no proven bound"
    assert found.status == (Status.CONVERGED,), (
        "components that a constraint keeps at zero have no residual"
    )

    def value(theta: Tensor) -> float:
        image = reached(problem, eps, theta, solution.state).value
        return float(problem.loss.value(image, problem.pairs.x).mean())

    assert_differences(problem, found.value, value, h, tolerance, count=1 if name == "tgv" else 2)


def test_counts_agree_with_finite_differences():
    """KL has a Hessian but no modulus: the derivative goes through the proximal map of its dual
    block.
    """
    n = 5
    regularizer = Matrix(0.5 * normal(3, n), n, Squares(2.0), shift=normal(3, seed=1))
    problem = posed(
        regularizer,
        cases.Dense(normal(6, n, seed=6).abs()),
        measured=6,
        fidelity=KL(0.5),
        tikhonov=0.4,
    )
    problem = BilevelProblem(problem.energy, Pairs(x=problem.pairs.x, y=problem.pairs.y.abs() * 4))
    exact = truth(problem)
    found = hypergradient(problem, 3e-8, 1e-9, strategy=Piggyback())
    assert relative(found.value, exact.z) < 1e-6
    assert_differences(
        problem, exact.z, lambda t: cases.exact_loss(problem, t, exact.state), 1e-5, 1e-8, count=2
    )


# --- the strategy ---------------------------------------------------------------------------------


@pytest.mark.parametrize("delta", [1e-1, 1e-3, 1e-6])
def test_the_residual_is_what_was_asked_for_and_is_that_of_the_dense_system(delta):
    problem = curved()
    solution = solve(problem.energy, problem.pairs.y, 1e-3)
    found = gradient_of(Piggyback(), problem, problem.energy, solution, delta)
    f = problem.energy.at(problem.pairs.y)
    (x, p), (X, Y) = f.unpack(solution.state), f.unpack(-found.adjoint)
    with torch.no_grad():
        rx = [g.hessian(a)(b) + k for g, a, b, k in zip(f.primal, x, X, f.adjoint(Y), strict=True)]
        rp = [
            phi.conjugate_hessian(s)(b) - k
            for phi, s, b, k in zip(f.dual, p, Y, f.linear(X), strict=True)
        ]
    rx[0] = rx[0] + problem.loss.grad(x[0], problem.pairs.x)
    residual = torch.cat([r.flatten(1) for r in (*rx, *rp)], dim=1).norm(dim=1)
    torch.testing.assert_close(found.residual, residual, rtol=1e-9, atol=1e-14)
    assert bool((found.residual <= delta).all())


def test_no_accuracy_after_so_many_steps_is_a_status():
    problem = curved()
    solution = solve(problem.energy, problem.pairs.y, 1e-3)
    found = gradient_of(Piggyback(max_steps=1), problem, problem.energy, solution, 1e-9)
    assert found.status == (Status.MAX_STEPS,) * 3 and bool((found.residual > 1e-9).all())


def test_the_adjoint_of_a_call_before_saves_steps():
    problem, _ = picture("learned")
    solution = solve(problem.energy, problem.pairs.y, 1e-6)
    strategy = Piggyback(certify=False)
    cold = gradient_of(strategy, problem, problem.energy, solution, 1e-6)
    warm = gradient_of(strategy, problem, problem.energy, solution, 1e-6, cold.adjoint)
    assert warm.cost.gradients == 2 * 2, (
        "one look at the start, one to close, for each of two images"
    )
    torch.testing.assert_close(warm.value, cold.value, rtol=0, atol=1e-12)
    nearer = gradient_of(strategy, problem, problem.energy, solution, 1e-8, cold.adjoint)
    anew = gradient_of(strategy, problem, problem.energy, solution, 1e-8)
    assert nearer.cost.work < 0.6 * anew.cost.work


@pytest.mark.parametrize("name", ["tv", "learned"])
def test_images_are_differentiated_alone(name):
    """The mean over images of what each gives by itself, whatever the group and the order."""
    problem = pictured(name, size=(4, 4))

    def at(index: list[int], group: int = 8) -> Tensor:
        part = problem.select(torch.tensor(index))
        return hypergradient(part, 1e-5, 1e-7, strategy=Piggyback(group=group)).value

    whole = at([0, 1, 2])
    alone = [at([k]) for k in range(3)]
    torch.testing.assert_close(whole, sum(alone) / 3, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(at([2, 0, 1], group=1), whole, rtol=1e-9, atol=1e-11)


class Counter:
    """Counts the images that go through K without a graph."""

    def __init__(self, monkeypatch, regularizer) -> None:
        self.images, right = 0, type(regularizer).linear

        def apply(this, u, *v):
            self.images += 0 if torch.is_grad_enabled() else u.shape[0]
            return right(this, u, *v)

        monkeypatch.setattr(type(regularizer), "linear", apply)


def applied(cost) -> int:
    """Applications of K: primal-dual iterations, and products of minimal residuals."""
    return cost.gradients + cost.hessian_products


def test_work_is_counted_per_image(monkeypatch):
    """Every application of K is a gradient or a product of the cost, and finished images cost
    nothing.
    """
    problem = curved()
    eps = torch.tensor([1e-1, 1e-4, 1e-8], dtype=torch.float64)
    counter = Counter(monkeypatch, problem.energy.regularizer)
    solution = solve(problem.energy, problem.pairs.y, eps)
    assert solution.steps[0] < solution.steps[1] < solution.steps[2]
    assert solution.cost.gradients == counter.images == solution.cost.work
    least = int((10 * solution.steps).sum()) + 2 * 3
    assert least <= counter.images <= least + 3 * 3
    counter.images = 0
    found = gradient_of(Piggyback(certify=False), problem, problem.energy, solution, 1e-6)
    assert applied(found.cost) == counter.images and found.cost.mixed_products == 3
    counter.images = 0
    polished = gradient_of(
        Piggyback(estimate=True, certify=False), problem, problem.energy, solution, 1e-6
    )
    assert (
        applied(polished.cost) == counter.images > applied(found.cost)
        and polished.cost.mixed_products == 6
    )


def test_the_front_door_takes_piggyback_by_itself():
    problem = curved()
    found = hypergradient(problem, 1e-3, 1e-3)
    same = hypergradient(problem, 1e-3, 1e-3, strategy=Piggyback(estimate=True))
    assert torch.equal(found.value, same.value) and found.estimated == same.estimated > 0
    assert found.certified is not None and "certified" in repr(found)
    elsewhere = problem.theta + 0.1
    there = hypergradient(problem, 1e-9, 1e-9, theta=elsewhere)
    assert relative(there.value, truth(problem, elsewhere).z) < 1e-8
    assert isinstance(natural_map(problem.energy), Piggyback)
    assert isinstance(natural_map(denoising(TV())), Implicit)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("eps", [1e-1, 1e-2, 1e-4])
def test_the_estimate_has_the_size_of_the_error(eps, seed, record_property):
    problem = curved(seed=seed)
    solution = solve(problem.energy, problem.pairs.y, eps)
    exact = truth(problem).z
    plain = gradient_of(Piggyback(certify=False), problem, problem.energy, solution, eps)
    found = gradient_of(
        Piggyback(estimate=True, certify=False), problem, problem.energy, solution, eps
    )
    before, after = float((plain.value - exact).norm()), float((found.value - exact).norm())
    record_property("ratio", found.estimated / before)
    assert 0.5 * before <= found.estimated <= 3 * before, (
        f"estimate / error = {found.estimated / before:.2f}"
    )
    assert after < before, "the polished hypergradient is returned"
    torch.testing.assert_close(found.correction, plain.value - found.value, rtol=0, atol=1e-14)
    assert after <= found.estimated


@pytest.mark.parametrize("name", ["tv", "tgv-curvature", "learned"])
def test_float32_gives_the_gradient_of_float64(name):
    wide = pictured(name, size=(4, 4))
    narrow = pictured(name, size=(4, 4), dtype=torch.float32)
    exact = hypergradient(wide, 1e-7, 1e-7, strategy=Piggyback(certify=False)).value
    found = hypergradient(narrow, 1e-5, 1e-4, strategy=Piggyback())
    assert found.value.dtype == torch.float32 and found.adjoint.dtype == torch.float32
    assert relative(found.value.double(), exact) < 1e-2
    nearer = hypergradient(narrow, 1e-6, 1e-5, strategy=Piggyback())
    assert relative(nearer.value.double(), exact) < 2e-3


def test_what_is_lent_is_left_alone():
    problem = pictured("learned")
    theta, y = problem.theta.clone(), problem.pairs.y.clone()
    solution = solve(problem.energy, problem.pairs.y, 1e-2)
    kept = solution.state.clone(), solution.value.clone()
    start = normal(*solution.state.shape)
    copy = start.clone()
    gradient_of(Piggyback(estimate=True), problem, problem.energy, solution, 1e-2, start)
    assert torch.equal(solution.state, kept[0]) and torch.equal(solution.value, kept[1])
    assert (
        torch.equal(problem.theta, theta)
        and torch.equal(problem.pairs.y, y)
        and torch.equal(start, copy)
    )
    assert all(p.grad is None for p in problem.energy.parameters())


# --- the joint variant ----------------------------------------------------------------------------


def joint(strategy: JointPiggyback, problem: BilevelProblem, start: Tensor | None = None):
    """The steps from ``start``, those of the linear problem along with them."""
    posed = Posed(problem.energy, problem.data)
    return strategy.solve(posed, 1.0, start, Limits(), problem.upper)


@pytest.mark.parametrize("make", [curved, lambda: picture("learned")[0]], ids=["curved", "learned"])
def test_joint_steps_arrive_at_the_same_gradient_when_warm_started(make):
    problem = make()
    exact = (truth(problem) if make is curved else picture("learned")[1]).z
    strategy, energy = JointPiggyback(steps=20 if make is curved else 80), problem.energy
    start, errors = energy.start(problem.pairs.y), []
    for _ in range(8):
        solution = joint(strategy, problem, start)
        errors.append(relative(gradient_of(strategy, problem, energy, solution, 1.0).value, exact))
        start = solution.warm
    assert errors[-1] < 1e-4 and errors[-1] < 1e-2 * errors[0], errors
    image = energy.at(problem.pairs.y).image(start.tensor_split(2, dim=1)[0])
    assert torch.equal(image, solution.value)
    better = reached(problem, 1e-9)
    distance = (solution.value - better.value).flatten(1).norm(dim=1)
    assert bool((distance <= solution.error + better.error).all())


def test_one_long_call_is_two_calls_with_a_warm_start_of_extrapolation_aside():
    """A call starts without extrapolation, so two calls are not bitwise one; they end at the same
    point.
    """
    problem = curved()
    long = joint(JointPiggyback(steps=200), problem)
    half = JointPiggyback(steps=100)
    twice = joint(half, problem, joint(half, problem).state)
    assert_near(long.value, twice.value, 1e-6)
    assert long.steps.tolist() == [200] * 3


def test_joint_steps_through_the_front_door():
    problem = curved()
    found = hypergradient(problem, 1e-3, 1e-3, strategy=JointPiggyback(steps=200))
    assert relative(found.value, truth(problem).z) < 1e-6
    assert (
        found.certified is None and found.estimated is None and bool(found.residual.isnan().all())
    )


def test_work_of_joint_steps_is_counted(monkeypatch):
    problem = curved()
    counter = Counter(monkeypatch, problem.energy.regularizer)
    solution = joint(JointPiggyback(steps=7), problem)
    assert solution.cost.gradients + solution.cost.hessian_products == counter.images


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "strategy",
    [Implicit(), JacobianFree(), Unrolled(), Unrolled(start="solution")],
    ids=["implicit", "jacobian_free", "unrolled", "truncated"],
)
def test_strategies_for_differentiable_energies_refuse_a_saddle(strategy):
    with pytest.raises(MissingPropertyError, match=r"SaddleEnergy.*Piggyback\(\)"):
        hypergradient(curved(), 1e-2, 1e-2, strategy=strategy)


@pytest.mark.parametrize(
    "strategy", [Piggyback(), JointPiggyback(steps=2)], ids=["piggyback", "joint"]
)
def test_a_differentiable_energy_is_refused(strategy):
    problem = BilevelProblem(
        denoising(TV().double()), Pairs(x=normal(1, 1, 4, 4), y=normal(1, 1, 4, 4, seed=1))
    )
    with pytest.raises(MissingPropertyError, match=r"Energy.*Implicit\(\)"):
        hypergradient(problem, 1e-2, 1e-2, strategy=strategy)


@pytest.mark.parametrize(
    "learner", [MAID(), MAID(test="certified")], ids=["estimated", "certified"]
)
def test_maid_switches_on_what_its_test_needs(learner):
    problem, budget = curved(), Budget(steps=1)
    for strategy in (Piggyback(), Piggyback(estimate=True, certify=False)):
        row = learn(problem, learner, hypergradient=strategy, budget=budget).record.rows[-1]
        assert (row["omega_estimated"] is not None) == (learner.test == "estimated")
        assert (row["omega_certified"] is not None) == (learner.test == "certified")
    with pytest.raises(MissingPropertyError, match="MAID"):
        learn(problem, learner, hypergradient=JointPiggyback(), budget=budget)


@pytest.mark.parametrize("make", [Piggyback, JointPiggyback])
@pytest.mark.parametrize("value", [0, -1, 2.5, True])
def test_counts_out_of_range_are_named(make, value):
    for name in ("group", "max_steps" if make is Piggyback else "steps"):
        with pytest.raises(InputError, match=rf"^{name}: given "):
            make(**{name: value})


def test_a_balance_out_of_range_is_named():
    with pytest.raises(InputError, match=r"^balance: given "):
        JointPiggyback(balance=0.0)


def test_another_solver_of_the_linear_problem_gives_the_same():
    problem = curved()
    found = [
        tight(problem, solver=PDHG(rule=rule)).value for rule in ("basic", "linear", "balanced")
    ]
    for z in found[1:]:
        torch.testing.assert_close(z, found[0], rtol=0, atol=1e-8)


def test_a_solution_without_its_dual_variables_is_refused():
    problem = curved()
    solution = replace(solve(problem.energy, problem.pairs.y, 1e-2), state=None)
    with pytest.raises(MissingPropertyError, match="Piggyback"):
        gradient_of(
            Piggyback(),
            problem,
            SimpleNamespace(regularizer=problem.energy.regularizer),
            solution,
            1e-2,
        )


@pytest.mark.parametrize("name", ["tv", "tgv-curvature", "learned", "learned-sharp"])
def test_minimal_residuals_give_the_adjoint_of_the_primal_dual_method(name):
    """The same derivative, for fewer applications of K where curvatures are very different."""
    problem = pictured(name)
    solution = solve(problem.energy, problem.pairs.y, 1e-5)
    found = [
        gradient_of(Piggyback(certify=False, minres=m), problem, problem.energy, solution, 1e-7)
        for m in (True, False)
    ]
    assert float(found[0].residual.max()) <= 1e-7
    assert relative(found[0].value, found[1].value) < 1e-4
    assert found[0].cost.work <= 1.5 * found[1].cost.work


def test_minimal_residuals_are_ahead_for_l1():
    """Components that L1 holds have infinite curvature, the others next to none."""
    y = pictured("tv", size=(10, 10)).pairs.y
    energy = SaddleEnergy(cases.denoising(), ExactTV(0.5).double(), L1(), tikhonov=1e-3)
    posed_at = BilevelProblem(energy, Pairs(x=y.clamp(0, 1), y=y))
    solution = solve(energy, y, 1e-3)
    ours, theirs = (
        gradient_of(Piggyback(certify=False, minres=m), posed_at, energy, solution, 1e-5)
        for m in (True, False)
    )
    assert relative(ours.value, theirs.value) < 1e-4
    assert ours.cost.work < 0.5 * theirs.cost.work
