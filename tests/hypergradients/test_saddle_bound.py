"""The proven bounds of hypergradients of saddle points: valid wherever the solver stops, and what
they would miss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace

import deepinv
import pytest
import torch
from tests.hypergradients import saddle_cases as cases
from tests.hypergradients.pulls import gradient_of
from tests.hypergradients.saddle_cases import Matrix, curved, normal, pictured, quadratic, truth
from tests.regularizers.cases import Pairs
from torch import Tensor

from learnreg.convex import SmoothNorm, Squares
from learnreg.core.bounds import Kind
from learnreg.core.certificates import distance_from_residuals
from learnreg.core.cost import Cost
from learnreg.core.errors import MissingPropertyError
from learnreg.core.results import Solution
from learnreg.core.status import Status
from learnreg.hypergradients import Piggyback, hypergradient, saddle_bound
from learnreg.hypergradients.piggyback import mixed_saddle, saddle_error
from learnreg.hypergradients.saddle_bound import (
    SaddleConstants,
    adjoint_distances,
    constants_bound,
    length,
    omega,
)
from learnreg.problems import BilevelProblem, SaddleEnergy

HESSIAN = 0.8587
"""sup |s'''| of s(t) = sqrt(1 + t^2), rounded up."""


def one(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


# --- the cross term -------------------------------------------------------------------------------


def counterexample(bound: Callable[..., Tensor]) -> float:
    """K = 0, mu = 1, x = 0.1 for 0, y = -1 for -1.1, X = 1 for 1.1, Y = 0: the error is exactly
    0.21.
    """
    return float(
        bound(
            SaddleConstants(1.0, 1.0, 0.0),
            eps_x=one(0.1),
            eps_p=one(0.1),
            delta_x=one(0.0),
            delta_p=one(0.0),
            x=one(0.1),
            p=one(1.0),
            X=one(1.0),
            Y=one(0.0),
            slope_x=one(1.0),
        )
    )


def without_cross_term(c: SaddleConstants, **sizes: Tensor) -> Tensor:
    """Every term of the bound but (C1X + C2Y) eps_x eps_p, in the case K = 0 without curvature."""
    c1x, c2y = c.loss_x / c.mu_g, c.loss_p / c.mu_f
    return constants_bound(c, **sizes) - (c1x + c2y) * sizes["eps_x"] * sizes["eps_p"]


def assert_covers_the_counterexample(bound: Callable[..., Tensor]) -> None:
    assert counterexample(bound) >= 0.21 - 1e-15


def test_the_cross_term_is_needed_and_there():
    assert counterexample(constants_bound) == pytest.approx(0.21, abs=1e-15)
    assert_covers_the_counterexample(constants_bound)
    assert counterexample(without_cross_term) == pytest.approx(0.20, abs=1e-15)
    with pytest.raises(AssertionError):
        assert_covers_the_counterexample(without_cross_term)


def test_the_counterexample_is_one():
    """The same numbers from the library: its hypergradient at x = 0.1, y = -1 is off by 0.21, its
    bound is not less.
    """
    regularizer = Matrix(torch.zeros(1, 1).double(), 1, Squares(1.0, one(1.1).view(1, 1, 1)))
    zero = torch.zeros(1, 1, 1, 1).double()
    problem = BilevelProblem(
        SaddleEnergy(cases.denoising(), regularizer), Pairs(x=zero + 1.1, y=zero)
    )
    exact = truth(problem)
    assert float(exact.z) == pytest.approx(-1.21)
    f = problem.energy.at(problem.pairs.y)
    state = f.pack((zero + 0.1,), (one(-1.0).view(1, 1, 1),))
    found = gradient_of(
        Piggyback(), problem, problem.energy, at_state(problem, state, one(0.1)), 1e-5
    )
    assert float((found.value - exact.z).norm()) == pytest.approx(0.21, abs=1e-4)
    assert found.certified >= 0.21


def test_the_distance_of_the_image_counts_in_full():
    """K = 0 and p exact, but long: the error is 0.1 |p|, and the bound not much more."""
    regularizer = Matrix(torch.zeros(1, 1).double(), 1, Squares(1.0, one(100.0).view(1, 1, 1)))
    zero = torch.zeros(1, 1, 1, 1).double()
    problem = BilevelProblem(
        SaddleEnergy(cases.denoising(), regularizer), Pairs(x=zero + 1.1, y=zero)
    )
    f = problem.energy.at(problem.pairs.y)
    solution = at_state(problem, f.pack((zero + 0.1,), (one(-100.0).view(1, 1, 1),)), one(0.1))
    found = gradient_of(Piggyback(), problem, problem.energy, solution, 1e-5)
    error = float((found.value - truth(problem).z).norm())
    assert error == pytest.approx(10, abs=1e-2) and error <= found.certified < 1.05 * error


def test_no_part_of_omega_may_be_missing():
    """Scalars with all errors pointing the same way: the bound is attained, term by term."""
    for seed in range(20):
        x, p, X, Y, ex, ep, dx, dy = normal(8, seed=seed).abs()
        exact = (p + ep) * (X + dx) + (Y + dy) * (x + ex)
        sizes = (x, p, X, Y, ex, ep, dx, dy)
        assert float(omega(*(s[None] for s in sizes))) == pytest.approx(
            float(exact - p * X - Y * x), rel=1e-12
        )


# --- thousands of random cases --------------------------------------------------------------------


SHAPES = [(n, m) for n in range(1, 5) for m in range(1, 5)]
PER_SHAPE = 260


class Random:
    """g = mu/2 x^2 + c sqrt(1 + x^2) - r x and f* of the same form with q, l1 and l2 squares: a
    batch with own K.
    """

    def __init__(self, n: int, m: int, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        b = PER_SHAPE

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=g, dtype=torch.float64)

        def choose(*values: float) -> Tensor:
            return torch.tensor(values, dtype=torch.float64)[
                torch.randint(len(values), (b,), generator=g)
            ][:, None]

        self.mu_g, self.mu_f, self.c = (
            (0.5 * draw(b, 1)).exp(),
            (0.5 * draw(b, 1)).exp(),
            choose(0.0, 0.5),
        )
        self.K = draw(b, m, n) * choose(0.0, 0.1, 1.0)[:, :, None]
        self.r, self.q, self.x_true, self.p_true = draw(b, n), draw(b, m), draw(b, n), draw(b, m)
        self.L2 = choose(0.0, 1.0)
        self.x, self.p = self.solved()
        e = 10 ** (-4 + 4.5 * torch.rand(b, 1, generator=g, dtype=torch.float64))
        self.near = self.x + e * draw(b, n), self.p + e * draw(b, m)
        away = choose(0.0, 0.1) * e
        X, Y = self.adjoint(*self.near)
        self.approximate = X + away * draw(b, n), Y + away * draw(b, m)

    def slope(self, mu: Tensor, linear: Tensor, a: Tensor) -> Tensor:
        return mu * a + self.c * a / torch.sqrt(1 + a * a) - linear

    def curvature(self, mu: Tensor, a: Tensor) -> Tensor:
        return mu + self.c * (1 + a * a) ** -1.5

    def times(self, x: Tensor) -> Tensor:
        return torch.einsum("bmn,bn->bm", self.K, x)

    def back(self, p: Tensor) -> Tensor:
        return torch.einsum("bmn,bm->bn", self.K, p)

    def solved(self) -> tuple[Tensor, Tensor]:
        """Damped Newton steps on the optimality system."""
        x, p = torch.zeros_like(self.r), torch.zeros_like(self.q)
        for _ in range(60):
            rx = self.slope(self.mu_g, self.r, x) + self.back(p)
            rp = self.times(x) - self.slope(self.mu_f, self.q, p)
            step = torch.linalg.solve(self.matrix(x, p), torch.cat([rx, rp], dim=1))
            x, p = x - step[:, : x.shape[1]], p - step[:, x.shape[1] :]
        assert float(torch.cat([rx, rp], dim=1).abs().max()) < 1e-12
        return x, p

    def matrix(self, x: Tensor, p: Tensor) -> Tensor:
        """[[Hg, K^T], [K, -Hf]]."""
        top = torch.cat([torch.diag_embed(self.curvature(self.mu_g, x)), self.K.mT], dim=2)
        return torch.cat(
            [top, torch.cat([self.K, -torch.diag_embed(self.curvature(self.mu_f, p))], dim=2)],
            dim=1,
        )

    def slopes(self, x: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        return x - self.x_true, self.L2 * (p - self.p_true)

    def adjoint(self, x: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        solution = torch.linalg.solve(self.matrix(x, p), -torch.cat(self.slopes(x, p), dim=1))
        return solution[:, : x.shape[1]], solution[:, x.shape[1] :]

    def error(self) -> Tensor:
        """||(p X^T + Y x^T) - the exact one||, (b,)."""
        (x, p), (X, Y) = self.near, self.approximate
        z = torch.einsum("bm,bn->bmn", p, X) + torch.einsum("bm,bn->bmn", Y, x)
        X, Y = self.adjoint(self.x, self.p)
        exact = torch.einsum("bm,bn->bmn", self.p, X) + torch.einsum("bm,bn->bmn", Y, self.x)
        return (z - exact).flatten(1).norm(dim=1)

    def bound(self) -> Tensor:
        """Image by image: the constants are numbers."""
        (x, p), (X, Y) = self.near, self.approximate
        slope_x, slope_p = self.slopes(x, p)
        exact = self.adjoint(x, p)
        found = []
        for i in range(len(x)):
            mu_g, mu_f, c = (float(t[i]) for t in (self.mu_g, self.mu_f, self.c))
            constants = SaddleConstants(
                mu_g,
                mu_f,
                float(torch.linalg.matrix_norm(self.K[i], 2)),
                HESSIAN * c,
                HESSIAN * c,
                HESSIAN * c / mu_g**3 * (mu_g + c),
                HESSIAN * c / mu_f**3 * (mu_f + c),
                1.0,
                float(self.L2[i]),
            )
            sizes = {
                "eps_x": x - self.x,
                "eps_p": p - self.p,
                "delta_x": X - exact[0],
                "delta_p": Y - exact[1],
                "x": x,
                "p": p,
                "X": X,
                "Y": Y,
                "slope_x": slope_x,
                "slope_p": slope_p,
            }
            found.append(
                constants_bound(constants, **{k: t[i].norm()[None] for k, t in sizes.items()})
            )
        return torch.cat(found)


def test_the_bound_with_constants_holds_in_thousands_of_cases(record_property):
    ratios = []
    for k, (n, m) in enumerate(SHAPES):
        case = Random(n, m, seed=k)
        error, bound = case.error(), case.bound()
        assert bool((error <= bound * (1 + 1e-9) + 1e-12).all()), (
            f"n={n}, m={m}: {float((error / bound).max()):.3f}"
        )
        ratios.append((bound / error)[error > 1e-10])
    ratio = torch.cat(ratios)
    words = (
        f"{len(ratio)} cases, bound / error least {ratio.min():.3f}, "
        f"median {ratio.median():.1f}, {ratio.max():.1e}"
    )
    record_property("tightness", words)
    assert len(ratio) > 4000 and float(ratio.min()) < 2 and float(ratio.median()) < 100, words


def functions() -> Iterator[tuple[float, float, float]]:
    """(scale, eta, strong) of SmoothNorm; the last is nearly a norm."""
    yield from ((0.5, 1.0, 1.0), (0.7, 0.3, 0.2), (1.0, 0.05, 0.5))


def slope_of(phi: SmoothNorm, a: Tensor) -> Tensor:
    return phi.strong * a + phi.scale * a / torch.sqrt(a * a + phi.eta**2)


def curvature_of(phi: SmoothNorm, a: Tensor) -> Tensor:
    return phi.strong + phi.scale * phi.eta**2 * (a * a + phi.eta**2) ** -1.5


def test_the_bound_with_local_curvature_holds_in_thousands_of_cases(record_property):
    """``adjoint_distances`` and ``omega``, with a K of its own for every image; their truth is a
    dense linear solve.
    """
    ratios, count = [], 0
    for k, (n, m) in enumerate(SHAPES):
        for j, numbers in enumerate(functions()):
            g, f = SmoothNorm(*numbers), SmoothNorm(*list(functions())[(j + k) % 3])
            error, bound = local_case(g, f, n, m, seed=100 * k + j)
            assert bool((error <= bound * (1 + 1e-9) + 1e-12).all()), (
                f"n={n}, m={m}, {float((error / bound).max())}"
            )
            count += len(error)
            ratios.append((bound / error)[error > 1e-10])
    ratio = torch.cat(ratios)
    words = (
        f"{len(ratio)} cases, bound / error least {ratio.min():.3f}, "
        f"median {ratio.median():.1f}, {ratio.max():.1e}"
    )
    record_property("tightness", words)
    assert count > 4000 and float(ratio.min()) < 3 and float(ratio.median()) < 1000, words


def local_case(g: SmoothNorm, f: SmoothNorm, n: int, m: int, seed: int) -> tuple[Tensor, Tensor]:
    """min over x of g(x) - r x + f(K x + q), near its exact solution: errors and bounds (b,)."""
    b = 90
    draw = torch.Generator().manual_seed(seed)
    K = torch.randn(b, m, n, generator=draw).double() * 10 ** (
        -torch.rand(b, 1, 1, generator=draw).double()
    )
    x = torch.randn(b, n, generator=draw).double() * 10 ** (
        1 - 2 * torch.rand(b, 1, generator=draw).double()
    )
    a = torch.randn(b, m, generator=draw).double() * 10 ** (
        1 - 2 * torch.rand(b, 1, generator=draw).double()
    )
    p, target = (
        slope_of(f, a),
        torch.randn(b, n, generator=draw).double(),
    )  # r and q make (x, p) the solution

    def adjoint(curved_x: Tensor, curved_a: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        matrix = torch.diag_embed(curved_x) + K.mT @ torch.diag_embed(curved_a) @ K
        X = torch.linalg.solve(matrix, -slope)
        return X, curved_a * torch.einsum("bmn,bn->bm", K, X)

    X_true, Y_true = adjoint(curvature_of(g, x), curvature_of(f, a), x - target)
    e = 10 ** (-4 + 4.5 * torch.rand(b, 1, generator=draw).double())
    dx, da = (
        e * torch.randn(b, n, generator=draw).double(),
        e * torch.randn(b, m, generator=draw).double(),
    )
    near, near_a = x + dx, a + da
    near_p = slope_of(f, near_a)
    X, Y = adjoint(curvature_of(g, near), curvature_of(f, near_a), near - target)
    X, Y = X + 0.03 * dx.flip(0), Y + 0.03 * da.flip(0)
    rx = curvature_of(g, near) * X + torch.einsum("bmn,bm->bn", K, Y) + near - target
    rp = Y / curvature_of(f, near_a) - torch.einsum("bmn,bn->bm", K, X)
    eps = [(near - x).norm(dim=1), (near_p - p).norm(dim=1)]
    block = [t[:, None] for t in (near, near_p, X, Y, rx, rp)]
    moved = adjoint_distances(
        (g,),
        (f,),
        block[:1],
        block[1:2],
        block[2:3],
        block[3:4],
        eps,
        block[4:],
        [g.strong, 1 / f.smooth],
        1.0,
    )
    assert moved is not None
    assert bool((moved[0] >= (X - X_true).norm(dim=1) * (1 - 1e-9)).all())
    assert bool((moved[1] >= (Y - Y_true).norm(dim=1) * (1 - 1e-9)).all())
    bound = omega(
        *(length(t) for t in (block[:1], block[1:2], block[2:3], block[3:4])), *eps, *moved
    )

    def outer(s: Tensor, t: Tensor) -> Tensor:
        return torch.einsum("bm,bn->bmn", s, t)

    exact = outer(p, X_true) + outer(Y_true, x)
    return (outer(near_p, X) + outer(Y, near) - exact).flatten(1).norm(dim=1), bound


# --- the strategy ---------------------------------------------------------------------------------


def at_state(problem: BilevelProblem, state: Tensor, distance: Tensor) -> Solution:
    """A solution that a solver might have stopped at, with the least ``error`` that is true."""
    f = problem.energy.at(problem.pairs.y)
    gradient = f.certify(state).gradient
    return Solution(
        f.image(state),
        distance,
        Kind.EXACT,
        (Status.CONVERGED,) * len(state),
        torch.zeros(len(state)),
        Cost(),
        "by hand",
        distance,
        gradient,
        state,
    )


def offset_alone() -> BilevelProblem:
    """K is known, b is learned: z is Y."""
    problem = curved()
    problem.energy.regularizer.table.requires_grad_(False)
    return problem


MATRICES = {
    "quadratic": quadratic,
    "quadratic-data": lambda: quadratic(data=True, auxiliary=True),
    "curved": lambda: curved(shift=False),
    "curved-offset": curved,
    "curved-data": lambda: curved(data=True),
    "offset-alone": offset_alone,
}


@pytest.mark.parametrize("name", MATRICES)
def test_the_certified_error_holds_wherever_the_solver_stops(name, record_property):
    problem = MATRICES[name]()
    exact, ratios = truth(problem), []
    f = problem.energy.at(problem.pairs.y)
    for k, size in enumerate((1e-4, 1e-2, 0.3, 3.0) * 3):
        state = exact.state + size * normal(*exact.state.shape, seed=k) * (
            normal(1, exact.state.shape[1], seed=99 + k) > 0.5
        )
        distance = (f.image(state) - f.image(exact.state)).flatten(1).norm(dim=1)
        found = gradient_of(
            Piggyback(), problem, problem.energy, at_state(problem, state, distance), 0.1 * size
        )
        error = float((found.value - exact.z).norm())
        assert error <= found.certified * (1 + 1e-9), (k, size, error, found.certified)
        ratios.append(found.certified / max(error, 1e-300))
    record_property(
        "tightness", f"least {min(ratios):.2f}, median {sorted(ratios)[len(ratios) // 2]:.1f}"
    )
    assert min(ratios) < 1000, ratios


@pytest.mark.parametrize(
    ("physics", "estimate", "dtype"),
    [
        ("denoising", False, torch.float64),
        ("denoising", True, torch.float64),
        ("denoising", False, torch.float32),
        ("inpainting", True, torch.float64),
        ("blur", False, torch.float64),
        ("blur", True, torch.float32),
    ],
)
def test_certified_errors_of_learned_filters_hold(physics, estimate, dtype, record_property):
    """K depends on theta through exp and an orthonormal basis; kappa stands for both."""
    name = "learned" if physics == "blur" else "learned-zero"
    problem, z = (p := cases.picture(name, physics))[0], p[1].z
    if dtype == torch.float32:
        problem = pictured(name, physics, (3, 4), count=2, dtype=dtype)
        z = rounded_truth(problem)
    ratios = []
    for eps, delta in ((1.0, 1e-1), (1e-1, 1e-3), (1e-2, 1e-1), (1e-3, 1e-3), (1e-5, 1e-5)):
        if dtype == torch.float32 and eps < 1e-4:
            continue
        found = hypergradient(problem, eps, delta, strategy=Piggyback(estimate=estimate))
        error = float((found.value.double() - z).norm())
        assert error <= found.certified, (eps, delta, error, found.certified)
        ratios.append(found.certified / error)
    record_property("tightness", f"{min(ratios):.3g} to {max(ratios):.3g}")


def rounded_truth(problem: BilevelProblem) -> Tensor:
    """For the data and parameters that float32 can hold."""
    energy = problem.energy.with_theta(problem.theta.double())
    energy = energy.with_physics(energy.operator.double().physics)
    wide = BilevelProblem(energy, Pairs(x=problem.pairs.x.double(), y=problem.pairs.y.double()))
    return cases.picture_truth(wide).z


@pytest.mark.parametrize("name", ["tv-rounding", "tgv-curvature", "learned", "learned-zero"])
def test_omega_times_kappa_bounds_what_true_distances_do_to_z(name):
    """Whatever the functions are: z is p X^T + Y x^T seen through dK, here with exact distances of
    all variables.
    """
    problem = pictured(name, size=(4, 5), count=3)
    f, y = problem.energy.at(problem.pairs.y), problem.pairs.y
    state = f.pack(*f.start(problem.energy.start(y)))
    state = state + 0.5 * normal(*state.shape)
    adjoint = normal(*state.shape, seed=1)
    kappa, beta = problem.energy.regularizer.sensitivity(y)
    assert beta == 0
    worst = 0.0
    for seed in range(12):
        size = 10.0 ** (seed % 3 - 1)
        moved = state + size * normal(*state.shape, seed=10 + seed)
        moved_adjoint = adjoint + size * normal(*state.shape, seed=40 + seed)
        for i in range(3):
            part = slice(i, i + 1)
            g = problem.energy.at(y[part])
            z, z_true = (
                mixed_saddle(g, s[part], a[part], 4)
                for s, a in ((state, adjoint), (moved, moved_adjoint))
            )
            blocks = [b for t in (state, adjoint) for b in g.unpack(t[part])]
            other = [b for t in (moved, moved_adjoint) for b in g.unpack(t[part])]
            sizes = [length(b) for b in blocks]
            apart = [
                length([s - t for s, t in zip(b, c, strict=True)])
                for b, c in zip(blocks, other, strict=True)
            ]
            bound = kappa * omega(*sizes, *apart)
            error = float((z - z_true).norm())
            assert error <= float(bound) * (1 + 1e-9)
            worst = max(worst, error / float(bound))
    assert worst > 0.02, "the bound is of the size of what happens"


@pytest.mark.parametrize(
    "make",
    [
        lambda unit: Matrix(normal(3, 6), 6, Squares(0.5), unit=unit),
        lambda unit: Matrix(normal(3, 6), 6, SmoothNorm(1.0, 0.7, 0.4), unit=unit),
    ],
)
def test_the_bound_knows_the_unit_of_theta(make):
    """K = unit theta: z, its error and the bound scale with the unit."""
    found = []
    for unit in (1.0, 1e4):
        problem = cases.posed(make(unit))
        found.append(hypergradient(problem, 1e-2, 1e-2, strategy=Piggyback()))
        assert float((found[-1].value - truth(problem).z).norm()) <= found[-1].certified
    torch.testing.assert_close(found[1].value, 1e4 * found[0].value)
    assert found[1].certified == pytest.approx(1e4 * found[0].certified)


def test_a_polish_is_paid_for():
    """The bound is for z before it, so the way between both is added."""
    problem = curved()
    exact = truth(problem)
    f = problem.energy.at(problem.pairs.y)
    state = exact.state + 0.1 * normal(*exact.state.shape)
    distance = (f.image(state) - f.image(exact.state)).flatten(1).norm(dim=1)
    solution = at_state(problem, state, distance)
    plain, polished = (
        gradient_of(Piggyback(estimate=e), problem, problem.energy, solution, 1e-3)
        for e in (False, True)
    )
    way = float((plain.value - polished.value).norm())
    assert way > 1e-4 and polished.certified == pytest.approx(plain.certified + way, rel=1e-12)


def test_kinks_have_no_bound_and_maid_would_say_so():
    for name in ("tv", "tv-rounding", "tgv", "tgv-curvature", "learned-sharp"):
        problem = pictured(name, size=(4, 4), count=1)
        found = hypergradient(problem, 1e-1, 1e-1, strategy=Piggyback())
        assert found.certified is None and "certified not known" in repr(found)


def test_an_unknown_sensitivity_has_no_bound(monkeypatch):
    problem = curved()
    monkeypatch.setattr(Matrix, "sensitivity", lambda self, u: (math.inf, math.inf))
    assert hypergradient(problem, 1e-2, 1e-2, strategy=Piggyback()).certified is None


def test_certify_can_be_switched_off():
    assert hypergradient(curved(), 1e-2, 1e-2, strategy=Piggyback(certify=False)).certified is None


def broken_down(solution: Solution, image: int) -> Solution:
    """As the solver leaves an image in which NaN appeared: no distance, and a gradient of zero."""
    error, gradient = solution.error.clone(), solution.gradient.clone()
    error[image], gradient[image] = math.inf, 0.0
    return replace(solution, error=error, gradient=gradient)


@pytest.mark.parametrize("which", ["lower level", "linear problem"])
def test_an_image_that_broke_down_is_not_certified(which):
    problem = curved()
    state = truth(problem).state
    f = problem.energy.at(problem.pairs.y)
    solution = at_state(
        problem, state + 0.1, torch.full((3,), 0.1 * math.sqrt(6), dtype=torch.float64)
    )
    linear = Piggyback()._adjoint(f, problem.upper, solution.state, 1e-3, None)
    fine = saddle_error(
        f,
        solution.state,
        solution,
        linear,
        1.0,
        problem.loss.grad(solution.value, problem.pairs.x),
        1.0,
        1.0,
    )
    assert bool(fine.isfinite().all())
    if which == "lower level":
        solution = broken_down(solution, 1)
    else:
        linear = broken_down(linear, 1)
    found = saddle_error(
        f,
        solution.state,
        solution,
        linear,
        1.0,
        problem.loss.grad(solution.value, problem.pairs.x),
        1.0,
        1.0,
    )
    assert found.isinf().tolist() == [False, True, False]
    torch.testing.assert_close(found[::2], fine[::2])


def test_the_smoothness_of_the_loss_counts():
    """A loss that is steeper by a factor: z, its error and the bound scale with it."""
    problem = quadratic()
    steep = SimpleNamespace(
        smoothness=100.0,
        value=lambda x, t: 100 * problem.loss.value(x, t),
        grad=lambda x, t: 100 * problem.loss.grad(x, t),
        bracket=lambda x, t, e: tuple(100 * v for v in problem.loss.bracket(x, t, e)),
    )
    other = BilevelProblem(problem.energy, problem.pairs, loss=steep)
    exact = truth(problem).z
    state = truth(problem).state + 0.1 * normal(*truth(problem).state.shape)
    f = problem.energy.at(problem.pairs.y)
    distance = (f.image(state) - f.image(truth(problem).state)).flatten(1).norm(dim=1)
    solution = at_state(problem, state, distance)
    plain = gradient_of(Piggyback(), problem, problem.energy, solution, 1e-8)
    scaled = gradient_of(Piggyback(), other, problem.energy, solution, 1e-6)
    assert float((scaled.value - 100 * exact).norm()) <= scaled.certified
    assert scaled.certified == pytest.approx(100 * plain.certified, rel=1e-3)


# --- its parts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_distances_from_residuals_hold_block_by_block(seed):
    """F(z) = (mu_i z_i) + skew part: the zero is the origin, and the bound is attained without the
    skew part.
    """
    sizes, mu = (2, 3, 1), (0.3, 2.0, 1.0)
    z = normal(6, seed=seed)
    skew = normal(6, 6, seed=seed + 1)
    skew = skew - skew.T
    weights = torch.cat([torch.full((k,), m) for k, m in zip(sizes, mu, strict=True)]).double()
    for coupling in (0.0, 1.0, 30.0):
        residual = (weights * z + coupling * skew @ z).split(sizes)
        bounds = distance_from_residuals([r.norm()[None] for r in residual], list(mu))
        for bound, block in zip(bounds, z.split(sizes), strict=True):
            assert float(block.norm()) <= float(bound) * (1 + 1e-12)
    alone = distance_from_residuals([one(0.0), one(3.0)], [0.5, 2.0])
    assert float(alone[1]) == pytest.approx(1.5) and float(alone[0]) == pytest.approx(3.0)


@pytest.mark.parametrize("numbers", list(functions()))
def test_the_change_of_a_conjugate_hessian_is_bounded(numbers):
    f = SmoothNorm(*numbers)
    s, t = (
        normal(200, 1, 4),
        normal(200, 1, 4, seed=1) * 10 ** (-3 * torch.rand(200, 1, 1).double()),
    )
    difference = (
        f.conjugate_hessian(s + t)(torch.ones_like(s)) - f.conjugate_hessian(s)(torch.ones_like(s))
    ).abs()
    limit = saddle_bound.conjugate_change(f) * t.abs()
    assert bool((difference <= limit * (1 + 1e-6) + 1e-9).all())


def test_the_bound_of_the_change_is_attained_where_the_curvature_hardly_varies():
    f, s = (
        SmoothNorm(0.01, 1.0, 0.2),
        torch.linspace(0.05, 0.2, 200, dtype=torch.float64).view(-1, 1, 1),
    )
    one_each = torch.ones_like(s)
    rate = (
        f.conjugate_hessian(s + 1e-5)(one_each) - f.conjugate_hessian(s)(one_each)
    ).abs().max() / 1e-5
    assert 0.8 * saddle_bound.conjugate_change(f) < float(rate) <= saddle_bound.conjugate_change(f)


def test_the_conjugate_of_squares_does_not_change_and_others_must_be_strong():
    assert saddle_bound.conjugate_change(Squares(3.0)) == 0
    for f in (
        SmoothNorm(1.0, 0.1),
        pictured("tv").energy.regularizer.dual(torch.zeros(1, 1, 4, 4))[0],
    ):
        with pytest.raises(MissingPropertyError, match="strong > 0"):
            saddle_bound.conjugate_change(f)


@pytest.mark.parametrize("padding", ["circular", "reflect"])
def test_certified_errors_with_a_learned_operator_hold(padding):
    """A is a row of K that moves with parameters of its own."""
    kernel = torch.tensor([[0.0, 1, 0], [1, 4, 1], [0, 1, 0]], dtype=torch.float64)[None, None] / 8
    data = cases.pairs(2, (4, 5))
    y = deepinv.physics.Blur(filter=kernel, padding=padding).A(data.x)
    physics = deepinv.physics.Blur(filter=(0.9 * kernel).requires_grad_(), padding=padding)
    energy = SaddleEnergy(physics, cases.PICTURES["learned"](), tikhonov=0.5)
    problem = BilevelProblem(energy, Pairs(x=data.x, y=y + 0.05 * normal(*y.shape)))
    exact = hypergradient(problem, 1e-7, 1e-8, strategy=Piggyback(certify=False)).value
    before = math.inf
    for eps in (1e-1, 1e-3):
        found = hypergradient(problem, eps, eps, strategy=Piggyback())
        assert float((found.value - exact).norm()) <= found.certified < before
        before = found.certified

    physics.A = lambda x, **_: deepinv.physics.Blur.A(
        physics, x
    )  # nobody knows that it is the same
    other = BilevelProblem(
        SaddleEnergy(physics, cases.PICTURES["learned"](), tikhonov=0.5), problem.pairs
    )
    assert hypergradient(other, 1e-1, 1e-1, strategy=Piggyback()).certified is None
