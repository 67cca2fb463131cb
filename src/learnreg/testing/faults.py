"""Planted faults: what a test of yours should notice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from operator import attrgetter
from typing import TypeVar

from torch import Tensor, nn

Returned = TypeVar("Returned")


@contextmanager
def planted(
    module: nn.Module,
    method: str,
    change: Callable[[Callable[..., Returned]], Callable[..., Returned]],
) -> Iterator[None]:
    """Replace a method of one object while the block runs; copies made in it have the fault too.

    What was computed from the object before stays as it was: build the energy inside the block.

    Args:
        module: physics, regularizer, data term; any object whose class can be derived from.
        method: its name.
        change: given the sound method (bound), returns the faulty one.

    Raises:
        AttributeError: there is no such method.

    >>> import torch, learnreg
    >>> from learnreg.testing import check_regularizer
    >>> tv = learnreg.regularizers.TV()
    >>> with planted(tv, "grad", lambda sound: lambda x: 2 * sound(x)):
    ...     check_regularizer(tv, torch.rand(2, 1, 5, 6))
    Traceback (most recent call last):
        ...
    AssertionError: grad of TV: given a relative difference of 5.00e-01 (it is 2 times that); ...
    """
    sound_class = type(module)
    sound: Callable[..., Returned] = attrgetter(method)(sound_class)

    def faulty(self: nn.Module, *args: object, **kwargs: object) -> Returned:
        return change(lambda *a, **k: sound(self, *a, **k))(*args, **kwargs)

    derived = type(sound_class.__name__, (sound_class,), {method: faulty})
    object.__setattr__(module, "__class__", derived)
    try:
        yield
    finally:
        object.__setattr__(module, "__class__", sound_class)


def scaled(module: nn.Module, method: str, factor: float) -> AbstractContextManager[None]:
    """A context in which the method returns ``factor`` times what it should.

    >>> import deepinv, torch
    >>> from learnreg.testing import check_operator
    >>> physics = deepinv.physics.Decolorize()
    >>> with scaled(physics, "A_adjoint", 1.01):
    ...     check_operator(physics, torch.rand(1, 3, 4, 4))
    Traceback (most recent call last):
        ...
    AssertionError: A_adjoint of Decolorize: given a relative difference of 9.90e-03 (it is 1.01 ...
    """

    def change(sound: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *a, **k: factor * sound(*a, **k)

    return planted(module, method, change)


def flipped_sign(module: nn.Module, method: str) -> AbstractContextManager[None]:
    """A context in which the method returns minus what it should."""
    return scaled(module, method, -1.0)


def shifted(module: nn.Module, method: str, amount: float) -> AbstractContextManager[None]:
    """A context in which ``amount`` is added to what the method returns."""

    def change(sound: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *a, **k: sound(*a, **k) + amount

    return planted(module, method, change)
