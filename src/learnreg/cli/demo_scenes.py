"""What ``learnreg demo NAME`` shows: the data, the physics and the methods of every name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..core.errors import InputError
from .config import Config
from .mistakes import nearest, one_of_words

Table = Mapping[str, object]

MAID: Table = {"type": "maid"}
BLOCKS: Table = {"type": "deferred"}
"""Steps that follow estimates, certified at the end of every block: where the data leave much open
certificates are dear.
"""


@dataclass(frozen=True)
class Scene:
    """One demonstration.

    Attributes:
        task: what is done, for the first line.
        measured: how the measurements are made, as a sentence.
        data, physics, noise: sections of a configuration.
        tv: keys of the total variation at its start; its own defaults when empty.
        learned: the section [regularizer] of the method that is compared with it.
        learner: the section [learner] of that method; total variation has MAID.
        story: what that method is, as a heading.
        output: the folder when none is named.
        example: the file to try ``reconstruct`` on.
        clean: what its result may be called.
        seconds: most time for learning.
        tv_share: part of it that total variation may take; what it leaves is for the other.
    """

    task: str
    measured: str
    data: Table
    physics: Table
    noise: Table
    learned: Table
    story: str
    output: str
    example: str
    clean: str
    tv: Table = field(default_factory=dict)
    learner: Table = field(default_factory=lambda: MAID)
    seconds: float = 120.0
    tv_share: float = 0.2

    def config(
        self, regularizer: Table, learner: Table, run: Table, steps: int | None = None
    ) -> Config:
        """A configuration of this demonstration; one of the default budget without ``steps``.

        Args:
            regularizer, learner: their sections.
            run: keys of [run].
            steps: the budget.
        """
        tables: dict[str, object] = {
            "data": self.data,
            "physics": self.physics,
            "noise": self.noise,
            "regularizer": regularizer,
            "learner": learner,
            "run": run,
        }
        if steps is not None:
            tables["budget"] = {"steps": steps}
        return Config.model_validate(tables)

    @property
    def total_variation(self) -> Table:
        """The section [regularizer] of the method to beat."""
        return {"type": "TV", **self.tv}


def _sum(weight: float, smoothing: float, filters: int, size: int) -> Table:
    """Total variation and Fields of Experts, both learned, at a start near a good total variation:
    the filters take over a part of its weight.
    """
    return {
        "type": "Sum",
        "terms": [
            {"type": "TV", "weight": 0.7 * weight, "smoothing": smoothing},
            {"type": "FoE", "filters": filters, "size": size, "weight": 0.45 * weight / filters},
        ],
    }


SCENES = {
    "photographs": Scene(
        task="Photographs are denoised",
        measured="Noise 0.1.",
        data={"source": "natural", "size": 96, "train": 24, "test": 8},
        physics={"type": "denoising"},
        noise={"type": "gaussian", "sigma": 0.1},
        learned={"type": "FoE", "filters": 24, "size": 5},
        story="Fields of Experts",
        output="report",
        example="noisy.png",
        clean="clean.png",
        seconds=90.0,
        tv_share=0.06,
    ),
    "ct": Scene(
        task="Tomography with few views",
        measured="Sinograms of 20 parallel views, noise 0.02 (the operator has norm 1).",
        data={"source": "natural", "size": 48, "train": 32, "test": 8},
        physics={"type": "CT", "angles": 20},
        noise={"type": "gaussian", "sigma": 0.02},
        tv={"weight": 0.004, "smoothing": 0.01},
        learned=_sum(0.004, 0.01, 8, 3),
        learner=BLOCKS,
        story="TV + Fields of Experts",
        output="report-ct",
        example="sinogram.npy",
        clean="clean.npy",
        tv_share=0.3,
    ),
    "mri": Scene(
        task="Magnetic resonance, four times accelerated",
        measured="One coil, a quarter of the lines of k-space, noise 0.05; images are real.",
        data={"source": "natural", "size": 48, "train": 48, "test": 8},
        physics={"type": "MRI", "acceleration": 4},
        noise={"type": "gaussian", "sigma": 0.05},
        tv={"weight": 0.025, "smoothing": 0.005},
        learned=_sum(0.025, 0.005, 8, 5),
        learner=BLOCKS,
        story="TV + Fields of Experts",
        output="report-mri",
        example="kspace.npy",
        clean="clean.npy",
    ),
}
"""Weights and smoothings are near those that are learned: the time is spent on the filters."""


def scene_of(name: str) -> Scene:
    """The demonstration of a name, in any case.

    Raises:
        InputError: no such demonstration.
    """
    if (found := SCENES.get(name.lower())) is None:
        raise InputError(
            "demonstration",
            given=name,
            expected=one_of_words(SCENES),
            remedy=nearest(name, list(SCENES)) or "Leave the name out for photographs.",
        )
    return found
