"""Operators that tell the truth: genuine set-ups of deepinv, which no check may refuse."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import deepinv
import torch
from deepinv.physics import LinearPhysics
from torch import Tensor

Shape = tuple[int, int, int]

SIZE = 12
GREY: Shape = (1, SIZE, SIZE)
PAIR: Shape = (2, SIZE, SIZE)
RGB: Shape = (3, SIZE, SIZE)

P = deepinv.physics


@dataclass(frozen=True)
class Honest:
    """A physics that is what it says.

    Attributes:
        name: for messages.
        make: the physics.
        shape: of one image.
    """

    name: str
    make: Callable[[], LinearPhysics]
    shape: Shape = GREY

    def images(self, count: int = 1, seed: int = 0) -> Tensor:
        """(count, c, h, w) in float32: pictures with an edge, and some noise."""
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(count, *self.shape, generator=generator)
        t = torch.linspace(0, 1, self.shape[-1])
        return 0.5 * (t[:, None] > 0.5) + 0.4 * t[None, : self.shape[-1]] + 0.1 * noise


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def _kernel(h: int = 3, w: int = 3, channels: int = 1) -> Tensor:
    k = _random(1, channels, h, w)
    return k / k.sum(dim=(2, 3), keepdim=True)


def _gaussian() -> Tensor:
    t = torch.exp(-0.5 * torch.linspace(-2, 2, 5).square() / 0.64)
    return (t[:, None] * t[None, :] / t.sum() ** 2)[None, None]


def _blur(padding: str, size: tuple[int, int] = (3, 3), **settings: object) -> LinearPhysics:
    return P.Blur(filter=_kernel(*size), padding=padding, **settings)


def _tomography(**settings: object) -> LinearPhysics:
    given = {"angles": 10, "img_width": SIZE, "circle": False, "normalize": True, **settings}
    return P.Tomography(adjoint_via_backprop=True, **given)


def _mri(one_mask: bool) -> LinearPhysics:
    mask = (_random(1, 1 if one_mask else 2, SIZE, SIZE, seed=1) > 0.4).float()
    return P.MRI(mask=mask.expand(1, 2, SIZE, SIZE).clone(), img_size=PAIR)


def _matrix(rows: int) -> LinearPhysics:
    n = SIZE * SIZE
    matrix = torch.randn(rows, n, generator=torch.Generator().manual_seed(2)) / n**0.5
    return Matrix(matrix, GREY)


class Matrix(LinearPhysics):
    """A as a matrix (m, n) held in a buffer.

    Args:
        matrix: (m, n) with n the number of pixels.
        shape: of one image.
    """

    def __init__(self, matrix: Tensor, shape: Shape) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix)
        self.shape = shape

    def A(self, x: Tensor, **kwargs: object) -> Tensor:
        return x.flatten(1) @ self.matrix.T

    def A_adjoint(self, y: Tensor, **kwargs: object) -> Tensor:
        return (y @ self.matrix).view(-1, *self.shape)


def _hadamard() -> LinearPhysics:
    """Of 16 x 16 pixels, by butterflies without any tensor of its own."""

    def transform(x: Tensor, **kwargs: object) -> Tensor:
        b, n = x.shape[0], x[0].numel()
        out, width = x.reshape(b, -1), 1
        while width < n:
            left, right = out.view(b, -1, 2, width).unbind(dim=2)
            out = torch.stack([left + right, left - right], dim=2).reshape(b, -1)
            width *= 2
        return out.view_as(x) / n**0.5

    return LinearPhysics(A=transform, A_adjoint=transform)


def _lambdas(factor: float) -> LinearPhysics:
    return LinearPhysics(A=lambda x, **_: factor * x, A_adjoint=lambda y, **_: factor * y)


def _difference() -> LinearPhysics:
    def adjoint(y: Tensor, **kwargs: object) -> Tensor:
        zero = torch.zeros_like(y[..., :1])
        return torch.cat([zero, y], dim=-1) - torch.cat([y, zero], dim=-1)

    return LinearPhysics(A=lambda x, **_: x.diff(dim=-1), A_adjoint=adjoint)


def _by_autograd() -> LinearPhysics:
    kernel = _kernel(3, 3)

    def forward(x: Tensor, **kwargs: object) -> Tensor:
        return torch.nn.functional.conv2d(x, kernel.to(x), padding=1, stride=2)

    def adjoint(y: Tensor, **kwargs: object) -> Tensor:
        back: Tensor = P.adjoint_function(forward, (y.shape[0], *GREY), dtype=y.dtype)(y)
        return back

    return LinearPhysics(A=forward, A_adjoint=adjoint)


def _mask(above: float = 0.4) -> LinearPhysics:
    return P.Inpainting(GREY, mask=(_random(*GREY, seed=3) > above).float())


def _bicubic() -> LinearPhysics:
    return P.Downsampling(GREY, filter="bicubic", factor=2, padding="reflect")


def _single_pixel() -> LinearPhysics:
    return P.SinglePixelCamera(m=60, img_size=(1, 16, 16), fast=True)


def _compressed() -> LinearPhysics:
    return P.CompressedSensing(m=50, img_size=GREY, rng=torch.Generator().manual_seed(0))


def _composed() -> LinearPhysics:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a pseudo-inverse that is lost
        return _mask() * _blur("circular")


_ALL = (
    Honest("denoising", lambda: P.Denoising(P.GaussianNoise(0.1))),
    Honest("denoising_rgb", lambda: P.Denoising(P.GaussianNoise(0.1)), RGB),
    Honest("inpainting", _mask),
    Honest("inpainting_weights", lambda: P.Inpainting(GREY, mask=0.5 + _random(*GREY))),
    Honest("inpainting_rgb", lambda: P.Inpainting(RGB, mask=(_random(*RGB) > 0.5).float()), RGB),
    Honest("inpainting_mostly_empty", lambda: _mask(above=0.9)),
    Honest("demosaicing", lambda: P.Demosaicing(img_size=RGB), RGB),
    Honest("blur_valid", lambda: _blur("valid")),
    Honest("blur_circular", lambda: _blur("circular")),
    Honest("blur_reflect", lambda: _blur("reflect")),
    Honest("blur_replicate", lambda: _blur("replicate")),
    Honest("blur_constant", lambda: _blur("constant")),
    Honest("blur_oblong", lambda: _blur("circular", (5, 3))),
    Honest("blur_gaussian", lambda: P.Blur(filter=_gaussian(), padding="reflect")),
    Honest("blur_by_fft", lambda: _blur("circular", use_fft=True)),
    Honest("blur_rgb", lambda: P.Blur(filter=_kernel(channels=3), padding="circular"), RGB),
    Honest("blur_fft", lambda: P.BlurFFT(GREY, filter=_kernel())),
    Honest("blur_fft_rgb", lambda: P.BlurFFT(RGB, filter=_kernel()), RGB),
    Honest("downsampling", lambda: P.Downsampling(GREY, filter="gaussian", factor=2)),
    Honest("downsampling_bicubic", _bicubic),
    Honest("downsampling_plain", lambda: P.Downsampling(GREY, filter=None, factor=3)),
    Honest("mri", lambda: _mri(False), PAIR),
    Honest("mri_one_mask", lambda: _mri(True), PAIR),
    Honest("tomography", _tomography),
    Honest("tomography_not_normalized", lambda: _tomography(normalize=False)),
    Honest("tomography_circle", lambda: _tomography(circle=True)),
    Honest("tomography_few_angles", lambda: _tomography(angles=torch.linspace(0, 90, 4))),
    Honest("decolorize", lambda: P.Decolorize(), RGB),
    Honest("single_pixel", _single_pixel, (1, 16, 16)),
    Honest("compressed_sensing", _compressed),
    Honest("hadamard", _hadamard, (1, 16, 16)),
    Honest("matrix_tall", lambda: _matrix(200)),
    Honest("matrix_wide", lambda: _matrix(40)),
    Honest("lambdas", lambda: _lambdas(0.7)),
    Honest("lambdas_large", lambda: _lambdas(1e3)),
    Honest("lambdas_small", lambda: _lambdas(1e-3)),
    Honest("difference", _difference),
    Honest("adjoint_by_autograd", _by_autograd),
    Honest("mask_of_blur", _composed),
    Honest("blur_of_blur", lambda: _blur("reflect") * _blur("circular", (5, 5))),
)  # fmt: skip

HONEST: dict[str, Honest] = {case.name: case for case in _ALL}
"""Every honest set-up by its name."""
