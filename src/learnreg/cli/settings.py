"""The sections of a configuration; learners, budget and regularizers describe themselves by their
own signatures.

A section built by ``described`` has the keys, types, defaults and comments of the class that it
stands for, so a new argument of that class is a new key here. Ranges are checked where they are
written down: in the class itself.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Literal,
    TypeAlias,
    Union,
    cast,
    get_type_hints,
)

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, create_model

from ..core.errors import ConfigError, InputError
from ..core.maps import SolutionMap
from ..hypergradients import Implicit, JacobianFree, JointPiggyback, Piggyback, Unrolled
from ..learners import (
    DFO,
    DFOLS,
    HOAG,
    LBFGSB,
    MAID,
    FixedAccuracy,
    GridSearch,
    OptunaSearch,
    RandomSearch,
    Stochastic,
)
from ..learners.box import Ranges
from ..regularizers import KNOWN, BlackBox, SaddleRegularizer, Scaled, Sum
from ..regularizers import Regularizer as Differentiable
from ..runs import Budget
from ..solvers.select import check_solver

Part: TypeAlias = Differentiable | SaddleRegularizer

INHERITED = {
    "channels": "those of [data] when left out",
    "in_channels": "those of [data] when left out",
    "seed": "that of [run] when left out",
}
"""Arguments that a regularizer takes from another section unless they are given."""


class Section(BaseModel):
    """One table of a configuration file: an unknown key, a wrong type, NaN and Inf are errors."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Built(Section):
    """A section that stands for an object of the library.

    Attributes:
        target: the class of the object.
        inherited: those of its keys that another section stands in for.
        refused: keys that others of its kind have, with what is said of them here.
    """

    target: ClassVar[Callable[..., object]]
    inherited: ClassVar[frozenset[str]] = frozenset()
    refused: ClassVar[dict[str, str]] = {}

    def build(self, where: str = "", **inherited: object) -> Any:
        """The object.

        Args:
            where: name of the section, for error messages.
            inherited: values for keys that were left out.

        Raises:
            ConfigError: a value that the object refuses.
        """
        arguments = {}
        for key in type(self).model_fields:
            value = getattr(self, key)
            if isinstance(value, Built):
                arguments[key] = value.build(f"{where}.{key}")
            elif key not in ("type", "scale"):
                own = value is not None or key not in self.inherited
                arguments[key] = value if own else inherited.get(key.removeprefix("in_"))
        with located(where):
            return type(self).target(
                **{k: v for k, v in arguments.items() if k not in self.inherited or v is not None}
            )


class located:
    """Within this block an InputError becomes a ConfigError that names the section."""

    def __init__(self, where: str) -> None:
        self.where = where

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, InputError):
            key = error.what.removeprefix(self.where.rsplit(".", 1)[-1]).strip()
            raise ConfigError(
                f"[{self.where}] {key}".strip(),
                given=error.given,
                expected=error.expected,
                remedy=error.remedy,
            ) from error


def described(
    target: Callable[..., object], tag: str | None = None, **extra: object
) -> type[Built]:
    """The section of a class: one key per argument, with its type, default and description.

    Args:
        tag: the value of the key ``type`` that chooses this class.
        extra: further keys, as pydantic fields.
    """
    fields: dict[str, Any] = {} if tag is None else {"type": (Literal[tag], tag)}
    hints, comments = get_type_hints(target.__init__), comments_of(target)
    parameters = inspect.signature(target).parameters
    given_elsewhere = frozenset(INHERITED) & set(parameters)
    # a choice of words under such a name, as of TV, is its own
    given_elsewhere = frozenset(name for name in given_elsewhere if hints[name] is int)
    if "in_channels" in parameters:  # then ``channels`` are those of its own feature maps
        given_elsewhere -= {"channels"}
    for name, parameter in parameters.items():
        default, hint = parameter.default, hints[name]
        if name == "name":  # of a solver, for its results: nothing to choose
            continue
        if hint == Ranges:
            hint = Any  # its class says better than a union of types what is wrong with a box
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            inner = described(hint)
            fields[name] = (inner, Field(default_factory=inner, description=comments.get(name)))
        elif name in given_elsewhere:
            fields[name] = (hint | None, Field(None, description=INHERITED[name]))
        else:
            given = ... if default is inspect.Parameter.empty else default
            fields[name] = (hint, Field(given, description=comments.get(name)))
    fields.update(extra)
    model = create_model(getattr(target, "__name__", "Section"), __base__=Built, **fields)
    model.target, model.inherited = target, given_elsewhere
    model.__doc__ = (inspect.getdoc(target) or "").split("\n")[0].replace("``", "")
    return model


def comments_of(target: Callable[..., object]) -> dict[str, str]:
    """The descriptions under ``Args:`` in a docstring, by argument.

    >>> comments_of(Budget)["steps"]
    'accepted steps'
    """
    block = re.search(r"^Args:\n((?:[ ]+.*\n?|\n)*)", inspect.getdoc(target) or "", re.MULTILINE)
    entries = (
        re.findall(r"^ {4}(\w[\w, ]*): (.*(?:\n {5,}.*)*)", block[1], re.MULTILINE) if block else []
    )
    plain = {
        names: " ".join(text.split())
        .replace("``", "")
        .replace("when None", "when left out")
        .rstrip(".")
        for names, text in entries
    }
    return {name.strip(): text for names, text in plain.items() for name in names.split(",")}


def one_of(sections: dict[str, type[Built]], default: str | None = None) -> Any:
    """A union of sections told apart by ``type``; a table with ``terms`` is a Sum."""

    def choose(table: object) -> str | None:
        if isinstance(table, Built):
            return tag_of(table)
        if not isinstance(table, dict):
            return None
        chosen = table.get("type", "Sum" if "terms" in table else default)
        return None if chosen is None else str(chosen)

    members = tuple(Annotated[model, Tag(tag)] for tag, model in sections.items())
    return Annotated[Union[members], Discriminator(choose)]  # noqa: UP007 - of a tuple


class Data(Section):
    """Where the images come from."""

    source: str = "natural"
    """"natural" (photographs that come with scikit-image), "phantoms", or a folder of images"""
    size: int = Field(default=96, ge=11)
    """height and width of the crops in pixels"""
    train: int = Field(default=24, ge=1)
    """number of training crops"""
    test: int = Field(default=8, ge=1)
    """number of held-out crops, from other photographs"""
    scale: float | None = Field(default=None, gt=0, le=1)
    """photographs are made smaller by this factor first; 0.5 for "natural" and 1 otherwise when
    left out
    """
    channels: Literal[1, 3] = 1
    """1 (grey) or 3 (colour)"""


class Physics(Section):
    """How measurements are made."""

    type: Literal["denoising"] = "denoising"
    """the measurement is the image itself, with noise"""
    sigma: float = Field(default=0.1, gt=0)
    """standard deviation of the Gaussian noise, for images in [0, 1]"""


class Settings(Section):
    """How the run is done and where it goes."""

    seed: int = Field(default=0, ge=0)
    """of crops, noise and random start values"""
    dtype: Literal["float32", "float64"] = "float32"
    """precision of the computations (closing gradients are float64 in any case)"""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads; resuming to the same numbers needs the same number of them"""
    solver: str = "auto"
    """lower-level solver: "auto" chooses; agd, lbfgs, newton, primal_dual_newton, nmapg; pdhg for
    saddle points
    """
    eps_evaluate: float = Field(default=1e-2, gt=0)
    """certified distance of the held-out reconstructions, over all pixels of one image"""
    output: str = Field(default="report", min_length=1)
    """folder for the report, the model and the checkpoint"""


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


def tag_of(section: Built) -> str:
    """The ``type`` that has chosen a section."""
    return str(getattr(section, "type", None))


def leaves(section: Built) -> Iterator[Built]:
    """The plain regularizers of a section."""
    if isinstance(section, Terms):
        yield from section.terms
    else:
        yield section


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
