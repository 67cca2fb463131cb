"""Emission tomography: attenuation, resolution, and what detectors count besides.

    y ~ Poisson( c * H (g * x) / gain + r )

with a projector H, a Gaussian blur g for the resolution of the detectors, factors c of attenuation
and expected counts r of scatter and random coincidences. All of c, H, g and r are non-negative, so
that norms are proven (``operators.nonnegative``).
"""

from __future__ import annotations

import math
from typing import Protocol, cast

import torch
from deepinv.physics import LinearPhysics, Tomography
from deepinv.physics.functional import conv2d, conv_transpose2d
from torch import Tensor, nn

from ..core.asking import offers
from ..core.bounds import Kind
from ..core.errors import InputError, MissingPropertyError
from ..core.ranges import check_number, check_positive
from ..operators.foreign import LinearPhysicsLike
from ..operators.nonnegative import PROVEN, known_nonnegative

FWHM = 2 * math.sqrt(2 * math.log(2))
"""Full width at half maximum of a Gaussian of standard deviation one."""

REACH = 3.0
"""Standard deviations that a blur reaches to."""

SPREAD = 0.15
"""Standard deviation of simulated scatter over the width of the detector."""


class BackProjector(Protocol):
    """A projector with a filtered back-projection."""

    def fbp(self, y: Tensor) -> Tensor: ...


class EmissionTomography(LinearPhysics):
    """A x = c * H (g * x): blurred by g, projected by H, attenuated by c.

    x: (b, 1, h, w); y: as H makes it, for deepinv's Tomography (b, 1, detectors, views).

    Args:
        inner: H, a linear physics without negative entries such as ``deepinv.physics.Tomography``;
            its noise model is not used.
        attenuation: c, factors in [0, 1] that broadcast to y, (1, ...) for all images or (b, ...);
            none when None. Of a map of coefficients mu they are exp(-H mu): ``attenuated_by``.
        filter: g >= 0, (1, 1, k, k) with odd k, or one for every image; none when None. Of a width
            in pixels: ``resolution``.
        noise_model: of the measurements; ``Counts`` as a rule.

    Attenuation and filter are tensors per image as well: ``params={"attenuation": ...}``.

    Raises:
        InputError: negative or not finite tensors, factors above one.

    Example:
        >>> import torch, deepinv, learnreg as lr
        >>> H = deepinv.physics.Tomography(20, 32, circle=False, normalize=False)
        >>> blur = lr.physics.resolution(fwhm=2.0)
        >>> pet = lr.physics.EmissionTomography(H, filter=blur)
        >>> pet.A(torch.ones(1, 1, 32, 32)).shape[-1]
        20
    """

    attenuation: Tensor
    filter: Tensor

    def __init__(
        self,
        inner: nn.Module,
        attenuation: Tensor | None = None,
        filter: Tensor | None = None,
        noise_model: nn.Module | None = None,
    ) -> None:
        super().__init__(noise_model=noise_model)
        if not isinstance(inner, LinearPhysics):
            raise InputError(
                "inner",
                given=type(inner).__name__,
                expected="a deepinv LinearPhysics, the projector",
                remedy="For example deepinv.physics.Tomography.",
            )
        self.inner = cast(LinearPhysicsLike, inner)
        c = torch.ones(1, 1, 1, 1) if attenuation is None else attenuation
        g = torch.ones(1, 1, 1, 1) if filter is None else filter
        self.register_buffer("attenuation", _factors("attenuation", c, most=1.0))
        self.register_buffer("filter", _factors("filter", g))
        if g.dim() != 4 or g.shape[-1] % 2 == 0 or g.shape[-2] % 2 == 0:
            raise InputError(
                "filter",
                given=f"shape {tuple(g.shape)}",
                expected="(1, 1, k, k) with odd k",
            )

    def A(self, x: Tensor, **kwargs: object) -> Tensor:
        if kwargs:
            self.update_parameters(**kwargs)
        blurred = x * self.filter if self._pointwise else conv2d(x, self.filter, padding="constant")
        return self.attenuation * self.inner.A(blurred)

    def A_adjoint(self, y: Tensor, **kwargs: object) -> Tensor:
        if kwargs:
            self.update_parameters(**kwargs)
        back = self.inner.A_adjoint(self.attenuation * y)
        if self._pointwise:
            return back * self.filter
        return conv_transpose2d(back, self.filter, padding="constant")

    @property
    def _pointwise(self) -> bool:
        """Whether the filter has one number: deepinv warns of those."""
        return self.filter.shape[-2:] == (1, 1)

    def attenuated_by(self, coefficients: Tensor) -> EmissionTomography:
        """The same with c = exp(-H mu) for a map of attenuation coefficients.

        Args:
            coefficients: mu >= 0, (1, 1, h, w) or (b, 1, h, w), in one over the unit of length of
                H.

        Raises:
            InputError: negative or not finite.
        """
        with torch.no_grad():
            c = torch.exp(-self.inner.A(_factors("coefficients", coefficients)))
        other = EmissionTomography(cast(nn.Module, self.inner), c, self.filter, self.noise_model)
        return other

    def fbp(self, y: Tensor) -> Tensor:
        """Filtered back-projection of y / c, without regard to the blur.

        Raises:
            MissingPropertyError: a projector that has none.
        """
        inner: object = self.inner
        if not offers(inner, BackProjector):
            raise MissingPropertyError(
                "fbp",
                given=type(inner).__name__,
                expected="a projector with a filtered back-projection",
                remedy="Use deepinv.physics.Tomography.",
            )
        return inner.fbp(y / self.attenuation.clamp_min(torch.finfo(y.dtype).tiny))


def _known(physics: LinearPhysicsLike) -> Kind:
    """Products of matrices without negative entries have none: as well known as the projector."""
    emission = cast(EmissionTomography, physics)
    tensors = (emission.attenuation, emission.filter)
    if not all(bool((t >= 0).all()) for t in tensors):
        return Kind.UNKNOWN
    return known_nonnegative(emission.inner)


PROVEN[EmissionTomography] = _known


def _factors(name: str, t: Tensor, most: float = math.inf) -> Tensor:
    """Numbers in [0, most].

    Raises:
        InputError: anything else.
    """
    numbers = isinstance(t, Tensor) and t.is_floating_point()
    if not numbers or not bool((torch.isfinite(t) & (t >= 0) & (t <= most)).all()):
        raise InputError(
            name,
            given=f"{t.dtype} from {float(t.min()):.3g} to {float(t.max()):.3g}"
            if isinstance(t, Tensor) and t.numel() and not t.is_complex()
            else type(t).__name__,
            expected="a floating-point tensor of numbers >= 0"
            + (f" and <= {most:g}" if math.isfinite(most) else ""),
            remedy="Factors of attenuation are exp(-H mu): see attenuated_by."
            if name == "attenuation"
            else "",
        )
    return t


def resolution(fwhm: float) -> Tensor:
    """A Gaussian blur of full width ``fwhm`` at half maximum, in pixels, of sum one, (1, 1, k, k).

    Raises:
        InputError: fwhm not positive.
    """
    deviation = check_positive("fwhm", fwhm) / FWHM
    reach = max(1, math.ceil(REACH * deviation))
    axis = torch.arange(-reach, reach + 1, dtype=torch.float64)
    row = torch.exp(-0.5 * (axis / deviation).square())
    kernel = row[:, None] * row
    return (kernel / kernel.sum()).float()[None, None]


def scanner(
    views: Tensor, width: int, attenuation: float, blur: float, noise_model: nn.Module
) -> nn.Module:
    """Parallel rays through square images, divided by their width.

    Args:
        views: angles in degrees, (views,).
        width: of the images.
        attenuation: line integral through the middle of a disc; 0 for none.
        blur: full width at half maximum in pixels; 0 for none.
        noise_model: of the measurements.
    """
    plain = not attenuation and not blur
    rays = Tomography(
        angles=views,
        img_width=width,
        circle=False,
        normalize=False,
        adjoint_via_backprop=True,
        noise_model=noise_model if plain else None,
    )
    rays.register_buffer("operator_norm", torch.tensor(float(width)))
    rays.normalize = True
    if plain:
        return cast(nn.Module, rays)
    cells = rays.A(torch.zeros(1, 1, width, width)).shape[-2]
    factors = disc_attenuation(cells, width, attenuation)
    kernel = resolution(blur) if blur else None
    return EmissionTomography(rays, factors, kernel, noise_model)


def disc_attenuation(detectors: int, width: int, total: float, share: float = 0.9) -> Tensor:
    """c of a homogeneous disc in the middle of the image, (1, 1, detectors, 1): the same in every
    view of parallel beams.

    Args:
        detectors: number of detector cells, of the size of a pixel.
        width: of the image in pixels.
        total: line integral through the middle, >= 0: a ray there keeps exp(-total).
        share: of the width that the disc has.

    Raises:
        InputError: total negative.
    """
    check_number("attenuation", total, lambda v: v >= 0, "a number >= 0")
    places = torch.arange(detectors, dtype=torch.float64) - (detectors - 1) / 2
    chord = (1 - (places / (0.5 * share * width)).square()).clamp_min(0).sqrt()
    return torch.exp(-total * chord).float().view(1, 1, detectors, 1)


def contamination(trues: Tensor, fraction: float = 0.5) -> Tensor:
    """Expected counts of scatter and random coincidences for simulated scans.

    Half of them are random, the same everywhere; half are scatter, the trues blurred along the
    detector by ``SPREAD`` of its width. A small part of the mean is in every cell, so that there is
    a background everywhere, as a smooth likelihood needs.

    Args:
        trues: expected counts of the image, A x / gain, (b, c, detectors, views).
        fraction: mean of contamination over mean of trues, positive.

    Returns:
        (b, c, detectors, views), for ``physics(x, background=...)`` and for
        ``params={"background": ...}`` of the data term ``KL``.

    Raises:
        InputError: fraction not positive, negative trues, or none at all.
    """
    check_positive("fraction", fraction)
    if trues.dim() != 4 or bool((trues < 0).any()) or not bool(trues.flatten(1).any(dim=1).all()):
        raise InputError(
            "trues",
            given=f"shape {tuple(trues.shape)}, smallest entry {float(trues.min()):.3g}",
            expected="(b, c, detectors, views), numbers >= 0, not all of them zero",
            remedy="Pass the expected counts without noise: physics.A(x) / gain.",
        )
    cells = trues.shape[-2]
    places = torch.arange(cells, dtype=trues.dtype, device=trues.device)
    weights = torch.exp(-0.5 * ((places[:, None] - places) / (SPREAD * cells)).square())
    scatter = torch.einsum("ij,bcjv->bciv", weights / weights.sum(dim=1, keepdim=True), trues)

    mean = trues.mean(dim=(1, 2, 3), keepdim=True)
    scatter = scatter * (mean / scatter.mean(dim=(1, 2, 3), keepdim=True))
    return 0.5 * fraction * (scatter + mean)
