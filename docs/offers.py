"""Who offers what: prints the table of docs/what_you_can_bring.md, by asking the objects.

python docs/offers.py

Every cell is an attempt on images of a few pixels: nothing is looked up.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import deepinv
import torch
from torch import Tensor, nn

import learnreg as lr
from learnreg.core.params import trainable

MAKERS: dict[str, Callable[[type], Any]] = {
    "BlackBox": lambda cls: cls(Potential(), mu=0.0, L=0.2),
    "WeightedL2": lambda cls: cls(nn.Parameter(torch.ones(1, 1))),
    "Foreign": lambda cls: cls(LogCosh(), mu=0.0, L=1.0),
}
"""What cannot be made without arguments."""

DATA_TERMS = ("L2", "WeightedL2", "Huber", "KL", "Foreign", "L1")

COLUMNS = (
    "lower level",
    "derivative",
    "Hessian",
    "constants",
    "distance",
    "hypergradient bound",
    "averages",
    "N-D",
    "complex",
    "learnable",
)


class Potential(nn.Module):
    """A small potential for a black box."""

    def __init__(self) -> None:
        super().__init__()
        self.log_weight = nn.Parameter(torch.tensor(-2.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.log_weight.exp() * (x.square() + 1).sqrt().flatten(1).sum(dim=1)


class LogCosh(nn.Module):
    """A function for a foreign data term."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(0.0))

    def forward(self, a: Tensor, y: Tensor) -> Tensor:
        s = self.log_scale.exp()
        return (s**2 * ((a - y) / s).cosh().log()).flatten(1).sum(dim=1)


class Phases(deepinv.physics.LinearPhysics):
    """Complex images, whose pixels are multiplied by complex numbers of size one."""

    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        return x * 1j

    def A_adjoint(self, y: Tensor, **kwargs: Any) -> Tensor:
        return y * -1j


TINY = (1, 1, 8, 8)


def image(*shape: int) -> Tensor:
    """Positive numbers, so that they may be counts."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) + 0.1


def energy_of(
    regularizer: Any, fidelity: Any, physics: Any = None, strongly_convex: bool = True
) -> Any:
    """The energy that both take part in; made strongly convex where the data term is not."""
    physics = physics or deepinv.physics.Denoising()
    if getattr(regularizer, "saddle", False):
        return lr.SaddleEnergy(physics, regularizer, fidelity, tikhonov=0.1 * strongly_convex)
    if strongly_convex and not isinstance(fidelity, lr.L2):
        regularizer = regularizer + lr.regularizers.Tikhonov(0.1, learned=False)
    return lr.Energy(physics, regularizer, fidelity)


def attempt(function: Callable[[], Any]) -> Any:
    """What it gives; None where the library refuses, or nobody has written the method."""
    try:
        return function()
    except (lr.LearnregError, NotImplementedError, AttributeError):
        return None


def mark(given: Any) -> str:
    return "–" if given is None or given is False else "yes"


def label(kind: lr.Kind) -> str:
    return {"certified": "proven"}.get(kind.label, kind.label)


def distance(energy: Any) -> str:
    """How far a reconstruction is from the minimizer: certified, estimated, or not known."""
    solution = attempt(lambda: lr.solve(energy, image(*TINY), eps=0.2))
    return "–" if solution is None else solution.kind.label


def hypergradient_bound(energy: Any) -> str:
    y = image(*TINY)
    pairs = lr.data.Pairs(0.9 * y, y, energy.physics, ("a",))
    found = attempt(lambda: lr.hypergradient(lr.BilevelProblem(energy, pairs), eps=0.2, delta=0.2))
    return "–" if found is None else "proven" if _finite(found.certified) else "estimated"


def _finite(bound: float | None) -> bool:
    return bound is not None and math.isfinite(bound)


def dimensions(take: Callable[[Tensor], Any]) -> str:
    """Of signals, images and volumes."""
    shapes = {1: (1, 1, 8), 2: TINY, 3: (1, 1, *[8] * 3)}
    taken = [str(n) for n, s in shapes.items() if attempt(lambda s=s: take(image(*s))) is not None]
    return ", ".join(taken)


def begun(energy: Any, y: Tensor) -> Any:
    """A solve that is given up after a step."""
    return lr.solve(energy, y, eps=0.2, budget=1, throw=False)


def takes_complex(regularizer: Any, fidelity: Any) -> bool:
    """Complex images, whose real and imaginary parts are two channels to the regularizer."""
    y = torch.complex(image(*TINY), -image(*TINY).flip(-1))
    if not getattr(regularizer, "saddle", False):
        regularizer = regularizer + lr.regularizers.Tikhonov(0.1)
    return attempt(lambda: begun(energy_of(regularizer, fidelity, Phases()), y)) is not None


def of_two_channels(cls: type) -> tuple[str, Callable[[], Any]] | None:
    """How a class is made for images of two channels, if it wants to know their number."""
    for name in ("in_channels", "channels"):
        parameter = inspect.signature(cls).parameters.get(name)
        if parameter is not None and parameter.default == 1:
            return f"`{name}=2`", partial(cls, **{name: 2})
    return None


def complex_cell(cls: type, make: Callable[[], Any]) -> str:
    told = of_two_channels(cls)
    if takes_complex(make(), lr.L2()):
        return "yes"
    return told[0] if told and takes_complex(told[1](), lr.L2()) else "–"


def of_regularizer(cls: type, make: Callable[[], Any]) -> list[str]:
    r, x = make(), image(*TINY)
    saddle = bool(getattr(r, "saddle", False))
    if saddle:
        constants = mark(attempt(lambda: r.norms(x)))
        constants = "norm of K" if constants == "yes" else constants
    else:
        bounds = r.bounds_for(x)
        constants = label(min(bounds.mu.kind, bounds.L.kind))
    averages = None if saddle else attempt(lambda: r.mean_curvature(x))
    return [
        "SaddleEnergy" if saddle else "Energy",
        mark(attempt(lambda: r.grad(x))),
        mark(attempt(lambda: r.linearize(x)(x))),
        constants,
        distance(energy_of(r, lr.L2())),
        hypergradient_bound(energy_of(r, lr.L2())),
        mark(averages),
        dimensions(lambda t: begun(energy_of(r, lr.L2()), t)),
        complex_cell(cls, make),
        mark(bool(trainable(r))),
    ]


def of_data_term(make: Callable[[], Any]) -> list[str]:
    term, y = make(), image(*TINY)
    function = attempt(lambda: term.tie(y))
    smooth, saddle = lr.regularizers.TV(), lr.regularizers.ExactTV()
    levels = {"Energy": smooth, "SaddleEnergy": saddle}
    taking = {
        name: r
        for name, r in levels.items()
        if attempt(lambda r=r: energy_of(r, make(), strongly_convex=False)) is not None
        or attempt(lambda r=r: energy_of(r, frozen(make()))) is not None
    }
    r = smooth if "Energy" in taking else saddle
    kinds = None if function is None else function.constants()
    averages = None if function is None else energy_of(smooth, make()).at(y).mean_curvature(y)
    return [
        ", ".join(taking),
        mark(attempt(lambda: function.grad(y))),
        mark(attempt(lambda: function.linearize(y)(y))),
        "–" if kinds is None else label(min(kinds.mu_kind, kinds.L_kind)),
        distance(energy_of(r, make())),
        hypergradient_bound(energy_of(r, frozen(make()))),
        mark(averages),
        dimensions(lambda t: (term.of_data if function is None else term.tie)(t)),
        mark(takes_complex(r, make())),
        mark(isinstance(term, nn.Module) and bool(trainable(term))),
    ]


def frozen(term: Any) -> Any:
    return term.requires_grad_(False) if isinstance(term, nn.Module) else term


def rows() -> list[list[str]]:
    torch.manual_seed(0)
    out = [["regularizer", *COLUMNS]]
    for name, cls in lr.regularizers.KNOWN.items():
        make = lambda name=name, cls=cls: MAKERS.get(name, lambda c: c())(cls)  # noqa: E731
        out.append([f"`{name}`", *of_regularizer(cls, make)])
    out.append(["**data term**", *[""] * len(COLUMNS)])
    for name in DATA_TERMS:
        cls = getattr(lr, name)
        make = lambda name=name, cls=cls: MAKERS.get(name, lambda c: c())(cls)  # noqa: E731
        out.append([f"`{name}`", *of_data_term(make)])
    return out


def table() -> str:
    head, *body = rows()
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    print(table())
