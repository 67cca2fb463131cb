"""How far z can be from grad f: two proven forms, and one estimate that is never called certified.

Notation per image: eps >= ||x~ - x*||, b = grad g(x~), H, J at x~, q with s = ||H q - b||, z = -J^T
q.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.asking import offers
from ..core.bounds import constants_of
from ..core.maps import Certifying, Level, Upper
from ..core.protocols import Potential
from ..core.results import SAFETY


def constants_bound(
    eps: Tensor,
    delta: Tensor,
    *,
    mu: float,
    loss_smoothness: float,
    hessian_lipschitz: float,
    mixed_lipschitz: float,
    mixed_norm: Tensor,
    loss_gradient: Tensor,
) -> Tensor:
    """The form with constants: omega = c1 eps + c2 delta + c3 eps^2 per image (b,).

        c1 = L_g ||J|| / mu + L_{H^-1} ||b|| ||J|| + L_J ||b|| / mu,   c2 = ||J|| / mu,   c3 = L_J
        L_g / mu,
    with L_{H^-1} <= L_H / mu^2. Salehi et al., arXiv 2308.10098, Theorem 2.1 (numbering to be
    checked against the paper).

    Args:
        eps, delta: (b,), distance of x~ and residual of q.
        mixed_norm: (b,), ||J(x~)||; loss_gradient: (b,), ||b||.
    """
    inverse_lipschitz = hessian_lipschitz / mu**2
    c1 = (
        loss_smoothness * mixed_norm / mu
        + inverse_lipschitz * loss_gradient * mixed_norm
        + mixed_lipschitz * loss_gradient / mu
    )
    return c1 * eps + mixed_norm / mu * delta + mixed_lipschitz * loss_smoothness / mu * eps**2


def adjoint_bound(
    eps: Tensor,
    delta: Tensor,
    *,
    mu: float | Tensor,
    loss_smoothness: float,
    hessian_change: Tensor,
    mixed_change: Tensor,
    mixed_norm: Tensor,
) -> Tensor:
    """The sharper form with the computed q, per image (b,).

        dq = (C_H + L_g eps + delta) / mu        bounds ||q - q*||,
        omega = C_J + N_J dq,
    where C_H >= ||(H* - H) q||, C_J >= ||(J* - J)^T q||, N_J >= ||J*|| over the ball of radius eps
    around x~.

    Proof: H* (q - q*) = (H* - H) q + (H q - b) + (b - b*) and H* >= mu I give dq;
    z - grad f = (J* - J)^T q - J*^T (q - q*) gives omega.

    Within bounds of pixels both q vanish outside of the free set F of x*, if q was computed on it,
    and the proof holds word for word for the rows of F: H*_FF >= mu I, and cutting vectors down to
    F lengthens none of them. It says nothing as long as F is not known.
    """
    dq = (hessian_change + loss_smoothness * eps + delta) / mu
    return mixed_change + mixed_norm * dq


@torch.no_grad()
def certified_error(
    source: object,
    x: Tensor,
    q: Tensor,
    eps: Tensor,
    delta: Tensor,
    mu: float | Tensor,
    loss_smoothness: float,
) -> Tensor | None:
    """``adjoint_bound`` with the constants that an energy, or one tied to its data, offers around x
    (b, ...); None when one is missing.
    """
    if not offers(source, Certifying):
        return None
    hessian_change = source.certificate("hessian_change", x, q, eps)
    mixed_change = source.certificate("mixed_change", x, q, eps)
    mixed_norm = source.certificate("mixed_norm", x, eps)
    if hessian_change is None or mixed_change is None or mixed_norm is None:
        return None
    return adjoint_bound(
        eps,
        delta,
        mu=mu,
        loss_smoothness=loss_smoothness,
        hessian_change=hessian_change.to(eps),
        mixed_change=mixed_change.to(eps),
        mixed_norm=mixed_norm.to(eps),
    )


def pullback_error(
    energy: Level,
    potential: Potential,
    x: Tensor,
    q: Tensor,
    eps: Tensor,
    residual: Tensor,
    upper: Upper,
) -> Tensor | None:
    """``certified_error`` (b,) of the derivative made with q; None where a constant is not proven.

    Args:
        eps: (b,), distance of x.
        residual: (b,), ||H q - grad g||.
    """
    if not (potential.bounds().mu.certified and upper.smooth.certified):
        return None
    # an image that broke down has no bound
    usable = torch.where(torch.isfinite(residual), residual, torch.inf)
    mu = constants_of(potential).mu
    # with theta in the data term, constants depend on the data
    source = potential if offers(potential, Certifying) else energy
    bound = certified_error(source, x, q, eps, usable, mu, upper.smooth.value)
    return None if bound is None else torch.where(bound.isnan(), torch.inf, bound)


def corrected_bracket(
    loss: Tensor,
    gradient_at_x: Tensor,
    q: Tensor,
    eps: Tensor,
    delta: Tensor,
    mu: float,
    hessian_change: Tensor,
    smoothness: float,
) -> tuple[Tensor, Tensor]:
    """A second-order bracket of g(x*) that costs nothing once q is known; lower (b,), upper (b,).

    With r = grad h(x~): g(x*) lies in [c - rho, c + rho + L_g eps^2 / 2] for convex g, where c =
    g(x~) - <q, r> and
        rho = delta eps + C_H(q) eps,   C_H(q) >= sup ||(H(x') - H(x~)) q|| over the ball of radius
        eps.
    Proof: 0 = grad h(x*) = r + H_m d with d = x* - x~ and H_m the mean of H along the segment. Then
    <b, d> = <H q, d> + <b - H q, d> = <q, H_m d> + <(H - H_m) q, d> + <b - H q, d> = -<q, r> + R
    with |R| <= (C_H + delta) eps, and
    g(x~) + <b, d> <= g(x*) <= g(x~) + <b, d> + L_g ||d||^2 / 2.
    """
    centre = loss - torch.linalg.vecdot(q.double().flatten(1), gradient_at_x.double().flatten(1))
    rho = (delta + hessian_change) * eps
    return centre - rho, centre + rho + 0.5 * smoothness * eps**2


def estimated_error(correction: Tensor) -> float:
    """Estimate of ||z - grad f|| from the change ``correction`` (d,) that a Newton polish of x~
    makes to z.

    One inexact Newton step moves x~ much closer to x* (its error is of second order), so the
    difference of the two hypergradients shows the first-order error, as the dual-weighted residual
    does. It estimates the error before the polish and is conservative for the polished z. Not a
    bound.
    """
    return SAFETY * float(torch.linalg.vector_norm(correction))
