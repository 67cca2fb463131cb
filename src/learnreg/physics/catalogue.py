"""How measurements are made, by name: small frozen settings, which build operators of deepinv."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ..core.errors import InputError
from ..core.ranges import (
    check_choice,
    check_flag,
    check_integer,
    check_number,
    check_positive,
    tidy,
)
from .files import tensor_of
from .kernels import (
    Kernel,
    Pattern,
    coil_maps,
    kernel_of,
    line_mask,
    own_numbers,
    subsampling_filter,
)
from .noise import Gaussian, Noise, Poisson

Size = tuple[int, int]

REAL_OR_COMPLEX = (1, 2)


@runtime_checkable
class Setup(Protocol):
    """Settings of a physics.

    Attributes:
        full_rank: whether nothing of an image is lost, so that L2 alone is strongly convex.
        like_images: whether measurements have the range of the images.
        colours: numbers of channels that it takes; None for any.
    """

    full_rank: ClassVar[bool]
    like_images: ClassVar[bool]
    colours: ClassVar[tuple[int, ...] | None]

    def check(self, size: Size, channels: int = 1) -> None:
        """Refuse images that it does not take, before anything is built.

        Raises:
            InputError: says which it takes.
        """
        ...

    def default_noise(self) -> Noise:
        """The noise where none is asked for."""
        ...

    def build(
        self, size: Size, channels: int = 1, seed: int = 0, noise: Noise | None = None
    ) -> nn.Module:
        """The operator, a ``deepinv.physics.LinearPhysics`` on the CPU in float32.

        Args:
            size: height and width of the images.
            channels: of the images.
            seed: of random masks.
            noise: of the measurements; ``default_noise()`` when None.

        Raises:
            InputError: images that it does not take; files that cannot be used.
        """
        ...


class _Base:
    """What most of them share."""

    full_rank: ClassVar[bool] = False
    like_images: ClassVar[bool] = True
    colours: ClassVar[tuple[int, ...] | None] = None

    def check(self, size: Size, channels: int = 1) -> None:
        for name, value in (("height", size[0]), ("width", size[1])):
            check_integer(f"size ({name})", value, 1)
        check_integer("channels", channels, 1)
        if self.colours is not None and channels not in self.colours:
            raise InputError(
                "channels",
                given=f"{channels} with {type(self).__name__}",
                expected=" or ".join(map(str, self.colours)),
                remedy=f"Set channels = {self.colours[0]}.",
            )

    def default_noise(self) -> Noise:
        return Gaussian(0.1)


@dataclass(frozen=True)
class Denoising(_Base):
    """The measurement is the image itself, with noise."""

    full_rank: ClassVar[bool] = True

    def build(
        self, size: Size, channels: int = 1, seed: int = 0, noise: Noise | None = None
    ) -> nn.Module:
        """``deepinv.physics.Denoising``."""
        from deepinv.physics import Denoising as Built

        self.check(size, channels)
        return _module(Built((noise or self.default_noise()).build()))


@dataclass(frozen=True)
class Blur(_Base):
    """The image is blurred.

    Args:
        kernel: how: "disk" is out of focus, "motion" a straight line
        width: in pixels: standard deviation (gaussian), radius (disk), half a side (box), half a
            length (motion)
        across: the same in the other direction, for gaussian and box; as width when None
        angle: by which the kernel is turned, in degrees
        file: a kernel of one's own (.npy or picture), scaled to sum 1, in the place of the four
            above
        padding: what stands beyond the border; "valid" leaves out what would need it
    """

    kernel: Kernel = "gaussian"
    width: float = 1.5
    across: float | None = None
    angle: float = 0.0
    file: str | None = None
    padding: Literal["reflect", "circular", "replicate", "constant", "valid"] = "reflect"

    def __post_init__(self) -> None:
        tidy(self)
        check_choice("kernel", self.kernel, ("gaussian", "disk", "box", "motion"))
        check_positive("width", self.width)
        check_positive("across", self.across, optional=True)
        check_number("angle", self.angle, lambda v: True, "a number of degrees")
        paddings = ("reflect", "circular", "replicate", "constant", "valid")
        check_choice("padding", self.padding, paddings)
        if self.across is not None and self.kernel in ("disk", "motion"):
            raise InputError(
                "across",
                given=f"{self.across:g} with kernel {self.kernel!r}",
                expected='None: only "gaussian" and "box" have a second width',
                remedy="Leave it out.",
            )

    def default_noise(self) -> Noise:
        return Gaussian(0.02)

    def filter(self) -> Tensor:
        """The kernel (1, 1, k, l).

        Raises:
            InputError: a file that holds none.
        """
        if self.file is None:
            return kernel_of(self.kernel, self.width, self.across, self.angle)
        found = tensor_of(self.file, "file")
        total = 0.0 if found.is_complex() else float(found.sum())
        if found.squeeze().dim() != 2 or not total > 0:
            raise InputError(
                "file",
                given=f"{self.file} of shape {tuple(found.shape)}, {found.dtype}, with sum "
                f"{total:g}",
                expected="a real kernel (h, w) with a positive sum",
                remedy="Store the point spread function alone.",
            )
        return (found.squeeze() / total)[None, None]

    def build(
        self, size: Size, channels: int = 1, seed: int = 0, noise: Noise | None = None
    ) -> nn.Module:
        """``deepinv.physics.Blur``."""
        from deepinv.physics import Blur as Built

        self.check(size, channels)
        kernel = self.filter()
        if kernel.shape[-2] > size[0] or kernel.shape[-1] > size[1]:
            raise InputError(
                "width" if self.file is None else "file",
                given=f"a kernel of {kernel.shape[-2]} x {kernel.shape[-1]} pixels",
                expected=f"at most the size of the images, {size[0]} x {size[1]}",
                remedy="Choose a smaller kernel or larger images.",
            )
        model = (noise or self.default_noise()).build()
        return _module(Built(filter=kernel, padding=self.padding, noise_model=model))


@dataclass(frozen=True)
class Inpainting(_Base):
    """Some pixels are not measured.

    Args:
        keep: share of pixels that are measured, drawn at random
        file: a mask of one's own (.npy or picture, zero where nothing is measured), in the place of
            keep
    """

    keep: float = 0.5
    file: str | None = None

    def __post_init__(self) -> None:
        tidy(self)
        check_number("keep", self.keep, lambda v: 0 < v <= 1, "a number in (0, 1]")

    def default_noise(self) -> Noise:
        return Gaussian(0.02)

    def build(
        self, size: Size, channels: int = 1, seed: int = 0, noise: Noise | None = None
    ) -> nn.Module:
        """``deepinv.physics.Inpainting``; all channels of a pixel are measured, or none."""
        from deepinv.physics import Inpainting as Built

        self.check(size, channels)
        if self.file is None:
            rng = torch.Generator().manual_seed(seed)
            mask = (torch.rand(size, generator=rng) < self.keep).float()
        else:
            mask = _mask_of(self.file, size)
        full = mask.expand(channels, *size).clone()
        model = (noise or self.default_noise()).build()
        return _module(Built(img_size=(channels, *size), mask=full, noise_model=model))


@dataclass(frozen=True)
class SuperResolution(_Base):
    """The measurement is a smaller image: filtered, then every factor-th pixel of it.

    Args:
        factor: by which height and width shrink
        filter: before the pixels are dropped
        padding: what stands beyond the border
    """

    factor: int = 2
    filter: Literal["bicubic", "bilinear", "gaussian", "sinc"] = "bicubic"
    padding: Literal["reflect", "circular", "replicate", "constant"] = "reflect"

    def __post_init__(self) -> None:
        tidy(self)
        check_integer("factor", self.factor, 2)
        check_choice("filter", self.filter, ("bicubic", "bilinear", "gaussian", "sinc"))
        check_choice("padding", self.padding, ("reflect", "circular", "replicate", "constant"))

    def check(self, size: Size, channels: int = 1) -> None:
        super().check(size, channels)
        if size[0] % self.factor or size[1] % self.factor:
            raise InputError(
                "size",
                given=f"{size[0]} x {size[1]} pixels with factor {self.factor}",
                expected=f"multiples of {self.factor}",
                remedy=f"For example size = {max(size) // self.factor * self.factor}.",
            )

    def default_noise(self) -> Noise:
        return Gaussian(0.01)

    def build(
        self, size: Size, channels: int = 1, seed: int = 0, noise: Noise | None = None
    ) -> nn.Module:
        """``learnreg.physics.Decimation``, for images of any size."""
        from .own import Decimation

        self.check(size, channels)
        kernel = subsampling_filter(self.filter, self.factor)
        if kernel.shape[-1] > min(size):
            raise InputError(
                "factor",
                given=f"{self.factor} with a filter of {kernel.shape[-1]} pixels",
                expected=f"a filter that fits into images of {size[0]} x {size[1]}",
                remedy="Choose a smaller factor or larger images.",
            )
        model = (noise or self.default_noise()).build()
        return _module(Decimation(kernel, self.factor, self.padding, model))


@dataclass(frozen=True)
class Demosaicing(_Base):
    """One colour per pixel, in the pattern of Bayer: what a camera measures."""

    colours: ClassVar[tuple[int, ...] | None] = (3,)

    def default_noise(self) -> Noise:
        return Gaussian(0.02)

    def build(
        self, size: Size, channels: int = 3, seed: int = 0, noise: Noise | None = None
    ) -> nn.Module:
        """``deepinv.physics.Demosaicing``."""
        from deepinv.physics import Demosaicing as Built

        self.check(size, channels)
        model = (noise or self.default_noise()).build()
        return _module(Built(img_size=(3, *size), noise_model=model))


@dataclass(frozen=True)
class MRI(_Base):
    """Magnetic resonance: some frequencies of the image, seen by one or several coils.

    Images are real (channels 1: a photograph, a magnitude) or complex (channels 2: real and
    imaginary part).

    Args:
        acceleration: one frequency is measured for so many
        mask: which: random lines ("gaussian": denser in the middle, "uniform"), lines at equal
            distances, or spokes ("radial")
        center_fraction: share of the lines in the middle, all of which are measured; 0.08, or 0.04
            from acceleration 8 on, when None
        file: a mask of one's own (.npy or picture, zero frequency in the middle), in the place of
            the three above
        coils: number of coils, simulated on a ring
        coil_file: complex sensitivities (coils, height, width) as .npy, in the place of coils
    """

    colours: ClassVar[tuple[int, ...] | None] = REAL_OR_COMPLEX

    acceleration: int = 4
    mask: Pattern = "gaussian"
    center_fraction: float | None = None
    file: str | None = None
    coils: int = 1
    coil_file: str | None = None

    def __post_init__(self) -> None:
        tidy(self)
        check_integer("acceleration", self.acceleration, 1)
        check_choice("mask", self.mask, ("gaussian", "uniform", "equispaced", "radial"))
        if self.center_fraction is not None:
            check_number("center_fraction", self.center_fraction, lambda v: 0 <= v < 1, "in [0, 1)")
        check_integer("coils", self.coils, 1)

    def default_noise(self) -> Noise:
        return Gaussian(0.02)

    def build(
        self, size: Size, channels: int = 1, seed: int = 0, noise: Noise | None = None
    ) -> nn.Module:
        """``deepinv.physics.MRI`` or ``MultiCoilMRI``, inside ``RealImages`` for real images."""
        from deepinv.physics import MRI as Single
        from deepinv.physics import MultiCoilMRI

        from .own import RealImages

        self.check(size, channels)
        if self.file is not None:
            mask = _mask_of(self.file, size)
        elif self.acceleration == 1:
            mask = torch.ones(size)
        else:
            pattern, share = self.mask, self.center_fraction
            mask = line_mask(pattern, size, self.acceleration, share, seed)

        model = (noise or self.default_noise()).build()
        own = {} if channels == 1 else {"noise_model": model}
        full = mask.expand(2, *size).clone()
        maps = self._maps(size)
        if maps is None:
            inner = Single(mask=full, img_size=(2, *size), **own)
        else:
            inner = MultiCoilMRI(mask=full, coil_maps=maps, img_size=(2, *size), **own)
        return _module(RealImages(inner, model) if channels == 1 else inner)

    def _maps(self, size: Size) -> Tensor | None:
        if self.coil_file is None:
            return None if self.coils == 1 else coil_maps(self.coils, size)
        maps = tensor_of(self.coil_file, "coil_file")
        if maps.dim() != 3 or tuple(maps.shape[1:]) != tuple(size):
            raise InputError(
                "coil_file",
                given=f"{self.coil_file} of shape {tuple(maps.shape)}",
                expected=f"(coils, {size[0]}, {size[1]}), as the images",
                remedy="Store the maps of one slice, for images of this size.",
            )
        return maps.to(torch.complex64)


@dataclass(frozen=True)
class CT(_Base):
    """Tomography: sums along rays, for square images.

    Args:
        angles: number of views
        geometry: of the rays
        arc: degrees over which the views are spread; 180 for parallel rays and 360 for a fan when
            None
        detectors: cells of the detector of a fan; as many as the diagonal has pixels when None, as
            parallel rays have in any case
        source: distance of the source of a fan from the middle, in widths of the image; the
            detector is as far on the other side
        file: angles in degrees (.npy), in the place of angles and arc
        normalized: divide by the norm of the operator, so that weights of regularizers mean what
            they mean for photographs
    """

    like_images: ClassVar[bool] = False

    angles: int = 60
    geometry: Literal["parallel", "fan"] = "parallel"
    arc: float | None = None
    detectors: int | None = None
    source: float = 3.0
    file: str | None = None
    normalized: bool = True

    def __post_init__(self) -> None:
        tidy(self)
        check_integer("angles", self.angles, 1)
        check_choice("geometry", self.geometry, ("parallel", "fan"))
        if self.arc is not None:
            check_number("arc", self.arc, lambda v: 0 < v <= 360, "degrees in (0, 360]")
        check_integer("detectors", self.detectors, 2, optional=True)
        check_number("source", self.source, lambda v: v > 1, "a number > 1: outside of the image")
        check_flag("normalized", self.normalized)
        if self.detectors is not None and self.geometry == "parallel":
            raise InputError(
                "detectors",
                given=f"{self.detectors} with parallel rays",
                expected="None: parallel rays have one for every pixel of the diagonal",
                remedy='Leave it out, or set geometry = "fan".',
            )

    def check(self, size: Size, channels: int = 1) -> None:
        super().check(size, channels)
        _square(size)

    def default_noise(self) -> Noise:
        return Gaussian(0.01)

    def views(self) -> Tensor:
        """The angles in degrees.

        Raises:
            InputError: a file that holds none.
        """
        return _angles(
            self.file, self.angles, self.arc or (180 if self.geometry[0] == "p" else 360)
        )

    def build(
        self, size: Size, channels: int = 1, seed: int = 0, noise: Noise | None = None
    ) -> nn.Module:
        """``deepinv.physics.Tomography`` with its exact adjoint."""
        from deepinv.physics import Tomography

        self.check(size, channels)
        width = size[0]
        with own_numbers():
            built = Tomography(
                angles=self.views(),
                img_width=width,
                circle=False,
                normalize=self.normalized,
                adjoint_via_backprop=True,
                fan_beam=self.geometry == "fan",
                fan_parameters=self._fan(width) if self.geometry == "fan" else None,
                noise_model=(noise or self.default_noise()).build(),
            )
        return _module(built)

    def _fan(self, width: int) -> dict[str, int | float]:
        """Lengths in pixels; the detector catches every ray through the image."""
        radius = self.source * width
        half = 2 * radius * math.tan(math.asin(width / math.sqrt(2) / radius))
        cells = self.detectors or math.ceil(math.sqrt(2) * width)
        return {
            "pixel_spacing": 1.0,
            "source_radius": radius,
            "detector_radius": radius,
            "n_detector_pixels": cells,
            "detector_spacing": 2 * half / (cells - 1),
        }


@dataclass(frozen=True)
class PET(_Base):
    """Emission tomography: counts along parallel rays, above a background, for square images.

    A ray through the middle of an image of ones gives ``counts`` on average.

    Args:
        angles: number of views
        arc: degrees over which the views are spread
        counts: what a ray through a width of ones gives
        background: expected counts of every ray without an image
        attenuation: line integral of attenuation through the middle of a disc of nine tenths of the
            width, by which rays are weakened
        resolution: full width at half maximum of the blur of the detectors, in pixels
    """

    like_images: ClassVar[bool] = False

    angles: int = 60
    arc: float = 180.0
    counts: float = 50.0
    background: float = 5.0
    attenuation: float = 0.0
    resolution: float = 0.0

    def __post_init__(self) -> None:
        tidy(self)
        check_integer("angles", self.angles, 1)
        check_number("arc", self.arc, lambda v: 0 < v <= 360, "degrees in (0, 360]")
        check_positive("counts", self.counts)
        check_positive("background", self.background)
        for name in ("attenuation", "resolution"):
            check_number(name, vars(self)[name], lambda v: v >= 0, "a number >= 0")

    def check(self, size: Size, channels: int = 1) -> None:
        super().check(size, channels)
        _square(size)

    def default_noise(self) -> Noise:
        return Poisson(1 / self.counts, self.background, normalized=False)

    def build(
        self, size: Size, channels: int = 1, seed: int = 0, noise: Noise | None = None
    ) -> nn.Module:
        """``deepinv.physics.Tomography``, divided by the width of the image; inside of an
        ``EmissionTomography`` where there is attenuation or blur.
        """
        from .emission import scanner

        self.check(size, channels)
        views = _angles(None, self.angles, self.arc)
        noise_model = (noise or self.default_noise()).build()
        return scanner(views, size[0], self.attenuation, self.resolution, noise_model)


def _angles(file: str | None, count: int, arc: float) -> Tensor:
    if file is None:
        return torch.linspace(0, arc, count + 1)[:-1]
    found = tensor_of(file, "file").squeeze()
    if found.dim() != 1 or found.is_complex():
        raise InputError(
            "file",
            given=f"{file} of shape {tuple(found.shape)}, {found.dtype}",
            expected="angles in degrees, (views,)",
            remedy="Store one angle for every view.",
        )
    return found


def _mask_of(file: str, size: Size) -> Tensor:
    """A mask (h, w) of zeros and ones."""
    found = tensor_of(file, "file").squeeze()
    if found.is_complex() or tuple(found.shape) != tuple(size):
        raise InputError(
            "file",
            given=f"{file} of shape {tuple(found.shape)}, {found.dtype}",
            expected=f"a real mask of the size of the images, {size[0]} x {size[1]}",
            remedy="Store a mask for images of this size, or set [data] size to that of the mask.",
        )
    mask = (found != 0).float()
    if not bool(mask.any()):
        raise InputError(
            "file", given=f"{file} without a measured entry", expected="some that are not zero"
        )
    return mask


def _square(size: Size) -> None:
    if size[0] != size[1]:
        raise InputError(
            "size",
            given=f"{size[0]} x {size[1]} pixels",
            expected="as many rows as columns: tomography is for square images",
            remedy="Crop or pad the images to squares.",
        )


def _module(physics: nn.Module) -> nn.Module:
    """For type checkers: deepinv has no types."""
    return physics


SETUPS: dict[str, type[_Base]] = {
    "denoising": Denoising,
    "blur": Blur,
    "inpainting": Inpainting,
    "superresolution": SuperResolution,
    "demosaicing": Demosaicing,
    "MRI": MRI,
    "CT": CT,
    "PET": PET,
}
"""Physics by the names of configuration files."""
