"""The triangle: closed form = implicit = unrolled = central difference, in float64, for every kind
of lower level.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from tests.hypergradients.pulls import gradient_of
from tests.regularizers.cases import Pairs, denoising, foe, newton, plain, problem, tv
from torch import Tensor

from learnreg.core.params import flatten, trainable
from learnreg.hypergradients import Implicit, hypergradient
from learnreg.hypergradients.implicit import mixed_product
from learnreg.linear import CG
from learnreg.problems import BilevelProblem, gallery
from learnreg.regularizers import Tikhonov
from learnreg.solvers import solve


@dataclass(frozen=True)
class Oracle:
    """A problem, its exact hypergradient, and grad_x h as a formula differentiable in x and
    theta.
    """

    problem: BilevelProblem
    exact: Tensor
    formula: Callable[[Tensor, Tensor], Tensor]


def energy_formula(posed: BilevelProblem) -> Callable[[Tensor, Tensor], Tensor]:
    """grad_x h(x; theta) of an image energy from the plain formula of its regularizer."""

    def gradient(x: Tensor, theta: Tensor) -> Tensor:
        r = posed.energy.with_theta(theta.detach()).regularizer
        names = [n for n, p in r.named_parameters() if p.requires_grad]
        parts = theta.split([r.get_parameter(n).numel() for n in names])
        with torch.enable_grad():
            if not x.requires_grad:
                x = x.clone().requires_grad_()
            wrapped = Plain(r)
            values = {
                f"r.{n}": t.view_as(r.get_parameter(n)) for n, t in zip(names, parts, strict=True)
            }
            value = torch.func.functional_call(wrapped, values, (x,))
            (g,) = torch.autograd.grad(value.sum(), x, create_graph=True)
        return x - posed.pairs.y + g

    return gradient


class Plain(torch.nn.Module):
    """The plain formula as a module, so that its parameters can be replaced by tensors of a
    graph.
    """

    def __init__(self, r: torch.nn.Module) -> None:
        super().__init__()
        self.r = r

    def forward(self, x: Tensor) -> Tensor:
        return plain(self.r, x)


def quadratic_formula(posed: gallery.QuadraticProblem) -> Callable[[Tensor, Tensor], Tensor]:
    q, b, c = posed.energy.unpack(posed.pairs.y)
    return lambda x, theta: torch.einsum("bij,bj->bi", q, x) - b @ theta - c


def two_pixel_formula(posed: gallery.ScalarTVProblem) -> Callable[[Tensor, Tensor], Tensor]:
    def gradient(x: Tensor, theta: Tensor) -> Tensor:
        t = x[:, 1] - x[:, 0]
        s = theta[0].exp() * t / torch.sqrt(t * t + theta[1].exp() ** 2)
        return x - posed.pairs.y + torch.stack([-s, s], dim=1)

    return gradient


def dense_hypergradient(
    posed: BilevelProblem, formula: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """-mean_i J_i^T H_i^{-1} b_i at the minimizers of dense Newton steps, all matrices by autograd
    of the formula.
    """
    x, theta = newton(posed.energy, posed.pairs.y), posed.theta
    n, b = x[0].numel(), x.shape[0]
    x = x.requires_grad_()
    t = theta.clone().requires_grad_()
    g = formula(x, t).reshape(b, n)
    rows = [
        torch.autograd.grad(g[:, j].sum(), x, retain_graph=True)[0].reshape(b, n) for j in range(n)
    ]
    q = torch.linalg.solve(torch.stack(rows, dim=1), (x.detach() - posed.pairs.x).reshape(b, n))
    return -torch.autograd.grad((g * q).sum(), t)[0] / b


IMAGES = {
    "tv": lambda: tv(True, 0.05, 0.2),
    "tv_anisotropic": lambda: tv(False, 0.05, 0.1),
    "foe": lambda: foe(weight=0.02, smoothing=0.2),
    "foe_free": lambda: foe(filters=2, init="random", padding="zero", zero_mean=False, weight=0.02),
    "sum": lambda: tv(True, 0.05, 0.2) + foe(filters=2, weight=0.02) + 0.5 * Tikhonov(0.1).double(),
}
GALLERY = {
    "quadratic": lambda: gallery.quadratic(images=3, n=6, d=3, condition=20.0),
    "spectrum": lambda: gallery.spectrum_quadratic(10.0),
    "scalar_tv": lambda: gallery.scalar_tv(images=5, weight=0.1, smoothing=0.1),
}
NAMES = [*GALLERY, *IMAGES]


@cache
def oracle(name: str) -> Oracle:
    if name in IMAGES:
        posed = problem(denoising(IMAGES[name]()), count=3, size=(4, 5))
        formula = energy_formula(posed)
        return Oracle(posed, dense_hypergradient(posed, formula), formula)
    posed = GALLERY[name]()
    formula = two_pixel_formula(posed) if name == "scalar_tv" else quadratic_formula(posed)
    return Oracle(posed, posed.exact_hypergradient(), formula)


def close(a: Tensor, b: Tensor, tolerance: float) -> None:
    assert a.shape == b.shape
    assert float((a - b).norm()) <= tolerance * float(b.norm()), (a, b)


@pytest.mark.parametrize("name", NAMES)
def test_implicit_is_the_closed_form(name):
    o = oracle(name)
    result = hypergradient(o.problem, eps=1e-10, delta=1e-11, strategy=Implicit())
    close(result.value, o.exact, 1e-7)
    close(hypergradient(o.problem, eps=1e-10, delta=1e-11).value, o.exact, 1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_unrolled_gradient_steps_agree(name):
    o = oracle(name)
    theta = o.problem.theta.requires_grad_()
    energy, y = o.problem.energy.with_theta(theta.detach()), o.problem.pairs.y
    bounds = energy.at(y).bounds()
    step = 2 / (bounds.mu.value + bounds.L.value)
    rate = 1 - step * bounds.mu.value
    x = energy.start(y).clone()
    for _ in range(math.ceil(math.log(1e-9) / math.log(rate))):
        x = x - step * o.formula(x, theta)
    (unrolled,) = torch.autograd.grad(o.problem.loss.value(x, o.problem.pairs.x).mean(), theta)
    close(unrolled, o.exact, 1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_central_differences_agree(name):
    o = oracle(name)
    theta, h = o.problem.theta, 1e-4
    directions = torch.eye(theta.numel(), dtype=torch.float64)
    if theta.numel() > 6:
        directions = torch.randn(
            6, theta.numel(), generator=torch.Generator().manual_seed(0), dtype=torch.float64
        )
        directions /= directions.norm(dim=1, keepdim=True)

    def loss(at: Tensor) -> float:
        x = solve(o.problem.energy.with_theta(at), o.problem.pairs.y, 1e-11).value
        return float(o.problem.loss.value(x, o.problem.pairs.x).mean())

    scale = float(o.exact.norm())
    for e in directions:
        quotient = (loss(theta + h * e) - loss(theta - h * e)) / (2 * h)
        assert quotient == pytest.approx(float(o.exact @ e), abs=2e-6 * scale)


@pytest.mark.parametrize("name", GALLERY)
def test_exact_answers_of_the_gallery_are_consistent(name):
    """exact_hypergradient is the derivative of exact_loss, and exact_optimum its zero."""
    posed = GALLERY[name]()
    theta, h = posed.theta, 1e-5
    for e in torch.eye(theta.numel(), dtype=torch.float64):
        quotient = (posed.exact_loss(theta + h * e) - posed.exact_loss(theta - h * e)) / (2 * h)
        assert quotient == pytest.approx(float(posed.exact_hypergradient() @ e), rel=1e-6, abs=1e-9)
    if name != "scalar_tv":
        best = posed.exact_optimum()
        assert posed.exact_hypergradient(best).norm() < 1e-10
        for e in torch.eye(theta.numel(), dtype=torch.float64):
            assert posed.exact_loss(best) < min(
                posed.exact_loss(best + 0.1 * e), posed.exact_loss(best - 0.1 * e)
            )


# --- the batch and its cost -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["quadratic", "tv", "foe"])
def test_the_hypergradient_is_the_mean_over_images(name):
    posed = oracle(name).problem
    x, y = posed.pairs.x, posed.pairs.y

    def of(index: list[int]) -> Tensor:
        part = BilevelProblem(posed.energy, Pairs(x=x[index], y=y[index]), posed.loss)
        return hypergradient(part, 1e-9, 1e-10, strategy=Implicit()).value

    whole = of([0, 1, 2])
    close(of([2, 0, 1]), whole, 1e-8)
    close((of([0]) + of([1]) + of([2])) / 3, whole, 1e-8)
    close((2 * of([1, 2]) + of([0])) / 3, whole, 1e-8)
    close(of([1, 1]), of([1]), 1e-8)


@pytest.mark.parametrize("name", ["quadratic", "tv", "foe", "sum"])
def test_groups_do_not_change_the_mixed_product(name):
    posed = oracle(name).problem
    x, y = posed.pairs.x, posed.pairs.y
    q = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    energy = posed.energy.with_theta(posed.theta)
    whole = mixed_product(energy, x, y, q)
    assert whole.shape == posed.theta.shape and not whole.requires_grad
    for group in (1, 2):
        close(mixed_product(energy, x, y, q, group), whole, 1e-12)
    assert all(p.grad is None for p in energy.parameters())


@pytest.mark.parametrize("name", ["quadratic", "scalar_tv", "tv", "foe"])
def test_the_linear_system_is_solved_as_asked_and_counted(name):
    posed = oracle(name).problem
    energy = posed.energy.with_theta(posed.theta)
    solution = solve(energy, posed.pairs.y, 1e-6)
    strategy = Implicit()
    loose, tight = (gradient_of(strategy, posed, energy, solution, delta) for delta in (1e-2, 1e-8))
    for result, delta in ((loose, 1e-2), (tight, 1e-8)):
        hessian = energy.at(posed.pairs.y).linearize(solution.value)
        residual = (
            (hessian(result.adjoint) - posed.loss.grad(solution.value, posed.pairs.x))
            .flatten(1)
            .norm(dim=1)
        )
        torch.testing.assert_close(result.residual, residual, rtol=1e-6, atol=1e-12)
        assert (result.residual <= delta).all() and all(s.ok for s in result.status)
        assert result.cost.mixed_products == posed.size and result.cost.gradients == 0
    assert loose.cost.cg_steps < tight.cost.cg_steps
    warm = gradient_of(strategy, posed, energy, solution, 1e-8, adjoint=tight.adjoint)
    assert warm.cost.cg_steps == 0 and torch.equal(warm.value, tight.value)


def test_the_front_door_adds_the_cost_of_the_solve_and_takes_theta():
    posed = oracle("tv").problem
    theta = posed.theta + torch.tensor([0.2, -0.1])
    direct = hypergradient(posed, 1e-6, 1e-6, theta=theta, strategy=Implicit())
    moved = BilevelProblem(posed.energy.with_theta(theta), posed.pairs)
    assert torch.equal(hypergradient(moved, 1e-6, 1e-6, strategy=Implicit()).value, direct.value)
    assert direct.cost.gradients == solve(moved.energy, posed.pairs.y, 1e-6).cost.gradients > 0
    assert direct.value.shape == (2,) and direct.norm == pytest.approx(float(direct.value.norm()))
    assert "d=2" in repr(direct) and "certified" in repr(direct) and direct.to_dict()["value"]


def test_nothing_lent_is_changed():
    posed = oracle("foe").problem
    lent = [posed.pairs.x, posed.pairs.y, *posed.energy.parameters()]
    kept, random = [t.clone() for t in lent], torch.get_rng_state()
    hypergradient(posed, 1e-4, 1e-4)
    assert all(torch.equal(a, b) for a, b in zip(lent, kept, strict=True))
    assert all(p.grad is None and p.requires_grad for p in trainable(posed.energy))
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(posed.theta, flatten(trainable(posed.energy)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eps": 0.0, "delta": 1e-3}, "eps: given 0.0"),
        ({"eps": 1e-3, "delta": 0.0}, "delta: given 0.0"),
        ({"eps": 1e-3, "delta": -1.0}, "delta: given -1.0"),
        ({"eps": math.nan, "delta": 1e-3}, "eps: given nan"),
        (
            {"eps": 1e-3, "delta": 1e-3, "theta": torch.zeros(5)},
            r"theta: given shape \(5,\); expected shape \(2,\)",
        ),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        hypergradient(oracle("tv").problem, **arguments)


def test_a_linear_solve_that_fell_short_says_so():
    posed = oracle("quadratic").problem
    result = hypergradient(
        posed, 1e-6, 1e-10, strategy=Implicit(linear=CG(max_steps=2, restarts=0))
    )
    assert not any(s.ok for s in result.status) and (result.residual > 1e-10).all()
    error = float((result.value - oracle("quadratic").exact).norm())
    assert error > 1e-4 and result.certified is not None and error <= result.certified
