"""Operators and noise that deepinv does not have: real images in MRI, super-resolution of any size,
counts above a background.
"""

from __future__ import annotations

from typing import cast

import torch
from deepinv.physics import LinearPhysics, NoiseModel
from deepinv.physics.functional import conv2d, conv_transpose2d
from torch import Tensor, nn

from ..core.measured import Native
from ..operators.foreign import LinearPhysicsLike
from .learned import LearnedPhysics


class _Complex(LinearPhysicsLike):
    """A deepinv MRI, of one coil or several, for type checkers; nothing is ever made of it."""

    mask: Tensor
    coil_maps: Tensor

    def noise(self, x: Native, **parameters: object) -> Tensor:
        raise NotImplementedError


class RealImages(LinearPhysics):
    """An operator of complex images (two channels, as deepinv's MRI has them) for real ones.

    A x = M (x, 0), and A^T y is the real part of M^T y: a photograph or a magnitude image becomes a
    complex image without phase.

    x: (b, 1, h, w).

    Args:
        inner: a ``deepinv.physics.MRI`` or ``MultiCoilMRI``; its noise model is not used.
        noise_model: of the measurements.
    """

    def __init__(self, inner: nn.Module, noise_model: nn.Module | None = None) -> None:
        super().__init__(noise_model=noise_model)
        self.inner = cast(_Complex, inner)

    @property
    def mask(self) -> Tensor:
        """Of the operator inside."""
        return self.inner.mask

    @property
    def coil_maps(self) -> Tensor:
        """Of the operator inside."""
        return self.inner.coil_maps

    def A(self, x: Tensor, **kwargs: object) -> Tensor:
        if kwargs:
            self.update_parameters(**kwargs)
        return self.inner.A(torch.cat([x, torch.zeros_like(x)], dim=1))

    def A_adjoint(self, y: Tensor, **kwargs: object) -> Tensor:
        if kwargs:
            self.update_parameters(**kwargs)
        return self.inner.A_adjoint(y)[:, :1]

    def noise(self, x: Tensor, **kwargs: object) -> Tensor:
        """Noise where there are measurements: the operator inside masks it."""
        return self.inner.noise(self.noise_model(x, **kwargs))

    def update_parameters(self, **kwargs: object) -> None:
        self.inner.update_parameters(**kwargs)


def in_own_units(physics: nn.Module) -> bool:
    """Whether the measurements are no pictures: sinograms, k-space."""
    from deepinv.physics import MRI, MultiCoilMRI, Tomography

    from .emission import EmissionTomography

    if isinstance(physics, LearnedPhysics):
        return in_own_units(physics.base)
    known = Tomography | MRI | MultiCoilMRI | RealImages | EmissionTomography
    return isinstance(physics, known)


class Decimation(LinearPhysics):
    """A filter, then every ``factor``-th pixel of every ``factor``-th row; images of any size.

    x: (b, c, h, w) with h and w multiples of ``factor``; y: (b, c, h / factor, w / factor).

    deepinv's ``Downsampling`` does the same and replaces its tensors at every use, so that nothing
    that was found out about it can be kept.

    Args:
        filter: (1, 1, k, k), or one for each channel (1, c, k, k).
        factor: integer >= 2.
        padding: as ``deepinv.physics.Blur``, but for "valid".
        noise_model: of the measurements.
    """

    def __init__(
        self,
        filter: Tensor,
        factor: int,
        padding: str = "reflect",
        noise_model: nn.Module | None = None,
    ) -> None:
        super().__init__(noise_model=noise_model)
        self.register_buffer("filter", filter)
        self.factor, self.padding = factor, padding

    def A(self, x: Tensor, **kwargs: object) -> Tensor:
        """Raises: ValueError for sizes that are no multiples of the factor."""
        if kwargs:
            self.update_parameters(**kwargs)
        if x.shape[-2] % self.factor or x.shape[-1] % self.factor:
            raise ValueError(
                f"images of {x.shape[-2]} x {x.shape[-1]} pixels; height and width must be "
                f"multiples of the factor {self.factor}"
            )
        blurred = conv2d(x, self.filter, padding=self.padding)
        return blurred[..., :: self.factor, :: self.factor]

    def A_adjoint(self, y: Tensor, **kwargs: object) -> Tensor:
        if kwargs:
            self.update_parameters(**kwargs)
        spread = y.new_zeros(*y.shape[:-2], self.factor * y.shape[-2], self.factor * y.shape[-1])
        spread[..., :: self.factor, :: self.factor] = y
        return conv_transpose2d(spread, self.filter, padding=self.padding)


class Counts(NoiseModel):
    """Counts above a background, y ~ Poisson(max(z, 0) / gain + background), for z = A x.

    Args:
        gain: positive, what a count is worth in units of A x; a number, or a tensor (b,).
        background: expected counts without an image, >= 0: a number, or a tensor that broadcasts to
            z, (1, ...) or (b, ...).
        rng: random generator.
    """

    gain: Tensor
    background: Tensor

    def __init__(
        self,
        gain: float | Tensor = 1.0,
        background: float | Tensor = 0.0,
        rng: torch.Generator | None = None,
    ) -> None:
        super().__init__(rng=rng)
        self.register_buffer("gain", self._float_to_tensor(gain))
        self.register_buffer("background", self._float_to_tensor(background))

    def forward(
        self,
        x: Tensor,
        seed: int | None = None,
        gain: Tensor | None = None,
        background: Tensor | None = None,
        **kwargs: object,
    ) -> Tensor:
        """x of any shape -> counts of the same shape and type.

        Args:
            gain, background: in the place of its own, for this call.
        """
        self.rng_manual_seed(seed)
        self.to(x.device)
        worth = _spread(self.gain if gain is None else gain, x)
        rate = x.clamp_min(0) / worth + _spread(
            self.background if background is None else background, x
        )
        return torch.poisson(rate, generator=self.rng)


def _spread(t: Tensor, x: Tensor) -> Tensor:
    """A number per image (b,), or a tensor like x."""
    return t.to(x).view(-1, *[1] * (x.dim() - 1)) if t.dim() <= 1 else t.to(x)
