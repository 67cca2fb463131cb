"""A physics that can be sent to another process.

deepinv keeps functions without a name in its objects, which pickle refuses: identities, and the
defaults of arguments. They are written down by what they are; tensors are shared, not copied.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType

from torch import Tensor, nn


def unchanged(x: Tensor) -> Tensor:
    # pickle finds it by its name; no docstring, so that it is the lambda in every fingerprint too
    return x


def picklable(module: nn.Module) -> nn.Module:
    """The module itself, or where it holds functions without a name a copy that shares its tensors
    and is good for pickling only: unpickled, it is the module again.
    """
    children = {name: picklable(child) for name, child in module.named_children()}
    same = all(children[name] is child for name, child in module.named_children())
    changed = {
        key: written
        for key, value in vars(module).items()
        if (written := _written(module, value)) is not value
    }
    if same and not changed:
        return module

    twin = copy.copy(module)
    twin.__dict__ = vars(module) | changed
    twin.__dict__["_modules"] = vars(module)["_modules"] | children
    return twin


def _written(module: nn.Module, value: object) -> object:
    """The value of an attribute in a form that pickles, itself where it does."""
    if isinstance(value, FunctionType) and "<lambda>" in value.__qualname__:
        return _by_origin(module, value)
    if type(value) is list and any(isinstance(item, nn.Module) for item in value):
        return [picklable(item) if isinstance(item, nn.Module) else item for item in value]
    return value


@dataclass(frozen=True, eq=False)
class _Default:
    """The default of an argument of a constructor."""

    owner: type
    argument: str

    def __reduce__(self) -> tuple[Callable[..., object], tuple[type, str]]:
        return default_of, (self.owner, self.argument)


def default_of(owner: type, argument: str) -> object:
    """What the constructor of ``owner`` takes when the argument is left out."""
    return inspect.signature(owner.__init__).parameters[argument].default  # type: ignore[misc]


def _by_origin(module: nn.Module, function: FunctionType) -> object:
    """Something that pickles for a function without a name; the function where nobody knows it."""
    if _shape(function) == _shape(unchanged):
        return unchanged
    for owner in type(module).__mro__:
        if "__init__" in vars(owner):
            arguments = inspect.signature(owner.__init__).parameters  # type: ignore[misc]
            for name, argument in arguments.items():
                if argument.default is function:
                    return _Default(owner, name)
    return function


def _shape(function: Callable[..., object]) -> tuple[object, ...]:
    """What a function does and takes; equal for two identities of one argument."""
    assert isinstance(function, FunctionType)
    code = function.__code__
    several = code.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS)
    return code.co_code, code.co_argcount, code.co_kwonlyargcount, several, function.__closure__
