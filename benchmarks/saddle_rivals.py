"""Primal-dual hybrid gradient from elsewhere: deepinv's PDCP and pyproximal's PrimalDual, fed as
well as they can be.

Both make the iteration p+ = prox_{sigma f*}(p + sigma K xbar), x+ = prox_{tau g}(x - tau K^T p+)
with fixed steps; the splitting is ours: K = D for denoising, K = (A, row D) for an A without a
closed proximal map, with a weight ``row`` that may be chosen. Everything they need is closed form:
no inner solver runs in either. deepinv gets its own differences (``TVDenoiser.nabla``) and its own
proximal maps, pyproximal those of pylops and its own, in float32.

A rival is a function (problem, settings, look): ``look`` is called with every iterate, stops the
clock meanwhile, and ends the run by an exception. Copies of an iterate are made only where
``Iterate.blocks`` is called.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import deepinv as dinv
import numpy as np
import torch
from deepinv.models.tv import TVDenoiser
from deepinv.optim import L2Distance, L12Prior
from deepinv.utils import TensorList
from torch import Tensor


@dataclass(frozen=True)
class Settings:
    """tau = ratio / ||K||, sigma = 1 / (ratio ||K||), and the weight of D within K."""

    ratio: float
    row: float = 1.0


class Iterate(NamedTuple):
    """x and p of some method; ``blocks()`` gives ((u,), (p_1, ...)) as our saddle functions have
    them.
    """

    blocks: Callable[[], tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]


class Enough(Exception):
    """The benchmark has seen what it wants."""


def lengths(problem: Any, settings: Settings) -> tuple[float, float]:
    """tau and sigma with tau sigma ||K||^2 = 1; ||K||^2 <= ||A||^2 + row^2 ||D||^2."""
    size = (problem.norm_A**2 + settings.row**2 * problem.norm_D**2) ** 0.5
    return settings.ratio / size, 1 / (settings.ratio * size)


# --- deepinv --------------------------------------------------------------------------------------


class Closed(dinv.optim.DataFidelity):
    """What stands on the image: |x - y|^2 / 2 for denoising, tikhonov |x|^2 / 2 else; by deepinv's
    closed form.
    """

    def __init__(self, problem: Any) -> None:
        super().__init__()
        weight = problem.tikhonov if problem.data else 1.0
        self.distance = L2Distance(sigma=weight**-0.5)
        self.centre = torch.zeros_like(problem.x0) if problem.data else problem.y

    def prox(
        self, x: Tensor, y: Tensor, physics: Any, *args: Any, gamma: float = 1.0, **kwargs: Any
    ) -> Tensor:
        return self.distance.prox(x, self.centre, gamma=gamma)


class Rows(dinv.optim.Prior):
    """|. - y|^2 / 2 on the row of A where K has one, weight |.|_{1,2} on that of D; by deepinv's
    closed forms.
    """

    def __init__(self, problem: Any, row: float) -> None:
        super().__init__()
        self.explicit_prior = False
        self.problem, self.weight = problem, problem.weight / row
        self.norm, self.distance = L12Prior(l2_axis=-1), L2Distance()

    def prox_conjugate(
        self, x: Any, *args: Any, gamma: float = 1.0, lamb: float = 1.0, **kwargs: Any
    ) -> Any:
        if not self.problem.data:
            return self.norm.prox_conjugate(x, gamma=gamma, lamb=self.weight)
        return TensorList(
            [
                self.distance.prox_conjugate(x[0], self.problem.y, gamma=gamma),
                self.norm.prox_conjugate(x[1], gamma=gamma, lamb=self.weight),
            ]
        )


class Watched(dinv.optim.PDCP):
    """PDCP that shows every iterate."""

    look: Callable[[Any], None]

    def check_conv_fn(self, it: int, X_prev: dict, X: dict) -> bool:
        self.look(X["est"])
        return False


def deepinv_pdcp(problem: Any, settings: Settings, look: Callable[[Iterate], None]) -> None:
    """deepinv.optim.PDCP with g_first, K as callables; ``look`` sees every iterate and ends the run
    by ``Enough``.
    """
    A, row, nabla, transposed = problem.A, settings.row, TVDenoiser.nabla, TVDenoiser.nabla_adjoint
    tau, sigma = lengths(problem, settings)
    if problem.data:
        start: Any = TensorList([torch.zeros_like(problem.y), torch.zeros_like(nabla(problem.x0))])
        K: Any = lambda x: TensorList([A.A(x), nabla(x) * row])  # noqa: E731
        K_adjoint: Any = lambda p: A.A_adjoint(p[0]) + transposed(p[1]) * row  # noqa: E731
    else:
        start = torch.zeros_like(nabla(problem.x0))
        K, K_adjoint = (
            (nabla, transposed)
            if row == 1
            else (lambda x: nabla(x) * row, lambda p: transposed(p) * row)
        )

    def seen(est: Any) -> None:
        x, _, p = est
        look(Iterate(lambda: ((x.clone(),), _ours(p, problem, row))))

    model = Watched(
        K=K,
        K_adjoint=K_adjoint,
        data_fidelity=Closed(problem),
        prior=Rows(problem, row),
        g_first=True,
        stepsize=tau,
        stepsize_dual=sigma,
        max_iter=10**7,
        early_stop=True,
        custom_init=lambda *_: {"est": (problem.x0, problem.x0, start)},
    )
    model.look = seen
    with torch.no_grad():
        model(problem.y, A)


def _ours(p: Any, problem: Any, row: float) -> tuple[Tensor, ...]:
    """deepinv's dual variable as ours: components in dimension 1, and |p| <= 1 for K = weight D."""
    field = p[1] if problem.data else p
    field = field.movedim(-1, 1) * (row / problem.weight)
    return (p[0].clone(), field.clone()) if problem.data else (field.clone(),)


# --- pyproximal -----------------------------------------------------------------------------------


def pyproximal_primal_dual(
    problem: Any, settings: Settings, look: Callable[[Iterate], None]
) -> None:
    """pyproximal.optimization.primaldual.PrimalDual on the batch as one vector."""
    import pylops
    import pyproximal
    from pyproximal.optimization.primaldual import PrimalDual

    b, _, h, w = problem.x0.shape
    tau, sigma = lengths(problem, settings)
    D = pylops.VStack(
        [
            pylops.FirstDerivative((b, h, w), axis=axis, kind="forward", dtype="float32")
            for axis in (1, 2)
        ]
    )
    weight, y = problem.weight / settings.row, problem.y.numpy().ravel()
    length = pyproximal.L21(ndim=2, sigma=weight)
    if problem.data:
        K = pylops.VStack([_as_operator(problem), settings.row * D], dtype="float32")
        f, g = (
            pyproximal.L2(sigma=problem.tikhonov),
            pyproximal.VStack([pyproximal.L2(b=y), length], nn=[y.size, D.shape[0]]),
        )
    else:
        K = D if settings.row == 1 else settings.row * D
        f, g = pyproximal.L2(b=y), length

    def blocks(x: np.ndarray, p: np.ndarray) -> Any:
        field = torch.from_numpy(p[-D.shape[0] :].copy()).view(2, b, 1, h, w).movedim(0, 1) / weight
        rest = (torch.from_numpy(p[: y.size].copy()).view_as(problem.y),) if problem.data else ()
        return (torch.from_numpy(x.copy()).view_as(problem.x0),), (*rest, field.contiguous())

    PrimalDual(
        f,
        g,
        K,
        problem.x0.numpy().ravel().copy(),
        tau,
        sigma,
        niter=10**6,
        callbacky=True,
        callback=lambda x, p: look(Iterate(lambda: blocks(x, p))),
    )


def _as_operator(problem: Any) -> Any:
    """deepinv's A for pylops; both share the memory of their arrays."""
    import pylops

    class Projector(pylops.LinearOperator):
        def __init__(self) -> None:
            super().__init__(
                dtype=np.dtype("float32"), shape=(problem.y.numel(), problem.x0.numel())
            )

        def _matvec(self, x: np.ndarray) -> np.ndarray:
            return problem.A.A(torch.from_numpy(x).view_as(problem.x0)).numpy().ravel()

        def _rmatvec(self, y: np.ndarray) -> np.ndarray:
            return problem.A.A_adjoint(torch.from_numpy(y).view_as(problem.y)).numpy().ravel()

    return Projector()


RIVALS = {"deepinv PDCP": deepinv_pdcp, "pyproximal PrimalDual": pyproximal_primal_dual}
