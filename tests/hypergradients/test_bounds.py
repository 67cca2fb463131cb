"""Bounds of hypergradients and losses: certified means never violated, estimated means close."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest
import torch
from tests.hypergradients.pulls import gradient_of
from tests.hypergradients.test_triangle import dense_hypergradient, energy_formula
from tests.regularizers.cases import ENERGIES, Pairs, denoising, foe, newton, problem, tv
from torch import Tensor

from learnreg.core.bounds import Bound, Curvature
from learnreg.core.maps import Ask, Posed
from learnreg.hypergradients import Implicit, hypergradient
from learnreg.hypergradients.error_bound import adjoint_bound, constants_bound, corrected_bracket
from learnreg.problems import BilevelProblem, SquaredError, gallery
from learnreg.problems.losses import tied_loss
from learnreg.regularizers import TV
from learnreg.solvers import solve

DTYPES = {"float64": torch.float64, "float32": torch.float32}
GALLERY = {
    "quadratic": lambda: gallery.quadratic(images=3, n=6, d=3, condition=50.0),
    "spectrum": lambda: gallery.spectrum_quadratic(10.0),
    "scalar_tv": lambda: gallery.scalar_tv(images=6),
    "scalar_tv_sharp": lambda: gallery.scalar_tv(images=6, smoothing=0.005),
}
SMOOTH = {
    "tv": lambda: denoising(tv(True, 0.05, 0.2)),
    "foe": lambda: denoising(foe(weight=0.02, smoothing=0.2)),
}
NAMES = [*GALLERY, *(f"image_{name}" for name in ENERGIES)]


@cache
def posed(
    name: str, dtype: torch.dtype = torch.float64
) -> tuple[BilevelProblem, Tensor, Tensor, float]:
    """The problem with data in ``dtype``, and for these data and parameters in float64: minimizers,
    grad f and f.
    """
    if name in GALLERY:
        p = GALLERY[name]().to(dtype)
        return p, p.exact_solution(p.theta), p.exact_hypergradient(p.theta), p.exact_loss(p.theta)
    energy = (SMOOTH[name] if name in SMOOTH else ENERGIES[name.removeprefix("image_")])()
    p = problem(energy, count=3, size=(4, 5)).to(dtype)
    exact = BilevelProblem(
        energy.with_theta(p.theta.double()), Pairs(x=p.pairs.x.double(), y=p.pairs.y.double())
    )
    truth = newton(exact.energy, exact.pairs.y)
    loss = float(p.loss.value(truth, exact.pairs.x).mean())
    return p, truth, dense_hypergradient(exact, energy_formula(exact)), loss


def error(z: Tensor, exact: Tensor) -> float:
    return float((z.double() - exact).norm())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("estimate", [False, True], ids=["plain", "polished"])
@pytest.mark.parametrize("name", NAMES)
def test_certified_errors_and_brackets_hold(name, estimate, dtype, record_property):
    p, _, exact, loss = posed(name, DTYPES[dtype])
    ratios = []
    for eps in (1.0, 1e-1, 1e-2, 1e-3):
        for delta in (1e-1, 1e-3, 1e-5):
            result = hypergradient(p, eps, delta, strategy=Implicit(estimate=estimate))
            assert result.certified is not None
            assert error(result.value, exact) <= result.certified * (1 + 1e-9), (eps, delta, result)
            assert result.bracket[0] <= loss * (1 + 1e-12) and loss <= result.bracket[1] * (
                1 + 1e-12
            ), (eps, result)
            ratios.append(error(result.value, exact) / result.certified)
    record_property("worst", max(ratios))


def on_the_sphere(truth: Tensor, b: Tensor, eps: float, seed: int) -> Tensor:
    """Points at distance eps from the minimizers: along the loss gradient, against it, along a
    pixel, at random.
    """
    g = torch.Generator().manual_seed(seed)
    directions = [
        b,
        -b,
        torch.zeros_like(b),
        torch.randn(b.shape, generator=g, dtype=torch.float64),
    ]
    directions[2].flatten(1)[:, 0] = 1
    d = directions[seed % 4]
    return truth + eps * d / d.flatten(1).norm(dim=1).view(-1, *[1] * (d.dim() - 1))


@pytest.mark.parametrize("eps", [1e-3, 3e-2, 0.5])
@pytest.mark.parametrize("name", NAMES)
def test_bounds_hold_wherever_in_the_ball_the_solver_stops(name, eps):
    """A solver comes along the flat directions; the certificate speaks of every point at distance
    eps.
    """
    p, truth, exact, loss = posed(name)
    energy = p.energy.with_theta(p.theta)
    solved = solve(energy, p.pairs.y, 1e-6)
    for seed in range(4):
        x = on_the_sphere(truth, p.loss.grad(truth, p.pairs.x), eps, seed)
        r = energy.at(p.pairs.y).grad(x)
        solution = replace(
            solved,
            value=x,
            error=torch.full((p.size,), eps * (1 + 1e-9), dtype=torch.float64),
            gradient=r,
            gradient_norm=r.flatten(1).norm(dim=1),
        )
        for delta in (1e-1, 1e-6):
            result = gradient_of(Implicit(), p, energy, solution, delta)
            assert error(result.value, exact) <= result.certified
            assert result.bracket[0] <= loss * (1 + 1e-9) and loss <= result.bracket[1] * (1 + 1e-9)
            bound = by_constants(p, energy, solution, result)
            assert error(result.value, exact) <= bound
            lower, upper = corrected(p, energy, solution, result)
            assert lower <= loss + 1e-12 and loss <= upper + 1e-12


def by_constants(p: BilevelProblem, energy, solution, result) -> float:
    """The form with constants, averaged over images."""
    x, zero = solution.value, torch.zeros(p.size, dtype=torch.float64)
    reach = float(x.abs().max() + solution.error.max())
    return float(
        constants_bound(
            solution.error,
            result.residual,
            mu=energy.at(p.pairs.y).bounds().mu.value,
            loss_smoothness=p.loss.smoothness,
            hessian_lipschitz=energy.hessian_lipschitz().value,
            mixed_lipschitz=energy.mixed_lipschitz(reach).value,
            mixed_norm=energy.certificate("mixed_norm", x, zero),
            loss_gradient=p.loss.grad(x, p.pairs.x).flatten(1).norm(dim=1),
        ).mean()
    )


def corrected(p: BilevelProblem, energy, solution, result) -> tuple[float, float]:
    """The second-order bracket, averaged over images."""
    change = energy.certificate("hessian_change", solution.value, result.adjoint, solution.error)
    lower, upper = corrected_bracket(
        p.loss.value(solution.value, p.pairs.x),
        solution.gradient,
        result.adjoint,
        solution.error,
        result.residual,
        energy.at(p.pairs.y).bounds().mu.value,
        change,
        p.loss.smoothness,
    )
    return float(lower.mean()), float(upper.mean())


@pytest.mark.parametrize("name", ["quadratic", "spectrum", "scalar_tv", "tv", "image_tv"])
def test_the_form_with_constants_holds(name):
    p, _, exact, _ = posed(name)
    energy = p.energy.with_theta(p.theta)
    for eps in (1e-1, 1e-3):
        solution = solve(energy, p.pairs.y, eps)
        for delta in (1e-1, 1e-4):
            result = gradient_of(Implicit(), p, energy, solution, delta)
            assert error(result.value, exact) <= by_constants(p, energy, solution, result)


def test_the_form_with_constants_is_the_formula():
    bound = constants_bound(
        torch.tensor([0.1]),
        torch.tensor([0.2]),
        mu=2.0,
        loss_smoothness=3.0,
        hessian_lipschitz=5.0,
        mixed_lipschitz=7.0,
        mixed_norm=torch.tensor([11.0]),
        loss_gradient=torch.tensor([13.0]),
    )
    c1 = 3.0 * 11 / 2 + 5 / 4 * 13 * 11 + 7 * 13 / 2
    assert float(bound) == pytest.approx(c1 * 0.1 + 11 / 2 * 0.2 + 7 * 3 / 2 * 0.01)


def test_the_sharper_form_is_attained():
    """Scalars H, J, b, q whose every deviation pulls in the same direction: the error is the bound,
    not less.
    """
    mu, smoothness, eps, delta, hessian_change, mixed_change, mixed_norm, q = (
        2.0,
        3.0,
        0.1,
        0.2,
        0.7,
        0.5,
        1.1,
        1.0,
    )
    exact_b = mu * q + hessian_change + delta + smoothness * eps  # H* = mu, so q* = b* / mu
    h, b = mu + hessian_change / q, exact_b - smoothness * eps
    assert abs(h * q - b) == pytest.approx(delta)
    z, exact = -(mixed_norm - mixed_change / q) * q, -mixed_norm * exact_b / mu
    numbers = (torch.tensor([v], dtype=torch.float64) for v in (eps, delta))
    bound = adjoint_bound(
        *numbers,
        mu=mu,
        loss_smoothness=smoothness,
        hessian_change=torch.tensor([hessian_change]),
        mixed_change=torch.tensor([mixed_change]),
        mixed_norm=torch.tensor([mixed_norm]),
    )
    assert float(bound) == pytest.approx(abs(z - exact))


@pytest.mark.parametrize("radius", [1e-4, 0.02, 0.5])
@pytest.mark.parametrize("smoothing", [0.3, 0.02])
def test_certificates_of_two_pixels_are_sharp(radius, smoothing):
    """The supremum over the ball is a scan over t = x_2 - x_1, which moves by at most sqrt(2)
    radius.
    """
    p = gallery.scalar_tv(images=8, smoothing=smoothing)
    energy, y = p.energy, p.pairs.y
    x, q = p.exact_solution(), p.pairs.x + 1.0
    x[1] = 0.2 + smoothing * torch.tensor([-0.25, 0.25])  # where the curvature changes fastest
    q[:, 1] -= 3.0
    r = torch.full((8,), radius, dtype=torch.float64)
    certified = [
        energy.certificate(name, *args)
        for name, args in (
            ("hessian_change", (x, q, r)),
            ("mixed_change", (x, q, r)),
            ("mixed_norm", (x, r)),
        )
    ]

    def mixed(at: Tensor) -> Tensor:
        """J(x), (8, 2, 2): rows are pixels."""
        columns = [
            torch.autograd.grad(
                energy.directional(at, y, e.expand(8, 2)),
                energy.theta,
                torch.eye(8).double(),
                is_grads_batched=True,
            )[0]
            for e in torch.eye(2).double()
        ]
        return torch.stack(columns, dim=1)

    seen = []
    for s in torch.linspace(-1, 1, 41, dtype=torch.float64):
        near = x + s * radius * torch.tensor([-1.0, 1.0]).double() / math.sqrt(2)
        jacobian = mixed(near)
        seen.append(
            torch.stack(
                [
                    (energy.at(y).linearize(near)(q) - energy.at(y).linearize(x)(q)).norm(dim=1),
                    ((jacobian - mixed(x)).mT @ q[:, :, None]).flatten(1).norm(dim=1),
                    torch.linalg.matrix_norm(jacobian, 2),
                ]
            )
        )
    largest = torch.stack(seen).amax(dim=0)
    for found, bound in zip(largest, certified, strict=True):
        assert (found <= bound * (1 + 1e-9)).all()
    if radius < 0.1 * smoothing:
        torch.testing.assert_close(largest[0], certified[0], rtol=2e-2, atol=1e-9)
        assert certified[1][0] <= 1.5 * largest[1][0] and certified[2][0] <= 1.5 * largest[2][0], (
            "at t = 0"
        )
    size = q.norm(dim=1)
    assert (largest[0] <= energy.hessian_lipschitz().value * radius * size).all()
    assert (largest[1] <= energy.mixed_lipschitz().value * radius * size * (1 + 1e-12)).all()


@pytest.mark.parametrize("name", ["quadratic", "spectrum", "tv", "foe"])
def test_certified_errors_are_of_use(name):
    """They shrink with eps and delta, and stay within the factor that the constants explain."""
    p, _, exact, _ = posed(name)
    coarse, fine = (hypergradient(p, eps, eps, strategy=Implicit()) for eps in (1e-2, 1e-4))
    assert fine.certified < 0.05 * coarse.certified
    assert fine.certified < 0.1 * fine.norm, "a descent direction is recognised"
    assert coarse.certified < 1e3 * error(coarse.value, exact)


@pytest.mark.parametrize("eps", [3e-2, 1e-2, 1e-3])
@pytest.mark.parametrize("name", ["quadratic", "spectrum", "scalar_tv", *SMOOTH])
def test_estimates_are_close_and_the_polish_helps(name, eps):
    p, _, exact, _ = posed(name)
    plain = hypergradient(p, eps, 1e-1 * eps, strategy=Implicit())
    polished = hypergradient(p, eps, 1e-1 * eps, strategy=Implicit(estimate=True))
    before, after = error(plain.value, exact), error(polished.value, exact)
    assert 0.8 * before <= polished.estimated <= 2.0 * before, (before, polished.estimated)
    assert after <= 0.5 * before
    torch.testing.assert_close(
        polished.value + polished.correction, plain.value, rtol=1e-9, atol=1e-12
    )
    assert plain.estimated is None and plain.correction is None
    assert polished.cost.work > plain.cost.work, "the estimate is paid for and counted"


@pytest.mark.parametrize("name", ["quadratic", "spectrum", "scalar_tv", *SMOOTH])
def test_the_corrected_bracket_is_of_second_order(name):
    p, _, _, loss = posed(name)
    energy = p.energy.with_theta(p.theta)
    widths, plain = [], []
    for eps in (1e-2, 1e-3, 1e-4):
        solution = solve(energy, p.pairs.y, eps)
        solution = replace(solution, error=torch.full_like(solution.error, eps))
        result = gradient_of(Implicit(), p, energy, solution, eps * 1e-2)
        lower, upper = corrected(p, energy, solution, result)
        assert lower <= loss + 1e-14 and loss <= upper + 1e-14
        widths.append(upper - lower)
        plain.append(result.bracket[1] - result.bracket[0])
    for coarse, fine in pairwise(widths):
        assert 30 < coarse / fine < 300, widths
    assert 5 < plain[1] / plain[2] < 20, "the plain bracket is of first order"
    assert widths[2] < 0.1 * plain[2]


@pytest.mark.parametrize("eps", [1e-3, 0.1, 10.0])
def test_brackets_of_losses_hold_over_the_ball_and_are_attained(eps):
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    x, x_true, matrix, offset = normal(3, 5), normal(3, 5), normal(7, 5), normal(7)
    radius = torch.full((3,), eps, dtype=torch.float64)
    operator = gallery.OperatorSquaredError(
        matrix, offset, float(torch.linalg.matrix_norm(matrix, 2)) ** 2
    )
    for loss in (SquaredError(), operator):
        lower, upper = loss.bracket(x, x_true, radius)
        b = loss.grad(x, x_true)
        moves = [b, -b, *normal(60, 3, 5)]
        inside = [
            loss.value(x + t * eps * m / m.norm(dim=1, keepdim=True), x_true)
            for m in moves
            for t in (0.3, 1.0)
        ]
        assert all(((lower <= v + 1e-12) & (v <= upper + 1e-12)).all() for v in inside)
        (slope,) = torch.autograd.grad(loss.value(x.requires_grad_(), x_true).sum(), x)
        torch.testing.assert_close(slope, b.detach())
        x = x.detach()
    sharp_lower, sharp_upper = SquaredError().bracket(x, x_true, radius)
    b = x - x_true
    size = b.norm(dim=1, keepdim=True)
    torch.testing.assert_close(SquaredError().value(x + eps * b / size, x_true), sharp_upper)
    torch.testing.assert_close(
        SquaredError().value(x - b * (eps / size).clamp_max(1), x_true), sharp_lower
    )


# --- what may be called certified -----------------------------------------------------------------


class WithoutCertificates(TV):
    def hessian_change(self, x: Tensor, q: Tensor, radius: Tensor) -> None:
        return None


class OfEstimatedConvexity(TV):
    def bounds(self) -> Curvature:
        return Curvature(Bound.estimate(0.1), super().bounds().L)


@pytest.mark.parametrize("kind", [WithoutCertificates, OfEstimatedConvexity])
def test_without_a_proven_constant_nothing_is_called_certified(kind):
    p = problem(denoising(kind(0.05, 0.2).double()), count=2, size=(4, 5))
    result = hypergradient(p, 1e-2, 1e-3)
    assert result.certified is None and result.estimated is not None
    assert "error certified not known" in repr(result)
    if kind is OfEstimatedConvexity:
        assert not result.bracket_kind.certifies and "(estimated)" in repr(result)


def test_a_certificate_can_be_left_out():
    p = problem(SMOOTH["tv"](), count=2, size=(4, 5))
    assert hypergradient(p, 1e-2, 1e-3, strategy=Implicit(certify=False)).certified is None


def test_a_residual_that_is_not_finite_certifies_nothing():
    p = posed("tv")[0]
    energy = p.energy.with_theta(p.theta)
    solution = solve(energy, p.pairs.y, 1e-3)
    x = p.pairs.x.clone()
    x[1, 0, 0, 0] = math.inf
    upper = tied_loss(p.loss, x)  # a problem would refuse it
    result = Implicit().pull(Posed(energy, p.pairs.y), solution, upper, Ask(1e-3))
    assert result.certified is not None and not result.status[1].ok
    assert result.certified.isfinite().tolist() == [i != 1 for i in range(p.size)]
