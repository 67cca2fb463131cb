"""What is known of a learned operator holds for that operator only: others are not certified."""

from __future__ import annotations

from collections.abc import Callable

import deepinv
import pytest
import torch
from torch import Tensor, nn

import learnreg as lr
from learnreg.operators.physics import LinearMap
from learnreg.operators.sensitivity import sensitivity
from learnreg.physics import Free, LearnedPhysics

TAPS = torch.tensor([[0.05, 0.1, 0.05], [0.1, 0.4, -0.1], [0.05, 0.1, 0.05]])[None, None]


class Doubled(LearnedPhysics):
    def A(self, x: Tensor, **kwargs: object) -> Tensor:
        return 2 * super().A(x, **kwargs)

    def A_adjoint(self, y: Tensor, **kwargs: object) -> Tensor:
        return 2 * super().A_adjoint(y, **kwargs)


class Known(Doubled):
    """Writes ``fixed`` as well: its word counts."""

    def fixed(self) -> deepinv.physics.LinearPhysics:
        found = super().fixed()
        found.filter = 2 * found.filter
        return found


class OnlyTensors(LearnedPhysics):
    """Other tensors in the same map."""

    def tensors(self) -> dict[str, Tensor]:
        return {name: 2 * t for name, t in super().tensors().items()}


def blur() -> deepinv.physics.Blur:
    return deepinv.physics.Blur(torch.ones(1, 1, 3, 3) / 9, padding="reflect")


def patched() -> LearnedPhysics:
    physics = LearnedPhysics(blur(), {"filter": Free(start=TAPS)})
    forward, back = physics.A, physics.A_adjoint
    physics.A = lambda x, **kw: 2 * forward(x, **kw)
    physics.A_adjoint = lambda y, **kw: 2 * back(y, **kw)
    return physics


def true_norm(physics: nn.Module) -> float:
    """||A||^2 on images of 8x8, by its matrix."""
    with torch.no_grad():
        rows = [physics.A(e.view(1, 1, 8, 8)).flatten() for e in torch.eye(64).double()]
    return float(torch.linalg.matrix_norm(torch.stack(rows).double(), 2)) ** 2


@pytest.mark.parametrize(
    ("make", "proven"),
    [
        (LearnedPhysics, True),
        (OnlyTensors, True),
        (Known, True),
        (Doubled, False),
        (None, False),
    ],
)
def test_a_proven_norm_is_one_of_the_operator_that_is_applied(
    make: type[LearnedPhysics] | None, proven: bool
) -> None:
    physics = patched() if make is None else make(blur(), {"filter": Free(start=TAPS)})
    # in float64, since the maps that an object carries stay those of its own type
    physics, x = physics.double(), torch.zeros(1, 1, 8, 8, dtype=torch.float64)

    tied = LinearMap(physics).on(x)
    found = tied.spectrum(x)

    assert found.L_kind.certifies is proven
    assert sensitivity(physics, x).certified is proven
    assert not proven or float(found.L) >= true_norm(physics) * (1 - 1e-6)


class Detached(nn.Module):
    """Autograd sees one of two ways in which a parameter moves the kernel."""

    def __init__(self, cut: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.cut = nn.Parameter(torch.tensor(0.3)), cut

    def forward(self) -> Tensor:
        row = torch.stack([self.a, 1 - 2 * self.cut(self.a), self.a])
        return (row[:, None] * row)[None, None]


@pytest.mark.parametrize("cut", [Tensor.detach, lambda a: a.data, lambda a: a.detach().clone()])
def test_parametrizations_that_autograd_sees_halfway_are_refused(
    cut: Callable[[Tensor], Tensor],
) -> None:
    with pytest.raises(lr.InputError, match="Detached, whose tensor has the derivative"):
        LearnedPhysics(blur(), {"filter": Detached(cut)})


def test_a_parametrization_that_autograd_sees_is_taken() -> None:
    module = Detached(Tensor.clone)
    before = module.a.detach().clone()

    LearnedPhysics(blur(), {"filter": module})

    assert torch.equal(module.a.detach(), before)
