"""Kernels with parameters to learn: modules whose ``forward`` gives a kernel (images, channels, h,
w).

All but ``Free`` are >= 0 and sum to one, so that neither scale nor sign of an image can hide in the
kernel, and are centred on the middle pixel of an odd window. Their starts are refused where the
parameters would not move: the derivative of a Gaussian's tap one pixel off with respect to log std
is of the size of exp(-1 / (2 std^2)) / std^2, 1e-20 at std = 0.1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from ..core.asking import offers
from ..core.errors import InputError
from ..core.ranges import check_flag, check_integer, check_number, plain, plain_arguments, shown

SMALLEST_START = 0.5
"""Standard deviation in pixels below which a kernel's parameters do not move it."""

EDGE = 0.5
"""Standard deviation in pixels of the blur that makes lines and discs smooth in their parameters.
"""

FAR, NARROW = 10.0, 3.0
"""Logarithms of widths, and of half the ratio of two, beyond which kernels do not change any more:
floating point would end before.
"""

LEAST_SHARE = 1e-7
"""Of the largest entry of a softmax: what the smallest starts with."""


class Parametrization(Protocol):
    """What ``LearnedPhysics`` takes: a module that makes a tensor of its parameters."""

    def forward(self) -> Tensor: ...


class Stepped(Protocol):
    """A parametrization with natural steps of its own."""

    def units(self) -> Mapping[str, float]:
        """A natural step of every parameter, by its name; 1 for those that are left out."""
        ...


class Rebuilt(Protocol):
    """A parametrization that model files can hold."""

    def spec(self) -> dict[str, object]:
        """JSON-able arguments of a module with parameters of the same shapes, and its ``type``."""
        ...


def units_of(parametrization: nn.Module) -> dict[str, float]:
    """Natural steps of the parameters of a module, by name."""
    own = parametrization.units() if offers(parametrization, Stepped) else {}
    return {name: float(own.get(name, 1.0)) for name, _ in parametrization.named_parameters()}


class _Kernel(nn.Module):
    """A kernel >= 0 with sum one; ``weights`` gives it up to a factor."""

    def __init__(self, size: int | Sequence[int], channels: int, images: int) -> None:
        super().__init__()
        self.size = odd_size(size)
        self.channels = int(check_integer("channels", channels, 1))
        self.images = int(check_integer("images", images, 1))

    def weights(self) -> Tensor:
        """>= 0, (images, channels, h, w)."""
        raise NotImplementedError

    def forward(self) -> Tensor:
        """The kernel, (images, channels, h, w)."""
        found = self.weights()
        return found / found.sum(dim=(-2, -1), keepdim=True)

    def units(self) -> Mapping[str, float]:
        return {}

    def spec(self) -> dict[str, object]:
        return {
            "type": type(self).__name__,
            "size": list(self.size),
            "channels": self.channels,
            "images": self.images,
        }

    def extra_repr(self) -> str:
        shared = "" if self.channels == 1 else f", channels={self.channels}"
        own = "" if self.images == 1 else f", images={self.images}"
        return f"size={self.size[0]}x{self.size[1]}{shared}{own}"

    def _filled(self, *values: float) -> nn.Parameter:
        """The same start for every kernel, (images, channels) or (images, channels, len)."""
        start = torch.tensor(values, dtype=torch.get_default_dtype())
        many = start.expand(self.images, self.channels, len(values)).clone()
        return nn.Parameter(many[..., 0].clone() if len(values) == 1 else many)


class SimplexKernel(_Kernel):
    """k = softmax of one logit per tap.

    Args:
        size: height and width, odd; one number for both.
        channels: kernels per image; 1 is shared by all channels.
        images: 1 for all images, or one kernel for each.
        start: standard deviation in pixels of the Gaussian that it starts from, or a kernel (h, w).
            Where its entries are below 1e-7 of the largest, the logits start there.

    Raises:
        InputError: an even size, a start below 0.5 pixels or with entries that are not positive,
            from which no gradient leads away.
    """

    @plain_arguments
    def __init__(
        self,
        size: int | Sequence[int],
        channels: int = 1,
        images: int = 1,
        start: float | Tensor = 1.0,
    ) -> None:
        super().__init__(size, channels, images)
        kernel = _positive_start(start, self.size)
        logits = kernel.log()
        logits = (logits - logits.amax()).clamp_min(math.log(LEAST_SHARE))
        self.logits = nn.Parameter(_many(logits, self.images, self.channels))

    def weights(self) -> Tensor:
        # why the largest is taken off: sum one comes from ``forward``, and exp must not overflow
        return (self.logits - self.logits.detach().amax(dim=(-2, -1), keepdim=True)).exp()


class RadialKernel(_Kernel):
    """k = v_r^2, normalized, with one value v_r for every distance r from the middle: 6 for 5x5.

    Args:
        size, channels, images: as ``SimplexKernel``.
        start: standard deviation in pixels of the Gaussian that it starts from.

    Raises:
        InputError: an even size, a start below 0.5 pixels.
    """

    @plain_arguments
    def __init__(
        self,
        size: int | Sequence[int],
        channels: int = 1,
        images: int = 1,
        start: float = 1.0,
    ) -> None:
        super().__init__(size, channels, images)
        squares, self._places = _distances(self.size)
        values = torch.exp(-squares / (4 * _spread("start", start) ** 2))
        # why a floor: at v = 0 the derivative of v^2 vanishes
        values = values.clamp_min(math.sqrt(LEAST_SHARE)).to(torch.get_default_dtype())
        self.values = nn.Parameter(values.repeat(self.images, self.channels, 1))

    def weights(self) -> Tensor:
        chosen = self.values.square()[..., torch.tensor(self._places, device=self.values.device)]
        return chosen.view(*self.values.shape[:2], *self.size)

    def units(self) -> Mapping[str, float]:
        return {"values": 0.3}


class GaussianKernel(_Kernel):
    """k = exp(-1/2 u^T C^-1 u), normalized, at the middles of the pixels.

    Isotropic: C = std^2, theta = log std. Anisotropic: C = exp(2 S) with S = [[a + b, c], [c, a -
    b]], theta = (a, b, c) in coordinates (right, up): smooth everywhere, while two standard
    deviations and an angle would leave the angle without a derivative where the two are equal.

    Args:
        size, channels, images: as ``SimplexKernel``.
        std: start, in pixels; a pair (along, across) where anisotropic.
        anisotropic: see above.
        angle: start of the direction of the first standard deviation, degrees, counter-clockwise.

    Raises:
        InputError: an even size, a start below 0.5 pixels, a pair or an angle without anisotropic.
    """

    @plain_arguments
    def __init__(
        self,
        size: int | Sequence[int],
        channels: int = 1,
        images: int = 1,
        std: float | Sequence[float] = 1.0,
        anisotropic: bool = False,
        angle: float = 0.0,
    ) -> None:
        super().__init__(size, channels, images)
        self.anisotropic = check_flag("anisotropic", anisotropic)
        pair = isinstance(std, list | tuple)
        if not anisotropic and (pair or angle):
            raise InputError(
                "std" if pair else "angle",
                given=shown(std if pair else angle),
                expected="one standard deviation and no angle",
                remedy="Pass anisotropic=True.",
            )
        stds = tuple(std) if isinstance(std, list | tuple) else (std, std)
        if len(stds) != 2:
            raise InputError("std", given=shown(std), expected="a number, or two")
        along, across = (math.log(_spread("std", s)) for s in stds)
        if anisotropic:
            middle, apart = (along + across) / 2, (along - across) / 2
            turn = 2 * math.radians(check_number("angle", angle, lambda v: True, "degrees"))
            self.shape = self._filled(middle, apart * math.cos(turn), apart * math.sin(turn))
        else:
            self.log_std = self._filled(along)

    def weights(self) -> Tensor:
        if not self.anisotropic:
            up, right = _axes(self.size, self.log_std)
            inverse = torch.exp(-2 * self.log_std.clamp(-FAR, FAR))[..., None, None]
            return torch.exp(-0.5 * inverse * (right.square() + up.square()))
        up, right = _axes(self.size, self.shape)
        a, b, c = (part[..., None, None] for part in self.shape.unbind(-1))
        r = (b.square() + c.square() + torch.finfo(a.dtype).tiny).sqrt()
        # exp(-2 S) = exp(-2 a) (cosh 2r - sinh 2r / r (S - a))
        bent = 2 * r.clamp_max(NARROW)
        even, odd = torch.cosh(bent), torch.sinh(bent) / r
        form = (even - odd * b) * right.square() + (even + odd * b) * up.square()
        form = (form - 2 * odd * c * right * up).clamp_min(0)
        return torch.exp(-0.5 * torch.exp(-2 * a.clamp(-FAR, FAR)) * form)

    def std(self) -> Tensor:
        """Standard deviations in pixels, (images, channels), or (images, channels, 2): along and
        across.
        """
        with torch.no_grad():
            if not self.anisotropic:
                return self.log_std.exp()
            a, b, c = self.shape.unbind(-1)
            r = torch.hypot(b, c)
            return torch.stack([(a + r).exp(), (a - r).exp()], dim=-1)

    def angle(self) -> Tensor:
        """Of the larger one, degrees, counter-clockwise from the right, (images, channels)."""
        with torch.no_grad():
            if not self.anisotropic:
                return torch.zeros_like(self.log_std)
            _, b, c = self.shape.unbind(-1)
            return torch.rad2deg(torch.atan2(c, b) / 2)

    def spec(self) -> dict[str, object]:
        return {**super().spec(), "anisotropic": self.anisotropic}


class MotionKernel(_Kernel):
    """A straight line of length |d| through the middle, blurred with 0.5 pixels; theta = d.

    k is the integral of the blur's Gaussian along the line, Phi((s + l/2) / e) - Phi((s - l/2) / e)
    times exp(-t^2 / (2 e^2)) with s along and t across the line: smooth in d.

    Args:
        size, channels, images: as ``SimplexKernel``.
        length: start, in pixels, at least 1.
        angle: start, degrees, counter-clockwise from the right.

    Raises:
        InputError: an even size, a start that is a point or leaves the window.
    """

    @plain_arguments
    def __init__(
        self,
        size: int | Sequence[int],
        channels: int = 1,
        images: int = 1,
        length: float = 2.0,
        angle: float = 0.0,
    ) -> None:
        super().__init__(size, channels, images)
        most = max(self.size)
        check_number("length", length, lambda v: 1 <= v <= most, f"a number in [1, {most}]")
        turn = math.radians(check_number("angle", angle, lambda v: True, "degrees"))
        self.line = self._filled(length * math.cos(turn), length * math.sin(turn))

    def weights(self) -> Tensor:
        up, right = _axes(self.size, self.line)
        d, e = self.line[..., None, None, :].unbind(-1)
        length = (d.square() + e.square() + torch.finfo(d.dtype).tiny).sqrt()
        s = (right * d + up * e) / length
        t = (up * d - right * e) / length
        scale = math.sqrt(2) * EDGE
        reach = torch.erf((s + length / 2) / scale) - torch.erf((s - length / 2) / scale)
        return reach * torch.exp(-t.square() / (2 * EDGE**2)) + torch.finfo(d.dtype).tiny

    def length(self) -> Tensor:
        """In pixels, (images, channels)."""
        return self.line.detach().norm(dim=-1)

    def angle(self) -> Tensor:
        """Degrees in (-90, 90], counter-clockwise from the right, (images, channels)."""
        right, up = self.line.detach().unbind(-1)
        turned = torch.rad2deg(torch.atan2(up, right))
        turned = torch.where(turned <= -90, turned + 180, turned)
        return torch.where(turned > 90, turned - 180, turned)


class DiscKernel(_Kernel):
    """A disc, the kernel of a lens out of focus, whose edge is blurred with 0.5 pixels: k = 1 -
    Phi((r - R) / e), normalized; theta = log R.

    Args:
        size, channels, images: as ``SimplexKernel``.
        radius: start, in pixels.

    Raises:
        InputError: an even size, a start below 0.5 pixels.
    """

    @plain_arguments
    def __init__(
        self,
        size: int | Sequence[int],
        channels: int = 1,
        images: int = 1,
        radius: float = 1.0,
    ) -> None:
        super().__init__(size, channels, images)
        self.log_radius = self._filled(math.log(_spread("radius", radius)))

    def weights(self) -> Tensor:
        up, right = _axes(self.size, self.log_radius)
        r = (right.square() + up.square()).sqrt()
        edge = (r - self.log_radius.exp()[..., None, None]) / (math.sqrt(2) * EDGE)
        return torch.special.erfc(edge) + torch.finfo(r.dtype).tiny

    def radius(self) -> Tensor:
        """In pixels, (images, channels)."""
        return self.log_radius.detach().exp()


class Free(nn.Module):
    """Every entry of its own, without any constraint.

    For kernels it is ill-conditioned: in deblurring, fifty evaluations do not find one of 5x5 taps.

    Args:
        size: height and width of a kernel, odd; left out where ``start`` is a tensor.
        channels, images: as ``SimplexKernel``.
        start: standard deviation in pixels of the Gaussian that a kernel starts from, 0 for a
            single pixel; or the tensor itself, of any shape, also complex: a mask, coil maps.

    Raises:
        InputError: neither size nor a tensor, an even size, values that are not finite.
    """

    @plain_arguments
    def __init__(
        self,
        size: int | Sequence[int] | None = None,
        channels: int = 1,
        images: int = 1,
        start: float | Tensor = 1.0,
    ) -> None:
        super().__init__()
        if isinstance(start, Tensor):
            taps = _own_start(start, size)
        else:
            taps = _many(_gaussian_start(start, size), images, channels)
        self.is_complex = taps.is_complex()
        self.taps = nn.Parameter(torch.view_as_real(taps) if self.is_complex else taps)

    def forward(self) -> Tensor:
        """The tensor."""
        return torch.view_as_complex(self.taps) if self.is_complex else self.taps * 1

    def units(self) -> Mapping[str, float]:
        size = float(self.taps.detach().abs().amax())
        return {"taps": 0.1 * size if size > 0 else 1.0}

    def spec(self) -> dict[str, object]:
        shape = self.taps.shape[:-1] if self.is_complex else self.taps.shape
        return {"type": "Free", "shape": list(shape), "complex": self.is_complex}

    def extra_repr(self) -> str:
        return "x".join(map(str, self.spec()["shape"]))  # type: ignore[call-overload]  # a list


KINDS: dict[str, type[_Kernel]] = {
    "simplex": SimplexKernel,
    "radial": RadialKernel,
    "gaussian": GaussianKernel,
    "motion": MotionKernel,
    "disc": DiscKernel,
}
"""Kernels >= 0 by the names of configuration files."""


def in_words(t: Tensor) -> str:
    """A kernel by its sum and its standard deviations along its axes, another tensor by its range.

    >>> in_words(GaussianKernel(9, std=1.0)().detach())
    '9 x 9 pixels, sum 1.000, standard deviations 1.00 and 1.00 pixels, middle at (0.00, 0.00)'
    """
    if t.is_complex():
        return f"{_by(t)}, absolute values up to {float(t.abs().max()):.4g}"
    k, sides = t.double(), t.shape[-2:]
    if t.dim() != 4 or any(side % 2 == 0 for side in sides) or not bool((k >= 0).all()):
        return f"{_by(t)}, values from {float(t.min()):.4g} to {float(t.max()):.4g}"
    total = k.mean(dim=(0, 1))
    whole = float(total.sum())
    up, right = _axes((sides[0], sides[1]), total)
    total = total / max(whole, 1e-300)
    x, y = float((total * right).sum()), float((total * up).sum())
    a = float((total * (right - x).square()).sum())
    b = float((total * (up - y).square()).sum())
    c = float((total * (right - x) * (up - y)).sum())
    middle, apart = (a + b) / 2, math.hypot((a - b) / 2, c)
    stds = [math.sqrt(max(middle + s * apart, 0.0)) for s in (1, -1)]
    return (
        f"{sides[0]} x {sides[1]} pixels, sum {whole:.3f}, standard deviations {stds[0]:.2f} and "
        f"{stds[1]:.2f} pixels, middle at ({round(x, 2) + 0.0:.2f}, {round(y, 2) + 0.0:.2f})"
    )


def _by(t: Tensor) -> str:
    return " x ".join(map(str, t.shape)) + " numbers"


# --- starts ---------------------------------------------------------------------------------------


def odd_size(size: object) -> tuple[int, int]:
    """Height and width of a window with a middle.

    Raises:
        InputError: an even number, or one that is none.
    """
    both = tuple(size) if isinstance(size, list | tuple | torch.Size) else (size, size)
    if len(both) != 2:
        raise InputError("size", given=shown(size), expected="one odd integer, or two")
    for side in map(plain, both):
        # why 3: deepinv has no adjoint of a padded kernel of one pixel
        check_number("size", side, lambda v: v >= 3, "odd integers >= 3", integer=True)
        if int(str(side)) % 2 == 0:
            raise InputError(
                "size",
                given=f"{side} pixels",
                expected="an odd number, so that the kernel has a middle",
                remedy=f"For example size={int(str(side)) + 1}.",
            )
    return int(str(both[0])), int(str(both[1]))


def _spread(name: str, value: object) -> float:
    """A start from which a kernel can move.

    Raises:
        InputError: below half a pixel.
    """
    return check_number(
        name,
        value,
        lambda v: v >= SMALLEST_START,
        f"a number >= {SMALLEST_START:g} pixel: from a narrower kernel, nearly a single pixel, no "
        f"gradient leads away; start at {SMALLEST_START:g} or more, it may become narrower",
    )


def _axes(size: tuple[int, int], like: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates (up, right) of the pixels from the middle, (h, 1) and (1, w)."""
    h, w = size
    up = h // 2 - torch.arange(h, dtype=like.dtype, device=like.device)
    right = torch.arange(w, dtype=like.dtype, device=like.device) - w // 2
    return up[:, None], right[None, :]


def _distances(size: tuple[int, int]) -> tuple[Tensor, list[int]]:
    """The squared distances that occur, float64, and the number of each pixel's among them."""
    up, right = _axes(size, torch.zeros((), dtype=torch.float64))
    squares, places = torch.unique((up.square() + right.square()).flatten(), return_inverse=True)
    return squares, places.tolist()


def _gaussian(std: float, size: tuple[int, int]) -> Tensor:
    """(h, w), float64, largest entry 1; a single pixel for std 0."""
    up, right = _axes(size, torch.zeros((), dtype=torch.float64))
    squares = up.square() + right.square()
    return torch.exp(-squares / (2 * std**2)) if std else (squares == 0).double()


def _many(start: Tensor, images: object, channels: object) -> Tensor:
    """(h, w) for every channel of every image, in the default type."""
    count = check_integer("images", images, 1), check_integer("channels", channels, 1)
    return start.to(torch.get_default_dtype()).repeat(*count, 1, 1)


def _positive_start(start: float | Tensor, size: tuple[int, int]) -> Tensor:
    """(h, w), float64, > 0.

    Raises:
        InputError: another shape, entries that are not positive.
    """
    if not isinstance(start, Tensor):
        return _gaussian(_spread("start", start), size).clamp_min(1e-300)
    kernel = start.detach().double().squeeze()
    if tuple(kernel.shape) != size or not bool((kernel > 0).all() & kernel.isfinite().all()):
        raise InputError(
            "start",
            given=f"a tensor of shape {tuple(start.shape)} with smallest entry "
            f"{float(start.amin()) if start.numel() else math.nan:g}",
            expected=f"positive entries, {size[0]} x {size[1]}: from a single pixel no gradient of "
            "a softmax leads away",
            remedy="Add a little to all entries, or start from start=1.0.",
        )
    return kernel


def _gaussian_start(start: object, size: object) -> Tensor:
    """(h, w), float64, with sum 1."""
    if size is None:
        raise InputError(
            "size",
            given=None,
            expected="an odd integer, or start=... a tensor",
            remedy="For example Free(5).",
        )
    std = check_number("start", start, lambda v: v >= 0, "a number >= 0, or a tensor")
    kernel = _gaussian(std, odd_size(size))
    return kernel / kernel.sum()


def _own_start(start: Tensor, size: object) -> Tensor:
    """A copy of a start in a floating-point type.

    Raises:
        InputError: another size than the one given, values that are not finite.
    """
    wanted = None if size is None else odd_size(size)
    finite = bool(torch.isfinite(start).all()) and start.numel() > 0
    if not finite or (wanted is not None and tuple(start.shape[-2:]) != wanted):
        raise InputError(
            "start",
            given=f"a tensor of shape {tuple(start.shape)}"
            + ("" if finite else " with values that are not finite, or none at all"),
            expected="finite values"
            + ("" if wanted is None else f" of shape (..., {wanted[0]}, {wanted[1]})"),
            remedy="Leave out size, and pass the tensor to start from.",
        )
    kept = start.is_floating_point() or start.is_complex()
    taps = start.detach().clone() if kept else start.detach().to(torch.get_default_dtype())
    return taps[None, None] if wanted is not None and taps.dim() == 2 else taps
