"""Independent truths: closed forms, both methods, and what they say of certificates."""

from __future__ import annotations

from dataclasses import replace

import deepinv
import pytest
import torch
from tests.regularizers.cases import CASES, ENERGIES, PLAIN, newton, pairs, plain

import learnreg as lr
from learnreg.core.errors import MissingPropertyError
from learnreg.regularizers import TV, FoE, HuberTV, Tikhonov
from learnreg.testing import check_honesty, honesty, scaled, true_distance, truth
from learnreg.testing.formulas import parts, value


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.name != "black_box"], ids=lambda case: case.name
)
def test_the_formulas_are_those_of_the_docstrings(case):
    r, x = case.make(), case.images()
    assert type(r) in PLAIN
    torch.testing.assert_close(value(parts(r), x), plain(r, x), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", ENERGIES)
def test_the_minimizers_are_those_of_another_method(name):
    energy, y = ENERGIES[name](), pairs(2).y
    found = truth(energy.widened(), y, y)
    distance = (found.minimizer - newton(energy, y)).flatten(1).norm(dim=1)
    assert (distance <= 1e-10).all() and (found.uncertainty <= 1e-10).all()


def test_a_quadratic_has_its_closed_form():
    energy = lr.Energy(deepinv.physics.Denoising(), Tikhonov(0.5).double(), lr.L2(2.0))
    y = pairs(2).y
    exact = y / 4 / (0.25 + 0.5)
    torch.testing.assert_close(truth(energy, y, y).minimizer, exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "regularizer",
    [
        TV(0.1, 1e-4) + Tikhonov(1e-2),
        HuberTV(0.1, 1e-3) + Tikhonov(1e-2),
        FoE(3, 3) + Tikhonov(0.1),
    ],
    ids=["tv", "huber", "foe"],
)
def test_matrices_and_conjugate_gradients_agree(regularizer, monkeypatch):
    blur = deepinv.physics.Blur(filter=torch.ones(1, 1, 3, 3) / 9, padding="reflect")
    y = pairs(2, (7, 6)).y.float()
    energy = lr.Energy(blur, regularizer)
    dense = truth(energy, y, y)
    monkeypatch.setattr("learnreg.testing.minimizers.MOST_PIXELS", 0)
    iterated = truth(energy, y, y)
    distance = (dense.minimizer - iterated.minimizer).flatten(1).norm(dim=1)
    assert (distance <= dense.uncertainty + iterated.uncertainty + 1e-8).all()


class Own(torch.nn.Module):
    """A Tikhonov of a class that the formulas do not know."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Tikhonov(0.5)

    def __getattr__(self, name):
        known = ("value", "grad", "linearize", "directional", "bounds")
        return getattr(self.inner, name) if name in known else super().__getattr__(name)


@pytest.mark.parametrize("pixels", [0, 600])
def test_a_regularizer_of_another_class_is_taken_at_its_word(pixels, monkeypatch):
    monkeypatch.setattr("learnreg.testing.minimizers.MOST_PIXELS", pixels)
    y = pairs(2).y
    energy = lr.Energy(deepinv.physics.Denoising(), Own().double())
    torch.testing.assert_close(truth(energy, y, y).minimizer, y / 1.5, rtol=0, atol=1e-6)


def test_distances_are_norms_per_image():
    energy = lr.Energy(deepinv.physics.Denoising(), Tikhonov(1.0).double())
    y = pairs(3).y
    x = y / 2 + torch.tensor([0.0, 1.0, 2.0]).view(-1, 1, 1, 1)
    wanted = torch.tensor([0.0, 1.0, 2.0]).double() * y[0].numel() ** 0.5
    torch.testing.assert_close(true_distance(energy, y, x), wanted, rtol=0, atol=1e-6)


def test_honest_rows_and_a_planted_lie():
    """The certificate of an adjoint that is 1 % off is false where nothing tests the adjoint."""
    physics = deepinv.physics.Blur(filter=torch.ones(1, 1, 3, 3) / 9, padding="circular")
    y = pairs(2).y.float()
    r = TV(0.1, 0.05) + Tikhonov(0.1)
    rows = honesty(lr.Energy(physics, r), y, [1e-1, 1e-4])
    assert [row.image for row in rows] == [0, 1, 0, 1] and not any(row.violated for row in rows)
    assert all(0 <= row.ratio <= 1 and row.kind == "certified" for row in rows)

    with scaled(r, "grad", 1.01):
        energy = lr.Energy(physics, r)
        # the formula is that of the class; a derived class has none, so name it here
        rows = honesty(energy, y, 1e-4)
    assert len(rows) == 2
    with pytest.raises(AssertionError, match=r"certificate of image 0 at eps 1e-04 .*expected at"):
        check_honesty(Lying(physics, TV(0.1, 0.05) + Tikhonov(0.1)), y, 1e-4)


class Lying(lr.Energy):
    """Says that its strong convexity is a thousand times what it is."""

    def at(self, y, x=None):
        potential = super().at(y, x)
        sound = potential.constants
        return replace(potential, constants=replace(sound, mu=1000 * sound.mu, L=1000 * sound.L))


def test_what_has_no_truth_is_refused():
    energy = lr.Energy(deepinv.physics.Denoising(), Tikhonov(1.0))
    y = pairs(2).y.float()
    with pytest.raises(lr.InputError, match="like: given 1 images; expected 2"):
        truth(energy, y, y[:1])
    energy.fidelity = object()
    with pytest.raises(MissingPropertyError, match="without tie"):
        true_distance(energy, y, y)
