"""Cost: honest work counters, summed over images (an image that is finished costs nothing)."""

from __future__ import annotations

import operator
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Cost:
    """Evaluations of the lower-level energy, counted once per image and call.

    A batch call on 8 unfinished images counts 8. ``cg_steps`` are listed for comparison with
    published plots; each of them costs one Hessian product, which is counted there, so ``work``
    does not add them again.

    Attributes:
        values: energy values.
        gradients: energy gradients (the closing float64 ones included).
        hessian_products: Hessian-vector products (CG, residual checks, power iterations, error
            estimates).
        linearizations: Hessians made ready at a point, and averages of them for preconditioners.
        mixed_products: products with the mixed derivative, one reverse-mode call each.
        cg_steps: steps of conjugate gradients or MINRES.
        power_iterations: power iterations (each is a Hessian product as well).
    """

    values: int = 0
    gradients: int = 0
    hessian_products: int = 0
    mixed_products: int = 0
    cg_steps: int = 0
    power_iterations: int = 0
    linearizations: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*map(operator.add, vars(self).values(), vars(other).values()))

    def __sub__(self, other: Cost) -> Cost:
        return Cost(*map(operator.sub, vars(self).values(), vars(other).values()))

    @property
    def work(self) -> int:
        """All evaluations of the energy, summed over images."""
        return (
            self.values
            + self.gradients
            + self.linearizations
            + self.hessian_products
            + self.mixed_products
        )

    def per_image(self, images: int) -> dict[str, float]:
        """Mean per image of every counter, and of ``work``."""
        return {k: v / images for k, v in (*asdict(self).items(), ("work", self.work))}

    def to_dict(self) -> dict[str, int]:
        return asdict(self)

    def __str__(self) -> str:
        named = [f"{v} {k.replace('_', ' ')}" for k, v in asdict(self).items() if v]
        return f"{self.work} evaluations ({', '.join(named) or 'none'})"
