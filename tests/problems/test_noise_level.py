"""Energies at another noise level: D / k + R, for every kind of energy, data term and batch."""

import deepinv as dinv
import pytest
import torch

import learnreg as lr
from learnreg.core.noise import DIRECT, INDIRECT, differs, mismatch
from learnreg.problems import at_noise_level, noise_level
from learnreg.regularizers import TV, ExactTV, FoE, Tikhonov

GAUSS = dinv.physics.GaussianNoise


def denoising(sigma=0.1):
    return dinv.physics.Denoising(GAUSS(sigma))


def blur(sigma=0.1):
    taps = torch.tensor([[[[0.1, 0.2, 0.1], [0.0, 0.3, 0.1], [0.1, 0.0, 0.1]]]])
    return dinv.physics.Blur(filter=taps, padding="circular", noise_model=GAUSS(sigma))


def images(count=3, side=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 1, side, side, generator=generator, dtype=torch.float64)


def heavier(regularizer, k):
    """k R by the parameters of R."""
    with torch.no_grad():
        name = "log_scale" if isinstance(regularizer, FoE) else "log_weight"
        getattr(regularizer, name).add_(torch.tensor(k).log())
    return regularizer.double()


MAKERS = {
    "TV": lambda: TV(0.08, 0.05),
    "FoE": lambda: FoE(filters=4, size=3),
    "ExactTV": lambda: ExactTV(0.05),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("sigma", [0.05, 0.2])
def test_the_minimizers_are_those_of_a_heavier_regularizer(make, sigma):
    y, physics = images(2), denoising()
    energy = lr.problems.energy_for(physics, make().double())
    k = (sigma / 0.1) ** DIRECT

    found = lr.solve(at_noise_level(energy, sigma), y, 1e-5)
    expected = lr.solve(lr.problems.energy_for(physics, heavier(make(), k)), y, 1e-6)
    plain = lr.solve(energy, y, 1e-5)

    apart = (found.value - expected.value).flatten(1).norm(dim=1)
    assert bool((apart <= found.error + expected.error).all())
    assert float((found.value - plain.value).norm()) > 0.05


def test_tikhonov_is_part_of_the_regularizer():
    y, k = images(2), 2**DIRECT
    energy = lr.SaddleEnergy(denoising(), ExactTV(0.05).double(), tikhonov=0.3)
    other = lr.SaddleEnergy(denoising(), heavier(ExactTV(0.05), k), tikhonov=0.3 * k)

    found, expected = lr.solve(at_noise_level(energy, 0.2), y, 1e-5), lr.solve(other, y, 1e-6)

    apart = (found.value - expected.value).flatten(1).norm(dim=1)
    assert bool((apart <= found.error + expected.error).all())


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("physics", [denoising, pytest.param(blur, marks=pytest.mark.slow)])
def test_every_image_can_have_a_level_of_its_own(make, physics):
    saddle = isinstance(make(), ExactTV)
    if saddle:
        energy = lr.SaddleEnergy(physics(), make().double(), tikhonov=0.2)
    else:
        energy = lr.Energy(physics(), make().double() + Tikhonov(0.2).double())
    y, sigmas = physics().A(images().float()).double(), torch.tensor([0.04, 0.1, 0.25])

    together = lr.solve(at_noise_level(energy, sigmas), y, 1e-3)

    for i, sigma in enumerate(sigmas.tolist()):
        alone = lr.solve(at_noise_level(energy, sigma), y[i : i + 1], 1e-3)
        apart = float((alone.value[0] - together.value[i]).norm())
        assert apart <= float(alone.error[0] + together.error[i])


def test_single_precision_closes_its_certificates():
    energy = lr.Energy(denoising(), TV())
    y = images().float()

    found = lr.solve(at_noise_level(energy, torch.tensor([0.05, 0.1, 0.2])), y, 1e-3)

    assert bool((found.error <= 1e-3).all())


@pytest.mark.parametrize(
    "fidelity",
    [lr.L2(0.1), lr.WeightedL2(torch.full((1, 1, 12, 12), 2.0)), lr.Huber(0.2)],
    ids=["L2", "WeightedL2", "Huber"],
)
def test_every_gaussian_data_term_is_divided_by_k(fidelity):
    y, k = images(2), 2**DIRECT
    energy = lr.Energy(denoising(), TV().double() + Tikhonov(0.1).double(), fidelity)
    x = images(2, seed=3)
    small = x + 1e-3 * (y - x)  # residuals within the threshold of Huber

    scaled = at_noise_level(energy, 0.2)

    data = energy.at(small, x).value(x) - energy.regularizer.value(x)
    divided = scaled.at(small, x).value(x) - energy.regularizer.value(x)
    torch.testing.assert_close(divided, data / k)


def test_measurements_that_mix_pixels_want_another_exponent():
    scaled = at_noise_level(lr.Energy(blur(), TV()), 0.2)
    given = at_noise_level(lr.Energy(blur(), TV()), 0.2, exponent=2.0)
    mask = dinv.physics.Inpainting((1, 8, 8), mask=0.5, noise_model=GAUSS(0.1))

    assert scaled.fidelity.sigma == pytest.approx(2 ** (INDIRECT / 2))
    assert given.fidelity.sigma == pytest.approx(2.0)
    masked = at_noise_level(lr.Energy(mask, TV()), 0.2)
    assert masked.fidelity.sigma == pytest.approx(2 ** (DIRECT / 2))


def test_what_counts_as_an_outlier_grows_with_the_noise():
    energy = at_noise_level(lr.Energy(denoising(), TV(), lr.Huber(0.2)), 0.3)

    assert energy.fidelity.threshold == pytest.approx(0.6)


def test_the_new_energy_knows_its_level_and_shares_the_rest():
    energy = lr.Energy(blur(), TV())
    other = at_noise_level(energy, 0.2)

    assert noise_level(other.physics).tolist() == pytest.approx([0.2])
    assert noise_level(energy.physics).tolist() == pytest.approx([0.1])
    assert other.regularizer is energy.regularizer
    assert other.physics.filter is energy.physics.filter
    assert at_noise_level(energy, 0.1).fidelity is energy.fidelity


def test_levels_can_be_changed_again():
    energy = lr.Energy(denoising(), TV())
    there = at_noise_level(at_noise_level(energy, 0.2), 0.05)

    assert there.fidelity.sigma == pytest.approx(at_noise_level(energy, 0.05).fidelity.sigma)


def test_a_model_file_keeps_it(tmp_path):
    energy = at_noise_level(lr.Energy(denoising(), TV()), 0.2)
    path = lr.save_model(tmp_path / "model.safetensors", energy)
    loaded = lr.load_model(path)

    assert loaded.fidelity.sigma == pytest.approx(energy.fidelity.sigma)
    assert noise_level(loaded.physics).tolist() == pytest.approx([0.2])


@pytest.mark.parametrize(
    ("fidelity", "saddle"),
    [(lr.KL(), False), (lr.KL(), True), (lr.L1(), True)],
    ids=["KL", "KL saddle", "L1"],
)
def test_data_terms_of_other_noise_have_no_rule(fidelity, saddle):
    kind = lr.SaddleEnergy if saddle else lr.Energy
    energy = kind(denoising(), ExactTV() if saddle else TV(), fidelity)

    with pytest.raises(lr.InputError, match=type(fidelity).__name__):
        at_noise_level(energy, 0.2)


def test_weights_that_are_learned_have_no_rule():
    weights = torch.nn.Parameter(torch.ones(1, 1, 12, 12))
    energy = lr.Energy(denoising(), TV(), lr.WeightedL2(weights))

    with pytest.raises(lr.InputError, match="parameters to learn"):
        at_noise_level(energy, 0.2)


@pytest.mark.parametrize(
    "physics",
    [
        dinv.physics.Denoising(dinv.physics.PoissonNoise(0.1)),
        dinv.physics.Denoising(dinv.physics.UniformGaussianNoise(0.1, 0.2)),
        dinv.physics.Denoising(GAUSS(0.0)),
        dinv.physics.Denoising(GAUSS(torch.tensor([0.1, 0.2]))),
        dinv.physics.Blur(filter=torch.ones(1, 1, 1, 1)),
    ],
    ids=["Poisson", "a range", "none", "several", "not said"],
)
def test_where_no_level_is_known_it_has_to_be_given(physics):
    energy = lr.Energy(physics, TV())

    with pytest.raises(lr.InputError, match="learned"):
        at_noise_level(energy, 0.2)

    given = at_noise_level(energy, 0.2, learned=0.1, exponent=1.0)
    assert given.fidelity.sigma == pytest.approx(2**0.5)


@pytest.mark.parametrize(
    "sigma",
    [0.0, -0.1, float("nan"), float("inf"), "auto", None, torch.ones(2, 2), torch.tensor([0.1, 0])],
)
def test_levels_that_are_none_are_refused(sigma):
    with pytest.raises(lr.InputError, match="sigma"):
        at_noise_level(lr.Energy(denoising(), TV()), sigma)


def test_as_many_levels_as_images():
    energy = at_noise_level(lr.Energy(denoising(), TV().double()), torch.tensor([0.1, 0.2]))

    with pytest.raises(lr.InputError, match="2 noise levels"):
        lr.solve(energy, images(3), 1e-2)


def test_a_mismatch_has_words_that_say_what_to_do():
    assert not differs(0.1, 0.125)
    assert mismatch(0.1, 0.075) is None
    assert "leaves noise" in mismatch(0.1, 0.2)
    assert "blurs" in mismatch(0.1, 0.05)
    assert "--sigma auto" in mismatch(0.1, 0.2, estimated=True)
    assert "estimated" in mismatch(0.1, 0.2, estimated=True)
    assert "model was learned at 10" in mismatch(10.0, 40.0)
