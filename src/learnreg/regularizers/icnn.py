"""Input-convex networks as saddle points: every activation becomes a convex set, and the data term
stays untouched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Self, TypedDict, Unpack, get_args

import torch
from torch import Tensor, nn

from ..convex import Convex, Epigraph, Hinge, Squares, Zero
from ..core.errors import InputError, MissingPropertyError
from ..core.ranges import check_choice, check_flag, check_integer, check_number, plain_arguments
from ..operators.convolutions import Padding, adjoint_kernels, correlate, correlate_adjoint
from ..operators.fields import window_norm
from . import icnn_layers as layer
from .base import positive
from .saddle import SaddleRegularizer, images, non_negative


class Settings(TypedDict, total=False):
    """What ``from_weights`` passes on to the constructor."""

    head_size: int
    pooling: int
    slope: float
    rounding: float
    curvature: float
    image_size: Sequence[int] | None
    zero_mean: bool
    padding: Padding


class ICNN(SaddleRegularizer):
    """R(u) = sum relu_h( w (W_L P z_L + b_L) ),  z_1 = s(W_0 u + b_0),  z_{k+1} = s(W_k z_k + b_k),
    k = 1..L-1.

    s is a leaky ReLU, P means over windows, the sum is over units and positions. W_1, ..., W_L, w
    have no negative entries, so R is convex. Lifted: v = (z_1, ..., z_L) with (W_{k-1} z_{k-1} +
    b_{k-1}, z_k) in the epigraph of s and free z; nothing is lost, because what comes later is
    nondecreasing in z. Dual blocks: a pair (s_k, t_k) for every epigraph, (b, 2, channels, h, w),
    and one block for the last layer. Mukherjee et al., arXiv 2008.02839, for the regularizer;
    Ehrhardt, Mukherjee and Wong, arXiv 2410.12441, for the lifting (there the last layer is dense).

    theta = (W_0 before centring, log w, square roots of W_1..W_L, b_0..b_L): nothing needs to be
    projected.

    With ``rounding`` om > 0 the network is differentiable: s(a) = slope a + (1 - slope) relu_om(a)
    with relu_om(a) = a^2/(2 om) on [0, om], and the last activation is relu_h with h = om
    ``weight``. theta must not enter relu_h, so it is w relu_om(t) exactly for w = ``weight``, the
    start value, and differs by at most om |w - weight| / 2 otherwise.

    Images may have any size: the last layer is a convolution, unless ``image_size`` asks for a
    fully connected one. Means are over windows that may reach over the lower and right edge, where
    there are zeros.

    Args:
        channels: feature maps of every hidden layer.
        size: s of the filters s x s of W_0..W_{L-1}, odd.
        layers: L, the number of hidden layers.
        pooling: side of the windows of P.
        units: outputs of W_L; as many as channels when None.
        head_size: side of the filters of W_L, odd.
        slope: of the leaky ReLU left of zero, in [0, 1).
        rounding: om above, >= 0.
        curvature: mu >= 0 adds mu/2 |z_k|^2 for every k. R is then a minimum over z, no longer the
            network's value.
        in_channels: of the images.
        image_size: (h, w) makes W_L fully connected, for images of this size only.
        zero_mean: the filters of W_0 minus their mean, by parametrization.
        padding: continuation of the images, ``reflect`` or ``zero``; feature maps are continued by
            zero.
        weight: start value of w; 0.3 pooling^2 / units when None.
        seed: of the random start.

    Raises:
        InputError: a value out of range.
    """

    @plain_arguments
    def __init__(
        self,
        channels: int = 32,
        size: int = 5,
        *,
        layers: int = 1,
        pooling: int = 16,
        units: int | None = None,
        head_size: int = 1,
        slope: float = 0.2,
        rounding: float = 0.0,
        curvature: float = 0.0,
        in_channels: int = 1,
        image_size: Sequence[int] | None = None,
        zero_mean: bool = True,
        padding: Padding = "reflect",
        weight: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        units = channels if units is None else units
        for name, value in (
            ("channels", channels),
            ("size", size),
            ("layers", layers),
            ("pooling", pooling),
            ("units", units),
            ("head_size", head_size),
            ("in_channels", in_channels),
        ):
            check_number(name, value, lambda v: v >= 1, "a positive integer", integer=True)
        for name, value in (("size", size), ("head_size", head_size)):
            check_number(name, value, lambda v: v % 2 == 1, "an odd filter size", integer=True)
        check_number("slope", slope, lambda v: 0 <= v < 1, "a number in [0, 1)")
        check_choice("padding", padding, get_args(Padding))
        check_integer("seed", seed, 0)
        self.pooling, self.slope, self.padding = pooling, float(slope), padding
        self.rounding, self.curvature = (
            non_negative("rounding", rounding),
            non_negative("curvature", curvature),
        )
        self.zero_mean, self.image_size = check_flag("zero_mean", zero_mean), _sides(image_size)
        self.weight = positive("weight", 0.3 * pooling**2 / units if weight is None else weight)
        head = (
            (head_size,) * 2
            if self.image_size is None
            else tuple(layer.pooled(n, pooling) for n in self.image_size)
        )
        self._start(seed, (channels, in_channels, size, size), layers, (units, channels, *head))

    def _start(self, seed: int, first: tuple[int, ...], layers: int, head: tuple[int, ...]) -> None:
        """Random filters of norm one; the later weights of a unit are random and sum to one; no
        offsets.
        """
        g = torch.Generator().manual_seed(seed)
        kernels = torch.randn(first, generator=g)
        if self.zero_mean and first[-1] > 1:
            kernels = kernels - kernels.mean(dim=(-2, -1), keepdim=True)
        self.kernels = nn.Parameter(kernels / kernels.flatten(1).norm(dim=1).view(-1, 1, 1, 1))
        shapes = [(first[0], first[0], *first[2:])] * (layers - 1) + [head]
        weights = [torch.rand(shape, generator=g) for shape in shapes]
        self.roots = nn.ParameterList(
            nn.Parameter((w / w.flatten(1).sum(dim=1).view(-1, 1, 1, 1)).sqrt()) for w in weights
        )
        self.biases = nn.ParameterList(
            nn.Parameter(torch.zeros(n)) for n in [first[0]] * layers + [head[0]]
        )
        self.log_weights = nn.Parameter(torch.full((head[0],), math.log(self.weight)))

    @classmethod
    def from_weights(
        cls,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor],
        last: Tensor,
        **settings: Unpack[Settings],
    ) -> Self:
        """A network with given weights, for example published ones.

        Args:
            weights: W_0 (channels, in_channels, s, s), W_1..W_{L-1} (channels, channels, s, s), W_L
                (units, channels, n, n), or (units, channels, ceil(h / pooling), ceil(w / pooling))
                with ``image_size=(h, w)``.
            biases: b_0..b_L.
            last: w (units,), positive.
            settings: ``pooling``, ``slope``, ``rounding``, ``curvature``, ``image_size``,
                ``zero_mean``, ``padding``.

        Raises:
            InputError: negative or infinite weights, or shapes that do not fit each other.
        """
        if len(weights) < 2 or weights[0].dim() != 4 or weights[-1].dim() != 4:
            raise InputError(
                "weights",
                given=[tuple(w.shape) for w in weights],
                expected="W_0, ..., W_L with L >= 1, each with four dimensions",
            )
        for k, w in enumerate(weights[1:], start=1):
            if not bool((w >= 0).all()):
                raise InputError(
                    f"weights[{k}]",
                    given=f"entries down to {float(w.min()):.3g}",
                    expected="numbers >= 0, so that the network is convex",
                    remedy="Clip them, w.clamp_min(0), if this is what the network was trained "
                    "with.",
                )
        if not bool((last > 0).all()):
            raise InputError(
                "last",
                given=f"entries down to {float(last.min()):.3g}",
                expected="positive numbers",
                remedy="Leave out units without weight.",
            )
        first, head = weights[0].shape, weights[-1].shape
        if settings.get("image_size") is None:
            settings = {"head_size": head[-1], **settings}
        made = cls(
            first[0],
            first[-1],
            layers=len(weights) - 1,
            units=head[0],
            in_channels=first[1],
            weight=float(last.mean()),
            **settings,
        )
        values = [weights[0], last.log(), *(w.sqrt() for w in weights[1:]), *biases]
        if [p.shape for p in made.parameters()] != [v.shape for v in values]:
            raise InputError(
                "weights, biases, last",
                given=[tuple(v.shape) for v in values],
                expected=[tuple(p.shape) for p in made.parameters()],
            )
        if not all(bool(torch.isfinite(v).all()) for v in values):
            raise InputError("weights, biases, last", given="NaN or Inf", expected="finite numbers")
        made = made.to(values[0].dtype)
        with torch.no_grad():
            for p, value in zip(made.parameters(), values, strict=True):
                p.copy_(value)
        return made

    # --- theta made ready -------------------------------------------------------------------------

    @property
    def depth(self) -> int:
        """L, the number of hidden layers."""
        return len(self.roots)

    def _first(self) -> Tensor:
        return (
            self.kernels - self.kernels.mean(dim=(-2, -1), keepdim=True)
            if self.zero_mean
            else self.kernels
        )

    def _hidden(self, k: int) -> Tensor:
        """W_k for 1 <= k < L."""
        return self.roots[k - 1].square()

    def _head(self) -> Tensor:
        """w W_L."""
        return self.roots[-1].square() * self.log_weights.exp().view(-1, 1, 1, 1)

    def _to_head(self, z: Tensor) -> Tensor:
        """w W_L P z."""
        z = layer.pool(z, self.pooling)
        return (layer.mix if self.image_size is None else layer.connect)(z, self._head())

    def _from_head(self, p: Tensor, shape: Sequence[int]) -> Tensor:
        """The adjoint, for feature maps of the shape (h, w)."""
        p = (layer.mix_adjoint if self.image_size is None else layer.connect_adjoint)(
            p, self._head()
        )
        return layer.pool_adjoint(p, self.pooling, shape)

    def _check(self, u: Tensor) -> Tensor:
        images(u, self.kernels.shape[-1] // 2 + 1 if self.padding == "reflect" else 1)
        if u.shape[1] != self.kernels.shape[1]:
            raise InputError(
                "u", given=f"{u.shape[1]} channels", expected=f"{self.kernels.shape[1]}"
            )
        if self.image_size is not None and tuple(u.shape[-2:]) != self.image_size:
            raise InputError(
                "u",
                given=f"images {u.shape[-2]} x {u.shape[-1]}",
                expected=f"{self.image_size[0]} x {self.image_size[1]}",
                remedy="Leave out image_size: the last layer is then a convolution, for any size.",
            )
        return u

    # --- blocks -----------------------------------------------------------------------------------

    @torch.no_grad()
    def auxiliary(self, u: Tensor) -> tuple[Tensor, ...]:
        """The activations z_1, ..., z_L of the network at u."""
        return tuple(self._activated(a) for a in self._inputs(u)[:-1])

    def primal(self, u: Tensor) -> tuple[Convex, ...]:
        return (Squares(self.curvature) if self.curvature else Zero(),) * self.depth

    def dual(self, u: Tensor) -> tuple[Convex, ...]:
        return (
            *(Epigraph(self.slope, self.rounding),) * self.depth,
            Hinge(1.0, self.rounding * self.weight),
        )

    def dual_start(self, u: Tensor) -> tuple[Tensor, ...]:
        """The dual variables for which K^T p is the gradient of the network at u and vanishes on
        z.
        """
        return self.slopes(u)

    # --- the coupling -----------------------------------------------------------------------------

    def linear(self, u: Tensor, *v: Tensor) -> tuple[Tensor, ...]:
        below = correlate(u, self._first(), self.padding)
        rows = []
        for k, z in enumerate(v, start=1):
            rows.append(torch.stack([below, z], dim=1))
            below = layer.mix(z, self._hidden(k)) if k < self.depth else self._to_head(z)
        return (*rows, below)

    def adjoint(self, *p: Tensor) -> tuple[Tensor, ...]:
        shape = p[0].shape[-2:]
        parts = [correlate_adjoint(p[0][:, 0], adjoint_kernels(self._first()), self.padding)]
        parts += [
            self._pulled(k, p[k], shape).add(p[k - 1][:, 1]) for k in range(1, self.depth + 1)
        ]
        return tuple(parts)

    def _pulled(self, k: int, p: Tensor, shape: Sequence[int]) -> Tensor:
        """The adjoint of z_k -> the next layer, for the dual block p of that layer and maps of the
        ``shape`` (h, w).
        """
        if k == self.depth:
            return self._from_head(p, shape)
        return layer.mix_adjoint(p[:, 0], self._hidden(k))

    def offset(self, u: Tensor) -> tuple[Tensor, ...]:
        """b_k beside zeros, (1, 2, channels, 1, 1), for every pair, and w b_L (1, units, 1, 1)."""
        pairs = [
            torch.stack([b, torch.zeros_like(b)])[None, :, :, None, None]
            for b in list(self.biases)[:-1]
        ]
        return (*pairs, (self.log_weights.exp() * self.biases[-1])[None, :, None, None])

    def norms(self, u: Tensor) -> list[list[float]]:
        """A row per epigraph, (W_{k-1}, 1) in its columns, and a last one with the norm of w W_L
        P.
        """
        h, w = self._check(u).shape[-2:]
        below = [layer.first_norm(self._first(), self.padding, h, w)]
        below += [layer.mix_norm(self._hidden(k)) for k in range(1, self.depth)]
        head = layer.mix_norm if self.image_size is None else layer.connect_norm
        below.append(head(self._head()) / self.pooling)
        rows = [[0.0] * (self.depth + 1) for _ in below]
        for k, size in enumerate(below):
            rows[k][k] = size
            if k < self.depth:
                rows[k][k + 1] = 1.0
        return rows

    def sensitivity(self, u: Tensor) -> tuple[float, float]:
        """(kappa, beta): a filter changed by dc changes by at most s ||dc|| at any frequency.

        Blocks of K depend on parts of theta that do not overlap, so the largest bound counts. A
        root r gives dW = 2 r dr, a log weight a multiple of its own unit.
        """
        h, w = self._check(u).shape[-2:]
        s, n = self.kernels.shape[-1], self.roots[-1].shape[-1]
        copies = window_norm(s, self.padding, h, w)
        kappa = [copies, *(2 * s * float(r.detach().abs().max()) for r in list(self.roots)[:-1])]
        last = self.log_weights.exp().detach()
        spread = 1 if self.image_size is not None else n
        by_root = 2 * spread * float((self.roots[-1].detach() * last.view(-1, 1, 1, 1)).abs().max())
        by_weight = self.norms(u)[-1][-1] * self.pooling
        kappa.append(math.hypot(by_root, by_weight) / self.pooling)
        positions = (
            1
            if self.image_size is not None
            else math.prod(layer.pooled(side, self.pooling) for side in (h, w))
        )
        shift = math.hypot(float(last.max()), float((last * self.biases[-1].detach()).abs().max()))
        return max(kappa), max(math.sqrt(h * w), math.sqrt(positions) * shift)

    @torch.no_grad()
    def finite(self, x: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """(u, z) with z as small as the epigraphs allow; with ``curvature`` no smaller than it is,
        but within them.
        """
        u, *free = x
        if not self.curvature:
            return (u, *self.auxiliary(u))
        lifted = [u]
        for k, z in enumerate(free):
            lifted.append(torch.maximum(z, self._activated(self._input(k, lifted[-1]))))
        return tuple(lifted)

    @torch.no_grad()
    def feasible(self, x: tuple[Tensor, ...], p: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Dual blocks near p with K^T p = 0 in every z_k, from the last layer to the first.

        t_k is what the layer after it asks for. No weight is negative, so t_k <= 0 if every p above
        is >= 0; s_k is moved into [slope |t_k|, |t_k|], where the pair is in the domain of its
        conjugate, so it is >= 0 again.
        """
        if self.curvature:
            return None
        return self._downwards(
            p[-1].clamp(0, 1),
            x[0].shape[-2:],
            lambda k, depth: p[k][:, 0].clamp(min=self.slope * depth, max=depth),
        )

    # --- the function -----------------------------------------------------------------------------

    def _input(self, k: int, below: Tensor) -> Tensor:
        """W_k z_k + b_k for k < L, times w and with P for k = L; z_0 is u."""
        if k == self.depth:
            return self._to_head(below) + (self.log_weights.exp() * self.biases[-1]).view(-1, 1, 1)
        mixed = (
            layer.mix(below, self._hidden(k))
            if k
            else correlate(below, self._first(), self.padding)
        )
        return mixed + self.biases[k].view(-1, 1, 1)

    def _activated(self, a: Tensor) -> Tensor:
        return layer.leaky(a, self.slope, self.rounding)

    def _inputs(self, u: Tensor) -> list[Tensor]:
        """What goes into the activations of every layer, the last one included."""
        inputs = [self._input(0, self._check(u))]
        for k in range(1, self.depth + 1):
            inputs.append(self._input(k, self._activated(inputs[-1])))
        return inputs

    def _downwards(
        self, last: Tensor, shape: Sequence[int], chosen: Callable[[int, Tensor], Tensor]
    ) -> tuple[Tensor, ...]:
        """Dual blocks with K^T p = 0 in every z_k that end with ``last``; s_k is ``chosen`` from k
        - 1 and |t_k|.
        """
        p = [last]
        for k in range(self.depth, 0, -1):
            depth = self._pulled(k, p[0], shape)
            p.insert(0, torch.stack([chosen(k - 1, depth), -depth], dim=1))
        return tuple(p)

    @torch.no_grad()
    def slopes(self, u: Tensor) -> tuple[Tensor, ...]:
        """Dual blocks p for which K^T p is (a subgradient of R at u, 0, ..., 0): back
        propagation.
        """
        *hidden, a = self._inputs(u)
        width = self.rounding * self.weight
        last = (a / width).clamp(0, 1) if width else (a > 0).to(a.dtype)
        return self._downwards(
            last,
            u.shape[-2:],
            lambda k, depth: layer.leaky_slope(hidden[k], self.slope, self.rounding) * depth,
        )

    def value(self, u: Tensor) -> Tensor:
        """R(u), (b, c, h, w) -> (b,), by the network itself.

        Raises:
            MissingPropertyError: with ``curvature`` R(u) is a minimum over z.
        """
        self._nested()
        return (
            layer.leaky(self._inputs(u)[-1], 0.0, self.rounding * self.weight).flatten(1).sum(dim=1)
        )

    @torch.no_grad()
    def grad(self, u: Tensor) -> Tensor:
        """The gradient of R at u, (b, c, h, w) -> (b, c, h, w); a subgradient if ``rounding`` is 0.

        Raises:
            MissingPropertyError: as for ``value``.
        """
        self._nested()
        return correlate_adjoint(
            self.slopes(u)[0][:, 0], adjoint_kernels(self._first()), self.padding
        )

    def _nested(self) -> None:
        if self.curvature:
            raise MissingPropertyError(
                "value",
                given=f"an ICNN with curvature={self.curvature:g}",
                expected="curvature=0: otherwise its value is a minimum over auxiliary fields",
                remedy="Use value_with(u, *v) at given fields v.",
            )

    # --- descriptions -----------------------------------------------------------------------------

    @property
    def effort(self) -> float:
        """Rough: products of the filters, and 20 operations on every feature map of a hidden
        layer.
        """
        k, c, s, _ = self.kernels.shape
        return 0.2 * k * c * s * s + (self.depth - 1) * 0.1 * k * k * s * s + 20 * k * self.depth

    def units(self) -> Tensor:
        """1 for logarithms; for filters and roots their mean size at the start; 0.1, an intensity,
        for offsets.
        """
        sizes = {id(self.log_weights): 1.0, id(self.kernels): self.kernels[0].numel() ** -0.5}
        sizes |= {id(r): r[0].numel() ** -0.5 for r in self.roots}
        return torch.cat(
            [
                torch.full((p.numel(),), sizes.get(id(p), 0.1))
                for p in self.parameters()
                if p.requires_grad
            ]
        )

    @torch.no_grad()
    def filters(self) -> dict[str, Tensor]:
        """The filters of the first layer, and how much R grows at most with the answer of each, per
        pixel.
        """
        influence = self._head().flatten(2).amax(dim=2).sum(dim=0) / self.pooling**2
        for k in range(self.depth - 1, 0, -1):
            influence = influence @ self._hidden(k).sum(dim=(-2, -1))
        return {"kernels": self._first(), "weights": influence}

    def spec(self) -> dict[str, object]:
        k, c, s, _ = self.kernels.shape
        units, _, n, _ = self.roots[-1].shape
        return {
            "type": "ICNN",
            "channels": k,
            "size": s,
            "layers": self.depth,
            "pooling": self.pooling,
            "units": units,
            "head_size": 1 if self.image_size else n,
            "slope": self.slope,
            "rounding": self.rounding,
            "curvature": self.curvature,
            "in_channels": c,
            "image_size": list(self.image_size) if self.image_size else None,
            "zero_mean": self.zero_mean,
            "padding": self.padding,
            "weight": self.weight,
        }

    def extra_repr(self) -> str:
        k, _, s, _ = self.kernels.shape
        return (
            f"channels={k}, size={s}x{s}, layers={self.depth}, pooling={self.pooling}, "
            f"units={self.roots[-1].shape[0]}, slope={self.slope:g}, rounding={self.rounding:g}"
        )


def _sides(image_size: Sequence[int] | None) -> tuple[int, int] | None:
    if image_size is None:
        return None
    try:
        h, w = image_size
    except (TypeError, ValueError):
        raise InputError("image_size", given=image_size, expected="(h, w), or None") from None
    for side in (h, w):
        check_number("image_size", side, lambda v: v >= 1, "two positive integers", integer=True)
    return int(h), int(w)
