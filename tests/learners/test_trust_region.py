"""The parts of the derivative-free method: steps in ball and box, models through samples, errors of
residuals.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import lsq_linear, minimize
from tests.learners.cases import GALLERY

from learnreg.core.errors import InputError
from learnreg.learners import DFO
from learnreg.learners.interpolation import (
    Sample,
    Scaling,
    distances,
    gauss_newton,
    lagrange,
    nearest,
    sample,
)
from learnreg.learners.trust_region import box_minimizer, constrained_step, longest_step
from learnreg.objectives.bilevel import Bilevel
from learnreg.problems import BilevelProblem, gallery
from learnreg.problems.losses import SquaredError

# --- the subproblem -------------------------------------------------------------------------------


def subproblem(seed: int, n: int, m: int, spread: float = 1.0):
    """g, H, lower, upper, radius: some entries at a bound, some free, a Hessian of rank min(n,
    m).
    """
    draw = np.random.default_rng(seed)
    jacobian = draw.standard_normal((m, n)) * 10 ** draw.uniform(-spread, spread, n)
    lower, upper = (sign * draw.uniform(0, 1, n) * draw.integers(0, 2, n) for sign in (-1, 1))
    return (
        jacobian.T @ draw.standard_normal(m),
        jacobian.T @ jacobian,
        lower,
        upper,
        10 ** draw.uniform(-1.5, 0.5),
    )


def q(g, h, s):
    return 2 * g @ s + s @ h @ s


@pytest.mark.parametrize("seed", range(40))
def test_a_step_is_as_good_as_a_general_optimizer(seed):
    """SLSQP on the same problem, from several starts, never gets lower by more than its own
    tolerance.
    """
    draw = np.random.default_rng(seed)
    g, h, lower, upper, radius = subproblem(seed, draw.integers(1, 7), draw.integers(1, 9))
    s = constrained_step(g, h, lower, upper, radius)
    ball = {"type": "ineq", "fun": lambda v: radius**2 - v @ v, "jac": lambda v: -2 * v}
    scale = max(abs(q(g, h, s)), 1e-12)
    for start in (np.zeros_like(g), 0.5 * s):
        other = minimize(
            lambda v: q(g, h, v) / scale,
            start,
            jac=lambda v: 2 * (g + h @ v) / scale,
            method="SLSQP",
            bounds=list(zip(lower, upper, strict=True)),
            constraints=[ball],
            options={"ftol": 1e-12, "maxiter": 500},
        ).x
        other = np.clip(other, lower, upper)
        other *= min(1.0, radius / max(np.linalg.norm(other), 1e-300))
        assert q(g, h, s) <= q(g, h, other) + 1e-6 * scale


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 12), st.floats(0, 3))
def test_a_step_is_feasible_and_no_random_point_is_better(seed, n, m, spread):
    g, h, lower, upper, radius = subproblem(seed, n, m, spread)
    s = constrained_step(g, h, lower, upper, radius)
    assert (s >= lower).all() and (s <= upper).all() and np.linalg.norm(s) <= radius * (1 + 1e-12)
    draw, best = np.random.default_rng(seed), q(g, h, s)
    assert best <= 0
    for size in (1.0, 1e-3):
        for v in s + size * radius * draw.standard_normal((50, n)):
            v = np.clip(v, lower, upper)
            v = v * min(1.0, radius / max(np.linalg.norm(v), 1e-300))
            assert best <= q(g, h, v) + 1e-5 * abs(best) + 1e-12


def test_a_step_in_the_plane_is_that_of_brute_force():
    g, h = np.array([-1.0, -0.2]), np.array([[1.0, 0.9], [0.9, 1.0]])
    lower, upper, radius = np.array([-1.0, -0.3]), np.array([0.8, 1.0]), 0.9
    grid = np.stack(np.meshgrid(np.linspace(-1, 1, 801), np.linspace(-1, 1, 801)), axis=-1).reshape(
        -1, 2
    )
    grid = grid[
        ((grid >= lower) & (grid <= upper)).all(axis=1) & (np.linalg.norm(grid, axis=1) <= radius)
    ]
    values = 2 * grid @ g + np.einsum("ij,jk,ik->i", grid, h, grid)
    s = constrained_step(g, h, lower, upper, radius)
    assert q(g, h, s) <= values.min() and np.linalg.norm(s - grid[values.argmin()]) < 5e-3


@pytest.mark.parametrize("seed", range(20))
def test_without_a_ball_it_is_bounded_least_squares(seed):
    draw = np.random.default_rng(seed)
    n = int(draw.integers(1, 9))
    jacobian, r = draw.standard_normal((n + 3, n)), draw.standard_normal(n + 3)
    lower, upper = -draw.uniform(0.01, 0.3, n), draw.uniform(0.01, 0.3, n)
    s = box_minimizer(jacobian.T @ r, jacobian.T @ jacobian, lower, upper)
    assert np.allclose(
        s, lsq_linear(jacobian, -r, (lower, upper), method="bvls", tol=1e-14).x, atol=1e-9
    )
    assert np.allclose(
        s, constrained_step(jacobian.T @ r, jacobian.T @ jacobian, lower, upper, 100.0), atol=1e-6
    )


def test_degenerate_subproblems():
    free = np.full(3, np.inf)
    g = np.array([1.0, -2.0, 0.0])
    assert (constrained_step(np.zeros(3), np.eye(3), -free, free, 1.0) == 0).all()
    # without curvature the step is steepest descent to the boundary, with bounds at zero it stays
    # where it is
    assert np.allclose(
        constrained_step(g, np.zeros((3, 3)), -free, free, 0.5), -0.5 * g / math.sqrt(5), atol=1e-6
    )
    assert (constrained_step(g, np.eye(3), np.zeros(3), np.zeros(3), 1.0) == 0).all()
    assert (longest_step(np.zeros(3), -free, free, 1.0) == 0).all()


def test_sixty_four_parameters():
    g, h, lower, upper, _ = subproblem(3, 64, 80)
    for radius in (1e-3, 0.1, 10.0):
        s = constrained_step(g, h, lower, upper, radius)
        slope, inside = g + h @ s, (s > lower) & (s < upper)
        if np.linalg.norm(s) < 0.999 * radius:
            assert np.abs(slope[inside]).max() < 1e-8 * np.abs(g).max()
        else:  # the multiplier of the ball is the same in every free entry
            multiplier = -slope[inside] @ s[inside] / (s[inside] @ s[inside])
            assert multiplier >= 0
            assert np.allclose(slope[inside], -multiplier * s[inside], atol=1e-5 * np.abs(g).max())


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 8))
def test_the_longest_step_is_feasible_and_reaches_farthest(seed, n):
    draw = np.random.default_rng(seed)
    direction = draw.standard_normal(n)
    _, _, lower, upper, radius = subproblem(seed, n, 2)
    s = longest_step(direction, lower, upper, radius)
    assert (s >= lower).all() and (s <= upper).all() and np.linalg.norm(s) <= radius * (1 + 1e-12)
    for v in draw.standard_normal((200, n)) * radius:
        v = np.clip(v, lower, upper)
        v = v * min(1.0, radius / max(np.linalg.norm(v), 1e-300))
        assert abs(direction @ v) <= abs(direction @ s) * (1 + 1e-5) + 1e-12


# --- models through samples -----------------------------------------------------------------------


def simplex(seed: int, n: int, m: int):
    """n + 1 samples of an affine residual A u + b, and A and b."""
    draw = np.random.default_rng(seed)
    a, b = draw.standard_normal((m, n)), draw.standard_normal(m)
    points = np.concatenate([np.zeros((1, n)), np.eye(n)]) + 0.2 * draw.standard_normal((n + 1, n))
    r = points @ a.T + b
    return (
        [Sample(None, u, v, 0.0, float(v @ v), 0.0, 0.0) for u, v in zip(points, r, strict=True)],
        a,
        b,
    )


@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_model_of_affine_residuals_is_exact(n):
    samples, a, b = simplex(n, n, 4)
    for k, center in enumerate(samples):
        model = gauss_newton(samples, k)
        assert np.allclose(model.h, a.T @ a) and np.allclose(model.g, a.T @ (a @ center.u + b))
        for s in np.random.default_rng(0).standard_normal((5, n)):
            r = a @ (center.u + s) + b
            assert math.isclose(
                model.reduction(s), center.value - r @ r, rel_tol=1e-9, abs_tol=1e-9
            )


@pytest.mark.parametrize("n", [1, 3])
def test_lagrange_polynomials(n):
    samples, _, _ = simplex(n, n, 2)
    for k, center in enumerate(samples):
        slopes = lagrange(samples, k)
        for i, other in enumerate(samples):
            values = slopes @ (other.u - center.u) + (np.arange(n + 1) == k)
            assert np.allclose(values, np.arange(n + 1) == i, atol=1e-10)
        assert np.allclose(slopes.sum(axis=0), 0, atol=1e-10)
        assert nearest(samples, center.u + 1e-9) is center and distances(samples, center.u)[k] == 0


# --- samples --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["quadratic", "spectrum", "two_pixels"])
@pytest.mark.parametrize("eps", [1.0, 1e-2, 1e-5])
def test_residuals_and_their_errors_hold(name, eps):
    """F = 2 n f lies in its bracket, and every residual is as near to the exact one as is
    claimed.
    """
    problem = GALLERY[name]()
    lower = Bilevel(problem)
    point = lower.evaluate(problem.theta, eps)
    found = sample(lower, Scaling.of(None, lower), point, False)
    exact = (2 * problem.loss.value(problem.exact_solution(), problem.pairs.x)).sqrt().numpy()
    assert (np.abs(found.residuals - exact) <= found.error + 1e-12).all()
    assert found.low - 1e-12 <= 2 * problem.size * problem.exact_loss() <= found.high + 1e-12
    assert math.isclose(found.value, found.residuals @ found.residuals, rel_tol=1e-12)
    assert found.error == math.sqrt(problem.loss.smoothness) * float(point.solution.error.max())


def test_pixels_sum_to_the_same_loss():
    problem = gallery.quadratic()
    lower = Bilevel(problem)
    point = lower.evaluate(problem.theta, 1e-3)
    scaling = Scaling.of(None, lower)
    images, pixels = sample(lower, scaling, point, False), sample(lower, scaling, point, True)
    assert pixels.residuals.shape == (problem.pairs.x.numel(),) and images.residuals.shape == (
        problem.size,
    )
    assert math.isclose(
        pixels.residuals @ pixels.residuals, images.residuals @ images.residuals, rel_tol=1e-12
    )
    assert replace(pixels, residuals=images.residuals) == replace(images, u=pixels.u)


@pytest.mark.parametrize("pixels", [False, True])
def test_a_penalty_is_one_residual_more(pixels):
    """sqrt(2 n p), so that the squares still sum to 2 n f."""
    problem = gallery.quadratic()
    problem.penalty = lambda theta: 0.3 * theta.exp().sum()
    objective = Bilevel(problem)
    point = objective.evaluate(problem.theta, 1e-3)
    found = sample(objective, Scaling.of(None, objective), point, pixels)
    expected = math.sqrt(2 * problem.size * 0.3 * float(problem.theta.exp().sum()))
    assert problem.size > 1 and math.isclose(found.residuals[-1], expected, rel_tol=1e-12)
    assert math.isclose(found.value, found.residuals @ found.residuals, rel_tol=1e-12)


@pytest.mark.parametrize("low, high, farthest", [(1.9, 2.7, 0.7), (1.0, 2.1, 1.0)])
def test_the_farther_end_of_a_bracket_is_the_uncertainty(low, high, farthest):
    problem = gallery.quadratic()
    objective = Bilevel(problem)
    point = objective.evaluate(problem.theta, 1e-1)
    found = sample(objective, Scaling.of(None, objective), point, False)
    assert abs(found.low - found.value) <= found.uncertainty >= found.high - found.value
    assert math.isclose(replace(found, value=2.0, low=low, high=high).uncertainty, farthest)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 30), st.floats(1e-8, 10), st.floats(0, 100), st.integers(0, 1000))
def test_the_error_of_f(m, t, value, seed):
    """|F~ - F| <= 2 t sqrt(m F) + m t^2, and DFO's tolerance turns an allowed error into t."""
    draw = np.random.default_rng(seed)
    r = np.abs(draw.standard_normal(m))
    r *= math.sqrt(value) / np.linalg.norm(r)
    other = np.maximum(r + t * draw.uniform(-1, 1, m), 0)
    bound = 2 * t * math.sqrt(m * value) + m * t**2
    assert abs(other @ other - r @ r) <= bound * (1 + 1e-9) + 1e-12
    assert math.isclose(DFO().tolerance(value, m, bound, 1e9), t, rel_tol=1e-6)


def test_tolerances_are_never_looser_than_a_model_needs():
    assert DFO(model_error=3.0).tolerance(1.0, 4, 1e9, 0.1) == pytest.approx(0.03)
    assert DFO().tolerance(0.0, 4, 1e-4, 1.0) == pytest.approx(5e-3)  # F = 0: m t^2 is all there is


class Negative(SquaredError):
    """A loss that Gauss-Newton cannot model."""

    def value(self, x, x_true):
        return super().value(x, x_true) - 1e3


def test_a_loss_below_zero_is_refused():
    problem = gallery.quadratic()
    problem = BilevelProblem(problem.energy, problem.pairs, Negative())
    lower = Bilevel(problem)
    point = lower.evaluate(problem.theta, 1e-3)
    with pytest.raises(InputError, match=r"^loss: given the value -.*; expected values >= 0.*MAID"):
        sample(lower, Scaling.of(None, lower), point, False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scaling_goes_there_and_back(dtype):
    problem = gallery.three_parameters(signals=2, size=16).to(dtype)
    scaling = Scaling.of(problem.box, Bilevel(problem))
    u = scaling.to_u(problem.theta)
    assert np.allclose(u, [0.5, 6 / 7, 6 / 7])
    assert scaling.to_theta(u, problem.theta).equal(problem.theta)
    down, up = scaling.room(u)
    assert np.allclose(down, -u) and np.allclose(up, 1 - u)
    assert (
        scaling.to_theta(u + 5, problem.theta) == torch.tensor([7.0, 0.0, 0.0], dtype=dtype)
    ).all()
    free = Scaling.of({"theta[0]": [-7.0, 7.0]}, Bilevel(problem))
    assert free.width.tolist() == [14.0, 1.0, 1.0] and np.isinf(free.room(u)[1][1:]).all()
