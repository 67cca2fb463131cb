"""The contract for users passes on the library's own regularizers and names planted faults."""

from __future__ import annotations

import math

import pytest
import torch
from tests.regularizers.cases import CASES, Case
from torch import Tensor, nn

import learnreg as lr
from learnreg.core.bounds import Bound, Curvature
from learnreg.regularizers import TV, FoE, HuberTV, LinearizedHessian, Tikhonov
from learnreg.testing import check_regularizer, flipped_sign, planted, scaled


def images(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.name != "black_box"], ids=lambda case: case.name
)
def test_the_regularizers_of_the_library_pass(case: Case):
    made = check_regularizer(case.make(), case.images()[[0, 4]])
    assert {"gradient", "hessian", "directional", "bounds", "spec"} <= set(made)
    assert ("hessian_change" in made) == case.certified


@pytest.mark.parametrize("shape", [(1, 1, 5, 3), (2, 1, 1, 7), (3, 2, 4, 4), (1, 1, 14, 13)])
def test_images_of_any_size_will_do(shape):
    check_regularizer(TV(0.3, 0.2), images(*shape))


class Quartic(nn.Module):
    """sum weight (x^2 / 2 + log cosh x), with nothing but what is asked for; parts may be spoilt.

    Args:
        spoilt: which part.
    """

    def __init__(self, spoilt: str = "") -> None:
        super().__init__()
        self.log_weight = nn.Parameter(torch.tensor(-1.0))
        self.spoilt = spoilt
        self.kept: Tensor | None = None

    @property
    def weight(self) -> Tensor:
        return self.log_weight.exp()

    def value(self, x: Tensor) -> Tensor:
        if self.spoilt == "stale value":
            self.kept = self.weight.detach() if self.kept is None else self.kept
            return self.kept * self._sum(x)
        if self.spoilt == "value sums the batch":
            return self.weight.detach() * self._sum(x).sum().expand(x.shape[0])
        return self.weight.detach() * self._sum(x)

    @staticmethod
    def _sum(x: Tensor) -> Tensor:
        return (x.square() / 2 + torch.log(torch.cosh(x))).flatten(1).sum(dim=1)

    def grad(self, x: Tensor) -> Tensor:
        g = self.weight.detach() * (x + torch.tanh(x))
        if self.spoilt == "gradient in one pixel":
            g[..., 0, 0] *= 1.001
        if self.spoilt == "gradient with a graph":
            return self.weight * (x + torch.tanh(x))
        if self.spoilt == "gradient draws numbers":
            torch.rand(1)
        if self.spoilt == "gradient changes its argument":
            x.add_(1e-3)
        if self.spoilt == "gradient in float64":
            return g.double()
        if self.spoilt == "gradient sees its neighbours":
            return g + 0.01 * x.mean(dim=0, keepdim=True)
        return g

    def linearize(self, x: Tensor) -> LinearizedHessian:
        curvature = self.weight.detach() * (1 + torch.cosh(x) ** -2)
        if self.spoilt == "not symmetric":
            return LinearizedHessian(lambda v, c: c * v + 0.1 * v.roll(1, -1), curvature)
        if self.spoilt == "select forgets":
            return Forgetful(lambda v, c: c * v, curvature)
        if self.spoilt == "curvature of the value":
            return LinearizedHessian(lambda v, c: c * v, curvature / self.weight.detach())
        return LinearizedHessian(lambda v, c: c * v, curvature)

    def directional(self, x: Tensor, v: Tensor) -> Tensor:
        weight = self.weight.detach() if self.spoilt == "no graph" else self.weight
        slope = weight * ((x + torch.tanh(x)) * v).flatten(1).sum(dim=1)
        if self.spoilt == "directional of wrong sign":
            return -slope
        if self.spoilt == "derivative of wrong sign":
            return 2 * slope.detach() - slope
        if self.spoilt == "derivative without the chain rule":
            return slope.detach() + (slope - slope.detach()) / weight.detach()
        return slope

    def bounds(self) -> Curvature:
        w = math.exp(float(self.log_weight.detach()))
        upper = 1.5 * w if self.spoilt == "L too small" else 2 * w
        lower = 1.3 * w if self.spoilt == "mu too large" else w
        if self.spoilt == "bounds of another theta":
            lower = upper = math.exp(-1.0)
            return Curvature(Bound.proven(lower), Bound.proven(2 * upper))
        return Curvature(Bound.proven(lower), Bound.proven(upper))


class Forgetful(LinearizedHessian):
    def select(self, index: Tensor) -> Forgetful:
        return Forgetful(self.product, *(w[: len(index)] for w in self.weights))


def test_a_class_with_nothing_but_the_five_methods_passes():
    made = check_regularizer(Quartic(), images(2, 1, 5, 4))
    assert "spec" not in made and "mean_curvature" not in made and "directional" in made


MUTANTS = {
    "gradient in one pixel": "grad of Quartic",
    "gradient with a graph": "grad of Quartic: given a result with a graph",
    "gradient draws numbers": "global random state",
    "gradient changes its argument": "Quartic",
    "gradient in float64": "grad of Quartic in float32: given torch.float64",
    "gradient sees its neighbours": "Quartic",
    "value sums the batch": "Quartic",
    "stale value": "grad of Quartic at other parameters",
    "not symmetric": "linearize of Quartic",
    "select forgets": "select of Quartic.*the Hessian of the selected images",
    "curvature of the value": r"linearize of Quartic: .*it is 2\.71828 times that",
    "directional of wrong sign": r"directional of Quartic: .*it is -1 times that",
    "derivative of wrong sign": r"derivative of directional .*in theta: .*it is -1 times that",
    "derivative without the chain rule": r"in theta: .*it is 2\.71828 times that",
    "no graph": r"in theta: given a relative difference of 1\.00e\+00",
    "L too small": "bounds of Quartic.*given L = .*expected at least .*a Rayleigh quotient",
    "mu too large": "bounds of Quartic.*given mu = .*expected at most .*a Rayleigh quotient",
    "bounds of another theta": "changed in place|at other parameters",
}


@pytest.mark.parametrize("spoilt", MUTANTS)
@pytest.mark.parametrize("size", [(5, 4), (15, 14)], ids=["dense", "iterated"])
def test_a_planted_fault_is_named(spoilt, size):
    if spoilt == "bounds of another theta":
        mutant = Quartic()
        mutant.spoilt = spoilt
    else:
        mutant = Quartic(spoilt)
    with pytest.raises(AssertionError, match=MUTANTS[spoilt]):
        check_regularizer(mutant, images(2, 1, *size))


def theirs(name: str, change):
    """A fault of one method of TV."""
    return lambda r: planted(r, name, change)


def small_foe() -> FoE:
    return FoE(3, 3)


FAULTS = {
    "twice the gradient": (TV, lambda r: scaled(r, "grad", 2.0), r"grad of TV: .* 2 times"),
    "minus the gradient": (
        small_foe,
        lambda r: flipped_sign(r, "grad"),
        r"grad of FoE: .* -1 times",
    ),
    "half the value": (HuberTV, lambda r: scaled(r, "value", 0.5), r"grad of HuberTV: .* 2 times"),
    "Hessian of the gradient's half": (
        TV,
        theirs("linearize", lambda sound: lambda x: sound(x * 0.5)),
        "linearize of TV",
    ),
    "bounds too small": (TV, lambda r: scaled(r, "bounds", 0.9), "given L = "),
    "no strong convexity": (
        Tikhonov,
        theirs("bounds", lambda sound: lambda: Curvature(Bound.proven(0.5), Bound.proven(0.5))),
        "given mu = 0.5",
    ),
    "hessian_change too small": (
        TV,
        lambda r: scaled(r, "hessian_change", 1e-3),
        r"hessian_change of TV within .*: given .*; expected at least",
    ),
    "mixed_norm too small": (TV, lambda r: scaled(r, "mixed_norm", 1e-3), "mixed_norm of TV"),
    "spec of another": (
        TV,
        theirs("spec", lambda sound: lambda: {**sound(), "isotropic": False}),
        "spec of TV: .*to rebuild the function",
    ),
    "symbol in half": (
        TV,
        theirs("mean_curvature", lambda sound: lambda x: (-1.0) * (sound(x) * 1.0)),
        "mean_curvature|negative|factor",
    ),
    "a transpose forgotten": (
        small_foe,
        theirs("grad", lambda sound: lambda x: sound(x.mT.contiguous())),
        "grad of FoE",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_planted_in_the_library_is_named(fault):
    make, plant, message = FAULTS[fault]
    r = make()
    with (
        plant(r),
        pytest.raises((AssertionError, lr.InputError), match=message),
    ):
        check_regularizer(r, images(2, 1, 5, 5))
    assert type(r) in (TV, FoE, HuberTV, Tikhonov)
    check_regularizer(r, images(2, 1, 5, 5))


def test_a_missing_method_is_named():
    with pytest.raises(AssertionError, match="value of Linear: given nothing of that name"):
        check_regularizer(nn.Linear(2, 2), images(1, 1, 3, 3))


def test_the_regularizer_is_left_as_it_is():
    r = FoE(2, 3)
    before = {k: t.clone() for k, t in r.state_dict().items()}
    check_regularizer(r, images(1, 1, 5, 5))
    assert all(torch.equal(t, before[k]) for k, t in r.state_dict().items())
    assert all(p.grad is None for p in r.parameters())
