"""[fidelity] type = "SampledL2": which measurements are worth taking, learned with the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..core.errors import ConfigError
from ..core.ranges import check_number, check_positive, tidy
from ..problems import Energy, SaddleEnergy, SampledL2, SamplingWeights, SparsityPenalty
from ..problems.sampling import Kind, Parametrization
from .sections import Built, tag_of


@dataclass(frozen=True)
class Sampling:
    """Least squares with weights in [0, 1] that are learned: which measurements are worth taking.

    Args:
        kind: "free" (every measurement), "lines" (of k-space, or views of a sinogram), "product"
            (lines times free ones), "radial" (spokes)
        axis: lines differ along this one of the last two axes of the measurements: -1 or -2
        spokes: number of spokes; enough to cover everything when None
        parametrization: "omega", or "S" for its root, from whose zero nothing returns
        start: of all weights
        beta0: price of measuring everything, in units of the loss of one image
        beta1: price of weights between 0 and 1, likewise
    """

    kind: Kind = "free"
    axis: int = -1
    spokes: int | None = None
    parametrization: Parametrization = "omega"
    start: float = 1.0
    beta0: float = 1.0
    beta1: float = 0.5

    def __post_init__(self) -> None:
        tidy(self)
        check_number("axis", self.axis, lambda v: v in (-1, -2), "-1 or -2", integer=True)
        check_positive("start", self.start)
        for name, value in (("beta0", self.beta0), ("beta1", self.beta1)):
            check_number(name, value, lambda v: v >= 0, "a number >= 0")

    def load(self, shape: tuple[int, ...]) -> SampledL2:
        """The data term for measurements with these last axes.

        Raises:
            InputError: a value out of range.
        """
        weights = SamplingWeights(
            shape,
            self.kind,
            axis=self.axis,
            spokes=self.spokes,
            parametrization=self.parametrization,
            start=self.start,
        )
        return SampledL2(weights)


def measured_shape(physics: nn.Module, size: tuple[int, int], channels: int) -> tuple[int, ...]:
    """The last two axes of the measurements of an image."""
    model: Any = physics  # an operator of deepinv, which has no types
    with torch.no_grad():
        device = next((t.device for t in physics.buffers()), torch.device("cpu"))
        y = model.A(torch.zeros(1, channels, *size, device=device))
    return tuple(y.shape[-2:])


def penalty_of(fidelity: Built, energy: Energy | SaddleEnergy) -> SparsityPenalty | None:
    """The penalty of a section, None for other data terms."""
    if tag_of(fidelity) != "SampledL2":
        return None
    settings: Sampling = fidelity.build("fidelity")
    return SparsityPenalty.of(energy, settings.beta0, settings.beta1)


def boxed(learner: Built, fidelity: Built, where: str = "learner") -> Built:
    """The learner with the range of the weights, where they are learned and it has no box yet.

    Raises:
        ConfigError: a learner that keeps no box.
    """
    if tag_of(fidelity) != "SampledL2":
        return learner
    if "box" not in type(learner).model_fields:
        raise ConfigError(
            f"[{where}] type",
            given=f'"{tag_of(learner)}" with SampledL2, whose weights are in [0, 1]',
            expected="a learner that keeps a box: maid, lbfgsb, hoag, stochastic",
            remedy='Use type = "maid".',
        )
    if getattr(learner, "box", None) is not None:
        return learner
    name = "root" if getattr(fidelity, "parametrization", None) == "S" else "omega"
    return learner.model_copy(update={"box": {name: [0.0, 1.0]}})


def check_full(physics: Built, fidelity: Built) -> None:
    """Refuse an accelerated MRI, of which nothing more can be chosen than it has measured.

    Raises:
        ConfigError: says which key.
    """
    few = tag_of(physics) == "MRI" and getattr(physics, "acceleration", 1) != 1
    if tag_of(fidelity) == "SampledL2" and few and getattr(physics, "file", None) is None:
        raise ConfigError(
            "[physics] acceleration",
            given=f"{getattr(physics, 'acceleration', None)} with SampledL2, which chooses what is "
            "measured itself",
            expected="1",
            remedy="Set acceleration = 1.",
        )
