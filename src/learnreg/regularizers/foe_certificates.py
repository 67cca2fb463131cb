"""Proven constants of Fields of Experts, from the filters alone or from the image in hand.

Notation: u_k = (C_k x) / nu_k, S >= || sum_k (w_k / nu_k) C_k^T C_k ||, n_k >= ||C_k||, a_k >=
||dC|| / ||dc|| for a change dc of filter k (||dC|| <= sqrt(copies)
||dc||_1 <= sqrt(copies) s sqrt(c) ||dc||), row_k >= the norm of any row
of C_k. Under reflection one pixel appears at most 4 times in a window, so row_k <= 2 ||c_k||. With
nu_k = least + e^{s_k} the column of s_k carries the factor e^{s_k} / nu_k <= 1, so the bounds for
nu_k = e^{s_k} hold as they are.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..core.bounds import Bound
from ..operators.convolutions import COPIES, Padding, correlate, kernel_norm_bounds
from . import profiles


def _rows(kernels: Tensor, padding: Padding) -> Tensor:
    return math.sqrt(COPIES[padding]) * kernels.double().flatten(1).norm(dim=1)


def _filter_gain(kernels: Tensor, padding: Padding) -> float:
    """a_k, the same for all filters of one size."""
    return math.sqrt(COPIES[padding] * kernels[0].numel())


def _spread(per_filter: Tensor) -> Tensor:
    return per_filter.view(1, -1, 1, 1)


def hessian_lipschitz(
    kernels: Tensor, w: Tensor, nu: Tensor, padding: Padding, strength: float
) -> Bound:
    """L_H <= S max_k max|s'''| row_k / nu_k."""
    return Bound.proven(
        strength * profiles.THIRD_MAX * float((_rows(kernels, padding) / nu.double()).max())
    )


def hessian_change(
    kernels: Tensor,
    w: Tensor,
    nu: Tensor,
    padding: Padding,
    strength: float,
    x: Tensor,
    q: Tensor,
    radius: Tensor,
) -> Tensor:
    """S radius max_{k,p} M_kp |C_k q|_p / nu_k with M_kp = sup |s'''| over what the ball can reach;
    (b,).

    Proof: with Cal = [sqrt(w_k / nu_k) C_k], ||Cal||^2 <= S, the change is Cal^T applied to entries
    of size at most M_kp |C_k q|_p / nu_k times |Cal (x' - x)|_kp.
    """
    forward = (kernels / nu.view(-1, 1, 1, 1)).double()
    rows = _spread(_rows(kernels, padding) / nu.double())
    out = []
    for i in range(x.shape[0]):
        u, v = (correlate(t[i : i + 1].double(), forward, padding) for t in (x, q))
        out.append((profiles.third_sup(u, radius[i] * rows) * v.abs()).max())
    return strength * radius * torch.stack(out)


def mixed_norm(
    kernels: Tensor,
    w: Tensor,
    nu: Tensor,
    padding: Padding,
    x: Tensor,
    radius: Tensor,
    zero_mean: bool,
) -> Tensor:
    """Bound of ||J(x')|| over the ball: root of the sum of squares over the blocks of theta; (b,).

    Column t_k: w_k C_k^T s'(u_k), at most w_k n_k ||s'||; t_0: their sum; s_k: w_k n_k ||k(u_k)||.
    Filter block, direction dc: w_k [dC^T s'(u_k) + C_k^T (s''(u_k) / nu_k) dC x], at most
        w_k (a_k ||s'|| + n_k min(a_k ||x||, l ||s''|| max|x|) / nu_k),
    where x may be shifted by a constant for zero-mean filters under reflection and l = ||dc||_1 /
    ||dc||.
    """
    forward = (kernels / nu.view(-1, 1, 1, 1)).double()
    w, nu = w.double(), nu.double()
    n, a, l1 = (
        kernel_norm_bounds(kernels, padding),
        _filter_gain(kernels, padding),
        math.sqrt(kernels[0].numel()),
    )
    out = []
    for i in range(x.shape[0]):
        image, r = x[i : i + 1].double(), radius[i]
        u = correlate(image, forward, padding)
        moved = n / nu * r  # how far u_k can move, in the Euclidean norm
        slope, curv, smooth = (
            f(u).flatten(2).norm(dim=2)[0] + c * moved
            for f, c in (
                (profiles.slope, 1.0),
                (profiles.curvature, profiles.THIRD_MAX),
                (profiles.smoothing_slope, 1.0),
            )
        )
        centred = _recentre(image, padding, zero_mean)
        reach = torch.minimum(
            a * (centred.norm() + r) * torch.ones_like(curv), l1 * curv * (centred.abs().max() + r)
        )
        weights = w * n * slope
        smoothings = w * n * smooth
        filters = w * (a * slope + n * reach / nu)
        out.append(torch.sqrt(weights.sum() ** 2 + (weights**2 + smoothings**2 + filters**2).sum()))
    return torch.stack(out)


def mixed_change(
    kernels: Tensor,
    w: Tensor,
    nu: Tensor,
    padding: Padding,
    x: Tensor,
    q: Tensor,
    radius: Tensor,
    zero_mean: bool,
) -> Tensor:
    """Bound of ||(J(x') - J(x))^T q|| over the ball; (b,).

    Entries t_k and s_k change by at most w_k (n_k radius / nu_k) ||C_k q||. Filter block:
        w_k [ (n_k radius / nu_k) a_k ||q|| + max_p(M_kp |C_k q|_p / nu_k) (n_k radius / nu_k) a_k
        (||x|| + radius)
              + ||s'' C_k q|| a_k radius / nu_k ].
    """
    forward = (kernels / nu.view(-1, 1, 1, 1)).double()
    w, nu = w.double(), nu.double()
    n, a = kernel_norm_bounds(kernels, padding), _filter_gain(kernels, padding)
    rows = _spread(_rows(kernels, padding) / nu)
    out = []
    for i in range(x.shape[0]):
        image, adjoint, r = x[i : i + 1].double(), q[i : i + 1].double(), radius[i]
        u, v = (
            correlate(image, forward, padding),
            correlate(adjoint, forward, padding),
        )  # v = C_k q / nu_k
        moved = n / nu * r
        product = v.flatten(2).norm(dim=2)[0] * nu
        weights = w * moved * product
        third = (profiles.third_sup(u, r * rows) * v.abs()).flatten(2).amax(dim=2)[0]
        curved = (profiles.curvature(u) * v).flatten(2).norm(dim=2)[0]
        size = _recentre(image, padding, zero_mean).norm() + r
        filters = w * (moved * a * adjoint.norm() + third * moved * a * size + curved * a * r)
        out.append(torch.sqrt(weights.sum() ** 2 + (2 * weights**2 + filters**2).sum()))
    return torch.stack(out)


def mixed_lipschitz(
    kernels: Tensor, w: Tensor, nu: Tensor, padding: Padding, strength: float, reach: float
) -> Bound:
    """L_J on images with |x| <= reach.

    t_0 contributes S, t_k and s_k contribute w_k n_k^2 / nu_k each, and the filter block
        2 w_k n_k a_k / nu_k + w_k n_k max|s'''| n_k l reach / nu_k^2,
    because ||dC x||_inf <= l ||dc|| reach, l = s sqrt(c).
    """
    w, nu = w.double(), nu.double()
    n, a, l1 = (
        kernel_norm_bounds(kernels, padding),
        _filter_gain(kernels, padding),
        math.sqrt(kernels[0].numel()),
    )
    plain = w * n * n / nu
    filters = 2 * w * n * a / nu + profiles.THIRD_MAX * plain * l1 * reach / nu
    return Bound.proven(float(torch.sqrt(strength**2 + (2 * plain**2 + filters**2).sum())))


def _recentre(image: Tensor, padding: Padding, zero_mean: bool) -> Tensor:
    """The image minus its mid-range, where a constant does not pass the changed filters."""
    if zero_mean and padding == "reflect":
        return image - 0.5 * (image.max() + image.min())
    return image
