"""The truncated Neumann series: what it computes, what it costs, and a bound that holds however
short it is.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.hypergradients.pulls import gradient_of
from tests.hypergradients.test_bounds import OfEstimatedConvexity, WithoutCertificates, posed
from tests.hypergradients.test_triangle import NAMES, Pairs, close, oracle
from tests.learners.cases import Watched, assert_certified, exact_loss, pictures, run
from tests.regularizers.cases import denoising, problem, tv
from torch import Tensor

import learnreg
from learnreg.core.bounds import Bound, Curvature
from learnreg.core.errors import MissingPropertyError
from learnreg.core.status import Status
from learnreg.hypergradients import Implicit, JacobianFree, Unrolled, hypergradient
from learnreg.learners import MAID, FixedAccuracy
from learnreg.problems import BilevelProblem, gallery
from learnreg.regularizers import TV
from learnreg.solvers import solve


class Counted:
    """An energy that counts what is evaluated, per image and call, under the names of ``Cost``."""

    def __init__(self, energy) -> None:
        self.energy, self.calls, self.largest = energy, Counter(), 0

    def parameters(self):
        return self.energy.parameters()

    def named_parameters(self):
        return self.energy.named_parameters()

    def named_buffers(self):
        return self.energy.named_buffers()

    def start(self, y: Tensor) -> Tensor:
        return self.energy.start(y)

    def certificate(self, name: str, *args: object) -> object:
        return self.energy.certificate(name, *args)

    def directional(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        self.calls["mixed_products"] += len(x)
        self.largest = max(self.largest, len(x))
        return self.energy.directional(x, y, v)

    def data_adjoint(self, x: Tensor, y: Tensor, q: Tensor) -> Tensor:
        return self.energy.data_adjoint(x, y, q)

    def at(self, y: Tensor, x: Tensor | None = None) -> CountedAt:
        return CountedAt(self.energy.at(y, x), self.calls)

    def check(self, cost) -> None:
        """The counters of ``cost`` are those of the calls."""
        assert {k: v for k, v in cost.to_dict().items() if v} == dict(self.calls)


class CountedAt:
    """Its potentials."""

    def __init__(self, f, calls: Counter) -> None:
        self.f, self.calls = f, calls

    def grad(self, x: Tensor) -> Tensor:
        self.calls["gradients"] += len(x)
        return self.f.grad(x)

    def linearize(self, x: Tensor):
        self.calls["linearizations"] += len(x)
        hessian = self.f.linearize(x)

        def product(v: Tensor) -> Tensor:
            self.calls["hessian_products"] += len(v)
            return hessian(v)

        return product

    def bounds(self) -> Curvature:
        return self.f.bounds()

    def double(self) -> CountedAt:
        return CountedAt(self.f.double(), self.calls)


def solved(name: str, eps: float = 1e-2):
    """A problem, its energy at the present theta, and a solution to eps."""
    p = oracle(name).problem
    energy = p.energy.with_theta(p.theta)
    return p, energy, solve(energy, p.pairs.y, eps)


# --- what is computed -----------------------------------------------------------------------------


@pytest.mark.parametrize("step", [None, 0.07])
@pytest.mark.parametrize("terms", [1, 2, 9])
@pytest.mark.parametrize("name", NAMES)
def test_it_is_the_series_with_dense_matrices(name, terms, step):
    """H and J by autograd of the plain formula, powers of I - tau H written out."""
    p, energy, solution = solved(name)
    x, theta = solution.value.clone().requires_grad_(), p.theta.requires_grad_()
    size, n = p.size, x[0].numel()
    g = oracle(name).formula(x, theta).reshape(size, n)
    rows = [
        torch.autograd.grad(g[:, j].sum(), x, retain_graph=True)[0].reshape(size, n)
        for j in range(n)
    ]
    h, b = torch.stack(rows, dim=1), p.loss.grad(x.detach(), p.pairs.x).reshape(size, n, 1)
    curvature = energy.at(p.pairs.y).bounds()
    tau = step or 2 / (curvature.mu.value + curvature.L.value)
    shrink = torch.eye(n, dtype=torch.float64) - tau * h
    q = tau * sum(torch.linalg.matrix_power(shrink, j) @ b for j in range(terms))
    (mixed,) = torch.autograd.grad((g * q[..., 0]).sum(), theta)
    result = gradient_of(JacobianFree(terms, step), p, energy, solution, 1e-3)
    close(result.value, -mixed / size, 1e-10)
    close(result.adjoint.reshape(size, n), q[..., 0], 1e-10)
    remainder = torch.linalg.matrix_power(shrink, terms) @ b
    torch.testing.assert_close(
        result.residual, remainder[..., 0].norm(dim=1), rtol=1e-9, atol=1e-13
    )


@pytest.mark.parametrize("name", NAMES)
def test_one_term_differentiates_one_gradient_step(name):
    p, energy, solution = solved(name)
    theta, x, bounds = p.theta.requires_grad_(), solution.value, energy.at(p.pairs.y).bounds()
    step = x - 2 / (bounds.mu.value + bounds.L.value) * oracle(name).formula(x, theta)
    slope = p.loss.grad(x, p.pairs.x)
    (expected,) = torch.autograd.grad((slope * step).sum() / p.size, theta)
    close(gradient_of(JacobianFree(), p, energy, solution, 1.0).value, expected, 1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_many_terms_are_the_closed_form(name):
    few, many = (
        hypergradient(oracle(name).problem, 1e-10, 1e-9, strategy=JacobianFree(t)) for t in (1, 300)
    )
    close(many.value, oracle(name).exact, 1e-7)
    assert float((few.value - oracle(name).exact).norm()) > 1e3 * float(
        (many.value - oracle(name).exact).norm()
    )
    assert all(s.ok for s in many.status) and not any(s.ok for s in few.status)


@pytest.mark.parametrize("name", ["quadratic", "scalar_tv", "tv", "foe"])
def test_the_residual_falls_as_fast_as_the_condition_says(name):
    p, energy, solution = solved(name)
    bounds = energy.at(p.pairs.y).bounds()
    rate = (bounds.L.value - bounds.mu.value) / (bounds.L.value + bounds.mu.value)
    size = p.loss.grad(solution.value, p.pairs.x).flatten(1).norm(dim=1)
    for terms in (1, 4, 16):
        residual = gradient_of(JacobianFree(terms), p, energy, solution, 1.0).residual
        assert (
            residual.dtype == torch.float64
            and (residual <= rate**terms * size * (1 + 1e-9) + 1e-15).all()
        )


def test_delta_decides_on_the_status_alone_and_a_warm_start_on_nothing():
    p, energy, solution = solved("tv")
    plain = gradient_of(JacobianFree(3), p, energy, solution, 1e-300)
    middle = float(plain.residual.sort().values[1])
    warm = gradient_of(
        JacobianFree(3), p, energy, solution, middle, adjoint=torch.ones_like(solution.value)
    )
    assert torch.equal(plain.value, warm.value) and torch.equal(plain.adjoint, warm.adjoint)
    assert set(plain.status) == {Status.MAX_STEPS}
    assert [s is Status.CONVERGED for s in warm.status] == (plain.residual <= middle).tolist()
    assert set(warm.status) == {Status.CONVERGED, Status.MAX_STEPS}
    assert plain.estimated is None and plain.correction is None


@pytest.mark.parametrize("terms", [1, 5])
@pytest.mark.parametrize("name", ["scalar_tv", "tv", "foe"])
def test_everything_is_counted(name, terms):
    p, energy, solution = solved(name)
    counted = Counted(energy)
    cost = gradient_of(JacobianFree(terms, group=2), p, counted, solution, 1e-3).cost
    assert (
        cost.hessian_products == terms * p.size
        and cost.mixed_products == cost.linearizations == p.size
    )
    counted.check(cost)
    assert counted.largest == 2, "images in one reverse-mode call"


@pytest.mark.parametrize("name", ["quadratic", "tv", "foe"])
def test_the_batch_is_a_list_of_strangers(name):
    p, energy, solution = solved(name)
    whole = gradient_of(JacobianFree(4), p, energy, solution, 1e-3)
    parts = []
    for i in ([2], [0, 1]):
        part = BilevelProblem(p.energy, Pairs(x=p.pairs.x[i], y=p.pairs.y[i]), p.loss)
        of = replace(solution, value=solution.value[i], error=solution.error[i])
        parts.append(gradient_of(JacobianFree(4), part, energy, of, 1e-3))
        torch.testing.assert_close(parts[-1].adjoint, whole.adjoint[i], rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(parts[-1].residual, whole.residual[i], rtol=1e-10, atol=1e-14)
    close((parts[0].value + 2 * parts[1].value) / 3, whole.value, 1e-12)
    assert (parts[0].certified + 2 * parts[1].certified) / 3 == pytest.approx(
        whole.certified, rel=1e-9
    )


# --- what is certified ----------------------------------------------------------------------------


def assert_bounded(
    p: BilevelProblem, exact: Tensor, loss: float, strategy: JacobianFree, eps: float
) -> None:
    """Both bounds are attained by problems of one pixel, so that rounding needs a little room."""
    result = hypergradient(p, eps, 1e-3, strategy=strategy)
    assert result.certified is not None
    error, room = float((result.value.double() - exact).norm()), 1e-12 * (1 + result.norm)
    assert error <= result.certified + room, (strategy, eps, result)
    assert (
        result.bracket[0] <= loss * (1 + 1e-12) + 1e-13
        and loss <= result.bracket[1] * (1 + 1e-12) + 1e-13
    )


@settings(max_examples=60, deadline=None)
@given(
    images=st.integers(1, 3),
    n=st.integers(1, 6),
    d=st.integers(1, 4),
    condition=st.floats(1, 1e3),
    seed=st.integers(0, 99),
    terms=st.integers(1, 40),
    eps=st.sampled_from([1.0, 1e-2, 1e-5]),
    factor=st.sampled_from([None, 0.1, 1.0, 1.9, 2.3]),
)
def test_the_bound_holds_for_any_quadratic_and_any_series(
    images, n, d, condition, seed, terms, eps, factor
):
    """Also for series that diverge: the residual is measured, not assumed."""
    p = gallery.quadratic(images, n, d, condition, seed)
    step = None if factor is None else factor / condition
    assert_bounded(p, p.exact_hypergradient(), p.exact_loss(), JacobianFree(terms, step), eps)


@settings(max_examples=60, deadline=None)
@given(
    weight=st.floats(0.01, 1),
    smoothing=st.floats(0.005, 1),
    seed=st.integers(0, 99),
    terms=st.integers(1, 40),
    eps=st.sampled_from([0.3, 1e-2, 1e-5]),
    factor=st.sampled_from([None, 0.1, 1.0, 1.9, 2.3]),
)
def test_the_bound_holds_for_any_two_pixels_and_any_series(
    weight, smoothing, seed, terms, eps, factor
):
    p = gallery.scalar_tv(3, weight, smoothing, seed)
    step = None if factor is None else factor / p.energy.bounds().L.value
    assert_bounded(p, p.exact_hypergradient(), p.exact_loss(), JacobianFree(terms, step), eps)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("terms", [1, 3, 30])
@pytest.mark.parametrize("name", ["tv", "foe", "image_tv", "image_sum"])
def test_the_bound_holds_for_images(name, terms, dtype):
    p, _, exact, loss = posed(name, dtype)
    for eps in (1e-1, 1e-3):
        assert_bounded(p, exact, loss, JacobianFree(terms), eps)


def test_the_bound_is_of_use():
    p, _, exact, _ = posed("quadratic")
    for terms in (1, 10, 100):
        result = hypergradient(p, 1e-8, 1e-8, strategy=JacobianFree(terms))
        assert result.certified <= 30 * float((result.value - exact).norm())


@pytest.mark.parametrize("kind", [WithoutCertificates, OfEstimatedConvexity])
def test_without_a_proven_constant_nothing_is_called_certified(kind):
    p = problem(denoising(kind(0.05, 0.2).double()), count=2, size=(4, 5))
    assert hypergradient(p, 1e-2, 1e-3, strategy=JacobianFree()).certified is None


def test_a_certificate_can_be_left_out():
    p = problem(denoising(tv(True)), count=2, size=(4, 5))
    with_bound, without = (
        hypergradient(p, 1e-2, 1e-3, strategy=JacobianFree(certify=c)) for c in (True, False)
    )
    assert with_bound.certified is not None and without.certified is None
    assert torch.equal(with_bound.value, without.value) and with_bound.cost == without.cost


def test_a_series_that_overflows_says_so_and_certifies_nothing():
    p, energy, solution = solved("quadratic")
    result = gradient_of(JacobianFree(terms=5, step=1e200), p, energy, solution, 1e-3)
    assert set(result.status) == {Status.NOT_FINITE} and result.certified == math.inf


# --- learners -------------------------------------------------------------------------------------


@pytest.mark.parametrize("terms", [1, 8])
@pytest.mark.parametrize(
    "learner", [MAID(), MAID(memory=0), FixedAccuracy(eps=1e-2)], ids=lambda v: type(v).__name__
)
def test_every_accepted_step_decreases_the_exact_loss(learner, terms):
    p, watched = pictures(TV(0.01, 0.02)), Watched(learner)
    outcome = run(p, watched, steps=8, hypergradient=JacobianFree(terms))
    losses = [exact_loss(p, theta) for theta in outcome.thetas]
    assert_certified(p, watched, outcome, losses)
    assert len(losses) > 3 and losses[-1] < 0.8 * losses[0]
    rows = outcome.record.rows[1:]
    assert all(row["omega_estimated"] is None for row in rows)
    certified = [row["omega_certified"] for row in rows]
    if isinstance(learner, FixedAccuracy):
        assert certified == [None] * len(rows), "nothing would react to it, so nobody asks"
    else:
        assert min(certified) > 0


def test_maid_stops_where_the_series_shows_no_way_down():
    """Short series end at a point of their own, by a search that no step passes; long ones at the
    optimum.
    """
    p = gallery.quadratic(images=3, n=6, d=3, condition=50.0)
    best = p.exact_loss(p.exact_optimum())
    gaps = {}
    for terms in (2, 500):
        outcome = run(p, MAID(rounds=5), steps=200, hypergradient=JacobianFree(terms))
        assert outcome.stop.code in ("line_search", "accuracy_floor")
        gaps[terms] = p.exact_loss(outcome.theta) - best
    assert 1e-4 < gaps[2] < 0.1 * (p.exact_loss() - best) and 0 <= gaps[500] < 1e-9


def test_the_certified_test_refuses_a_series_that_no_delta_makes_longer():
    p = gallery.quadratic(images=2, n=3, d=2)
    with pytest.raises(
        MissingPropertyError, match=r"hypergradient: given JacobianFree\(terms=1.*Use Implicit\(\)"
    ):
        run(p, MAID(test="certified"), hypergradient=JacobianFree())
    outcome = run(p, MAID(test="certified"), steps=1, hypergradient=Implicit(certify=False))
    row = outcome.record.rows[-1]
    assert row["omega_certified"] > 0 and row["omega_estimated"] is None, "the learner asks"


# --- bad values -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *(
            ({"terms": v}, f"terms: given {v}; expected an integer >= 1")
            for v in (0, -1, 1.5, True, None, math.inf)
        ),
        *(
            ({"step": v}, f"step: given {v}; expected a positive finite number")
            for v in (0.0, -0.1, math.nan, math.inf)
        ),
        *(({"group": v}, f"group: given {v}; expected an integer >= 1") for v in (0, 2.0)),
        ({"certify": 1}, "certify: given 1; expected True or False"),
    ],
)
def test_bad_values_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        JacobianFree(**arguments)


class WithoutConvexity(TV):
    def bounds(self) -> Curvature:
        return Curvature(Bound.unknown(), super().bounds().L)


def test_a_lower_level_without_strong_convexity_is_refused():
    p, _, solution = solved("tv")
    flat = denoising(WithoutConvexity().double())
    with pytest.raises(MissingPropertyError, match="mu > 0"):
        gradient_of(JacobianFree(), p, flat, solution, 1e-3)


def test_both_stand_at_the_front_of_the_house():
    assert learnreg.JacobianFree is JacobianFree and JacobianFree() == JacobianFree(
        1, None, True, 4
    )
    assert learnreg.Unrolled is Unrolled and Unrolled() == Unrolled(
        20, "data", "agd", None, None, 4
    )
