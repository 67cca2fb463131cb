"""Parameters as one flat vector theta, and back."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from .errors import InputError

M = TypeVar("M", bound=nn.Module)

NOISE = "noise_model"
"""Parameters of the noise that a physics adds say nothing of a lower level."""


def named_trainable(module: nn.Module) -> list[tuple[str, Tensor]]:
    """What is learned, by name, in the order in which theta lists it.

    Parameters, and buffers that require a gradient (``deepinv.physics.Blur(filter=Parameter)``
    keeps its filter as one); what several names share comes once.

    Raises:
        InputError: a buffer that was computed from others, which no learner could change.
    """
    found: list[tuple[str, Tensor]] = []
    seen: set[int] = set()
    for name, t in (*module.named_parameters(), *module.named_buffers()):
        if not t.requires_grad or id(t) in seen or NOISE in name.split("."):
            continue
        if not t.is_leaf:
            raise InputError(
                name,
                given="a tensor computed from others that require a gradient",
                expected="a leaf tensor",
                remedy="Hold the parameter as nn.Parameter, and compute from it inside A.",
            )
        seen.add(id(t))
        found.append((name, t))
    return found


@contextmanager
def keeping_learned(module: nn.Module) -> Iterator[None]:
    """Buffers that are learned stay so while ``Module._apply`` converts the tensors of a module.

    why: torch converts them by differentiable operations, which leaves tensors computed from
    others.
    """
    learned = [name for name, t in module.named_buffers() if t.requires_grad and t.is_leaf]
    with torch.no_grad():
        yield
    converted = dict(module.named_buffers())
    for name in learned:
        converted[name].requires_grad_()


def trainable(module: nn.Module) -> list[Tensor]:
    """The tensors that are learned, in the order in which theta lists them."""
    return [t for _, t in named_trainable(module)]


def reparametrized(part: object) -> bool:
    """Whether something that a part of an energy learns is made of other tensors by
    ``torch.nn.utils.parametrize``: theta are those, and what a class knows of derivatives by its
    own parameters does not hold for them.
    """
    modules = part.modules() if isinstance(part, nn.Module) else ()
    return any(is_parametrized(m) and bool(trainable(m)) for m in modules)


def flatten(tensors: Iterable[Tensor]) -> Tensor:
    """Any number of tensors -> theta (d,), detached."""
    parts = [t.detach().reshape(-1) for t in tensors]
    return torch.cat(parts) if parts else torch.zeros(0)


def slope_in(total: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """The derivative (d,) of a scalar by autograd, zero where it does not depend on them."""
    found: Sequence[Tensor | None] = [None] * len(parameters)
    if total.requires_grad:
        found = torch.autograd.grad(total, parameters, allow_unused=True)
    return flatten(
        torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)
    )


def with_theta(module: M, theta: Tensor) -> M:
    """A deep copy of ``module`` with the trainable parameters set to ``theta`` (d,); ``module`` is
    not touched.

    The copy takes the dtype and device of ``theta``.

    Raises:
        InputError: theta has another length than the trainable parameters.
    """
    check_theta(module, theta)
    clone = copy.deepcopy(module).to(dtype=theta.dtype, device=theta.device)
    set_theta(clone, theta)
    return clone


def check_theta(module: nn.Module, theta: Tensor) -> None:
    """Refuse a theta of another length than what ``module`` learns.

    Raises:
        InputError: says both lengths.
    """
    expected = sum(p.numel() for p in trainable(module))
    if theta.dim() != 1 or theta.numel() != expected:
        raise InputError(
            "theta",
            given=f"shape {tuple(theta.shape)}",
            expected=f"shape ({expected},)",
            remedy="Use the theta of the same energy.",
        )


@torch.no_grad()
def set_theta(module: nn.Module, theta: Tensor) -> None:
    """Write theta (d,) into what ``module`` learns."""
    params = trainable(module)
    for p, part in zip(params, theta.split([p.numel() for p in params]), strict=True):
        p.copy_(part.view_as(p))


def names(module: nn.Module) -> list[str]:
    """One readable name per entry of theta, for reports: ``log_weight[3]``."""
    out = []
    for name, p in named_trainable(module):
        out += [name] if p.numel() == 1 else [f"{name}[{i}]" for i in range(p.numel())]
    return out
