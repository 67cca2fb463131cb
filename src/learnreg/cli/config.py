"""Typed configuration files: what a run is made of, checked before anything is computed.

Every mistake is a ConfigError that names the file, the section, the key, what was given and what
would have been accepted, with the nearest key if one was misspelt.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, model_validator
from torch import nn

from ..core import objective
from ..core.errors import ConfigError
from ..core.maps import SolutionMap
from ..physics import Noise, Setup
from ..problems import Energy, SaddleEnergy, SparsityPenalty
from ..runs import Budget
from . import toml
from .data_section import Data
from .measured_section import DATA, AnyData, size_of
from .mistakes import Check, gathered, nearest, one_of_words, read_tables
from .physics_section import (
    FIDELITIES,
    NOISES,
    PHYSICS,
    Fidelity,
    NoiseSection,
    Physics,
    build_energy,
    build_learned,
    build_noise,
    build_setup,
    check_problem,
    follow,
    unsaid,
)
from .sampling_section import boxed, penalty_of
from .sections import Section, located, tag_of
from .settings import (
    LEARNERS,
    REGULARIZERS,
    SADDLES,
    STRATEGIES,
    Bounds,
    BudgetSection,
    Learner,
    Part,
    Regularizer,
    Settings,
    Strategy,
    Terms,
    build_regularizer,
    check_kept,
    check_method,
    check_strategy,
    check_threads,
    leaves,
)

TAGS: dict[str, type[BaseModel]] = {
    **LEARNERS,
    **STRATEGIES,
    **REGULARIZERS,
    "Sum": Terms,
    **DATA,
    **PHYSICS,
    **NOISES,
    **FIDELITIES,
}
"""The sections that a key ``type`` chooses."""
_SMALL: dict[str, object] = {"size": 48, "train": 6, "test": 4}
_SOURCES: dict[str, dict[str, object]] = {
    "demosaicing": {"channels": 3, "source": "phantoms"},
    "PET": {"source": "phantoms"},
}
_STARTS = {  # weights of TV that suit the noise of each
    "blur": ({"type": "blur"}, 0.005),
    "inpainting": ({"type": "inpainting"}, 0.01),
    "superresolution": ({"type": "superresolution"}, 0.003),
    "demosaicing": ({"type": "demosaicing"}, 0.01),
    "MRI": ({"type": "MRI"}, 0.01),
    "multicoil_MRI": ({"type": "MRI", "coils": 4}, 0.01),
    "CT": ({"type": "CT"}, 0.001),
    "fan_beam_CT": ({"type": "CT", "geometry": "fan"}, 0.001),
    "PET": ({"type": "PET", "angles": 40}, 3.0),
    "unknown_blur": ({"type": "blur", "learn": "gaussian"}, 0.003),
}
EXAMPLES: dict[str, dict[str, object]] = {"denoising": {}} | {
    name: {
        "data": _SMALL | _SOURCES.get(name, {}),
        "physics": physics,
        "regularizer": {"type": "TV", "weight": weight},
        "budget": {"seconds": 60.0},
    }
    for name, (physics, weight) in _STARTS.items()
}
EXAMPLES["PET"]["fidelity"] = {"tikhonov": 0.5}  # why: far from the minimum KL bends very little
"""What ``learnreg learn --example NAME`` prints: runs of a minute, by the name of their physics."""

_HEAD = """\
# A run of learnreg; start it with: learnreg learn config.toml
# Every key may be left out: the values below are the defaults.
# Only a [regularizer] with keys of its own needs its type.
# Paths are relative to the folder you start in.
# Physics: {physics}.
# Whole examples: learnreg learn --example NAME, with NAME {examples}.
# Noise: {noises}. Data terms: {fidelities}.
# Data: simulated measurements of images, or type = "measured" for pairs from files.
# Learners: {learners}, each with its own keys.
# Regularizers: {regularizers}, each with its own keys.
# A sum of regularizers has one table [[regularizer.terms]] per term in the place of type and keys.
# {saddles} are saddle points: no sums of them, no scale,
# and [hypergradient] is piggyback or joint_piggyback.

"""


class Config(Section):
    """A whole configuration; ``Config()`` is the default run."""

    data: AnyData = Data()
    physics: Physics = PHYSICS["denoising"]()
    noise: NoiseSection = NOISES["gaussian"]()
    """that of the physics when left out"""
    fidelity: Fidelity = FIDELITIES["L2"]()
    """the data term: that of the noise when left out"""
    regularizer: Regularizer = REGULARIZERS["FoE"]()
    constraint: Bounds | None = None
    """bounds of the pixels of reconstructions, for example lower = 0.0: none when left out"""
    learner: Learner = LEARNERS["maid"]()
    hypergradient: Strategy | None = None
    """how to differentiate: implicit when left out, piggyback for saddle points"""
    budget: BudgetSection = BudgetSection.model_validate({"seconds": 120.0})
    run: Settings = Settings()

    @model_validator(mode="before")
    @classmethod
    def _follow(cls, tables: object) -> object:
        return follow(tables)

    def build_setup(self) -> Setup:
        """The settings of the physics."""
        return build_setup(self.physics)

    def build_noise(self) -> Noise:
        """The settings of the noise."""
        return build_noise(self.physics, self.noise)

    def build_physics(self, size: tuple[int, int], channels: int) -> nn.Module:
        """The operator with its noise, for images of this size.

        Raises:
            ConfigError: files that cannot be used, or that do not fit the images.
        """
        setup, noise = self.build_setup(), self.build_noise()
        with located("physics"):
            return setup.build(size, channels, self.run.seed, noise)

    def build_energy(self, physics: nn.Module, channels: int) -> Energy | SaddleEnergy:
        """The energy for such a physics, at the start of the regularizer and of the kernel."""
        size, seed = size_of(self.data), self.run.seed
        operator = build_learned(self.physics, physics, channels)
        regularizer, fidelity, bounds = self.regularizer, self.fidelity, self.constraint
        return build_energy(operator, regularizer, fidelity, size, channels, bounds, seed=seed)

    def build_penalty(self, energy: Energy | SaddleEnergy) -> SparsityPenalty | None:
        """What the learning problem adds to its loss, for such an energy."""
        return penalty_of(self.fidelity, energy)

    def build_regularizer(self) -> Part:
        """The start of the regularizer."""
        return build_regularizer(self.regularizer, channels=self.data.channels, seed=self.run.seed)

    def build_learner(self) -> objective.Learner[objective.State]:
        """The learner."""
        built: objective.Learner[objective.State] = boxed(self.learner, self.fidelity).build(
            "learner"
        )
        return built

    def build_hypergradient(self) -> SolutionMap | None:
        """The strategy, None for the default one."""
        return None if self.hypergradient is None else self.hypergradient.build("hypergradient")

    def build_budget(self) -> Budget:
        """The Budget."""
        built: Budget = self.budget.build("budget")
        return built

    @property
    def name(self) -> str:
        """What is learned, for example ``TV + Tikhonov``."""
        return " + ".join(tag_of(part) for part in leaves(self.regularizer))

    def to_toml(self, comments: bool = False) -> str:
        """A file that ``load_config`` reads back to the same configuration."""
        return toml.write(self, comments)


def example(name: str | None = None) -> str:
    """A commented configuration: the default run, or that of one of ``EXAMPLES``.

    Raises:
        ConfigError: no such example.
    """
    lower = {known.lower(): known for known in EXAMPLES}
    if name is not None and name.lower() not in lower:
        raise ConfigError(
            "--example",
            given=name,
            expected=one_of_words(EXAMPLES),
            remedy=nearest(name, list(EXAMPLES)) or "Leave the name out for denoising.",
        )
    config = Config() if name is None else Config.model_validate(EXAMPLES[lower[name.lower()]])
    names = {
        "physics": ", ".join(PHYSICS),
        "examples": one_of_words(EXAMPLES),
        "noises": ", ".join(NOISES),
        "fidelities": ", ".join(FIDELITIES),
        "learners": one_of_words(LEARNERS),
        "regularizers": one_of_words(REGULARIZERS),
        "saddles": ", ".join(SADDLES),
    }
    head = "\n".join(
        line
        for text in _HEAD.format(**names).splitlines()
        for line in textwrap.wrap(text, toml.WIDTH, subsequent_indent="#     ") or [""]
    )
    return f"{head}\n{unsaid(config).to_toml(comments=True)}"


def load_config(
    path: str | Path, changes: Mapping[tuple[str, str], object] | None = None
) -> Config:
    """Read and check a configuration file.

    Args:
        path: a TOML file.
        changes: values that replace those of the file, by (section, key); None leaves the file's
            value.

    Raises:
        ConfigError: no such file, no valid TOML, an unknown section or key, a value of another type
            or out of range.
    """
    tables = read_tables(Path(path), "learn")
    for (section, key), given in (changes or {}).items():
        if given is not None and isinstance(tables.setdefault(section, {}), dict):
            tables[section][key] = given
    return gathered(str(path), tables, Config, TAGS, CHECKS)


CHECKS: list[Check[Config]] = [
    (("regularizer",), lambda config, _: config.build_regularizer()),
    (("constraint",), lambda config, _: config.constraint and config.constraint.build()),
    (("learner",), lambda config, _: config.learner.build("learner")),
    (("learner", "fidelity"), lambda config, _: boxed(config.learner, config.fidelity)),
    (("hypergradient",), lambda config, _: config.build_hypergradient()),
    (("budget",), lambda config, _: config.build_budget()),
    (
        ("regularizer", "hypergradient"),
        lambda config, _: check_strategy(config.regularizer, config.hypergradient),
    ),
    (("regularizer", "run"), lambda config, _: check_method(config.regularizer, config.run.solver)),
    (("run",), lambda config, _: check_threads(config.run.threads)),
    (("run",), lambda config, _: config.run.check_device()),
    (
        ("data", "physics", "noise", "regularizer", "fidelity"),
        lambda config, _: check_problem(
            config.physics,
            config.noise,
            config.regularizer,
            config.fidelity,
            size_of(config.data),
            config.data.channels,
        ),
    ),
    (
        ("run", "data"),
        lambda config, _: check_kept(config.run.keep, dict(config.data).get("validation", 0)),
    ),
]
"""What the values of single keys do not show."""
