"""Operators that lie: what a certified solve should refuse, or survive.

Every one is small and plausible, the kind of mistake that people make: a factor forgotten, a kernel
not flipped, a branch for one precision, a hook that adds noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import deepinv
import torch
from deepinv.physics import DecomposablePhysics, Inpainting, LinearPhysics
from torch import Tensor
from torch.nn import functional as F

Shape = tuple[int, int, int]


class Identity(LinearPhysics):
    """A = 1 and A^T = 1; the liars below change one of them."""

    def A(self, x: Tensor, **kwargs: object) -> Tensor:
        return x

    def A_adjoint(self, y: Tensor, **kwargs: object) -> Tensor:
        return y


class ScaledAdjoint(Identity):
    """A_adjoint is a multiple of the transpose."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def A_adjoint(self, y: Tensor, **kwargs: object) -> Tensor:
        return self.factor * y


class UnflippedKernel(LinearPhysics):
    """A correlation whose adjoint correlates with the same kernel, which is not symmetric."""

    def __init__(self) -> None:
        super().__init__()
        kernel = torch.tensor([[0.0, 1, 0], [1, 4, 1.05], [0, 1, 0]]) / 8
        self.register_buffer("kernel", kernel[None, None])

    def A(self, x: Tensor, **kwargs: object) -> Tensor:
        return F.conv2d(x, self.kernel.to(x), padding=1)

    def A_adjoint(self, y: Tensor, **kwargs: object) -> Tensor:
        return self.A(y)


class WrongPlace(Identity):
    """A_adjoint multiplies one row of pixels, or one pixel, by a factor."""

    def __init__(self, factor: float, one_pixel: bool) -> None:
        super().__init__()
        self.factor, self.one_pixel = factor, one_pixel

    def A_adjoint(self, y: Tensor, **kwargs: object) -> Tensor:
        out, row = y.clone(), y.shape[-2] // 3
        if self.one_pixel:
            out[..., row, y.shape[-1] // 2] *= self.factor
        else:
            out[..., row, :] *= self.factor
        return out


class OtherCopy(LinearPhysics):
    """A copy of it is 2 % larger than the original; each has the right adjoint."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor

    def A(self, x: Tensor, **kwargs: object) -> Tensor:
        return self.factor * x

    def A_adjoint(self, y: Tensor, **kwargs: object) -> Tensor:
        return self.factor * y

    def __deepcopy__(self, memo: dict[int, object]) -> OtherCopy:
        return OtherCopy(1.02 * self.factor)


class Affine(Identity):
    """A x = x + c, so A(0) is not 0; the adjoint is that of the linear part."""

    def __init__(self, offset: float, pattern: bool = False) -> None:
        super().__init__()
        self.offset, self.pattern = offset, pattern

    def A(self, x: Tensor, **kwargs: object) -> Tensor:
        ramp = torch.linspace(0, 1, x.shape[-1]).to(x) if self.pattern else 1.0
        return x + self.offset * ramp


class Cubic(Identity):
    """A x = x + c x^3."""

    def A(self, x: Tensor, **kwargs: object) -> Tensor:
        return x + 1e-4 * x**3


class Absolute(Identity):
    """A x = |x|, linear as long as nobody looks at negative numbers."""

    def A(self, x: Tensor, **kwargs: object) -> Tensor:
        return x.abs()


class Noisy(Identity):
    """A draws noise at every call."""

    def A(self, x: Tensor, **kwargs: object) -> Tensor:
        return x + 1e-2 * torch.randn_like(x)


class Drifting(LinearPhysics):
    """A and A_adjoint grow together, by 1e-4 at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def A(self, x: Tensor, **kwargs: object) -> Tensor:
        self.calls += 1
        return (1 + 1e-4 * self.calls) * x

    def A_adjoint(self, y: Tensor, **kwargs: object) -> Tensor:
        return (1 + 1e-4 * self.calls) * y


class Adjustable(LinearPhysics):
    """A = scale, a plain attribute that somebody changes after the first use."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = 1.0

    def A(self, x: Tensor, **kwargs: object) -> Tensor:
        return self.scale * x

    def A_adjoint(self, y: Tensor, **kwargs: object) -> Tensor:
        return self.scale * y


class DimmedMask(Inpainting):
    """An Inpainting by inheritance, with A and A_adjoint of its own: a tenth of the mask."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape, mask=torch.ones(shape))

    def A(self, x: Tensor, mask: Tensor | None = None, **kwargs: object) -> Tensor:
        return 0.1 * x

    def A_adjoint(self, y: Tensor, mask: Tensor | None = None, **kwargs: object) -> Tensor:
        return 0.1 * y


class DimmedSpectrum(DecomposablePhysics):
    """Decomposable by inheritance, with a mask of ones that A and A_adjoint do not use."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(mask=torch.ones(1, *shape))

    def A(self, x: Tensor, mask: Tensor | None = None, **kwargs: object) -> Tensor:
        return 0.1 * x

    def A_adjoint(self, y: Tensor, mask: Tensor | None = None, **kwargs: object) -> Tensor:
        return 0.1 * y


class WrongInDouble(Identity):
    """A_adjoint is right in float32 and 1 % off in float64."""

    def A_adjoint(self, y: Tensor, **kwargs: object) -> Tensor:
        return 1.01 * y if y.dtype == torch.float64 else y


class WrongWhenLarge(Identity):
    """A_adjoint is right up to 64 pixels across and 1 % off beyond."""

    def A_adjoint(self, y: Tensor, **kwargs: object) -> Tensor:
        return 1.01 * y if y.shape[-1] > 64 else y


class Coupled(LinearPhysics):
    """A adds a tenth of the image before it in the batch; the adjoint is that of the batch."""

    def A(self, x: Tensor, **kwargs: object) -> Tensor:
        return torch.cat([x[:1], x[1:] + 0.1 * x[:-1]])

    def A_adjoint(self, y: Tensor, **kwargs: object) -> Tensor:
        return torch.cat([y[:-1] + 0.1 * y[1:], y[-1:]])


class Unregistered(LinearPhysics):
    """The kernel is a plain attribute, so that no copy can be promoted."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = torch.tensor([[0.0, 1, 0], [1, 4, 1], [0, 1, 0]])[None, None] / 8

    def A(self, x: Tensor, **kwargs: object) -> Tensor:
        return F.conv2d(x, self.kernel, padding=1)

    def A_adjoint(self, y: Tensor, **kwargs: object) -> Tensor:
        return F.conv_transpose2d(y, self.kernel, padding=1)


class HardCoded(LinearPhysics):
    """Works in float32 whatever it is given, and hands float32 back."""

    def A(self, x: Tensor, **kwargs: object) -> Tensor:
        return 0.5 * x.float()

    def A_adjoint(self, y: Tensor, **kwargs: object) -> Tensor:
        return 0.5 * y.float()


@dataclass(frozen=True)
class Liar:
    """An operator that is not what it says.

    Attributes:
        name: for messages.
        make: from the size of its images to the physics.
        lie: what is wrong, in words.
        determined: whether "the minimizer" means anything. Where A is random, drifts or has several
            minimizers no distance can be right: it is to be refused, or labelled.
        change: what somebody does to the physics after its first use, or None.
        images: in the batch that shows it.
    """

    name: str
    make: Callable[[int], LinearPhysics]
    lie: str
    determined: bool = True
    change: Callable[[LinearPhysics], None] | None = None
    images: int = 1

    def shape(self, size: int) -> Shape:
        """Of one image."""
        return (1, size, size)

    def measurements(self, size: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
        """A picture with edges, seen through A (as it is before ``change``), with noise 0.1."""
        generator = torch.Generator().manual_seed(seed)
        t = torch.linspace(0, 1, size, dtype=torch.float64)
        picture = 0.6 * (t[:, None] > 0.4) + 0.4 * t[None, :]
        x = picture.expand(self.images, 1, size, size).float()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            y = self.make(size).A(x).to(dtype)
        noise = torch.randn(y.shape, generator=generator, dtype=torch.float64)
        return y + 0.1 * noise.to(dtype)


def _tomography(size: int) -> LinearPhysics:
    return deepinv.physics.Tomography(
        angles=20, img_width=size, circle=False, adjoint_via_backprop=False, normalize=True
    )


def _halve(physics: LinearPhysics) -> None:
    physics.scale = 0.5


_ALL = (
    Liar("adjoint_1.01", lambda n: ScaledAdjoint(1.01), "the adjoint is 1 % too large"),
    Liar("adjoint_1.0001", lambda n: ScaledAdjoint(1.0001), "the adjoint is 0.01 % too large"),
    Liar("unflipped_kernel", lambda n: UnflippedKernel(), "the adjoint does not flip the kernel"),
    Liar("one_row", lambda n: WrongPlace(0.0, False), "the adjoint forgets one row of pixels"),
    Liar("one_pixel", lambda n: WrongPlace(0.0, True), "the adjoint forgets one pixel"),
    Liar("one_pixel_1.01", lambda n: WrongPlace(1.01, True), "the adjoint is 1 % off in a pixel"),
    Liar("copy_1.02", lambda n: OtherCopy(), "a copy is 2 % larger than the original"),
    Liar("offset_1e-4", lambda n: Affine(1e-4), "A(0) is 1e-4"),
    Liar("affine", lambda n: Affine(0.3, pattern=True), "A(0) is a ramp"),
    Liar("cubic_1e-4", lambda n: Cubic(), "A has a cubic term"),
    Liar("absolute", lambda n: Absolute(), "A is |x|", determined=False),
    Liar("noise_in_A", lambda n: Noisy(), "A draws noise", determined=False),
    Liar("drifting", lambda n: Drifting(), "A grows with every call", determined=False),
    Liar(
        "attribute_changed", lambda n: Adjustable(), "A changes after its first use", change=_halve
    ),
    Liar("inpainting_overridden", lambda n: DimmedMask((1, n, n)), "A does not use the mask"),
    Liar("decomposable_overridden", lambda n: DimmedSpectrum((1, n, n)), "A does not use the mask"),
    Liar("wrong_in_float64", lambda n: WrongInDouble(), "the adjoint is 1 % off in float64"),
    Liar("wrong_when_large", lambda n: WrongWhenLarge(), "the adjoint is 1 % off on large images"),
    Liar("batch_coupled", lambda n: Coupled(), "an image sees the one before it", images=2),
    Liar("filtered_backprojection", _tomography, "the adjoint is an approximation"),
    Liar("unregistered", lambda n: Unregistered(), "its kernel cannot be promoted"),
    Liar("float32_only", lambda n: HardCoded(), "it works in float32 whatever it is given"),
)

LIARS: dict[str, Liar] = {liar.name: liar for liar in _ALL}
"""Every liar by its name."""
