"""Recipes of operators for files: the name of a known class, its settings and its tensors; never
code. What a recipe would not give back as it was is not stored.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from ..core.errors import ModelFileError
from ..core.measured import tensors_of
from ..operators.foreign import LinearPhysicsLike
from ..operators.private import widened
from . import learned_recipes
from .given import Given, Unknown, own_tensors, parts_of, plain_of
from .noise_recipes import describe_noise, rebuild_noise

TOLERANCE = 1e-5
"""Relative difference of A x and of A^T y between an operator and what its recipe gives: tables in
float32, such as the grids of tomography, are rounded at 1e-7.
"""

PROBE = 32
"""Pixels of the random images on which operators of any size are compared."""

MOST = 2**30
"""Numbers in the tables that a file may ask for: 4 GiB in float32."""

PADDINGS = ("valid", "circular", "reflect", "replicate", "constant", "zeros")

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Recipe:
    """How one class of operators is written down and built again.

    Attributes:
        settings: the plain settings of an operator, as JSON can hold them.
        tensors: names of its tensors that are stored.
        make: the operator of stored settings and tensors, without noise.
        image: the shape (c, h, w) that an operator is bound to; None for one of any size.
        inside: tensors that it keeps in modules of its own.
    """

    settings: Callable[[nn.Module], dict[str, object]]
    tensors: tuple[str, ...]
    make: Callable[[Given], nn.Module]
    image: Callable[[nn.Module], Shape | None]
    inside: Callable[[nn.Module], dict[str, Tensor]] = lambda physics: {}


def describe(
    physics: nn.Module, image: Shape | None = None
) -> tuple[dict[str, object], dict[str, Tensor]]:
    """What a file stores of a physics: a header for JSON, and tensors by name.

    A physics that no recipe gives back as it was is described by its name alone, and the header
    says under ``note`` why.

    Args:
        image: the shape (c, h, w) of its images where it does not know one itself; only used to
            compare what the recipe gives.

    >>> import deepinv
    >>> header, tensors = describe(deepinv.physics.Denoising(deepinv.physics.GaussianNoise(0.1)))
    >>> header["type"], header["noise"]["type"], tensors
    ('Denoising', 'GaussianNoise', {})
    """
    name = {"type": type(physics).__name__}
    try:
        header, tensors = _written(physics, "")
        _compare(physics, rebuild(header, tensors), image or image_shape(physics))
    except Unknown as why:
        return {**name, "note": str(why)}, {}
    except ModelFileError as error:
        return {**name, "note": f"its recipe would be refused: {error.given}"}, {}
    except (RuntimeError, ValueError, TypeError, AssertionError, IndexError) as error:
        return {**name, "note": f"it cannot be compared with its recipe ({error})"}, {}
    bound = image_shape(physics)
    if bound is not None:
        header["image"] = list(bound)
    noise = header["noise"]
    if isinstance(noise, dict) and "sigma" in noise:
        header["sigma"] = noise["sigma"]  # where earlier releases look for it
    return header, tensors


def rebuild(header: Mapping[str, object], tensors: Mapping[str, Tensor]) -> nn.Module:
    """The physics of a recipe, on the CPU.

    Raises:
        ModelFileError: a physics of which the file holds the name alone (pass it to load_model); a
            damaged recipe.
    """
    if not isinstance(header, Mapping):
        raise _damaged("no table")
    known, kind = _recipes(), header.get("type")
    if "note" in header or not isinstance(kind, str) or kind not in known:
        raise ModelFileError(
            "physics",
            given=f"a model for {kind}, of which the file holds the name alone"
            + (f": {header['note']}" if "note" in header else ""),
            expected="physics=...",
            remedy="Pass the deepinv physics it was trained for to load_model(path, physics=...).",
        )
    if "settings" not in header and kind != "Denoising":  # files of earlier releases
        raise ModelFileError(
            "physics",
            given=f"a model for {kind}, from before files held more than its name",
            expected="physics=...",
            remedy="Pass the deepinv physics it was trained for to load_model(path, physics=...).",
        )
    try:
        physics = _read(header, tensors, "")
        _try(physics)
        return physics
    except (
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        RuntimeError,
        AssertionError,
        IndexError,
        OverflowError,
        MemoryError,
    ) as error:
        if isinstance(error, ModelFileError):
            raise
        raise _damaged(f"{type(error).__name__}: {error}") from error


def image_shape(physics: nn.Module) -> Shape | None:
    """The shape (c, h, w) of the images that a physics is bound to: a mask, coil maps or a geometry
    fit no other. None for one of any size, and for one that is not known.
    """
    recipe = _recipe_of(physics)
    if recipe is None:
        return None
    return recipe.image(physics)


# --- writing --------------------------------------------------------------------------------------


def _written(physics: nn.Module, prefix: str) -> tuple[dict[str, object], dict[str, Tensor]]:
    """Header and tensors of a physics, whose names begin with ``prefix``.

    Raises:
        Unknown: no recipe; says why.
    """
    recipe = _recipe_of(physics)
    if recipe is None:
        raise Unknown(f"{type(physics).__name__} is no class that a file can name")
    if {"A", "A_adjoint"} & set(vars(physics)):
        raise Unknown("it carries an A or A_adjoint of its own")

    own = own_tensors(physics)
    kept = {name: own[name] for name in recipe.tensors if own.get(name) is not None}
    kept |= recipe.inside(physics)
    for name, t in kept.items():
        if t.dim() >= 4 and t.shape[0] > 1:
            raise Unknown(
                f"its {name} holds one slice for each of {t.shape[0]} images, which belong to the "
                "scans and not to the model"
            )
    header: dict[str, object] = {
        "type": type(physics).__name__,
        "settings": recipe.settings(physics),
        "noise": describe_noise(physics),
    }
    learned = [name for name, t in kept.items() if t.requires_grad]
    if learned:
        header["learned"] = learned
    tensors = {prefix + name: t.detach().cpu() for name, t in kept.items()}

    parts = []
    for number, part in enumerate(parts_of(physics)):
        told, held = _written(part, f"{prefix}{number}.")
        parts.append(told)
        tensors |= held
    if parts:
        header["parts"] = parts
    return header, tensors


def _recipe_of(physics: nn.Module) -> Recipe | None:
    """The recipe of exactly this class: a subclass may do anything else."""
    kinds = _classes()
    known = kinds.get(type(physics).__name__)
    return _recipes()[type(physics).__name__] if known is type(physics) else None


@torch.no_grad()
def _compare(physics: nn.Module, again: nn.Module, image: Shape | None) -> None:
    """Refuse a recipe that gives another operator, by a random image and random measurements.

    Raises:
        Unknown: says which of A and A^T differs, and by how much.
    """
    if type(physics).__name__ == "StackedLinearPhysics":
        for part, rebuilt in zip(parts_of(physics), parts_of(again), strict=True):
            _compare(part, rebuilt, image)
        return
    if type(physics).__name__ == "Denoising" or _waits(physics):
        return

    one, other = _typed(widened(physics).cpu()), _typed(widened(again))
    generator = torch.Generator().manual_seed(0)
    shape = image or _any_shape(physics)
    x = torch.randn((1, *shape), generator=generator, dtype=torch.float64)
    y = one.A(x)
    _same("A", tensors_of(y), tensors_of(other.A(x)))
    _same("A_adjoint", tensors_of(one.A_adjoint(y)), tensors_of(other.A_adjoint(y)))


def _typed(physics: nn.Module) -> LinearPhysicsLike:
    """For type checkers: deepinv has no types."""
    return cast(LinearPhysicsLike, physics)


def _same(what: str, one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> None:
    pairs = list(zip(one, other, strict=False))
    if len(one) != len(other) or any(a.shape != b.shape for a, b in pairs):
        raise Unknown(f"its recipe gives another {what}: another shape")
    size = math.sqrt(sum(float(a.abs().square().sum()) for a in one))
    difference = math.sqrt(sum(float((a - b).abs().square().sum()) for a, b in pairs))
    if not difference <= TOLERANCE * size:
        raise Unknown(
            f"its recipe gives another {what} (relative difference {difference / (size or 1):.1e})"
        )


def _any_shape(physics: nn.Module) -> Shape:
    """Images for an operator of any size: larger than its filters, multiples of its factors."""
    side, channels, factor = PROBE, 1, 1
    for module in physics.modules():
        own, plain = learned_recipes.tensors_of(module), plain_of(module)
        filter = own.get("filter")
        if filter is not None:
            side = max(side, 2 * max(filter.shape[-2:]))
            channels = max(channels, filter.shape[1])
        if isinstance(plain.get("factor"), int):
            factor *= int(str(plain["factor"]))
    for part in parts_of(physics):
        bound = image_shape(part)
        if bound is not None:
            return bound
    return (channels, -(-side // factor) * factor, -(-side // factor) * factor)


# --- reading --------------------------------------------------------------------------------------


def _read(header: Mapping[str, object], tensors: Mapping[str, Tensor], prefix: str) -> nn.Module:
    """The physics of a header."""
    kind = str(header["type"])
    recipe = _recipes()[kind]
    told = header.get("parts", [])
    if not isinstance(told, list) or not all(isinstance(part, dict) for part in told):
        raise ValueError(f"parts of {kind} that are no tables")
    parts = [_read(part, tensors, f"{prefix}{i}.") for i, part in enumerate(told)]
    settings = header.get("settings", {})
    if not isinstance(settings, Mapping):
        raise ValueError(f"settings of {kind} that are no table")

    held = {name: tensors[prefix + name] for name in recipe.tensors if prefix + name in tensors}
    held |= learned_recipes.held(tensors, prefix)
    physics = recipe.make(Given(kind, settings, held, parts))
    physics.noise_model = rebuild_noise(header)
    own = dict((*physics.named_parameters(), *physics.named_buffers()))
    learned = header.get("learned", [])
    if not isinstance(learned, list) or not set(learned) <= set(held):
        raise ValueError(f"learned tensors of {kind} that it does not have")
    for name in learned:
        own[name].requires_grad_()
    return physics


@torch.no_grad()
def _try(physics: nn.Module) -> None:
    """Apply A once: tensors of a file may be of types or shapes that fit nothing.

    Raises:
        RuntimeError, ValueError, TypeError, IndexError, AssertionError: as A raises them.
    """
    if _waits(physics):
        return
    shape = image_shape(physics) or _any_shape(physics)
    tensors = (*physics.parameters(), *physics.buffers())
    wide = any(t.dtype in (torch.float64, torch.complex128) for t in tensors if t.numel() > 1)
    _typed(physics).A(torch.zeros(1, *shape, dtype=torch.float64 if wide else torch.float32))


def _damaged(given: str) -> ModelFileError:
    return ModelFileError(
        "physics",
        given=f"a damaged recipe ({given})",
        expected="the header written by save_model",
        remedy="Restore the file from its run, or pass physics=... to load_model.",
    )


# --- the table ------------------------------------------------------------------------------------


@functools.cache
def _classes() -> dict[str, type]:
    """The classes that a file can name."""
    from deepinv import physics as known
    from deepinv.physics.forward import ComposedLinearPhysics, StackedLinearPhysics

    from . import emission, learned, own

    return {
        kind.__name__: kind
        for kind in (
            known.Denoising,
            known.Blur,
            known.BlurFFT,
            known.SpaceVaryingBlur,
            known.Inpainting,
            known.Demosaicing,
            known.Downsampling,
            known.MRI,
            known.MultiCoilMRI,
            known.Tomography,
            ComposedLinearPhysics,
            StackedLinearPhysics,
            own.Decimation,
            own.RealImages,
            learned.LearnedPhysics,
            emission.EmissionTomography,
        )
    }


@functools.cache
def _recipes() -> dict[str, Recipe]:
    """A recipe for each of them."""
    makes = _classes()

    def keep(*names: str) -> Callable[[nn.Module], dict[str, object]]:
        return lambda physics: {name: _plain(plain_of(physics)[name]) for name in names}

    def make(kind: str, **settings: object) -> nn.Module:
        module: nn.Module = makes[kind](**settings)
        return module

    def padded(given: Given) -> str:
        return given.word("padding", PADDINGS)

    return {
        "Denoising": Recipe(keep(), (), lambda g: make("Denoising"), _unbound),
        "Blur": Recipe(
            keep("padding", "use_fft"),
            ("filter",),
            lambda g: make(
                "Blur", filter=g.maybe("filter"), padding=padded(g), use_fft=g.flag("use_fft")
            ),
            _unbound,
        ),
        "BlurFFT": Recipe(
            keep("img_size"),
            ("filter",),
            lambda g: make(
                "BlurFFT", img_size=g.shape("img_size", 3, MOST), filter=g.tensor("filter", 4)
            ),
            _img_size,
        ),
        "SpaceVaryingBlur": Recipe(
            keep("padding", "use_fft", "mask_first"),
            ("filters", "multipliers"),
            lambda g: make(
                "SpaceVaryingBlur",
                filters=g.tensor("filters", 5),
                multipliers=g.tensor("multipliers", 5),
                padding=padded(g),
                use_fft=g.flag("use_fft"),
                mask_first=g.flag("mask_first"),
            ),
            lambda p: _of_tensor(p, "multipliers", (1, -2, -1)),
        ),
        "Inpainting": Recipe(
            _inpainting,
            ("mask",),
            lambda g: make(
                "Inpainting",
                img_size=g.shape("img_size", None, MOST),
                # why: one without a mask waits for those of single images
                mask=None if g.settings.get("open") is True else g.tensor("mask"),
            ),
            _img_size,
        ),
        "Demosaicing": Recipe(
            keep("img_size"),
            (),
            lambda g: make("Demosaicing", img_size=g.shape("img_size", 3, MOST)),
            _img_size,
        ),
        "Downsampling": Recipe(
            keep("imsize", "factor", "padding"),
            ("filter",),
            lambda g: make(
                "Downsampling",
                img_size=None if g.absent("imsize") else g.shape("imsize", 3, MOST),
                filter=g.maybe("filter"),
                factor=g.integer("factor", 1, 1024),
                padding=padded(g),
            ),
            _imsize,
        ),
        "MRI": Recipe(
            keep("three_d"),
            ("mask",),
            lambda g: make(
                "MRI",
                mask=g.tensor("mask"),
                img_size=tuple(g.tensor("mask").shape[1:]),
                three_d=g.flag("three_d"),
            ),
            lambda p: _of_tensor(p, "mask", None),
        ),
        "MultiCoilMRI": Recipe(
            keep("three_d"),
            ("mask", "coil_maps"),
            lambda g: make(
                "MultiCoilMRI",
                mask=g.tensor("mask"),
                coil_maps=g.tensor("coil_maps"),
                img_size=tuple(g.tensor("mask").shape[1:]),
                three_d=g.flag("three_d"),
            ),
            lambda p: _of_tensor(p, "mask", None),
        ),
        "Tomography": Recipe(
            _tomography, ("angles", "operator_norm"), _make_tomography, _of_tomography
        ),
        "Decimation": Recipe(
            keep("factor", "padding"),
            ("filter",),
            lambda g: make(
                "Decimation",
                filter=g.tensor("filter", 4),
                factor=g.integer("factor", 2, 1024),
                padding=padded(g),
            ),
            _unbound,
        ),
        "RealImages": Recipe(
            keep(), (), lambda g: make("RealImages", inner=g.part(("MRI", "MultiCoilMRI"))), _real
        ),
        "LearnedPhysics": Recipe(
            learned_recipes.settings,
            (),
            learned_recipes.make,
            _of_parts,
            learned_recipes.inside,
        ),
        "EmissionTomography": Recipe(
            keep(),
            ("attenuation", "filter"),
            lambda g: make(
                "EmissionTomography",
                inner=g.part(("Tomography",)),
                attenuation=g.tensor("attenuation"),
                filter=g.tensor("filter", 4),
            ),
            _of_parts,
        ),
        "ComposedLinearPhysics": Recipe(
            keep(), (), lambda g: makes["ComposedLinearPhysics"](*g.all_parts()), _of_parts
        ),
        "StackedLinearPhysics": Recipe(
            keep(), (), lambda g: makes["StackedLinearPhysics"](g.all_parts()), _of_parts
        ),
    }


def _plain(value: object) -> object:
    """A setting as JSON can hold it."""
    if isinstance(value, tuple | list | torch.Size):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, Tensor) and value.numel() == 1:
        return _plain(value.item())
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise Unknown(f"a setting of it is a {type(value).__name__}")


def _waits(physics: nn.Module) -> bool:
    """Whether an operator has no mask yet, and can be applied with those of single images only."""
    own = plain_of(physics).get("_buffers")
    empty = isinstance(own, dict) and "mask" in own and own["mask"] is None
    return empty or any(_waits(part) for part in parts_of(physics))


def _inpainting(physics: nn.Module) -> dict[str, object]:
    size = {"img_size": _plain(plain_of(physics)["img_size"])}
    return size if own_tensors(physics).get("mask") is not None else {**size, "open": True}


def _tomography(physics: nn.Module) -> dict[str, object]:
    own, radon = plain_of(physics), plain_of(dict(physics.named_children())["radon"])
    return {
        **{
            name: _plain(own[name])
            for name in ("img_width", "adjoint_via_backprop", "fan_beam", "normalize", "dtype")
        },
        "circle": _plain(radon["circle"]),
        "fan_parameters": _plain(radon["fan_parameters"]),
    }


def _make_tomography(given: Given) -> nn.Module:
    """Without the power iteration of the constructor: the norm is one of the tensors.

    Raises:
        ValueError: grids beyond all memory.
    """
    angles, width = given.tensor("angles", 1), given.integer("img_width", 2, 2**16)
    if 2 * 2 * width**2 * angles.numel() > MOST:
        raise ValueError(f"{angles.numel()} views of {width} x {width} pixels")
    fan = given.flag("fan_beam")
    module: nn.Module = _classes()["Tomography"](
        angles=angles,
        img_width=width,
        circle=given.flag("circle"),
        adjoint_via_backprop=given.flag("adjoint_via_backprop"),
        normalize=False,
        fan_beam=fan,
        fan_parameters=given.numbers("fan_parameters", 2**16) if fan else None,
        dtype={"float32": torch.float32, "float64": torch.float64}[
            given.word("dtype", ("float32", "float64"))
        ],
    )
    if given.flag("normalize"):
        norm = given.tensor("operator_norm")
        if norm.numel() != 1 or not float(norm) > 0:
            raise ValueError("a norm that is not positive")
        module.register_buffer("operator_norm", norm)
        vars(module)["normalize"] = True
    return module


# --- the images that an operator is bound to ------------------------------------------------------


def _unbound(physics: nn.Module) -> Shape | None:
    return None


def _img_size(physics: nn.Module) -> Shape | None:
    found = plain_of(physics).get("img_size")
    return tuple(map(int, found)) if isinstance(found, tuple | list | torch.Size) else None


def _imsize(physics: nn.Module) -> Shape | None:
    found = plain_of(physics).get("imsize")
    return tuple(map(int, found)) if isinstance(found, tuple | list) else None


def _of_tensor(physics: nn.Module, name: str, axes: tuple[int, ...] | None) -> Shape | None:
    t = own_tensors(physics).get(name)
    if t is None:
        return None
    return tuple(t.shape[1:]) if axes is None else tuple(t.shape[i] for i in axes)


def _of_tomography(physics: nn.Module) -> Shape | None:
    width = int(str(plain_of(physics)["img_width"]))
    return (1, width, width)


def _real(physics: nn.Module) -> Shape | None:
    (inner,) = parts_of(physics)
    shape = image_shape(inner)
    return None if shape is None else (1, *shape[1:])


def _of_parts(physics: nn.Module) -> Shape | None:
    """Of the first operator; its images are those of the whole."""
    first, *others = parts_of(physics)
    bound = image_shape(first)
    stacked = type(physics).__name__ == "StackedLinearPhysics"
    return bound or next((s for o in others if stacked and (s := image_shape(o))), None)
