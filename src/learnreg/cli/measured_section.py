"""The section [data] with type = "measured": pairs from files, and the choice between it and
simulated ones.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

import torch
from pydantic import AfterValidator, BaseModel, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from ..core.errors import ConfigError
from ..data import Pairs, measured
from ..data.arrays import KEYED
from ..data.entries import entries_of
from ..data.fitting import plane
from ..data.measured import warn_shared
from .data_section import Data
from .sections import Section, located

_FILES = f'a folder, a file whose first axis counts them, or "file:entry" ({", ".join(KEYED)})'


def _amount(given: Any) -> Any:
    """A number or fraction of pairs, as it is.

    Raises:
        PydanticCustomError: anything else.
    """
    number = isinstance(given, int | float) and not isinstance(given, bool)
    if given is None or (number and given >= 0 and (isinstance(given, int) or given <= 1)):
        return given
    raise PydanticCustomError("amount", "a number of pairs, or a fraction of them up to 1.0")


def _some(given: Any) -> Any:
    """A number or fraction that is not zero."""
    if given == 0:
        raise PydanticCustomError("amount", "at least one pair")
    return given


# why not a union of types: 1 is a pair, 1.0 are all of them, and messages name one expectation
Amount: TypeAlias = Annotated[Any, AfterValidator(_amount)]
Some: TypeAlias = Annotated[Any, AfterValidator(_amount), AfterValidator(_some)]


class MeasuredData(Section):
    """Pairs of true images and measurements from files."""

    type: Literal["measured"] = "measured"
    """pairs from files; "simulated" measures images with [physics]"""
    images: str = Field(
        min_length=1, description=f"true images: {_FILES}; matched with measurements by file name"
    )
    measurements: str = Field(min_length=1, description="likewise; what [physics] has measured")
    params: dict[str, str] = Field(default_factory=dict)
    """tensors of the physics that differ between images, from files likewise: {mask = "masks"}"""
    train: Some = None
    """number or fraction of the training pairs; what the others leave when left out"""
    validation: Amount = 0
    """number or fraction of the pairs to validate on"""
    test: Some = None
    """number or fraction of the held-out pairs; a fifth, or all of test_images when left out"""
    test_images: str | None = None
    """true images of the held-out pairs, if they have files of their own"""
    test_measurements: str | None = None
    """measurements of test_images"""
    test_params: dict[str, str] = Field(default_factory=dict)
    """params of test_images"""
    group: str | None = None
    """regular expression that finds the patient or scene in a file's name (its first group, or the
    whole match): files of one are never on two sides
    """
    channels: int = Field(default=1, ge=1)
    """1 (grey), 3 (colour), 2 (complex images)"""
    image_factor: float = 1.0
    """images are multiplied by it"""
    measurement_factor: float = 1.0
    """measurements are multiplied by it"""


DATA: dict[str, type[BaseModel]] = {"simulated": Data, "measured": MeasuredData}
"""The sections [data] by their ``type``."""


def kind_of(table: object) -> str:
    """The tag of a section [data]; files from before there was a choice have none."""
    if isinstance(table, BaseModel):
        return "measured" if isinstance(table, MeasuredData) else "simulated"
    return str(table.get("type", "simulated")) if isinstance(table, dict) else "simulated"


AnyData: TypeAlias = Annotated[
    Annotated[Data, Tag("simulated")] | Annotated[MeasuredData, Tag("measured")],
    Discriminator(kind_of),
]


def source_of(data: Data | MeasuredData) -> str:
    """Where the images come from, in the words of the file."""
    return data.source if isinstance(data, Data) else data.images


def size_of(data: Data | MeasuredData) -> tuple[int, int]:
    """Height and width of the images; of measured ones those of the first, which is read.

    Raises:
        ConfigError: there is no first image, or it cannot be read.
    """
    if isinstance(data, Data):
        return data.size, data.size
    with located("data"):
        first = entries_of(data.images, "images", data.channels).items[0]
        return plane(first.load())


def build_measured(data: MeasuredData, physics: Any, seed: int, dtype: torch.dtype) -> list[Pairs]:
    """The pairs for training, validation (empty if none is asked for) and test.

    Args:
        data: the section.
        physics: a deepinv physics for images of ``size_of(data)``.
        seed: of the dealing.
        dtype: of the numbers.

    Raises:
        ConfigError: see ``learnreg.data.measured``.
    """
    common: dict[str, Any] = {
        "seed": seed,
        "group": data.group,
        "channels": data.channels,
        "image_factor": data.image_factor,
        "measurement_factor": data.measurement_factor,
        "dtype": dtype,
    }
    files = (data.images, data.measurements, physics)
    with located("data"):
        if data.test_images is None and data.test_measurements is None:
            split = [data.train, data.validation, _held_out(data)]
            return [*measured(*files, split=split, params=data.params, **common)]
        others = (*_own_test(data), physics)
        split = [data.train, data.validation]
        sides = [*measured(*files, split=split, params=data.params, **common)]
        amount = 1.0 if data.test is None else data.test
        test, _ = measured(*others, split=(amount, 0), params=data.test_params, **common)
        warn_shared([*sides, test])
    return [*sides, test]


def _held_out(data: MeasuredData) -> float | None:
    """How many pairs of one source are held out."""
    if data.test is not None or data.train is not None:
        return data.test
    if data.validation and isinstance(data.validation, int):
        raise ConfigError(
            "[data] test",
            given="nothing beside a number of pairs to validate on",
            expected="the number of held-out pairs",
            remedy="Or pass fractions for both.",
        )
    return 0.2


def _own_test(data: MeasuredData) -> tuple[str, str]:
    """The files of the held-out pairs."""
    if data.test_images is None or data.test_measurements is None:
        missing = "test_images" if data.test_images is None else "test_measurements"
        raise ConfigError(
            f"[data] {missing}",
            given="nothing beside the other one",
            expected="both test_images and test_measurements, or none of them",
            remedy="Held-out pairs need both.",
        )
    if data.params.keys() != data.test_params.keys():
        raise ConfigError(
            "[data] test_params",
            given=", ".join(data.test_params) or "nothing",
            expected=f"as params: {', '.join(data.params) or 'nothing'}",
            remedy="The physics of the held-out images has the same tensors.",
        )
    return data.test_images, data.test_measurements
