"""Measurements y = physics(x), image by image, each with its own noise seed; the physics stays as
it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FunctionType, MethodType
from typing import Protocol

import torch
from torch import Tensor, nn

from ..core.asking import offers
from ..core.errors import InputError
from .seeds import derive


def measure(x: Tensor, physics: nn.Module, names: Sequence[str], seed: int) -> Tensor:
    """Apply ``physics``, noise included, to one image after the other.

    The noise of an image is seeded by ``seed`` and its name alone, so it is the same whatever the
    other images are.

    Args:
        x: (n, c, h, w), n >= 1; brought to the device of the physics.
        physics: a deepinv physics; its random generators end as they began, and so do torch's
            global ones.
        names: n different names.
        seed: non-negative integer.

    Returns:
        y: (n, ...), on the device of ``x``.

    Raises:
        InputError: the physics cannot take such images, or answers with something that is not one
            tensor per image.
    """
    state = next(iter([*physics.parameters(), *physics.buffers()]), None)
    device = x.device if state is None else state.device
    measured = []
    with torch.no_grad(), _lent_generators(physics) as seed_all:
        for image, name in zip(x, names, strict=True):
            noise_seed = derive(seed, "noise", name)
            seed_all(noise_seed)
            with _seeded_globals(noise_seed, device):
                measured.append(_apply(physics, image[None].to(device)).to(x.device))
    return torch.cat(measured)


def _apply(physics: nn.Module, image: Tensor) -> Tensor:
    """``physics(image)`` for a batch of one, checked."""
    kind = type(physics).__name__
    try:
        y = physics(image)
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        raise InputError(
            "physics",
            given=f"a {kind} that fails on an image of shape {tuple(image.shape)}: {error}",
            expected="a physics that takes images (1, c, h, w) of the size of the crops",
            remedy="Build the physics for img_size=(channels, size, size).",
        ) from error
    if not isinstance(y, Tensor) or y.dim() < 2 or y.shape[0] != 1:
        given = f"a tensor of shape {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise InputError(
            "physics",
            given=f"a {kind} that answers an image with {given}",
            expected="one tensor with the batch as its first dimension",
            remedy="From a stacked physics take one, or join its tensors in a physics of yours.",
        )
    return y


@contextmanager
def _seeded_globals(seed: int, device: torch.device) -> Iterator[None]:
    """torch's global generators (of the CPU and of ``device``) seeded inside, as before outside.

    Noise models without a generator of their own draw from these. ``torch.manual_seed`` would reach
    further: it seeds every device there is.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


class _Random(Protocol):
    """A noise model with a generator of its own."""

    rng: object


class _Noisy(Protocol):
    """A physics whose noise is a function; one that is a module is found among its modules."""

    noise_model: object


@contextmanager
def _lent_generators(physics: nn.Module) -> Iterator[Callable[[int], None]]:
    """A function that seeds all random generators inside ``physics``; on leaving they are as they
    were.

    A noise model may replace its generator whenever it is called (deepinv does so to follow the
    data to another device), so it is given the lent one back before each seeding, and with its old
    state at the end.
    """
    inside = [m for m in _modules(physics, set()) if offers(m, _Random)]
    lent = [(m, m.rng, m.rng.get_state()) for m in inside if isinstance(m.rng, torch.Generator)]

    def seed_all(seed: int) -> None:
        for module, rng, _ in lent:
            object.__setattr__(module, "rng", rng.manual_seed(seed))

    try:
        yield seed_all
    finally:
        for module, rng, state in lent:
            rng.set_state(state)
            object.__setattr__(module, "rng", rng)


def _modules(module: nn.Module, seen: set[int]) -> Iterator[nn.Module]:
    """All modules inside ``module``, also those in the closure of a noise model that is a
    function.
    """
    for part in module.modules():
        if id(part) in seen:
            continue
        seen.add(id(part))
        yield part
        noise = part.noise_model if offers(part, _Noisy) else None
        function = noise.__func__ if isinstance(noise, MethodType) else noise
        cells = function.__closure__ if isinstance(function, FunctionType) else None
        for cell in cells or ():
            if isinstance(cell.cell_contents, nn.Module):
                yield from _modules(cell.cell_contents, seen)
