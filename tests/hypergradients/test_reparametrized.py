"""``torch.nn.utils.parametrize``: theta are other tensors than those that a class knows."""

from __future__ import annotations

from collections.abc import Callable

import deepinv
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

import learnreg as lr
from learnreg.problems.data_functions import DataFunction

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


class NotSquared(lr.L2):
    """A data term that derives from the quadratic one, and is none."""

    def tie(self, y: Tensor) -> DataFunction:
        return lr.Huber(0.05).tie(y)


def test_a_data_term_that_derives_from_a_quadratic_one_has_its_own_constants() -> None:
    regularizer = R.TV(0.05, 0.1)
    physics = deepinv.physics.Denoising()
    x = torch.rand(1, 1, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    radius = torch.full((1,), 0.1, dtype=torch.float64)

    plain = lr.Energy(physics, regularizer, lr.L2())
    derived, huber = (lr.Energy(physics, regularizer, f) for f in (NotSquared(), lr.Huber(0.05)))

    assert plain.hessian_lipschitz().certified
    assert not derived.hessian_lipschitz().certified
    for name, args in (("hessian_change", (x, x, radius)), ("mixed_norm", (x, radius))):
        assert plain.certificate(name, *args) is not None
        assert derived.certificate(name, *args) is None
    at = [e.at(x.float()).certificate("hessian_change", x, x, radius) for e in (derived, huber)]
    assert at[0] is not None and torch.equal(at[0], at[1])
