"""How far an operator moves with the theta inside it: beta with ||dA v|| <= beta ||dtheta|| ||v||.

dA is the derivative of A at the present theta. Of tensors k(theta) that A depends on linearly,

    beta(theta) <= beta(k) ||Dk(theta)||_2,

the second factor from the singular values of the Jacobian. Products and stacks:

    d(A B) = dA B + A dB,  so  beta^2 <= (beta_A ||B||)^2 + (||A|| beta_B)^2,    beta^2 <= beta_A^2
    + beta_B^2,

where every part has parameters of its own. Of an operator that is in no table nothing is known.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..core.asking import offers
from ..core.bounds import Bound
from ..core.params import named_trainable, trainable
from .filtering import Filtering, filtering_of, overridden, taps_sensitivity
from .foreign import LinearPhysicsLike
from .norms import dtype_of, factors, rows
from .parametrized import KnowsSensitivity, Parametrized, at_tensors
from .physics import LinearMap, TiedMap

MOST_ROWS = 2**22
"""Entries of the Jacobian of a parametrization, up to which it is made as a matrix."""

FOR_ROUNDING = 1 + 1e-6
"""What bounds are widened by that were computed from tensors in float32."""


@torch.no_grad()
def sensitivity(physics: LinearPhysicsLike, x: Tensor) -> Bound:
    """beta of all trainable tensors of a physics together; unknown where one of them is.

    Args:
        x: images (b, c, ...) as the physics takes them; only their shape matters.
    """
    learned = named_trainable(physics)
    if not learned:
        return Bound.exact(0.0)
    if offers(physics, KnowsSensitivity):
        return physics.sensitivity(x)
    if offers(physics, Parametrized):
        return _through_tensors(physics, x)
    product, stacked = factors(physics), rows(physics)
    if product is not None or stacked is not None:
        return _of_parts(product or stacked or [], x, product is not None)
    known = tensor_sensitivities(physics, x)
    betas = [known.get(name, Bound.unknown()) for name, _ in learned]
    return _root_of_squares(betas)


def sensitivity_of(tied: TiedMap, like: Tensor) -> Bound:
    """beta of the operator of a batch, for its images (b, c, ...) of which only the shape matters,
    the largest of all; unknown for complex images, and for some images of a batch whose operators
    differ.
    """
    native = tied.layout.image_out((like if tied.names else like[:1]).detach())
    if native.is_complex() or (tied.names and tied.index is not None):
        return Bound.unknown()
    physics = tied.map.physics
    return sensitivity(physics, native.to(dtype_of(physics, native)))


def _root_of_squares(bounds: list[Bound]) -> Bound:
    """Of blocks of theta that have nothing in common."""
    value = math.sqrt(sum(b.value**2 for b in bounds))
    return Bound(value, min(b.kind for b in bounds))


def tensor_sensitivities(physics: LinearPhysicsLike, x: Tensor) -> dict[str, Bound]:
    """beta of single tensors on which A depends linearly, by name; of known classes only."""
    from deepinv.physics import MRI, BlurFFT, Inpainting, MultiCoilMRI

    filtering = filtering_of(physics)
    if filtering is not None:
        return {"filter": _of_taps(filtering, filtering.sides_of(x))}
    if overridden(physics):
        return {}
    buffers = dict((*physics.named_parameters(), *physics.named_buffers()))
    if type(physics) is BlurFFT and buffers.get("filter") is not None:
        kernel = buffers["filter"].detach().double()
        return {"filter": _of_taps(Filtering(kernel, "circular"), tuple(x.shape[2:]))}
    if type(physics) in (Inpainting, MRI):
        # a mask between two maps of norm one: ||dm * v|| <= max |dm| ||v||
        return {"mask": Bound.proven(1.0)}
    if type(physics) is MultiCoilMRI:
        maps = buffers["coil_maps"].detach().abs().double().square().sum(dim=1)
        return {"mask": Bound.proven(math.sqrt(float(maps.max())) * FOR_ROUNDING)}
    return {}


def _of_taps(filtering: Filtering, sides: tuple[int, ...]) -> Bound:
    if len(sides) != len(filtering.window):
        return Bound.unknown()
    try:
        return Bound.proven(taps_sensitivity(filtering, sides))
    except RuntimeError:  # torch refuses to pad by more than there is
        return Bound.unknown()


def _through_tensors(physics: Parametrized, x: Tensor) -> Bound:
    """beta(k) ||Dk||, summed over the tensors, which may share parameters."""
    known = tensor_sensitivities(at_tensors(physics), x)
    with torch.enable_grad():
        made = physics.tensors()
    learned = trainable(physics) if isinstance(physics, nn.Module) else []
    total = Bound.exact(0.0)
    for name, t in made.items():
        if not t.requires_grad:
            continue
        jacobian = jacobian_of(t, learned)
        if name not in known or jacobian is None:
            return Bound.unknown()
        stretch = float(torch.linalg.matrix_norm(jacobian, 2)) * FOR_ROUNDING
        total = total + known[name] * stretch
    return total


def jacobian_of(t: Tensor, parameters: list[Tensor]) -> Tensor | None:
    """D of a tensor with respect to parameters, (entries, d) in float64; None where it is too large
    or autograd cannot follow.

    The columns come from differentiating u -> D^T u, which is linear.
    """
    count = sum(p.numel() for p in parameters)
    if t.numel() * count > MOST_ROWS or t.is_complex():
        return None
    with torch.enable_grad():
        if not t.requires_grad:
            return torch.zeros(t.numel(), count, dtype=torch.float64, device=t.device)
        u = torch.zeros_like(t, requires_grad=True)
        pulled = torch.autograd.grad(
            t, parameters, u, create_graph=True, allow_unused=True, retain_graph=True
        )
        flat = [
            torch.zeros_like(p).reshape(-1) if g is None else g.reshape(-1)
            for g, p in zip(pulled, parameters, strict=True)
        ]
        row = torch.cat(flat)
        if not row.requires_grad:
            return torch.zeros(t.numel(), count, dtype=torch.float64, device=t.device)
        columns = []
        for entry in row:
            (column,) = torch.autograd.grad(entry, u, retain_graph=True, allow_unused=True)
            columns.append(torch.zeros_like(t) if column is None else column)
    return torch.stack([c.detach().double().reshape(-1) for c in columns], dim=1)


def _of_parts(parts: list[LinearPhysicsLike], x: Tensor, times: bool) -> Bound:
    """Of a product, A_1 first, or of a stack."""
    shared = [p for part in parts for _, p in named_trainable(part)]
    if len({id(p) for p in shared}) < len(shared):
        return Bound.unknown()
    betas, norms, at = [], [], x
    for part in parts:
        betas.append(sensitivity(part, at))
        if times:
            at = at.to(dtype_of(part, at))
            spectrum = LinearMap(part, trusted=True).on(at).spectrum(at)
            norms.append(Bound(math.sqrt(float(spectrum.L.max())), spectrum.L_kind))
            at = part.A(at)
    if not times:
        return _root_of_squares(betas)
    blocks = []
    for i, beta in enumerate(betas):
        if beta.value == 0:
            continue
        for j, norm in enumerate(norms):
            beta = beta if j == i else Bound(beta.value * norm.value, min(beta.kind, norm.kind))
        blocks.append(beta)
    return _root_of_squares(blocks)
