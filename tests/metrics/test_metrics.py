"""Metrics per image against closed forms, and honesty of certificates."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learnreg.core.errors import InputError
from learnreg.metrics import honesty, mse, psnr, ssim


def batch(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_psnr_closed_form():
    ref = torch.full((3, 1, 8, 8), 0.5, dtype=torch.float64)
    offsets = torch.tensor([0.1, 0.01, 0.0], dtype=torch.float64)
    value = psnr(ref + offsets.view(3, 1, 1, 1), ref)
    torch.testing.assert_close(value[:2], torch.tensor([20.0, 40.0], dtype=torch.float64))
    assert value[2] == math.inf
    bytes_like = psnr(255 * ref + 25.5, 255 * ref, max_pixel=255)
    torch.testing.assert_close(bytes_like, torch.full_like(offsets, 20.0))


def test_psnr_clips_where_the_true_image_lies_within_unless_told_otherwise():
    ref = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    x = torch.tensor([[-3.0, 1.2]], dtype=torch.float64)
    assert psnr(x, ref) == math.inf
    expected = torch.tensor([-10 * math.log10((9 + 0.04) / 2)], dtype=torch.float64)
    torch.testing.assert_close(psnr(x, ref, clip=False), expected)
    torch.testing.assert_close(psnr(x, ref - 0.2, clip=False, max_pixel=1.0), psnr(x, ref - 0.2))
    assert psnr(x, ref + 0.2, clip=True, max_pixel=1.0) < math.inf


def test_psnr_of_gaussian_noise():
    ref = torch.full((1, 1, 256, 256), 0.5)
    noise = torch.randn(ref.shape, generator=torch.Generator().manual_seed(0))
    assert abs(float(psnr(ref + 0.1 * noise, ref)) - 20) < 0.1


def test_mse():
    x, ref = batch(2, 1, 4, 4), batch(2, 1, 4, 4, seed=1)
    one_by_one = [((a - b) ** 2).mean() for a, b in zip(x, ref, strict=True)]
    torch.testing.assert_close(mse(x, ref), torch.stack(one_by_one))


def test_ssim_of_identical_images_is_one_and_falls_with_noise():
    ref = batch(2, 1, 32, 32)
    torch.testing.assert_close(ssim(ref, ref), torch.ones(2))
    noise = torch.randn(ref.shape, generator=torch.Generator().manual_seed(0))
    little, much = ssim(ref + 0.02 * noise, ref), ssim(ref + 0.3 * noise, ref)
    assert (much < little).all() and (little < 1).all()


@pytest.mark.parametrize("metric", [psnr, ssim, mse])
def test_an_image_does_not_see_its_neighbours(metric):
    x, ref = batch(4, 1, 16, 16), batch(4, 1, 16, 16, seed=1)
    x[2] = torch.nan
    values = metric(x, ref)
    assert values.shape == (4,)
    for i in (0, 1, 3):
        assert torch.equal(metric(x[i : i + 1], ref[i : i + 1])[0], values[i])
    assert values[2].isnan()
    order = torch.tensor([3, 1, 0])
    assert torch.equal(metric(x[order], ref[order]), values[order])


@pytest.mark.parametrize("metric", [psnr, ssim, mse])
def test_precisions_may_differ(metric):
    x, ref = batch(2, 1, 16, 16), batch(2, 1, 16, 16, seed=1)
    torch.testing.assert_close(metric(x.double(), ref).float(), metric(x, ref))


@pytest.mark.parametrize("metric", [psnr, ssim, mse])
@pytest.mark.parametrize(
    ("x", "ref", "message"),
    [
        (
            torch.zeros(2, 1, 16, 16),
            torch.zeros(1, 1, 16, 16),
            r"\(2, 1, 16, 16\) and \(1, 1, 16, 16\)",
        ),
        (torch.zeros(0, 1, 16, 16), torch.zeros(0, 1, 16, 16), "at least one image"),
        (torch.zeros(16), torch.zeros(16), "batch dimension"),
        (
            torch.zeros(1, 1, 16, 16, dtype=torch.uint8),
            torch.zeros(1, 1, 16, 16),
            "x: given torch.uint8",
        ),
        (torch.zeros(1, 1, 16, 16), [[0.0]], r"ref: given \[\[0.0"),
    ],
)
def test_bad_images(metric, x, ref, message):
    with pytest.raises(InputError, match=message):
        metric(x, ref)


@pytest.mark.parametrize("max_pixel", [0, -1.0, math.inf, math.nan])
def test_bad_max_pixel(max_pixel):
    with pytest.raises(InputError, match="max_pixel"):
        psnr(torch.zeros(1, 4), torch.zeros(1, 4), max_pixel=max_pixel)


@pytest.mark.parametrize("shape", [(1, 16, 16), (1, 1, 10, 16)])
def test_ssim_needs_room_for_its_window(shape):
    with pytest.raises(InputError, match="window of SSIM"):
        ssim(torch.zeros(shape), torch.zeros(shape))


errors = st.lists(st.tuples(st.floats(0, 1e6), st.floats(1e-6, 1e6)), min_size=1, max_size=20)


@given(errors)
def test_honesty_is_the_worst_ratio(pairs):
    true, certified = zip(*pairs, strict=True)
    result = honesty(true, certified)
    ratios = [t / c for t, c in pairs]
    assert result.ratios == tuple(ratios)
    assert result.worst == max(ratios) and min(ratios) <= result.median <= result.worst
    assert result.violated == (max(ratios) > 1 + result.tolerance)
    assert result.violated == bool(result.violations)
    assert all(ratios[i] > 1 for i in result.violations)


@given(errors, st.floats(1, 1e3))
def test_a_larger_certificate_is_never_less_honest(pairs, factor):
    true, certified = zip(*pairs, strict=True)
    assert honesty(true, [factor * c for c in certified]).worst <= honesty(true, certified).worst


@given(errors, st.randoms(use_true_random=False))
def test_honesty_ignores_the_order(pairs, random):
    shuffled = random.sample(pairs, len(pairs))
    one, other = honesty(*zip(*pairs, strict=True)), honesty(*zip(*shuffled, strict=True))
    assert (one.worst, one.median, one.violated) == (other.worst, other.median, other.violated)


def test_honesty_tolerates_rounding_only():
    certified = torch.tensor([1.0, 1.0], dtype=torch.float64)
    assert not honesty(certified * (1 + 5e-7), certified).violated
    assert honesty(certified * (1 + 5e-6), certified).violations == (0, 1)
    assert honesty(certified * (1 + 5e-7), certified, tolerance=0).violated


def test_honesty_at_the_edges():
    assert honesty([0.0], [0.0]).ratios == (1.0,)
    assert honesty([1e-300], [0.0]).worst == math.inf
    assert honesty([1.0], [math.inf]).worst == 0


def test_honesty_speaks():
    good, bad = honesty([0.5, 1.0], [1.0, 4.0]), honesty([0.5, 3.0], [1.0, 2.0])
    assert "every certificate holds" in repr(good) and "worst 0.5" in repr(good)
    assert "WRONG for 1 of them: image 1" in repr(bad)
    assert json.loads(json.dumps(bad.to_dict()))["violations"] == [1]


@pytest.mark.parametrize(
    ("true", "certified", "tolerance", "message"),
    [
        ([], [], 0.0, "true_error: given no values"),
        ([1.0], [1.0, 2.0], 0.0, "certified_error: given 2 values; expected 1"),
        ([-1.0], [1.0], 0.0, "true_error"),
        ([1.0], [math.nan], 0.0, "certified_error"),
        ([math.inf], [math.inf], 0.0, "infinite"),
        ([1.0], [1.0], -1.0, "tolerance: given -1"),
    ],
)
def test_bad_honesty(true, certified, tolerance, message):
    with pytest.raises(InputError, match=message):
        honesty(true, certified, tolerance=tolerance)
