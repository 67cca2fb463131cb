"""The front door ``solve``: what it promises, image by image, and how it refuses."""

from __future__ import annotations

import math
import re

import deepinv
import pytest
import torch
from tests.regularizers.cases import ENERGIES, denoising, foe, pairs, tv
from torch import Tensor

from learnreg.core.bounds import Bound, Curvature, Kind
from learnreg.core.errors import InputError, LearnregError, MissingPropertyError, SolveError
from learnreg.core.status import Status
from learnreg.problems import KL, Energy, gallery
from learnreg.regularizers import TV, Tikhonov
from learnreg.solvers import AGD, minimize, solve

EPS = torch.tensor([1e-1, 1e-7, 1e-3, 1e-5, 1e-2], dtype=torch.float64)


class Watched:
    """A potential that counts its gradients per image; a hook may change them."""

    def __init__(self, inner, calls: Tensor, index: Tensor, hook=None) -> None:
        self.inner, self.calls, self.index, self.hook = inner, calls, index, hook

    def grad(self, x: Tensor) -> Tensor:
        self.calls[self.index] += 1
        g = self.inner.grad(x)
        return g if self.hook is None else self.hook(g, self.index, self.calls[self.index])

    def value(self, x: Tensor) -> Tensor:
        raise AssertionError("no solver here needs values")

    linearize = value

    def bounds(self):
        return self.inner.bounds()

    def select(self, index: Tensor) -> Watched:
        return Watched(self.inner.select(index), self.calls, self.index[index], self.hook)

    def double(self) -> Watched:
        return Watched(self.inner.double(), self.calls, self.index, self.hook)


class WatchedEnergy:
    """An energy whose potentials are watched: ``calls`` (b,) after a solve."""

    def __init__(self, energy, hook=None) -> None:
        self.energy, self.hook, self.calls = energy, hook, torch.zeros(0)

    def start(self, y: Tensor) -> Tensor:
        return self.energy.start(y)

    def at(self, y: Tensor, x: Tensor | None = None) -> Watched:
        self.calls = torch.zeros(y.shape[0], dtype=torch.int64)
        return Watched(self.energy.at(y, x), self.calls, torch.arange(y.shape[0]), self.hook)


@pytest.fixture(params=ENERGIES)
def energy(request: pytest.FixtureRequest) -> Energy:
    return ENERGIES[request.param]()


# --- what is promised -----------------------------------------------------------------------------


def test_every_image_gets_the_accuracy_asked_for_it(energy):
    y = pairs(5).y
    solution = solve(energy, y, EPS)
    assert solution.ok and solution.kind == Kind.EXACT
    assert (solution.error <= EPS).all() and solution.error.dtype == torch.float64
    closing = energy.widened().at(y).grad(solution.value)
    torch.testing.assert_close(
        solution.gradient_norm, closing.flatten(1).norm(dim=1), rtol=1e-9, atol=1e-15
    )
    torch.testing.assert_close(solution.gradient, closing, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(solution.error, solution.gradient_norm / energy.bounds().mu.value)
    order = EPS.argsort(descending=True)
    steps = solution.steps[order].tolist()
    assert steps[0] < steps[2] < steps[4], "a looser image stops sooner"


def test_an_image_does_not_see_its_neighbours(energy):
    y = pairs(5).y
    whole = solve(energy, y, EPS)
    order = torch.tensor([4, 2, 0, 3, 1])
    shuffled = solve(energy, y[order], EPS[order])
    torch.testing.assert_close(shuffled.value, whole.value[order], rtol=0, atol=1e-10)
    assert torch.equal(shuffled.steps, whole.steps[order])
    for part in (slice(0, 1), slice(1, 4), slice(4, 5)):
        half = solve(energy, y[part], EPS[part])
        torch.testing.assert_close(half.value, whole.value[part], rtol=0, atol=1e-10)
        assert torch.equal(half.steps, whole.steps[part])
    copies = solve(energy, y[:1].expand(3, *y.shape[1:]), 1e-5)
    assert len(set(copies.steps.tolist())) == 1
    torch.testing.assert_close(
        copies.value, copies.value[:1].expand_as(copies.value), rtol=0, atol=1e-10
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_work_is_what_was_done(energy, dtype):
    y = pairs(5).y.to(dtype)
    watched = WatchedEnergy(energy.with_theta(energy_theta(energy).to(dtype)))
    solution = solve(watched, y, EPS, throw=False)
    assert solution.cost.gradients == solution.cost.work == int(watched.calls.sum())
    closing = (
        watched.calls - solution.steps - 1
    )  # one gradient to start with, one per step, at least one to close
    assert ((closing >= 1) & (closing <= 5)).all()


def test_a_restart_of_one_image_is_its_own():
    """A mu far below the true curvature makes momentum overshoot, so that images restart, each at
    its own time.
    """
    problem = gallery.quadratic(images=4, n=10, condition=300.0, seed=2)
    problem.energy.mu = 1e-3
    y = problem.pairs.y
    whole = solve(problem.energy, y, 1e-3)
    assert honest(whole.value, problem.exact_solution(), whole.error)
    for i in range(4):
        alone = solve(problem.energy, y[i : i + 1], 1e-3)
        assert alone.steps[0] == whole.steps[i]
        torch.testing.assert_close(alone.value[0], whole.value[i], rtol=0, atol=1e-9)
    assert whole.steps.max() < 500, (
        "momentum for mu = 0.001 alone would oscillate for thousands of steps"
    )


def honest(x: Tensor, truth: Tensor, error: Tensor) -> bool:
    return bool(((x - truth).flatten(1).norm(dim=1) <= error).all())


def energy_theta(energy: Energy) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in energy.parameters()])


def test_optimism_changes_the_path_not_the_answer(energy):
    y, eps = pairs(3).y, 1e-7
    answers = [solve(energy, y, eps, solver=AGD(optimism=o)) for o in (1.0, 0.25, 0.1)]
    for other in (*answers[1:], solve(energy, y, eps, solver="agd")):
        assert (other.value - answers[0].value).flatten(1).norm(dim=1).max() <= 2 * eps
    assert len({tuple(a.steps.tolist()) for a in answers}) > 1, "the setting has an effect"


@pytest.mark.parametrize("optimism", [1.0, 0.1])
def test_acceleration_pays(optimism):
    """About sqrt(L / mu) log(1 / eps) steps, where plain gradient steps would take L / mu log(1 /
    eps).
    """
    problem = gallery.quadratic(images=2, n=30, condition=1e4)
    solution = solve(problem.energy, problem.pairs.y, 1e-6, solver=AGD(optimism))
    scale = problem.exact_solution().norm(dim=1).max()
    assert solution.steps.max() < 2.5 * 1e2 * math.log(1e2 * float(scale) / 1e-6)


def test_a_start_at_the_minimizer_costs_two_gradients(energy):
    y = pairs(3).y
    tight = solve(energy, y, 1e-9).value
    watched = WatchedEnergy(energy)
    again = solve(watched, y, 1e-6, x0=tight)
    assert again.steps.tolist() == [0, 0, 0] and torch.equal(again.value, tight)
    assert watched.calls.tolist() == [2, 2, 2], "one to look, one to certify"
    # next to an image that has to run
    mixed = solve(energy, y, 1e-6, x0=torch.cat([tight[:1], y[1:]]))
    assert mixed.steps[0] == 0 < mixed.steps[1] and mixed.ok


def test_a_gradient_of_zero_at_the_start():
    flat = torch.full((2, 1, 5, 6), 0.4, dtype=torch.float64)
    flat[1] += pairs(1).y[0]
    solution = solve(denoising(tv(True)), flat, 1e-8)
    assert (
        solution.ok
        and solution.gradient_norm[0] == 0
        and solution.error[0] <= 1e-12  # the allowance for rounding
        and solution.steps[0] == 0
        and torch.equal(solution.value[0], flat[0])
    )
    assert solution.steps[1] > 0


def test_nothing_lent_is_changed(energy):
    y = pairs(3).y
    x0, eps = torch.zeros_like(y), EPS[:3].clone()
    kept = [t.clone() for t in (y, x0, eps, *energy.parameters())]
    flags, random = [p.requires_grad for p in energy.parameters()], torch.get_rng_state()
    solution = solve(energy, y, eps, x0=x0)
    solve(energy, y, 1e9, x0=x0).value.add_(1)  # solved at the start: still not the start itself
    solution.value.add_(1), solution.error.add_(1)
    assert all(
        torch.equal(a, b) for a, b in zip((y, x0, eps, *energy.parameters()), kept, strict=True)
    )
    assert [p.requires_grad for p in energy.parameters()] == flags and torch.equal(
        torch.get_rng_state(), random
    )
    assert not solve(energy, y, 1e-2, x0=x0.requires_grad_()).value.requires_grad


def test_a_solution_speaks_and_names_the_solver(energy):
    solution = solve(energy, pairs(2).y, 1e-3)
    assert re.match(r"(agd|lbfgs) \(auto: L/mu = ", solution.solver)
    assert "2 images, certified distance <= " in repr(
        solution
    ) and "all 2: the accuracy asked for" in repr(solution)
    assert set(solution.to_dict()) >= {"error", "kind", "status", "steps", "cost", "solver"}
    assert solve(energy, pairs(2).y, 1e-3, solver="agd").solver == "agd"


# --- what can go wrong ----------------------------------------------------------------------------


def test_below_the_floor_of_float32_the_smallest_eps_is_named(energy):
    y = pairs(3).y.float()
    single = energy.with_theta(energy_theta(energy).float())
    with pytest.raises(SolveError) as caught:
        solve(single, y, 1e-11)
    solution = caught.value.solution
    assert solution.status == (Status.ROUNDING_FLOOR,) * 3 and not solution.ok
    assert "ask for a larger eps or use float64" in str(caught.value)
    for i in range(3):
        assert f"image {i}: {float(solution.error[i]):.2e}" in str(caught.value)
    assert solution.error.max() < 1e-4, "it went as far as it could"
    assert solution.steps.max() < 2000, "and then gave up"
    attainable = solve(single, y, 2 * solution.error)
    assert attainable.ok, "what is named as reachable can be had"


def test_only_the_images_that_failed_are_listed():
    energy = denoising(tv(True, 0.1, 0.05)).with_theta(torch.tensor([-2.0, -3.0]))
    with pytest.raises(SolveError, match="1 of 3: the accuracy asked for lies below") as caught:
        solve(energy, pairs(3).y.float(), torch.tensor([1e-2, 1e-12, 1e-3]))
    assert "image 1: " in str(caught.value) and "image 0" not in str(caught.value)
    assert [s.ok for s in caught.value.solution.status] == [True, False, True]


@pytest.mark.parametrize("budget", [1, 3])
def test_the_step_limit_is_a_status_and_the_certificate_still_holds(energy, budget):
    y = pairs(3).y
    solution = solve(energy, y, 1e-9, budget=budget, throw=False)
    assert solution.status == (Status.MAX_STEPS,) * 3 and solution.steps.tolist() == [budget] * 3
    truth = solve(energy, y, 1e-10).value
    assert (
        (solution.value - truth).flatten(1).norm(dim=1) <= solution.error
    ).all() and solution.error.isfinite().all()
    with pytest.raises(SolveError, match="largest number of steps"):
        solve(energy, y, 1e-9, budget=budget)


def test_a_stop_from_outside_is_a_status():
    energy, y = denoising(tv(True, 0.1, 0.05)), pairs(3).y
    asked = []
    solution = minimize(
        energy.at(y), 1e-9, AGD(), y, should_stop=lambda: asked.append(1) or len(asked) > 4
    )
    assert solution.status == (Status.BUDGET,) * 3 and solution.steps.tolist() == [4] * 3
    assert solution.error.isfinite().all()


@pytest.mark.parametrize("appears", [1, 2, 10])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_on_the_way_stays_in_its_image(appears, value):
    def breaks(g: Tensor, index: Tensor, calls: Tensor) -> Tensor:
        g = g.clone()
        g.view(g.shape[0], -1)[(index == 1) & (calls >= appears), 2] = value
        return g

    energy, y = denoising(foe(weight=0.1, smoothing=0.05)), pairs(3).y
    solution = solve(WatchedEnergy(energy, breaks), y, 1e-6, throw=False)
    assert solution.status == (Status.CONVERGED, Status.NOT_FINITE, Status.CONVERGED)
    clean = solve(energy, y, 1e-6)
    torch.testing.assert_close(solution.value[[0, 2]], clean.value[[0, 2]], rtol=0, atol=1e-10)
    assert solution.value.isfinite().all() and solution.error[1] == math.inf
    with pytest.raises(SolveError, match="1 of 3: NaN or Inf appeared"):
        solve(WatchedEnergy(energy, breaks), y, 1e-6)


@pytest.mark.parametrize(
    "entry", ["log_weight", "log_smoothing", "log_scale", "log_smoothings", "kernels"]
)
@pytest.mark.parametrize("value", [math.nan, math.inf, 800.0, -800.0])
def test_parameters_out_of_range_end_in_an_error_of_the_library(entry, value):
    """NaN, or an exponential that overflows or vanishes, as a learner's step too far gives."""
    regularizer = tv(True) if entry in ("log_weight", "log_smoothing") else foe(filters=2)
    with torch.no_grad():
        getattr(regularizer, entry).view(-1)[-1] = value
    try:
        solution = solve(denoising(regularizer), pairs(2).y, 1e-3, budget=100)
    except LearnregError:
        return
    assert not math.isnan(value) and solution.ok and solution.value.isfinite().all()


@pytest.mark.parametrize(
    "physics",
    [
        deepinv.physics.Inpainting((1, 5, 6), mask=(pairs(1).y[0] > 0.4).double()),
        deepinv.physics.Blur(filter=torch.ones(1, 1, 3, 3).double() / 9, padding="circular"),
    ],
)
def test_an_energy_without_strong_convexity_is_refused_with_the_remedy(physics):
    y = pairs(2).y
    with pytest.raises(
        MissingPropertyError, match=r"energy: given strong convexity mu = 0.*mu > 0.*Tikhonov"
    ):
        solve(Energy(physics, TV().double()), y, 1e-2)
    solution = solve(Energy(physics, (TV() + Tikhonov(0.5)).double()), y, 1e-2)
    assert solution.ok and solution.kind.certifies, "the remedy works"


class OfUnknownSmoothness(TV):
    def bounds(self) -> Curvature:
        return Curvature(Bound.exact(0.0), Bound.unknown())


def test_an_energy_of_unknown_smoothness_is_refused_before_the_first_step():
    """Accelerated gradient needs L: a component declares its needs and is refused if they are
    missing.
    """
    watched = WatchedEnergy(denoising(OfUnknownSmoothness().double()))
    with pytest.raises(MissingPropertyError, match="energy"):
        solve(watched, pairs(2).y, 1e-2, budget=50)
    assert watched.calls.sum() == 0


@pytest.mark.parametrize(
    ("eps", "message"),
    [
        (0, "eps: given 0; expected a positive finite distance. Pass a positive eps"),
        (-1e-3, "eps: given -0.001"),
        (math.nan, "eps: given nan"),
        (math.inf, "eps: given inf"),
        (torch.tensor([1e-2, 0.0]), "eps: given tensor"),
        (torch.ones(3), r"eps: given 3 values; expected one value or one per image \(2\)"),
    ],
)
def test_a_bad_eps_is_refused(eps, message):
    with pytest.raises(InputError, match=message):
        solve(denoising(tv(True)), pairs(2).y, eps)


@pytest.mark.parametrize("budget", [0, -1, 1.5])
def test_a_bad_budget_is_refused(budget):
    with pytest.raises(
        InputError, match=f"budget: given {budget}; expected a positive number of solver steps"
    ):
        solve(denoising(tv(True)), pairs(2).y, 1e-2, budget=budget)


def test_an_unknown_solver_is_refused():
    with pytest.raises(
        InputError, match="solver: given 'simplex'; expected 'auto' or one of 'agd'"
    ):
        solve(denoising(tv(True)), pairs(2).y, 1e-2, solver="simplex")


def spoiled(value: float) -> Tensor:
    y = pairs(3).y
    y[1, 0, 2, 2] = value
    return y


@pytest.mark.parametrize("make", [lambda: tv(True), lambda: foe()], ids=["tv", "foe"])
@pytest.mark.parametrize(
    ("y", "message"),
    [
        (spoiled(math.nan), "y: given NaN or Inf in image 1; expected finite pixels"),
        (spoiled(-math.inf), "y: given NaN or Inf in image 1"),
        (torch.zeros(0, 1, 5, 6).double(), r"y: given shape \(0, 1, 5, 6\)"),
        (torch.zeros(1, 1, 0, 6).double(), "y: given shape"),
        (torch.zeros(30).double(), r"y: given shape \(30,\)"),
        (
            torch.zeros(1, 1, 5, 6, dtype=torch.uint8),
            "y: given torch.uint8; expected a floating-point tensor",
        ),
        ([[0.0]], "y: given list"),
        (torch.rand(5, 6).double(), r"[xy]: given shape \(5, 6\)"),
    ],
)
def test_bad_measurements_are_refused(make, y, message):
    with pytest.raises(InputError, match=message):
        solve(denoising(make()), y, 1e-2)


@pytest.mark.parametrize("make", [lambda: tv(True), lambda: foe()], ids=["tv", "foe"])
@pytest.mark.parametrize(
    "x0",
    [
        torch.zeros(2, 1, 5, 6).double(),
        torch.zeros(3, 1, 7, 9).double(),
        torch.zeros(3, 1, 5, 1).double(),
        torch.zeros(3, 2, 5, 6).double(),
        torch.zeros(3, 5, 6).double(),
        torch.full((3, 1, 5, 6), math.nan).double(),
        torch.zeros(3, 1, 5, 6),
        torch.zeros(3, 1, 5, 6, dtype=torch.int64),
    ],
    ids=lambda x0: f"{tuple(x0.shape)}-{str(x0.dtype).removeprefix('torch.')}",
)
def test_a_start_that_does_not_fit_is_refused(make, x0):
    with pytest.raises(InputError, match=r"x0?: given"):
        solve(denoising(make()), pairs(3).y, 1e-2, x0=x0)


def test_measurements_and_parameters_of_different_precision_are_refused():
    with pytest.raises(InputError, match="float"):
        solve(denoising(foe().float()), pairs(2).y, 1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_float64_is_no_remedy_for_images_in_float64(dtype):
    y = torch.full((1, 1, 4, 4), 1e5, dtype=dtype)
    ridge = Tikhonov(0.1, learned=False)
    energy = Energy(deepinv.physics.Denoising(), ridge, KL(1e-3))
    with pytest.raises(SolveError, match="ask for a larger eps") as caught:
        solve(energy, y, eps=1e-6)
    assert ("use float64" in str(caught.value)) == (dtype == torch.float32)
