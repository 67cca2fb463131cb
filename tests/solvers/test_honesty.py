"""Honesty: the true distance to the minimizer never exceeds the certified one, whatever the solver,
dtype and eps.
"""

from __future__ import annotations

from functools import cache

import deepinv
import pytest
import torch
from tests.regularizers.cases import ENERGIES, denoising, newton, pairs
from torch import Tensor

from learnreg.core.params import flatten, trainable
from learnreg.metrics import honesty
from learnreg.problems import Energy, gallery
from learnreg.regularizers import TV, Tikhonov
from learnreg.solvers import AGD, LBFGS, solve

SOLVERS = {
    "auto": "auto",
    "agd_safe": AGD(optimism=1.0),
    "agd_bold": AGD(optimism=0.02),
    "lbfgs": LBFGS(),
}
DTYPES = {"float64": torch.float64, "float32": torch.float32}
EPS = (1e-1, 1e-3, 1e-6)


def deblurring() -> Energy:
    kernel = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]])[None, None] / 16
    return Energy(
        deepinv.physics.Blur(filter=kernel, padding="circular"), TV(0.05, 0.05) + Tikhonov(0.1)
    )


GALLERY = {
    "quadratic": lambda: gallery.quadratic(images=4, n=6, condition=100.0),
    "quadratic_of_one": lambda: gallery.quadratic(images=3, n=1, d=1),
    "quadratic_ill": lambda: gallery.quadratic(images=2, n=12, condition=1e4),
    "spectrum": lambda: gallery.spectrum_quadratic(30.0),
    "scalar_tv": lambda: gallery.scalar_tv(images=8),
    "scalar_tv_sharp": lambda: gallery.scalar_tv(images=8, smoothing=1e-3),
}


@cache
def posed(name: str, dtype: torch.dtype):
    """Energy, measurements, start and true minimizers (float64, of the data as rounded to
    ``dtype``).
    """
    if name in GALLERY:
        problem = GALLERY[name]().to(dtype)
        return (
            problem.energy.with_theta(problem.theta),
            problem.pairs.y,
            problem.exact_solution(problem.theta),
        )
    energy, y = (deblurring() if name == "deblurring" else ENERGIES[name]()), pairs(4).y.to(dtype)
    if name == "deblurring":
        energy = energy.widened() if dtype == torch.float64 else energy
    else:
        energy = energy.with_theta(flatten(trainable(energy)).to(dtype))
    return energy, y, newton(energy, y)


@pytest.mark.parametrize("eps", EPS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", [*GALLERY, *ENERGIES, "deblurring"])
def test_the_true_error_is_within_the_certified_one(name, solver, dtype, eps, record_property):
    energy, y, truth = posed(name, DTYPES[dtype])
    solution = solve(energy, y, eps, solver=SOLVERS[solver], throw=False)
    assert solution.kind.certifies
    result = honesty(distance(solution.value, truth), solution.error)
    record_property("worst", result.worst)
    record_property("median", result.median)
    assert not result.violated, result
    if dtype == "float64" or eps > (1e-2 if name == "quadratic_ill" else 1e-5):
        assert solution.ok and (solution.error <= eps).all()


def distance(x: Tensor, truth: Tensor) -> Tensor:
    return (x.double() - truth).flatten(1).norm(dim=1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("steps", [1, 4, 15])
@pytest.mark.parametrize("name", ["quadratic_ill", "scalar_tv_sharp", "tv_sharp", "foe"])
def test_what_was_cut_short_is_certified_too(name, steps, dtype):
    energy, y, truth = posed(name, DTYPES[dtype])
    solution = solve(energy, y, 1e-9, budget=steps, throw=False)
    result = honesty(distance(solution.value, truth), solution.error)
    assert not result.violated, result


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_certificate_is_not_absurdly_loose(dtype):
    """On the quadratic the error of a solver lies along the smallest eigenvalues, where the
    certificate is sharp.
    """
    energy, y, truth = posed("quadratic", DTYPES[dtype])
    solution = solve(energy, y, 1e-3)
    assert honesty(distance(solution.value, truth), solution.error).median > 0.5


@pytest.mark.parametrize("name", ENERGIES)
def test_dense_newton_and_a_tight_solve_agree(name):
    energy, y, truth = posed(name, torch.float64)
    tight = solve(energy, y, 1e-10)
    assert (distance(tight.value, truth) <= 1.1e-10).all()


def test_two_pixels_of_the_gallery_are_two_pixels_of_tv():
    """The root of the scalar equation, the regularizer TV on images of 1 x 2 pixels, and dense
    Newton agree.
    """
    problem = gallery.scalar_tv(images=8, weight=0.15, smoothing=0.02)
    energy = denoising(TV().double()).with_theta(problem.theta)
    pictures = problem.pairs.y.view(-1, 1, 1, 2)
    exact = problem.exact_solution().view_as(pictures)
    assert (distance(newton(energy, pictures), exact) < 1e-10).all()
    assert (distance(solve(energy, pictures, 1e-9).value, exact) <= 1e-9).all()
    assert (
        distance(solve(problem.energy, problem.pairs.y, 1e-9).value, problem.exact_solution())
        <= 1e-9
    ).all()


@pytest.mark.parametrize("name", GALLERY)
def test_exact_solutions_of_the_gallery_have_no_gradient(name):
    problem = GALLERY[name]()
    x = problem.exact_solution()
    assert x.shape == problem.pairs.x.shape
    gradient = problem.energy.at(problem.pairs.y).grad(x)
    assert gradient.norm(dim=1).max() < 1e-9


@pytest.mark.parametrize("name", GALLERY)
def test_the_spectrum_of_the_gallery_is_exact(name):
    problem = GALLERY[name]()
    y = problem.pairs.y
    n, bounds = problem.pairs.x.shape[1], problem.energy.at(y).bounds()
    extremes = []
    for i in range(problem.size):
        for x in (torch.zeros(n).double(), problem.pairs.x[i], torch.ones(n).double()):
            hessian = problem.energy.at(y[i : i + 1].expand(n, -1)).linearize(x.expand(n, n))
            extremes.append(torch.linalg.eigvalsh(hessian(torch.eye(n).double()))[[0, -1]])
    lowest, highest = min(float(e[0]) for e in extremes), max(float(e[1]) for e in extremes)
    assert bounds.mu.value == pytest.approx(lowest, rel=1e-9) and bounds.L.value == pytest.approx(
        highest, rel=1e-9
    )
    single = problem.energy.with_theta(problem.theta.float()).at(y.float()).bounds()
    assert single.mu.value <= bounds.mu.value and single.L.value >= bounds.L.value


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gallery.quadratic(images=0), "images: given 0; expected a positive integer"),
        (lambda: gallery.quadratic(n=2.5), "n: given 2.5"),
        (lambda: gallery.quadratic(d=-1), "d: given -1"),
        (
            lambda: gallery.quadratic(condition=0.5),
            "condition: given 0.5; expected a finite number >= 1",
        ),
        (lambda: gallery.spectrum_quadratic(float("nan")), "condition: given nan"),
        (lambda: gallery.spectrum_quadratic(2.0, n=3, d=4), "n: given 3; expected at least d = 4"),
        (lambda: gallery.scalar_tv(images=0), "images: given 0"),
        (
            lambda: gallery.scalar_tv(weight=0.0),
            "weight: given 0.0; expected a finite number above 0",
        ),
        (lambda: gallery.scalar_tv(smoothing=float("inf")), "smoothing: given inf"),
        (
            lambda: gallery.scalar_tv().energy.at(torch.zeros(2, 3)),
            r"y: given shape \(2, 3\); expected shape \(b, 2\)",
        ),
        (
            lambda: gallery.quadratic().energy.at(torch.zeros(2, 3)),
            r"y: given shape \(2, 3\); expected shape \(b, 96\)",
        ),
    ],
)
def test_bad_settings_of_the_gallery_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
