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
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core.asking import offers
from ..core.batch import norm
from ..core.bounds import Bound
from ..core.params import named_trainable
from .filtering import (
    Filtering,
    columns_sensitivity,
    filtering_of,
    keeps_constants,
    overridden,
    taps_sensitivity,
)
from .foreign import LinearPhysicsLike
from .norms import dtype_of, factors, rows
from .parametrized import KnowsSensitivity, Parametrized, at_tensors, is_parametrized
from .physics import LinearMap, TiedMap

MOST_ENTRIES = 2**24
"""Of the Jacobian of a parametrization, up to which it is made as a matrix."""

AT_A_TIME = 64
"""Columns of it."""

FOR_ROUNDING = 1 + 1e-6
"""What bounds are widened by that were computed from tensors in float32."""


@dataclass(frozen=True)
class Moves:
    """How far A moves with theta: ||dA v|| <= beta ||dtheta|| ||v||, and less for flat images.

    Attributes:
        beta: for all images.
        flat: in the place of beta, for images that are constant in every channel; zero for a kernel
            whose sum stays what it is.
    """

    beta: Bound
    flat: float

    def of(self, x: Tensor) -> Tensor:
        """max ||dA x|| / ||dtheta|| per image (b,), float64: beta ||x||, or beta ||x - c|| + flat
        ||c|| with c the mean of every channel.
        """
        x = x.detach().double()
        whole = self.beta.value * norm(x)
        if not self.flat < self.beta.value or x.dim() < 3:
            return whole
        c = x.mean(dim=tuple(range(2, x.dim())), keepdim=True)
        parts = self.beta.value * norm(x - c) + self.flat * norm(c.expand_as(x))
        return torch.minimum(whole, parts)


@torch.no_grad()
def moves(physics: LinearPhysicsLike, x: Tensor) -> Moves:
    """How far a physics moves with all of its trainable tensors together; unknown where one of
    them is.

    Args:
        x: images (b, c, ...) as the physics takes them; only their shape matters.
    """
    learned = named_trainable(physics)
    if not learned:
        return Moves(Bound.exact(0.0), 0.0)
    if offers(physics, KnowsSensitivity):
        return _everywhere(physics.sensitivity(x))
    if is_parametrized(physics):
        return _through_tensors(physics, x)
    product, stacked = factors(physics), rows(physics)
    if product is not None or stacked is not None:
        return _everywhere(_of_parts(product or stacked or [], x, product is not None))
    known = tensor_sensitivities(physics, x)
    betas = [known.get(name, Bound.unknown()) for name, _ in learned]
    return _everywhere(_root_of_squares(betas))


def sensitivity(physics: LinearPhysicsLike, x: Tensor) -> Bound:
    """beta alone, see ``moves``."""
    return moves(physics, x).beta


def moves_of(tied: TiedMap, like: Tensor) -> Moves:
    """That of the operator of a batch, for its images (b, c, ...) of which only the shape matters,
    the largest of all; unknown for complex images, and for some images of a batch whose operators
    differ.
    """
    native = tied.layout.image_out((like if tied.names else like[:1]).detach())
    if native.is_complex() or (tied.names and tied.index is not None):
        return _everywhere(Bound.unknown())
    physics = tied.map.physics
    return moves(physics, native.to(dtype_of(physics, native)))


def _everywhere(beta: Bound) -> Moves:
    """Nothing better is known of flat images."""
    return Moves(beta, beta.value)


def _root_of_squares(bounds: list[Bound]) -> Bound:
    """Of blocks of theta that have nothing in common."""
    value = math.sqrt(sum(b.value**2 for b in bounds))
    return Bound(value, min(b.kind for b in bounds))


def tensor_sensitivities(physics: LinearPhysicsLike, x: Tensor) -> dict[str, Bound]:
    """beta of single tensors on which A depends linearly, by the names of ``update``; of known
    classes only, and of their products and stacks.
    """
    from deepinv.physics import MRI, Inpainting, MultiCoilMRI

    product, stacked = factors(physics), rows(physics)
    if product is not None or stacked is not None:
        return _of_tensors_in(product or stacked or [], x, product is not None)
    filtering = _with_taps(physics)
    if filtering is not None:
        return {"filter": _of_taps(filtering, filtering.sides_of(x))}
    if overridden(physics):
        return {}
    buffers = dict((*physics.named_parameters(), *physics.named_buffers()))
    if type(physics) in (Inpainting, MRI):
        # a mask between two maps of norm one: ||dm * v|| <= max |dm| ||v||
        return {"mask": Bound.proven(1.0)}
    if type(physics) is MultiCoilMRI:
        maps = buffers["coil_maps"].detach().abs().double().square().sum(dim=1)
        return {"mask": Bound.proven(math.sqrt(float(maps.max())) * FOR_ROUNDING)}
    return {}


def _with_taps(physics: LinearPhysicsLike) -> Filtering | None:
    """A convolution that depends linearly on its filter, by whatever transforms."""
    from deepinv.physics import BlurFFT

    if type(physics) is not BlurFFT or overridden(physics):
        return filtering_of(physics)
    kernel = dict(physics.named_buffers()).get("filter")
    return None if kernel is None else Filtering(kernel.detach().double(), "circular")


def _of_tensors_in(parts: list[LinearPhysicsLike], x: Tensor, times: bool) -> dict[str, Bound]:
    """Of the tensors of parts; a name that several parts have is for all of them at once, so that
    A is no longer linear in it.
    """
    norms, images = _along(parts, x) if times else ([], [x] * len(parts))
    found: dict[str, Bound] = {}
    for i, part in enumerate(parts):
        for name, beta in tensor_sensitivities(part, images[i]).items():
            found[name] = Bound.unknown() if name in found else _among(beta, norms, i)
    return found


def _along(parts: list[LinearPhysicsLike], x: Tensor) -> tuple[list[Bound], list[Tensor]]:
    """||A_i||, and what A_i is applied to, of a product with A_1 first."""
    norms, images = [], []
    at = x
    for part in parts:
        at = at.to(dtype_of(part, at))
        images.append(at)
        spectrum = LinearMap(part, trusted=True).on(at).spectrum(at)
        norms.append(Bound(math.sqrt(float(spectrum.L.max())), spectrum.L_kind))
        at = part.A(at)
    return norms, images


def _among(beta: Bound, norms: list[Bound], place: int) -> Bound:
    """beta of a factor times the norms of all others."""
    for i, other in enumerate(norms):
        if i != place:
            beta = Bound(beta.value * other.value, min(beta.kind, other.kind))
    return beta


def _of_taps(filtering: Filtering, sides: tuple[int, ...]) -> Bound:
    if len(sides) != len(filtering.window):
        return Bound.unknown()
    try:
        return Bound.proven(taps_sensitivity(filtering, sides))
    except RuntimeError:  # torch refuses to pad by more than there is
        return Bound.unknown()


def _through_tensors(physics: Parametrized, x: Tensor) -> Moves:
    """Through the Jacobians of the tensors, which may share parameters: their bounds are added.
    Tensors that are learned as they are count by themselves.
    """
    fixed = at_tensors(physics)
    known = tensor_sensitivities(fixed, x)
    with torch.enable_grad():
        made = physics.tensors()
    learned = named_trainable(physics) if isinstance(physics, nn.Module) else []
    sizes = [p.numel() for _, p in learned]
    total, flat, seen = Bound.exact(0.0), 0.0, torch.zeros(sum(sizes))
    for name, t in made.items():
        if not t.requires_grad:
            continue
        jacobian = jacobian_of(t, [p for _, p in learned])
        if name not in known or jacobian is None:
            return _everywhere(Bound.unknown())
        seen += jacobian.abs().sum(dim=0).to(seen)
        own = _along_columns(fixed, name, known[name], jacobian, t.shape, x)
        total, flat = total + own.beta, flat + own.flat

    others = []
    for (name, _), part in zip(learned, seen.split(sizes), strict=True):
        if name.startswith("base.") and not part.any():
            others.append(known.get(name.removeprefix("base."), Bound.unknown()))
        elif not name.startswith("parametrizations.") and not part.any():
            return _everywhere(Bound.unknown())  # nobody sees what it does
    return _everywhere(_root_of_squares([total, *others])) if others else Moves(total, flat)


def _along_columns(
    fixed: LinearPhysicsLike,
    name: str,
    of_tensor: Bound,
    jacobian: Tensor,
    shape: torch.Size,
    x: Tensor,
) -> Moves:
    """beta(k) ||Dk||, or what the symbols of the columns of Dk say where k is a kernel."""
    stretched = of_tensor * (float(torch.linalg.matrix_norm(jacobian, 2)) * FOR_ROUNDING)
    filtering = _with_taps(fixed) if name == "filter" else None
    if filtering is None or not filtering.fits(x) or shape[0] != 1:
        return _everywhere(stretched)
    columns = jacobian.T.reshape(-1, *shape[1:])
    by_symbol = columns_sensitivity(filtering, columns, filtering.sides_of(x)) * FOR_ROUNDING
    beta = stretched if stretched.value <= by_symbol else Bound.proven(by_symbol)
    if not keeps_constants(filtering):
        return _everywhere(beta)
    sums = columns.flatten(2).sum(dim=2).norm(dim=0).max()
    rounding = 1e-6 * float(jacobian.norm())
    return Moves(beta, min(beta.value, float(sums) + rounding))


def jacobian_of(t: Tensor, parameters: list[Tensor]) -> Tensor | None:
    """D of a tensor with respect to parameters, (entries, d) in float64; None where it is too large
    or autograd cannot follow.

    The columns come from differentiating u -> D^T u, which is linear.
    """
    count = sum(p.numel() for p in parameters)
    if t.numel() * count > MOST_ENTRIES or t.is_complex():
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
        return _columns(row, u)


def _columns(row: Tensor, u: Tensor) -> Tensor:
    """d row / d u transposed, (entries of u, entries of row), some at a time."""
    size, at = row.numel(), []
    for start in range(0, size, AT_A_TIME):
        part = torch.arange(start, min(start + AT_A_TIME, size), device=row.device)
        chosen = torch.zeros(len(part), size, dtype=row.dtype, device=row.device)
        chosen[torch.arange(len(part)), part] = 1
        (found,) = torch.autograd.grad(row, u, chosen, retain_graph=True, is_grads_batched=True)
        at.append(found.detach().double().reshape(len(part), -1))
    return torch.cat(at).T


def _of_parts(parts: list[LinearPhysicsLike], x: Tensor, times: bool) -> Bound:
    """Of a product, A_1 first, or of a stack."""
    shared = [p for part in parts for _, p in named_trainable(part)]
    if len({id(p) for p in shared}) < len(shared):
        return Bound.unknown()
    norms, images = _along(parts, x) if times else ([], [x] * len(parts))
    betas = [sensitivity(part, at) for part, at in zip(parts, images, strict=True)]
    learned = [i for i, beta in enumerate(betas) if beta.value != 0]
    return _root_of_squares([_among(betas[i], norms, i) for i in learned])
