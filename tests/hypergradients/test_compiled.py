"""``torch.compile`` leaves solvers alone, and what would record their steps is refused."""

from __future__ import annotations

from collections.abc import Callable

import deepinv
import pytest
import torch
from torch import nn

import learnreg as lr
from learnreg.core.errors import MissingPropertyError

Y = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def model() -> lr.Reconstructor:
    physics = deepinv.physics.Blur(torch.ones(1, 1, 3, 3) / 9, padding="reflect")
    regularizer = lr.regularizers.TV(0.1, 0.1) + lr.regularizers.Tikhonov(0.1, learned=False)
    return lr.Reconstructor(lr.Energy(physics, regularizer, constraint=(0, 1)))


# what torch does to tensors of its own: it warns of what it reads in them
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_network_with_a_reconstructor_in_it_is_the_network() -> None:
    network = nn.Sequential(model(), nn.Conv2d(1, 1, 3))
    # why this backend: it takes no compiler of C, and cuts functions into the same pieces
    compiled = torch.compile(network, backend="aot_eager")

    found, expected = compiled(Y), network(Y)
    slopes = [
        torch.autograd.grad(out.sum(), [p for p in network.parameters() if p.requires_grad])
        for out in (found, expected)
    ]

    assert torch.equal(found, expected)
    assert all(torch.equal(a, b) for a, b in zip(*slopes, strict=True))


@pytest.mark.parametrize(
    "record",
    [
        lambda network: torch.jit.trace(network, (Y,)),
        lambda network: torch.export.export(network, (Y,), strict=False),
    ],
    ids=["trace", "export"],
)
@pytest.mark.filterwarnings("ignore")
def test_a_solver_is_not_recorded_with_the_steps_of_one_input(
    record: Callable[[nn.Module], object],
) -> None:
    with torch.no_grad(), pytest.raises(MissingPropertyError, match="while a graph is recorded"):
        record(model())
