"""L-BFGS with a circulant preconditioner: what it promises image by image, and how it recovers."""

from __future__ import annotations

import math
from dataclasses import replace

import deepinv
import pytest
import torch
from tests.regularizers.cases import ENERGIES, denoising, foe, newton, pairs, tv
from tests.solvers.test_solve import energy_theta, honest
from torch import Tensor

from learnreg.core.bounds import Bound, Curvature
from learnreg.core.curvature import MeanCurvature
from learnreg.core.errors import InputError
from learnreg.core.status import Status
from learnreg.problems import Energy, gallery
from learnreg.regularizers import TV, FoE, Tikhonov
from learnreg.solvers import AGD, LBFGS, minimize, solve
from learnreg.solvers.lbfgs import REJECTIONS
from learnreg.solvers.linesearch import DESCENT, PATIENCE, RISE, accepts, shorter, watch

EPS = torch.tensor([1e-1, 1e-7, 1e-3, 1e-5, 1e-2], dtype=torch.float64)


class Watched:
    """A potential that counts gradients and averages per image; hooks may change what it gives.

    Args:
        hook: (g, index, calls) -> g.
        offers: False leaves it without ``mean_curvature``.
        factor: of the averages.
    """

    def __init__(
        self, inner, hook=None, offers: bool = True, factor: float = 1.0, counts=None, index=None
    ) -> None:
        size = inner.y.shape[0]
        self.inner, self.hook, self.offers, self.factor = inner, hook, offers, factor
        self.counts = counts or tuple(torch.zeros(size, dtype=torch.int64) for _ in range(2))
        self.index = torch.arange(size) if index is None else index
        if offers:
            self.mean_curvature = self._mean_curvature

    def grad(self, x: Tensor) -> Tensor:
        self.counts[0][self.index] += 1
        g = self.inner.grad(x)
        return g if self.hook is None else self.hook(g, self.index, self.counts[0][self.index])

    def _mean_curvature(self, x: Tensor) -> MeanCurvature | None:
        self.counts[1][self.index] += 1
        mean = self.inner.mean_curvature(x)
        return None if mean is None else self.factor * mean

    def value(self, x: Tensor) -> Tensor:
        raise AssertionError("needs no values")

    linearize = value

    def bounds(self) -> Curvature:
        return self.inner.bounds()

    def _like(self, inner, index: Tensor) -> Watched:
        return Watched(inner, self.hook, self.offers, self.factor, self.counts, index)

    def select(self, index: Tensor) -> Watched:
        return self._like(self.inner.select(index), self.index[index])

    def double(self) -> Watched:
        return self._like(self.inner.double(), self.index)


class WatchedEnergy:
    """An energy whose potentials are watched: ``gradients`` and ``averages`` (b,) after a solve."""

    def __init__(self, energy, **settings) -> None:
        self.energy, self.settings = energy, settings

    def start(self, y: Tensor) -> Tensor:
        return self.energy.start(y)

    def at(self, y: Tensor, x: Tensor | None = None) -> Watched:
        potential = Watched(self.energy.at(y, x), **self.settings)
        self.gradients, self.averages = potential.counts
        return potential


class OnePixel:
    """h(x) = phi(x) + mu / 2 x^2 for every pixel on its own, with phi' = ``slope`` between -left
    and right.

    phi' = (right - left) / 2 + (right + left) / 2 s'((x - shift) / nu): a smoothed kink at 0 (s' =
    u / sqrt(1 + u^2)).
    """

    def __init__(
        self,
        images: int,
        mu: float,
        nu: float,
        left: float = 1.0,
        right: float = 1.0,
        averages: float | None = None,
    ) -> None:
        self.mu, self.nu, self.left, self.right, self.averages = mu, nu, left, right, averages
        self.y = torch.zeros(images, 1)

    def value(self, x: Tensor) -> Tensor:
        middle, half = 0.5 * (self.right - self.left), 0.5 * (self.right + self.left)
        return (
            (middle * x + half * torch.sqrt(x * x + self.nu**2) + 0.5 * self.mu * x * x)
            .flatten(1)
            .sum(dim=1)
        )

    def grad(self, x: Tensor) -> Tensor:
        middle, half = 0.5 * (self.right - self.left), 0.5 * (self.right + self.left)
        return middle + half * x / torch.sqrt(x * x + self.nu**2) + self.mu * x

    def mean_curvature(self, x: Tensor) -> MeanCurvature:
        """As TV does it: the weight 1 / nu over 1 + u^2; or a number that is given."""
        half = 0.5 * (self.right + self.left)
        curvature = half * self.nu / (self.nu**2 + x * x) + self.mu
        curvature = curvature if self.averages is None else torch.full_like(x, self.averages)
        return MeanCurvature(curvature, curvature)

    def linearize(self, x: Tensor) -> None:
        raise AssertionError("needs no Hessian")

    def bounds(self) -> Curvature:
        return Curvature(
            Bound.exact(self.mu), Bound.exact(self.mu + 0.5 * (self.left + self.right) / self.nu)
        )

    def select(self, index: Tensor) -> OnePixel:
        return OnePixel(index.numel(), self.mu, self.nu, self.left, self.right, self.averages)

    def double(self) -> OnePixel:
        return self


@pytest.fixture(params=ENERGIES)
def energy(request: pytest.FixtureRequest) -> Energy:
    return ENERGIES[request.param]()


def deblurring(regularizer, dtype: torch.dtype = torch.float64) -> Energy:
    physics = deepinv.physics.Blur(filter=torch.ones(1, 1, 5, 5) / 25, padding="circular")
    energy = Energy(physics, regularizer)
    return energy.widened() if dtype == torch.float64 else energy


# --- it converges ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "condition"), [(1, 1.0), (6, 100.0), (12, 1e4), (20, 100.0)])
def test_quadratics_take_about_n_steps_when_all_pairs_are_kept(n, condition):
    """With exact line searches it would be n steps; these are cheap ones, and the first scale is
    unknown.
    """
    problem = gallery.quadratic(images=3, n=n, condition=condition, d=min(n, 2))
    solution = solve(problem.energy, problem.pairs.y, 1e-4, solver=LBFGS(memory=100))
    assert solution.ok and honest(solution.value, problem.exact_solution(), solution.error)
    assert solution.steps.max() <= 4 * n + 8
    few = solve(problem.energy, problem.pairs.y, 1e-4, solver="lbfgs")
    plain = solve(problem.energy, problem.pairs.y, 1e-4, solver="agd")
    assert few.ok and few.steps.max() <= plain.steps.max() + 3, (
        "no worse than momentum that knows mu"
    )


@pytest.mark.parametrize("name", ["spectrum", "scalar_tv", "scalar_tv_sharp"])
def test_the_rest_of_the_gallery(name):
    problem = {
        "spectrum": lambda: gallery.spectrum_quadratic(1e3),
        "scalar_tv": gallery.scalar_tv,
        "scalar_tv_sharp": lambda: gallery.scalar_tv(images=8, smoothing=1e-4),
    }[name]()
    solution = solve(problem.energy, problem.pairs.y, 1e-7, solver="lbfgs")
    assert solution.ok and honest(solution.value, problem.exact_solution(), solution.error)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("regularizer", ["tv", "foe"])
@pytest.mark.parametrize("physics", ["denoising", "deblurring"])
def test_it_converges_in_fewer_steps_and_the_certificate_is_honest(physics, regularizer, dtype):
    y = pairs(2, (16, 13)).y.to(dtype)
    r = TV(0.1, 0.02) if regularizer == "tv" else FoE(6, 5, weight=0.05)
    made = denoising(r) if physics == "denoising" else deblurring(r + Tikhonov(1e-2), dtype)
    energy = made.with_theta(energy_theta(made).to(dtype))
    exact = solve(energy.widened(), y.double(), 1e-7, solver="agd").value
    solution = solve(energy, y, 1e-4, solver="lbfgs")
    plain = solve(energy, y, 1e-4, solver="agd")
    assert (
        solution.ok
        and solution.kind.certifies | (physics == "deblurring")
        and solution.value.dtype == dtype
    )
    assert (solution.error <= 1e-4).all()
    assert honest(solution.value.double(), exact, solution.error + 1e-7)
    assert solution.steps.double().mean() < 0.9 * plain.steps.double().mean()


def test_every_image_gets_the_accuracy_asked_for_it(energy):
    y = pairs(5).y
    solution = solve(energy, y, EPS, solver="lbfgs")
    assert solution.ok and solution.solver == "lbfgs" and (solution.error <= EPS).all()
    assert honest(solution.value, newton(energy, y), solution.error)
    closing = energy.widened().at(y).grad(solution.value).flatten(1).norm(dim=1)
    torch.testing.assert_close(solution.gradient_norm, closing, rtol=1e-9, atol=1e-15)
    steps = solution.steps[EPS.argsort(descending=True)].tolist()
    assert steps[0] < steps[2] < steps[4], "a looser image stops sooner"


@pytest.mark.parametrize(
    "settings",
    [
        {"memory": 1},
        {"memory": 2},
        {"memory": 30},
        {"refresh": 1},
        {"refresh": 1000},
        {"memory": 1, "refresh": 3},
    ],
)
def test_settings_change_the_path_not_the_answer(energy, settings):
    y = pairs(2).y
    usual, other = (
        solve(energy, y, 1e-6, solver=LBFGS()),
        solve(energy, y, 1e-6, solver=LBFGS(**settings)),
    )
    assert other.ok and (other.value - usual.value).flatten(1).norm(dim=1).max() <= 2e-6
    assert other.steps.max() < 6 * usual.steps.max() + 20
    assert not torch.equal(other.value, usual.value), "the setting has an effect"


@pytest.mark.parametrize("offers", [True, False])
def test_a_potential_without_averages_is_minimized_too(energy, offers):
    """``mean_curvature`` may be missing, or there and None."""
    y = pairs(3).y
    if offers:
        energy.regularizer.mean_curvature = lambda x: None
    watched = WatchedEnergy(energy, offers=offers)
    solution = solve(watched, y, 1e-6, solver="lbfgs")
    assert solution.ok and honest(solution.value, newton(energy, y), solution.error)
    assert solution.cost.linearizations == 0 and solution.cost.gradients == int(
        watched.gradients.sum()
    )


@pytest.mark.parametrize("factor", [1e-8, 1e-3, 1e3, 1e8])
def test_averages_need_not_be_exact(energy, factor):
    """Only their shape matters: line search and pairs set the scale."""
    y = pairs(3).y
    solution = solve(WatchedEnergy(energy, factor=factor), y, 1e-6, solver="lbfgs")
    usual = solve(energy, y, 1e-6, solver="lbfgs")
    assert solution.ok and solution.steps.max() < 2 * usual.steps.max() + 20


# --- the batch is a list of strangers -------------------------------------------------------------


PARTS = (
    torch.tensor([4, 2, 0, 3, 1]),
    torch.tensor([0]),
    torch.tensor([1, 2, 3]),
    torch.tensor([4]),
)


@pytest.mark.parametrize("solver", [LBFGS(), LBFGS(memory=1, refresh=3)], ids=["usual", "short"])
def test_an_image_does_not_see_its_neighbours(energy, solver):
    """Step by step, as long as rounding (a batch of one is summed in another order) has not been
    amplified.
    """
    f, y = energy.at(pairs(5).y), pairs(5).y
    for index in PARTS:
        part = f.select(index)
        whole, some = solver.init(f, y), solver.init(part, y[index])
        for _ in range(20):
            whole, some = solver.step(f, whole), solver.step(part, some)
            torch.testing.assert_close(some.point, whole.point[index], rtol=0, atol=1e-9)
            torch.testing.assert_close(some.alpha, whole.alpha[index], rtol=1e-5, atol=0)
            assert torch.equal(some.waiting, whole.waiting[index]) and torch.equal(
                some.rejected, whole.rejected[index]
            )


@pytest.mark.parametrize(
    "name", [n for n in ENERGIES if n != "tv_sharp"]
)  # there 1e-16 grows to 1e-4 on the way
def test_a_solve_does_not_depend_on_the_batch(name):
    energy, y = ENERGIES[name](), pairs(5).y
    whole = solve(energy, y, EPS, solver="lbfgs")
    for index in PARTS:
        some = solve(energy, y[index], EPS[index], solver="lbfgs")
        torch.testing.assert_close(some.value, whole.value[index], rtol=0, atol=1e-9)
        assert ((some.steps - whole.steps[index]).abs() <= 1).all()
    copies = solve(energy, y[:1].expand(3, *y.shape[1:]), 1e-5, solver="lbfgs")
    assert len(set(copies.steps.tolist())) == 1
    torch.testing.assert_close(
        copies.value, copies.value[:1].expand_as(copies.value), rtol=0, atol=1e-10
    )


def test_finished_images_are_frozen():
    """What a loose image is when it has finished does not depend on how long its neighbours go
    on.
    """
    energy, y = ENERGIES["foe"](), pairs(3).y
    together = solve(energy, y, torch.tensor([1e-1, 1e-8, 1e-2]), solver="lbfgs")
    for i, eps in ((0, 1e-1), (2, 1e-2)):
        alone = solve(energy, y[i : i + 1], eps, solver="lbfgs")
        torch.testing.assert_close(together.value[i : i + 1], alone.value, rtol=0, atol=1e-11)
        assert together.steps[i] == alone.steps[0] < together.steps[1]
        assert together.error[i] > 1e-7, "it was not polished along with the others"


@pytest.mark.parametrize("refresh", [1, 3, 8])
def test_work_is_what_was_done(energy, refresh):
    watched = WatchedEnergy(energy)
    solution = solve(watched, pairs(5).y, EPS, solver=LBFGS(refresh=refresh))
    assert solution.cost.gradients == int(watched.gradients.sum())
    assert solution.cost.linearizations == int(watched.averages.sum())
    assert solution.cost.work == solution.cost.gradients + solution.cost.linearizations
    closing = (
        watched.gradients - solution.steps - 1
    )  # one gradient to start with, one per step, some to close
    assert ((closing >= 1) & (closing <= 5)).all()
    assert watched.averages.tolist() == (1 + solution.steps // refresh).tolist(), (
        "made at the start, then now and then"
    )


def test_work_in_two_precisions_is_what_was_done():
    made = ENERGIES["tv_sharp"]()
    watched = WatchedEnergy(made.with_theta(energy_theta(made).float()))
    solution = solve(watched, pairs(5).y.float(), EPS, solver="lbfgs", throw=False)
    assert solution.cost.gradients == int(watched.gradients.sum())
    assert solution.cost.linearizations == int(watched.averages.sum())


def test_a_start_at_the_minimizer_costs_two_gradients(energy):
    y = pairs(3).y
    tight = solve(energy, y, 1e-9, solver="lbfgs").value
    watched = WatchedEnergy(energy)
    again = solve(watched, y, 1e-6, x0=tight, solver="lbfgs")
    assert again.steps.tolist() == [0, 0, 0] and torch.equal(again.value, tight)
    assert watched.gradients.tolist() == [2, 2, 2] and watched.averages.tolist() == [1, 1, 1]
    mixed = solve(energy, y, 1e-6, x0=torch.cat([tight[:1], y[1:]]), solver="lbfgs")
    assert mixed.steps[0] == 0 < mixed.steps[1] and mixed.ok


@pytest.mark.parametrize("offers", [True, False])
def test_a_gradient_of_zero_at_the_start(offers):
    flat = torch.full((2, 1, 5, 6), 0.4, dtype=torch.float64)
    flat[1] += pairs(1).y[0]
    watched = WatchedEnergy(denoising(tv(True)), offers=offers)
    solution = solve(watched, flat, 1e-8, solver="lbfgs")
    assert (
        solution.ok
        and solution.gradient_norm[0] == 0
        and solution.error[0] <= 1e-12  # the allowance for rounding
        and solution.steps[0] == 0
        and torch.equal(solution.value[0], flat[0])
    )
    assert solution.steps[1] > 0
    potential = Watched(denoising(tv(True)).at(flat), offers=offers)
    state = LBFGS().init(potential, flat)
    for _ in range(5):  # nor does a step from there do harm
        state = LBFGS().step(potential, state)
        assert (
            torch.equal(state.point[0], flat[0])
            and state.evidence[0] == 0
            and state.evidence[1] > 0
        )


def test_nothing_lent_is_changed(energy):
    y = pairs(3).y
    x0, eps = torch.zeros_like(y), EPS[:3].clone()
    kept = [t.clone() for t in (y, x0, eps, *energy.parameters())]
    flags, random = [p.requires_grad for p in energy.parameters()], torch.get_rng_state()
    solution = solve(energy, y, eps, x0=x0, solver="lbfgs")
    solve(energy, y, 1e9, x0=x0, solver="lbfgs").value.add_(1)
    solution.value.add_(1), solution.error.add_(1)
    assert all(
        torch.equal(a, b) for a, b in zip((y, x0, eps, *energy.parameters()), kept, strict=True)
    )
    assert [p.requires_grad for p in energy.parameters()] == flags and torch.equal(
        torch.get_rng_state(), random
    )
    assert not solve(energy, y, 1e-2, x0=x0.requires_grad_(), solver="lbfgs").value.requires_grad


@pytest.mark.parametrize("memory", [1, 3])
def test_a_step_leaves_the_state_before_it_as_it_was(energy, memory):
    """Each state could be gone back to: a step makes new tensors, and keeps as many pairs as it was
    told.
    """
    y = pairs(3).y
    f, states, solver = energy.at(y), [], LBFGS(memory=memory, refresh=2)
    state = solver.init(f, y)
    for _ in range(12):
        tensors = [
            state.point,
            state.g,
            state.d,
            state.slope,
            state.alpha,
            state.evidence,
            *sum(state.pairs, ()),
        ]
        states.append((tensors, [t.clone() for t in tensors]))
        state = solver.step(f, state)
        assert 1 <= len(state.pairs) <= memory
    assert all(
        torch.equal(a, b)
        for tensors, copies in states
        for a, b in zip(tensors, copies, strict=True)
    )


# --- the line search ------------------------------------------------------------------------------


def test_the_rules_of_the_line_search():
    slope = torch.tensor(
        [-2.0, -1e-5, 0.0, 0.79, 0.81, math.nan, math.inf, -math.inf], dtype=torch.float64
    )
    first, fresh = torch.full_like(slope, -1.0), torch.zeros(8, dtype=torch.int64)
    assert accepts(slope, first, fresh + PATIENCE).tolist() == [
        True,
        True,
        True,
        True,
        False,
        True,
        False,
        True,
    ]
    held = accepts(slope, first, fresh + PATIENCE + 1)
    assert held.tolist() == [True, False, False, False, False, True, False, True], (
        "a proven decrease only"
    )
    assert 0 < DESCENT < 0.5 < RISE < 1
    cut = shorter(torch.full_like(slope, 2.0), slope, first)
    assert cut.tolist()[2:7] == pytest.approx([1.0, 1.0, 1.0, 0.2, 0.2])
    assert ((cut >= 0.2 - 1e-12) & (cut <= 1 + 1e-12)).all(), (
        "between a tenth and a half, whatever comes"
    )
    exact = shorter(
        torch.ones(1).double(), torch.tensor([3.0]).double(), torch.tensor([-1.0]).double()
    )
    assert float(exact) == pytest.approx(0.25), "the zero of the line through both slopes"


def test_patience_is_measured_in_halvings():
    size = torch.tensor([0.6, 0.4, 2.0, math.nan], dtype=torch.float64)
    best, waiting = watch(size, torch.ones(4).double(), torch.tensor([3, 3, 3, 3]))
    assert best.tolist()[:3] == [1.0, 0.4, 1.0] and waiting.tolist() == [4, 0, 4, 4]


def test_a_trial_too_long_is_rejected_and_the_image_recovers():
    """Averages a thousand times too small make every first trial overshoot; the secant rule brings
    it back.
    """
    f, x0 = (
        OnePixel(2, mu=0.1, nu=0.1, averages=1e-3),
        torch.tensor([2.0, -0.03]).double().view(2, 1, 1, 1),
    )
    solver = LBFGS()
    state = solver.init(f, x0)
    assert torch.equal(state.alpha, torch.ones(2).double())
    trial = solver.step(f, state)
    assert (
        torch.equal(trial.point, x0)
        and torch.equal(trial.g, state.g)
        and torch.equal(trial.d, state.d)
    )
    assert trial.rejected.tolist() == [1, 1] and torch.equal(trial.evidence, state.evidence)
    assert ((trial.alpha >= 0.1) & (trial.alpha <= 0.5)).all() and trial.cost.gradients == 2
    solution = minimize(f, 1e-8, solver, x0)
    assert solution.ok and solution.value.abs().max() <= 1e-8 and solution.steps.max() < 60


def test_one_image_may_search_while_its_neighbour_steps():
    """Image 0 overshoots at once, image 1 starts where the averages are right: they share no line
    search.
    """
    f = OnePixel(2, mu=1.0, nu=1.0, averages=0.9)
    x0 = torch.tensor([0.5, 30.0]).double().view(2, 1, 1, 1)
    state = LBFGS().step(f, LBFGS().init(f, x0))
    assert state.rejected.tolist() == [1, 0] and state.point[0] == 0.5 and state.point[1] != 30.0
    assert (
        state.alpha[0] < 1
        and state.alpha[1] == 1
        and state.pairs[-1][2][0] == 0 < state.pairs[-1][2][1]
    )
    together = minimize(f, 1e-8, LBFGS(), x0)
    for i in range(2):
        alone = minimize(f.select(torch.tensor([i])), 1e-8, LBFGS(), x0[i : i + 1])
        assert alone.steps[0] == together.steps[i]
        torch.testing.assert_close(alone.value[0], together.value[i], rtol=0, atol=1e-12)


def test_an_image_whose_trials_keep_failing_loses_its_history_and_its_neighbour_does_not():
    f, y, solver = ENERGIES["tv"]().at(pairs(2).y), pairs(2).y, LBFGS()
    state = solver.init(f, y)
    for _ in range(6):
        state = solver.step(f, state)
    uphill = torch.stack([1e3 * state.d[0], state.d[1]])  # far beyond the minimizer
    after = solver.step(
        f,
        replace(
            state,
            d=uphill,
            slope=(state.g * uphill).flatten(1).sum(dim=1),
            alpha=torch.ones(2).double(),
            rejected=torch.tensor([REJECTIONS - 1, 0]),
        ),
    )
    usual = solver.step(f, replace(state, alpha=torch.ones(2).double()))
    assert torch.equal(after.point[0], state.point[0]) and all(
        rho[0] == 0 for _, _, rho in after.pairs
    )
    assert after.slope[0] < 0 and after.rejected[0] == 0 and not torch.equal(after.d[0], uphill[0])
    torch.testing.assert_close(after.d[1], usual.d[1], rtol=1e-12, atol=1e-14)
    assert [rho[1] for _, _, rho in after.pairs] == [rho[1] for _, _, rho in usual.pairs]


def test_the_usual_test_lets_a_convex_function_grow_and_the_safe_one_does_not():
    """A kink with slopes -1 and 0.7: what lies far behind it passes the approximate Wolfe test, at
    a higher value.
    """
    f, x0 = (
        OnePixel(1, mu=1e-6, nu=1e-3, left=1.0, right=0.7, averages=0.01),
        -torch.ones(1, 1, 1, 1).double(),
    )
    start = LBFGS().init(f, x0)
    usual = LBFGS().step(f, start)
    assert usual.rejected[0] == 0 and f.value(usual.point) > 5 * f.value(x0), (
        "this is how it misbehaves"
    )
    state = replace(start, waiting=start.waiting + PATIENCE + 1)
    for _ in range(40):
        before, state = state, LBFGS().step(f, state)
        if bool(state.point != before.point):
            proven = DESCENT * float(before.alpha) * float(before.slope)
            assert f.value(state.point) <= f.value(before.point) + proven + 1e-15
    assert minimize(f, 1e-3, LBFGS(), x0).ok


@pytest.mark.parametrize(
    ("make", "memory"),
    [
        (lambda: tv(False, 0.3, 0.001), 1),
        (lambda: tv(True, 0.3, 0.001), 5),
        (lambda: foe(weight=0.5, smoothing=0.006), 2),
    ],
)
def test_an_image_that_makes_no_headway_is_held_to_proven_decrease(make, memory):
    """Step by step: once an image has waited, what it accepts has decreased h as Armijo asks."""
    energy, y = denoising(make()), pairs(3, (6, 5)).y
    f, solver = energy.at(y), LBFGS(memory=memory)
    state, held = solver.init(f, y), 0
    for _ in range(100):
        before, state = state, solver.step(f, state)
        moved = (state.point != before.point).flatten(1).any(dim=1)
        waited = (before.waiting > PATIENCE) & moved
        allowed = f.value(before.point) + DESCENT * before.alpha * before.slope
        rounding = 1e-13 * f.value(before.point).abs()
        assert (f.value(state.point) <= allowed + rounding)[waited].all()
        held += int(waited.sum())
    assert held > 0, "the safe mode was in use"
    assert solve(energy, y, 1e-4, solver=solver).ok


@pytest.mark.parametrize(("far", "nu"), [(1.0, 1e-3), (10.0, 1e-3), (1e3, 1e-3), (1.0, 1e-5)])
def test_a_search_that_starts_out_hopelessly_long_ends(far, nu):
    """TV's own averages far from a sharp kink, nu / x^2, say next to nothing: the first trial is
    off by x / nu.
    """
    f, x0 = OnePixel(1, mu=1e-6, nu=nu), torch.full((1, 1, 1, 1), far, dtype=torch.float64)
    solution = minimize(f, 1e-2, LBFGS(), x0, max_steps=300)
    assert solution.ok and solution.value.abs().max() <= 1e-2


# --- what can go wrong ----------------------------------------------------------------------------


@pytest.mark.parametrize("offers", [True, False])
@pytest.mark.parametrize("appears", [1, 2, 10])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_on_the_way_stays_in_its_image(appears, value, offers):
    def breaks(g: Tensor, index: Tensor, calls: Tensor) -> Tensor:
        g = g.clone()
        g.view(g.shape[0], -1)[(index == 1) & (calls >= appears), 2] = value
        return g

    energy, y = denoising(foe(weight=0.1, smoothing=0.05)), pairs(3).y
    solution = solve(
        WatchedEnergy(energy, hook=breaks, offers=offers), y, 1e-6, solver="lbfgs", throw=False
    )
    assert solution.status == (Status.CONVERGED, Status.NOT_FINITE, Status.CONVERGED)
    clean = solve(WatchedEnergy(energy, offers=offers), y, 1e-6, solver="lbfgs")
    torch.testing.assert_close(solution.value[[0, 2]], clean.value[[0, 2]], rtol=0, atol=1e-8)
    assert solution.value.isfinite().all() and solution.error[1] == math.inf
    assert solution.steps[1] <= appears + 40, "it does not search forever"


def test_averages_that_are_not_finite_end_only_their_image():
    class Spoiled(Watched):
        def _mean_curvature(self, x: Tensor) -> MeanCurvature:
            mean = super()._mean_curvature(x)
            diagonal = mean.diagonal.clone()
            diagonal[self.index == 1] = math.nan
            return MeanCurvature(diagonal, mean.symbol)

        def _like(self, inner, index: Tensor) -> Spoiled:
            return Spoiled(inner, counts=self.counts, index=index)

    energy, y = ENERGIES["foe"](), pairs(3).y
    solution = minimize(Spoiled(energy.at(y)), 1e-6, LBFGS(), y)
    assert solution.status == (Status.CONVERGED, Status.NOT_FINITE, Status.CONVERGED)


@pytest.mark.parametrize("budget", [1, 3, 11])
def test_the_step_limit_is_a_status_and_the_certificate_still_holds(energy, budget):
    y = pairs(3).y
    solution = solve(energy, y, 1e-9, budget=budget, throw=False, solver="lbfgs")
    assert solution.status == (Status.MAX_STEPS,) * 3 and solution.steps.tolist() == [budget] * 3
    assert solution.error.isfinite().all() and honest(
        solution.value, newton(energy, y), solution.error
    )


def test_below_the_floor_of_float32_it_gives_up(energy):
    y = pairs(3).y.float()
    solution = minimize(energy.with_theta(energy_theta(energy).float()).at(y), 1e-12, LBFGS(), y)
    assert solution.status == (Status.ROUNDING_FLOOR,) * 3 and solution.steps.max() < 2000
    assert solution.error.max() < 1e-3, "it went as far as it could"
    assert honest(
        solution.value.double(), newton(energy, y.double()), solution.error + 1e-9 + 3e-7 * y.norm()
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"memory": 0}, "memory: given 0; expected an integer >= 1"),
        ({"memory": -3}, "memory: given -3"),
        ({"memory": 2.5}, "memory: given 2.5"),
        ({"memory": True}, "memory: given True"),
        ({"memory": None}, "memory: given None"),
        ({"memory": math.inf}, "memory: given inf"),
        ({"refresh": 0}, "refresh: given 0; expected an integer >= 1"),
        ({"refresh": "often"}, "refresh: given 'often'"),
        ({"refresh": math.nan}, "refresh: given nan"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings, message):
    with pytest.raises(InputError, match=message):
        LBFGS(**settings)


def test_settings_are_frozen_and_solvers_have_no_memory_of_their_own(energy):
    solver, y = LBFGS(), pairs(2).y
    with pytest.raises(AttributeError):
        solver.memory = 7
    first = solve(energy, y, 1e-6, solver=solver)
    solve(denoising(TV(0.2, 0.1).double()), y, 1e-6, solver=solver)
    again = solve(energy, y, 1e-6, solver=solver)
    assert torch.equal(first.value, again.value) and torch.equal(first.steps, again.steps)
    assert solver == LBFGS() and AGD().name != solver.name == "lbfgs"
