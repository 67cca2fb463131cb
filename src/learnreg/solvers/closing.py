"""When an image is done: what a closing evaluation shows, and the rule that compares it with eps.

The evidence of a solver (a gradient norm in the working precision) only nominates an image; a rule
says which evidence nominates, how patient to be near rounding, and which distance is certified.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from ..core.asking import offers
from ..core.batch import norm
from ..core.bounds import Constants, constants_of
from ..core.certificates import distance_from_gradient
from ..core.protocols import Potential, State
from .offers import Rounded

Measure = Literal["distance", "residual", "stationarity"]
"""What the accuracy of a solve bounds."""

NOISE_PATIENCE = 24
"""Steps without progress after which an image is at the floor, where gradients can be nothing but
rounding noise.
"""


class Closing(NamedTuple):
    """What a closing evaluation of some images has shown; (b,) each but for the gradient.

    Attributes:
        evidence: what is compared with the target.
        size: the norm of the gradient itself; NaN where there is none.
        gradient: (b, ...).
        theorem: codes of the certificates, or None where there is one only.
    """

    evidence: Tensor
    size: Tensor
    gradient: Tensor
    theorem: Tensor | None


class Rule(Protocol):
    """What evidence certifies, and when to give up; made once for a batch."""

    @property
    def target(self) -> Tensor | float:
        """Evidence that certifies a distance of one: (b,) or (1,), or one number."""
        ...

    def broken(self, evidence: Tensor, state: State) -> Tensor:
        """Images (b,) that cannot go on."""
        ...

    def patient(self, running: int) -> tuple[int, int]:
        """Steps without progress after which noise, and any reason near the noise, ends an
        image.
        """
        ...

    def distance(self, evidence: Tensor) -> Tensor:
        """What closing evidence certifies, (b,) for the batch that the rule was made for."""
        ...


class ByGradient:
    """Images are certified by a gradient norm and mu."""

    def __init__(self, constants: Constants) -> None:
        self.mu = constants.mu
        self.target = constants.mu

        # slow progress of a badly conditioned image is no reason to end it
        condition = float((constants.L / constants.mu).max())
        self.patience = int(30 + 4 * min(condition, 1e8) ** 0.5)

    def broken(self, evidence: Tensor, state: State) -> Tensor:
        return ~torch.isfinite(evidence)

    def patient(self, running: int) -> tuple[int, int]:
        return NOISE_PATIENCE, self.patience

    def distance(self, evidence: Tensor) -> Tensor:
        return distance_from_gradient(evidence, self.mu)


class ByStationarity:
    """Images are done when their gradient is small; no distance is known."""

    # without mu there is no condition to go by: an image near the noise gets a few thousand steps
    patience = 3000

    def __init__(self, constants: Constants) -> None:
        self.target = torch.ones(1, dtype=torch.float64, device=constants.L.device)

    def broken(self, evidence: Tensor, state: State) -> Tensor:
        return ~torch.isfinite(evidence)

    def patient(self, running: int) -> tuple[int, int]:
        return NOISE_PATIENCE, self.patience

    def distance(self, evidence: Tensor) -> Tensor:
        return torch.full_like(evidence, torch.inf)


class ByCertificate:
    """Images are certified by the function itself, whose evidence is a distance."""

    target = 1.0

    def broken(self, evidence: Tensor, state: State) -> Tensor:
        # an infinite gap is no failure: K x may pass through places where f is infinite
        return evidence.isnan() | ~torch.isfinite(state.point).all(dim=1)

    def patient(self, running: int) -> tuple[int, int]:
        # a gap that falls as 1/k^2 looks slow after many steps
        return max(NOISE_PATIENCE, running // 4), max(100, running // 2)

    def distance(self, evidence: Tensor) -> Tensor:
        return evidence


def rounding_of(f: Potential, x: Tensor) -> Tensor:
    """What rounding can make of a gradient norm at x, (b,); see ``problems.EnergyAt.rounding``.

    A potential that does not tell gets four units of L ||x||.
    """
    if offers(f, Rounded):
        return f.rounding(x)

    L = constants_of(f).L
    units = 4 * torch.finfo(x.dtype).eps * torch.where(torch.isfinite(L), L, 0.0)
    return units * norm(x).double()
