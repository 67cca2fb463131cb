"""What a learned method is compared with: named for what it is, of the right size, tuned on the
training images alone.
"""

from __future__ import annotations

from types import SimpleNamespace

import deepinv
import pytest
import torch
from torch import nn

import learnreg as lr
from learnreg.core import InputError
from learnreg.metrics import psnr
from learnreg.runs.baselines import Baseline, bm3d, denoised, kind_of, seen_in, tuned_tv

P = deepinv.physics
QUIET = P.GaussianNoise(0.01)


def seen_by(physics, x, y=None):
    """What an evaluation would show."""
    y = physics(x) if y is None else y
    energy = lr.Energy(physics, lr.regularizers.TV() + lr.regularizers.Tikhonov())
    return seen_in(energy, y, energy.start(y), x), y


def mask(share=0.5):
    g = torch.Generator().manual_seed(0)
    return (torch.rand(1, 1, 16, 16, generator=g) < share).float()


PHYSICS = {
    "noisy": lambda: P.Denoising(QUIET),
    "blurred": lambda: P.Blur(torch.ones(1, 1, 3, 3) / 9, padding="circular", noise_model=QUIET),
    "measurement": lambda: P.Inpainting((1, 16, 16), mask=mask()[0], noise_model=QUIET),
    "bicubic": lambda: P.Downsampling(
        img_size=(1, 16, 16), factor=2, filter="gaussian", noise_model=QUIET
    ),
    "filtered back-projection": lambda: P.Tomography(
        angles=40, img_width=16, circle=False, normalize=False, noise_model=QUIET
    ),
    "zero-filled": lambda: P.MRI(mask=mask(), img_size=(2, 16, 16), noise_model=QUIET),
    "adjoint A^T y": lambda: P.CompressedSensing(m=128, img_size=(1, 16, 16), noise_model=QUIET),
}


@pytest.mark.parametrize("name", PHYSICS)
def test_the_input_is_named_for_what_it_is(name):
    torch.manual_seed(0)
    physics = PHYSICS[name]()
    x = lr.data.pairs("phantoms", P.Denoising(QUIET), size=16, split=(2, 1), seed=0)[0].x
    x = torch.cat([x, 0.2 * x], 1) if name == "zero-filled" else x
    found, y = seen_by(physics, x)
    assert found.name == name and found.image.shape == x.shape
    if name in ("noisy", "blurred", "measurement"):
        assert torch.equal(found.image, y)
    else:  # of the size of the image, whatever the norm of A is
        fit = (found.image * x).sum() / found.image.square().sum()
        assert 0.4 < float(fit) < 2.5


def test_an_operator_of_ones_own_is_not_taken_for_the_one_it_derives_from():
    class Halved(P.Inpainting):
        def A(self, x, **kwargs):
            return 0.5 * super().A(x, **kwargs)

        def A_adjoint(self, y, **kwargs):
            return 0.5 * super().A_adjoint(y, **kwargs)

    class Renamed(P.Inpainting):
        pass

    assert kind_of(Renamed((1, 16, 16), mask=0.5)) == "Inpainting"
    assert kind_of(Halved((1, 16, 16), mask=0.5)) == ""
    x = torch.rand(2, 1, 16, 16)
    found, y = seen_by(Halved((1, 16, 16), mask=mask()[0], noise_model=QUIET), x)
    assert found.name == "adjoint A^T y" and not torch.equal(found.image, y)


def test_an_evaluation_pictures_what_it_measures():
    physics = PHYSICS["blurred"]()
    train, test = lr.data.pairs("phantoms", physics, size=16, split=(1, 2), seed=0)
    problem = lr.BilevelProblem(
        lr.Energy(physics, lr.regularizers.TV() + lr.regularizers.Tikhonov()), train
    )
    run = lr.learn(problem, lr.MAID(), budget=lr.Budget(steps=1))
    evaluation = run.evaluate(test, 1.0)
    assert evaluation.seen_as == "blurred" and torch.equal(evaluation.seen, test.y)
    assert evaluation.psnr_input == pytest.approx(psnr(test.y, test.x).tolist(), abs=1e-4)
    assert evaluation.setup["names"] == list(test.names)
    setup = run.record.setup
    assert run.name == "TV + Tikhonov" and setup["learned"] == ["regularizer"]
    assert setup["physics"]["type"] == "Blur" and setup["physics"]["padding"] == "circular"
    assert setup["noise"]["sigma"] == pytest.approx(0.01) and setup["data"]["seed"] == 0
    assert setup["data"]["names"] == list(train.names) and len(setup["start"]) == 3


def test_names_of_complex_images_are_recorded_too():
    physics = P.Denoising(QUIET)
    x = torch.rand(2, 1, 16, 16, dtype=torch.complex64)
    pairs = lr.data.Pairs(x, x + 0.01, physics, ("left", "right"), 3)
    tv = lr.regularizers.TV(channels="joint")
    problem = lr.BilevelProblem(lr.Energy(physics, tv), pairs)
    run = lr.learn(problem, lr.MAID(), budget=lr.Budget(steps=1))
    assert run.record.setup["data"]["names"] == ["left", "right"]
    assert run.record.setup["data"]["dtype"] == "complex64"
    assert run.evaluate(pairs, 1.0).seen.is_complex()


def test_tuned_tv_has_the_best_weight_for_the_training_images():
    physics = P.Denoising(P.GaussianNoise(0.1))
    train, test = lr.data.pairs("phantoms", physics, size=16, split=(2, 2), seed=0)
    found = tuned_tv(train, test)
    weight = float(found.words.split("weight ")[1].split(",")[0])

    def error(factor, pairs):
        energy = lr.Energy(physics, lr.regularizers.TV(factor * weight, 0.01))
        value = lr.solve(energy, pairs.y, 1e-2).value
        return float((value - pairs.x).square().mean())

    best = error(1, train)
    assert best < error(1.5, train) and best < error(1 / 1.5, train)
    assert min(found.psnr) > 22 and found.images.shape == test.x.shape


def test_a_denoiser_is_told_the_noise_level():
    physics = P.Denoising(P.GaussianNoise(0.1))
    _, test = lr.data.pairs("phantoms", physics, size=16, split=(1, 2), seed=0)
    levels = []

    def halve(y, sigma):
        levels.append(sigma)
        return 0.5 * y

    found = denoised(halve, test, "a half")
    assert levels == [pytest.approx(0.1)] and torch.equal(found.images, 0.5 * test.y)
    with pytest.raises(InputError, match="shape"):
        denoised(lambda y, sigma: y[..., :-1], test, "cropped")
    blurred = SimpleNamespace(x=test.x, y=test.y, physics=PHYSICS["blurred"]())
    with pytest.raises(InputError, match="denoising with Gaussian noise"):
        denoised(halve, blurred, "")
    with pytest.raises(InputError, match="denoising with Gaussian noise"):
        denoised(halve, SimpleNamespace(x=test.x, y=test.y, physics=nn.Identity()), "")


def test_bm3d_is_asked_for_where_it_is_missing(monkeypatch):
    physics = P.Denoising(P.GaussianNoise(0.1))
    _, test = lr.data.pairs("phantoms", physics, size=16, split=(1, 2), seed=0)
    calls = []

    def fake(image, sigma):
        calls.append((image.shape, sigma))
        return image

    monkeypatch.setitem(__import__("sys").modules, "bm3d", SimpleNamespace(bm3d=fake))
    assert torch.allclose(bm3d(test).images, test.y) and calls[0][0] == (16, 16, 1)
    monkeypatch.setitem(__import__("sys").modules, "bm3d", None)
    with pytest.raises(InputError, match="pip install bm3d"):
        bm3d(test)


def test_a_baseline_of_other_images_is_refused():
    with pytest.raises(InputError, match="that of the true images"):
        Baseline.of(torch.rand(2, 1, 8, 8), torch.rand(3, 1, 8, 8))


@pytest.mark.parametrize("learned", ["data term", "physics"])
def test_tuned_tv_chooses_its_own_numbers_only(learned):
    x = lr.data.phantoms(2, 16, seed=0)
    mri = P.MRI(mask=torch.ones(1, 2, 16, 16), img_size=(2, 16, 16))
    weights = lr.SamplingWeights((16, 16), "lines", start=0.5)
    physics, term, images = mri, lr.SampledL2(weights), torch.cat([x, 0.5 * x], dim=1)
    if learned == "physics":
        inner = P.Blur(torch.ones(1, 1, 3, 3) / 9, padding="circular")
        physics = lr.physics.LearnedPhysics(inner, {"filter": lr.physics.GaussianKernel(3)})
        term, images = None, x
    y = physics.A(images).detach()
    pairs = SimpleNamespace(x=images, y=y, physics=physics)
    found = tuned_tv(pairs, pairs, fidelity=term, steps=3)
    assert all(level > 15 for level in found.psnr)
    assert weights.omega.requires_grad
