"""What every linear solver of the house promises, with and without a preconditioner.

A new solver adds one entry to ``SOLVERS`` and inherits every test.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from tests.linear.cases import Diagonals, Matrices, normal, residual, spd
from torch import Tensor

from learnreg.core.errors import InputError
from learnreg.core.protocols import Hessian
from learnreg.core.results import LinearSolution
from learnreg.core.status import Status
from learnreg.linear import CG, MINRES
from learnreg.linear.precondition import Preconditioner

SOLVERS = {"cg": CG, "minres": MINRES}
# matrices (b, n, n) -> preconditioner for them
PRECONDITIONERS: dict[str, Callable[[Tensor], Preconditioner | None]] = {
    "none": lambda h: None,
    "callable": lambda h: (
        lambda r: r / torch.linspace(1, 3, h.shape[1], dtype=h.dtype).view(r.shape[1:])
    ),
    "select": lambda h: Diagonals(h.diagonal(dim1=1, dim2=2)),
}


class Contestant:
    """A solver with a way of preconditioning: called like ``cg``, settings by keyword."""

    def __init__(self, solver: str, preconditioner: str) -> None:
        self.make, self.precondition = SOLVERS[solver], PRECONDITIONERS[preconditioner]

    def __call__(
        self,
        matvec: Hessian | Tensor,
        b: Tensor,
        tol: float | Tensor,
        x0: Tensor | None = None,
        **settings: int,
    ) -> LinearSolution:
        operator = Matrices(matvec) if isinstance(matvec, Tensor) else matvec
        return self.make(**settings)(operator, b, tol, x0, self.precondition(operator.h))


@pytest.fixture(params=[f"{s}-{p}" for s in SOLVERS for p in PRECONDITIONERS])
def solve(request: pytest.FixtureRequest) -> Contestant:
    return Contestant(*request.param.split("-"))


# --- what is computed -----------------------------------------------------------------------------


@pytest.mark.parametrize("condition", [1.0, 30.0, 1e4, 1e6])
@pytest.mark.parametrize("tol", [1e-2, 1e-8])
def test_against_dense_solves(solve, condition, tol):
    h, b = spd(4, 20, condition), normal(4, 20, seed=1)
    solution = solve(h, b, tol)
    assert solution.ok
    exact = torch.linalg.solve(h, b)
    assert ((solution.value - exact).norm(dim=1) <= tol * (1 + 1e-6)).all(), (
        "the smallest eigenvalue is 1"
    )
    torch.testing.assert_close(
        solution.residual, residual(h, solution.value, b), rtol=1e-6, atol=1e-11
    )
    assert (solution.residual <= tol).all() and solution.residual.dtype == torch.float64


def test_images_of_any_shape(solve):
    h, b = spd(3, 12, 10.0), normal(3, 1, 3, 4)
    solution = solve(h, b, 1e-9)
    assert solution.value.shape == b.shape
    torch.testing.assert_close(
        solution.value.flatten(1), torch.linalg.solve(h, b.flatten(1)), rtol=0, atol=1e-9
    )


def test_the_type_of_the_right_hand_side_is_kept(solve):
    for dtype in (torch.float32, torch.float64):
        solution = solve(spd(2, 8, 10.0).to(dtype), normal(2, 8).to(dtype), 1e-3)
        assert (
            solution.ok
            and solution.value.dtype == dtype
            and solution.residual.dtype == torch.float64
        )


def test_a_warm_start_near_the_solution_costs_little(solve):
    h, b = spd(3, 30, 1e3), normal(3, 30)
    exact = torch.linalg.solve(h, b)
    cold, warm = solve(h, b, 1e-6), solve(h, b, 1e-6, exact + 1e-7 * normal(3, 30, seed=2))
    assert warm.ok and (2 * warm.steps < cold.steps).all()
    operator = Matrices(h)
    solved = solve(operator, b, 1e-6, exact)
    assert torch.equal(solved.value, exact)
    assert solved.steps.tolist() == [0, 0, 0] and operator.calls.tolist() == [1, 1, 1]
    far = solve(h, b, 1e-6, 1e3 * normal(3, 30, seed=3))
    assert far.ok and (residual(h, far.value, b) <= 1e-6).all()


def test_a_small_right_hand_side_is_solved_by_zero(solve):
    h, b = spd(3, 10, 10.0), normal(3, 10)
    b[0], b[1] = 0, 1e-3 * b[1] / b[1].norm()
    operator = Matrices(h)
    solution = solve(operator, b, 1e-3 * (1 + 1e-12), normal(3, 10, seed=1))
    assert solution.ok and torch.equal(solution.value[:2], torch.zeros(2, 10).double())
    assert operator.calls[:2].tolist() == [0, 0] and operator.calls[2] > 0
    assert solution.residual[:2].tolist() == pytest.approx([0, 1e-3])


def test_nothing_is_left_to_do(solve):
    operator = Matrices(spd(2, 6, 10.0))
    solution = solve(operator, torch.zeros(2, 6).double(), 1e-6)
    assert (
        solution.ok
        and not solution.value.any()
        and solution.cost.work == 0 == int(operator.calls.sum())
    )


# --- the batch is a list of strangers -------------------------------------------------------------


def test_tolerance_and_freezing_per_image(solve):
    h, b = spd(1, 30, 100.0).expand(4, 30, 30), normal(1, 30).expand(4, 30).contiguous()
    tol = torch.tensor([1e-1, 1e-8, 1e-3, 1e-5], dtype=torch.float64)
    solution = solve(h, b, tol)
    assert solution.ok and (solution.residual <= tol).all()
    steps = solution.steps[[0, 2, 3, 1]]
    assert (steps[1:] > steps[:-1]).all(), "a looser tolerance stops sooner"
    for i in range(4):
        alone = solve(h[i : i + 1], b[i : i + 1], float(tol[i]))
        assert float((alone.value[0] - solution.value[i]).norm()) <= 2 * float(tol[i])
        assert abs(int(alone.steps[0] - solution.steps[i])) <= 1


@pytest.mark.parametrize("warm", [False, True])
def test_an_image_does_not_see_its_neighbours(solve, warm):
    h, b = spd(5, 15, torch.tensor([1.0, 3, 10, 30, 100])), normal(5, 15)
    x0 = normal(5, 15, seed=7) if warm else None
    b[3] *= 1e-12  # solved by q = 0: the batch is narrowed before the first step
    tol = torch.tensor([1e-2, 1e-9, 1e-4, 1e-6, 1e-8], dtype=torch.float64)
    whole = solve(h, b, tol, x0)
    assert whole.ok
    for part in (torch.tensor([4, 2, 0, 3, 1]), slice(0, 2), slice(2, 5), slice(3, 4), slice(4, 5)):
        some = solve(h[part], b[part], tol[part], None if x0 is None else x0[part])
        torch.testing.assert_close(some.value, whole.value[part], rtol=0, atol=1e-10)
        assert (
            torch.equal(some.steps, whole.steps[part])
            and some.status == whole.status[: some.steps.numel()]
        )


def test_the_worst_neighbours_change_nothing(solve):
    h, b = spd(3, 10, 50.0), normal(3, 10)
    alone = solve(h[1:2], b[1:2], 1e-8)
    b[0], h[2] = math.nan, -h[2]
    among = solve(h, b, 1e-8)
    torch.testing.assert_close(among.value[1:2], alone.value, rtol=0, atol=1e-12)
    assert among.steps[1] == alone.steps[0] and among.status[1].ok


# --- work and manners -----------------------------------------------------------------------------


@pytest.mark.parametrize("warm", [False, True])
def test_work_is_what_was_done(solve, warm):
    h, b = spd(4, 20, torch.tensor([1.0, 50, 1e3, 1e5])), normal(4, 20)
    b[0] *= 1e-6  # this image is solved by q = 0
    operator = Matrices(h)
    solution = solve(operator, b, 1e-5, normal(4, 20, seed=2) if warm else None)
    assert solution.ok and operator.calls[0] == 0 == solution.steps[0]
    assert solution.cost.hessian_products == int(operator.calls.sum()) == solution.cost.work
    assert solution.cost.cg_steps == int(solution.steps.sum())
    extra = (operator.calls - solution.steps)[
        1:
    ]  # the residual of the start, if any, and one look per restart
    assert ((extra >= 1 + warm) & (extra <= 5)).all()


@pytest.mark.parametrize("warm", [False, True])
def test_nothing_lent_is_mutated(solve, warm):
    h, b, tol = spd(3, 10, 100.0), normal(3, 10), torch.tensor([1e-3, 1e-8, 1e-5]).double()
    b[0] *= 1e-9
    x0 = normal(3, 10, seed=1) if warm else None
    lent = [t for t in (h, b, tol, x0) if t is not None]
    copies, versions = [t.clone() for t in lent], [t._version for t in lent]
    solution = solve(h, b, tol, x0)
    assert solution.ok
    assert all(torch.equal(t, copy) for t, copy in zip(lent, copies, strict=True))
    assert [t._version for t in lent] == versions
    assert solution.value.data_ptr() not in [t.data_ptr() for t in lent]


def test_no_graph_is_built(solve):
    h, b, x0 = spd(2, 6, 10.0), normal(2, 6), normal(2, 6, seed=1)
    b.requires_grad_(), x0.requires_grad_()
    solution = solve(h, b, 1e-6, x0)
    assert not solution.value.requires_grad and not solution.residual.requires_grad
    assert b.requires_grad and b.grad is None and x0.grad is None


@pytest.mark.parametrize("solver", SOLVERS)
def test_maps_that_return_their_argument_do_no_harm(solver):
    class Identity:
        def __call__(self, v: Tensor) -> Tensor:
            return v

        def select(self, index: Tensor) -> Identity:
            return self

    b = normal(3, 7)
    copy = b.clone()
    for preconditioner in (None, lambda r: r, Identity()):
        solution = SOLVERS[solver]()(Identity(), b, 1e-9, None, preconditioner)
        torch.testing.assert_close(solution.value, copy)
        assert solution.ok and solution.steps.tolist() == [1, 1, 1] and torch.equal(b, copy)


# --- what can go wrong ----------------------------------------------------------------------------


@pytest.mark.parametrize("max_steps", [1, 2, 5, 12])
@pytest.mark.parametrize("restarts", [0, 5])
def test_the_step_limit_is_named(solve, max_steps, restarts):
    h, b = spd(3, 40, 1e6), normal(3, 40)
    solution = solve(h, b, 1e-10, max_steps=max_steps, restarts=restarts)
    assert solution.status == (Status.MAX_STEPS,) * 3 and not solution.ok
    assert solution.steps.tolist() == [max_steps] * 3 and solution.value.any()
    torch.testing.assert_close(solution.residual, residual(h, solution.value, b))


@pytest.mark.parametrize("where", ["right_hand_side", "matrix", "start"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_and_inf_stay_in_their_image(solve, where, value):
    h, b, x0 = spd(3, 10, 100.0), normal(3, 10), normal(3, 10, seed=1)
    clean = solve(h, b, 1e-8, x0)
    {"right_hand_side": b, "matrix": h, "start": x0}[where][1].view(-1)[3] = value
    solution = solve(h, b, 1e-8, x0)
    assert solution.status == (Status.CONVERGED, Status.NOT_FINITE, Status.CONVERGED)
    torch.testing.assert_close(solution.value[[0, 2]], clean.value[[0, 2]])


@pytest.mark.parametrize("products", [0, 1, 3, 10])
@pytest.mark.parametrize("restarts", [0, 5])
def test_nan_that_appears_on_the_way_is_named(solve, products, restarts):
    h, b = spd(2, 20, 1e3), normal(2, 20)
    clean = solve(h, b, 1e-8)
    solution = solve(Matrices(h, breaks={1: products}), b, 1e-8, restarts=restarts)
    assert solution.status == (Status.CONVERGED, Status.NOT_FINITE)
    torch.testing.assert_close(solution.value[0], clean.value[0])


def test_nan_in_the_last_look_only_is_named(solve):
    """The recursion ended well, its verification did not: nobody knows the residual."""
    h, b = spd(2, 20, 1e3), normal(2, 20)
    steps = solve(h, b, 1e-8).steps
    solution = solve(Matrices(h, breaks={1: int(steps[1])}), b, 1e-8, restarts=0)
    assert solution.status == (Status.CONVERGED, Status.NOT_FINITE) and solution.residual[1].isnan()


@pytest.mark.parametrize("condition", [10.0, 1e3])
@pytest.mark.parametrize("restarts", [0, 5])
def test_below_the_floor_of_float32_the_true_residual_is_reported(solve, condition, restarts):
    h, b = spd(2, 20, condition).float(), normal(2, 20).float()
    solution = solve(h, b, torch.tensor([1e-12, 1e-2], dtype=torch.float64), restarts=restarts)
    assert solution.status == (Status.ROUNDING_FLOOR, Status.CONVERGED)
    true = residual(h, solution.value, b)
    assert float(true[0]) < (1e-4 if restarts else 1e-3), "it went as far as it could"
    assert float(solution.residual[0]) == pytest.approx(float(true[0]), rel=1.0, abs=1e-6)
    assert solution.residual[0] > 1e-12
    assert solution.steps[0] < 500, "and then gave up"


@pytest.mark.parametrize("tol", [0.0, -1e-3, math.nan, math.inf])
def test_a_tolerance_that_is_not_positive_is_refused(solve, tol):
    with pytest.raises(InputError, match=f"tol: given {tol}; expected a positive finite distance"):
        solve(spd(2, 4, 2.0), normal(2, 4), tol)


def test_one_tolerance_or_one_per_image(solve):
    with pytest.raises(
        InputError, match=r"tol: given 3 values; expected one value or one per image \(2\)"
    ):
        solve(spd(2, 4, 2.0), normal(2, 4), torch.ones(3))


def test_solutions_speak(solve):
    solution = solve(spd(2, 4, 2.0), normal(2, 4), 1e-8)
    assert "2 images" in repr(solution) and "hessian products" in repr(solution)


# --- preconditioners ------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("kind", ["callable", "select"])
def test_a_preconditioner_saves_steps(solver, kind):
    diagonal = torch.logspace(0, 6, 40, dtype=torch.float64)
    diagonals = torch.stack([diagonal, diagonal if kind == "callable" else diagonal.flip(0)])
    h, b = torch.diag_embed(diagonals) + 0.1 * spd(2, 40, 2.0), normal(2, 40)
    preconditioner = Diagonals(diagonals) if kind == "select" else lambda r: r / diagonal
    plain, helped = (
        SOLVERS[solver]()(Matrices(h), b, 1e-6, None, m) for m in (None, preconditioner)
    )
    assert plain.ok and helped.ok and (3 * helped.steps < plain.steps).all()
    torch.testing.assert_close(helped.value, torch.linalg.solve(h, b), rtol=0, atol=1e-6)
    assert (residual(h, helped.value, b) <= 1e-6).all(), "it is the Euclidean residual that stops"


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_image_meets_its_own_preconditioner(solver):
    """With M = H^-1 one step is enough, whoever has left the batch before: at the start, at a look,
    on the way.
    """
    h = torch.diag_embed(
        1 + torch.rand(6, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    )
    d, b, x0 = h.diagonal(dim1=1, dim2=2).clone(), normal(6, 9), torch.zeros(6, 9).double()
    b[1] = 0
    x0[4] = b[4] / d[4]
    d[2] *= torch.linspace(1, 5, 9)  # this one is in need of more steps
    solution = SOLVERS[solver]()(Matrices(h), b, 1e-10, x0, Diagonals(d))
    assert (
        solution.ok
        and solution.steps[[0, 1, 3, 4, 5]].tolist() == [1, 0, 1, 0, 1]
        and solution.steps[2] > 3
    )
    torch.testing.assert_close(solution.value, torch.linalg.solve(h, b))


@pytest.mark.parametrize("solver", SOLVERS)
def test_nan_from_a_preconditioner_stays_in_its_image(solver):
    h, b = spd(3, 10, 100.0), normal(3, 10)
    d = torch.ones(3, 10, dtype=torch.float64)
    d[1, 4] = math.nan
    solution = SOLVERS[solver]()(Matrices(h), b, 1e-8, None, Diagonals(d))
    assert solution.status == (Status.CONVERGED, Status.NOT_FINITE, Status.CONVERGED)
