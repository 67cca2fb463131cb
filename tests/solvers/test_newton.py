"""Newton-CG and the primal-dual Newton method: few steps, honest counts, and a dual variable that
stays one.
"""

from __future__ import annotations

import pytest
import torch
from tests.regularizers.cases import CASES, denoising, foe, newton, pairs, tv
from torch import Tensor

from learnreg.core.cost import Cost
from learnreg.core.errors import InputError, MissingPropertyError
from learnreg.core.status import Status
from learnreg.problems import gallery
from learnreg.regularizers import Tikhonov
from learnreg.solvers import NewtonCG, PrimalDualNewton, minimize, solve

METHODS = {"newton": NewtonCG, "primal_dual_newton": PrimalDualNewton}
REGULARIZERS = {
    "tv": lambda: tv(True),
    "anisotropic": lambda: tv(False),
    "foe": foe,
    "sum": lambda: tv(True) + 0.5 * foe() + Tikhonov(0.1).double(),
}


class Watched:
    """A potential that counts gradients, Hessian products and linearizations per image."""

    def __init__(self, inner, calls: dict[str, Tensor], index: Tensor) -> None:
        self.inner, self.calls, self.index = inner, calls, index
        if hasattr(inner, "dual_start"):
            self.dual_start, self.dual_update = (
                self._counted(inner.dual_start),
                self._counted(inner.dual_update),
            )

    def _counted(self, method):
        def call(x, *rest):
            self.calls["linearizations"][self.index] += 1
            return method(x, *rest)

        return call

    def grad(self, x: Tensor) -> Tensor:
        self.calls["gradients"][self.index] += 1
        return self.inner.grad(x)

    def linearize(self, x: Tensor):
        self.calls["linearizations"][self.index] += 1
        return WatchedHessian(self.inner.linearize(x), self.calls, self.index)

    def dual_linearize(self, x: Tensor, dual):
        self.calls["linearizations"][self.index] += 1
        return WatchedHessian(self.inner.dual_linearize(x, dual), self.calls, self.index)

    def mean_curvature(self, x: Tensor):
        self.calls["linearizations"][self.index] += 1
        return self.inner.mean_curvature(x)

    def bounds(self):
        return self.inner.bounds()

    def select(self, index: Tensor):
        return Watched(self.inner.select(index), self.calls, self.index[index])

    def double(self):
        return Watched(self.inner.double(), self.calls, self.index)


class WatchedHessian:
    def __init__(self, inner, calls, index) -> None:
        self.inner, self.calls, self.index = inner, calls, index

    def __call__(self, v: Tensor) -> Tensor:
        self.calls["hessian_products"][self.index] += 1
        return self.inner(v)

    def select(self, index: Tensor):
        return WatchedHessian(self.inner.select(index), self.calls, self.index[index])


def watched(potential, images: int) -> Watched:
    calls = {
        k: torch.zeros(images, dtype=torch.int64)
        for k in ("gradients", "linearizations", "hessian_products")
    }
    return Watched(potential, calls, torch.arange(images))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_it_reaches_the_minimizer_and_counts(name, regularizer):
    energy, y = denoising(REGULARIZERS[regularizer]()), pairs(3).y
    potential = watched(energy.at(y), 3)
    solution = minimize(potential, 1e-8, METHODS[name](), y)
    assert (
        solution.ok
        and (
            (solution.value - newton(energy, y)).flatten(1).norm(dim=1) <= solution.error + 1e-12
        ).all()
    )
    counted = Cost(**{k: int(v.sum()) for k, v in potential.calls.items()})
    spent = solution.cost
    assert (
        spent.gradients == counted.gradients and spent.hessian_products == counted.hessian_products
    )
    assert spent.linearizations == counted.linearizations


@pytest.mark.parametrize("name", METHODS)
def test_one_step_solves_a_quadratic(name):
    if name == "primal_dual_newton":
        energy, y = denoising(Tikhonov(0.3).double()), pairs(3).y
        assert solve(energy, y, 1e-8, solver=PrimalDualNewton(forcing=1e-12)).steps.tolist() == [
            1,
            1,
            1,
        ]
        return
    problem = gallery.quadratic(images=3, n=8, condition=1e3)
    solution = solve(problem.energy, problem.pairs.y, 1e-6, solver=NewtonCG(forcing=1e-10))
    assert solution.steps.max() <= 2
    assert ((solution.value - problem.exact_solution()).norm(dim=1) <= 1e-6).all()


def test_the_primal_dual_form_takes_fewer_steps_where_smoothing_is_tiny():
    energy, y = denoising(tv(True, smoothing=1e-3)), pairs(4).y
    plain, dual = (solve(energy, y, 1e-6, solver=name) for name in METHODS)
    assert (dual.steps < plain.steps).all()


@pytest.mark.parametrize("name", METHODS)
def test_an_image_does_not_see_its_neighbours(name):
    energy, y = denoising(tv(False, smoothing=0.01)), pairs(4).y
    eps = torch.tensor([1e-1, 1e-7, 1e-3, 1e-5], dtype=torch.float64)
    whole = solve(energy, y, eps, solver=name)
    order = torch.tensor([3, 1, 0, 2])
    shuffled = solve(energy, y[order], eps[order], solver=name)
    assert torch.equal(shuffled.steps, whole.steps[order])
    torch.testing.assert_close(shuffled.value, whole.value[order], rtol=0, atol=1e-9)
    alone = solve(energy, y[1:2], eps[1:2], solver=name)
    assert abs(int(alone.steps[0] - whole.steps[1])) <= 1, "rounding may tip the last decision"
    assert float((alone.value[0] - whole.value[1]).norm()) <= 2e-7


WITH_DUAL = [c for c in CASES if c.name not in ("tv_one_row", "black_box")]


@pytest.mark.parametrize("case", WITH_DUAL, ids=lambda c: c.name)
def test_the_dual_form_at_the_true_slopes_is_the_hessian(case):
    r, x = case.make(), case.images()
    v = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=x.dtype)
    dual = r.dual_start(x)
    torch.testing.assert_close(
        r.dual_linearize(x, dual)(v), r.linearize(x)(v), rtol=1e-9, atol=1e-12
    )
    moved = r.dual_update(x, dual, v)
    assert len(moved) == len(dual) and all(
        a.shape == b.shape for a, b in zip(moved, dual, strict=True)
    )
    product = r.dual_linearize(x, moved)(v)
    assert ((product * v).flatten(1).sum(dim=1) >= -1e-12).all(), "semidefinite while |p| <= 1"
    tiny = 1e-6 * v
    linearized, exact = r.dual_update(x, dual, tiny), r.dual_start(x + tiny)
    for a, b in zip(linearized, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_what_is_missing_is_named():
    problem = gallery.quadratic(images=2, n=4)
    with pytest.raises(MissingPropertyError, match=r"no dual_start.*solver='newton'"):
        solve(problem.energy, problem.pairs.y, 1e-3, solver="primal_dual_newton")
    for method in METHODS.values():
        for bad in ({"forcing": 0.0}, {"forcing": 1.0}, {"inner_steps": 0}):
            with pytest.raises(InputError, match=next(iter(bad))):
                method(**bad)


@pytest.mark.parametrize("name", METHODS)
def test_nan_ends_only_its_own_image(name):
    energy, y = denoising(tv(True)), pairs(3).y
    potential = watched(energy.at(y), 3)
    inner = potential.inner

    class Broken(type(potential)):
        def grad(self, x):
            g = super().grad(x)
            g[self.index == 1] = (
                torch.nan if int(self.calls["gradients"][1]) > 2 else g[self.index == 1]
            )
            return g

        def select(self, index):
            return Broken(self.inner.select(index), self.calls, self.index[index])

        def double(self):
            return Broken(self.inner.double(), self.calls, self.index)

    solution = minimize(Broken(inner, potential.calls, potential.index), 1e-8, METHODS[name](), y)
    assert solution.status == (Status.CONVERGED, Status.NOT_FINITE, Status.CONVERGED)
    assert torch.isfinite(solution.value).all()
