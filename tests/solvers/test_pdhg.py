"""Primal-dual hybrid gradient: where it converges, how fast, what its certificates are worth, what
it refuses.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.hypergradients import saddle_cases as cases
from tests.hypergradients.saddle_cases import (
    Matrix,
    curved,
    normal,
    pictured,
    posed,
    quadratic,
    reached,
    truth,
    variables,
)
from tests.regularizers.cases import pairs
from torch import Tensor

from learnreg.convex import Norm, Squares
from learnreg.core.errors import InputError, MissingPropertyError, SolveError
from learnreg.core.status import Status
from learnreg.problems import KL, L1, BilevelProblem, Energy, SaddleEnergy
from learnreg.regularizers import TGV, TV, ExactTV, LearnedTV
from learnreg.solvers import AGD, solve
from learnreg.solvers.pdhg import PDHG, block_steps, operator_norm
from learnreg.solvers.solve import solve_potential

RULES = ("basic", "accelerated", "linear", "balanced", "auto")
EVERY = [
    (name, physics)
    for name in cases.PICTURES
    for physics in cases.PHYSICS
    if physics == "denoising" or name in ("tv", "tgv-curvature", "learned")
]
REFERENCE = {("tgv", "denoising"): 1e-6, ("learned-sharp", "denoising"): 1e-6, ("tv", "blur"): 1e-6}


@cache
def instance(name: str, physics: str = "denoising") -> tuple[BilevelProblem, Tensor, Tensor]:
    """A problem of 4 x 5 pictures, its images and how far these are from the exact ones."""
    problem = pictured(name, physics, (4, 5), count=3)
    found = reached(problem, REFERENCE.get((name, physics), 1e-8))
    assert float(found.error.max()) < 2e-6
    return problem, found.value, found.error


def distance(a: Tensor, b: Tensor) -> Tensor:
    return (a.double() - b).flatten(1).norm(dim=1)


# --- convergence ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["curved", "data"])
def test_every_rule_arrives_at_the_saddle_point(name, rule):
    problem = curved(data=name == "data")
    exact = truth(problem)
    found = solve(
        problem.energy,
        problem.pairs.y,
        3e-2 if rule == "accelerated" else 1e-9,
        solver=PDHG(rule=rule),
    )
    f = problem.energy.at(problem.pairs.y)
    assert found.ok and bool((distance(found.value, f.image(exact.state)) <= found.error).all())
    if rule != "accelerated":
        assert (
            float((variables(problem, found.state) - variables(problem, exact.state)).abs().max())
            < 1e-7
        )


@pytest.mark.parametrize("balance", [0.1, 1.0, 10.0])
def test_fixed_steps_and_balances_arrive_too(balance):
    problem = quadratic()
    f = problem.energy.at(problem.pairs.y)
    k = f.norms[0][0]
    exact = f.image(truth(problem).state)
    for solver in (
        PDHG(tau=balance / k, sigma=1 / (balance * k)),
        PDHG(rule="basic", balance=balance),
    ):
        found = solve(problem.energy, problem.pairs.y, 1e-8, solver=solver)
        assert bool((distance(found.value, exact) <= found.error).all())


@torch.no_grad()
@pytest.mark.parametrize(
    "make", [quadratic, curved, lambda: quadratic(data=True)], ids=["quadratic", "curved", "data"]
)
def test_the_linear_rule_contracts_as_promised(make):
    """sum mu_i |x_i - x_i*|^2 over all blocks falls by theta per iteration, up to a constant."""
    problem = make()
    f = problem.energy.at(problem.pairs.y)
    x_true, p_true = f.unpack(truth(problem).state)
    solver = PDHG(rule="linear", interval=1)
    state = solver.init(f, f.pack(*f.start(problem.energy.start(problem.pairs.y))))
    theta = state.steps.theta
    mu_g, mu_f = f.moduli()[: len(f.primal)], f.moduli()[len(f.primal) :]
    m = 2 / operator_norm(f.norms, [1 / v for v in mu_g], [1 / v for v in mu_f])
    assert theta == pytest.approx(1 / (1 + m))

    def size(s) -> Tensor:
        parts = [
            mu * (a - b).flatten(1).square().sum(dim=1)
            for mu, a, b in zip(f.moduli(), (*s.x, *s.p), (*x_true, *p_true), strict=True)
        ]
        return torch.stack(parts).sum(dim=0)

    sizes = [size(state)]
    for _ in range(60):
        state = solver.step(f, state)
        sizes.append(size(state))
    table = torch.stack(sizes)
    bound = 4 * table[0] * theta ** torch.arange(61.0, dtype=torch.float64)[:, None]
    assert bool((table <= bound + 1e-24).all()), (
        f"theta {theta:.3f}, {(table / bound).max():.3g} of the promise"
    )


@torch.no_grad()
@pytest.mark.parametrize("rule", ["basic", "accelerated", "linear"])
@pytest.mark.parametrize("name", ["learned", "curved-data"])
def test_the_recursion_is_the_published_one(name, rule):
    """With xbar itself in the place of K xbar, on the state that the solver starts from."""
    problem = pictured("learned") if name == "learned" else curved(data=True)
    f, solver = problem.energy.at(problem.pairs.y), PDHG(rule=rule, balance=0.7, interval=4)
    state = solver.init(f, f.pack(*f.start(problem.energy.start(problem.pairs.y))))
    (x, p), steps = f.unpack(state.point), state.steps
    bar, t, theta = x, steps.t, steps.theta
    for _ in range(8):
        p = tuple(
            phi.prox_conjugate(q + s / t * a, s / t)
            for phi, q, s, a in zip(f.dual, p, steps.dual, f.apply(bar), strict=True)
        )
        new = tuple(
            g.prox(a - s * t * k, s * t)
            for g, a, s, k in zip(f.primal, x, steps.primal, f.adjoint(p), strict=True)
        )
        if rule == "accelerated":
            theta = (1 + 2 * steps.gamma * t) ** -0.5
            t *= theta
        bar = tuple(a + theta * (a - b) for a, b in zip(new, x, strict=True))
        x = new
    state = solver.step(f, solver.step(f, state))
    for a, b in zip((*state.x, *state.p), (*x, *p), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@torch.no_grad()
def test_the_accelerated_rule_shrinks_its_steps_as_published():
    f = pictured("tv").energy.at(pictured("tv").pairs.y)
    solver = PDHG(rule="accelerated", interval=1)
    state = solver.init(f, f.pack(*f.start(f.y)))
    for _ in range(5):
        t, gamma = state.t, state.steps.gamma
        state = solver.step(f, state)
        torch.testing.assert_close(state.theta, 1 / (1 + 2 * gamma * t).sqrt())
        torch.testing.assert_close(state.t, state.theta * t)
    assert gamma == pytest.approx(1.0 * state.steps.primal[0])


def dense_blocks(f) -> list[list[Tensor]]:
    """The true K by columns, in blocks."""
    rows = []
    for k, shape in enumerate(f.shapes[0]):
        n = shape.numel()
        x = [torch.zeros(n, *s, dtype=torch.float64) for s in f.shapes[0]]
        x[k] = torch.eye(n, dtype=torch.float64).view(n, *shape)
        rows.append([r.reshape(n, -1).T for r in f.linear(tuple(x))])
    return [list(r) for r in zip(*rows, strict=True)]


@torch.no_grad()
@pytest.mark.parametrize("rule", ["basic", "balanced", "linear"])
@pytest.mark.parametrize(
    ("name", "physics"),
    [(n, "denoising") for n in cases.PICTURES]
    + [("tv", "blur"), ("tgv-curvature", "blur"), ("learned", "blur"), ("learned", "inpainting")],
)
def test_step_sizes_suit_the_true_operator(name, physics, rule):
    problem = pictured(name, physics, (5, 6), count=1)
    f = problem.energy.at(problem.pairs.y)
    if rule == "linear" and min(f.moduli()) <= 0:
        with pytest.raises(MissingPropertyError, match=r"rule: given linear.*rule='auto'"):
            block_steps(f, rule, 1.0)
        return
    steps = block_steps(f, rule, 1.0)
    scaled = torch.cat(
        [
            torch.cat([(s * t) ** 0.5 * k for k, t in zip(row, steps.primal, strict=True)], dim=1)
            for row, s in zip(dense_blocks(f), steps.dual, strict=True)
        ]
    )
    size = float(torch.linalg.matrix_norm(scaled, 2))
    assert 0.5 < size <= 1 + 1e-9, f"||S^(1/2) K T^(1/2)|| = {size:.4f}"


@torch.no_grad()
@pytest.mark.parametrize("name", ["tv", "tgv", "learned"])
def test_how_many_iterations_make_a_step_changes_nothing(name):
    problem = pictured(name)
    f = problem.energy.at(problem.pairs.y)
    ends = []
    for interval in (1, 3, 30):
        solver = PDHG(interval=interval)
        state = solver.init(f, f.pack(*f.start(problem.energy.start(problem.pairs.y))))
        for _ in range(60 // interval):
            state = solver.step(f, state)
        ends.append(state)
    for state in ends[1:]:
        for a, b in zip(
            (*state.x, *state.p, state.t, state.evidence),
            (*ends[0].x, *ends[0].p, ends[0].t, ends[0].evidence),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


# --- certificates ---------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(("name", "physics"), EVERY)
def test_the_gap_is_positive_and_the_certificate_holds_at_every_iteration(name, physics, dtype):
    """The evidence, too, apart from the rounding that the closing certificate is there for."""
    problem, images, off = instance(name, physics)
    problem = (
        problem if dtype == torch.float64 else pictured(name, physics, (4, 5), count=3, dtype=dtype)
    )
    off = off if dtype == torch.float64 else off + 1e-6  # the data are rounded
    f, solver = problem.energy.at(problem.pairs.y), PDHG(interval=1)
    state = solver.init(f, f.pack(*f.start(problem.energy.start(problem.pairs.y))))
    least = first = torch.full((3,), torch.inf, dtype=torch.float64)
    for k in range(30):
        gap = f.gap(state.x, state.p, state.kx, state.ktp)
        assert bool((gap >= 0).all())
        true = distance(state.x[0], images)
        certified = f.double().certify(state.point.double())
        assert bool((certified.distance + off >= true).all()), (k, certified.distance, true)
        assert bool(
            (state.evidence.double() + off + f.rounding_distance(state.point) >= 0.999 * true).all()
        ), k
        first = first if k else certified.distance
        least = torch.minimum(least, certified.distance)
        state = solver.step(f, state)
    assert bool((least < 0.9 * first).all()), "and it says something"


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    exponent=st.floats(-3, 1),
    name=st.sampled_from(sorted(cases.PICTURES)),
)
def test_random_points_are_certified(seed, exponent, name):
    """Not only iterates: any x and p, also infeasible ones."""
    problem, images, off = instance(name)
    f = problem.energy.at(problem.pairs.y)
    start = f.pack(*f.start(images))
    with torch.no_grad():
        z = start + 10**exponent * normal(*start.shape, seed=seed)
        x, p = f.unpack(z)
        gap = f.gap(x, p, f.apply(x), f.adjoint(p))
        certified = f.certify(z).distance
    assert bool((gap >= 0).all())
    assert bool((certified + off >= distance(x[0], images)).all())


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 1000),
    weight=st.floats(0.005, 2.0),
    rounding=st.sampled_from([0.0, 0.05]),
    h=st.integers(1, 5),
    w=st.integers(2, 5),
    isotropic=st.booleans(),
    mask=st.booleans(),
)
def test_random_instances_of_total_variation_are_solved_and_certified(
    seed, weight, rounding, h, w, isotropic, mask
):
    y = pairs(2, (h, w), seed).y
    physics = cases.inpainting((1, h, w)) if mask else cases.denoising()
    energy = SaddleEnergy(
        physics, ExactTV(weight, isotropic, rounding).double(), tikhonov=0.1 if mask else 0.0
    )
    y = physics.A(y) if mask else y
    rough, fine = solve(energy, y, 1e-2), solve(energy, y, 1e-6)
    assert bool((distance(rough.value, fine.value) <= rough.error + fine.error).all())


@pytest.mark.parametrize("name", ["curved", "data"])
def test_the_gap_is_what_it_is_called(name):
    """P(x) - D(p) by conjugates, at random points of smooth problems, where everything is
    feasible.
    """
    problem = curved(data=name == "data")
    f = problem.energy.at(problem.pairs.y)
    for seed in range(5):
        z = f.pack(*f.start(problem.energy.start(problem.pairs.y)))
        x, p = f.unpack(z + normal(*z.shape, seed=seed))
        with torch.no_grad():
            kx, ktp = f.apply(x), f.adjoint(p)
            value = sum(g.value(a) for g, a in zip(f.primal, x, strict=True)) + sum(
                phi.value(a) for phi, a in zip(f.dual, kx, strict=True)
            )
            dual = -sum(g.conjugate(-s) for g, s in zip(f.primal, ktp, strict=True)) - sum(
                phi.conjugate(s) for phi, s in zip(f.dual, p, strict=True)
            )
            for b, s in zip(f.offset or (), p, strict=bool(f.offset)):
                dual = dual if b is None else dual + (b * s).flatten(1).sum(dim=1)
            torch.testing.assert_close(f.gap(x, p, kx, ktp), value - dual, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_the_gradient_of_the_lagrangian_is_that_of_autograd():
    problem = curved(data=True)
    f = problem.energy.at(problem.pairs.y)
    z = truth(problem).state + 0.3 * normal(*truth(problem).state.shape)
    x, p = (tuple(t.clone().requires_grad_() for t in blocks) for blocks in f.unpack(z))
    with torch.enable_grad():
        coupling = sum((a * s).sum() for a, s in zip(f.apply(x), p, strict=True))
        value = coupling + sum(cases.plain(g, a) for g, a in zip(f.primal, x, strict=True))
        value = value - sum(
            phi.conjugate(s).sum() for phi, s in zip(f.dual[:1], p[:1], strict=True)
        )
        found = torch.autograd.grad(value, (*x, p[0]))
    rx, rp = f.unpack(f.certify(z).gradient)
    for a, b in zip((*rx, rp[0]), found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_the_certificate_names_its_theorem():
    problem = curved()
    rough, fine = (solve(problem.energy, problem.pairs.y, eps) for eps in (10.0, 1e-9))
    assert set(fine.theorem) <= {"gap", "residual", "kkt"} and len(fine.theorem) == 3
    assert set(rough.theorem) <= {"gap", "residual", "kkt"}
    problem, _, _ = instance("tv")
    assert solve(problem.energy, problem.pairs.y, 1e-3).theorem == ("gap",) * 3, (
        "nothing else can be known"
    )
    f = problem.energy.at(problem.pairs.y)
    assert f.theorems == ("gap", "residual", "kkt", "growth")
    with torch.no_grad():
        problem, _, _ = instance("tgv-curvature")
        f = problem.energy.at(problem.pairs.y)
        z = solve(problem.energy, problem.pairs.y, 1e-6).state
        x, p = f.unpack(z)
        worse = f.certify(f.pack(x, tuple(s + 0.01 * normal(*s.shape) for s in p)))
    assert {f.theorems[k] for k in worse.theorem.tolist()} == {"residual"}, "which does not use p"


@torch.no_grad()
def test_every_theorem_holds_by_itself():
    """At random points each of the three distances, not only the smallest."""
    problem = curved()
    f, exact = problem.energy.at(problem.pairs.y), truth(problem)
    for seed in range(30):
        z = exact.state + 10.0 ** (seed % 4 - 3) * normal(*exact.state.shape, seed=seed)
        x, p = f.unpack(z)
        kx, ktp = f.apply(x), f.adjoint(p)
        true = distance(x[0], f.image(exact.state))
        gap = (2 * f.gap(x, p, kx, ktp) / f.bounds().mu.value).sqrt()
        blocks = f.distances(x, p, kx, ktp)
        for found in (gap, blocks[0], f._residual(x, kx)):
            assert bool((found >= true * (1 - 1e-9)).all())
        for found, a, b in zip(
            blocks, (*x, *p), [t for part in f.unpack(exact.state) for t in part], strict=True
        ):
            assert bool((found >= distance(a, b) * (1 - 1e-9)).all())


def test_a_constraint_that_iterates_only_approach_is_refused():
    """With rounding = 0 the primal value of LearnedTV is infinite off its constraint, so no gap is
    finite.
    """
    energy = SaddleEnergy(
        cases.denoising(), LearnedTV(2, rounding=0.0, smoothing=0.0, curvature=0.0).double()
    )
    with pytest.raises(MissingPropertyError, match=r"a constraint K x = 0.*rounding > 0"):
        solve(energy, pairs(2).y, 1e-2)


def test_a_gap_that_is_infinite_on_the_way_is_no_failure():
    """K x passes through places where Poisson's data term is infinite; the solve goes on to where
    it is finite.
    """
    regularizer = Matrix(0.5 * normal(3, 5), 5, Squares(2.0), shift=normal(3, seed=1))
    problem = posed(
        regularizer,
        cases.Dense(normal(6, 5, seed=6).abs()),
        measured=6,
        fidelity=KL(0.5),
        tikhonov=0.4,
    )
    y = 4 * problem.pairs.y.abs()
    f = problem.energy.at(y)
    with torch.no_grad():
        outside = f.pack(*f.start(-10 * torch.ones_like(problem.pairs.x)))
        x, p = f.unpack(outside)
        assert bool(f.evidence(x, p, f.apply(x), f.adjoint(p)).isinf().all())
    found = solve(problem.energy, y, 1e-6, x0=outside)
    assert found.ok
    exact = f.image(
        truth(BilevelProblem(problem.energy, type(problem.pairs)(x=problem.pairs.x, y=y))).state
    )
    assert bool((distance(found.value, exact) <= found.error).all())


def test_nan_is_one():
    problem = pictured("tv")
    f = problem.energy.at(problem.pairs.y)
    start = f.pack(*f.start(problem.pairs.y))
    start[1, 0] = float("nan")
    found = solve_potential(f, 1e-3, start)
    assert [s is Status.NOT_FINITE for s in found.status] == [False, True, False]
    assert found.error.isinf().tolist() == [False, True, False]


# --- images are strangers -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tv", "tgv-curvature", "learned"])
def test_an_image_does_not_see_its_neighbours(name):
    problem = pictured(name, size=(5, 6), count=5)
    energy, y = problem.energy, problem.pairs.y
    eps = torch.tensor([1e-1, 1e-4, 1e-2, 1e-6, 1e-3], dtype=torch.float64)
    whole = solve(energy, y, eps)
    assert len(set(whole.steps.tolist())) > 2, "images are frozen at different times"
    for index in (
        torch.tensor([4, 2, 0, 3, 1]),
        torch.tensor([1, 3]),
        torch.tensor([0]),
        torch.tensor([3]),
    ):
        part = solve(energy, y[index], eps[index])
        torch.testing.assert_close(part.state, whole.state[index], rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(part.error, whole.error[index], rtol=1e-5, atol=1e-12)
        assert torch.equal(part.steps, whole.steps[index])
        assert part.theorem == tuple(whole.theorem[i] for i in index.tolist())


@torch.no_grad()
@pytest.mark.parametrize("physics", ["denoising", "blur"])
def test_a_chosen_part_of_a_state_goes_on_as_before(physics):
    """Every image at another pace, one step later and many: a field that stayed behind would
    show.
    """
    problem = pictured("tgv-curvature", physics, size=(5, 6), count=4)
    energy, y = (
        problem.energy,
        problem.pairs.y * torch.tensor([1.0, 0.1, 3.0, 10.0]).view(4, 1, 1, 1),
    )
    f, solver, index = energy.at(y), PDHG(interval=7), torch.tensor([3, 1])
    state = solver.init(f, f.pack(*f.start(energy.start(y))))
    for _ in range(2):
        state = solver.step(f, state)
    paces = torch.tensor([0.9, 0.7, 1.0, 0.5], dtype=torch.float64)
    state = replace(state, t=state.t * paces, theta=state.theta * paces, accelerating=paces < 0.8)
    part, rest, one = f.select(index), state.select(index), replace(solver, interval=1)
    both = [(one.step(f, state), one.step(part, rest))]
    for _ in range(8):
        state, rest = solver.step(f, state), solver.step(part, rest)
    both.append((state, rest))
    for all_of_them, some in both:
        for name in ("x", "p", "kx", "before", "ktp"):
            for a, b in zip(getattr(all_of_them, name), getattr(some, name), strict=True):
                torch.testing.assert_close(a[index], b, rtol=1e-10, atol=1e-11)
        for name in ("t", "theta", "evidence"):
            torch.testing.assert_close(
                getattr(all_of_them, name)[index], getattr(some, name), rtol=1e-8, atol=1e-11
            )
        assert torch.equal(all_of_them.accelerating[index], some.accelerating)
        assert torch.equal(all_of_them.point[index], all_of_them.select(index).point)
    assert len(set(state.t.tolist())) == 4 or state.metric is not None


def test_nothing_lent_is_changed():
    problem = pictured("learned")
    y, theta = problem.pairs.y, problem.theta.clone()
    state = solve(problem.energy, y, 1e-2).state
    kept = y.clone(), state.clone()
    solve(problem.energy, y, 1e-5, x0=state).value.add_(1)
    solve(problem.energy, y, 1e-1).value.add_(1)
    assert (
        torch.equal(y, kept[0])
        and torch.equal(state, kept[1])
        and torch.equal(problem.theta, theta)
    )


# --- warm starts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tv", "tgv-curvature", "learned"])
def test_a_state_is_a_warm_start(name):
    problem = pictured(name)
    cold = solve(problem.energy, problem.pairs.y, 1e-5)
    again = solve(problem.energy, problem.pairs.y, 1e-5, x0=cold.state)
    assert again.steps.tolist() == [0, 0, 0] and torch.equal(again.value, cold.value)
    assert torch.equal(again.error, cold.error) and torch.equal(cold.warm, cold.state)
    theta = problem.theta + 1e-3
    near = problem.energy.with_theta(theta)
    assert int(solve(near, problem.pairs.y, 1e-5, x0=cold.state).steps.sum()) < 0.9 * int(
        solve(near, problem.pairs.y, 1e-5).steps.sum()
    )
    image = solve(problem.energy, problem.pairs.y, 1e-5, x0=cold.value)
    assert image.ok and float(distance(image.value, cold.value).max()) < 2e-5


def test_the_state_of_another_problem_is_refused():
    small, large = pictured("tv", size=(4, 4)), pictured("tv", size=(4, 5))
    state = solve(small.energy, small.pairs.y, 1e-1).state
    with pytest.raises(
        InputError, match=r"state: given \d+ variables per image; expected \d+.*state of the same"
    ):
        solve(large.energy, large.pairs.y, 1e-1, x0=state)
    with pytest.raises(InputError, match="x0: given 3 images; expected 2"):
        solve(small.energy, small.pairs.y[:2], 1e-1, x0=state)
    with pytest.raises(InputError, match="x0"):
        solve(small.energy, small.pairs.y, 1e-1, x0=small.pairs.y[..., :3])


# --- float32, budgets -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tv", "tgv-curvature", "learned"])
def test_float32_goes_on_in_float64_where_it_must(name):
    problem = pictured(name, size=(4, 5), dtype=torch.float32)
    energy, y = problem.energy, problem.pairs.y
    exact = solve(energy.widened(), y.double(), 1e-7 if name == "tv" else 1e-8)
    for eps in (1e-2, 1e-4, 3e-6):
        found = solve(energy, y, eps)
        assert (
            found.value.dtype == found.state.dtype == torch.float32
            and found.error.dtype == torch.float64
        )
        assert bool((distance(found.value, exact.value) <= found.error + exact.error).all())
    beyond = solve(energy, y, 1e-10, throw=False)
    assert beyond.status == (Status.ROUNDING_FLOOR,) * 3
    assert bool((distance(beyond.value, exact.value) <= beyond.error + exact.error).all())
    assert float(beyond.error.max()) < 1e-5


def test_budgets_and_stops_leave_a_certificate():
    problem, images, off = instance("tv")
    found = solve(problem.energy, problem.pairs.y, 1e-7, budget=3, throw=False)
    assert found.status == (Status.MAX_STEPS,) * 3 and found.steps.tolist() == [3] * 3
    assert bool((distance(found.value, images) <= found.error + off).all()) and bool(
        found.error.isfinite().all()
    )
    with pytest.raises(SolveError, match="Reached"):
        solve(problem.energy, problem.pairs.y, 1e-7, budget=3)
    asked: list[int] = []
    f = problem.energy.at(problem.pairs.y)
    found = solve_potential(
        f, 1e-7, problem.pairs.y, should_stop=lambda: asked.append(1) or len(asked) > 2
    )
    assert found.status == (Status.BUDGET,) * 3 and bool(found.error.isfinite().all())


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["agd", "lbfgs", "newton", AGD()])
def test_methods_for_gradients_refuse_a_saddle(solver):
    problem = pictured("tv")
    with pytest.raises(MissingPropertyError, match=r"for a SaddleAt; expected pdhg.*solver='auto'"):
        solve(problem.energy, problem.pairs.y, 1e-1, solver=solver)


@pytest.mark.parametrize("solver", ["pdhg", PDHG()])
def test_pdhg_refuses_a_differentiable_energy(solver):
    with pytest.raises(
        MissingPropertyError, match=r"'pdhg' for a EnergyAt; expected .*solver='auto'"
    ):
        solve(Energy(cases.denoising(), TV().double()), pairs().y, 1e-1, solver=solver)


@pytest.mark.parametrize("regularizer", [ExactTV, TGV, LearnedTV])
def test_a_saddle_regularizer_belongs_to_a_saddle_energy(regularizer):
    with pytest.raises(InputError, match="SaddleEnergy"):
        Energy(cases.denoising(), regularizer())
    with pytest.raises(InputError, match=r"TV without .*Energy"):
        SaddleEnergy(cases.denoising(), TV())


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), "1"])
def test_tikhonov_out_of_range_is_named(value):
    with pytest.raises(InputError, match=r"^tikhonov: given "):
        SaddleEnergy(cases.denoising(), ExactTV(), tikhonov=value)


@pytest.mark.parametrize("fidelity", [L1(0.5), KL(0.5)])
def test_nothing_is_certified_without_strong_convexity(fidelity):
    y = pairs().y.abs()
    with pytest.raises(MissingPropertyError, match="tikhonov > 0"):
        solve(SaddleEnergy(cases.denoising(), ExactTV().double(), fidelity), y, 1e-1)
    with pytest.raises(MissingPropertyError, match="tikhonov > 0"):
        masked = cases.inpainting(tuple(y.shape[1:]))
        solve(SaddleEnergy(masked, ExactTV().double()), y, 1e-1)
    found = solve(
        SaddleEnergy(cases.denoising(), ExactTV().double(), fidelity, tikhonov=0.1), y, 1e-3
    )
    assert found.ok


@pytest.mark.parametrize("rule", ["accelerated", "linear"])
def test_rules_that_need_strong_convexity_say_so(rule):
    problem = pictured("tgv")
    with pytest.raises(MissingPropertyError, match=rf"rule: given {rule}.*tikhonov"):
        solve(problem.energy, problem.pairs.y, 1e-1, solver=PDHG(rule=rule))


def test_steps_that_are_too_long_are_refused_with_the_factor():
    problem = pictured("tv")
    k = problem.energy.regularizer.norms(problem.pairs.y)[0][0]
    with pytest.raises(
        InputError, match=r"tau sigma \|\|K\|\|\^2 = 4; expected at most 1.*by 0\.5"
    ):
        solve(problem.energy, problem.pairs.y, 1e-1, solver=PDHG(tau=2 / k, sigma=2 / k))
    assert solve(problem.energy, problem.pairs.y, 1e-1, solver=PDHG(tau=1 / k, sigma=1 / k)).ok


@pytest.mark.parametrize(
    ("settings_", "name"),
    [
        ({"rule": "fast"}, "rule"),
        ({"balance": 0.0}, "balance"),
        ({"tau": -1.0, "sigma": 1.0}, "tau"),
        ({"tau": 1.0}, "tau, sigma"),
        ({"interval": 0}, "interval"),
        ({"sigma": float("nan"), "tau": 1.0}, "sigma"),
    ],
)
def test_settings_out_of_range_are_named(settings_, name):
    with pytest.raises(InputError, match=rf"^{name}: given "):
        PDHG(**settings_)


def test_an_operator_of_zero_is_no_trouble():
    problem = posed(Matrix(torch.zeros(2, 3).double(), 3, Squares(1.0)))
    for rule in RULES:
        found = solve(problem.energy, problem.pairs.y, 1e-9, solver=PDHG(rule=rule))
        torch.testing.assert_close(found.value, problem.pairs.y, rtol=0, atol=1e-8)


# --- other ways to the same picture ---------------------------------------------------------------


def test_exact_tv_is_the_limit_of_smoothed_tv():
    y = pairs(2, (6, 6)).y
    sharp = solve(SaddleEnergy(cases.denoising(), ExactTV(0.1).double()), y, 1e-6).value
    errors = [
        float(
            (solve(Energy(cases.denoising(), TV(0.1, nu).double()), y, 1e-6).value - sharp)
            .abs()
            .max()
        )
        for nu in (1e-2, 1e-3)
    ]
    assert errors[1] < 2e-3 and errors[1] < 0.5 * errors[0]


def test_huber_is_the_smoothed_function_that_it_is_called():
    """rounding r: HuberTV with smoothing r / w, the differentiable branch, has the same
    minimizer.
    """
    from learnreg.regularizers import HuberTV

    y = pairs(2, (6, 6)).y
    saddle = solve(SaddleEnergy(cases.denoising(), ExactTV(0.1, rounding=0.02).double()), y, 1e-8)
    other = solve(Energy(cases.denoising(), HuberTV(0.1, 0.2).double()), y, 1e-8)
    assert float(distance(saddle.value, other.value).max()) < 3e-8


def test_the_algorithm_of_chambolle_finds_the_same_picture():
    restoration = pytest.importorskip("skimage.restoration")
    y = pairs(1, (8, 8)).y
    ours = solve(SaddleEnergy(cases.denoising(), ExactTV(0.1).double()), y, 1e-5).value
    theirs = restoration.denoise_tv_chambolle(
        y[0, 0].numpy(), weight=0.1, eps=1e-9, max_num_iter=3000
    )
    regularizer = ExactTV(0.1).double()

    def energy(u: Tensor) -> float:
        return float(0.5 * (u - y).square().sum() + regularizer.value(u)[0])

    assert energy(ours) <= energy(torch.from_numpy(theirs)[None, None]) + 1e-8


def test_the_median_is_what_l1_without_regularization_leaves():
    """Salt in a flat picture: L1 removes it, at the price of the tikhonov term only."""
    y = torch.full((1, 1, 6, 6), 0.5, dtype=torch.float64)
    y[..., 2, 3] = 1.0
    energy = SaddleEnergy(cases.denoising(), ExactTV(0.5).double(), L1(1.0), tikhonov=1e-3)
    found = solve(energy, y, 1e-3)
    assert float((found.value - 0.5).abs().max()) < 1e-2


@torch.no_grad()
def test_a_data_block_gives_the_solution_of_the_prox(monkeypatch):
    """Denoising with the operator as a further dual block, and with the data term as a function of
    u.
    """
    problem = pictured("tv-rounding")
    direct = solve(problem.energy, problem.pairs.y, 1e-7)
    blocked = SaddleEnergy(problem.energy.physics, problem.energy.regularizer)
    monkeypatch.setattr(type(blocked.fidelity), "of_image", lambda *arguments: None)
    blocked.tikhonov = 0.0
    f = blocked.at(problem.pairs.y)
    assert f.data and len(f.dual) == 2 and f.norms[0] == (1.0,)
    other = solve(blocked, problem.pairs.y, 1e-6)
    assert bool((distance(other.value, direct.value) <= other.error + direct.error).all())


def test_functions_of_one_image_are_not_those_of_another():
    """``select`` of a saddle function takes the data of the image along."""
    problem = pictured("tv", "blur")
    f = problem.energy.at(problem.pairs.y)
    part = f.select(torch.tensor([2]))
    alone = problem.energy.at(problem.pairs.y[2:])
    for a, b in zip((*part.primal, *part.dual), (*alone.primal, *alone.dual), strict=True):
        if isinstance(a, Squares | Norm) and a.centre is not None:
            assert torch.equal(a.centre, b.centre)
    assert torch.equal(part.y, alone.y) and replace(part, y=alone.y) != alone


@pytest.mark.parametrize("fidelity", [L1(1.0), KL(0.05)], ids=repr)
def test_a_tiny_tikhonov_belongs_to_the_data_term(fidelity, monkeypatch):
    """One dual block, and steps that do not wait for an acceleration that never comes."""
    y = pairs(2, (10, 10)).y.abs()
    energy = SaddleEnergy(cases.denoising(), ExactTV(0.3).double(), fidelity, tikhonov=1e-3)
    f = energy.at(y)
    assert not f.data and len(f.dual) == 1 and f.bounds().mu.value == 1e-3
    assert PDHG().steps(f).weak and not PDHG(rule="accelerated").steps(f).weak

    quick = solve(energy, y, 0.3)
    slow = solve(energy, y, 0.3, solver=PDHG(rule="accelerated"))
    monkeypatch.setattr(type(fidelity), "of_image", lambda *arguments: None)
    assert energy.at(y).data
    blocked = solve(energy, y, 0.3)
    for other in (slow, blocked):
        assert bool((distance(quick.value, other.value) <= quick.error + other.error).all())
    assert quick.cost.work < 0.7 * slow.cost.work


@torch.no_grad()
@pytest.mark.parametrize("zeros", [False, True])
def test_the_growth_of_counts_certifies_more_than_a_tiny_tikhonov(zeros):
    """Never less than the truth, at every accuracy, and an order sharper than mu alone."""
    generator = torch.Generator().manual_seed(4)
    mean = 20 * pairs(3, (8, 8)).x.abs()
    if zeros:
        mean = mean * (torch.rand(8, generator=generator) > 0.4)
    y = torch.poisson(mean, generator=generator) / 20
    assert bool((y == 0).any()) or not zeros
    energy = SaddleEnergy(cases.denoising(), ExactTV(0.05).double(), KL(0.02), tikhonov=1e-3)
    f = energy.at(y)
    exact = solve(energy, y, 1e-6)
    state = PDHG().init(f, f.pack(*f.start(y)))
    ratios = []
    for _ in range(25):
        state = PDHG().step(f, state)
        found, gap = f.certify(state.point), f.gap(state.x, state.p, state.kx, state.ktp)
        true = distance(state.x[0], exact.value)
        assert bool((true <= found.distance + exact.error).all())
        torch.testing.assert_close(found.distance, state.evidence)
        ratios.append((2 * gap / 1e-3).sqrt() / found.distance)
    assert float(torch.stack(ratios[-5:]).median()) > 10
    assert solve(energy, y, 1e-2).theorem == ("growth",) * 3
