"""What minimal residuals can do that conjugate gradients cannot; what both promise is in
``test_contract.py``.
"""

from __future__ import annotations

import math

import pytest
import torch
from tests.linear.cases import (
    Diagonals,
    Matrices,
    geometric,
    indefinite,
    normal,
    residual,
    spd,
    symmetric,
)
from torch import Tensor

from learnreg.core.status import Status
from learnreg.linear import MINRES, cg, minres
from learnreg.linear.precondition import narrowed


def diagonals(images: int, n: int) -> Diagonals:
    return Diagonals(
        0.5 + torch.rand(images, n, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    )


def singular(images: int, n: int, condition: float, every: int = 4) -> Tensor:
    """Indefinite matrices whose every ``every``-th eigenvalue is zero."""
    position = torch.arange(n)
    signs = (1 - 2 * (position % 2)) * (position % every != 0)
    return symmetric(signs * geometric(images, n, condition))


def apply(h: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("bij,bj->bi", h, v)


# --- indefinite matrices --------------------------------------------------------------------------


@pytest.mark.parametrize("condition", [1.0, 30.0, 1e4, 1e6])
@pytest.mark.parametrize("tol", [1e-2, 1e-8])
@pytest.mark.parametrize("preconditioned", [False, True])
def test_an_indefinite_matrix_is_solved(condition, tol, preconditioned):
    h, b = indefinite(4, 30, condition), normal(4, 30, seed=1)
    solution = minres(Matrices(h), b, tol, None, diagonals(4, 30) if preconditioned else None)
    assert solution.ok and (residual(h, solution.value, b) <= tol).all()
    exact = torch.linalg.solve(h, b)
    assert ((solution.value - exact).norm(dim=1) <= tol * (1 + 1e-6)).all(), (
        "no eigenvalue is smaller than 1"
    )
    assert set(cg(Matrices(h), b, tol).status) == {Status.INDEFINITE}


def test_a_negative_definite_matrix_is_as_good_as_a_positive_one():
    h, b = spd(3, 20, 100.0), normal(3, 20)
    plus, minus = minres(Matrices(h), b, 1e-8), minres(Matrices(-h), b, 1e-8)
    torch.testing.assert_close(minus.value, -plus.value)
    assert minus.ok and torch.equal(minus.steps, plus.steps)


def test_a_step_per_eigenvalue():
    spectrum = torch.tensor(
        [[2.0] * 12, [2.0, -1.0] * 6, [2.0, -1.0, 5.0] * 4, [2.0, -1.0, 5.0, -3.0] * 3]
    )
    solution = minres(Matrices(torch.diag_embed(spectrum.double())), normal(4, 12), 1e-10)
    assert solution.ok and solution.steps.tolist() == [1, 2, 3, 4]


def test_an_image_does_not_see_its_indefinite_neighbours():
    h = torch.cat([indefinite(2, 16, 30.0), spd(2, 16, 100.0), singular(1, 16, 10.0)])
    b, tol = (
        apply(h, normal(5, 16)),
        torch.tensor([1e-2, 1e-9, 1e-4, 1e-6, 1e-8], dtype=torch.float64),
    )
    m, x0 = diagonals(5, 16), normal(5, 16, seed=5)
    whole = minres(Matrices(h), b, tol, x0, m)
    assert whole.ok
    for part in (torch.tensor([4, 2, 0, 3, 1]), torch.tensor([0, 1]), torch.tensor([4])):
        some = minres(Matrices(h[part]), b[part], tol[part], x0[part], m.select(part))
        torch.testing.assert_close(some.value, whole.value[part], rtol=0, atol=1e-10)
        assert torch.equal(some.steps, whole.steps[part])


# --- the residual is minimal ----------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("preconditioned", [False, True])
def test_no_other_point_of_the_krylov_space_has_a_smaller_residual(steps, preconditioned):
    """Against least squares over x0 + span{M r, M H M r, ...} in the norm of M, for indefinite and
    singular H.
    """
    h, b, x0 = (
        torch.cat([indefinite(2, 12, 20.0), singular(1, 12, 5.0)]),
        normal(3, 12),
        normal(3, 12, seed=1),
    )
    d = diagonals(3, 12).d if preconditioned else torch.ones(3, 12).double()
    r, basis = b - apply(h, x0), []
    for _ in range(steps):
        direction = (r if not basis else apply(h, basis[-1])) / d
        basis.append(direction / direction.norm(dim=1, keepdim=True))
    space = torch.linalg.qr(
        torch.stack(basis, dim=2)
    ).Q  # (b, n, steps), a basis that is not ill-conditioned
    root = d[:, :, None].rsqrt()
    best = (
        x0 + (space @ torch.linalg.lstsq(root * (h @ space), root * r[:, :, None]).solution)[..., 0]
    )
    solution = MINRES(max_steps=steps)(
        Matrices(h), b, 1e-12, x0, Diagonals(d) if preconditioned else None
    )
    assert solution.status == (Status.MAX_STEPS,) * 3
    torch.testing.assert_close(solution.value, best, rtol=1e-6, atol=1e-6)


def test_the_residual_never_grows():
    h, b = indefinite(3, 30, 1e3), normal(3, 30)
    history = torch.stack(
        [minres(Matrices(h), b, 1e-8, max_steps=n).residual for n in range(1, 40)]
    )
    assert (history[0] <= b.norm(dim=1)).all() and (history[1:] <= history[:-1] * (1 + 1e-9)).all()


def test_it_stops_no_later_than_conjugate_gradients():
    """It minimizes what the tolerance is about."""
    h, b = spd(4, 60, torch.tensor([10.0, 100.0, 1e3, 1e4])), normal(4, 60)
    for tol in (1.0, 1e-2, 1e-4):
        assert (minres(Matrices(h), b, tol).steps <= cg(Matrices(h), b, tol).steps).all()


@pytest.mark.parametrize("factor", [2.0**-40, 4.0, 2.0**30])  # no rounding, also not in the root
def test_units_do_not_matter(factor):
    h, b = torch.cat([indefinite(2, 20, 100.0), singular(1, 20, 10.0)]), normal(3, 20)
    b = apply(h, b)
    once, m = minres(Matrices(h), b, 1e-6, None, diagonals(3, 20)), diagonals(3, 20)
    for other, scale in (
        (minres(Matrices(factor * h), b, 1e-6, None, m), 1 / factor),
        (minres(Matrices(h), factor * b, 1e-6 * factor, None, m), factor),
        (minres(Matrices(h), b, 1e-6, None, Diagonals(factor * m.d)), 1),
    ):
        assert other.ok and torch.equal(other.steps, once.steps)
        assert torch.equal(other.value, scale * once.value)


# --- singular matrices ----------------------------------------------------------------------------


@pytest.mark.parametrize("condition", [1.0, 10.0, 1e4])
def test_a_singular_system_with_a_solution_is_solved_by_the_shortest_one(condition):
    h = singular(4, 40, condition)
    b = apply(h, normal(4, 40))
    solution = minres(Matrices(h), b, 1e-7)
    assert solution.ok
    shortest = apply(torch.linalg.pinv(h, rtol=1e-10), b)
    torch.testing.assert_close(solution.value, shortest, rtol=0, atol=1e-6)


def test_a_singular_system_keeps_what_the_warm_start_has_in_the_null_space():
    h, x0 = singular(3, 20, 10.0), normal(3, 20, seed=1)
    b = apply(h, normal(3, 20))
    solution = minres(Matrices(h), b, 1e-9, x0)
    inverse = torch.linalg.pinv(h, rtol=1e-10)
    expected = apply(inverse, b) + x0 - apply(inverse, apply(h, x0))
    assert solution.ok
    torch.testing.assert_close(solution.value, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("condition", [1.0, 10.0, 1e4])
@pytest.mark.parametrize("preconditioned", [False, True])
def test_a_singular_system_without_a_solution_says_so(dtype, condition, preconditioned):
    h, b = singular(4, 40, condition).to(dtype), normal(4, 40).to(dtype)
    m = Diagonals(diagonals(4, 40).d.to(dtype)) if preconditioned else None
    solution = minres(Matrices(h), b, 1e-3, None, m)
    assert set(solution.status) == {Status.ROUNDING_FLOOR} and (solution.steps < 1000).all()
    true = residual(h, solution.value, b)
    noise = (
        10 * torch.finfo(dtype).eps * condition * solution.value.norm(dim=1)
    )  # its null space may be large
    assert ((solution.residual - true).abs() <= 1e-6 + noise).all()
    assert (solution.residual <= b.double().norm(dim=1) * (1 + 1e-6)).all(), (
        "no worse than it began"
    )


def test_a_breakdown_leaves_a_least_squares_solution():
    spectrum = torch.tensor([[1.0, -1.0, 0.0] * 4, [0.0] * 12, [3.0, 0.0, 0.0] * 4]).double()
    h, b = torch.diag_embed(spectrum), normal(3, 12)
    solution = minres(Matrices(h), b, 1e-6)
    assert set(solution.status) == {Status.ROUNDING_FLOOR} and solution.steps.tolist() == [3, 1, 2]
    torch.testing.assert_close(apply(h, solution.value), (spectrum != 0) * b, rtol=0, atol=1e-12)
    assert (solution.value.norm(dim=1) <= b.norm(dim=1)).all()
    rounded = minres(
        Matrices(singular(2, 40, 1.0)), normal(2, 40), 1e-6
    )  # zero, plus and minus one, up to rounding
    assert set(rounded.status) == {Status.ROUNDING_FLOOR} and rounded.steps.tolist() == [3, 3]
    assert (rounded.value.norm(dim=1) <= 10).all()


# --- rounding -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "condition"),
    [
        (spd, 1e2),
        (spd, 1e3),
        (spd, 1e4),
        (spd, 1e5),
        (indefinite, 1e2),
        (indefinite, 1e3),
        (indefinite, 1e4),
    ],
)
def test_the_floor_of_float32_is_that_of_storing_the_solution(make, condition):
    """Restarts from the true residual mend the loss of accuracy, eps condition^2, of the recursion
    for w.
    """
    h, b = make(2, 60, condition).float(), normal(2, 60).float()
    solution = minres(Matrices(h), b, 1e-12, max_steps=10_000)
    assert solution.status == (Status.ROUNDING_FLOOR,) * 2
    storage = torch.finfo(torch.float32).eps * condition * solution.value.norm(dim=1)
    assert (residual(h, solution.value, b) <= 3 * storage).all()


@pytest.mark.parametrize("make", [spd, indefinite])
def test_restarts_reach_what_one_run_cannot(make):
    h, b = make(3, 40, 1e6), normal(3, 40)
    once, often = MINRES(restarts=0), MINRES(restarts=5)
    assert set(once(Matrices(h), b, 1e-9).status) == {Status.ROUNDING_FLOOR}
    solution = often(Matrices(h), b, 1e-9)
    assert solution.ok and (residual(h, solution.value, b) <= 1.1e-9).all()


def test_a_recursion_that_has_drifted_is_left_soon():
    """What is asked for is far below the floor: the steps that could only pretend are not taken."""
    h, b = spd(2, 100, 1e3).float(), normal(2, 100).float()
    assert (minres(Matrices(h), b, 1e-20).steps == minres(Matrices(h), b, 1e-12).steps).all()


# --- preconditioners ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad", [(-1.0,) * 10, (1.0, -1.0) * 5, (1.0,) * 9 + (-1.0,), (1.0, 0.0) * 5, (0.0,) * 10]
)
def test_a_preconditioner_that_is_not_positive_definite_is_named(bad):
    h, b = indefinite(3, 10, 30.0), normal(3, 10)
    good = diagonals(3, 10).d
    d = good.clone()
    d[1] = 1 / torch.tensor(bad).double()  # infinite where M is zero
    solution = minres(Matrices(h), b, 1e-8, None, Diagonals(d))
    assert [s.ok for s in solution.status] == [True, False, True]
    alone = minres(Matrices(h), b, 1e-8, None, Diagonals(good))
    torch.testing.assert_close(solution.value[[0, 2]], alone.value[[0, 2]])
    torch.testing.assert_close(
        solution.residual, residual(h, solution.value, b), rtol=1e-6, atol=1e-12
    )
    if 0.0 not in bad or not any(bad):  # where it is only semi-definite, b - H q looks small to it
        assert solution.status[1] is Status.INDEFINITE


def test_a_bad_preconditioner_is_found_before_any_work():
    operator = Matrices(spd(2, 6, 10.0))
    solution = minres(operator, normal(2, 6), 1e-8, None, lambda r: -r)
    assert solution.status == (Status.INDEFINITE,) * 2 and solution.steps.tolist() == [0, 0]
    assert (
        solution.cost.hessian_products == int(operator.calls.sum()) <= 2
        and not solution.value.any()
    )


def test_a_preconditioner_is_narrowed_if_it_can_be():
    index = torch.tensor([2, 0])
    m, plain = diagonals(3, 4), lambda r: 2 * r
    assert torch.equal(narrowed(m, index).d, m.d[index])
    assert narrowed(plain, index) is plain and narrowed(None, index) is None


def test_overflow_is_named():
    """Its infinite slope is not small beside the infinite norm of the matrix."""
    solution = minres(
        Matrices(1e25 * indefinite(2, 20, 100.0).float()), normal(2, 20).float(), 1e-3
    )
    assert solution.status == (Status.NOT_FINITE,) * 2


def test_nan_from_the_preconditioner_costs_no_step():
    d = torch.ones(2, 10).double()
    d[1, 3] = math.nan
    solution = minres(Matrices(spd(2, 10, 10.0)), normal(2, 10), 1e-8, None, Diagonals(d))
    assert solution.status == (Status.CONVERGED, Status.NOT_FINITE) and solution.steps[1] == 0


def test_nan_from_the_preconditioner_on_the_way_is_named():
    class Breaks(Diagonals):
        calls = 0

        def __call__(self, r: Tensor) -> Tensor:
            self.calls += 1
            return super().__call__(r) * (math.nan if self.calls > 4 else 1)

    h, b = indefinite(1, 20, 100.0), normal(1, 20)
    assert minres(Matrices(h), b, 1e-8, None, Breaks(torch.ones(1, 20))).status == (
        Status.NOT_FINITE,
    )


def test_the_object_is_the_function_with_settings():
    h, b, x0, m = indefinite(2, 10, 100.0), normal(2, 10), normal(2, 10, seed=1), diagonals(2, 10)
    assert torch.equal(
        MINRES()(Matrices(h), b, 1e-6, x0, m).value, minres(Matrices(h), b, 1e-6, x0, m).value
    )
    assert MINRES(max_steps=2, restarts=0)(Matrices(h), b, 1e-9).steps.tolist() == [2, 2]
