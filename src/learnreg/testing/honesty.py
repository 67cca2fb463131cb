"""Certified distances of an energy of yours beside true ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..core.batch import norm
from ..core.protocols import AnySolver
from ..problems import Energy
from ..solvers import solve
from .minimizers import truth

ROUNDING = 1e-6
"""Relative excess that is put down to the rounding of both distances."""


@dataclass(frozen=True)
class Row:
    """One image solved to one accuracy.

    Attributes:
        eps: accuracy asked for.
        image: its place in the batch.
        certified: what the solution says.
        true: distance to an independent minimizer.
        uncertainty: how far that one may be from the true minimizer.
        kind: how the certificate is known, "certified" or "estimated".
        status: how the solve ended.
        solver: which it was.
    """

    eps: float
    image: int
    certified: float
    true: float
    uncertainty: float
    kind: str
    status: str
    solver: str

    @property
    def ratio(self) -> float:
        """The least that true / certified can be; a certificate tells the truth up to 1."""
        least = max(self.true - self.uncertainty, 0.0)
        return (
            least / self.certified if self.certified > 0 else (0.0 if least == 0 else float("inf"))
        )

    @property
    def violated(self) -> bool:
        """Whether a distance that is called certified is false."""
        return self.kind == "certified" and not self.ratio <= 1 + ROUNDING


def honesty(
    energy: Energy,
    y: Tensor,
    eps: float | Iterable[float],
    *,
    solver: str | AnySolver = "auto",
    budget: int | None = None,
) -> list[Row]:
    """Solve to each accuracy and measure the true distances.

    Args:
        energy: an ``Energy``.
        y: measurements (b, ...); a few small images, since truths are computed densely.
        eps: accuracies.
        solver, budget: as for ``solve``.

    Returns:
        One row per accuracy and image; a solve cut short has a certificate as well.

    >>> import deepinv, torch, learnreg
    >>> physics = deepinv.physics.Denoising(deepinv.physics.GaussianNoise(0.1))
    >>> energy = learnreg.Energy(physics, learnreg.regularizers.TV())
    >>> rows = honesty(energy, torch.rand(2, 1, 6, 6), [1e-1, 1e-3])
    >>> any(row.violated for row in rows)
    False
    """
    accuracies: Sequence[float] = [eps] if isinstance(eps, int | float) else list(eps)
    solutions = [solve(energy, y, e, solver=solver, budget=budget, throw=False) for e in accuracies]
    exact = truth(energy, y, solutions[-1].value)
    return [
        Row(
            e,
            i,
            float(s.error[i]),
            float(norm(s.value.double() - exact.minimizer)[i]),
            float(exact.uncertainty[i]),
            s.kind.label,
            s.status[i].name,
            s.solver,
        )
        for e, s in zip(accuracies, solutions, strict=True)
        for i in range(y.shape[0])
    ]


def check_honesty(
    energy: Energy,
    y: Tensor,
    eps: float | Iterable[float],
    *,
    solver: str | AnySolver = "auto",
    budget: int | None = None,
) -> None:
    """``honesty``, as an assertion.

    Raises:
        AssertionError: names the first certificate that is false.
    """
    for row in honesty(energy, y, eps, solver=solver, budget=budget):
        if row.violated:
            raise AssertionError(
                f"certificate of image {row.image} at eps {row.eps:.0e} ({row.solver}): given "
                f"{row.certified:.3e}; expected at least the true distance {row.true:.3e}."
            )
