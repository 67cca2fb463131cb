"""The library's regularizers as their docstrings write them: sums of potentials of linear features.

Written apart from ``learnreg.regularizers``, so that a truth computed from here shares no code with
what it judges: plain differences and convolutions, which autograd can differentiate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..regularizers import TV, FoE, HuberTV, Scaled, Sum, Tikhonov

Shape = Literal["root", "huber", "square"]


@dataclass(frozen=True)
class Part:
    """sum over g of weight_g phi(|v_g|) with linear features v = C x in groups.

    With nu the smoothing: ``root`` is sqrt(r^2 + nu^2) - nu, ``huber`` is r - nu / 2 beyond nu and
    r^2 / (2 nu) within, ``square`` is r^2 / 2.

    Attributes:
        shape: of phi.
        features: (b, c, h, w) -> (b, groups, k), linear.
        weight, nu: what broadcasts with (groups,).
    """

    shape: Shape
    features: Callable[[Tensor], Tensor]
    weight: Tensor
    nu: Tensor

    def value(self, v: Tensor) -> Tensor:
        """(b, groups, k) -> (b,)."""
        square = v.square().sum(dim=-1)
        if self.shape == "square":
            return (self.weight * square / 2).sum(dim=-1)
        if self.shape == "root":
            # without cancellation where the features are small
            root = torch.sqrt(square + self.nu**2)
            return (self.weight * square / (root + self.nu)).sum(dim=-1)
        beyond = square > self.nu**2
        size = torch.sqrt(torch.where(beyond, square, torch.ones_like(square)))
        return (self.weight * torch.where(beyond, size - self.nu / 2, square / (2 * self.nu))).sum(
            dim=-1
        )

    def length(self, v: Tensor) -> Tensor:
        """s (b, groups) with gradient weight * v / s."""
        square = v.square().sum(dim=-1)
        if self.shape == "square":
            return torch.ones_like(square)
        if self.shape == "root":
            return torch.sqrt(square + self.nu**2)
        return torch.maximum(torch.sqrt(square), self.nu.expand_as(square))

    def curved(self, v: Tensor) -> Tensor:
        """1 (b, groups) where the curvature along v is less than weight / s, else 0."""
        if self.shape == "square":
            return torch.zeros_like(v[..., 0])
        if self.shape == "root":
            return torch.ones_like(v[..., 0])
        return (v.square().sum(dim=-1) > self.nu**2).to(v)


def parts(regularizer: nn.Module) -> list[Part] | None:
    """The parts of a regularizer of the library in float64; None for any other class."""
    if type(regularizer) is Sum:
        found = [parts(term) for term in regularizer.terms]
        known = [p for p in found if p is not None]
        return [part for p in known for part in p] if len(known) == len(found) else None
    if type(regularizer) is Scaled:
        inner = parts(regularizer.regularizer)
        return inner and [replace(p, weight=regularizer.factor * p.weight) for p in inner]
    known_class = PARTS.get(type(regularizer))
    return None if known_class is None else known_class(regularizer)


def value(known: list[Part], x: Tensor) -> Tensor:
    """R(x), (b, c, h, w) -> (b,), differentiable."""
    return torch.stack([p.value(p.features(x)) for p in known]).sum(dim=0)


def _wide(t: Tensor) -> Tensor:
    return t.detach().to(torch.float64)


def _pairs(x: Tensor) -> Tensor:
    """Forward differences, 0 at the end of an image: (b, pixels, 2)."""
    rows = F.pad(x[..., 1:, :] - x[..., :-1, :], (0, 0, 0, 1))
    columns = F.pad(x[..., :, 1:] - x[..., :, :-1], (0, 1, 0, 0))
    return torch.stack([rows.flatten(1), columns.flatten(1)], dim=-1)


def _singles(x: Tensor) -> Tensor:
    return _pairs(x).flatten(1)[..., None]


def _joint(features: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The features of all channels of a pixel in one group."""

    def together(x: Tensor) -> Tensor:
        channels = [features(x[:, c : c + 1]) for c in range(x.shape[1])]
        return torch.cat(channels, dim=-1)

    return together


def _of_tv(r: TV) -> list[Part]:
    features: Callable[[Tensor], Tensor] = _pairs if r.isotropic else _singles
    features = _joint(features) if r.channels == "joint" else features
    return [
        Part("root", features, _wide(r.log_weight).exp(), _wide(r.log_smoothing).exp()),
    ]


def _of_huber(r: HuberTV) -> list[Part]:
    features: Callable[[Tensor], Tensor] = _joint(_pairs) if r.channels == "joint" else _pairs
    return [Part("huber", features, _wide(r.log_weight).exp(), _wide(r.log_smoothing).exp())]


def _of_tikhonov(r: Tikhonov) -> list[Part]:
    weight = _wide(r.log_weight).exp()
    return [Part("square", lambda x: x.flatten(1)[..., None], weight, torch.ones_like(weight))]


def _of_foe(r: FoE) -> list[Part]:
    kernels = _wide(r.kernels)
    c = kernels - kernels.mean(dim=(2, 3), keepdim=True) if r.zero_mean else kernels
    margin, mode = c.shape[-1] // 2, "reflect" if r.padding == "reflect" else "constant"
    weights = (_wide(r.log_scale) + _wide(r.log_weights)).exp()
    nu = r.least_smoothing + _wide(r.log_smoothings).exp()

    def of_filter(k: int) -> Part:
        def features(x: Tensor) -> Tensor:
            response = F.conv2d(F.pad(x, [margin] * 4, mode=mode), c[k : k + 1])
            return response.flatten(1)[..., None]

        return Part("root", features, weights[k], nu[k])

    return [of_filter(k) for k in range(c.shape[0])]


PARTS: dict[type, Callable[..., list[Part]]] = {
    TV: _of_tv,
    HuberTV: _of_huber,
    Tikhonov: _of_tikhonov,
    FoE: _of_foe,
}
