"""Private copies of a physics: widened, with other tensors, of some images; and snapshots of it.

Nothing lent is mutated: every change is made to a copy.
"""

from __future__ import annotations

import copy
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from ..core.errors import InputError
from ..core.params import NOISE, keeping_learned, trainable
from .foreign import LinearPhysicsLike

M = TypeVar("M", bound=nn.Module)

LOOKED_AT = 2**16
"""Entries of a tensor that a checksum is made of; more where they are fewer than twice as many.

Measured on 128^2 images: a tenth of one application of A.
"""

DEPTH = 4
"""How deep plain attributes of a physics are looked into for changes."""


def clone(physics: M, shared: Iterable[Tensor] = ()) -> M:
    """A deep copy, random generators included; tensors in ``shared`` stay the same ones.

    deepinv's own method looks for generators in everything that can be reached, half a second of
    it; it is asked where one is not an attribute of a module.
    """
    from deepinv.physics import Physics

    memo: dict[int, object] = {id(g): _same_generator(g) for g in _generators(physics)}
    memo |= {id(t): t for t in shared}
    with torch.inference_mode(False), torch.no_grad():
        try:
            copied: M = copy.deepcopy(physics, memo)
        except TypeError:  # a generator elsewhere cannot be copied
            if not isinstance(physics, Physics):
                raise
            copied = physics.clone()
    return without_inference(_with_lists(copied))


def _with_lists(module: M) -> M:
    """``module`` with its plain lists of modules as lists that are registered, in place: deepinv's
    stacks hold their operators in one, where no copy in float64 would reach them.
    """
    for part in list(module.modules()):
        for name, value in list(vars(part).items()):
            if _is_list(value):
                setattr(part, name, nn.ModuleList([_with_lists(m) for m in _listed(value)]))
    return module


def parts(physics: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The modules of a physics by name, itself included, and those in plain lists."""
    for name, module in physics.named_modules():
        yield prefix + name, module
        for key, value in vars(module).items():
            for i, listed in enumerate(_listed(value) if _is_list(value) else ()):
                yield from parts(listed, f"{prefix}{name}{'.' if name else ''}{key}.{i}.")


def named_tensors(physics: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Its parameters and buffers by name, those of operators in plain lists included."""
    for name, module in parts(physics):
        own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        for key, t in own:
            yield f"{name.rstrip('.')}{'.' if name.rstrip('.') else ''}{key}", t


def _is_list(value: object) -> bool:
    """Whether a plain attribute is a list of modules."""
    return isinstance(value, list) and bool(value) and all(isinstance(m, nn.Module) for m in value)


def _listed(value: object) -> list[nn.Module]:
    return [m for m in value if isinstance(m, nn.Module)] if isinstance(value, list) else []


def _generators(physics: nn.Module) -> list[torch.Generator]:
    """The random generators that are attributes of the modules of a physics."""
    return [
        value
        for module in physics.modules()
        for value in vars(module).values()
        if isinstance(value, torch.Generator)
    ]


def _same_generator(generator: torch.Generator) -> torch.Generator:
    return torch.Generator(generator.device).set_state(generator.get_state())


def without_inference(module: M) -> M:
    """``module`` with its inference tensors replaced by ordinary ones, in place."""
    for part in module.modules():
        for name, p in part._parameters.items():
            if p is not None and p.is_inference():
                part._parameters[name] = nn.Parameter(_ordinary(p))
        for name, t in part._buffers.items():
            if t is not None and t.is_inference():
                part._buffers[name] = _ordinary(t)
    return module


def _ordinary(t: Tensor) -> Tensor:
    with torch.inference_mode(False):
        return t.clone()


def widened(physics: M) -> M:
    """A copy with its tensors in float64.

    deepinv's tomography also keeps a dtype, and an adjoint made for it.
    """
    wide = clone(physics)
    for module in wide.modules():
        own = vars(module)
        if own.get("dtype") == torch.float32:
            own["dtype"] = torch.float64
        if own.get("_auto_grad_adjoint_fn") is not None:
            own["_auto_grad_adjoint_fn"] = None
        for name, value in own.items():  # tensors that were never registered
            if isinstance(value, Tensor):
                own[name] = promoted(value)
    with keeping_learned(wide):
        wide._apply(promoted)  # type: ignore[no-untyped-call]  # torch has no types here
    return wide


def promoted(t: Tensor) -> Tensor:
    """Real tensors to float64, complex ones to complex128.

    ``Module.to(torch.float64)`` would drop imaginary parts.
    """
    if t.is_complex():
        return t.to(torch.complex128)
    return t.to(torch.float64) if t.is_floating_point() else t


def noise_of(physics: nn.Module) -> Mapping[str, object]:
    """What the noise model of a physics keeps, by name; nothing where it has none."""
    own = dict(physics.named_children())
    noise = own.get("noise_model", vars(physics).get("noise_model"))
    if not isinstance(noise, nn.Module):
        return _attributes(noise)
    tensors = (*noise.named_parameters(recurse=False), *noise.named_buffers(recurse=False))
    return {**vars(noise), **dict(tensors)}


def is_narrow(physics: nn.Module) -> bool:
    """Whether some tensor of the physics has less than double precision."""
    if any(vars(module).get("dtype") == torch.float32 for _, module in parts(physics)):
        return True  # some of deepinv's keep a dtype of their own
    tensors = [t for _, t in named_tensors(physics)]
    # a scalar such as a device holder or a noise level decides nothing, one that is learned does
    return any(
        t.dtype in (torch.float32, torch.complex64, torch.float16, torch.bfloat16)
        for t in tensors
        if t.numel() > 1 or t.requires_grad
    )


def of_images(physics: M, index: Tensor, count: int, names: frozenset[str]) -> M:
    """A shallow copy whose tensors ``names``, one slice per image, are those of ``index``."""
    return _replaced(
        physics,
        lambda name, t: t[index.to(t.device)] if name in names and t.shape[0] == count else t,
    )


def tensor_named(physics: nn.Module, name: str) -> Tensor | None:
    """The parameter or buffer of that name, or the only one of a part whose name ends in it."""
    named = dict(named_tensors(physics))
    if name in named:
        return named[name]
    inside = [t for full, t in named.items() if full.endswith(f".{name}")]
    return inside[0] if len(inside) == 1 else None


def aligned(physics: nn.Module, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors with one slice per image (b, ...), with as many axes as those that they replace.

    why: deepinv puts missing axes in front, where those of the images would become channels.
    """

    def of(name: str, t: Tensor) -> Tensor:
        kept = tensor_named(physics, name)
        lacking = 0 if kept is None else kept.dim() - t.dim()
        return t.reshape(t.shape[0], *[1] * lacking, *t.shape[1:]) if lacking > 0 and t.dim() else t

    return {name: of(name, t) for name, t in params.items()}


def shallow(physics: M) -> M:
    """A copy that shares all tensors: those put in their place leave the original as it is."""
    return _replaced(physics, lambda name, t: t)


def check_slices(physics: LinearPhysicsLike, params: Mapping[str, Tensor]) -> None:
    """Refuse parameters per image whose first axis the physics took for another one.

    Raises:
        InputError: names the tensor.
    """
    for name, t in params.items():
        kept = tensor_named(physics, name)
        if kept is None or not kept.dim() or not t.dim() or kept.shape[0] == t.shape[0]:
            continue
        raise InputError(
            f"params[{name!r}]",
            given=f"shape {tuple(t.shape)}, of which {type(physics).__name__} made "
            f"{tuple(kept.shape)}",
            expected=f"one slice per image, ({t.shape[0]}, ...), that stays one",
            remedy="Give it all axes that the tensor of the physics has.",
        )


def with_tensors(physics: LinearPhysicsLike, tensors: Mapping[str, Tensor]) -> LinearPhysicsLike:
    """A copy updated with parameters, as ``physics.update(**tensors)`` would do it; what is learned
    is that of ``physics``, so that derivatives reach it.
    """
    copied = clone(physics, trainable(physics))
    copied.update(**tensors)
    if _is_stack(physics):  # which takes parameters in ``A`` and forgets to hand on updates
        for name, module in physics_parts(copied):
            if name:
                module.update(**tensors)
    return copied


def registered(physics: M) -> M:
    """The physics, or a shallow copy of a stack that torch knows the parts of.

    why: deepinv keeps them in a list, where their parameters are not found and not converted.
    """
    from deepinv.physics import StackedPhysics

    listed = vars(physics).get("physics_list")
    if not isinstance(physics, StackedPhysics) or not isinstance(listed, list):
        return physics
    copied = copy.copy(physics)
    state = copied.__dict__ = dict(physics.__dict__)
    del state["physics_list"]
    state["_modules"] = {**state["_modules"], "physics_list": nn.ModuleList(listed)}
    return copied


def with_absolute(physics: M, name: str) -> M:
    """A shallow copy with the absolute values of one of its tensors."""
    return _replaced(physics, lambda key, t: t.abs() if key == name else t)


def _is_stack(physics: LinearPhysicsLike) -> bool:
    from deepinv.physics.forward import StackedPhysics

    return isinstance(physics, StackedPhysics)


def physics_parts(physics: LinearPhysicsLike) -> Iterator[tuple[str, LinearPhysicsLike]]:
    """Those of its modules that are operators."""
    from deepinv.physics import Physics

    for name, module in parts(cast(nn.Module, physics)):
        if isinstance(module, Physics):
            yield name, cast(LinearPhysicsLike, module)


def windowed(physics: M, sides: torch.Size, rows: slice, columns: slice) -> M:
    """A shallow copy for a window of images of these sides: tensors like images are cut as well."""
    return _replaced(physics, lambda name, t: t[..., rows, columns] if t.shape[-2:] == sides else t)


def batched_names(physics: nn.Module, count: int) -> frozenset[str]:
    """Names of the tensors that may hold one slice per image of a batch of ``count``."""
    named = named_tensors(physics)
    return frozenset(name for name, t in named if t.dim() > 1 and t.shape[0] == count)


def _replaced(module: M, change: Callable[[str, Tensor], Tensor], prefix: str = "") -> M:
    """A copy that shares everything but the tables of tensors, which hold what ``change`` gives."""
    copied = copy.copy(module)
    state = copied.__dict__ = dict(module.__dict__)
    for table in ("_parameters", "_buffers"):
        state[table] = {
            name: None if t is None else change(prefix + name, t)
            for name, t in state[table].items()
        }
    state["_modules"] = {
        name: None if m is None else _replaced(m, change, f"{prefix}{name}.")
        for name, m in state["_modules"].items()
    }
    for key, value in list(state.items()):
        if _is_list(value):
            state[key] = [
                _replaced(m, change, f"{prefix}{key}.{i}.") for i, m in enumerate(_listed(value))
            ]
    return copied


# --- has it changed? ------------------------------------------------------------------------------


def snapshot(physics: nn.Module) -> tuple[object, ...]:
    """What the physics looks like: tensors by identity and version, plain attributes by value.

    The tensors themselves are held, so that no other one can take the place of their identity.
    """
    tensors = [_Seen(t) for _, t in named_tensors(physics)]
    plain = [
        (name, key, mark)
        for name, module in parts(physics)
        for key, value in vars(module).items()
        if key not in _OWN_STATE
        for mark in _marks(value, DEPTH)
    ]
    return (*tensors, *plain)


def of_tensors(physics: nn.Module) -> tuple[object, ...]:
    """The tensors of A alone: noise that was drawn and a pseudo-inverse leave other traces."""
    return tuple(_Seen(t) for name, t in named_tensors(physics) if NOISE not in name.split("."))


def same(a: tuple[object, ...], b: tuple[object, ...]) -> bool:
    """Whether two snapshots show the same physics."""
    return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))


_OWN_STATE = frozenset(vars(nn.Module())) | {
    # deepinv's tomography keeps an adjoint for the latest shape of its measurements
    "_auto_grad_adjoint_fn",
    "_auto_grad_adjoint_input_shape",
}
"""Attributes that say nothing of the operator: torch's own, and caches."""


class _Seen:
    """A tensor, the version it had, and a checksum: ``tensor.data`` and memory shared with NumPy
    are written to without a new version.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        # inference tensors have no version: they are compared by value
        self.version = None if tensor.is_inference() else tensor._version
        self.value = tensor.clone() if self.version is None else None
        self.checksum = _checksum(tensor)


def _checksum(tensor: Tensor) -> int:
    """Of all entries, or of ``LOOKED_AT`` of them at equal distances."""
    if tensor.layout is not torch.strided or tensor.is_meta:
        return 0
    flat = tensor.detach().resolve_conj().resolve_neg().reshape(-1)
    looked_at = flat[:: max(1, flat.numel() // LOOKED_AT)].contiguous().cpu()
    return zlib.crc32(looked_at.view(torch.uint8).numpy().tobytes())


def _same(a: object, b: object) -> bool:
    if isinstance(a, _Seen) and isinstance(b, _Seen):
        if a.tensor is not b.tensor or (a.version, a.checksum) != (b.version, b.checksum):
            return False
        return a.value is None or (b.value is not None and torch.equal(a.value, b.value))
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b):
        return True
    return type(a) is type(b) and bool(a == b)


def _marks(value: object, depth: int) -> Iterator[object]:
    """Comparable marks of a plain attribute: numbers by value, containers by their contents."""
    if isinstance(value, Tensor):
        yield _Seen(value)
    elif isinstance(value, bool | int | float | complex | str | bytes | type(None) | torch.dtype):
        yield value
    elif isinstance(value, np.ndarray | np.generic):
        yield value.tobytes()
    elif depth and isinstance(value, Mapping):
        yield len(value)
        for key, item in value.items():
            yield str(key)
            yield from _marks(item, depth - 1)
    elif depth and isinstance(value, list | tuple | set | frozenset):
        yield len(value)
        for item in value:
            yield from _marks(item, depth - 1)
    else:
        yield id(value)
        if depth and not callable(value):
            for key, item in _attributes(value).items():
                yield key
                yield from _marks(item, depth - 1)


def _attributes(value: object) -> Mapping[str, object]:
    """What an object keeps; nothing for one with slots, or of a language that is not Python."""
    try:
        return vars(value)
    except TypeError:
        return {}
