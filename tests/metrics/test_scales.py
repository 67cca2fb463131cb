"""PSNR and SSIM in any unit: against scikit-image, with the peak that suits the data."""

from __future__ import annotations

import math

import deepinv
import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

import learnreg as lr
from learnreg.core.errors import InputError
from learnreg.metrics import psnr, scale_of, ssim
from learnreg.metrics.image import data_psnr

UNITS = {
    "bytes": (255.0, 0.0),
    "Hounsfield": (2000.0, -1000.0),
    "small": (0.02, 0.0),
    "signed": (2.0, -1.0),
    "shifted": (0.5, 3.0),
}


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def noisy(x: torch.Tensor, size: float = 0.2) -> torch.Tensor:
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    return x + size * noise


def theirs(x: torch.Tensor, ref: torch.Tensor) -> list[float]:
    """scikit-image with the range of each true image."""
    return [
        peak_signal_noise_ratio(b, a, data_range=float(np.ptp(b)))
        for a, b in zip(x.numpy(), ref.numpy(), strict=True)
    ]


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize(
    "shape", [(2, 1, 16, 20), (2, 3, 16, 16), (3, 50), (2, 1, 6, 7, 8)], ids=str
)
def test_in_other_units_the_peak_is_the_range(unit, shape):
    factor, offset = UNITS[unit]
    ref, x = factor * images(*shape) + offset, factor * noisy(images(*shape)) + offset
    assert psnr(x, ref).tolist() == pytest.approx(theirs(x, ref), abs=1e-9)


def test_in_units_of_white_the_peak_is_one_and_pixels_are_clipped():
    ref = 0.2 + 0.5 * images(3, 1, 16, 16)
    x = noisy(ref, 0.5)
    shown = [
        peak_signal_noise_ratio(b, a, data_range=1.0)
        for a, b in zip(x.clamp(0, 1).numpy(), ref.numpy(), strict=True)
    ]
    assert psnr(x, ref).tolist() == pytest.approx(shown, abs=1e-9)


def test_negative_pixels_are_not_clipped():
    ref = torch.tensor([0.3, -0.4], dtype=torch.float64).view(1, 2, 1, 1).expand(1, 2, 8, 8)
    x = torch.tensor([0.3, -0.1], dtype=torch.float64).view(1, 2, 1, 1).expand(1, 2, 8, 8)
    assert float(psnr(x, ref)) == pytest.approx(10 * math.log10(1 / 0.045), abs=1e-9)


def test_an_explicit_peak_and_clip_are_obeyed():
    ref, x = 255 * images(2, 1, 16, 16), 255 * noisy(images(2, 1, 16, 16))
    plain = [
        peak_signal_noise_ratio(b, a, data_range=255)
        for a, b in zip(x.numpy(), ref.numpy(), strict=True)
    ]
    assert psnr(x, ref, max_pixel=255, clip=False).tolist() == pytest.approx(plain)
    clipped = psnr(x.clamp(0, 255), ref, max_pixel=255, clip=False)
    assert torch.equal(psnr(x, ref, max_pixel=255), clipped)
    assert torch.equal(psnr(x, ref, max_pixel=torch.tensor([255.0, 255.0])), clipped)
    assert not torch.equal(psnr(x, ref, clip=True), psnr(x, ref))
    with pytest.raises(InputError, match=r"max_pixel: given .*one per image"):
        psnr(x, ref, max_pixel=torch.ones(3))


def test_a_constant_image_has_no_range():
    ref = torch.full((1, 1, 12, 12), 40.0)
    assert psnr(ref + 1, ref).isnan().all() and ssim(ref + 1, ref).isnan().all()
    assert psnr(torch.full_like(ref, 0.1), torch.zeros_like(ref)).tolist() == pytest.approx([20.0])


def test_moduli():
    z = torch.complex(images(2, 1, 16, 16), images(2, 1, 16, 16, seed=3))
    w = torch.complex(noisy(z.real), z.imag)
    with pytest.raises(InputError, match="modulus=True"):
        psnr(w, z)
    pairs = torch.cat([z.real, z.imag], dim=1), torch.cat([w.real, w.imag], dim=1)
    torch.testing.assert_close(psnr(w, z, modulus=True), psnr(w.abs(), z.abs()))
    torch.testing.assert_close(psnr(pairs[1], pairs[0], modulus=True), psnr(w.abs(), z.abs()))
    with pytest.raises(InputError, match="two channels"):
        psnr(images(1, 3, 8, 8), images(1, 3, 8, 8), modulus=True)


@pytest.mark.parametrize(("unit", "off"), [("bytes", 0.02), ("Hounsfield", 0.15)])
def test_ssim_takes_the_same_range(unit, off):
    """deepinv's SSIM treats the border otherwise than scikit-image."""
    factor, offset = UNITS[unit]
    ref = factor * images(1, 1, 32, 32) + offset
    x = factor * noisy(images(1, 1, 32, 32), 0.1) + offset
    other = structural_similarity(
        ref[0, 0].numpy(),
        x[0, 0].numpy(),
        data_range=float(ref.max() - ref.min()),
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert float(ssim(x, ref)) == pytest.approx(other, abs=off) and other < 0.99
    ours = deepinv.loss.metric.SSIM(max_pixel=float(ref.max() - ref.min()))(x, ref)
    assert float(ssim(x, ref)) == pytest.approx(float(ours))


def test_one_data_set_has_one_unit():
    ref = torch.stack([255 * images(1, 8, 8), 0.5 * images(1, 8, 8)])
    assert scale_of(ref).peak[1] == 1 and scale_of(ref, together=True).peak[1] < 0.51
    dark = torch.stack([images(1, 8, 8), 0.01 * images(1, 8, 8)])
    assert scale_of(dark, together=True).peak.tolist() == [1.0, 1.0]
    assert scale_of(dark, together=True).high.tolist() == [1.0, 1.0]


def test_psnr_of_a_data_set_has_one_peak_and_is_clipped_in_units_of_white():
    ref = torch.stack([0.9 * images(1, 8, 8), 0.5 * images(1, 8, 8)])
    x = ref + 0.4  # beyond white in places
    error = ((x.clamp(0, 1) - ref) ** 2).flatten(1).mean(dim=1)
    assert float(x.max()) > 1
    torch.testing.assert_close(data_psnr(x, ref), -10 * torch.log10(error))
    ref, x = 255 * ref, 255 * x  # in other units nothing is clipped, and each has its own range
    extent = ref.flatten(1).amax(dim=1) - ref.flatten(1).amin(dim=1)
    expected = 20 * torch.log10(extent / (255 * 0.4))
    torch.testing.assert_close(data_psnr(x, ref), expected, rtol=1e-5, atol=1e-4)


# --- Run.evaluate ---------------------------------------------------------------------------------


class Data:
    """Ground truth and measurements of any shape."""

    def __init__(self, x: torch.Tensor) -> None:
        self.x, self.y = x, noisy(x, 0.1 * float(x.max() - x.min()))

    def __len__(self) -> int:
        return len(self.x)


def learned(x: torch.Tensor, regularizer: torch.nn.Module | None = None) -> tuple[lr.Run, Data]:
    physics = deepinv.physics.Denoising(deepinv.physics.GaussianNoise(0.1))
    energy = lr.Energy(physics, lr.regularizers.TV() if regularizer is None else regularizer)
    data = Data(x)
    run = lr.learn(lr.BilevelProblem(energy, data), lr.MAID(), budget=lr.Budget(steps=1))
    return run, data


def test_evaluation_takes_and_names_the_range_of_the_data():
    run, data = learned(255 * images(2, 1, 16, 16).float())
    found = run.evaluate(data, 1.0)
    assert list(found.psnr) == pytest.approx(theirs(found.reconstruction, data.x), abs=1e-4)
    assert list(found.psnr_input) == pytest.approx(theirs(data.y, data.x), abs=1e-4)
    assert list(found.peak) == pytest.approx([float(np.ptp(x.numpy())) for x in data.x])
    assert "peak 25" in repr(found) and found.to_dict()["peak"] == pytest.approx(list(found.peak))
    assert run.record.rows[-1]["psnr"] < 40


def test_evaluation_of_photographs_has_peak_one():
    run, data = learned(images(2, 1, 16, 16).float())
    found = run.evaluate(data, 1e-2)
    assert found.peak == (1.0, 1.0) and "peak" not in repr(found)
    assert list(found.psnr) == pytest.approx(psnr(found.reconstruction, data.x).tolist(), abs=1e-5)


@pytest.mark.parametrize("shape", [(2, 1, 40), (2, 1, 5, 6, 7), (2, 1, 8, 8)], ids=str)
def test_evaluation_where_ssim_is_not_defined(shape):
    run, data = learned(images(*shape).float(), lr.regularizers.Tikhonov())
    found = run.evaluate(data, 1e-2)
    assert all(math.isfinite(v) for v in found.psnr) and all(map(math.isnan, found.ssim))
    assert "SSIM" in repr(found)
