"""The mixed derivative of Fields of Experts in closed form: no graph, no feature map kept."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ..operators.convolutions import Padding, pad, tiles, windows
from .derivatives import Context


class _Kernels(Context, Protocol):
    """The context, with the shape of the kernels."""

    shape: torch.Size


class MixedProduct(torch.autograd.Function):
    """<grad R(x), v> per image; its derivatives in (kernels, weights, smoothings) are made on the
    way and kept.

    With u = C x / nu and d = C v:  value = sum_k w_k <s'(u_k), d_k>,
        d/dc_k  = w_k (windows(v)^T s'(u_k) + windows(x)^T (s''(u_k) d_k) / nu_k) =: w_k (A_k +
        B_k), d/dw_k  = <s'(u_k), d_k> = <A_k, c_k>,
        d/dnu_k = -(w_k / nu_k) <s''(u_k) d_k, u_k> = -(w_k / nu_k) <B_k, c_k>.
    Two correlations and two products with the windows, where reverse mode goes through ten feature
    maps.
    """

    @staticmethod
    def forward(
        ctx: _Kernels,
        x: Tensor,
        v: Tensor,
        kernels: Tensor,
        w: Tensor,
        nu: Tensor,
        padding: Padding,
        limit: int,
    ) -> Tensor:
        flat = kernels.detach().flatten(1)
        a, b = _window_products(
            x.detach(), v.detach(), kernels.detach(), nu.detach(), padding, limit
        )
        b = b / nu.view(-1, 1)
        each = (a * flat).sum(dim=2)
        ctx.shape = kernels.shape
        ctx.save_for_backward(
            (w.view(-1, 1) * (a + b)).flatten(1), each, -(w / nu) * (b * flat).sum(dim=2)
        )
        return each @ w

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: _Kernels, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (g,), (kernels, w, nu) = grads, ctx.saved_tensors
        return None, None, (g @ kernels).view(ctx.shape), g @ w, g @ nu, None, None


def _window_products(
    x: Tensor, v: Tensor, kernels: Tensor, nu: Tensor, padding: Padding, limit: int
) -> tuple[Tensor, Tensor]:
    """windows(v)^T s'(u) and windows(x)^T (s''(u) d) per image: (b, K, c s s) each."""
    k, c, s, _ = kernels.shape
    b, flat = x.shape[0], kernels.flatten(1)
    forward, flat = (flat / nu.view(-1, 1)).expand(b, -1, -1), flat.expand(b, -1, -1)
    xp, vp = pad(x, s // 2, padding).contiguous(), pad(v, s // 2, padding).contiguous()
    first, second = (x.new_zeros(b, c * s * s, k) for _ in range(2))
    one = torch.ones((), dtype=x.dtype, device=x.device)
    for i, r in tiles(x, k, limit):
        of_x, of_v = windows(xp[i], r, s), windows(vp[i], r, s)
        u, d = torch.bmm(forward[i], of_x), torch.bmm(flat[i], of_v)
        inverse = torch.addcmul(one, u, u).rsqrt_()
        first[i].baddbmm_(of_v, u.mul_(inverse).mT)
        second[i].baddbmm_(of_x, d.mul_(inverse).mul_(inverse).mul_(inverse).mT)
    return first.mT, second.mT
