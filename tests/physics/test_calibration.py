"""Operators fitted to images and their measurements."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from deepinv import physics as D
from torch import nn

import learnreg as lr
from learnreg.core.errors import InputError
from learnreg.physics import Calibration, LearnedPhysics, calibrate
from learnreg.physics import kernel_parameters as K


def pictures(count=2, side=24, channels=1):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, channels, side, side, generator=generator)


def pairs(x, y, **more):
    return SimpleNamespace(x=x, y=y, **more)


TRUE = K.GaussianKernel(5, std=(1.4, 0.7), anisotropic=True, angle=25)().detach()


def learned(parametrization, padding="reflect"):
    return LearnedPhysics(
        D.Blur(filter=torch.ones(1, 1, 3, 3) / 9, padding=padding), {"filter": parametrization}
    )


@pytest.mark.parametrize("padding", ["reflect", "circular", "valid", "constant"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: K.Free(5),
        lambda: K.SimplexKernel(5),
        lambda: K.GaussianKernel(5, anisotropic=True),
    ],
)
def test_exact_pairs_give_the_kernel(make, padding):
    x = pictures()
    y = D.Blur(filter=TRUE, padding=padding).A(x)
    before = make()
    physics = learned(before, padding)
    found = calibrate(physics, pairs(x, y))
    kernel = found.physics.tensors()["filter"].detach()
    assert float((kernel - TRUE).norm() / TRUE.norm()) < 1e-3
    assert found.misfit < 1e-6 * found.start and found.slope <= 1e-5
    # a copy was fitted
    assert all(
        torch.equal(a, b)
        for a, b in zip(make().parameters(), physics.parametrizations.parameters(), strict=True)
    )


def test_free_taps_are_the_least_squares_solution():
    """With noise: the normal equations of 25 shifts, solved directly."""
    x = pictures().double()
    y = D.Blur(filter=TRUE.double(), padding="circular").A(x)
    y = y + 0.05 * torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).double()
    shifts = torch.stack(
        [x.roll((r, c), (-2, -1)).flatten() for r in range(-2, 3) for c in range(-2, 3)], dim=1
    )
    exact = torch.linalg.lstsq(shifts, y.flatten()[:, None]).solution.view(5, 5)
    found = calibrate(learned(K.Free(5), "circular"), pairs(x, y), tolerance=1e-9)
    kernel = found.physics.tensors()["filter"][0, 0].detach().double()
    assert torch.allclose(kernel, exact, atol=1e-6)
    assert found.rms == pytest.approx(0.05, rel=0.1)


def test_a_wrong_model_leaves_more_than_the_noise():
    x = pictures()
    y = D.Blur(filter=TRUE, padding="reflect").A(x)
    y = y + 0.01 * torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    right = calibrate(learned(K.GaussianKernel(5, anisotropic=True)), pairs(x, y))
    wrong = calibrate(learned(K.GaussianKernel(5)), pairs(x, y))
    assert right.rms == pytest.approx(0.01, rel=0.1) and wrong.rms > 2 * right.rms


def test_coil_maps_with_masks_of_single_scans():
    """Coil maps from k-space, with the mask of every scan."""
    generator = torch.Generator().manual_seed(3)
    maps = torch.randn(1, 2, 8, 8, generator=generator, dtype=torch.complex64)
    base = D.MultiCoilMRI(mask=torch.ones(2, 8, 8), coil_maps=maps, img_size=(2, 8, 8))
    x = torch.randn(6, 2, 8, 8, generator=generator)
    masks = (torch.rand(6, 1, 8, 8, generator=generator) < 0.7).float().repeat(1, 2, 1, 1)
    y = base.clone().A(x, mask=masks)
    start = maps + 0.3 * torch.randn(maps.shape, generator=generator, dtype=torch.complex64)
    physics = LearnedPhysics(base, {"coil_maps": K.Free(start=start)})
    found = calibrate(physics, pairs(x, y, params={"mask": masks}))
    fitted = found.physics.tensors()["coil_maps"].detach()
    assert float((fitted - maps).norm() / maps.norm()) < 1e-3


class Taps(D.LinearPhysics):
    """An operator of one's own with a parameter."""

    def __init__(self):
        super().__init__()
        self.taps = nn.Parameter(torch.tensor([0.3, 0.3, 0.3]))

    def A(self, x, **kwargs):
        return sum(t * x.roll(k, -1) for k, t in enumerate(self.taps))


def test_an_operator_of_ones_own_is_fitted():
    x, true = pictures(), Taps()
    with torch.no_grad():
        true.taps.copy_(torch.tensor([0.5, 0.3, 0.2]))
    found = calibrate(Taps(), pairs(x, true.A(x).detach()))
    assert isinstance(found, Calibration)
    assert found.physics.taps.tolist() == pytest.approx([0.5, 0.3, 0.2], abs=1e-5)


def test_the_fitted_operator_goes_into_an_energy():
    x = pictures()
    y = D.Blur(filter=TRUE, padding="reflect").A(x)
    found = calibrate(learned(K.GaussianKernel(5, anisotropic=True)), pairs(x, y))
    found.physics.requires_grad_(False)
    energy = lr.Energy(found.physics, lr.regularizers.TV() + lr.regularizers.Tikhonov(0.01))
    assert lr.BilevelProblem(energy, pairs_of(x, y)).theta.numel() == 3
    assert lr.solve(energy, y, 1e-1).ok


def pairs_of(x, y):
    class Both(SimpleNamespace):
        def __len__(self):
            return len(self.x)

    return Both(x=x, y=y)


@pytest.mark.parametrize(
    ("physics", "data", "words"),
    [
        (lambda: D.Blur(filter=TRUE), lambda: pairs(pictures(), pictures()), "without a trainable"),
        (lambda: learned(K.Free(5)), lambda: pairs(None, pictures()), "without images"),
        (lambda: learned(K.Free(5)), lambda: pairs(pictures(3), pictures(2)), "3 images and 2"),
        (
            lambda: learned(K.Free(5)),
            lambda: pairs(pictures(), pictures(side=20)),
            r"\(2, 1, 20, 20\); expected \(2, 1, 24, 24\)",
        ),
        (
            lambda: learned(K.GaussianKernel(5)),
            lambda: pairs(torch.zeros(1, 1, 9, 9), torch.zeros(1, 1, 9, 9)),
            "images that A x shows the parameters of",
        ),
    ],
)
def test_pairs_that_cannot_be_fitted_are_refused_in_words(physics, data, words):
    with pytest.raises(InputError, match=words):
        calibrate(physics(), data())


@pytest.mark.slow
def test_the_table_of_learned_kernels_is_made():
    """Two models of it, at a small size, on the bundled photographs."""
    from benchmarks.operators_kernels import run

    rows = {(row["arm"], row["learner"].split()[0]): row for row in run(quick=True)}
    fixed, learned = rows["true", "LBFGSB"], rows["gaussian", "LBFGSB"]
    assert learned["loss"] < 1.05 * fixed["loss"]
    assert rows["gaussian", "MAID"]["loss"] <= 1.1 * learned["loss"]
    assert rows["gaussian", "MAID"]["applications"] < learned["applications"]
    assert {"no truth, A known", "no truth, A unknown"} <= {arm for arm, _ in rows}


@pytest.mark.parametrize(
    "given, words",
    [
        (lambda x, y: (x, y), "images .x"),
        (lambda x, y: pairs(x.numpy(), y.numpy()), "as_tensor"),
        (lambda x, y: pairs((255 * x).long(), (255 * y).long()), "as_tensor"),
        (lambda x, y: pairs(x * float("nan"), y), "pairs.x: given NaN"),
        (lambda x, y: pairs(x, y / 0), "pairs.y: given NaN or Inf"),
        (lambda x, y: pairs(0 * x + 0.5, 0 * y + 0.5), "edges"),
        (lambda x, y: pairs(0 * x + 500.0, 0 * y + 600.0), "edges"),
    ],
)
def test_pairs_that_cannot_be_fitted_are_refused_for_what_they_are(given, words):
    x = pictures(side=12)
    with pytest.raises(InputError, match=words):
        calibrate(learned(K.GaussianKernel(3)), given(x, x))


@pytest.mark.parametrize("units", [1e-6, 1e6])
def test_units_of_the_images_do_not_matter(units):
    x = pictures()
    y = D.Blur(filter=TRUE, padding="reflect").A(x)
    model = learned(K.GaussianKernel(5, std=(1.2, 0.9), anisotropic=True, angle=10))
    found = calibrate(model, pairs(units * x, units * y))
    assert found.misfit < 1e-9 * found.start
