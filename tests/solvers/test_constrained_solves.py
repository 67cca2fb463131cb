"""Solves within bounds of pixels: minimizers, certificates, images as strangers, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from tests.solvers.constrained import by_active_sets, counts, denoised, noisy, random, squares
from torch import Tensor

import learnreg as lr
from learnreg.core.constraints import domain_of
from learnreg.core.errors import InputError, MissingPropertyError
from learnreg.core.status import Status
from learnreg.problems import Energy
from learnreg.regularizers import TV, BlackBox, Tikhonov
from learnreg.solvers import NewtonCG, Tiling, minimize, solve_in_tiles
from learnreg.solvers.select import SOLVERS, WITHIN_BOUNDS
from learnreg.solvers.solve import solve_potential, start_distance

GENERAL = tuple(name for name in WITHIN_BOUNDS if name != "primal_dual_newton")
"""Those that take any energy, without dual variables."""

each_solver = pytest.mark.parametrize("solver", GENERAL)
INF = math.inf


def some(low: float, seed: int) -> Tensor:
    """Lower bounds of single pixels, none for a third of them."""
    found = low + 0.5 * random(1, 1, 4, 5, seed=seed)
    return torch.where(random(1, 1, 4, 5, seed=seed + 1) < 0.3, -INF, found)


BOXES = {
    "nonnegative": (0.0, None),
    "unit": (0.0, 1.0),
    "above only": (None, 0.25),
    "per pixel": (some(-0.5, 3), some(-0.5, 3).clamp_min(-0.5) + random(1, 1, 4, 5, seed=9)),
    "per image": (random(3, 1, 4, 5, seed=5) - 0.5, None),
    "fixed pixels": (torch.where(random(1, 1, 4, 5, seed=6) < 0.4, 0.25, -INF), 0.25),
    "all active": (2.0, 3.0),
    "all fixed": (0.5, 0.5),
    "none active": (-100.0, 100.0),
}


def distance(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).double().flatten(1).norm(dim=1)


# --- minimizers -----------------------------------------------------------------------------------


@each_solver
@pytest.mark.parametrize("box", BOXES)
def test_the_minimizer_is_that_of_active_sets(solver, box):
    """Against SciPy's bounded least squares, image by image."""
    energy, y = squares(1, BOXES[box])
    bounds = energy.at(y).domain
    exact = by_active_sets(energy, y, bounds.lower, bounds.upper)
    for eps in (1e-2, 1e-7):
        solution = lr.solve(energy, y, eps, solver=solver)
        assert bounds.contains(solution.value).all() and solution.kind.certifies
        assert (distance(solution.value, exact) <= solution.error + 1e-12).all()
        assert (solution.error <= eps).all()


def test_bounds_that_bind_nothing_change_nothing():
    energy, y = squares(1, BOXES["none active"])
    free = Energy(energy.physics, energy.regularizer)
    for solver in GENERAL:
        bound, plain = (lr.solve(e, y, 1e-6, solver=solver) for e in (energy, free))
        torch.testing.assert_close(bound.value, plain.value, rtol=0, atol=2e-6)
        assert bound.cost.work <= 1.3 * plain.cost.work


@pytest.mark.parametrize("solver", WITHIN_BOUNDS)
@pytest.mark.parametrize("kind", ["TV", "FoE"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_certificate_holds(solver, kind, dtype):
    y = noisy(4, dtype)
    energy = denoised(kind, (0.0, 0.2), dtype)
    exact = lr.solve(denoised(kind, (0.0, 0.2)), y.double(), 1e-9, solver="newton").value
    for eps in (1e-1, 1e-3, 1e-5):
        solution = lr.solve(energy, y, eps, solver=solver, throw=False)
        assert solution.value.dtype == dtype
        assert ((solution.value >= 0) & (solution.value <= energy.constraint.upper)).all()
        assert (distance(solution.value.double(), exact) <= solution.error + 2e-9).all()
        assert dtype == torch.float32 or solution.ok


@pytest.mark.parametrize("seed", [0, 2, 5, 9])
def test_the_projected_gradient_bounds_the_distance_of_random_points(seed):
    """60 random feasible points each, near and far, with pixels at their bounds."""
    energy, _, y = counts(seed, lr.NonNegative())
    exact = lr.solve(energy, y, 1e-8, solver="newton").value
    f = energy.at(y)
    domain, mu = domain_of(f), f.bounds().mu.value
    g, ratios = torch.Generator().manual_seed(seed), []
    for k in range(60):
        size = 10.0 ** (-5 * k / 60)
        x = domain.project(exact + size * torch.randn(exact.shape, generator=g, dtype=exact.dtype))
        bound = domain.slope(x, f.grad(x)).norm() / mu
        ratios.append(float(bound / (x - exact).norm()))
    assert min(ratios) >= 1
    plain = f.grad(exact).norm() / mu
    assert plain > 1  # the gradient itself does not vanish at a bounded minimizer


def test_other_problems_within_bounds():
    """Counts, learned operators, stationarity without mu, a box in float32."""
    energy, _, y = counts(0, (0, 3))
    for solver in ("auto", *WITHIN_BOUNDS):
        value = lr.solve(energy, y, 1e-6, solver=solver).value
        reference = lr.solve(energy, y, 1e-7, solver="newton").value
        assert float((value - reference).norm()) <= 1.1e-6
        assert ((value == 0) | (value == 3)).any()


def test_a_stationary_point_of_a_nonconvex_energy():
    """The norm of the projected gradient is what is asked for, of a method that knows bounds."""

    class Ripples(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 0.01 * torch.cos(25 * x).flatten(1).sum(dim=1)

    physics = denoised("TV", None).physics
    energy = Energy(physics, BlackBox(Ripples()), constraint=(0.0, 0.15))
    y = noisy()
    solution = lr.solve(energy, y, stationarity=1e-5)
    assert "lbfgs" in solution.solver and (solution.gradient_norm <= 1e-5).all()
    x = solution.value
    assert ((x >= 0) & (x <= 0.15)).all()
    torch.testing.assert_close(
        energy.constraint.tied(x).slope(x, energy.at(y).grad(x)).flatten(1).norm(dim=1),
        solution.gradient_norm,
    )


# --- starts, images as strangers ------------------------------------------------------------------


@each_solver
def test_a_start_outside_is_projected(solver):
    energy, y = squares(2, (0.0, 1.0))
    near = lr.solve(energy, y, 1e-7, solver=solver).value
    for x0 in (torch.full_like(near, -7.0), 5 * random(*near.shape, seed=3) - 2, near):
        kept = x0.clone()
        solution = lr.solve(energy, y, 1e-7, solver=solver, x0=x0)
        assert torch.equal(x0, kept)
        assert (distance(solution.value, near) <= 2e-7).all()
    assert (
        start_distance(energy.at(y), torch.full_like(near, -7.0)) >= distance(0 * near, near)
    ).all()


@each_solver
@pytest.mark.parametrize("box", ["unit", "per image"])
def test_images_are_strangers(solver, box):
    energy, y = squares(3, BOXES[box])
    together = lr.solve(energy, y, 1e-6, solver=solver)
    bounds = energy.at(y).domain
    for i in range(len(y)):
        one = torch.tensor([i])
        part = energy.at(y).select(one)
        alone = solve_potential(part, 1e-6, part.first(), solver)
        torch.testing.assert_close(alone.value, together.value[one], rtol=0, atol=1e-9)
        assert alone.steps.item() == together.steps[i].item()
    assert bounds.contains(together.value).all()


def test_broken_images_keep_to_their_bounds_and_do_not_disturb():
    energy, y = squares(3, (0.0, 1.0))
    f = energy.at(y)
    x0 = f.first()
    x0[1, 0, 0, 0] = math.nan
    for solver in GENERAL:
        solution = minimize(f, 1e-6, SOLVERS[solver](), x0)
        assert solution.status[1] is Status.NOT_FINITE
        assert solution.status[0].ok and solution.status[2].ok


def test_no_step_at_all_is_certified_honestly():
    energy, y = squares(3, (0.0, 1.0))
    solution = minimize(
        energy.at(y), 1e-9, NewtonCG(), torch.full((3, 1, 4, 5), 9.0).double(), max_steps=0
    )
    assert (solution.value == 1).all() and torch.isfinite(solution.error).all()


def test_bounds_per_image_come_with_the_measurements():
    """As parameters they follow the images into every part of a batch."""
    whole = BOXES["per image"][0]
    energy, y = squares(3, None)
    expected = lr.solve(squares(3, BOXES["per image"])[0], y, 1e-8).value
    found = lr.solve(energy, y, 1e-8, params={"lower": whole}).value
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-8)
    above = squares(3, (None, 0.5))[0]
    both = lr.solve(above, y, 1e-8, params={"lower": whole.clamp_max(0.5)}).value
    assert (both <= 0.5).all() and (both >= whole.clamp_max(0.5) - 1e-6).all()
    with pytest.raises(InputError, match="params"):
        lr.solve(squares(3, (whole[:2], None))[0], y, 1e-2)


# --- what cannot keep to bounds -------------------------------------------------------------------


def test_solvers_say_whether_they_know_bounds():
    energy, y = squares(1, (0.0, None))
    for name in sorted(set(SOLVERS) - set(WITHIN_BOUNDS) - {"pdhg"}):
        with pytest.raises(MissingPropertyError, match="bounds") as error:
            lr.solve(energy, y, 1e-2, solver=name)
        assert error.value.remedy

    class Own:
        name = "own"

        def init(self, f, x0):
            return NewtonCG().init(f, x0)

        def step(self, f, state):
            return NewtonCG().step(f, state)

    with pytest.raises(MissingPropertyError, match="bounded = True"):
        lr.solve(energy, y, 1e-2, solver=Own())
    Own.bounded = True
    assert lr.solve(energy, y, 1e-2, solver=Own()).ok


def test_a_liar_among_solvers_gets_no_certificate():
    """A point outside of its bounds is worth nothing, however small its gradient."""

    class Unaware:
        name, bounded = "unaware", True

        def init(self, f, x0):
            f = f.energy  # the same without bounds
            plain = Energy(f.physics, f.regularizer).at(self.y)
            return NewtonCG().init(plain, x0)

        def step(self, f, state):
            return NewtonCG().step(Energy(f.energy.physics, f.energy.regularizer).at(self.y), state)

    energy, y = squares(1, (0.0, None))
    liar = Unaware()
    liar.y = y[:1]
    solution = lr.solve(energy, y[:1], 1e-3, solver=liar, throw=False, budget=30)
    assert not solution.ok and not torch.isfinite(solution.error).any()


# --- the distance of any image, tiles -------------------------------------------------------------


@pytest.mark.parametrize("outside", [False, True])
def test_certify_brackets_the_distance_of_any_image(outside):
    energy, y = squares(4, (0.0, 1.0))
    exact = lr.solve(energy, y, 1e-9).value
    x = exact + 0.3 * (random(*exact.shape, seed=1) - 0.5)
    x = x if outside else x.clamp(0, 1)
    found = lr.certify(energy, y, x)
    true = distance(x, exact)
    assert (found.at_least <= true).all() and (true <= found.certified).all()
    assert (found.certified <= 1.3 * true).all() and (true <= found.from_gradient).all()
    assert ((found.nearer >= 0) & (found.nearer <= 1)).all()
    assert (found.estimated <= 1.5 * true).all() and (found.estimated >= 0.5 * true).all()


def test_certify_at_the_solution():
    energy, y = squares(4, (0.0, 1.0))
    exact = lr.solve(energy, y, 1e-9).value
    assert (lr.certify(energy, y, exact).certified <= 2e-9).all()


@pytest.mark.parametrize("per_pixel", [False, True])
def test_tiles_are_solved_within_bounds(per_pixel):
    y = random(1, 1, 70, 58, seed=2) * 0.4 - 0.15
    lower = 0.05 * random(1, 1, 70, 58, seed=4) if per_pixel else 0.0
    energy = denoised("TV", (lower, 0.2))
    f = energy.at(y)
    solution = solve_in_tiles(f, 1e-4, f.first() - 1, tiling=Tiling(24, 3))
    exact = lr.solve(energy, y, 1e-8).value
    assert solution.ok and f.domain.contains(solution.value).all()
    assert (distance(solution.value, exact) <= solution.error).all()


def test_windows_have_the_bounds_of_their_pixels():
    y = noisy(2)
    lower = random(1, 1, 12, 10, seed=4)
    f = denoised("TV", (lower, None)).at(y)
    part = f.windows()(slice(2, 7), slice(0, 6))
    assert torch.equal(part.domain.lower, f.domain.lower[..., 2:7, 0:6])
    assert f.windows(double=True)(slice(2, 7), slice(0, 6)).domain.lower.dtype == torch.float64


def test_complex_images_have_no_order():
    import deepinv

    class Fourier(deepinv.physics.LinearPhysics):
        def A(self, x, **_):
            return torch.fft.fft2(x, norm="ortho")

        def A_adjoint(self, y, **_):
            return torch.fft.ifft2(y, norm="ortho")

    y = torch.fft.fft2(noisy().float())
    with pytest.raises(InputError, match="constraint"):
        lr.solve(Energy(Fourier(), TV() + Tikhonov(0.1), constraint=lr.NonNegative()), y, 1e-2)


def test_real_and_imaginary_channels_have_bounds_of_their_own():
    """MRI of a real image: the imaginary channel is fixed at zero."""
    import deepinv

    mask = (random(1, 1, 16, 16, seed=3) < 0.6).double()
    physics = deepinv.physics.MRI(mask=mask, img_size=(2, 16, 16))
    x = torch.cat([random(2, 1, 16, 16, seed=1), torch.zeros(2, 1, 16, 16).double()], dim=1)
    y = physics.A(x) + 0.05 * (random(2, 2, 16, 16, seed=2) - 0.5) * mask
    none = torch.tensor([0.0, 0.0]).view(1, 2, 1, 1), torch.tensor([INF, 0.0]).view(1, 2, 1, 1)
    regularizer = TV(0.01, 0.02).double() + Tikhonov(1e-2, learned=False)
    energy = Energy(physics, regularizer, constraint=none)
    solution = lr.solve(energy, y, 1e-3)
    assert (solution.value[:, 1] == 0).all() and (solution.value[:, 0] >= 0).all()


@pytest.mark.parametrize("kind", ["TV", "FoE"])
@pytest.mark.parametrize("box", [(0.0, None), (0.0, 0.15), (5.0, 6.0), (-9.0, 9.0), (0.1, 0.1)])
def test_the_checks_for_ones_own_know_bounds(kind, box):
    """``learnreg.testing`` finds the bounded minimizer without the solvers of the library."""
    energy, y = denoised(kind, box), noisy(2)
    lr.testing.check_honesty(energy, y, [1e-1, 1e-3, 1e-6])
    x = lr.solve(energy, y, 1e-8).value
    assert (lr.testing.true_distance(energy, y, x) <= 2e-8).all()
    free = lr.solve(Energy(energy.physics, energy.regularizer), y, 1e-8).value
    far = lr.testing.true_distance(energy, y, free)
    assert ((far > 1e-3) == (box != (-9.0, 9.0))).all()


def test_bounded_truths_of_large_images_are_refused():
    with pytest.raises(MissingPropertyError, match="bounds"):
        lr.testing.truth(
            denoised("TV", (0, 1)), random(1, 1, 30, 30, seed=0), random(1, 1, 30, 30, seed=1)
        )
