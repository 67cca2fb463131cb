"""What a module of the user's own may offer: asked for by name, whatever class it comes from."""

from __future__ import annotations

import math
from typing import Protocol

import deepinv as dinv
import pytest
import torch
from torch import Tensor, nn

from learnreg.core import Bound, Curvature
from learnreg.core.asking import offers
from learnreg.core.errors import MissingPropertyError
from learnreg.core.offers import (
    EFFORT,
    Averaged,
    BoundsPerShape,
    DualVariable,
    MixedNorm,
    Units,
    certificate_of,
    effort_of,
    is_saddle,
    offers_averages,
)
from learnreg.core.ranges import absent, each
from learnreg.problems import Energy, SaddleEnergy
from learnreg.problems.data_functions import Diagonal
from learnreg.regularizers import TV, ExactTV
from learnreg.solvers.offers import Certifying


class Ridge(nn.Module):
    """weight / 2 ||x||^2 with the five methods an Energy needs, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))

    def value(self, x: Tensor) -> Tensor:
        return 0.5 * self.weight.detach() * x.square().flatten(1).sum(dim=1)

    def grad(self, x: Tensor) -> Tensor:
        return self.weight.detach() * x

    def linearize(self, x: Tensor) -> Diagonal:
        return Diagonal(float(self.weight))

    def directional(self, x: Tensor, v: Tensor) -> Tensor:
        return self.weight * (x * v).flatten(1).sum(dim=1)

    def bounds(self) -> Curvature:
        return Curvature(Bound.unknown(), Bound.unknown())


class Generous(Ridge):
    """The same, with everything that may be offered."""

    effort = 3

    def bounds_for(self, x: Tensor) -> Curvature:
        return Curvature(Bound.exact(2.0), Bound.exact(float(x.dim())))

    def curvature_near(self, x: Tensor) -> tuple[Tensor, Tensor]:
        raise AssertionError("what is declared need not be estimated")

    def hessian_change(self, x: Tensor, q: Tensor, radius: Tensor) -> Tensor:
        return torch.zeros_like(radius)

    def hessian_lipschitz(self) -> Bound:
        return Bound.exact(0.0)


class Guessed(Ridge):
    """Bounds nobody declared, but an estimate around images."""

    def curvature_near(self, x: Tensor) -> tuple[Tensor, Tensor]:
        found = torch.full((x.shape[0],), 2.0, dtype=torch.float64)
        return found, found


def denoising(regularizer: nn.Module) -> Energy:
    return Energy(dinv.physics.Denoising(), regularizer)


def images() -> Tensor:
    return torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def test_a_module_that_offers_nothing_gets_the_defaults():
    f = denoising(Ridge()).at(images())
    assert effort_of(Ridge()) == EFFORT and not offers_averages(Ridge())
    assert f.effort() == f.operator.effort + EFFORT
    assert not f.averages and f.mean_curvature(images()) is None
    assert not math.isfinite(f.bounds().L.value)
    assert f.energy.certificate("hessian_change", *[images()] * 3) is None
    assert f.energy.hessian_lipschitz() == Bound.unknown()
    with pytest.raises(MissingPropertyError, match="Ridge without dual_start"):
        f.dual_start(images())


def test_a_module_that_offers_is_asked():
    f = denoising(Generous()).at(images())
    assert effort_of(Generous()) == 3 and f.effort() == f.operator.effort + 3
    assert f.bounds().L.value == 1 + 4, "bounds_for, before bounds"
    radius = torch.ones(2)
    assert torch.equal(
        f.energy.certificate("hessian_change", images(), images(), radius), 0 * radius
    )
    assert f.energy.certificate("mixed_norm", images(), radius) is None
    assert f.energy.hessian_lipschitz().value == 0
    assert certificate_of(Generous(), "value") is None, "no certificate, whatever else it is"


def test_what_nobody_declared_is_estimated_where_somebody_can():
    bounds = denoising(Guessed()).at(images()).bounds()
    assert (bounds.mu.value, bounds.L.value) == (3.0, 3.0)
    assert not bounds.mu.certified and not bounds.L.certified


def test_an_offer_may_be_made_by_one_object_alone():
    r = TV()
    r.mean_curvature = lambda x: None
    assert denoising(r).at(images()).mean_curvature(images()) is None


@pytest.mark.parametrize(
    ("part", "saddle"),
    [(TV(), False), (ExactTV(), True), (Ridge(), False), (nn.Identity(), False), (None, False)],
)
def test_saddle_or_not_is_asked_in_one_place(part, saddle):
    assert is_saddle(part) is saddle


def test_energies_say_themselves_whether_they_are_saddle_points():
    physics = dinv.physics.Denoising()
    assert not Energy(physics, TV()).saddle and SaddleEnergy(physics, ExactTV()).saddle
    assert not is_saddle(denoising(Ridge())) and is_saddle(SaddleEnergy(physics, ExactTV()))


def test_each_walks_over_named_settings_and_absent_names_what_is_missing():
    settings = Ridge()
    settings.a, settings.b = 1, "two"
    assert list(each(settings, "b", "a")) == [("b", "two"), ("a", 1)]
    with pytest.raises(KeyError):
        list(each(settings, "c"))
    assert absent(settings, ("weight", "grad", "c", "d")) == ["c", "d"]


class Wrapped(nn.Module):
    """A regularizer in a module that hands on what it does not have itself, as ``torch.compile``
    and many loggers and timers do.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def __getattr__(self, name: str) -> object:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)


def test_a_wrapped_regularizer_has_the_constants_of_what_is_inside():
    volumes = torch.rand(1, 1, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    plain, wrapped = (denoising(r).at(volumes) for r in (TV(), Wrapped(TV())))
    assert plain.bounds().L.value > TV().bounds().L.value + 1, "volumes are rougher than pictures"
    assert wrapped.bounds() == plain.bounds()
    assert wrapped.averages and wrapped.effort() == plain.effort()
    args = volumes, volumes, torch.ones(1)
    for name in ("hessian_change", "mixed_change"):
        of_plain, of_wrapped = (f.energy.certificate(name, *args) for f in (plain, wrapped))
        assert torch.equal(of_plain, of_wrapped)


def test_an_offer_that_only_getattr_makes_up_is_not_overlooked_by_any_python():
    # isinstance would say no from Python 3.12 on: what it does is no part of the test
    for kind in (BoundsPerShape, MixedNorm, DualVariable, Units):
        assert offers(Wrapped(TV()), kind) and not offers(Wrapped(nn.Identity()), kind)
    assert is_saddle(Wrapped(ExactTV())) and not is_saddle(Wrapped(TV()))


def test_nobody_asks_by_isinstance():
    for kind in (BoundsPerShape, Averaged, Certifying):
        with pytest.raises(TypeError, match="runtime_checkable"):
            isinstance(TV(), kind)


def test_none_is_no_offer_and_an_annotation_is_a_member():
    class Labelled(Protocol):
        label: str

    r = TV()
    assert not offers(r, Labelled)
    r.label, r.bounds_for = "mine", None
    assert offers(r, Labelled) and not offers(r, BoundsPerShape)
