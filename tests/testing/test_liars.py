"""Operators that lie are refused, or labelled, or solved to within the certified distance."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

import learnreg as lr
from learnreg.core.batch import norm
from learnreg.testing import HONEST, LIARS, Honest, Liar, check_honesty, check_operator, truth

SIZES = (24, 128, pytest.param(256, marks=pytest.mark.slow))

DEMANDS = {"float32": (torch.float32, 1e-2), "float64": (torch.float64, 1e-5)}
"""Precision of the measurements, and eps."""


def regularizer() -> lr.regularizers.Regularizer:
    return lr.regularizers.TV(0.003, 0.02) + lr.regularizers.Tikhonov(1e-3)


@cache
def exact(name: str, size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The minimizers as the measurements ask for them: of the A that is there when it is asked."""
    liar = LIARS[name]
    physics = liar.make(size)
    if liar.change is not None:
        liar.change(physics)
    y = liar.measurements(size, dtype)
    energy = lr.Energy(physics, regularizer())
    found = truth(energy, y, torch.zeros(liar.images, *liar.shape(size)))
    return found.minimizer, found.uncertainty


def outcome(liar: Liar, size: int, dtype: torch.dtype, eps: float) -> str:
    """What became of a solve: refused, labelled, or how far it is beside what is certified."""
    physics, y = liar.make(size), liar.measurements(size, dtype)
    energy = lr.Energy(physics, regularizer())
    energy = energy.double() if dtype == torch.float64 else energy
    try:
        solution = lr.solve(energy, y, eps, throw=False, budget=3000)
        if liar.change is not None:
            liar.change(energy.physics)
            solution = lr.solve(energy, y, eps, throw=False, budget=3000)
    except lr.InputError as error:
        return f"refused: {error}"

    if not solution.kind.certifies:
        return "labelled"
    if not liar.determined:
        return f"FALSE: certified {float(solution.error.max()):.2e} of what has no minimizer"
    minimizer, uncertainty = exact(liar.name, size, dtype)
    true = norm(solution.value.double() - minimizer)
    words = f"true {true.tolist()}, certified {solution.error.tolist()}"
    false = (true - uncertainty > solution.error * (1 + 1e-6)).any()
    return f"FALSE: {words}" if bool(false) else f"within: {words}"


@pytest.mark.parametrize("demand", DEMANDS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", LIARS)
def test_a_liar_is_refused_or_labelled_or_does_no_harm(name, size, demand):
    found = outcome(LIARS[name], size, *DEMANDS[demand])
    assert not found.startswith("FALSE"), f"{LIARS[name].lie}: {found}"


@pytest.fixture(params=HONEST)
def honest(request: pytest.FixtureRequest) -> Honest:
    return HONEST[request.param]


def test_the_honest_pass_the_check_of_operators(honest):
    check_operator(honest.make(), honest.images(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_honest_are_solved_and_their_certificates_hold(honest, dtype):
    physics, x = honest.make(), honest.images(2)
    y = physics.A(x)
    energy = lr.Energy(physics, lr.regularizers.TV(0.03, 0.02) + lr.regularizers.Tikhonov(1e-2))
    if dtype == torch.float64:
        energy, y = energy.double(), y.double()
    check_honesty(energy, y, [1e-1, 1e-3], budget=3000)
