"""SaddleRegularizer: what every regularizer of a saddle-point lower level offers."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from ..convex import Convex
from ..core.errors import InputError, MissingPropertyError
from ..core.ranges import check_number
from .described import Described


class SaddleRegularizer(Described):
    """R(u; theta) = min_v max_p <K(theta)(u, v) + b(theta), p> + sum_i g_i(v_i) - sum_j f_j*(p_j).

    u are images (b, c, h, w), v auxiliary blocks (none is common), p dual blocks, all with the
    batch first; theta are the module's trainable parameters. They enter through K and b only: the
    convex functions g_i, f_j know nothing of theta, so a weight stands in the rows of K. The
    hypergradient then is that of <K(theta) X, p> + <K(theta) x + b, P> whatever the functions are.

    A subclass implements ``dual``, ``linear``, ``adjoint`` and ``norms``; with auxiliary blocks
    ``auxiliary`` and ``primal`` too. The other methods have defaults.
    """

    saddle: ClassVar[bool] = True

    @property
    def effort(self) -> float:
        """What K and its adjoint cost together, in operations on one vector of pixels; roughly."""
        return 20.0

    # --- blocks -----------------------------------------------------------------------------------

    def auxiliary(self, u: Tensor) -> tuple[Tensor, ...]:
        """Blocks v to start from, for images u (b, c, h, w); () if there are none."""
        return ()

    def primal(self, u: Tensor) -> tuple[Convex, ...]:
        """g_i, one for every block of ``auxiliary``."""
        return ()

    def dual(self, u: Tensor) -> tuple[Convex, ...]:
        """f_j, one for every dual block."""
        raise NotImplementedError

    @torch.no_grad()
    def dual_start(self, u: Tensor) -> tuple[Tensor, ...]:
        """Dual blocks to start from, zeros by default."""
        return tuple(torch.zeros_like(a) for a in self.linear(u, *self.auxiliary(u)))

    # --- the coupling -----------------------------------------------------------------------------

    def linear(self, u: Tensor, *v: Tensor) -> tuple[Tensor, ...]:
        """K(theta)(u, v), one tensor for every dual block; differentiable in theta, fast under
        ``torch.no_grad``.
        """
        raise NotImplementedError

    def adjoint(self, *p: Tensor) -> tuple[Tensor, ...]:
        """K(theta)^T p, exactly: the part of u first, then one tensor for every block v."""
        raise NotImplementedError

    def offset(self, u: Tensor) -> tuple[Tensor | None, ...] | None:
        """b(theta), for every dual block a tensor with first dimension 1 or None; None where there
        is none at all.
        """
        return None

    def norms(self, u: Tensor) -> list[list[float]]:
        """Proven upper bounds of the spectral norms of K_ji: a row per dual block, u first in every
        row.
        """
        raise NotImplementedError

    @torch.no_grad()
    def majorants(self, u: Tensor) -> list[Tensor]:
        """For every dual block j the symbol of a circulant >= K_ju^T K_ju, for ``torch.fft.rfft2``
        of images like u.

        Broadcastable to (1, c, h, w // 2 + 1); by default the constant ||K_ju||^2. It only steers
        step sizes.
        """
        return [u.new_full((1, 1, 1, 1), row[0] ** 2) for row in self.norms(u)]

    def finite(self, x: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """(u, *v) near x, with the same u, at which every f_j and g_i is finite, or None (the
        default): x is such.

        Args:
            x: (u, *v).
        """
        return None

    def feasible(self, x: tuple[Tensor, ...], p: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Dual blocks near p for which -K^T p lies in the domain of every g_i*, or None.

        None, the default, says that shrinking p by the gauges of f_j* and g_i* is enough.

        Args:
            x: (u, *v).
        """
        return None

    def sensitivity(self, u: Tensor) -> tuple[float, float]:
        """(kappa, beta), proven: ||dK|| <= kappa ||dtheta|| and ||db|| <= beta ||dtheta||; inf
        where unknown.
        """
        return math.inf, math.inf

    # --- the function -----------------------------------------------------------------------------

    @torch.no_grad()
    def value_with(self, u: Tensor, *v: Tensor) -> Tensor:
        """sum_j f_j(K (u, v) + b) + sum_i g_i(v_i), per image (b,): at least R(u), and equal to it
        at the best v.
        """
        images(u)
        blocks = self.linear(u, *v)
        shifts = self.offset(u) or (None,) * len(blocks)
        total = u.new_zeros(u.shape[0])
        for f, a, b in zip(self.dual(u), blocks, shifts, strict=True):
            total = total + f.value(a if b is None else a + b)
        for g, block in zip(self.primal(u), v, strict=True):
            total = total + g.value(block)
        return total

    def value(self, u: Tensor) -> Tensor:
        """R(u), (b, c, h, w) -> (b,).

        Raises:
            MissingPropertyError: R(u) is itself a minimum over auxiliary blocks.
        """
        if self.auxiliary(images(u)[:1]):
            raise MissingPropertyError(
                "value",
                given=f"{type(self).__name__}, whose value is a minimum over auxiliary fields",
                expected="a regularizer without auxiliary fields",
                remedy="Use value_with(u, *v) at given fields v.",
            )
        return self.value_with(u)


def images(u: Tensor, least: int = 1) -> Tensor:
    """u if it looks like images whose sides are at least ``least`` pixels.

    Raises:
        InputError: otherwise.
    """
    if u.dim() != 4 or min(u.shape[-2:]) < least:
        raise InputError(
            "u",
            given=f"shape {tuple(u.shape)}",
            expected="(b, c, h, w)" + (f" with h, w >= {least}" if least > 1 else ""),
            remedy=_remedy(u),
        )
    return u


def _remedy(u: Tensor) -> str:
    if u.dim() < 3:
        return "Add batch and channel dimensions, for example u[None, None]."
    if u.dim() == 4:
        return "Use larger images or smaller filters."
    return "Saddle regularizers are two-dimensional: use TV or HuberTV for signals and volumes."


def weight_of(log_weight: Tensor) -> float:
    """e^log_weight, inf where it is too large: constants that are not finite end a solve before it
    begins.
    """
    return float(log_weight.detach().double().exp())


def non_negative(name: str, value: object) -> float:
    """``value`` if it is a finite number >= 0.

    Raises:
        InputError: otherwise, naming the argument.
    """
    return float(check_number(name, value, lambda v: v >= 0, "a finite number >= 0"))
