"""What a layer says instead of losing a gradient or an argument in silence."""

from __future__ import annotations

import deepinv
import pytest
import torch
from torch import Tensor

import learnreg as lr
from learnreg.core.errors import DataWarning, InputError, MissingPropertyError
from learnreg.core.grants import Grants
from learnreg.core.maps import Ask, Posed, Pullback, Upper
from learnreg.core.results import Solution
from learnreg.hypergradients import Implicit
from learnreg.problems import Energy, SaddleEnergy
from learnreg.regularizers import TV, ExactTV, Tikhonov

SHAPE = (2, 1, 8, 8)


def images(seed: int) -> Tensor:
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(seed))


def inpainting() -> tuple[Energy, Tensor]:
    mask = (images(3) > 0.4).float()
    physics = deepinv.physics.Inpainting(SHAPE[1:], mask=torch.ones(1, 1, 8, 8))
    return Energy(physics, TV(0.1, 0.1) + Tikhonov(0.1, learned=False)), mask


class WithoutData(Implicit):
    """A map that only knows theta."""

    @property
    def grants(self) -> Grants:
        return super().grants & ~Grants.DATA


class Short(Implicit):
    """A map that forgets a parameter."""

    def pull(self, posed: Posed, solution: Solution, upper: Upper, ask: Ask) -> Pullback:
        found = super().pull(posed, solution, upper, ask)
        return Pullback(found.theta[:1], None, found.residual, found.status, found.cost)


def test_parameters_per_image_are_data_and_not_differentiated_in_silence():
    energy, mask = inpainting()
    model = lr.Reconstructor(energy, eps=1e-2)
    with pytest.raises(MissingPropertyError, match="params: given mask that require a gradient"):
        model(images(1) * mask, params={"mask": mask.requires_grad_()})
    with torch.no_grad():
        model(images(1) * mask, params={"mask": mask})


def test_unknown_words_are_no_arguments():
    energy, mask = inpainting()
    with pytest.raises(TypeError, match="mask"):
        lr.Reconstructor(energy, eps=1e-2)(images(1), energy.physics, mask=mask)


def test_a_map_without_the_data_refuses_to_break_the_graph():
    model = lr.Reconstructor(Energy(deepinv.physics.Denoising(), TV()), hypergradient=WithoutData())
    model(images(1)).sum().backward()
    with pytest.raises(MissingPropertyError, match="with respect to the measurements"):
        model(images(1).requires_grad_())


def test_a_derivative_of_another_shape_is_refused():
    energy = Energy(deepinv.physics.Denoising(), TV())
    out = lr.Reconstructor(energy, hypergradient=Short())(images(1)).sum()
    message = r"Short\.pull: given a derivative of shape \(1,\); expected shape \(2,\)"
    with pytest.raises(InputError, match=message):
        out.backward()
    pairs = lr.data.Pairs(images(1), images(2), deepinv.physics.Denoising(), "ab")
    with pytest.raises(InputError, match=message):
        lr.hypergradient(lr.BilevelProblem(energy, pairs), 1e-2, 1e-2, strategy=Short())


def test_parameters_must_stay_what_they_were_until_the_backward_pass():
    model = lr.Reconstructor(Energy(deepinv.physics.Denoising(), TV()))
    out = model(images(1)).sum()
    model.requires_grad_(False)
    with pytest.raises(InputError, match="leave requires_grad as it was"):
        out.backward()


def test_what_is_remembered_of_a_physics_is_not_the_energy():
    physics = deepinv.physics.Denoising()
    model = lr.Reconstructor(SaddleEnergy(physics, ExactTV(0.1)), eps=1e-2)
    other = deepinv.physics.Denoising()
    before = model(images(1), other)
    model.energy.tikhonov = 5.0
    after = model(images(1), other)
    assert torch.equal(after, model(images(1))) and not torch.equal(after, before)


def test_score_matching_wants_a_gradient_and_nothing_but_noise():
    denoising = deepinv.physics.Denoising(deepinv.physics.GaussianNoise(0.1))
    train, _ = lr.data.pairs("phantoms", denoising, size=16, split=(2, 1), seed=0)
    with pytest.raises(InputError, match="ExactTV, which has no gradient"):
        lr.ScoreMatching(SaddleEnergy(denoising, ExactTV()), train)
    kernel = torch.ones(1, 1, 3, 3) / 9
    blur = deepinv.physics.BlurFFT((1, 16, 16), filter=kernel)
    blurred, _ = lr.data.pairs("phantoms", blur, size=16, split=(2, 1), seed=0)
    with pytest.raises(InputError, match="pairs of BlurFFT"):
        lr.ScoreMatching(Energy(denoising, TV()), blurred)


def blur() -> deepinv.physics.Blur:
    noise = deepinv.physics.GaussianNoise(0.02)
    return deepinv.physics.Blur(torch.ones(1, 1, 3, 3) / 9, padding="reflect", noise_model=noise)


CHANGES = {
    "update": lambda p: p.update(filter=torch.ones(1, 1, 3, 3) / 4),
    "argument": lambda p: p.A(images(2), filter=torch.ones(1, 1, 3, 3) / 4),
    "in place": lambda p: p.filter.mul_(2),
    "data": lambda p: p.filter.data.zero_(),
}
USES = {
    "applied": lambda p: (p.A(images(2)), p.A_adjoint(images(2))),
    "noise": lambda p: p(images(2)),
    "noise level": lambda p: p.update(sigma=0.1),
    "inverse": lambda p: p.A_dagger(images(2)),
}


@pytest.mark.parametrize("handed", [True, False])
@pytest.mark.parametrize("change", CHANGES)
def test_a_physics_that_changed_since_the_forward_pass_gives_no_derivative(change, handed):
    physics = blur()
    regularizer = TV(0.1, 0.1) + Tikhonov(0.1, learned=False)
    model = lr.Reconstructor(Energy(blur() if handed else physics, regularizer))
    found = model(images(1), physics) if handed else model(images(1))
    CHANGES[change](physics)
    with pytest.raises(MissingPropertyError, match="changed since the forward pass"):
        found.sum().backward()


@pytest.mark.parametrize("use", USES)
def test_a_physics_may_be_used_between_forward_and_backward_pass(use):
    physics = blur()
    model = lr.Reconstructor(Energy(blur(), TV(0.1, 0.1) + Tikhonov(0.1, learned=False)))
    found = model(images(1), physics)
    USES[use](physics)
    found.sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_parameters_that_were_exchanged_for_a_call_give_no_derivative():
    model = lr.Reconstructor(Energy(blur(), TV(0.1, 0.1) + Tikhonov(0.1, learned=False)))
    other = {
        name: (p.detach() + 0.4).requires_grad_()
        for name, p in model.named_parameters()
        if p.requires_grad
    }
    found = torch.func.functional_call(model, other, (images(1),))
    with pytest.raises(MissingPropertyError, match="other parameters than in the forward pass"):
        found.sum().backward()
    with torch.no_grad():
        assert torch.func.functional_call(model, other, (images(1),)).shape == SHAPE


def learned() -> lr.physics.LearnedPhysics:
    return lr.physics.LearnedPhysics(blur(), {"filter": lr.physics.GaussianKernel(3, std=0.8)})


@pytest.mark.parametrize("other", [blur, learned])
def test_a_learned_operator_that_is_not_used_is_told(other):
    model = lr.Reconstructor(Energy(learned(), TV(0.1, 0.1) + Tikhonov(0.1, learned=False)))
    with pytest.warns(DataWarning, match="learned parameters are not used") as told:
        model(images(1), other())
    assert told[0].filename == __file__


def test_a_learned_operator_may_be_handed_in_and_is_learned():
    physics = learned()
    regularizer = TV(0.1, 0.1) + Tikhonov(0.1, learned=False)
    model = lr.Reconstructor(Energy(physics, regularizer))
    for given in (physics, lr.physics.LearnedPhysics(blur(), dict(physics.parametrizations))):
        model.zero_grad()
        model(images(1), given).sum().backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    physics.requires_grad_(False)
    model(images(1), blur())  # nothing of it is learned any more: another operator is meant
