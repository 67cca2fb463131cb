"""What the derivative-free learner keeps between two evaluations: samples, each with its own
solution, and radii.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

from torch import Tensor

from .interpolation import Sample, Scaling, sample
from .lower_level import LowerLevel
from .state import Packed, double_point, pack_point, point_row, restore_point

SAVED = ("best", "radius", "least", "repair", "exhausted", "pixels", "info")
"""Fields of a DFOState that a checkpoint keeps as they are."""


@dataclass(frozen=True)
class DFOState:
    """Between two evaluations.

    Attributes:
        samples: at most n + 1.
        best: index of theta_k.
        radius, least: Delta and rho.
        repair: a failure asks for better samples.
        exhausted: it happened at the least radius.
        pixels: residuals are those of pixels.
        info: what the record shows.
    """

    samples: tuple[Sample, ...]
    best: int
    radius: float
    least: float
    repair: bool
    exhausted: bool
    pixels: bool
    info: dict[str, Any]

    @property
    def center(self) -> Sample:
        """The sample of theta_k."""
        return self.samples[self.best]

    @property
    def theta(self) -> Tensor:
        return self.center.point.theta

    def row(self, problem: Any) -> dict[str, Any]:
        """theta_k, and what was evaluated."""
        return point_row(self.center.point, problem, self.info)

    def pack(self) -> Packed:
        """For a checkpoint."""
        packed = Packed(
            {}, {"samples": len(self.samples), **{name: getattr(self, name) for name in SAVED}}
        )
        for j, s in enumerate(self.samples):
            packed = packed.holding(str(j), pack_point(s.point))
        return packed

    @classmethod
    def restore(cls, lower: LowerLevel, packed: Packed, scaling: Scaling) -> Self:
        """The inverse of ``pack``."""
        samples = []
        for j in range(packed.numbers["samples"]):
            point = restore_point(lower, packed.part(str(j)))
            samples.append(sample(lower.problem, scaling, point, packed.numbers["pixels"]))
        return cls(tuple(samples), **{name: packed.numbers[name] for name in SAVED})

    def double(self, lower: LowerLevel) -> DFOState:
        """The same state for a float64 lower level; u, residuals and errors are in float64
        already.
        """
        return replace(
            self,
            samples=tuple(replace(s, point=double_point(s.point, lower)) for s in self.samples),
        )
