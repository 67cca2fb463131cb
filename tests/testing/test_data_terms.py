"""The contract of a data term: a toy passes, its mutants are named."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from learnreg.core.bounds import Constants, Kind
from learnreg.core.protocols import Hessian
from learnreg.problems import KL, L2, Foreign, Huber, WeightedL2
from learnreg.problems.data_functions import Diagonal
from learnreg.testing import check_data_term


class Opaque:
    """A Hessian that does not say that it is diagonal."""

    def __init__(self, weights: Tensor) -> None:
        self.weights = weights

    def __call__(self, v: Tensor) -> Tensor:
        return self.weights * v

    def select(self, index: Tensor) -> Opaque:
        return Opaque(self.weights[index])


@dataclass(frozen=True)
class Function:
    """sum weight (sqrt((a - y)^2 + 1) - 1), a smooth absolute value; parts may be spoilt."""

    y: Tensor
    weight: float
    spoilt: str = ""

    def value(self, a: Tensor) -> Tensor:
        r = a - self.y
        if self.spoilt == "value of the batch":
            r = r + 0.1 * r.mean()
        return self.weight * (torch.sqrt(r * r + 1) - 1).flatten(1).sum(dim=1)

    def grad(self, a: Tensor) -> Tensor:
        r = a - self.y
        if self.spoilt == "twice the gradient":
            return 2 * self.weight * r / torch.sqrt(r * r + 1)
        if self.spoilt == "gradient at -a":
            r = -a - self.y
        return self.weight * r / torch.sqrt(r * r + 1)

    def linearize(self, a: Tensor) -> Hessian:
        power = -1.0 if self.spoilt == "majorant" else -1.5
        weights = self.weight * ((a - self.y) ** 2 + 1) ** power
        return Opaque(weights) if self.spoilt.startswith("none") else Diagonal(weights)

    def constants(self) -> Constants:
        upper = 0.5 if "small upper" in self.spoilt else 1.0
        lower = 0.2 if "large lower" in self.spoilt else 0.0
        one = torch.ones(self.y.shape[0], dtype=torch.float64)
        return Constants(
            lower * self.weight * one, upper * self.weight * one, Kind.BOUND, Kind.BOUND
        )

    def select(self, index: Tensor) -> Function:
        if self.spoilt == "select forgets":
            return self
        return replace(self, y=self.y[index])

    def double(self) -> Function:
        weight = 1.01 * self.weight if self.spoilt == "another copy" else self.weight
        return replace(self, y=self.y.double(), weight=weight)


@dataclass(frozen=True)
class Smoothed:
    weight: float = 2.0
    spoilt: str = ""

    def tie(self, y: Tensor) -> Function:
        return Function(y, self.weight, self.spoilt)


@pytest.fixture
def y() -> Tensor:
    return torch.rand(3, 1, 4, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("spoilt", ["", "none"])
@pytest.mark.parametrize("count", [1, 3])
def test_a_sound_term_passes(y, spoilt, count):
    check_data_term(Smoothed(spoilt=spoilt), y[:count])
    check_data_term(Smoothed(spoilt=spoilt), y[:count], 3 * torch.ones_like(y[:count]))


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        ("twice the gradient", r"grad of Smoothed: .*it is 2 times that"),
        ("gradient at -a", "grad of Smoothed"),
        ("majorant", "Hessian of Smoothed: .*the difference quotient of grad"),
        ("small upper", "constants of Smoothed: given L = 1; expected at least"),
        ("none, small upper", "constants of Smoothed: given L = 1; expected at least"),
        ("none, large lower", "constants of Smoothed: given mu = 0.4; expected at most"),
        ("large lower", "constants of Smoothed: given mu = 0.4; expected at most"),
        ("select forgets", "select of Smoothed"),
        ("value of the batch", "Smoothed"),
        ("another copy", "grad of Smoothed in torch.float32"),
    ],
)
def test_a_planted_fault_is_named(y, spoilt, message):
    with pytest.raises(AssertionError, match=message):
        check_data_term(Smoothed(spoilt=spoilt), y)


@pytest.mark.parametrize(
    "term",
    [
        L2(),
        L2(0.3),
        WeightedL2(torch.linspace(0, 2, 20).reshape(1, 1, 4, 5)),
        Huber(0.2, 3.0),
        KL(),
        KL(0.5, 2.0),
        Foreign(lambda a, y: ((a - y) ** 2 + 1).sqrt().flatten(1).sum(dim=1), mu=0.0, L=1.0),
        Foreign(lambda a, y: ((a - y) ** 4).flatten(1).sum(dim=1)),
    ],
    ids=str,
)
def test_the_terms_of_the_library_pass(y, term):
    check_data_term(term, y)
    check_data_term(term, y, torch.randn(y.shape, generator=torch.Generator().manual_seed(1)))
