"""Fields of Experts: a learned filter bank under a smoothed absolute value."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import ClassVar, Literal, NamedTuple, TypeVar, cast, get_args

import torch
from torch import Tensor, nn

from ..core.bounds import Bound, Curvature
from ..core.curvature import MeanCurvature
from ..core.errors import InputError
from ..core.ranges import check_choice, check_flag, check_integer, check_number, plain_arguments
from ..operators.convolutions import (
    Padding,
    adjoint_kernels,
    correlate,
    mean_symbol,
    responses,
    sandwich,
    symbol_bound,
)
from . import foe_certificates as certificates
from . import profiles
from .base import LinearizedHessian, Regularizer, positive
from .derivatives import differentiable_gradient, differentiable_value
from .foe_mixed import MixedProduct

T = TypeVar("T")

Init = Literal["auto", "dct", "opponent", "random"]

DIFFERENCES = 1.5
"""Start weight of patterns of colour differences, over that of brightness: photographs change less
in colour. Measured at noise of 0.05, 0.1 and 0.2, where 1 and 2 were never much better."""

CHUNK_BYTES = 2**21
"""Feature maps are made for as many images, or rows of one image, at a time as fit here: they stay
in the cache, and memory stays bounded whatever the size of the images."""


class Bank(NamedTuple):
    """Kernels made ready for one theta: forward c_k / nu_k and adjoint w_k c_k."""

    forward: Tensor
    adjoint: Tensor


class FoE(Regularizer):
    """R(x) = sum_{k,p} e^{t_0+t_k} [phi_k((c_k * x)_p) - nu_k], phi_k(t) = sqrt(t^2 + nu_k^2), nu_k
    = least + e^{s_k}.

    ``*`` is cross-correlation; weights and smoothing are positive through exp. theta = (t_0,
    t_1..t_K, s_1..s_K, filters row-major), d = 1 + 2 K + K c s^2. The constants nu_k are subtracted
    so that R(constant) is 0 for zero-mean filters. Roth and Black, Fields of Experts, IJCV 2009;
    Chen, Ranftl and Pock, IEEE TIP 2014, for its bilevel learning.

    Args:
        filters: K.
        size: s, odd.
        channels: c of the images.
        zero_mean: use c_k minus its mean over each channel, by parametrization.
        padding: ``reflect`` (edge pixel not repeated) or ``zero``.
        init: ``dct`` starts from the K lowest non-constant cosine patterns of the smallest odd
            window that has so many, centred, with weights growing like the root of their frequency
            (the best of the powers 0, 1/2, 1 when measured on photographs), the channels taking
            turns; ``opponent`` from the same patterns of mixtures of all channels, their cosine
            transform: of red, green and blue the brightness (1, 1, 1) and the colour differences
            (1, 0, -1) and (1, -2, 1), normalized, which are nearly uncorrelated in photographs
            (Ohta, Kanade and Sakai, Computer Graphics and Image Processing 13 (1980)); ``random``
            from Xavier-normal filters minus their mean, drawn from ``seed``; ``auto`` is
            ``opponent`` for three and more channels, else ``dct`` (two channels are mostly the
            parts of complex images, which no mixture serves better).
        weight: mean of the start values of e^{t_0 + t_k}; 0.15 / K when None, and 1 + 1.5 (c - 1)
            times as much for ``opponent``: then brightness is smoothed as a grey image would be,
            and each of the differences with 1.5 times the weight.
        smoothing: start value of nu_k, in intensity units.
        least_smoothing: ``least`` above. One grey level by default: less would not change the
            pictures visibly, but L, and with it the work of every solve, grows like 1 / nu. 0
            leaves nu_k = e^{s_k}.
        seed: of the random filters.

    Raises:
        InputError: a value out of range; more filters than non-constant patterns and not
            ``random``.
    """

    pictures = True

    __fingerprint_exclude__: ClassVar = ("_cache", "_cached_at")

    @plain_arguments
    def __init__(
        self,
        filters: int = 24,
        size: int = 7,
        *,
        channels: int = 1,
        zero_mean: bool = True,
        padding: Padding = "reflect",
        init: Init = "auto",
        weight: float | None = None,
        smoothing: float = 0.01,
        least_smoothing: float = 1 / 255,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value in (("filters", filters), ("size", size), ("channels", channels)):
            check_number(name, value, lambda v: v >= 1, "a positive integer", integer=True)
        check_integer("seed", seed, 0)
        check_flag("zero_mean", zero_mean)
        if size % 2 == 0:
            raise InputError(
                "size", given=size, expected="an odd filter size", remedy=f"Use {size + 1}."
            )
        check_choice("padding", padding, get_args(Padding))
        check_choice("init", init, get_args(Init))
        if init == "auto":
            init = "opponent" if channels > 2 else "dct"
        kernels, tilt = _initial_kernels(init, filters, size, channels, seed)
        positive("smoothing", smoothing)
        check_number(
            "least_smoothing",
            least_smoothing,
            lambda v: 0 <= v < smoothing,
            f"a number in [0, smoothing={smoothing:g})",
        )
        self.zero_mean, self.padding, self.least_smoothing = (
            bool(zero_mean),
            padding,
            float(least_smoothing),
        )
        if weight is None:
            mixtures = 1 + DIFFERENCES * (channels - 1) if init == "opponent" else 1
            weight = mixtures * 0.15 / filters
        half = 0.5 * math.log(positive("weight", weight))
        self.log_scale = nn.Parameter(torch.tensor(half))
        self.log_weights = nn.Parameter(half + tilt)
        self.log_smoothings = nn.Parameter(
            torch.full((filters,), math.log(smoothing - least_smoothing))
        )
        self.kernels = nn.Parameter(kernels)
        self._cache: dict[str, object] = {}
        self._cached_at: list[Tensor] = []

    # --- theta made ready -------------------------------------------------------------------------

    def _centred(self) -> Tensor:
        return (
            self.kernels - self.kernels.mean(dim=(-2, -1), keepdim=True)
            if self.zero_mean
            else self.kernels
        )

    def _differentiable(self) -> tuple[Tensor, Tensor, Tensor]:
        """Effective kernels (K, c, s, s), weights (K,), smoothings (K,), with their graph to
        theta.
        """
        return (
            self._centred(),
            (self.log_scale + self.log_weights).exp(),
            self.least_smoothing + self.log_smoothings.exp(),
        )

    @torch.no_grad()
    def effective(self) -> tuple[Tensor, Tensor, Tensor]:
        """Effective kernels (K, c, s, s), weights (K,), smoothings (K,), detached."""
        kernels, weights, smoothings = self._differentiable()
        return kernels.detach(), weights.detach(), smoothings.detach()

    def _remember(self, name: str, make: Callable[[], T]) -> T:
        """``make()``, kept until a parameter changes; made anew on a GPU, where comparing would
        stall the queue.
        """
        if self.kernels.is_cuda:
            return make()
        now, then = [p.detach() for p in self.parameters()], self._cached_at
        # by value: fused optimizers and writes through ``.data`` leave no trace in version counters
        if not then or not all(
            a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(now, then, strict=True)
        ):
            self._cache.clear()
            self._cached_at = [p.clone() for p in now]
        if name not in self._cache:
            self._cache[name] = make()

        # why a cast: a name stands for one type of value
        return cast(T, self._cache[name])

    def _bank(self) -> Bank:
        def make() -> Bank:
            c, w, nu = self.effective()
            return Bank(
                (c / nu.view(-1, 1, 1, 1)).contiguous(), adjoint_kernels(c * w.view(-1, 1, 1, 1))
            )

        return self._remember("bank", make)

    def _check(self, x: Tensor) -> None:
        c, s = self.kernels.shape[1], self.kernels.shape[-1]
        if x.dim() != 4 or x.shape[1] != c or min(x.shape[-2:]) < s:
            raise InputError(
                "x",
                given=f"shape {tuple(x.shape)}",
                expected=f"(b, {c}, h, w) with h, w >= {s}",
                remedy="Match the channels and use images at least as large as the filters."
                if x.dim() == 4
                else "Filters are two-dimensional: use TV or HuberTV for signals and volumes.",
            )
        if x.dtype != self.kernels.dtype:
            raise InputError(
                "x",
                given=x.dtype,
                expected=f"{self.kernels.dtype}, as the parameters",
                remedy="Convert the images, or the regularizer with .to(dtype).",
            )

    @property
    def effort(self) -> float:
        """Measured: 24 filters 7x7 take as long as 250 operations on the image."""
        k, c, s, _ = self.kernels.shape
        return 0.2 * k * c * s * s

    @property
    def reach(self) -> int:
        """A pixel meets those in its windows of s pixels: s - 1 in every direction."""
        return int(self.kernels.shape[-1]) - 1

    # --- the function -----------------------------------------------------------------------------

    @differentiable_value
    def value(self, x: Tensor) -> Tensor:
        self._check(x)
        (_, w, nu), total = self.effective(), x.new_zeros(x.shape[0])
        scale = (w * nu).view(-1, 1, 1)
        for i, _, maps in self._responses(x):
            total[i] += (scale * profiles.size_minus_one(maps)).flatten(1).sum(dim=1)
        return total

    def _responses(self, x: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
        """u_k = C_k x / nu_k tile by tile."""
        return responses(x, self._bank().forward, self.padding, CHUNK_BYTES)

    def _sandwich(self, x: Tensor, between: Callable[[Tensor, slice, slice], Tensor]) -> Tensor:
        """sum_k w_k C_k^T between(u)_k."""
        bank = self._bank()
        return sandwich(x, bank.forward, bank.adjoint, self.padding, CHUNK_BYTES, between)

    def formula(self, x: Tensor) -> Tensor:
        self._check(x)
        kernels, w, nu = self._differentiable()
        squares = (correlate(x, kernels, self.padding) / nu.view(-1, 1, 1)).square()
        return profiles.rise(squares).sum(dim=(-2, -1)) @ (w * nu)

    @differentiable_gradient
    def grad(self, x: Tensor) -> Tensor:
        self._check(x)
        return self._sandwich(x, lambda maps, i, r: profiles.slope_(maps))

    def linearize(self, x: Tensor) -> LinearizedHessian:
        self._check(x)
        weights = x.new_empty(x.shape[0], self.kernels.shape[0], *x.shape[-2:])
        for i, r, maps in self._responses(x):
            profiles.curvature_(maps, weights[i, :, r])
        return LinearizedHessian(self._product, weights)

    def _product(self, v: Tensor, curvature: Tensor) -> Tensor:
        """sum_k (w_k / nu_k) C_k^T (curvature_k * C_k v)."""
        return self._sandwich(v, lambda maps, i, r: maps.mul_(curvature[i, :, r]))

    def _features(self, x: Tensor) -> Tensor:
        """u_k = C_k x / nu_k of all images at once, (b, K, h, w)."""
        self._check(x)
        return correlate(x, self._bank().forward, self.padding)

    def dual_start(self, x: Tensor) -> tuple[Tensor, ...]:
        return (profiles.slope(self._features(x)),)

    def dual_linearize(self, x: Tensor, dual: tuple[Tensor, ...]) -> LinearizedHessian:
        return LinearizedHessian(self._product, profiles.dual_curvature(self._features(x), dual[0]))

    def dual_update(self, x: Tensor, dual: tuple[Tensor, ...], move: Tensor) -> tuple[Tensor, ...]:
        return (profiles.dual_step(self._features(x), dual[0], self._features(move)),)

    def directional(self, x: Tensor, v: Tensor) -> Tensor:
        self._check(x)
        return MixedProduct.apply(x, v, *self._differentiable(), self.padding, CHUNK_BYTES)

    def mean_curvature(self, x: Tensor) -> MeanCurvature:
        """Weights (w_k / nu_k) / (1 + u^2): the geometric mean of the Hessian, s^-3, and of its
        majorant, 1 / s.
        """
        self._check(x)
        bank, (kernels, w, nu) = self._bank(), self.effective()
        squares = self._remember(
            "squares", lambda: adjoint_kernels(kernels.square() * (w / nu).view(-1, 1, 1, 1))
        )
        total = x.new_zeros(x.shape[0], kernels.shape[0])

        def soft(u: Tensor, i: slice, r: slice) -> Tensor:
            u = u.square_().add_(1).reciprocal_()
            total[i] += u.sum(dim=(-2, -1))
            return u

        diagonal = sandwich(x, bank.forward, squares, self.padding, CHUNK_BYTES, soft)
        shape = (x.shape[-2], x.shape[-1])
        return MeanCurvature(
            diagonal, mean_symbol(kernels, total / (shape[0] * shape[1]) * (w / nu), shape)
        )

    # --- what is known of it ----------------------------------------------------------------------

    def _strength(self) -> float:
        """S, a bound of || sum_k (w_k / nu_k) C_k^T C_k ||."""

        def make() -> float:
            c, w, nu = self.effective()
            return symbol_bound(c, w.double() / nu.double(), self.padding)

        return self._remember("strength", make)

    def bounds(self) -> Curvature:
        return Curvature(Bound.exact(0.0), Bound.proven(self._strength()))

    def hessian_lipschitz(self) -> Bound:
        return certificates.hessian_lipschitz(*self.effective(), self.padding, self._strength())

    def mixed_lipschitz(self, reach: float = 1.0) -> Bound:
        return certificates.mixed_lipschitz(
            *self.effective(), self.padding, self._strength(), reach
        )

    def hessian_change(self, x: Tensor, q: Tensor, radius: Tensor) -> Tensor:
        return certificates.hessian_change(
            *self.effective(), self.padding, self._strength(), x, q, radius
        )

    def mixed_change(self, x: Tensor, q: Tensor, radius: Tensor) -> Tensor:
        return certificates.mixed_change(
            *self.effective(), self.padding, x, q, radius, self.zero_mean
        )

    def mixed_norm(self, x: Tensor, radius: Tensor) -> Tensor:
        return certificates.mixed_norm(*self.effective(), self.padding, x, radius, self.zero_mean)

    def units(self) -> Tensor:
        """1 for logarithms, 1 / sqrt(s) for filter entries (the deviation of a Xavier-normal
        one).
        """
        parts = [
            torch.full((p.numel(),), p.shape[-1] ** -0.5 if p is self.kernels else 1.0)
            for p in self.parameters()
            if p.requires_grad
        ]
        return torch.cat(parts)

    def scaling(self) -> Tensor:
        """t_0, or all t_k where it is kept fixed."""
        common = self.log_scale if self.log_scale.requires_grad else self.log_weights
        return self._ones_for([common])

    def filters(self) -> dict[str, Tensor]:
        kernels, weights, smoothings = self.effective()
        return {"kernels": kernels, "weights": weights, "smoothings": smoothings}

    def spec(self) -> dict[str, object]:
        k, c, s, _ = self.kernels.shape
        return {
            "type": "FoE",
            "filters": k,
            "size": s,
            "channels": c,
            "zero_mean": self.zero_mean,
            "padding": self.padding,
            "init": "random",
            "least_smoothing": self.least_smoothing,
            "smoothing": self.least_smoothing + 1.0,
        }

    def extra_repr(self) -> str:
        k, c, s, _ = self.kernels.shape
        return (
            f"filters={k}, size={s}x{s}, channels={c}, "
            f"zero_mean={self.zero_mean}, padding={self.padding!r}"
        )


def _initial_kernels(
    init: str, filters: int, size: int, channels: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Start values (K, c, s, s) with zero mean, and the tilt of the log weights (K,); weights have
    mean 1.
    """
    if init == "random":
        generator = torch.Generator().manual_seed(seed)
        kernels = math.sqrt(1.0 / size) * torch.randn(
            filters, channels, size, size, generator=generator
        )
        return kernels - kernels.mean(dim=(-2, -1), keepdim=True), torch.zeros(filters)
    available = (size * size - 1) * channels
    if filters > available:
        raise InputError(
            "filters",
            given=filters,
            expected=f"at most {available} for init={init!r} and size {size}",
            remedy="Use init='random' or larger filters.",
        )
    window = next(n for n in range(1, size + 1, 2) if (n * n - 1) * channels >= filters)
    basis = _cosines(window)
    mixtures = _cosines(channels) if init == "opponent" else torch.eye(channels).double()
    patterns = sorted(
        ((i, j) for i in range(window) for j in range(window) if i + j > 0),
        key=lambda ij: (ij[0] ** 2 + ij[1] ** 2, ij),
    )
    kernels = torch.zeros(filters, channels, size, size, dtype=torch.float64)
    inside = slice((size - window) // 2, (size + window) // 2)
    frequency = torch.zeros(filters)
    for k in range(filters):
        i, j = patterns[k // channels]
        # why added: a zero of the mixture times a negative entry would be -0
        kernels[k, :, inside, inside] += mixtures[k % channels].view(-1, 1, 1) * torch.outer(
            basis[i], basis[j]
        )
        frequency[k] = math.hypot(i, j)
    tilt = 0.5 * frequency.log()
    if init == "opponent":
        tilt[torch.arange(filters) % channels > 0] += math.log(DIFFERENCES)
    return kernels.float(), tilt - tilt.exp().mean().log()


def _cosines(n: int) -> Tensor:
    """The orthonormal cosine transform (n, n), row by row, float64."""
    places = torch.arange(n, dtype=torch.float64)
    basis = torch.cos(math.pi * places[:, None] * (places[None, :] + 0.5) / n)
    return basis / basis.norm(dim=1, keepdim=True)
