"""Images solved tile by tile: the gradient is that of the whole, and so is the certificate."""

from __future__ import annotations

import itertools

import deepinv as dinv
import pytest
import torch

import learnreg as lr
from learnreg.core.errors import InputError
from learnreg.core.offers import reach_of
from learnreg.core.status import Status
from learnreg.solvers import Tiling, can_be_cut, solve_in_tiles
from learnreg.solvers.tiles import Box, boxes, solvable

R = lr.regularizers
DENOISING = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))
SMALL = Tiling(16, 4)

LOCAL = {
    "tv": R.TV(0.05, 0.02),
    "anisotropic": R.TV(0.05, 0.02, isotropic=False),
    "joint": R.TV(0.05, 0.02, channels="joint"),
    "huber": R.HuberTV(0.05, 0.02),
    "foe": R.FoE(3, 5, channels=2, smoothing=0.05),
    "foe, zero padding": R.FoE(3, 3, channels=2, padding="zero", smoothing=0.05),
    "sum": R.TV(0.03, 0.02) + 0.5 * R.FoE(2, 3, channels=2, smoothing=0.05) + R.Tikhonov(1e-2),
}


class Everywhere(R.Tikhonov):
    """Does not say how far it sees."""

    reach = None


def noisy(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    steps = torch.linspace(0, 3, shape[-1]).floor().div(3).expand(shape)
    return steps + 0.1 * torch.randn(shape, generator=generator)


def masked(height, width):
    mask = (torch.rand(1, 1, height, width, generator=torch.Generator().manual_seed(1)) > 0.3) + 0.2
    return dinv.physics.Inpainting(img_size=(2, height, width), mask=mask.float())


@pytest.mark.parametrize("name", LOCAL)
@pytest.mark.parametrize("physics", ["identity", "mask"])
def test_gradients_of_windows_are_those_of_the_whole(name, physics):
    y = noisy(2, 2, 37, 50)
    energy = lr.Energy(DENOISING if physics == "identity" else masked(37, 50), LOCAL[name])
    f, x = energy.at(y), noisy(2, 2, 37, 50, seed=3).double()
    expected, window, sides = f.double().grad(x), f.windows(double=True), (37, 50)
    for tile in boxes(sides, 16):
        box = tile.grown(f.reach, sides)
        found = tile.within(box).of(window(*box).grad(box.of(x).contiguous()))
        assert torch.allclose(found, tile.of(expected), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("name", ["tv", "foe", "sum"])
def test_the_declared_reach_is_no_larger_than_needed(name):
    r, x = LOCAL[name].double(), torch.rand(1, 2, 24, 24, dtype=torch.float64).requires_grad_()
    (seen,) = torch.autograd.grad(r.grad(x)[0, :, 12, 12].sum(), x)
    rows, columns = torch.nonzero(seen[0].abs().sum(dim=0)).T
    r.float()
    assert max(int((p - 12).abs().max()) for p in (rows, columns)) == reach_of(r)


@pytest.mark.parametrize("name", LOCAL)
@pytest.mark.parametrize("physics", ["identity", "mask"])
def test_tiles_find_the_minimizer_to_the_accuracy_asked_for(name, physics):
    y = noisy(2, 2, 28, 40)
    energy = lr.Energy(DENOISING if physics == "identity" else masked(28, 40), LOCAL[name])
    truth = lr.solve(energy.widened(), y.double(), 1e-8).value
    eps = torch.tensor([0.1, 0.01])
    found = solve_in_tiles(energy.at(y), eps, y, tiling=SMALL)
    away = (found.value.double() - truth).flatten(1).norm(dim=1)
    assert found.ok and (found.error <= eps).all() and (away <= found.error + 1e-8).all()
    assert found.kind.label == "certified" and "in tiles" in found.solver


def test_the_certificate_is_that_of_the_whole_image():
    y = noisy(1, 2, 45, 70)
    f = lr.Energy(DENOISING, LOCAL["foe"]).at(y)
    found = solve_in_tiles(f, 0.05, y, tiling=SMALL)
    gradient = f.double().grad(found.value.double())
    assert torch.allclose(found.gradient.double(), gradient, atol=1e-7)
    assert float(found.gradient_norm) == pytest.approx(float(gradient.norm()), rel=1e-10)
    assert float(found.error) >= float(gradient.norm())


def test_seams_are_solved_again_until_the_whole_is_certified():
    # a strong smoothness that sees across many tiles: windows alone are far off
    y = noisy(1, 1, 40, 40)
    energy = lr.Energy(DENOISING, R.TV(20.0, 1.0))
    shares = []
    found = solve_in_tiles(energy.at(y), 1e-2, y, tiling=SMALL, progress=shares.append)
    truth = lr.solve(energy.widened(), y.double(), 1e-8).value
    assert shares.count(1.0) > 2, "more than one sweep"
    assert found.ok and float((found.value.double() - truth).norm()) <= 1e-2


def test_what_cannot_be_reached_is_said_and_not_certified():
    y = noisy(1, 1, 24, 24)
    f = lr.Energy(DENOISING, LOCAL["tv"]).at(y)
    found = solve_in_tiles(f, 1e-9, y, tiling=SMALL)
    assert found.status == (Status.ROUNDING_FLOOR,) and float(found.error) > 1e-9
    wide = solve_in_tiles(f.double(), 1e-9, y.double(), tiling=SMALL)
    assert wide.ok and float((wide.value - found.value).norm()) <= float(found.error) + 1e-9


@pytest.mark.parametrize("after", [0, 1, 9, 40])
def test_a_stop_leaves_an_image_with_a_certificate_of_its_own(after):
    y = noisy(1, 2, 45, 70)
    energy = lr.Energy(DENOISING, LOCAL["foe"])
    asked = itertools.count()
    found = solve_in_tiles(
        energy.at(y), 1e-3, y, tiling=SMALL, should_stop=lambda: next(asked) >= after
    )
    truth = lr.solve(energy.widened(), y.double(), 1e-8).value
    assert found.status == (Status.BUDGET,) and float(found.error) > 1e-3
    assert float((found.value.double() - truth).norm()) <= float(found.error)


def test_a_reach_that_gradients_do_not_keep_to_is_refused():
    class Farther(R.TV):
        def grad(self, x):
            return super().grad(x) + 0.1 * (x.roll(3, -1) + x.roll(-3, -1))

    y = noisy(1, 1, 64, 64)
    with pytest.raises(InputError, match="see farther"):
        solve_in_tiles(lr.Energy(DENOISING, Farther()).at(y), 0.1, y)


def test_what_cannot_be_cut_says_so():
    y, volume = noisy(1, 1, 20, 20), noisy(1, 1, 8, 8, 8)
    blur = dinv.physics.Blur(filter=torch.ones(1, 1, 3, 3) / 9, padding="circular")
    foreign = lr.Foreign(lambda a, b: (a - b).square().flatten(1).sum(dim=1), mu=2.0, L=2.0)
    per_image = dinv.physics.Inpainting(img_size=(1, 20, 20), mask=torch.ones(2, 1, 20, 20))
    whole = [
        lr.Energy(DENOISING, Everywhere()).at(y),
        lr.Energy(DENOISING, R.TV() + Everywhere()).at(y),
        lr.Energy(DENOISING, 0.5 * Everywhere()).at(y),
        lr.Energy(blur, R.TV() + R.Tikhonov(1e-2)).at(y),
        lr.Energy(DENOISING, R.TV(), foreign).at(y),
        lr.Energy(DENOISING, R.TV()).at(volume),
        lr.Energy(per_image, R.TV()).at(torch.cat([y, y])),
        lr.SaddleEnergy(DENOISING, R.ExactTV()).at(y),
    ]
    assert not any(can_be_cut(f) for f in whole)


@pytest.mark.parametrize("sides", [(16, 16), (17, 300), (1632, 2464), (5, 40), (263, 263)])
@pytest.mark.parametrize("size", [16, 100, 304])
def test_tiles_cover_the_image_once_and_windows_stay_inside(sides, size):
    seen = torch.zeros(sides, dtype=torch.int64)
    for tile in boxes(sides, size):
        seen[tile.rows, tile.columns] += 1
        box = solvable(tile, 8, sides)
        for part, inner, most in zip(box, tile, sides, strict=True):
            assert 0 <= part.start <= max(0, inner.start - 8)
            assert min(most, inner.stop + 8) <= part.stop <= most
        assert isinstance(box, Box)
    assert (seen == 1).all()
