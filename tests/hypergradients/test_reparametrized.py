"""``torch.nn.utils.parametrize``: theta are other tensors than those that a class knows."""

from __future__ import annotations

from collections.abc import Callable

import deepinv
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

import learnreg as lr

R = lr.regularizers


class Stretched(nn.Module):
    def forward(self, v: Tensor) -> Tensor:
        return 30 * v

    def right_inverse(self, v: Tensor) -> Tensor:
        return v / 30


def problem(regularizer: nn.Module, fidelity: object = None) -> lr.BilevelProblem:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 1, 6, 6, generator=generator, dtype=torch.float64)
    y = x + 0.1 * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    physics = deepinv.physics.Denoising()
    energy = lr.Energy(physics, regularizer, fidelity).widened()
    return lr.BilevelProblem(energy, lr.data.Pairs(x, y, physics, ("a", "b")))


def gradient(posed: lr.BilevelProblem, eps: float) -> lr.core.results.Hypergradient:
    strategy = lr.Implicit(estimate=False, certify=True)
    return lr.hypergradient(posed, eps, 1e-9, strategy=strategy)


KINDS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "TV": (lambda: R.TV(0.05, 0.1), "log_weight"),
    "Tikhonov": (lambda: R.Tikhonov(0.05), "log_weight"),
    "FoE": (lambda: R.FoE(2, 3, weight=0.05, smoothing=0.1), "log_scale"),
    "Sum": (lambda: R.TV(0.05, 0.1) + R.Tikhonov(0.05), ""),
}


@pytest.mark.parametrize("name", KINDS)
def test_regularizers_with_parameters_of_other_parameters_are_not_certified(name: str) -> None:
    make, key = KINDS[name]
    plain = make()
    regularizer = make()
    module = regularizer if key else regularizer.terms[1]
    register_parametrization(module, key or "log_weight", Stretched())

    found = gradient(problem(regularizer), 0.3)

    assert gradient(problem(plain), 0.3).certified is not None
    assert found.certified is None
    assert found.bracket_kind.certifies  # the loss does not hang on how theta gets in


def test_learned_weights_of_other_parameters_are_bounded_by_their_jacobian() -> None:
    weights = lr.WeightedL2(nn.Parameter(torch.full((1, 1, 1, 1), 0.4)))
    register_parametrization(weights, "weights", Stretched())
    tv = R.TV(0.05, 0.1).requires_grad_(False)
    posed = problem(tv, weights)
    plain = problem(tv, lr.WeightedL2(nn.Parameter(torch.full((1, 1, 1, 1), 0.4))))

    found, exact = gradient(posed, 0.2), gradient(posed, 1e-9)

    assert found.certified is not None
    assert float((found.value - exact.value).norm()) <= found.certified + 1e-9
    by_weights = gradient(plain, 0.2).certified
    assert by_weights is not None
    assert found.certified == pytest.approx(30 * by_weights, rel=1e-3)
