"""The check of operators names what differs, by how much, and where."""

from __future__ import annotations

import deepinv
import pytest
import torch

from learnreg.core.bounds import Kind
from learnreg.operators.physics import LinearMap
from learnreg.testing import LIARS, check_operator, flipped_sign, scaled, shifted

SENTENCES = {
    "adjoint_1.01": r"A_adjoint of ScaledAdjoint: .*it is 1\.01 times that",
    "adjoint_1.0001": r"A_adjoint of ScaledAdjoint: .*it is 1\.0001 times that",
    "unflipped_kernel": "A_adjoint of UnflippedKernel: .*automatic differentiation",
    "one_row": "A_adjoint of WrongPlace",
    "one_pixel": "A_adjoint of WrongPlace",
    "one_pixel_1.01": "A_adjoint of WrongPlace",
    "copy_1.02": r"A of a float64 copy of OtherCopy: .*it is 1\.02 times that",
    "offset_1e-4": r"given A\(0\) with entries up to 1\.00e-04",
    "affine": r"given A\(0\) with entries",
    "cubic_1e-4": "A of Cubic: given a relative difference",
    "absolute": "A of Absolute",
    "noise_in_A": "A of Noisy",
    "drifting": "A of Drifting: .*the same at every call",
    "wrong_in_float64": "A_adjoint of a float64 copy of WrongInDouble",
    "batch_coupled": "image 1 of a batch|image 0 of a batch",
    "float32_only": "a float64 copy of HardCoded: given torch.float32",
}


@pytest.mark.parametrize("name", SENTENCES)
@pytest.mark.parametrize("size", [7, 24, 130])
def test_a_liar_is_caught_at_any_size(name, size):
    liar = LIARS[name]
    with pytest.raises(AssertionError, match=SENTENCES[name]):
        check_operator(liar.make(size), torch.rand(liar.images, *liar.shape(size)))


@pytest.mark.parametrize("name", ["inpainting_overridden", "decomposable_overridden"])
def test_singular_values_are_believed_only_where_they_are_those_of_A(name):
    physics, x = LIARS[name].make(24), torch.rand(1, 1, 24, 24)
    check_operator(physics, x)
    spectrum = LinearMap(physics).spectrum(x)
    assert spectrum.mu.value == 0 and spectrum.L.kind is Kind.ESTIMATE


def test_tensors_that_are_no_buffers_are_widened_too():
    check_operator(LIARS["unregistered"].make(24), torch.rand(1, 1, 24, 24))


def test_a_lie_that_depends_on_the_size_is_caught_at_that_size():
    physics = LIARS["wrong_when_large"].make(24)
    check_operator(physics, torch.rand(1, 1, 24, 24))
    with pytest.raises(AssertionError, match=r"1\.01 times"):
        check_operator(physics, torch.rand(1, 1, 65, 65))


def test_what_cannot_be_seen_in_one_look_passes():
    """A change after the first use, and an adjoint that is right to the precision it is used in."""
    check_operator(LIARS["attribute_changed"].make(12), torch.rand(1, 1, 12, 12))


@pytest.mark.parametrize("name", ["one_row", "one_pixel_1.01", "adjoint_1.01"])
def test_one_wrong_entry_is_caught_where_autograd_does_not_reach(name):
    liar = LIARS[name]
    physics = liar.make(6)
    physics.A = lambda x, **_: x.detach().clone()
    with pytest.raises(AssertionError, match=r"A_adjoint of .*at pixel \d+"):
        check_operator(physics, torch.rand(1, 1, 6, 6))


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (lambda p: scaled(p, "A_adjoint", 1.001), r"it is 1\.001 times that"),
        (lambda p: flipped_sign(p, "A_adjoint"), "it is -1 times that"),
        (lambda p: shifted(p, "A", 1e-3), r"given A\(0\)"),
        (lambda p: shifted(p, "A_adjoint", 1e-3), r"given A\^T 0"),
    ],
)
def test_a_planted_fault_is_caught_and_gone_afterwards(plant, message):
    physics, x = deepinv.physics.Decolorize(), torch.rand(1, 3, 5, 5)
    with plant(physics), pytest.raises(AssertionError, match=message):
        check_operator(physics, x)
    check_operator(physics, x)
    assert type(physics) is deepinv.physics.Decolorize


def test_the_physics_and_the_random_state_are_left_as_they_are():
    physics = deepinv.physics.Blur(filter=torch.rand(1, 1, 3, 3), padding="reflect")
    before, random = physics.filter.clone(), torch.get_rng_state()
    check_operator(physics, torch.ones(2, 1, 8, 8))
    assert torch.equal(physics.filter, before) and torch.equal(torch.get_rng_state(), random)
    assert physics.filter.dtype == torch.float32


def test_an_operator_with_parameters_to_learn_passes():
    class Taps(deepinv.physics.LinearPhysics):
        def __init__(self):
            super().__init__()
            self.taps = torch.nn.Parameter(torch.tensor([0.6, 0.4]))

        def A(self, x, **kwargs):
            return self.taps[0] * x + self.taps[1] * x.roll(1, -1)

        def A_adjoint(self, y, **kwargs):
            return self.taps[0] * y + self.taps[1] * y.roll(-1, -1)

    check_operator(Taps(), torch.rand(2, 1, 5, 6))
