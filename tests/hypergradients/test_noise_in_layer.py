"""Reconstructor at other noise levels: the rule, its switch, exact gradients, and a warning."""

import copy

import deepinv as dinv
import pytest
import torch

import learnreg as lr
from learnreg.problems import at_noise_level
from learnreg.regularizers import TV, ExactTV, Tikhonov

GAUSS = dinv.physics.GaussianNoise


def denoising(sigma):
    return dinv.physics.Denoising(GAUSS(sigma))


def measurements(count=2, side=8):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 1, side, side, generator=generator, dtype=torch.float64)


def energy_of(saddle=False):
    if saddle:
        return lr.SaddleEnergy(denoising(0.1), ExactTV(0.08, rounding=0.1).double())
    return lr.Energy(denoising(0.1), TV(0.08, 0.05).double())


def moved(a, b):
    return float((a - b).detach().norm())


@pytest.mark.parametrize("saddle", [False, True])
@pytest.mark.parametrize("sigma", [0.05, 0.2, torch.tensor([0.05, 0.2])])
def test_the_noise_of_the_physics_of_a_call_is_honoured(saddle, sigma):
    energy, y = energy_of(saddle), measurements()
    layer = lr.Reconstructor(energy, 1e-5)

    found = layer(y, denoising(sigma))

    assert moved(found, lr.solve(at_noise_level(energy, sigma), y, 1e-5).value) < 5e-5
    assert moved(found, layer(y)) > 0.05
    assert moved(layer(y, denoising(0.1)), layer(y)) == 0


def test_noise_levels_can_come_with_the_measurements():
    energy, y = energy_of(), measurements()
    sigmas = torch.tensor([0.05, 0.2])

    found = lr.Reconstructor(energy, 1e-5)(y, params={"sigma": sigmas})

    assert moved(found, lr.solve(at_noise_level(energy, sigmas), y, 1e-5).value) < 5e-5


def test_a_physics_that_is_updated_in_place_is_followed():
    energy, y = energy_of(), measurements()
    layer = lr.Reconstructor(energy, 1e-5)
    expected = lr.solve(at_noise_level(energy, 0.2), y, 1e-5).value

    energy.physics.update(sigma=torch.tensor([0.2]))

    assert moved(layer(y), expected) < 5e-5
    assert moved(copy.deepcopy(layer)(y), expected) < 5e-5


def test_following_can_be_switched_off():
    layer = lr.Reconstructor(energy_of(), 1e-5, noise="as_learned")
    y = measurements()

    assert moved(layer(y, denoising(0.3)), layer(y)) == 0
    with pytest.raises(lr.InputError, match="noise"):
        lr.Reconstructor(energy_of(), noise="ignore")


@pytest.mark.parametrize(
    "noise", [GAUSS(0.0), dinv.physics.ZeroNoise()], ids=["no level", "no noise"]
)
def test_what_says_nothing_of_noise_changes_nothing(noise):
    layer, y = lr.Reconstructor(energy_of(), 1e-5), measurements()

    assert moved(layer(y, dinv.physics.Denoising(noise)), layer(y)) == 0


@pytest.mark.parametrize(
    "noise",
    [dinv.physics.PoissonNoise(0.1), dinv.physics.UniformGaussianNoise(0.1, 0.2)],
    ids=lambda noise: type(noise).__name__,
)
def test_noise_of_another_kind_is_mentioned(noise):
    energy, y = energy_of(), measurements()
    layer, physics = lr.Reconstructor(energy, 1e-5), dinv.physics.Denoising(noise)

    with pytest.warns(lr.core.errors.DataWarning, match=type(noise).__name__) as caught:
        found = layer(y, physics)

    assert caught[0].filename == __file__
    assert moved(found, layer(y)) == 0
    assert moved(lr.Reconstructor(energy, 1e-5, noise="as_learned")(y, physics), layer(y)) == 0


@pytest.mark.parametrize("saddle", [False, True])
@pytest.mark.parametrize("sigma", [0.2, torch.tensor([0.05, 0.2])])
def test_gradients_are_those_of_the_rescaled_energy(saddle, sigma):
    y = measurements().requires_grad_()
    layer = lr.Reconstructor(energy_of(saddle), 1e-9, relative_delta=1e-9)
    physics, (theta, *_) = denoising(sigma), layer.energy.regularizer.parameters()

    def loss(y):
        return layer(y, physics).square().sum()

    loss(y).backward()

    h, v = 1e-4, torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        along = (loss(y + h * v) - loss(y - h * v)) / (2 * h)
        theta += h
        above = loss(y)
        theta -= 2 * h
        in_theta = (above - loss(y)) / (2 * h)
        theta += h
    assert float((y.grad * v).sum()) == pytest.approx(float(along), rel=1e-4, abs=1e-6)
    assert float(theta.grad) == pytest.approx(float(in_theta), rel=1e-4)


def test_a_given_step_is_one_of_the_unscaled_energy():
    energy, y = energy_of(), measurements()
    strategy = lr.Unrolled(8, method="gd", step=0.2)
    heavier = copy.deepcopy(energy)
    k = 2**1.2
    with torch.no_grad():
        heavier.regularizer.log_weight += torch.tensor(k).log()

    found = lr.Reconstructor(energy, hypergradient=strategy)(y, denoising(0.2))
    expected = lr.Reconstructor(heavier, hypergradient=strategy, noise="as_learned")(y)

    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    with pytest.raises(lr.InputError, match="step"):
        lr.Reconstructor(energy, hypergradient=strategy)(y, denoising(torch.tensor([0.1, 0.2])))


def test_where_no_rule_is_known_it_warns_and_goes_on():
    regularizer = TV(0.08, 0.05).double() + Tikhonov(0.5).double()
    energy = lr.Energy(denoising(0.1), regularizer, lr.KL())
    layer, y = lr.Reconstructor(energy, 1e-2), measurements()

    with pytest.warns(lr.core.errors.DataWarning, match="KL.*no rule") as caught:
        found = layer(y, denoising(0.3))

    assert caught[0].filename == __file__
    assert moved(found, layer(y)) < 0.03
    assert moved(layer(y, denoising(0.12)), layer(y)) < 0.03


def test_a_trainer_step_follows_the_noise_of_its_batch():
    energy, y = energy_of(), measurements()
    layer = lr.Reconstructor(energy, 1e-4)
    physics = denoising(0.1)
    seen = []
    for sigma in (0.05, 0.3):
        physics.update(sigma=torch.tensor([sigma]))
        seen.append(layer(y, physics))

    assert moved(*seen) > 0.05
