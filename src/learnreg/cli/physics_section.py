"""The sections [physics], [noise], [fidelity]: how measurements are made, what they suffer, and how
they are compared with A x.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, TypeVar, get_type_hints

import torch
from pydantic import BeforeValidator, Field
from torch import nn

from ..core.errors import ConfigError, InputError
from ..physics import NOISES as KINDS
from ..physics import (
    SETUPS,
    Denoising,
    Gaussian,
    Noise,
    NoNoise,
    Poisson,
    PoissonGaussian,
    Setup,
    Uniform,
)
from ..physics.files import tensor_of
from ..physics.learning import KernelLearning
from ..physics.noise import Level as LevelHint
from ..physics.noise import check_level, level
from ..problems import (
    KL,
    L1,
    L2,
    Energy,
    Huber,
    SaddleEnergy,
    WeightedL2,
    energy_for,
)
from ..problems import PoissonGaussian as PoissonGaussianTerm
from ..regularizers import Regularizer, Tikhonov
from . import toml
from .sampling_section import Sampling, check_full, measured_shape
from .sections import Built, Section, comments_of, described, located, one_of, tag_of
from .settings import SADDLES, Bounds, Part, build_regularizer

TIKHONOV = 1e-3
"""Strong convexity of an energy whose data term has none, relative to the curvature of the data
term, unless the file says another one.
"""

COUNTS = ("KL", "Poisson")
"""Data terms of counts, by two names."""

FEW_COUNTS = 0.5
"""Background of the Kullback-Leibler data term for counts that have none: without one its curvature
is not bounded. It shifts images by half a count.
"""


NumberOrFile: TypeAlias = float | int | str
"""A number or the name of a file; not the type of noise levels, whose texts are fractions."""


@dataclass(frozen=True)
class WeightsOfFile:
    """Least squares with a weight for every measurement.

    Args:
        file: weights >= 0 (.npy) of the shape of the measurements of one image
    """

    file: str

    def load(self) -> WeightedL2:
        """The data term.

        Raises:
            InputError: a file that holds no weights.
        """
        return WeightedL2(tensor_of(self.file, "file")[None])


@dataclass(frozen=True)
class CountsOfFile:
    """Kullback-Leibler distance to counts above a background.

    Args:
        background: expected counts without an image: a number, or a file (.npy) of the shape of the
            measurements of one image
        gain: what a count is worth in units of A x
        scaled: whether measurements are gain times the counts
    """

    background: NumberOrFile = 1.0
    gain: float = 1.0
    scaled: bool = False

    def load(self) -> KL:
        """The data term.

        Raises:
            InputError: values out of range, a file that holds no background.
        """
        return KL(_background(self.background), self.gain, self.scaled)


@dataclass(frozen=True)
class ReadOutOfFile:
    """Counts with read-out noise, by the shifted Poisson likelihood.

    Args:
        background: expected counts without an image: a number, or a file (.npy) of the shape of the
            measurements of one image
        gain: what a count is worth in the units of the measurements
        sigma: standard deviation of the read-out noise in those units
    """

    background: NumberOrFile = 0.0
    gain: float = 1.0
    sigma: float = 1.0

    def load(self) -> PoissonGaussianTerm:
        """The data term.

        Raises:
            InputError: values out of range, a file that holds no background.
        """
        return PoissonGaussianTerm(_background(self.background), self.gain, self.sigma)


def _background(given: NumberOrFile) -> float | torch.Tensor:
    return tensor_of(given, "background")[None] if isinstance(given, str) else given


# --- sections -------------------------------------------------------------------------------------


def _fraction(value: object) -> object:
    """A fraction as text is a number; numbers are checked where they are used."""
    if not isinstance(value, str):
        return value
    try:
        return level(value)
    except InputError as error:
        raise ValueError(error.expected) from None


C = TypeVar("C", bound=Section)
Level: TypeAlias = Annotated[float, BeforeValidator(_fraction)]


def _section(kind: Any, tag: str, **extra: object) -> type[Built]:
    """As ``described``; noise levels may be fractions."""
    comments, hints = comments_of(kind), get_type_hints(kind.__init__)
    levels = {
        name: (Level, Field(vars(kind)[name], description=comments.get(name)))
        for name, hint in hints.items()
        if name == "sigma" or hint == LevelHint
    }
    model = described(kind, tag, **levels, **extra)
    model.aside = Built.aside | set(extra)
    return model


_OLD = "the same as type gaussian and sigma in [noise], which is the better place"
_RIDGE = (
    "weight of a term tikhonov/2 |x|^2 that is not learned and makes the energy strongly convex, "
    f"as certified distances need; where the data do not do it {TIKHONOV:g} of their curvature "
    "when left out"
)
WITH_KERNEL = ("blur", "superresolution")
"""Physics whose kernel can be learned."""


def _own_keys(tag: str) -> dict[str, object]:
    """Keys of a physics that are no settings of its operator."""
    if tag == "denoising":
        return {"sigma": (Level | None, Field(None, gt=0, description=_OLD))}
    if tag not in WITH_KERNEL:
        return {}
    comments, hints = comments_of(KernelLearning), get_type_hints(KernelLearning.__init__)
    return {
        name: (hints[name], Field(default, description=comments[name]))
        for name, default in asdict(KernelLearning()).items()
    }


PHYSICS = {tag: _section(kind, tag, **_own_keys(tag)) for tag, kind in SETUPS.items()}
NOISES = {tag: _section(kind, tag) for tag, kind in KINDS.items()}
FIDELITIES = {
    tag: _section(kind, tag, tikhonov=(float | None, Field(None, ge=0, description=_RIDGE)))
    for tag, kind in {
        "L2": L2,
        "WeightedL2": WeightsOfFile,
        "SampledL2": Sampling,
        "L1": L1,
        "Huber": Huber,
        "KL": CountsOfFile,
        "Poisson": CountsOfFile,
        "PoissonGaussian": ReadOutOfFile,
    }.items()
}

if TYPE_CHECKING:
    Physics: TypeAlias = Built
    NoiseSection: TypeAlias = Built
    Fidelity: TypeAlias = Built
else:  # unions of classes that are made above, which a type checker cannot follow
    Physics = one_of(PHYSICS, default="denoising")
    NoiseSection = one_of(NOISES, default="gaussian")
    Fidelity = one_of(FIDELITIES, default="L2")


# --- what is left out follows from what is there --------------------------------------------------


def follow(tables: Any) -> Any:
    """The tables of a file with [noise] and [fidelity] where they are left out.

    The noise is that of the physics, the data term that of the noise; an energy whose data term is
    not strongly convex gets a small Tikhonov term.
    """
    if not isinstance(tables, dict):
        return tables
    told = {name: tables.get(name) for name in ("physics", "noise", "fidelity", "regularizer")}
    if not all(table is None or isinstance(table, dict | Built) for table in told.values()):
        return tables  # no table where one is expected: said of the section itself
    tables = dict(tables)
    physics = tables.get("physics", {})
    if tables.get("noise") is None:
        tables["noise"] = _noise_of(physics)
    regularizer = tables.get("regularizer", {})
    suited = _fidelity_of(tables["noise"], _kind(regularizer) in SADDLES)
    given = tables.get("fidelity")
    if given is None:
        tables["fidelity"] = suited
    elif isinstance(given, dict):
        alike = given.get("type", suited["type"]) == suited["type"]
        counts = given.get("type") in COUNTS and suited["type"] in COUNTS
        tables["fidelity"] = {**suited, **given} if alike or counts else given
    if _key(tables["fidelity"], "tikhonov") is None:
        tables["fidelity"] = _with_ridge(tables["fidelity"], physics, regularizer)
    return tables


def _key(table: Any, key: str) -> Any:
    """A key of a table, which may be a section already."""
    return table.get(key) if isinstance(table, dict) else getattr(table, key, None)


def _kind(table: Any) -> str:
    """What chooses a section; nothing where that is no word."""
    chosen = _key(table, "type")
    return chosen if isinstance(chosen, str) else ""


def _noise_of(physics: Any) -> dict[str, object]:
    """The noise that goes with a physics; an old file says its level there."""
    kind = SETUPS.get(_kind(physics) or "denoising", Denoising)
    try:
        sigma = level(_key(physics, "sigma"))
        if kind is Denoising and sigma is not None and sigma > 0:
            return {"type": "gaussian", "sigma": float(sigma)}
        settings = physics if isinstance(physics, dict) else physics.model_dump()
        noise = kind(**{k: v for k, v in settings.items() if k != "type"}).default_noise()
    except (InputError, TypeError, ValueError):  # said of the section itself
        noise = kind().default_noise()
    (tag,) = (tag for tag, known in KINDS.items() if known is type(noise))
    return {"type": tag, **asdict(noise)}  # type: ignore[call-overload]  # every noise is a dataclass


def _fidelity_of(noise: Any, saddle: bool) -> dict[str, object]:
    """The data term that goes with a noise."""
    kind = _kind(noise)
    if kind == "salt_pepper":
        return {"type": "L1"} if saddle else {"type": "Huber"}
    if kind == "poisson_gaussian":
        return _read_out(noise)
    if kind != "poisson":
        return {"type": "L2"}
    told = {name: _key(noise, name) for name in ("gain", "background", "normalized")}
    try:
        counts = Poisson(**{name: v for name, v in told.items() if v is not None})
    except InputError:  # said of the section itself
        return {"type": "L2"}
    background = counts.background or FEW_COUNTS
    gain = level(counts.gain)
    return {"type": "KL", "gain": gain, "background": background, "scaled": counts.normalized}


def _read_out(noise: Any) -> dict[str, object]:
    """The data term of counts with read-out noise."""
    told = {name: _key(noise, name) for name in ("gain", "sigma")}
    try:
        counts = PoissonGaussian(**{name: v for name, v in told.items() if v is not None})
    except InputError:  # said of the section itself
        return {"type": "L2"}
    return {"type": "PoissonGaussian", "gain": level(counts.gain), "sigma": level(counts.sigma)}


def _with_ridge(fidelity: Any, physics: Any, regularizer: Any) -> Any:
    """The data term with its ``tikhonov``."""
    kind = SETUPS.get(_kind(physics) or "denoising", Denoising)
    convex = kind.full_rank and (_kind(fidelity) or "L2") == "L2"
    terms = _key(regularizer, "terms") or [regularizer]
    convex = convex or any(_kind(t) == "Tikhonov" for t in terms)
    tikhonov = 0.0 if convex else _rounded(TIKHONOV * _curvature(fidelity))
    if isinstance(fidelity, dict):
        return {**fidelity, "tikhonov": tikhonov}
    if isinstance(fidelity, Built):
        return fidelity.model_copy(update={"tikhonov": tikhonov})
    return fidelity


def unsaid(config: C) -> C:
    """The same configuration without a ``tikhonov`` that follows anyway: so it follows what is
    changed in the file.
    """
    fidelity: Any = getattr(config, "fidelity", None)
    plain = fidelity.model_copy(update={"tikhonov": None})
    physics, regularizer = getattr(config, "physics", None), getattr(config, "regularizer", None)
    follows = _with_ridge(plain, physics, regularizer) == fidelity
    return config.model_copy(update={"fidelity": plain}) if follows else config


def _curvature(fidelity: Any) -> float:
    """What a data term bends by in A x around 1; 1 where its keys are no numbers."""

    def number(key: str) -> float:
        try:
            value = float(level(_key(fidelity, key)))
        except (InputError, TypeError, ValueError):
            return 1.0
        return value if 0 < value < float("inf") else 1.0

    kind = _kind(fidelity) or "L2"
    if kind in COUNTS:
        return 1 / number("gain")
    if kind == "PoissonGaussian":
        return 1 / (number("gain") + number("sigma") ** 2)
    return number("weight") if kind in ("Huber", "L1") else number("sigma") ** -2


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


# --- what they stand for --------------------------------------------------------------------------


def build_setup(physics: Built) -> Setup:
    """The settings of the physics of a section.

    Raises:
        ConfigError: values out of range.
    """
    built: Setup = physics.build("physics")
    return built


def build_learned(physics: Built, operator: nn.Module, channels: int) -> nn.Module:
    """The operator of the model, for the one that measures: with a kernel to learn where the
    section asks for it.

    Raises:
        ConfigError: values out of range; a kernel that does not fit into the images.
    """
    with located("physics"):
        return learning_of(physics).build(operator, channels)


def learning_of(physics: Built) -> KernelLearning:
    """What is learned of the physics of a section.

    Raises:
        ConfigError: values out of range.
    """
    told = {name: getattr(physics, name, None) for name in asdict(KernelLearning())}
    with located("physics"):
        return KernelLearning(**{name: v for name, v in told.items() if v is not None})


def build_noise(physics: Built, noise: Built) -> Noise:
    """The settings of the noise of a section.

    Raises:
        ConfigError: values out of range; a level in [noise] and another one in [physics]; a level
            that is one of grey values up to 255.
    """
    built: Noise = noise.build("noise")
    old = getattr(physics, "sigma", None)
    if old is not None and (tag_of(noise) != "gaussian" or getattr(noise, "sigma", None) != old):
        raise ConfigError(
            "[physics] sigma",
            given=f"{old:g} beside another noise in [noise]",
            expected="one place for the noise",
            remedy="Remove it; [noise] says all.",
        )
    sigma = getattr(noise, "sigma", getattr(noise, "width", None))
    if build_setup(physics).like_images and sigma is not None:
        with located("noise" if old is None else "physics"):
            check_level(sigma, "sigma" if hasattr(noise, "sigma") else "width")
    return built


def build_energy(
    physics: nn.Module,
    regularizer: Built,
    fidelity: Built,
    size: tuple[int, int],
    channels: int,
    bounds: Bounds | None = None,
    **inherited: object,
) -> Energy | SaddleEnergy:
    """The energy of the sections, for a physics and images of this size.

    Raises:
        ConfigError: values out of range; a data term that does not go with the regularizer.
    """
    part: Part = build_regularizer(regularizer, "regularizer", channels=channels, **inherited)
    term = fidelity.build("fidelity")
    tikhonov = float(getattr(fidelity, "tikhonov", None) or 0.0)
    constraint = None if bounds is None else bounds.build()
    with located("fidelity"):
        if isinstance(term, Sampling):
            term = term.load(measured_shape(physics, size, channels))
        from_file = isinstance(term, WeightsOfFile | CountsOfFile | ReadOutOfFile)
        data_term = term.load() if from_file else term
        if isinstance(part, Regularizer):
            whole = part + Tikhonov(tikhonov, learned=False) if tikhonov else part
            return energy_for(physics, whole, data_term, constraint=constraint)
        return energy_for(physics, part, data_term, tikhonov, constraint)


def check_problem(
    physics: Built,
    noise: Built,
    regularizer: Built,
    fidelity: Built,
    size: tuple[int, int],
    channels: int,
) -> None:
    """Refuse sections that do not go together, before data are loaded or anything is built.

    Raises:
        ConfigError: says which keys.
    """
    setup = build_setup(physics)
    with located("data"):
        setup.check(size, channels)
    learning_of(physics)
    if tag_of(fidelity) in COUNTS:
        _check_counts(build_noise(physics, noise), tag_of(noise), fidelity)
    build_noise(physics, noise)
    check_full(physics, fidelity)
    stand_in = Denoising().build(size, noise=NoNoise())
    energy = build_energy(stand_in, regularizer, fidelity, size, channels, seed=0)
    convex = setup.full_rank and tag_of(fidelity) == "L2"
    own = energy.regularizer.bounds().mu.value if isinstance(energy, Energy) else 1.0
    if not convex and own <= 0:
        raise ConfigError(
            "[fidelity] tikhonov",
            given=f"{own:g} with {tag_of(physics)} and {tag_of(fidelity)}, which leave some images "
            "undetermined",
            expected="a number > 0, as certified distances need",
            remedy="Leave it out.",
        )
    if isinstance(energy, SaddleEnergy) and tag_of(fidelity) in COUNTS:
        with located("fidelity"):  # some data terms are refused when they meet measurements
            energy.fidelity.of_data(torch.ones(1, channels, *size))


def _check_counts(noise: Noise, tag: str, fidelity: Built) -> None:
    """Refuse a data term of counts for measurements that are none, or are counted otherwise.

    Raises:
        ConfigError: says what the noise makes.
    """
    if isinstance(noise, Gaussian | Uniform | PoissonGaussian):
        raise ConfigError(
            "[fidelity] type",
            given=f'"{tag_of(fidelity)}" with {tag} noise, which makes measurements below zero',
            expected="PoissonGaussian, L2, WeightedL2, L1, Huber",
            remedy='Leave [fidelity] out, or set [noise] type = "poisson".',
        )
    if isinstance(noise, Poisson):
        for key, own in (("gain", level(noise.gain)), ("scaled", noise.normalized)):
            if getattr(fidelity, key) != own:
                raise ConfigError(
                    f"[fidelity] {key}",
                    given=toml.value(getattr(fidelity, key)),
                    expected=f"{toml.value(own)}, as the measurements of [noise]",
                    remedy="Leave it out.",
                )
