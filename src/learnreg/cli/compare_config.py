"""Configuration of a comparison: learners, starts and seeds on one problem, checked before anything
is computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

from pydantic import BaseModel, Field, ValidationError, create_model, model_validator

from ..core.errors import ConfigError
from ..core.grants import Grants, check_needs
from . import toml
from .config import TAGS, Config
from .data_section import Data
from .measured_section import AnyData, size_of
from .mistakes import Check, gathered, nearest, one_of_words, read_tables, translated
from .physics_section import (
    FIDELITIES,
    NOISES,
    PHYSICS,
    Fidelity,
    NoiseSection,
    Physics,
    check_problem,
    follow,
    unsaid,
)
from .sections import Built, Section, located, one_of, tag_of
from .settings import (
    LEARNERS,
    REGULARIZERS,
    Bounds,
    BudgetSection,
    Regularizer,
    Settings,
    Strategy,
    build_regularizer,
    check_method,
    check_strategy,
    check_threads,
    default_strategy,
)

_HEAD = """\
# A comparison of learners; start it with: learnreg compare config.toml
# Every learner runs from every start with every seed, each in a process of its own, with the
# same budget.
# Keys that are left out have the values below. Paths are relative to the folder you start in.

"""
_LEARNERS = """
# One table [[learners]] for each learner. Types: {learners}.
# Their keys are those of [learner] in: learnreg learn --example
[[learners]]
type = "maid"
# name = "MAID"     # left out: made from the type and the settings that differ from the defaults
# solver = "auto"   # left out: that of [run]
# [learners.hypergradient]    # left out: implicit (piggyback for saddle points);
#                             # the keys of [hypergradient] of a run
# type = "unrolled"

[[learners]]
type = "fixed"
eps = 0.01
# [learners.grid]   # one run for each combination of these values, in the place of the keys above
# eps = [0.1, 0.01]
# alpha0 = [0.001, 0.1]

# One table [[starts]] for each start, with the keys of [regularizer] that it replaces;
# left out: one start.
# [[starts]]
# name = "weak"
# smoothing = 0.1
"""


class Comparing(Section):
    """Which runs, and how they are measured again afterwards."""

    seeds: list[int] = Field(default=[0, 1, 2], min_length=1)
    """one run for each: of crops, noise, random start values, and what a learner draws"""
    processes: int | None = Field(default=None, ge=1)
    """runs at a time; as many as there are cores for their threads when left out"""
    points: int = Field(default=12, ge=2)
    """steps of each run whose loss and held-out PSNR are evaluated again"""
    relative: float = Field(default=5e-4, gt=0, lt=1)
    """width of the bracket of the training loss, relative to it; certified where that is proven"""


def _settings() -> Any:
    """The section [run] without the seed, which is one of several here, and without validation."""
    fields = Settings.model_fields.items()
    kept: dict[str, Any] = {
        name: (info.annotation, info) for name, info in fields if name not in ("seed", "keep")
    }
    kept["output"] = (
        str,
        Field("comparison", min_length=1, description="folder for the report and the runs"),
    )
    kept["threads"] = (int, Field(1, ge=1, description="CPU threads of each run"))
    model = create_model("CompareSettings", __base__=Section, **kept)
    model.__doc__ = "How each run is done, and where everything goes."
    return model


def _entry(tag: str) -> type[Built]:
    """A learner of a comparison: its own section, and what is special to it here."""
    model = create_model(
        LEARNERS[tag].__name__,
        __base__=LEARNERS[tag],
        name=(str | None, Field(None, min_length=1)),
        solver=(str | None, None),
        hypergradient=(Strategy | None, None),
        grid=(dict[str, list[Any]], Field({})),
    )
    return model


ENTRIES = {tag: _entry(tag) for tag in LEARNERS}
_PLACES = {**TAGS, **ENTRIES}

if TYPE_CHECKING:

    class Entry(Built):
        """What the sections of ``ENTRIES`` have in common."""

        name: str | None
        solver: str | None
        hypergradient: Strategy | None
        grid: dict[str, list[object]]

    RunSection: TypeAlias = Settings
else:
    Entry = one_of(ENTRIES)
    RunSection = _settings()


class _Common(Section):
    """What every comparison has, with defaults."""

    comparison: Comparing = Comparing()
    data: AnyData = Data()
    physics: Physics = PHYSICS["denoising"]()
    noise: NoiseSection = NOISES["gaussian"]()
    """that of the physics when left out"""
    fidelity: Fidelity = FIDELITIES["L2"]()
    """the data term: that of the noise when left out"""
    regularizer: Regularizer = REGULARIZERS["FoE"]()
    constraint: Bounds | None = None
    """bounds of the pixels of reconstructions, for example lower = 0.0: none when left out"""
    budget: BudgetSection = BudgetSection.model_validate({"seconds": 120.0})
    run: RunSection = RunSection()

    @model_validator(mode="before")
    @classmethod
    def _follow(cls, tables: object) -> object:
        return follow(tables)


class CompareConfig(_Common):
    """A whole comparison."""

    learners: list[Entry] = Field(min_length=1)
    starts: list[dict[str, Any]] = Field(default=[])


class _Starts(Section):
    starts: list[Regularizer]


@dataclass(frozen=True)
class Variant:
    """One learner with one combination of the values of its grid.

    Attributes:
        learner: name of the entry in the file.
        name: the same for an entry without a grid.
        grid: the values of this combination.
        section: the settings of the learner.
        hypergradient: of the strategy, None for the default one.
        solver: of the lower level.
    """

    learner: str
    name: str
    grid: dict[str, object]
    section: Built
    hypergradient: Built | None
    solver: str


@dataclass(frozen=True)
class Plan:
    """What a file asks for, checked.

    Attributes:
        config: the file.
        variants: the learners with the points of their grids, in the order of the file.
        starts: regularizer sections by name; the only one is called "" where the file has none.
        tables: the file as it was read, with the changes of the command line.
    """

    config: CompareConfig
    variants: tuple[Variant, ...]
    starts: Mapping[str, Built]
    tables: dict[str, Any] = field(repr=False)

    def learn_config(self, variant: Variant, start: str, seed: int) -> Config:
        """The run of one learner from one start with one seed, as the command ``learn`` would read
        it.
        """
        c = self.config
        settings = c.run.model_dump(exclude={"output"}) | {"seed": seed, "solver": variant.solver}
        return Config(
            data=c.data,
            physics=c.physics,
            noise=c.noise,
            fidelity=c.fidelity,
            constraint=c.constraint,
            regularizer=self.starts[start],
            learner=variant.section,
            hypergradient=variant.hypergradient,
            budget=c.budget,
            run=Settings(**settings),
        )

    def to_toml(self) -> str:
        """The file with the changes of the command line; comments are gone."""
        return "\n".join(_lines(self.tables)).strip() + "\n"


def example() -> str:
    """A commented configuration of a comparison of two learners."""
    return (
        _HEAD
        + toml.write(unsaid(_Common()), comments=True)
        + _LEARNERS.format(learners=", ".join(LEARNERS))
    )


def load_comparison(
    path: str | Path, changes: Mapping[tuple[str, str], object] | None = None
) -> Plan:
    """Read and check the configuration of a comparison.

    Args:
        path: a TOML file.
        changes: values that replace those of the file, by (section, key); None leaves the file's
            value.

    Raises:
        ConfigError: no such file, no valid TOML, an unknown section or key, a value of another type
            or out of range, two learners, starts or seeds alike.
    """
    tables = read_tables(Path(path), "compare")
    for (section, key), given in (changes or {}).items():
        if given is not None and isinstance(tables.setdefault(section, {}), dict):
            tables[section][key] = given
    config = gathered(str(path), tables, CompareConfig, _PLACES, CHECKS)
    return _plan(config, tables)


def _plan(config: CompareConfig, tables: dict[str, Any]) -> Plan:
    """What a file asks for, checked.

    Raises:
        ConfigError: what the sections alone do not show.
    """
    entries = enumerate(config.learners, 1)
    variants = tuple(
        v for number, entry in entries for v in _variants(entry, number, config.run.solver)
    )
    base = tables.get("regularizer", {"type": tag_of(config.regularizer)})
    plan = Plan(config, variants, _starts(config, base), tables)
    _check(plan)
    return plan


CHECKS: list[Check[CompareConfig]] = [
    (("budget",), lambda config, _: config.budget.build("budget")),
    (("constraint",), lambda config, _: config.constraint and config.constraint.build()),
    (("run",), lambda config, _: check_threads(config.run.threads)),
    (
        ("comparison",),
        lambda config, _: check_threads(config.comparison.processes, "[comparison] processes"),
    ),
    (
        (
            "learners",
            "starts",
            "data",
            "physics",
            "noise",
            "regularizer",
            "fidelity",
            "run",
            "comparison",
        ),
        _plan,
    ),
]
"""What the values of single keys do not show."""


def _variants(entry: Entry, number: int, solver: str) -> Iterator[Variant]:
    """Every combination of the values of an entry's grid."""
    where, plain = f"learners({number})", LEARNERS[tag_of(entry)]
    known = [
        k
        for k, info in plain.model_fields.items()
        if k != "type"
        and not (isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel))
    ]
    for key, values in entry.grid.items():
        if key not in known:
            raise ConfigError(
                f"[{where}.grid] {key}",
                given="an unknown key",
                expected=one_of_words(known),
                remedy=nearest(key, known) or "Remove it.",
            )
        if not values or any(v in values[:i] for i, v in enumerate(values)):
            raise ConfigError(
                f"[{where}.grid] {key}",
                given=toml.value(values),
                expected="one or more values, none of them twice",
            )
    name = _name(entry)
    own = {key: getattr(entry, key) for key in plain.model_fields}
    for chosen in product(*entry.grid.values()):
        point = dict(zip(entry.grid, chosen, strict=True))
        try:
            section = plain.model_validate(own | point)
        except ValidationError as error:
            wrong = translated("", error, plain, TAGS)
            raise ConfigError(
                f"[{where}.grid] {error.errors()[0]['loc'][0]}",
                given=wrong.given,
                expected=wrong.expected,
                remedy=wrong.remedy,
            ) from None
        words = ", ".join(f"{key}={_short(v)}" for key, v in point.items())
        yield Variant(
            name,
            f"{name} ({words})" if words else name,
            point,
            section,
            entry.hypergradient,
            entry.solver or solver,
        )


def _name(entry: Entry) -> str:
    """The name given, or one made of what is not left at its default."""
    if entry.name is not None:
        return entry.name
    parts = [_changed(entry, {"name", "hypergradient", "grid", *entry.grid})]
    if entry.hypergradient is not None:
        parts.append(_changed(entry.hypergradient, set()))
    return ", ".join(parts)


def _changed(section: Built, left_out: set[str]) -> str:
    """The type of a section and its settings that differ from the defaults."""
    found = []
    for key, info in type(section).model_fields.items():
        given = getattr(section, key)
        if key == "type" or key in left_out or given == info.get_default(call_default_factory=True):
            continue
        if isinstance(given, Built):
            found += [f"{key}.{inner}" for inner in _changed(given, set()).split()]
        else:
            found.append(f"{key}={_short(given)}")
    return " ".join([*([tag_of(section)] if hasattr(section, "type") else []), *found])


def _short(value: object) -> str:
    return (
        f"{value:g}"
        if isinstance(value, float)
        else value
        if isinstance(value, str)
        else toml.value(value)
    )


def _starts(config: CompareConfig, base: dict[str, object]) -> dict[str, Built]:
    """The regularizer section of every start: ``base`` with what it replaces."""
    if not config.starts:
        return {"": config.regularizer}
    given = [{k: v for k, v in start.items() if k != "name"} for start in config.starts]
    try:
        sections = _Starts.model_validate({"starts": [base | changes for changes in given]}).starts
    except ValidationError as error:
        wrong = translated("", error, _Starts, TAGS)
        raise ConfigError(
            wrong.what.removeprefix(": "),
            given=wrong.given,
            expected=wrong.expected,
            remedy=wrong.remedy,
        ) from None
    found: dict[str, Built] = {}
    for number, (start, changes, section) in enumerate(
        zip(config.starts, given, sections, strict=True), 1
    ):
        name = start.get(
            "name", ", ".join(f"{k}={_short(v)}" for k, v in changes.items()) or "as configured"
        )
        if not isinstance(name, str) or not name:
            raise ConfigError(
                f"[starts({number})] name",
                given=toml.value(name),
                expected="a text that is not empty",
            )
        if name in found:
            raise _twice(f"starts({number})", name, "start")
        found[name] = section
    return found


def _twice(where: str, name: str, kind: str) -> ConfigError:
    return ConfigError(
        f"[{where}] name",
        given=f"{toml.value(name)} for a second time",
        expected=f"a name of its own for every {kind}",
        remedy='Add for example name = "another".',
    )


OF_MAPS = Grants.GRADIENT | Grants.ADAPTIVE | Grants.ESTIMATE | Grants.BOUND
"""What a learner needs of the solution map; the rest is the objective's."""


def _check(plan: Plan) -> None:
    """Refuse what the sections alone do not show: names and seeds that come twice, values that
    objects refuse.
    """
    seeds = plan.config.comparison.seeds
    for number, seed in enumerate(seeds):
        if seed < 0 or seed in seeds[:number]:
            raise ConfigError(
                "[comparison] seeds",
                given=toml.value(seeds),
                expected="different numbers greater than or equal to 0",
            )
    names: dict[str, int] = {}
    for number, entry in enumerate(plan.config.learners, 1):
        name = _name(entry)
        if name in names:
            raise _twice(f"learners({number})", name, "learner")
        names[name] = number
    titles = [variant.name for variant in plan.variants]
    for variant in plan.variants:
        if titles.count(variant.name) > 1:  # "a (b=1)" may be a name as well as a point of a grid
            raise _twice(f"learners({names[variant.learner]})", variant.name, "learner")
    plan.config.budget.build("budget")
    c = plan.config
    Settings(**c.run.model_dump()).check_device()
    for number, section in enumerate(plan.starts.values(), 1):
        build_regularizer(
            section,
            f"starts({number})" if plan.config.starts else "regularizer",
            channels=plan.config.data.channels,
            seed=seeds[0],
        )
    for section in plan.starts.values():
        check_method(section, c.run.solver)
        check_problem(c.physics, c.noise, section, c.fidelity, size_of(c.data), c.data.channels)
    for variant, section in product(plan.variants, plan.starts.values()):
        where = f"learners({names[variant.learner]})"
        learner = variant.section.build(f"{where}.grid" if variant.grid else where)
        check_strategy(section, variant.hypergradient, f"{where}.hypergradient")
        check_method(section, variant.solver, where)
        own = variant.hypergradient
        given = default_strategy(section) if own is None else own.build(f"{where}.hypergradient")
        with located(where):  # some learners refuse some strategies
            check_needs(
                type(learner).__name__,
                learner.needs & OF_MAPS,
                given.grants,
                repr(given),
            )


def _lines(tables: Mapping[str, object], name: str = "") -> Iterator[str]:
    """TOML of nested tables: plain keys first, then tables, then arrays of tables."""

    def tabular(given: object) -> TypeGuard[list[dict[str, object]]]:
        return (
            isinstance(given, list)
            and bool(given)
            and all(isinstance(item, dict) for item in given)
        )

    for key, given in tables.items():
        if not isinstance(given, dict) and not tabular(given):
            yield f"{_key(key)} = {toml.value(given)}"
    for key, given in tables.items():
        path = f"{name}.{_key(key)}" if name else _key(key)
        if isinstance(given, dict):
            yield from ("", f"[{path}]", *_lines(given, path))
        elif tabular(given):
            for item in given:
                yield from ("", f"[[{path}]]", *_lines(item, path))


def _key(key: str) -> str:
    return (
        key
        if key.replace("_", "").replace("-", "").isalnum() and key.isascii()
        else toml.value(key)
    )
