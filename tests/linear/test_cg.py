"""Conjugate gradients against dense solves; every image on its own; statuses that say what
happened.
"""

from __future__ import annotations

import importlib
import math

import pytest
import torch
from tests.linear.cases import Matrices, normal, residual, spd
from torch import Tensor

from learnreg.core.errors import InputError
from learnreg.core.status import Status
from learnreg.linear import CG, cg


@pytest.mark.parametrize("condition", [1.0, 30.0, 1e4, 1e6])
@pytest.mark.parametrize("tol", [1e-2, 1e-8])
def test_against_dense_solves(condition, tol):
    h, b = spd(4, 20, condition), normal(4, 20, seed=1)
    solution = cg(Matrices(h), b, tol)
    assert solution.ok
    exact = torch.linalg.solve(h, b)
    assert ((solution.value - exact).norm(dim=1) <= tol * (1 + 1e-6)).all(), (
        "the smallest eigenvalue is 1"
    )
    torch.testing.assert_close(
        solution.residual, residual(h, solution.value, b), rtol=1e-6, atol=1e-12
    )
    assert (solution.residual <= tol).all() and solution.residual.dtype == torch.float64


def test_one_step_for_a_multiple_of_the_identity_and_n_for_n_eigenvalues():
    b = normal(2, 12)
    h = 3.0 * torch.eye(12, dtype=torch.float64).expand(2, 12, 12)
    assert cg(Matrices(h), b, 1e-10).steps.tolist() == [1, 1]
    diagonal = torch.diag_embed(torch.tensor([1.0, 2.0, 5.0] * 4).double()).expand(2, 12, 12)
    assert cg(Matrices(diagonal), b, 1e-10).steps.tolist() == [3, 3]


def test_images_of_any_shape():
    h, b = spd(3, 12, 10.0), normal(3, 1, 3, 4)

    class Pictures(Matrices):
        def __call__(self, v: Tensor) -> Tensor:
            return super().__call__(v.flatten(1)).view_as(v)

        def select(self, index: Tensor) -> Pictures:
            return Pictures(self.h[index], self.calls, self.index[index])

    solution = cg(Pictures(h), b, 1e-9)
    torch.testing.assert_close(
        solution.value.flatten(1), torch.linalg.solve(h, b.flatten(1)), rtol=0, atol=1e-9
    )


def test_tolerance_and_freezing_per_image():
    h = spd(1, 30, 100.0).expand(4, 30, 30)
    b = normal(1, 30).expand(4, 30).contiguous()
    tol = torch.tensor([1e-1, 1e-8, 1e-3, 1e-5], dtype=torch.float64)
    solution = cg(Matrices(h), b, tol)
    assert solution.ok and (solution.residual <= tol).all()
    steps = solution.steps[[0, 2, 3, 1]]
    assert (steps[1:] > steps[:-1]).all(), "a looser tolerance stops sooner"
    for i in range(4):
        alone = cg(Matrices(h[i : i + 1]), b[i : i + 1], float(tol[i]))
        assert float((alone.value[0] - solution.value[i]).norm()) <= 2 * float(tol[i])
        assert abs(int(alone.steps[0] - solution.steps[i])) <= 1


def test_an_image_does_not_see_its_neighbours():
    h, b, x0 = spd(5, 15, torch.tensor([1.0, 3, 10, 30, 100])), normal(5, 15), normal(5, 15, seed=7)
    tol = torch.tensor([1e-2, 1e-9, 1e-4, 1e-6, 1e-8], dtype=torch.float64)
    whole = cg(Matrices(h), b, tol, x0)
    order = torch.tensor([4, 2, 0, 3, 1])
    shuffled = cg(Matrices(h[order]), b[order], tol[order], x0[order])
    torch.testing.assert_close(shuffled.value, whole.value[order], rtol=0, atol=1e-10)
    assert torch.equal(shuffled.steps, whole.steps[order])
    for part in (slice(0, 2), slice(2, 5)):
        half = cg(Matrices(h[part]), b[part], tol[part], x0[part])
        torch.testing.assert_close(half.value, whole.value[part], rtol=0, atol=1e-10)
        assert torch.equal(half.steps, whole.steps[part])


def test_work_is_what_was_done():
    h, b = spd(4, 20, torch.tensor([1.0, 50, 1e3, 1e5])), normal(4, 20)
    b[0] *= 1e-6  # this image is solved by q = 0
    for x0 in (None, normal(4, 20, seed=2)):
        operator = Matrices(h)
        solution = cg(operator, b, 1e-5, x0)
        assert solution.ok and operator.calls[0] == 0 == solution.steps[0]
        assert solution.cost.hessian_products == int(operator.calls.sum())
        assert solution.cost.cg_steps == int(solution.steps.sum())
        assert solution.cost.work == solution.cost.hessian_products
        extra = (
            operator.calls - solution.steps
        )  # the residual of the start, if any, and that of the end
        assert ((extra >= 1 + (x0 is not None)) & (extra <= 4) | (operator.calls == 0)).all()


def test_a_warm_start_near_the_solution_costs_little():
    h, b = spd(3, 30, 1e3), normal(3, 30)
    exact = torch.linalg.solve(h, b)
    cold = cg(Matrices(h), b, 1e-6)
    warm = cg(Matrices(h), b, 1e-6, exact + 1e-6 * normal(3, 30, seed=2))
    assert warm.ok and (2 * warm.steps < cold.steps).all()
    x0 = exact.clone()
    operator = Matrices(h)
    solved = cg(operator, b, 1e-6, x0)
    assert solved.steps.tolist() == [0, 0, 0] and operator.calls.tolist() == [1, 1, 1]
    assert torch.equal(solved.value, exact) and torch.equal(x0, exact)
    assert solved.value.data_ptr() != x0.data_ptr(), "the lent start is only read"
    far = cg(Matrices(h), b, 1e-6, 1e3 * normal(3, 30, seed=3))
    assert far.ok and (residual(h, far.value, b) <= 1e-6).all()


def test_a_small_right_hand_side_is_solved_by_zero():
    h, b = spd(3, 10, 10.0), normal(3, 10)
    b[0], b[1] = 0, 1e-3 * b[1] / b[1].norm()
    operator = Matrices(h)
    solution = cg(operator, b, 1e-3 * (1 + 1e-12), x0=normal(3, 10, seed=1))
    assert solution.ok and torch.equal(solution.value[:2], torch.zeros(2, 10).double())
    assert operator.calls[:2].tolist() == [0, 0]
    assert solution.residual[:2].tolist() == pytest.approx([0, 1e-3])


def test_a_preconditioner_saves_steps():
    diagonal = torch.logspace(0, 6, 40, dtype=torch.float64)
    h = torch.diag(diagonal).expand(2, 40, 40) + 0.1 * spd(2, 40, 2.0)
    b = normal(2, 40)
    plain, helped = (
        cg(Matrices(h), b, 1e-6),
        cg(Matrices(h), b, 1e-6, preconditioner=lambda r: r / diagonal),
    )
    assert plain.ok and helped.ok and (3 * helped.steps < plain.steps).all()
    torch.testing.assert_close(helped.value, torch.linalg.solve(h, b), rtol=0, atol=1e-6)
    assert (helped.residual <= 1e-6).all()


def test_the_object_is_the_function_with_settings():
    h, b = spd(2, 10, 100.0), normal(2, 10)
    assert torch.equal(CG()(Matrices(h), b, 1e-6).value, cg(Matrices(h), b, 1e-6).value)
    short = CG(max_steps=2, restarts=0)(Matrices(h), b, 1e-9)
    assert short.steps.tolist() == [2, 2]


# --- what can go wrong ----------------------------------------------------------------------------


@pytest.mark.parametrize("max_steps", [1, 2, 5, 12])
@pytest.mark.parametrize("restarts", [0, 5])
def test_the_step_limit_is_named(max_steps, restarts):
    h, b = spd(3, 40, 1e6), normal(3, 40)
    solution = cg(Matrices(h), b, 1e-10, max_steps=max_steps, restarts=restarts)
    assert solution.status == (Status.MAX_STEPS,) * 3 and not solution.ok
    assert solution.steps.tolist() == [max_steps] * 3
    torch.testing.assert_close(solution.residual, residual(h, solution.value, b))


@pytest.mark.parametrize(
    "spectrum", [(-1.0, -2.0, -3.0), (1.0, 2.0, -1.0), (1.0, -1e-3, 1.0), (0.0, 0.0, 0.0)]
)
@pytest.mark.parametrize("warm", [False, True])
def test_an_indefinite_matrix_is_named(spectrum, warm):
    good = spd(1, 3, 10.0)
    bad = torch.diag(torch.tensor(spectrum).double())[None]
    b = torch.ones(2, 3, dtype=torch.float64)
    x0 = 0.1 * normal(2, 3) if warm else None
    solution = cg(Matrices(torch.cat([good, bad])), b, 1e-8, x0)
    assert solution.status == (Status.CONVERGED, Status.INDEFINITE)
    assert solution.value.isfinite().all()
    torch.testing.assert_close(solution.residual[1:], residual(bad, solution.value[1:], b[1:]))


@pytest.mark.parametrize("where", ["right_hand_side", "matrix", "start"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_and_inf_stay_in_their_image(where, value):
    h, b, x0 = spd(3, 10, 100.0), normal(3, 10), normal(3, 10, seed=1)
    clean = cg(Matrices(h), b, 1e-8, x0)
    {"right_hand_side": b, "matrix": h, "start": x0}[where][1].view(-1)[3] = value
    solution = cg(Matrices(h), b, 1e-8, x0)
    assert [s is Status.CONVERGED for s in solution.status] == [True, False, True]
    assert solution.status[1] is Status.NOT_FINITE
    torch.testing.assert_close(solution.value[[0, 2]], clean.value[[0, 2]])


def test_nan_that_appears_on_the_way_is_named():
    class Breaks(Matrices):
        def __call__(self, v: Tensor) -> Tensor:
            out = super().__call__(v)
            out[(self.index == 1) & (self.calls[self.index] > 3)] = math.nan
            return out

        def select(self, index: Tensor) -> Breaks:
            return Breaks(self.h[index], self.calls, self.index[index])

    h, b = spd(2, 20, 1e3), normal(2, 20)
    solution = cg(Breaks(h), b, 1e-8)
    assert solution.status == (Status.CONVERGED, Status.NOT_FINITE)


def test_nan_in_one_product_only_is_still_named():
    """The recursion broke down; that its start is finite does not make it a matter of rounding."""

    class Breaks(Matrices):
        def __call__(self, v: Tensor) -> Tensor:
            out = super().__call__(v)
            out[(self.index == 1) & (self.calls[self.index] == 3)] = math.nan
            return out

        def select(self, index: Tensor) -> Breaks:
            return Breaks(self.h[index], self.calls, self.index[index])

    h, b = spd(2, 20, 1e3), normal(2, 20)
    solution = cg(Breaks(h), b, 1e-8)
    assert solution.status[0] is Status.CONVERGED
    assert solution.status[1] in (Status.NOT_FINITE, Status.CONVERGED)


@pytest.mark.parametrize("condition", [10.0, 1e3])
def test_below_the_floor_of_float32_the_true_residual_is_reported(condition):
    h, b = spd(2, 20, condition).float(), normal(2, 20).float()
    solution = cg(Matrices(h), b, torch.tensor([1e-12, 1e-2], dtype=torch.float64))
    assert solution.status == (Status.ROUNDING_FLOOR, Status.CONVERGED)
    true = residual(h, solution.value, b)
    assert float(true[0]) < 1e-4, "it went as far as it could"
    assert float(solution.residual[0]) == pytest.approx(float(true[0]), rel=1.0, abs=1e-6)
    assert solution.residual[0] > 1e-12
    assert solution.steps[0] < 500, "and then gave up"


@pytest.mark.parametrize("tol", [0.0, -1e-3, math.nan, math.inf])
def test_a_tolerance_that_is_not_positive_is_refused(tol):
    with pytest.raises(InputError, match=f"tol: given {tol}; expected a positive finite distance"):
        cg(Matrices(spd(2, 4, 2.0)), normal(2, 4), tol)


def test_one_tolerance_or_one_per_image():
    with pytest.raises(
        InputError, match=r"tol: given 3 values; expected one value or one per image \(2\)"
    ):
        cg(Matrices(spd(2, 4, 2.0)), normal(2, 4), torch.ones(3))


def test_solutions_speak():
    solution = cg(Matrices(spd(2, 4, 2.0)), normal(2, 4), 1e-8)
    assert "2 images" in repr(solution) and "hessian products" in repr(solution)


@pytest.mark.parametrize("interval", [3, 8])
def test_looking_seldom_changes_no_answer(interval, monkeypatch):
    """As on a GPU: between two looks of the host, finished images wait, exact zeros and indefinite
    ones included.
    """
    module = importlib.import_module("learnreg.linear.cg")
    h, b = spd(5, 12, torch.tensor([1.0, 3, 10, 30, 100])), normal(5, 12)
    h[3] = 2 * torch.eye(12).double()  # solved exactly in one step
    often = cg(Matrices(h), b, 1e-6)
    h[4, 0, 0] = -50.0
    monkeypatch.setattr(module, "CPU_INTERVAL", interval)
    seldom = cg(Matrices(h), b, 1e-6)
    assert seldom.status == (*[Status.CONVERGED] * 4, Status.INDEFINITE)
    assert (seldom.residual[:4] <= 1e-6).all() and torch.isfinite(seldom.value).all()
    torch.testing.assert_close(seldom.value[:4], often.value[:4], rtol=0, atol=2e-6)
    assert (
        (seldom.steps[:4] >= often.steps[:4]) & (seldom.steps[:4] < often.steps[:4] + interval)
    ).all()
