"""The distance of any image from the minimizer: certified from both sides, and an estimate that is
near.
"""

from __future__ import annotations

from collections import Counter

import deepinv
import pytest
import torch
from tests.regularizers.cases import denoising, newton, pairs, tv

from learnreg.core.errors import InputError, MissingPropertyError
from learnreg.problems import Energy, gallery
from learnreg.regularizers import TV, Tikhonov
from learnreg.solvers import certify, solve
from learnreg.solvers.certify import certify_potential


def blur(weight: float = 1e-3) -> Energy:
    kernel = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]])[None, None] / 16
    return Energy(
        deepinv.physics.Blur(filter=kernel, padding="circular"), TV(0.02, 0.02) + Tikhonov(weight)
    ).double()


ENERGIES = {"denoising": lambda: denoising(tv(True)), "blur": blur}


@pytest.mark.parametrize("name", ENERGIES)
@pytest.mark.parametrize("far", [1.0, 1e-2, 1e-5])
@pytest.mark.parametrize("sharpness", [0.5, 0.05])
def test_the_true_distance_lies_between_both_ends(name, far, sharpness):
    energy, y = ENERGIES[name](), pairs(3).y
    truth = newton(energy, y)
    shift = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = truth + far * shift / shift.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    found = certify(energy, y, x, sharpness=sharpness)
    distance = (x - truth).flatten(1).norm(dim=1)
    assert found.kind.certifies
    assert (found.at_least <= distance * (1 + 1e-8)).all() and (
        distance <= found.certified * (1 + 1e-8)
    ).all()
    assert (found.certified - found.at_least <= 2.1 * sharpness * distance / (1 - sharpness)).all()
    assert (found.certified <= found.from_gradient).all()
    nearer = (found.nearer - truth).flatten(1).norm(dim=1)
    assert (nearer <= sharpness * distance * 1.1).all()


def test_with_little_strong_convexity_it_is_much_sharper_than_the_gradient_alone():
    energy, y = blur(1e-4), pairs(3).y
    x = solve(energy, y, 1.0).value
    found = certify(energy, y, x)
    assert (20 * found.certified < found.from_gradient).all()
    distance = (x - newton(energy, y)).flatten(1).norm(dim=1)
    assert ((found.estimated / distance - 1).abs() < 0.3).all()


def test_images_are_strangers_and_nothing_lent_is_changed():
    energy, y = denoising(tv(True)), pairs(4).y
    x = torch.zeros_like(y)
    x[1] = y[1]
    whole = certify(energy, y, x)
    assert torch.equal(x[0], torch.zeros_like(x[0])) and torch.equal(x[1], y[1])
    alone = certify(energy, y[1:2], x[1:2])
    assert alone.certified[0] == pytest.approx(float(whole.certified[1]), rel=0.25), (
        "both within their sharpness"
    )
    assert "certified in [" in repr(whole) and whole.cost.work > 0


def test_the_minimizer_itself_is_at_distance_zero():
    problem = gallery.quadratic(images=2, n=5)
    found = certify(problem.energy, problem.pairs.y, problem.exact_solution())
    assert (found.certified < 1e-12).all() and (found.at_least == 0).all()


def test_single_precision_images_are_measured_in_double():
    energy, y = ENERGIES["blur"](), pairs(2).y
    single = Energy(energy.physics.float(), TV(0.02, 0.02) + Tikhonov(1e-3))
    found = certify(single, y.float(), y.float())
    assert found.certified.dtype == torch.float64 and found.nearer.dtype == torch.float32
    assert found.kind.certifies


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"sharpness": 1.0}, InputError, "sharpness: given 1.0"),
        ({"x": torch.full((2, 1, 5, 6), float("nan")).double()}, InputError, "x: given NaN"),
        ({"x": torch.zeros(3, 1, 5, 6).double()}, InputError, "x: given 3 images; expected 2"),
    ],
)
def test_bad_input_is_refused(change, error, message):
    y = pairs(2).y
    arguments = {"x": y, "sharpness": 0.1} | change
    with pytest.raises(error, match=message):
        certify(denoising(tv(True)), y, arguments["x"], sharpness=arguments["sharpness"])


def test_without_strong_convexity_there_is_no_distance():
    energy = Energy(deepinv.physics.Inpainting((1, 5, 6), mask=0.5), TV())
    with pytest.raises(MissingPropertyError, match="strong convexity"):
        certify(energy, torch.zeros(1, 1, 5, 6), torch.zeros(1, 1, 5, 6))


class Counted:
    """A potential that counts what it is asked for, and has no averages to precondition with."""

    def __init__(self, inner, calls: Counter) -> None:
        self.inner, self.calls = inner, calls
        self.bounds, self.constants, self.rounding = inner.bounds, inner.constants, inner.rounding

    def value(self, x: torch.Tensor) -> torch.Tensor:
        raise AssertionError("no values are needed")

    def grad(self, x: torch.Tensor) -> torch.Tensor:
        self.calls["gradients"] += x.shape[0]
        return self.inner.grad(x)

    def linearize(self, x: torch.Tensor) -> CountedHessian:
        self.calls["linearizations"] += x.shape[0]
        return CountedHessian(self.inner.linearize(x), self.calls)

    def select(self, index: torch.Tensor) -> Counted:
        return Counted(self.inner.select(index), self.calls)

    def double(self) -> Counted:
        return Counted(self.inner.double(), self.calls)


class CountedHessian:
    def __init__(self, inner, calls: Counter) -> None:
        self.inner, self.calls = inner, calls

    def __call__(self, v: torch.Tensor) -> torch.Tensor:
        self.calls["hessian_products"] += v.shape[0]
        return self.inner(v)

    def select(self, index: torch.Tensor) -> CountedHessian:
        return CountedHessian(self.inner.select(index), self.calls)


def test_everything_is_counted():
    y, calls = pairs(3).y, Counter()
    found = certify_potential(Counted(denoising(tv(True)).at(y), calls), y + 0.1)
    assert calls == {n: c for n, c in found.cost.to_dict().items() if c and n != "cg_steps"}
    assert min(calls[n] for n in ("gradients", "linearizations", "hessian_products")) >= 3
