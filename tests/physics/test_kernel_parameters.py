"""Kernels with parameters: sums, signs, middles, starts, derivatives."""

from __future__ import annotations

import math

import pytest
import torch

from learnreg.core.errors import InputError
from learnreg.physics import kernel_parameters as K

KINDS = {
    "simplex": lambda **k: K.SimplexKernel(7, **k),
    "radial": lambda **k: K.RadialKernel(7, **k),
    "gaussian": lambda **k: K.GaussianKernel(7, **k),
    "turned": lambda **k: K.GaussianKernel(7, std=(1.5, 0.7), anisotropic=True, angle=40, **k),
    "round": lambda **k: K.GaussianKernel(7, std=1.0, anisotropic=True, **k),
    "motion": lambda **k: K.MotionKernel(7, angle=15, **k),
    "disc": lambda **k: K.DiscKernel(7, **k),
    "free": lambda **k: K.Free(7, **k),
}
POSITIVE = [name for name in KINDS if name != "free"]


def shaken(kernel, size=0.3, seed=0):
    """At other parameters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in kernel.parameters():
            p.add_(size * torch.randn(p.shape, generator=generator))
    return kernel


@pytest.mark.parametrize("name", POSITIVE)
@pytest.mark.parametrize("size", [0.0, 0.3, 30.0])
def test_kernels_are_not_negative_and_sum_to_one(name, size):
    kernel = shaken(KINDS[name](channels=3, images=2), size)()
    assert kernel.shape == (2, 3, 7, 7)
    assert bool((kernel >= 0).all()) and bool(torch.isfinite(kernel).all())
    assert torch.allclose(kernel.sum(dim=(-2, -1)), torch.ones(2, 3), atol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_kernels_start_centred(name):
    kernel = KINDS[name]().double()()[0, 0].detach()
    offsets = torch.arange(-3, 4).double()
    assert abs(float((kernel.sum(0) * offsets).sum())) < 1e-7
    assert abs(float((kernel.sum(1) * offsets).sum())) < 1e-7


@pytest.mark.parametrize("name", ["gaussian", "turned", "motion", "disc", "radial"])
def test_kernels_of_a_shape_stay_centred(name):
    kernel = shaken(KINDS[name]().double())()[0, 0].detach()
    assert torch.allclose(kernel, kernel.flip(0, 1), atol=1e-12)


@pytest.mark.parametrize("name", KINDS)
def test_derivatives_are_central_differences_in_every_parameter(name):
    kernel = shaken(KINDS[name]().double(), 0.1)
    weights = torch.randn(7, 7, generator=torch.Generator().manual_seed(1)).double()

    def value():
        return (kernel()[0, 0] * weights).sum()

    for p in kernel.parameters():
        (exact,) = torch.autograd.grad(value(), p)
        flat = p.detach().view(-1)
        for i in range(0, flat.numel(), 5):
            before = float(flat[i])
            values = []
            for step in (1e-6, -1e-6):
                flat[i] = before + step
                values.append(float(value().detach()))
            flat[i] = before
            difference = (values[0] - values[1]) / 2e-6
            assert float(exact.reshape(-1)[i]) == pytest.approx(difference, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("name", KINDS)
def test_every_parameter_moves_the_kernel_from_its_start(name):
    kernel = KINDS[name]()
    (p,) = kernel.parameters()
    weights = torch.randn(7, 7, generator=torch.Generator().manual_seed(2))
    (slope,) = torch.autograd.grad((kernel()[0, 0] * weights).sum(), p)
    assert float(slope.abs().max()) > 1e-3
    if p.numel() <= 3:
        assert float(slope.abs().min()) > 1e-4


def test_a_gaussian_is_the_formula():
    t = torch.arange(-2, 3).double()
    k = torch.exp(-(t[:, None] ** 2 + t**2) / (2 * 0.8**2))
    assert torch.allclose(K.GaussianKernel(5, std=0.8).double()()[0, 0], k / k.sum(), atol=1e-7)


def test_a_turned_gaussian_says_its_deviations_and_its_angle():
    kernel = K.GaussianKernel(15, std=(2.0, 0.8), anisotropic=True, angle=30).double()
    assert torch.allclose(kernel.std(), torch.tensor([[[2.0, 0.8]]]).double(), atol=1e-6)
    assert float(kernel.angle()) == pytest.approx(30, abs=1e-4)
    rows = torch.arange(7, -8, -1).double()[:, None]
    columns = torch.arange(-7, 8).double()
    k = kernel()[0, 0]
    covariance = torch.stack(
        [(k * columns**2).sum(), (k * rows * columns).sum(), (k * rows**2).sum()]
    )
    c, s = math.cos(math.pi / 6), math.sin(math.pi / 6)
    exact = [4 * c * c + 0.64 * s * s, (4 - 0.64) * c * s, 4 * s * s + 0.64 * c * c]
    assert covariance.tolist() == pytest.approx(exact, rel=0.02)


def test_motion_says_its_length_and_its_angle():
    kernel = K.MotionKernel(9, length=4, angle=120)
    assert float(kernel.length()) == pytest.approx(4)
    assert float(kernel.angle()) == pytest.approx(-60, abs=1e-4)
    across, along = (K.MotionKernel(9, length=4, angle=a)()[0, 0].detach() for a in (0, 90))
    assert torch.allclose(across, along.T, atol=1e-6)
    assert float(across[4].sum()) > 0.7


def test_a_disc_says_its_radius():
    kernel = K.DiscKernel(9, radius=2.5)
    assert float(kernel.radius()) == pytest.approx(2.5)
    assert float(kernel().detach()[0, 0, 4, 4]) == pytest.approx(1 / (math.pi * 2.5**2), rel=0.1)


def test_six_numbers_make_a_radial_kernel_of_five_pixels():
    kernel = K.RadialKernel(5)
    assert kernel.values.shape == (1, 1, 6)
    k = shaken(kernel)()[0, 0]
    assert torch.equal(k, k.T) and torch.equal(k, k.flip(0))


def test_free_entries_of_any_shape_and_kind():
    start = torch.randn(1, 3, 4, 4, dtype=torch.complex64)
    free = K.Free(start=start)
    assert torch.equal(free(), start) and not free.taps.is_complex()
    assert K.Free(start=torch.arange(3))().dtype == torch.float32
    assert float(K.Free(5, start=0.0)().detach()[0, 0, 2, 2]) == 1
    own = torch.rand(5, 5)
    assert torch.equal(K.Free(5, start=own)()[0, 0], own)


def test_windows_need_not_be_square():
    assert K.GaussianKernel((3, 7))().shape == (1, 1, 3, 7)
    assert K.RadialKernel((3, 7))().shape == (1, 1, 3, 7)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: K.GaussianKernel(5, std=0.1), "std: given 0.1; expected a number >= 0.5 pixel"),
        (lambda: K.SimplexKernel(5, start=0.0), "start: given 0.0; expected a number >= 0.5"),
        (lambda: K.RadialKernel(5, start=0.3), "start: given 0.3"),
        (lambda: K.DiscKernel(5, radius=0.1), "radius: given 0.1"),
        (
            lambda: K.MotionKernel(5, length=0.2),
            r"length: given 0.2; expected a number in \[1, 5\]",
        ),
        (lambda: K.MotionKernel(5, length=9), "length: given 9"),
        (lambda: K.GaussianKernel(4), "size: given 4 pixels; expected an odd number"),
        (lambda: K.GaussianKernel(1), "odd integers >= 3"),
        (lambda: K.GaussianKernel("5"), "size"),
        (lambda: K.GaussianKernel((3, 5, 7)), "one odd integer, or two"),
        (lambda: K.GaussianKernel(5, std=(1.0, 2.0)), "Pass anisotropic=True"),
        (lambda: K.GaussianKernel(5, angle=10), "Pass anisotropic=True"),
        (lambda: K.GaussianKernel(5, std=float("nan")), "std: given nan"),
        (lambda: K.GaussianKernel(5, std=(1, 2, 3), anisotropic=True), "a number, or two"),
        (lambda: K.GaussianKernel(5, channels=0), "channels"),
        (lambda: K.SimplexKernel(3, start=torch.eye(3)), "single pixel no gradient"),
        (lambda: K.SimplexKernel(3, start=torch.ones(5, 5)), "3 x 3"),
        (lambda: K.Free(), "or start=... a tensor"),
        (lambda: K.Free(5, start=torch.ones(3, 3)), r"\(\.\.\., 5, 5\)"),
        (lambda: K.Free(start=torch.tensor([float("nan")])), "not finite"),
        (lambda: K.Free(start=torch.zeros(0)), "none at all"),
    ],
)
def test_starts_that_lead_nowhere_are_refused_in_words(make, words):
    with pytest.raises(InputError, match=words):
        make()
