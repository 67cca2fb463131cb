"""Baselines of counts: what they minimize, what they are told, and what they refuse."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from deepinv.physics import Blur, Denoising, Tomography

import learnreg as lr
from learnreg.core.errors import InputError
from learnreg.runs.em import _epochs, _Scan, bsrem, mlem, osem

SIDE, VIEWS, CELLS, GAIN = 12, 6, 17, 0.02


def rays() -> Tomography:
    built = Tomography(VIEWS, SIDE, circle=False, normalize=False, adjoint_via_backprop=True)
    built.register_buffer("operator_norm", torch.tensor(float(SIDE)))
    built.normalize = True
    return built


def scans(physics: torch.nn.Module, seed: int = 0, **params: torch.Tensor) -> lr.data.Pairs:
    x = lr.data.phantoms(2, SIDE, seed)
    trues = physics.A(x) / GAIN
    r = params.get("background", torch.tensor(3.0))
    y = torch.poisson(trues + r, generator=torch.Generator().manual_seed(seed))
    return lr.data.Pairs(x, y, physics, ("a", "b"), params=params)


def emission() -> torch.nn.Module:
    factors = torch.linspace(0.5, 1, CELLS * VIEWS).view(1, 1, CELLS, VIEWS)
    return lr.physics.EmissionTomography(rays(), factors, lr.physics.resolution(1.5))


def test_expectation_maximization_ends_at_the_largest_likelihood():
    """Without noise that is the image, and every epoch comes nearer to the counts."""
    physics = Blur(torch.tensor([[[[0.0, 1, 0], [1, 4, 1], [0, 1, 0]]]]) / 8, padding="circular")
    x = 0.5 + lr.data.phantoms(2, SIDE, 0)
    y = physics.A(x) / GAIN + 3.0
    pairs = lr.data.Pairs(x, y, physics, ("a", "b"))
    found = mlem(pairs, pairs, lr.KL(3.0, GAIN), epochs=40)
    assert (found.images >= 0).all() and min(found.psnr) > 22
    scan = _Scan.of(pairs, lr.KL(3.0, GAIN))
    f = lr.KL(3.0, GAIN).tie(y)
    images = [physics.A(image) for image in _run(scan, 1, 8)]
    values = torch.stack([f.value(a) for a in images])
    assert (values[1:] <= values[:-1]).all()


def _run(scan: _Scan, subsets: int, epochs: int) -> list[torch.Tensor]:
    from deepinv.optim import OSEM

    def one(start, k):
        return OSEM(num_subsets=subsets, max_iter=1, custom_init=lambda y, p: start)

    return _epochs(scan, subsets, epochs, one)


@pytest.mark.parametrize("make", [rays, emission])
def test_operators_of_subsets_are_those_views(make):
    scan = _Scan.of(scans(make()), lr.KL(3.0, GAIN))
    y, physics = scan.subsets(3)
    x = torch.rand(2, 1, SIDE, SIDE)
    whole = scan.physics.A(x)
    for k, part in enumerate(physics):
        torch.testing.assert_close(part.A(x), whole[..., k::3])
        torch.testing.assert_close(y[k], scan.y[..., k::3])
        alone = torch.zeros_like(whole)
        alone[..., k::3] = y[k]
        torch.testing.assert_close(part.A_adjoint(y[k]), scan.physics.A_adjoint(alone))
    own = scan.subsets(4)[1]  # 6 views are not 4 times as many: whole projections, cut
    torch.testing.assert_close(own[1].A(x), whole[..., 1::4])


def test_all_of_them_reconstruct_and_say_what_they_chose():
    physics = emission()
    train, test = scans(physics), scans(physics, 7)
    term = lr.KL(3.0, GAIN)
    for found, words in (
        (mlem(train, test, term, epochs=6), r"MLEM"),
        (osem(train, test, term, subsets=3, epochs=3), "OSEM of 3 subsets"),
        (bsrem(train, test, term, subsets=3, epochs=3, strengths=(0.1, 1.0)), "BSREM of 3"),
    ):
        assert words in found.words and "training images" in found.words
        assert found.images.shape == test.x.shape and (found.images >= 0).all()
        assert min(found.psnr) > 8


def test_backgrounds_and_attenuations_of_single_images_are_used():
    physics = lr.physics.EmissionTomography(rays())
    r = torch.tensor([1.0, 200.0]).view(2, 1, 1, 1).expand(2, 1, CELLS, VIEWS).contiguous()
    pairs = scans(physics, background=r)
    told = mlem(pairs, pairs, lr.KL(gain=GAIN), epochs=8)
    blind = SimpleNamespace(x=pairs.x, y=pairs.y, physics=physics)
    untold = mlem(blind, blind, lr.KL(gain=GAIN), epochs=8)
    assert told.psnr[1] > untold.psnr[1] + 3


@pytest.mark.parametrize("name", ["subsets", "epochs"])
def test_numbers_out_of_range_are_refused(name):
    pairs = scans(emission())
    with pytest.raises(InputError, match=name):
        osem(pairs, pairs, lr.KL(3.0, GAIN), **{name: 0})
    with pytest.raises(InputError, match="subsets"):
        osem(pairs, pairs, lr.KL(3.0, GAIN), subsets=VIEWS + 1)
    with pytest.raises(InputError, match="strengths"):
        bsrem(pairs, pairs, lr.KL(3.0, GAIN), strengths=())


def test_measurements_that_are_no_counts_are_refused():
    x = lr.data.phantoms(2, SIDE, 0)
    pairs = lr.data.Pairs(x, x - 1, Denoising(), ("a", "b"))
    with pytest.raises(InputError, match="counts"):
        mlem(pairs, pairs)
