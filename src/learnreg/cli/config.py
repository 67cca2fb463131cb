"""Typed configuration files: what a run is made of, checked before anything is computed.

Every mistake is a ConfigError that names the file, the section, the key, what was given and what
would have been accepted, with the nearest key if one was misspelt.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel

from ..core import objective
from ..core.maps import SolutionMap
from ..runs import Budget
from . import toml
from .data_section import Data
from .mistakes import Check, gathered, one_of_words, read_tables
from .physics_section import Physics
from .sections import Section, tag_of
from .settings import (
    LEARNERS,
    REGULARIZERS,
    SADDLES,
    STRATEGIES,
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

TAGS: dict[str, type[BaseModel]] = {**LEARNERS, **STRATEGIES, **REGULARIZERS, "Sum": Terms}
"""The sections that a key ``type`` chooses."""
_HEAD = """\
# A run of learnreg; start it with: learnreg learn config.toml
# Every key may be left out: the values below are the defaults.
# Paths are relative to the folder you start in.
# Learners: {learners}, each with its own keys.
# Regularizers: {regularizers}, each with its own keys.
# A sum of regularizers has one table [[regularizer.terms]] per term in the place of type and keys.
# {saddles} are saddle points: no sums of them, no scale,
# and [hypergradient] is piggyback or joint_piggyback.

"""


class Config(Section):
    """A whole configuration; ``Config()`` is the default run."""

    data: Data = Data()
    physics: Physics = Physics()
    regularizer: Regularizer = REGULARIZERS["FoE"]()
    learner: Learner = LEARNERS["maid"]()
    hypergradient: Strategy | None = None
    """how to differentiate: implicit when left out, piggyback for saddle points"""
    budget: BudgetSection = BudgetSection.model_validate({"seconds": 120.0})
    run: Settings = Settings()

    def build_regularizer(self) -> Part:
        """The start of the regularizer."""
        return build_regularizer(self.regularizer, channels=self.data.channels, seed=self.run.seed)

    def build_learner(self) -> objective.Learner[objective.State]:
        """The learner."""
        built: objective.Learner[objective.State] = self.learner.build("learner")
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


def example() -> str:
    """The default configuration as a commented file."""
    names = {
        "learners": one_of_words(LEARNERS),
        "regularizers": one_of_words(REGULARIZERS),
        "saddles": ", ".join(SADDLES),
    }
    return _HEAD.format(**names) + Config().to_toml(comments=True)


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
    (("learner",), lambda config, _: config.build_learner()),
    (("hypergradient",), lambda config, _: config.build_hypergradient()),
    (("budget",), lambda config, _: config.build_budget()),
    (
        ("regularizer", "hypergradient"),
        lambda config, _: check_strategy(config.regularizer, config.hypergradient),
    ),
    (("regularizer", "run"), lambda config, _: check_method(config.regularizer, config.run.solver)),
    (("run",), lambda config, _: check_threads(config.run.threads)),
    (
        ("run", "data"),
        lambda config, _: check_kept(config.run.keep, dict(config.data).get("validation", 0)),
    ),
]
"""What the values of single keys do not show."""
