"""nmAPG: the recursion, its promises image by image, its line searches near rounding and where they
fail.
"""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from tests.regularizers.cases import ENERGIES, denoising, foe, pairs, tv
from tests.solvers.test_honesty import DTYPES, EPS, GALLERY, distance, posed
from torch import Tensor

from learnreg.core.bounds import Bound, Curvature
from learnreg.core.cost import Cost
from learnreg.core.errors import InputError
from learnreg.core.status import Status
from learnreg.problems import Energy, gallery
from learnreg.solvers import minimize, solve
from learnreg.solvers.nmapg import NmAPG, NmAPGState

STARTS = torch.tensor([[-1.2, 1.0], [0.3, 2.0], [-0.5, -1.0]], dtype=torch.float64)
LEVELS = torch.tensor([1e-1, 1e-7, 1e-3, 1e-5, 1e-2], dtype=torch.float64)


class Watched:
    """A potential that counts its calls per image, values in row 0, gradients in row 1; hooks may
    change results.
    """

    def __init__(
        self, inner, calls: Tensor | None = None, index: Tensor | None = None, value=None, grad=None
    ) -> None:
        size = inner.y.shape[0] if calls is None else 0
        self.inner, self.calls = (
            inner,
            torch.zeros(2, size, dtype=torch.int64) if calls is None else calls,
        )
        self.index = torch.arange(size) if index is None else index
        self.hooks = {"value": value, "grad": grad}

    def _called(self, row: int, name: str, x: Tensor) -> Tensor:
        self.calls[row, self.index] += 1
        result, hook = getattr(self.inner, name)(x), self.hooks[name]
        return result if hook is None else hook(result, self.index)

    def value(self, x: Tensor) -> Tensor:
        return self._called(0, "value", x)

    def grad(self, x: Tensor) -> Tensor:
        return self._called(1, "grad", x)

    def linearize(self, x: Tensor):
        raise AssertionError("a first-order method")

    def bounds(self) -> Curvature:
        return self.inner.bounds()

    def select(self, index: Tensor) -> Watched:
        return Watched(self.inner.select(index), self.calls, self.index[index], **self.hooks)

    def double(self) -> Watched:
        return Watched(self.inner.double(), self.calls, self.index, **self.hooks)


class Valley:
    """Rosenbrock's banana, one per image (b, 2): a (x_2 - x_1^2)^2 + (1 - x_1)^2; nonconvex, no L,
    minimizer (1, 1).
    """

    def __init__(self, a: Tensor) -> None:
        self.a = a

    def value(self, x: Tensor) -> Tensor:
        return self.a * (x[:, 1] - x[:, 0] ** 2) ** 2 + (1 - x[:, 0]) ** 2

    def grad(self, x: Tensor) -> Tensor:
        off = 2 * self.a * (x[:, 1] - x[:, 0] ** 2)
        return torch.stack([-2 * x[:, 0] * off - 2 * (1 - x[:, 0]), off], dim=1)

    def bounds(self) -> Curvature:
        return Curvature(Bound.exact(0.0), Bound.unknown())

    def select(self, index: Tensor) -> Valley:
        return Valley(self.a[index])


@pytest.fixture(params=ENERGIES)
def energy(request: pytest.FixtureRequest) -> Energy:
    return ENERGIES[request.param]()


def states(f, x0: Tensor, count: int, solver: NmAPG | None = None) -> list[NmAPGState]:
    solver = solver or NmAPG()
    run = [solver.init(f, x0)]
    for _ in range(count):
        run.append(solver.step(f, run[-1]))
    return run


def total(run: list[NmAPGState]) -> Cost:
    return sum((s.cost for s in run), Cost())


# --- the recursion --------------------------------------------------------------------------------


def shortened(F, base: Tensor, g: Tensor, L: float, bound: float) -> tuple[Tensor, float]:
    while F(base - g / L) > bound - 0.1 * float((g / L).square().sum()):
        L /= 0.9
    return base - g / L, L


def plain(F, grad, x: Tensor, count: int) -> list[Tensor]:
    """x_2, x_3, ... of one image, term by term as the docstring of the module has them."""
    before, z, t_before, t, q, c, L = x, x, 0.0, 1.0, 1.0, F(x), 10.0
    seen: list[tuple[Tensor, Tensor]] = []
    out = []
    for _ in range(count):
        y = x + t_before / t * (z - x) + (t_before - 1) / t * (x - before)
        g = grad(y)
        if seen:
            dg, dy = g - seen[-1][1], y - seen[-1][0]
            L = max(1.0, float(dg @ dg / (dg @ dy).abs()))
        seen.append((y, g))
        z, _ = shortened(F, y, g, L, max(F(y), c))
        before = x
        if F(z) <= c - 0.1 * float((z - y) @ (z - y)):
            x = z
        else:
            gx = grad(x)
            dg, dx = gx - g, x - y
            v, _ = shortened(F, x, gx, max(1.0, float(dg @ dg / (dg @ dx).abs())), c)
            x = z if F(z) <= F(v) else v
        t_before, t = t, (1 + math.sqrt(1 + 4 * t * t)) / 2
        c, q = (0.8 * q * c + F(x)) / (0.8 * q + 1), 0.8 * q + 1
        out.append(x)
    return out


def test_the_recursion_is_the_published_one():
    """Against an unbatched transcription, on a valley where both searches, and the choice of z and
    of v, occur.
    """
    f = Valley(torch.tensor([1.0, 10.0, 60.0]).double())
    run = states(f, STARTS, 120)
    assert total(run).gradients > 3 * 121 + 20, "second searches occur"
    for i in range(3):
        one = f.select(torch.tensor([i]))
        expected = plain(
            lambda x, f=one: float(f.value(x[None])),
            lambda x, f=one: f.grad(x[None])[0],
            STARTS[i],
            120,
        )
        for state, x in zip(run[1:], expected, strict=True):
            torch.testing.assert_close(state.x[i], x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("eta", [0.0, 0.5, 0.8])
def test_nonconvex_values_never_exceed_the_reference(eta):
    """F(x_{k+1}) <= c_k <= max F(x_j), c falls; eta = 0 gives a monotone method."""
    f = Valley(torch.tensor([1.0, 4.0, 10.0]).double())
    run = states(f, STARTS, 200, NmAPG(eta=eta))
    values = torch.stack([f.value(s.x) for s in run])
    for k, (old, new) in enumerate(pairwise(run)):
        slack = 1e-14 * (1 + old.c)
        assert (values[k + 1] <= old.c + slack).all() and (new.c <= old.c + slack).all()
        assert (values[k + 1] <= new.c + slack).all() and (
            new.c <= values[: k + 2].max(dim=0).values + slack
        ).all()
    assert bool((values[1:] > values[:-1] + 1e-12).any()) == (eta > 0)
    assert (values[-1] < 1e-6 * values[0]).all() and (
        run[-1].evidence < 1e-3 * run[0].evidence
    ).all()


def test_evidence_is_the_gradient_norm_at_the_point(energy):
    y = pairs(3).y
    f = energy.at(y)
    for state in states(f, y, 12):
        torch.testing.assert_close(
            state.evidence, f.grad(state.point).flatten(1).norm(dim=1), rtol=1e-12, atol=0
        )


def test_an_easy_iteration_costs_one_gradient_and_one_value():
    problem = gallery.quadratic(images=4, n=6, condition=5.0)
    f = problem.energy.at(problem.pairs.y)
    run = states(f, torch.zeros(4, 6).double(), 4, NmAPG(L_init=5.0, L_min=5.0))
    assert all(s.cost == Cost(values=4, gradients=4) for s in run)


# --- what is promised -----------------------------------------------------------------------------


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("eps", [1e-1, 1e-4, 1e-8])
def test_a_quadratic_is_minimized(eps, restart):
    problem = gallery.quadratic(images=4, n=8, condition=50.0)
    solution = solve(problem.energy, problem.pairs.y, eps, solver=NmAPG(restart=restart))
    assert solution.ok and solution.solver == "nmapg"
    assert (distance(solution.value, problem.exact_solution()) <= eps).all()


@pytest.mark.parametrize("eps", EPS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("name", [*GALLERY, *ENERGIES, "deblurring"])
def test_the_true_error_is_within_the_certified_one(name, restart, dtype, eps):
    energy, y, truth = posed(name, DTYPES[dtype])
    hard = name == "quadratic_ill" and not restart  # momentum without restarts takes far more steps
    solution = solve(
        energy, y, eps, solver=NmAPG(restart=restart), throw=False, budget=200 if hard else 5000
    )
    curvature = energy.at(y).bounds()
    closing = (
        1e-15 * (1 + truth.flatten(1).norm(dim=1)) * curvature.L.value / curvature.mu.value
    )  # its own rounding
    assert solution.kind.certifies and solution.error.isfinite().all()
    assert (distance(solution.value, truth) <= (1 + 1e-9) * solution.error + closing).all()
    if not hard:
        assert solution.ok and (solution.error <= eps).all()


@pytest.mark.parametrize("eps", [1e-2, 1e-4])
def test_float32_does_not_deadlock(energy, eps):
    """Down to gradients of 1e-4, where differences of float32 values have long been rounding, in
    float32 alone.
    """
    y = pairs(5).y.float()
    f = Watched(single(energy).at(y))
    solution = minimize(f, eps, NmAPG(), y)
    assert solution.ok and solution.steps.max() < 400
    if eps == 1e-4:
        assert (f.calls[0] < solution.steps).all(), "towards the end no values are asked for"


def test_below_the_floor_of_float32_the_solve_ends(energy):
    y = pairs(3).y.float()
    solution = minimize(single(energy).at(y), 1e-11, NmAPG(), y)
    assert solution.status == (Status.ROUNDING_FLOOR,) * 3
    assert solution.error.max() < 1e-4 and solution.steps.max() < 1000


def single(energy: Energy) -> Energy:
    return energy.with_theta(
        torch.cat([p.detach().reshape(-1) for p in energy.parameters()]).float()
    )


def test_an_image_does_not_see_its_neighbours(energy):
    y = pairs(5).y
    whole = solve(energy, y, LEVELS, solver=NmAPG())
    assert whole.ok and (whole.error <= LEVELS).all()
    order = torch.tensor([4, 2, 0, 3, 1])
    for part in (order, [0], [1, 2, 3], [4]):
        part = torch.as_tensor(part)
        again = solve(energy, y[part], LEVELS[part], solver=NmAPG())
        assert torch.equal(again.steps, whole.steps[part])
        torch.testing.assert_close(again.value, whole.value[part], rtol=0, atol=1e-9)
        torch.testing.assert_close(again.error, whole.error[part], rtol=1e-3, atol=0)


def test_a_finished_image_is_frozen(energy):
    """An image that starts at its minimizer is looked at and certified, whatever its neighbours
    still have to do.
    """
    y = pairs(3).y
    tight = solve(energy, y, 1e-9).value
    f = Watched(energy.at(y))
    solution = minimize(f, 1e-6, NmAPG(), torch.cat([y[:1], tight[1:2], y[2:]]))
    assert (
        solution.steps[1] == 0 < solution.steps[0]
        and torch.equal(solution.value[1], tight[1])
        and solution.ok
    )
    assert f.calls[:, 1].tolist() == [1, 2]


def test_a_search_evaluates_only_the_images_that_need_it():
    """Images of growing curvature need more and more trials from a first step that is far too
    long.
    """
    problem = gallery.quadratic(images=1, n=4, condition=1.0)
    y = problem.pairs.y.repeat(4, 1) * torch.tensor([[0.1], [1.0], [10.0], [100.0]])
    f = Watched(problem.energy.at(y))
    state = NmAPG(L_init=1.0, L_min=0.1).init(f, torch.zeros(4, 4).double())
    f.calls.zero_()
    NmAPG(L_init=1.0, L_min=0.1).step(f, state)
    assert f.calls[0].tolist() == sorted(f.calls[0].tolist())
    assert f.calls[0, 0] == 1 and f.calls[0, 3] > f.calls[0, 2] + 15


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_work_is_what_was_done(energy, dtype, restart):
    y = pairs(5).y.to(dtype)
    f = Watched((single(energy) if dtype == torch.float32 else energy).at(y))
    solution = minimize(f, LEVELS, NmAPG(restart=restart), y)
    assert [solution.cost.values, solution.cost.gradients] == f.calls.sum(dim=1).tolist()
    assert solution.cost.work == int(f.calls.sum())


def test_restarts_change_the_path_not_the_answer(energy):
    y, eps = pairs(3).y, 1e-6
    slow, fast = (solve(energy, y, eps, solver=NmAPG(restart=r)) for r in (False, True))
    assert (slow.value - fast.value).flatten(1).norm(dim=1).max() <= 2 * eps
    assert fast.cost.work < slow.cost.work


def test_nothing_lent_is_changed(energy):
    y = pairs(3).y
    x0 = torch.zeros_like(y)
    kept = [t.clone() for t in (y, x0, *energy.parameters())]
    flags, random = [p.requires_grad for p in energy.parameters()], torch.get_rng_state()
    solve(energy, y, 1e-4, x0=x0, solver=NmAPG()).value.add_(1)
    f, solver = energy.at(y), NmAPG()
    state = solver.init(f, x0)
    for _ in range(20):
        before = {k: v.clone() for k, v in vars(state).items() if isinstance(v, Tensor)}
        new = solver.step(f, state)
        assert all(torch.equal(v, getattr(state, k)) for k, v in before.items())
        assert not any(v.requires_grad for v in vars(new).values() if isinstance(v, Tensor))
        state = new
    assert all(torch.equal(a, b) for a, b in zip((y, x0, *energy.parameters()), kept, strict=True))
    assert [p.requires_grad for p in energy.parameters()] == flags and torch.equal(
        torch.get_rng_state(), random
    )


# --- what can go wrong ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_failed_search_is_reported(dtype):
    """One image has the sign of its gradient wrong: no step lowers its value, and rounding is no
    excuse.
    """

    def uphill(g: Tensor, index: Tensor) -> Tensor:
        return torch.where((index == 1).view(-1, 1, 1, 1), -g, g)

    y = pairs(3).y.to(dtype)
    energy = denoising(foe(weight=0.1, smoothing=0.05))
    f = Watched((energy if dtype == torch.float64 else single(energy)).at(y), grad=uphill)
    solution = minimize(f, 1e-4, NmAPG(), y, max_steps=300)
    assert solution.status == (Status.CONVERGED, Status.MAX_STEPS, Status.CONVERGED)
    assert torch.equal(solution.value[1], y[1]) and solution.steps[1] == 300
    assert f.calls[0, 1] <= 2 + 2 * 150 and f.calls[1, 1] <= 4, "and then it costs nothing"
    assert [solution.cost.values, solution.cost.gradients] == f.calls.sum(dim=1).tolist()
    clean = minimize((energy if dtype == torch.float64 else single(energy)).at(y), 1e-4, NmAPG(), y)
    torch.testing.assert_close(solution.value[[0, 2]], clean.value[[0, 2]], rtol=0, atol=1e-5)


def test_too_few_trials_are_reported():
    problem = gallery.quadratic(images=2, n=6, condition=1e3)
    f = problem.energy.at(problem.pairs.y)
    run = states(f, torch.zeros(2, 6).double(), 3, NmAPG(trials=2, L_init=1.0))
    assert run[1].stuck.all() and run[-1].cost == Cost()
    assert torch.equal(run[-1].point, run[0].point) and torch.equal(
        run[-1].evidence, run[0].evidence
    )
    solution = minimize(
        f, 1e-3, NmAPG(trials=2, L_init=1.0), torch.zeros(2, 6).double(), max_steps=50
    )
    assert solution.status == (Status.MAX_STEPS,) * 2 and solution.cost.values == 2 * (
        1 + 1 + 1 + 1 + 2
    )
    assert solve(
        problem.energy, problem.pairs.y, 1e-1, solver=NmAPG(L_init=1.0, restart=True)
    ).ok, "150 are enough"


@pytest.mark.parametrize("ulps", [20, 60])
def test_values_noisier_than_assumed_are_learnt(ulps):
    """Noise far beyond the slack that the tests of a search allow: the image goes on by gradients
    alone.
    """
    noise = torch.Generator().manual_seed(0)

    def shaken(v: Tensor, index: Tensor) -> Tensor:
        return v * (
            1 + ulps * 2.2e-16 * (2 * torch.rand(v.shape, generator=noise, dtype=v.dtype) - 1)
        )

    y = pairs(4).y
    f = Watched(denoising(tv(True, 0.1, 0.05)).at(y), value=shaken)
    solution = minimize(f, 1e-9, NmAPG(restart=True), y)
    assert solution.ok and solution.steps.max() < 200
    assert f.calls[0].max() < 400


@pytest.mark.parametrize("appears", ["value", "grad"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_stays_in_its_image(appears, bad):
    def breaks(v: Tensor, index: Tensor) -> Tensor:
        v = v.clone()
        v[index == 1] = bad
        return v

    y = pairs(3).y
    energy = denoising(foe(weight=0.1, smoothing=0.05))
    f = Watched(energy.at(y), **{appears: breaks})
    solution = minimize(f, 1e-5, NmAPG(), y, max_steps=400)
    assert solution.status[0].ok and solution.status[2].ok and solution.value.isfinite().all()
    if appears == "grad":
        assert solution.status[1] == Status.NOT_FINITE
    else:  # the search fails, or nothing can be told by values and gradients do the work
        assert solution.status[1] == (Status.MAX_STEPS if math.isnan(bad) else Status.CONVERGED)
    clean = solve(energy, y, 1e-5, solver=NmAPG())
    torch.testing.assert_close(solution.value[[0, 2]], clean.value[[0, 2]], rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    ("setting", "bad"),
    [
        *(("rho", v) for v in (0, 1, -0.5, math.nan, "0.9", True)),
        *(("delta", v) for v in (0, -0.1, math.inf)),
        *(("eta", v) for v in (1, -0.1, math.nan)),
        *(("trials", v) for v in (0, -1, 2.5, True)),
        *(("L_init", v) for v in (0, -1, math.inf)),
        *(("L_min", v) for v in (0, -1, math.nan)),
        ("restart", 1),
        ("restart", None),
    ],
)
def test_a_setting_out_of_range_is_refused(setting, bad):
    with pytest.raises(InputError, match=f"{setting}: given {bad!r}; expected"):
        NmAPG(**{setting: bad})
