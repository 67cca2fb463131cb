"""What ``auto`` takes and why, and how one batch is solved in two precisions."""

from __future__ import annotations

import math

import deepinv
import pytest
import torch
from tests.regularizers.cases import ENERGIES, denoising, newton, pairs, tv
from tests.solvers.test_lbfgs import Watched
from tests.solvers.test_solve import energy_theta, honest
from torch import Tensor, nn

from learnreg.core.bounds import Kind
from learnreg.core.cost import Cost
from learnreg.core.errors import InputError
from learnreg.core.status import Status
from learnreg.linear.cg import cg
from learnreg.problems import Energy, gallery
from learnreg.regularizers import TV, FoE, Tikhonov
from learnreg.solvers import AGD, LBFGS, minimize, solve
from learnreg.solvers.select import SOLVERS, adjoint_preconditioner, check_solver, choose
from learnreg.solvers.solve import solve_potential


def blur(regularizer) -> Energy:
    return Energy(
        deepinv.physics.Blur(filter=torch.ones(1, 1, 5, 5).double() / 25, padding="circular"),
        regularizer,
    )


MILD = lambda: denoising(TV(0.1, 0.1).double())  # noqa: E731
EXPERTS = lambda: denoising(FoE(24, 7).double())  # noqa: E731
ILL_TV = lambda: blur((TV(0.05, 0.01) + Tikhonov(1e-3)).double())  # noqa: E731
ILL_FOE = lambda: blur((FoE(8, 5) + Tikhonov(1e-3)).double())  # noqa: E731


# --- the choice -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "taken"),
    [(MILD, AGD), (EXPERTS, LBFGS), (ILL_TV, LBFGS), (ILL_FOE, LBFGS)],
    ids=["tv_denoising", "foe_denoising", "tv_deblurring", "foe_deblurring"],
)
def test_auto_takes_what_pays_and_says_why(make, taken):
    energy, y = make(), pairs(2, (9, 8)).y
    potential = energy.at(y)
    solver, words = choose("auto", potential)
    assert isinstance(solver, taken) and solver == taken(), "with its own settings"
    curvature = potential.bounds()
    kappa = curvature.L.value / curvature.mu.value
    assert words.startswith(f"{solver.name} (auto: L/mu = {kappa:.0f}, ")
    solution = solve(energy, y, 1e-1)
    assert solution.ok and solution.solver == words


def test_auto_follows_the_condition_and_the_price_of_a_gradient():
    y = pairs(1, (8, 8)).y
    taken = [
        choose("auto", denoising(TV(0.1, nu).double()).at(y))[0].name
        for nu in (1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5)
    ]
    assert taken[0] == "agd" and taken[-1] == "lbfgs" and taken == sorted(taken)
    taken = [
        choose("auto", denoising(FoE(k, 3, weight=0.05, smoothing=0.05).double()).at(y))[0].name
        for k in (1, 2, 4, 8)
    ]
    assert taken == sorted(taken)
    terms = (Tikhonov(), TV(), TV() + Tikhonov(), FoE(8, 3), FoE(8, 5))
    efforts = [denoising(r.double()).at(y).effort() for r in terms]
    assert efforts == sorted(set(efforts)), "the more to do, the more it costs"
    assert blur(TV().double()).at(y).effort() > efforts[1], "an operator costs"
    assert denoising((3 * FoE(8, 5)).double()).at(y).effort() == efforts[-1]


def test_a_potential_that_tells_nothing_is_left_to_accelerated_gradient():
    """The gallery offers neither averages nor a price."""
    problem = gallery.quadratic(images=2, n=10, condition=1e6)
    solver, words = choose("auto", problem.energy.at(problem.pairs.y))
    assert isinstance(solver, AGD) and words.startswith("agd (auto: L/mu = 1000000, ")


class Own(nn.Module):
    """A regularizer of a user with what an Energy needs and no more."""

    def __init__(self, inner) -> None:
        super().__init__()
        for name in ("value", "grad", "linearize", "directional", "bounds"):
            setattr(self, name, getattr(inner, name))


def test_auto_promises_preconditioned_steps_only_where_it_can_precondition():
    energy, y = blur(Own((FoE(8, 5) + Tikhonov(1e-3)).double())), pairs(2, (9, 8)).y
    assert energy.at(y).mean_curvature(y) is None
    solution = solve(energy, y, 1e-1)
    assert solution.ok
    assert "preconditioned" not in solution.solver or solution.cost.linearizations > 0


def test_auto_does_not_do_much_worse_than_accelerated_gradient():
    """Missing pixels, little else to hold them, and a sharp kink: averages taken at edges mislead
    there.
    """
    mask = (torch.rand(1, 5, 5, generator=torch.Generator().manual_seed(0)) > 0.5).double()
    physics = deepinv.physics.Inpainting((1, 5, 5), mask=mask)
    energy, y = (
        Energy(physics, (TV(0.1, 3e-4) + Tikhonov(1e-2)).double()),
        mask * pairs(1, (5, 5)).y,
    )
    plain = solve(energy, y, 1e-2, solver="agd")
    solution = solve(energy, y, 1e-2, budget=2 * int(plain.steps), throw=False)
    assert solution.ok, solution


def test_the_choice_for_an_image_does_not_depend_on_its_neighbours():
    """A faint image next to a bright one, each alone and both together."""
    energy = blur((TV(0.05, 0.003) + Tikhonov(1e-2)).double())
    y = torch.stack([0.1 * pairs(1, (8, 8)).y[0], 50 * pairs(1, (8, 8)).y[0]])
    together = solve(energy, y, 1e-1)
    for i in range(2):
        alone = solve(energy, y[i : i + 1], 1e-1)
        assert alone.steps[0] == together.steps[i], (
            f"{alone.solver} alone, {together.solver} in company"
        )


@pytest.mark.parametrize(
    "name", [name for name in SOLVERS if name != "pdhg"]
)  # which is for saddle functions
def test_a_name_is_taken_at_its_word(name):
    solver, words = choose(name, MILD().at(pairs(1).y))
    assert isinstance(solver, SOLVERS[name]) and words == name == solver.name
    check_solver(name), check_solver("auto"), check_solver(solver)


def test_an_object_goes_through():
    mine = LBFGS(memory=2)
    assert choose(mine, MILD().at(pairs(1).y)) == (mine, "lbfgs")
    assert choose(mine, MILD().at(pairs(1).y))[0] is mine


@pytest.mark.parametrize("name", ["simplex", "", "LBFGS", "Auto"])
def test_unknown_names_are_refused_with_the_list(name):
    for call in (
        lambda: choose(name, MILD().at(pairs(1).y)),
        lambda: check_solver(name),
        lambda: solve(MILD(), pairs(1).y, 1e-1, solver=name),
    ):
        with pytest.raises(
            InputError, match=f"solver: given '{name}'; expected 'auto' or one of "
        ) as caught:
            call()
        assert all(repr(known) in str(caught.value) for known in SOLVERS)


def test_conjugate_gradients_are_preconditioned_where_it_pays():
    y = pairs(3, (16, 16)).y
    for energy in (denoising(TV(1.0, 10.0).double()), denoising(Own(TV(0.1, 1e-3).double())), None):
        potential = (
            gallery.quadratic().energy.at(gallery.quadratic().pairs.y)
            if energy is None
            else energy.at(y)
        )
        P, cost = adjoint_preconditioner(potential, y)
        assert P is None and cost == Cost(), "not where it cannot, or where it does not"
    for make in (ILL_FOE, EXPERTS):
        potential = make().at(y)
        x = solve(make(), y, 1e-1).value  # hypergradients are taken at solutions
        P, cost = adjoint_preconditioner(potential, x)
        assert cost == Cost(linearizations=3)
        hessian, b = potential.linearize(x), x - pairs(3, (16, 16)).x
        plain, fast = cg(hessian, b, 1e-5), cg(hessian, b, 1e-5, None, P)
        assert (
            plain.ok and fast.ok and fast.steps.double().mean() < 0.95 * plain.steps.double().mean()
        )


# --- one batch in two precisions ------------------------------------------------------------------


class Spy(Watched):
    """Counts the gradients of each image by precision as well."""

    def __init__(self, *args, **settings) -> None:
        super().__init__(*args, **settings)
        if len(self.counts) == 2:
            self.counts = (*self.counts, torch.zeros_like(self.counts[0]))

    def grad(self, x: Tensor) -> Tensor:
        self.counts[2][self.index] += x.dtype == torch.float64
        return super().grad(x)

    def _like(self, inner, index: Tensor) -> Spy:
        return Spy(inner, self.hook, self.offers, self.factor, self.counts, index)


EPS = torch.tensor([1e-2, 4e-7, 1e-3, 3e-7, 1e-1], dtype=torch.float64)
TIGHT = torch.tensor([False, True, False, True, False])


def single(name: str = "tv") -> tuple[Energy, Tensor]:
    energy = ENERGIES[name]()
    return energy.with_theta(energy_theta(energy).float()), pairs(5).y.float()


@pytest.mark.parametrize("solver", ["agd", "lbfgs", "auto"])
@pytest.mark.parametrize("name", ["tv", "tv_sharp", "foe"])
def test_float64_is_for_the_images_that_need_it(name, solver):
    energy, y = single(name)
    spy = Spy(energy.at(y))
    solution = solve_potential(spy, EPS, y, solver)
    assert solution.status == (Status.CONVERGED,) * 5 and solution.kind == Kind.EXACT
    assert solution.value.dtype == solution.gradient.dtype == torch.float32
    assert solution.error.dtype == torch.float64 and (solution.error <= EPS).all()
    assert honest(solution.value.double(), newton(energy, y), solution.error)
    gradients, _, double = spy.counts
    assert ((double <= 5) | TIGHT).all(), "of the others only closing gradients are in float64"
    assert (double > 5)[TIGHT].all() and (solution.steps > 0).all()
    assert solution.cost.gradients == int(gradients.sum())
    assert (gradients - solution.steps >= 2).all() and (gradients - solution.steps <= 9).all()
    assert solution.solver == (choose(solver, spy)[1])


@pytest.mark.parametrize("solver", ["agd", "lbfgs"])
def test_the_certificate_pays_for_rounding_to_float32(solver):
    """The float64 image is nearer than eps by more than what rounding it costs; beyond that it is a
    floor.
    """
    energy, y = single()
    solution = solve_potential(energy.at(y), 3e-7, y, solver)
    exact = newton(energy, y)
    assert solution.ok and honest(solution.value.double(), exact, solution.error)
    closing = energy.widened().at(y.double()).grad(solution.value.double()).flatten(1).norm(dim=1)
    assert (closing / energy.bounds().mu.value > 1e-8).all(), (
        "the rounded image has the gradient of its rounding"
    )
    rounding = (exact.float().double() - exact).flatten(1).norm(dim=1)
    assert (solution.error >= 0.5 * rounding).all()
    floor = solve_potential(energy.at(y), 1e-9, y, solver)
    assert floor.status == (Status.ROUNDING_FLOOR,) * 5
    assert (floor.error > 1e-9).all() and (floor.error < 3 * rounding).all(), (
        "as near as float32 can be"
    )
    assert honest(floor.value.double(), exact, floor.error)
    again = solve_potential(energy.at(y), 1.2 * floor.error, y, solver)
    assert again.ok, "what is named as reachable can be had"


@pytest.mark.parametrize("solver", ["agd", "lbfgs"])
@pytest.mark.parametrize("name", ["tv", "foe"])
def test_in_two_precisions_an_image_does_not_see_its_neighbours(name, solver):
    energy, y = single(name)
    f = energy.at(y)
    whole = solve_potential(f, EPS, y, solver)
    for index in (
        torch.tensor([4, 2, 0, 3, 1]),
        torch.tensor([1, 3]),
        torch.tensor([0, 2, 4]),
        torch.tensor([2]),
        torch.tensor([3]),
    ):
        part = solve_potential(f.select(index), EPS[index], y[index], solver)
        assert part.status == tuple(whole.status[i] for i in index.tolist())
        near = torch.where(TIGHT[index], 4e-7, 2e-5)
        assert ((part.value - whole.value[index]).flatten(1).norm(dim=1) <= near).all()
        assert ((part.steps - whole.steps[index]).abs() <= 2).all()
        assert part.value.dtype == torch.float32 and part.solver == whole.solver


@pytest.mark.parametrize("solver", [AGD(), LBFGS()], ids=["agd", "lbfgs"])
def test_an_image_that_meets_the_floor_on_the_way_goes_on_in_float64(solver):
    """From a start at zero nothing looks near rounding; the work in both precisions counts."""
    energy, y = single("tv_sharp")
    zero = torch.zeros_like(y)
    alone = minimize(energy.at(y), 3e-6, solver, zero)
    floored = torch.tensor([s is Status.ROUNDING_FLOOR for s in alone.status])
    assert floored.any()
    spy = Spy(energy.at(y))
    solution = solve_potential(spy, 3e-6, zero, solver)
    assert solution.ok and honest(solution.value.double(), newton(energy, y), solution.error)
    assert torch.equal(solution.steps[~floored], alone.steps[~floored])
    assert (solution.steps[floored] > alone.steps[floored]).all()
    assert (
        solution.cost.gradients == int(spy.counts[0].sum()) and solution.cost.work > alone.cost.work
    )


def test_float64_stays_in_float64():
    energy, y = ENERGIES["tv"](), pairs(5).y
    spy = Spy(energy.at(y))
    solution = solve_potential(spy, EPS, y)
    assert (
        solution.ok
        and solution.value.dtype == torch.float64
        and torch.equal(spy.counts[0], spy.counts[2])
    )


# --- budgets --------------------------------------------------------------------------------------


def stop_after(questions: int):
    asked = []
    return lambda: asked.append(1) or len(asked) > questions


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("solver", ["agd", "lbfgs"])
def test_a_stop_from_outside_is_a_status_with_a_certificate(solver, dtype):
    energy, y = single("foe")
    if dtype == torch.float64:
        energy, y = energy.widened(), y.double()
    exact = newton(energy, y)
    for eps in (1e-4, 1e-7):  # in float32 the first is solved in float32, the second in float64
        solution = solve_potential(energy.at(y), eps, y, solver, should_stop=stop_after(4))
        assert solution.status == (Status.BUDGET,) * 5 and solution.steps.tolist() == [4] * 5
        assert solution.value.dtype == dtype and honest(
            solution.value.double(), exact, solution.error
        )
        assert solution.error.isfinite().all()


@pytest.mark.parametrize("questions", [0, 3, 20])
def test_a_stop_reaches_the_images_that_wait_for_float64(questions):
    """They have not been begun when the budget ends: that is what their status says, and a distance
    is known.
    """
    energy, y = single("tv_sharp")
    eps = torch.tensor([1e-3, 1e-7, 1e-3, 1e-7, 1e-3], dtype=torch.float64)
    solution = solve_potential(energy.at(y), eps, y, "agd", should_stop=stop_after(questions))
    assert solution.status == (Status.BUDGET,) * 5
    assert solution.error.isfinite().all() and honest(
        solution.value.double(), newton(energy, y), solution.error
    )


@pytest.mark.parametrize("solver", ["agd", "lbfgs"])
def test_the_step_limit_is_one_for_both_precisions(solver):
    energy, y = single("tv_sharp")
    x0 = torch.zeros_like(y)
    free = solve_potential(energy.at(y), 3e-6, x0, solver)
    limit = int(free.steps.max()) - 1
    held = solve_potential(energy.at(y), 3e-6, x0, solver, max_steps=limit)
    assert held.steps.max() <= limit, f"{held.steps.tolist()} steps, {limit} allowed"


@pytest.mark.parametrize("solver", ["agd", "lbfgs"])
def test_the_step_limit_of_an_image_does_not_depend_on_its_neighbours(solver):
    """Image 0 meets the floor of float32 after many steps, image 1 is begun in float64: each has
    its own limit.
    """
    energy, y = single("tv_sharp")
    f, x0 = energy.at(y[:2]), torch.stack([torch.zeros_like(y[0]), y[1]])
    limit = int(solve_potential(f, 3e-6, x0, solver).steps.max()) + 5
    together = solve_potential(f, 3e-6, x0, solver, max_steps=limit)
    for i in range(2):
        alone = solve_potential(
            f.select(torch.tensor([i])), 3e-6, x0[i : i + 1], solver, max_steps=limit
        )
        assert alone.ok and together.status[i].ok, together


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_status_is_good_exactly_where_the_error_is(dtype):
    energy, y = single("foe")
    energy, y = (energy.widened(), y.double()) if dtype == torch.float64 else (energy, y)
    eps = torch.tensor([1e-2, 1e-4, 1e-5, 1e-6, 1e-9], dtype=torch.float64)
    for limit in (5, 20, 60, 20000):
        solution = solve_potential(energy.at(y), eps, y, max_steps=limit)
        for status, error, wanted in zip(
            solution.status, solution.error.tolist(), eps.tolist(), strict=True
        ):
            assert not status.ok or error <= wanted
            assert status.ok or error > 0.1 * wanted, (
                "close to the goal it would have been certified"
            )


def test_nan_in_two_precisions_stays_in_its_image():
    def breaks(g: Tensor, index: Tensor, calls: Tensor) -> Tensor:
        g = g.clone()
        g.view(g.shape[0], -1)[((index == 0) | (index == 1)) & (calls >= 6), 2] = math.nan
        return g

    energy, y = single("foe")
    for solver in ("agd", "lbfgs"):
        solution = solve_potential(Spy(energy.at(y), breaks), EPS, y, solver)
        assert [s.name for s in solution.status] == ["NOT_FINITE"] * 2 + ["CONVERGED"] * 3
        assert solution.value.isfinite().all() and solution.error[:2].isinf().all()
        clean = solve_potential(energy.at(y), EPS, y, solver)
        torch.testing.assert_close(solution.value[2:], clean.value[2:], rtol=0, atol=1e-5)


def test_two_precisions_change_nothing_lent():
    energy, y = single()
    f, x0, eps = energy.at(y), tv(True).grad(y.double()).float(), EPS.clone()
    kept = [t.clone() for t in (y, x0, eps, *energy.parameters())]
    solve_potential(f, eps, x0, "lbfgs").value.add_(1)
    assert all(
        torch.equal(a, b) for a, b in zip((y, x0, eps, *energy.parameters()), kept, strict=True)
    )
    assert all(p.dtype == torch.float32 for p in energy.parameters())
