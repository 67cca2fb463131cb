"""Hypergradients within bounds of pixels: the free set, what is certain about it, and every map."""

from __future__ import annotations

import deepinv
import pytest
import torch
from tests.regularizers.cases import Pairs
from tests.solvers.constrained import counts, denoised, noisy, random
from torch import Tensor

import learnreg as lr
from learnreg.core.maps import Ask, Limits, Posed
from learnreg.hypergradients import JointPiggyback
from learnreg.hypergradients.implicit import mixed_product
from learnreg.linear import cg
from learnreg.problems import BilevelProblem, Energy, SaddleEnergy
from learnreg.regularizers import TGV, TV, ExactTV, Tikhonov

BOX = (0.0, 0.125)


def posed(kind: str, count: int = 2) -> BilevelProblem:
    """Denoising within a box, so that a third of the pixels are at either bound."""
    truth = (noisy(count, seed=5) + 0.05).clamp(0, 0.2)
    return BilevelProblem(denoised(kind, BOX), Pairs(x=truth, y=noisy(count)))


def loss_at(p: BilevelProblem, theta: Tensor, eps: float = 1e-9) -> float:
    x = lr.solve(p.energy.with_theta(theta), p.data, eps, solver="newton").value
    return float(p.upper.value(x).mean())


def central(f, theta: Tensor, h: float = 1e-5, directions: Tensor | None = None) -> Tensor:
    """Slopes of f along some directions (k, d), those of the axes when None."""
    ways = torch.eye(len(theta), dtype=theta.dtype) if directions is None else directions
    slopes = [(f(theta + h * e) - f(theta - h * e)) / (2 * h) for e in ways]
    return torch.tensor(slopes, dtype=theta.dtype)


def bound_pixels(p: BilevelProblem, x: Tensor) -> int:
    return int((~p.energy.constraint.tied(x).inside(x)).sum())


# --- the free set ---------------------------------------------------------------------------------


def test_the_unconstrained_formula_points_the_other_way():
    """Counts, smoothed total variation and a ridge: 30 unknowns, 24 counts, 4 pixels at zero. Only
    the derivative on the free pixels is that of central differences.
    """
    energy, truth, y = counts(0, lr.NonNegative())
    p = BilevelProblem(energy, Pairs(x=truth, y=y))
    exact = central(lambda theta: loss_at(p, theta, 1e-8), p.theta, 1e-4)
    found = lr.hypergradient(p, 1e-8, 1e-8, strategy=lr.Implicit())
    x = lr.solve(energy, y, 1e-8).value
    assert int((x == 0).sum()) == 4 and int((x > 1e-3).sum()) == 26
    torch.testing.assert_close(found.value, exact, rtol=1e-5, atol=1e-6)

    free = Energy(energy.physics, energy.regularizer, energy.fidelity)
    q = cg(free.at(y, x).linearize(x), x - truth, 1e-10).value
    naive = -mixed_product(free, x, y, q)
    assert naive[0] * exact[0] < 0 and abs(float(naive[0] - exact[0])) > 0.5


@pytest.mark.parametrize("kind", ["TV", "FoE"])
def test_all_strategies_agree_with_central_differences(kind):
    p = posed(kind)
    ways = random(3, len(p.theta), seed=4) - 0.5
    exact = central(lambda theta: loss_at(p, theta), p.theta, directions=ways)
    x = lr.solve(p.energy, p.data, 1e-9).value
    assert 10 < bound_pixels(p, x) < 200
    bounds = p.energy.at(p.data).bounds()
    mu, L = bounds.mu.value, bounds.L.value
    slope = p.upper.grad(x).norm()
    left = float(((L - mu) / (L + mu)) ** 500 * slope / mu)  # of q, after 500 terms
    for strategy, off in (
        (lr.Implicit(), 0.0),
        (lr.Implicit(estimate=True), 0.0),
        (lr.JacobianFree(terms=500), left),
        (lr.Unrolled(150, start="solution"), 0.0),
        (lr.Unrolled(200, step=1 / L), 0.0),
    ):
        found = lr.hypergradient(p, 1e-8, 1e-9, strategy=strategy)
        torch.testing.assert_close(ways @ found.value, exact, rtol=1e-4, atol=5e-6 + off)


def test_the_adjoint_vanishes_at_the_bounds_and_starts_warm():
    p = posed("TV")
    x = lr.solve(p.energy, p.data, 1e-8).value
    first = lr.hypergradient(p, 1e-8, 1e-8, strategy=lr.Implicit())
    inside = p.energy.constraint.tied(x).inside(x)
    assert (first.adjoint[~inside] == 0).all() and (first.adjoint[inside] != 0).all()
    solution = lr.Implicit().solve(Posed(p.energy, p.data), 1e-8, None, Limits())
    warm = torch.where(inside, first.adjoint, 5.0)  # of another theta, where more was free
    again = lr.Implicit().pull(Posed(p.energy, p.data), solution, p.upper, Ask(1e-7, warm))
    assert again.cost.cg_steps == 0
    torch.testing.assert_close(again.theta / 2, first.value, rtol=1e-5, atol=1e-8)


def test_all_pixels_at_their_bounds():
    """Nothing moves with theta: the derivative is zero, and certainly so."""
    p = BilevelProblem(denoised("TV", (5.0, 6.0)), Pairs(x=noisy() + 5.5, y=noisy()))
    for strategy in (lr.Implicit(estimate=True), lr.Implicit(), lr.JacobianFree(), lr.Unrolled(5)):
        found = lr.hypergradient(p, 1e-3, 1e-3, strategy=strategy)
        assert (found.value == 0).all()
    assert found.undecided is None
    certain = lr.hypergradient(p, 1e-3, 1e-3, strategy=lr.Implicit())
    assert certain.undecided == 0 and certain.certified is not None


# --- what is certain ------------------------------------------------------------------------------


def test_the_error_is_certified_once_every_pixel_is_decided():
    p = posed("TV")
    exact = central(lambda theta: loss_at(p, theta), p.theta)
    counted, certified = [], []
    for eps in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6):
        for strategy in (lr.Implicit(), lr.JacobianFree(terms=50)):
            found = lr.hypergradient(p, eps, 1e-6, strategy=strategy)
            assert (found.certified is None) == (found.undecided > 0)
            if found.undecided:
                assert f"{found.undecided} pixels may or may not" in repr(found)
                assert found.to_dict()["undecided"] == found.undecided
            else:
                error = float((found.value - exact).norm())
                assert error <= found.certified
                certified.append(error)
            assert found.bracket[0] <= loss_at(p, p.theta) <= found.bracket[1]
        counted.append(found.undecided)
    assert counted == sorted(counted, reverse=True) and counted[0] > 0 and counted[-1] == 0
    assert len(certified) >= 4


def test_certified_errors_hold_in_float32():
    p = posed("TV")
    exact = lr.hypergradient(p, 1e-9, 1e-9, strategy=lr.Implicit())
    for eps in (1e-2, 1e-3, 1e-4):
        found = lr.hypergradient(p.to(torch.float32), eps, 1e-4, strategy=lr.Implicit())
        assert found.value.dtype == torch.float32
        if found.certified is not None:
            error = float((found.value.double() - exact.value).norm())
            assert error <= found.certified + 1e-5
    assert found.undecided is not None


@pytest.mark.parametrize("seed", range(6))
def test_certain_sets_are_those_of_the_minimizer(seed):
    """Certified errors hold over random data and random accuracies."""
    truth, y = noisy(1, seed=seed + 50).clamp(0, 1), noisy(1, seed=seed)
    p = BilevelProblem(denoised("TV", BOX), Pairs(x=truth, y=y))
    exact = lr.hypergradient(p, 1e-9, 1e-9, strategy=lr.Implicit())
    assert exact.undecided == 0
    for eps in (1e-3, 1e-4, 1e-5):
        found = lr.hypergradient(p, eps, eps, strategy=lr.Implicit())
        if found.certified is not None:
            assert float((found.value - exact.value).norm()) <= found.certified + exact.certified


def test_an_estimated_curvature_decides_nothing():
    """L enters the proof of the active set: where it is a guess, no pixel at a bound is certain."""
    energy, truth, y = counts(0, lr.NonNegative())
    energy.physics.nonnegative = False
    p = BilevelProblem(
        Energy(energy.physics, energy.regularizer, energy.fidelity, (0, None)), Pairs(x=truth, y=y)
    )
    found = lr.hypergradient(p, 1e-8, 1e-8)
    assert found.certified is None and found.undecided == 4


def test_the_estimate_sees_that_pixels_change_sides():
    """At a coarse accuracy the polished derivative is nearer, the estimate of the right size."""
    p = posed("TV")
    exact = central(lambda theta: loss_at(p, theta), p.theta)
    for eps in (3e-2, 1e-2):
        plain = lr.hypergradient(p, eps, 1e-6, strategy=lr.Implicit())
        polished = lr.hypergradient(p, eps, 1e-6, strategy=lr.Implicit(estimate=True))
        error = float((plain.value - exact).norm())
        assert float((polished.value - exact).norm()) < 0.5 * error
        assert 0.5 * error < polished.estimated < 3 * error


# --- unrolled -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["gd", "agd"])
@pytest.mark.parametrize("segment", [None, 1, 3, 40])
def test_few_projected_steps_are_differentiated_exactly(method, segment):
    """With a given step the derivative is that of the loss of K steps, bounds or not."""
    p = posed("TV")
    strategy = lr.Unrolled(11, method=method, step=0.02, segment=segment)

    def loss(theta: Tensor) -> float:
        x = strategy.solve(Posed(p.energy.with_theta(theta), p.data), 1.0, None, Limits()).value
        assert (x >= 0).all() and (x <= 0.125).all()
        return float(p.upper.value(x).mean())

    solution = strategy.solve(Posed(p.energy, p.data), 1.0, None, Limits())
    assert bound_pixels(p, solution.value) > 20
    found = lr.hypergradient(p, 1.0, 1.0, strategy=strategy)
    torch.testing.assert_close(found.value, central(loss, p.theta, 1e-6), rtol=1e-6, atol=1e-9)
    exact = lr.solve(p.energy, p.data, 1e-9).value
    assert ((solution.value - exact).flatten(1).norm(dim=1) <= solution.error).all()


# --- layers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "strategy", [None, lr.Unrolled(30, step=0.02), lr.JacobianFree(terms=300)], ids=str
)
def test_layers_pass_gradients_back_to_data_and_parameters(strategy):
    model = lr.Reconstructor(
        denoised("TV", BOX), 1e-9, hypergradient=strategy, relative_delta=1e-10
    )
    y = noisy(2).requires_grad_()
    weights = random(2, 1, 12, 10, seed=8)

    def loss(data: Tensor) -> Tensor:
        x = model(data)
        assert (x >= 0).all() and (x <= 0.125).all()
        return (weights * x).sum()

    loss(y).backward()
    for seed in range(3):
        v, h = random(2, 1, 12, 10, seed=20 + seed) - 0.5, 1e-5
        with torch.no_grad():
            slope = float(loss(y + h * v) - loss(y - h * v)) / (2 * h)
        assert float((y.grad * v).sum()) == pytest.approx(slope, rel=2e-4, abs=1e-6)
    assert all(q.grad is not None and float(q.grad) != 0 for q in model.energy.parameters())


# --- saddle points --------------------------------------------------------------------------------


def saddles() -> dict[str, tuple[SaddleEnergy, Tensor, Tensor]]:
    truth = (random(2, 1, 6, 6, seed=1) - 0.3).clamp_min(0)
    y = truth + 0.4 * (random(2, 1, 6, 6, seed=2) - 0.5)
    g = torch.Generator().manual_seed(3)
    photons = torch.poisson(8 * truth, generator=g)
    denoising = denoised("TV", None).physics
    blur = deepinv.physics.Blur(filter=torch.ones(1, 1, 3, 3).double() / 9, padding="circular")
    mask = deepinv.physics.Inpainting((1, 6, 6), mask=(random(1, 6, 6, seed=4) < 0.7).double())

    def made(regularizer, physics=denoising, fidelity=None, tikhonov=0.0, box=(0.0, 0.5)):
        return SaddleEnergy(physics, regularizer.double(), fidelity, tikhonov, box)

    return {
        "TV": (made(ExactTV(0.1)), truth, y),
        "rounded TV": (made(ExactTV(0.1, rounding=0.05)), truth, y),
        "TGV": (made(TGV()), truth, y),
        "mask": (made(ExactTV(0.05), mask, tikhonov=0.1), truth, mask.A(y)),
        "blur": (made(ExactTV(0.02), blur, tikhonov=0.1, box=(0.2, 0.3)), truth, blur.A(y)),
        "counts": (made(ExactTV(0.3), denoising, lr.KL(0.5), 0.1, (0.0, 4.0)), 8 * truth, photons),
        "L1": (made(ExactTV(0.3), denoising, lr.L1(), 0.3), truth, y),
    }


@pytest.mark.parametrize(
    "name",
    ["TV", "rounded TV", "mask", "counts", "L1"]
    + [pytest.param(name, marks=pytest.mark.slow) for name in ("TGV", "blur")],
)
@pytest.mark.filterwarnings("ignore:pairs. given true images:learnreg.core.errors.DataWarning")
def test_saddle_points_within_bounds(name):
    """The solution keeps to its bounds, is within its certificate of a better one, and has the
    derivative of central differences.
    """
    energy, truth, y = saddles()[name]
    fine, h = (1e-4, 1e-2) if name == "TGV" else (1e-5, 1e-3)
    exact = lr.solve(energy, y, fine).value
    coarse = lr.solve(energy, y, 1e-2)
    bounds = energy.constraint.tied(exact)
    assert bounds.contains(exact).all() and bounds.contains(coarse.value).all()
    assert not bounds.inside(exact).all()
    assert ((coarse.value - exact).flatten(1).norm(dim=1) <= coarse.error + fine).all()

    p = BilevelProblem(energy, Pairs(x=truth, y=y))

    def loss(theta: Tensor) -> float:
        x = lr.solve(energy.with_theta(theta), y, fine).value
        return float(p.upper.value(x).mean())

    found = lr.hypergradient(p, fine, 1e-6)
    assert found.certified is None and found.estimated is not None
    difference = central(loss, p.theta, h)
    torch.testing.assert_close(found.value, difference, rtol=2e-3, atol=3e-5)


def test_bounds_cost_blurred_saddle_points_no_more_than_a_row():
    """Steps stay in the metric of the operator; images are projected, and certified as such."""
    energy, _, y = saddles()["blur"]
    free = SaddleEnergy(energy.physics, energy.regularizer, None, energy.tikhonov)
    at = energy.at(y)
    assert at.row and at.majorants() is not None and not free.at(y).row
    plain, bound = lr.solve(free, y, 1e-3), lr.solve(energy, y, 1e-3)
    assert bound.cost.work <= 4 * plain.cost.work
    domain = energy.constraint.tied(bound.value)
    assert domain.contains(bound.value).all() and not domain.inside(bound.value).all()
    exact = lr.solve(energy, y, 1e-5).value
    assert ((bound.value - exact).flatten(1).norm(dim=1) <= bound.error + 1e-5).all()
    # the state is that of the solver, and starts the next solve
    again = lr.solve(energy, y, 1e-3, x0=bound.state)
    assert again.steps.max() == 0


def test_smoothed_and_exact_total_variation_meet_within_bounds():
    """Two roads to one minimizer: projected gradients with little smoothing, and a saddle point."""
    energy, _, y = saddles()["TV"]
    smooth = Energy(energy.physics, TV(0.1, 1e-4).double(), constraint=energy.constraint)
    a, b = lr.solve(energy, y, 1e-4).value, lr.solve(smooth, y, 1e-4, solver="newton").value
    assert float((a - b).flatten(1).norm(dim=1).max()) < 2e-2


def test_joint_piggyback_keeps_to_the_bounds():
    energy, truth, y = saddles()["rounded TV"]
    p = BilevelProblem(energy, Pairs(x=truth, y=y))
    found = lr.hypergradient(p, 1.0, 1.0, strategy=JointPiggyback(2000))
    exact = lr.hypergradient(p, 1e-6, 1e-7)
    torch.testing.assert_close(found.value, exact.value, rtol=1e-3, atol=1e-6)


def test_a_warm_state_of_other_bounds_is_brought_inside():
    """A packed state (b, n) knows nothing of the bounds that it comes to."""
    energy, _, y = saddles()["TV"]
    free = SaddleEnergy(energy.physics, energy.regularizer)
    state = lr.solve(free, y, 1e-3).state
    solution = lr.solve(energy, y, 1e-3, x0=state)
    assert energy.constraint.tied(solution.value).contains(solution.value).all()


def test_learned_ridge_and_bounds():
    """Tikhonov with a learned weight within bounds has a closed form: clamp(y / (1 + w))."""
    physics, y = denoised("TV", None).physics, noisy()
    energy = Energy(physics, Tikhonov(0.5).double(), constraint=(0.0, 0.1))
    x = lr.solve(energy, y, 1e-10).value
    torch.testing.assert_close(x, (y / 1.5).clamp(0, energy.at(y).domain.upper.item()))
    truth = random(3, 1, 12, 10, seed=7) * 0.1
    p = BilevelProblem(energy, Pairs(x=truth, y=y))
    inside = (y > 0) & (y / 1.5 < 0.1)
    # theta is the log of the weight w: dx/dtheta = -w y / (1 + w)^2 inside
    exact = (torch.where(inside, -0.5 * y / 1.5**2, 0.0) * (x - truth)).flatten(1).sum(dim=1).mean()
    found = lr.hypergradient(p, 1e-10, 1e-10, strategy=lr.Implicit())
    assert float(found.value) == pytest.approx(float(exact), rel=1e-9)
    assert found.undecided == 0 and found.certified is not None
