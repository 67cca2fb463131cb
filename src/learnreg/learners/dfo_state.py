"""What the derivative-free learner keeps between two evaluations: samples, each with its own
solution, and radii.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..core.objective import Row, row_of
from .interpolation import Sample


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
    info: Row

    @property
    def center(self) -> Sample:
        """The sample of theta_k."""
        return self.samples[self.best]

    @property
    def theta(self) -> Tensor:
        return self.center.point.theta

    def row(self) -> Row:
        """theta_k, and what was evaluated."""
        return row_of(self.center.point, self.info)
