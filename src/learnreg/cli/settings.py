"""The sections that stand for objects of the library, and how the run is done."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import torch
from pydantic import Field

from ..core.constraints import Between
from ..core.errors import ConfigError
from ..core.maps import SolutionMap
from ..hypergradients import Implicit, JacobianFree, JointPiggyback, Piggyback, Unrolled
from ..learners import (
    DFO,
    DFOLS,
    HOAG,
    LBFGSB,
    MAID,
    Deferred,
    FixedAccuracy,
    GridSearch,
    OptunaSearch,
    RandomSearch,
    Stochastic,
)
from ..regularizers import KNOWN, BlackBox, SaddleRegularizer, Scaled, Sum
from ..regularizers import Regularizer as Differentiable
from ..runs import Budget
from ..solvers.select import check_solver
from .sections import Built, Section, described, located, one_of, tag_of

Part: TypeAlias = Differentiable | SaddleRegularizer


class Settings(Section):
    """How the run is done and where it goes."""

    seed: int = Field(default=0, ge=0)
    """of crops, noise and random start values"""
    dtype: Literal["float32", "float64"] = "float32"
    """precision of the computations (closing gradients are float64 in any case)"""
    device: str = "cpu"
    """"cpu", "cuda", "cuda:1", or "auto": a graphics processor where there is one"""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads; resuming to the same numbers needs the same number of them"""
    solver: str = "auto"
    """lower-level solver: "auto" chooses; agd, lbfgs, newton, primal_dual_newton, nmapg; pdhg for
    saddle points
    """
    eps_evaluate: float = Field(default=1e-2, gt=0)
    """distance of the held-out reconstructions to the exact ones, over all pixels of one image"""
    keep: Literal["last", "best"] = "last"
    """which parameters become the model: those of the last step, or of the best in validation"""
    baselines: list[Literal["tuned TV", "BM3D", "MLEM", "OSEM"]] = Field(default=["tuned TV"])
    """further methods in the report: "tuned TV" has one weight, the best for the training images;
    "BM3D" needs the package bm3d; "MLEM" and "OSEM" are for counts
    """
    output: str = Field(default="report", min_length=1)
    """folder for the report, the model and the checkpoint"""

    def check_device(self) -> torch.device:
        """Where the computations are done.

        Raises:
            ConfigError: a device that this machine does not have.
        """
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if self.device == "auto":
            return torch.device("cuda" if count else "cpu")
        kind, _, number = self.device.partition(":")
        place = int(number) if number.isdecimal() else 0
        known = kind == "cuda" and place < count and (number.isdecimal() or not number)
        if self.device == "cpu" or (known and ":" not in number):
            return torch.device(self.device)
        there = ", ".join(["cpu", *(f"cuda:{i}" for i in range(count))])
        raise ConfigError(
            "[run] device",
            given=f'"{self.device}"',
            expected=f"a device of this machine: {there}",
            remedy='Take "auto" for a graphics processor where there is one.',
        )


class Bounds(Section):
    """Bounds of the pixels of reconstructions"""

    lower: float = Field(default=0.0, allow_inf_nan=True)
    """the least value of a pixel; -inf for none"""
    upper: float | None = Field(default=None, allow_inf_nan=True)
    """the largest value of a pixel"""

    def build(self) -> Between:
        """The constraint.

        Raises:
            ConfigError: NaN, or lower > upper.
        """
        with located("constraint"):
            return Between(self.lower, self.upper)


_SCALE = (float, Field(1.0, gt=0, description="constant factor in front of the regularizer"))
SADDLES = tuple(name for name, kind in KNOWN.items() if getattr(kind, "saddle", False))
"""Regularizers of saddle-point lower levels: no factor in front of them, no sums, strategies of
their own.
"""
REGULARIZERS = {
    name: described(kind, name, **({} if name in SADDLES else {"scale": _SCALE}))
    for name, kind in KNOWN.items()
    if kind is not BlackBox  # a file can name no network
}
for _name in SADDLES:
    REGULARIZERS[_name].refused = {
        "scale": f"no factor in front of {_name}, which is a saddle point: its own weight"
    }
LEARNERS = {
    tag: described(kind, tag)
    for tag, kind in {
        "maid": MAID,
        "fixed": FixedAccuracy,
        "hoag": HOAG,
        "lbfgsb": LBFGSB,
        "stochastic": Stochastic,
        "deferred": Deferred,
        "dfo": DFO,
        "dfols": DFOLS,
        "grid": GridSearch,
        "random": RandomSearch,
        "optuna": OptunaSearch,
    }.items()
}
STRATEGIES = {
    tag: described(kind, tag)
    for tag, kind in {
        "implicit": Implicit,
        "unrolled": Unrolled,
        "jacobian_free": JacobianFree,
        "piggyback": Piggyback,
        "joint_piggyback": JointPiggyback,
    }.items()
}
OF_SADDLES = ("piggyback", "joint_piggyback")
"""Strategies for saddle points; all others are for differentiable energies."""

if TYPE_CHECKING:
    Learner: TypeAlias = Built
    Strategy: TypeAlias = Built
    Term: TypeAlias = Built
    Regularizer: TypeAlias = Built
    BudgetSection: TypeAlias = Built
else:  # unions of classes that are made above, which a type checker cannot follow
    Learner = one_of(LEARNERS, default="maid")
    Strategy = one_of(STRATEGIES, default="implicit")
    Term = one_of({name: section for name, section in REGULARIZERS.items() if name not in SADDLES})
    BudgetSection = described(Budget)


class Terms(Built):
    """A sum of regularizers."""

    type: Literal["Sum"] = "Sum"
    scale: float = Field(default=1.0, gt=0, description="constant factor in front of the sum")
    terms: list[Term] = Field(min_length=1)

    def build(self, where: str = "", **inherited: object) -> Any:
        # why a cast: saddle points are no terms
        terms = [
            cast(Differentiable, build_regularizer(t, f"{where}.terms({i})", **inherited))
            for i, t in enumerate(self.terms, 1)
        ]
        return scaled(self.scale, Sum(terms))


if not TYPE_CHECKING:
    Regularizer = one_of({**REGULARIZERS, "Sum": Terms})


def scaled(factor: float, regularizer: Part) -> Part:
    """``factor`` times the regularizer, which stays as it is for a factor of 1."""
    # why a cast: saddle points have no factor
    return regularizer if factor == 1 else Scaled(factor, cast(Differentiable, regularizer))


def build_regularizer(section: Built, where: str = "regularizer", **inherited: object) -> Part:
    """The regularizer of a section, its ``scale`` included."""
    built: Part = section.build(where, **inherited)
    return built if isinstance(section, Terms) else scaled(getattr(section, "scale", 1.0), built)


def leaves(section: Built) -> Iterator[Built]:
    """The plain regularizers of a section."""
    if isinstance(section, Terms):
        yield from section.terms
    else:
        yield section


# --- what the machine can do ----------------------------------------------------------------------


THREADS_PER_CORE = 4
"""More threads only wait for each other, and some thousands end the process."""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_threads(number: int | None, where: str = "[run] threads") -> None:
    """Refuse more threads, or processes, than a small multiple of the cores.

    Raises:
        ConfigError: names the largest number.
    """
    most = THREADS_PER_CORE * cores()
    if number is not None and number > most:
        raise ConfigError(
            where,
            given=number,
            expected=f"at most {most}, {THREADS_PER_CORE} for each of the {cores()} cores here",
            remedy=f"{cores()} is a good number; more are not faster.",
        )


# --- what goes together ---------------------------------------------------------------------------


def default_strategy(regularizer: Built) -> SolutionMap:
    """The strategy that ``learn`` takes for the regularizer of a section when none is asked for."""
    tag = "piggyback" if tag_of(regularizer) in SADDLES else "implicit"
    built: SolutionMap = STRATEGIES[tag]().build("hypergradient")
    return built


def check_strategy(
    regularizer: Built, strategy: Built | None, where: str = "hypergradient"
) -> None:
    """Refuse a strategy that cannot differentiate the lower level of a regularizer.

    Args:
        regularizer, strategy: sections; None is the default strategy, which always fits.
        where: name of the section of the strategy.

    Raises:
        ConfigError: names the strategies that can.
    """
    saddle = tag_of(regularizer) in SADDLES
    if strategy is not None and saddle != (tag_of(strategy) in OF_SADDLES):
        names = ", ".join(tag for tag in STRATEGIES if (tag in OF_SADDLES) == saddle)
        raise ConfigError(
            f"[{where}] type",
            given=f'"{tag_of(strategy)}" for {tag_of(regularizer)}',
            expected=f"one of {names}",
            remedy="Leave the section out for the first of them.",
        )


def check_kept(keep: str, validation: int) -> None:
    """Refuse to keep the best step where nothing tells which one it is.

    Raises:
        ConfigError: there are no images to validate on.
    """
    if keep == "best" and not validation:
        raise ConfigError(
            "[run] keep",
            given='"best" without images to validate on',
            expected='"last", or a number of validation crops in [data]',
            remedy="The last step is the best one for the training images.",
        )


def check_method(regularizer: Built, solver: str, where: str = "run") -> None:
    """Refuse a lower-level solver that does not exist or cannot solve the lower level of a
    regularizer.

    Raises:
        ConfigError: names those that can.
    """
    with located(where):
        check_solver(solver)
    saddle = tag_of(regularizer) in SADDLES
    if solver != "auto" and saddle != (solver == "pdhg"):
        raise ConfigError(
            f"[{where}] solver",
            given=f'"{solver}" for {tag_of(regularizer)}',
            expected='"pdhg"' if saddle else "a method for differentiable energies",
            remedy='Leave the choice to "auto".',
        )
