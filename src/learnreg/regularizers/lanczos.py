"""Extreme eigenvalues of symmetric maps, one per image, by the Lanczos method."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.batch import expand
from ..core.protocols import Hessian

SEED = 0


@torch.no_grad()
def extreme_eigenvalues(matvec: Hessian, like: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Estimates of the smallest and the largest eigenvalue per image: (b,) and (b,), float64.

    Lanczos with full reorthogonalization (Golub and Van Loan, Matrix Computations, section 10.3):
    the extreme Ritz values after k products, which lie inside the spectrum but for rounding. All
    images start from the same vector, drawn from a fixed seed, so that an image does not see its
    neighbours.

    Args:
        matvec: symmetric per image, (b, ...) -> (b, ...).
        like: (b, ...), shape and type of the images.
        iterations: products, at most as many as there are pixels.
    """
    count = min(iterations, like[0].numel())
    generator = torch.Generator().manual_seed(SEED)
    start = torch.randn(like[0].numel(), generator=generator, dtype=torch.float64)
    q = (start / start.norm()).to(like).expand(like.shape[0], -1)
    basis, alphas, betas = [q], [], []
    for _ in range(count):
        image = matvec(q.reshape(like.shape)).flatten(1)
        alphas.append((image * q).sum(dim=1).double())
        rest = _orthogonal(_orthogonal(image, basis), basis)
        betas.append(rest.norm(dim=1).double())
        q = _normalized(rest, image)
        basis.append(q)
    values = _ritz_values(torch.stack(alphas, dim=1), torch.stack(betas, dim=1)[:, :-1], basis)
    return values[:, 0], values[:, -1]


def _orthogonal(v: Tensor, basis: list[Tensor]) -> Tensor:
    """v (b, n) minus its projections on the basis."""
    vectors = torch.stack(basis, dim=1)
    return v - torch.einsum("bkn,bk->bn", vectors, torch.einsum("bkn,bn->bk", vectors, v))


def _normalized(rest: Tensor, image: Tensor) -> Tensor:
    """rest / ||rest||; 0 where it is rounding, and the space invariant."""
    length = rest.norm(dim=1)
    ended = length <= 100 * torch.finfo(rest.dtype).eps * image.norm(dim=1)
    return rest / expand(torch.where(ended, torch.inf, length), rest)


def _ritz_values(alphas: Tensor, betas: Tensor, basis: list[Tensor]) -> Tensor:
    """Eigenvalues (b, k) of the tridiagonal matrices, ascending; rows beyond an invariant space
    repeat the first Rayleigh quotient, which lies between the others.
    """
    live = torch.stack([(q != 0).any(dim=1) for q in basis[: alphas.shape[1]]], dim=1)
    matrix = torch.diag_embed(torch.where(live, alphas, alphas[:, :1]))
    if betas.shape[1]:
        coupling = torch.where(live[:, 1:], betas, 0.0)
        matrix = matrix + torch.diag_embed(coupling, 1) + torch.diag_embed(coupling, -1)
    return torch.linalg.eigvalsh(matrix)
