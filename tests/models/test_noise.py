"""A loaded model at other noise levels: given, estimated, or warned of."""

from __future__ import annotations

import warnings

import deepinv
import pytest
import torch
from torch import Tensor

from learnreg.core.errors import DataWarning, InputError
from learnreg.data import phantoms
from learnreg.metrics import estimate_sigma
from learnreg.models import load, save_model
from learnreg.problems import L2, Energy, SaddleEnergy, at_noise_level
from learnreg.regularizers import TV, ExactTV
from learnreg.solvers import solve

LEARNED = 0.1


def noisy(sigma: float, count: int = 2, size: int = 64) -> Tensor:
    g = torch.Generator().manual_seed(1)
    x = phantoms(count, size, seed=0)
    return x + sigma * torch.randn(x.shape, generator=g)


@pytest.fixture(params=["smooth", "saddle"])
def model(request, tmp_path):
    physics = deepinv.physics.Denoising(deepinv.physics.GaussianNoise(LEARNED))
    energy = (
        Energy(physics, TV(0.08, 0.02))
        if request.param == "smooth"
        else SaddleEnergy(physics, ExactTV(0.08))
    )
    return save_model(tmp_path / "model.safetensors", energy), energy


@pytest.mark.parametrize("sigma", [0.05, 0.2])
def test_a_level_that_is_given_is_followed(model, sigma):
    path, energy = model
    y = noisy(sigma)
    found = load(path, sigma=sigma, eps=1e-3).reconstruct(y)
    wanted = solve(at_noise_level(energy, sigma), y, 1e-3)
    assert bool((found.error <= 1e-3).all()) and found.kind is wanted.kind
    assert float((found.value - wanted.value).flatten(1).norm(dim=1).max()) <= 2e-3


def test_auto_estimates_the_level_of_every_image(model):
    path, energy = model
    y = torch.cat([noisy(0.05, 1), noisy(0.25, 1)])
    found = load(path, sigma="auto", eps=1e-3).reconstruct(y)
    for i, level in enumerate(estimate_sigma(y).tolist()):
        alone = solve(at_noise_level(energy, level), y[i : i + 1], 1e-3).value
        assert float((found.value[i] - alone[0]).norm()) <= 2e-3


def test_a_constant_image_has_no_level_and_comes_back(model):
    path, _ = model
    y = torch.full((1, 1, 32, 32), 0.4)
    found = load(path, sigma="auto", eps=1e-3).reconstruct(y)
    assert float((found.value - y).abs().max()) < 1e-3


@pytest.mark.parametrize("sigma", [0.02, 0.3])
def test_another_level_is_told_and_the_learned_one_is_not(model, sigma):
    path, _ = model
    ready = load(path, eps=1.0)
    with pytest.warns(DataWarning, match="learned at 0.1.*--sigma auto"):
        ready.reconstruct(noisy(sigma))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ready.reconstruct(noisy(LEARNED))
        ready.reconstruct(noisy(sigma, size=12))  # too small to tell


def test_a_data_term_without_a_rule_is_refused(tmp_path):
    physics = deepinv.physics.Denoising(deepinv.physics.PoissonNoise(0.1))
    path = save_model(tmp_path / "model.safetensors", Energy(physics, TV(), L2()))
    with pytest.raises(InputError, match="given"):
        load(path, sigma=0.2).reconstruct(noisy(0.2))


@pytest.mark.parametrize("sigma", [25.0, 0.6, 1e9])
def test_a_level_in_grey_values_is_refused_wherever_it_is_said(model, sigma):
    path, _ = model
    with pytest.raises(InputError, match="/255"):
        load(path, sigma=sigma)
    assert load(path, sigma=0.5).demands.sigma == 0.5


def test_every_measurement_has_its_own_remark_and_a_hopeless_one_silences_nobody(model):
    path, _ = model
    blank = torch.zeros(1, 1, 64, 64)
    blank[..., ::2] = 1.0  # clipped everywhere: no telling
    y = torch.cat([noisy(LEARNED, 1), blank, noisy(0.4, 1)])
    fine, unknown, far = load(path).noise_remarks(y)
    assert fine is None and unknown is None and far is not None and "0.1" in far
    with pytest.warns(DataWarning, match="Too little"):
        load(path, eps=1.0).reconstruct(y)
    assert load(path, sigma=0.2).noise_remarks(y) == [None] * 3
    levels = load(path, sigma="auto").estimated_levels(noisy(LEARNED, 2))
    assert [len(found) for found in levels] == [1, 1]
