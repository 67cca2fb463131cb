"""What a learner keeps between two steps: everything a checkpoint needs, nothing else."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from ..core.bounds import Kind
from ..core.cost import Cost
from ..core.results import Solution, StopReason
from ..core.status import Status
from ..metrics import data_psnr
from .curvature import CurvaturePairs
from .lower_level import LowerLevel, Point


class Halt(Exception):
    """A step cannot be completed; carries the reason for the upper loop."""

    def __init__(self, reason: StopReason) -> None:
        self.reason = reason
        super().__init__(reason.sentence)


class Packed(NamedTuple):
    """A state as a checkpoint keeps it.

    Attributes:
        tensors: to any depth of one.
        numbers: plain JSON values.
    """

    tensors: dict[str, Tensor]
    numbers: dict[str, Any]

    def holding(self, name: str, part: Packed) -> Packed:
        """With another one inside, under ``name``."""
        tensors = {f"{name}.{k}": v for k, v in part.tensors.items()}
        return Packed(self.tensors | tensors, self.numbers | {name: part.numbers})

    def part(self, name: str) -> Packed:
        """What ``holding`` put there."""
        prefix = f"{name}."
        tensors = {
            k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)
        }
        return Packed(tensors, self.numbers[name])


class State(Protocol):
    """What the upper loop asks of the state of a learner.

    ``pack`` and the learner's ``restore(lower, packed)`` are inverse to each other to the last bit,
    so that a resumed run gives the same numbers. ``double`` goes on in float64.
    """

    @property
    def theta(self) -> Tensor: ...

    def row(self, problem: Any) -> dict[str, Any]:
        """What the record shows: at least ``loss``, ``lower``, ``upper`` and ``psnr``, None for
        what is not known.
        """
        ...

    def pack(self) -> Packed: ...

    def double(self, lower: LowerLevel) -> State: ...


def point_row(point: Point, problem: Any, info: dict[str, Any]) -> dict[str, Any]:
    """The row of a state whose theta has been solved on all images."""
    quality = float(data_psnr(point.solution.value, problem.pairs.x).mean())
    return {
        "loss": point.loss,
        "lower": point.lower,
        "upper": point.upper,
        "kind": point.solution.kind.label,
        "psnr": quality,
        **info,
    }


def pack_point(point: Point) -> Packed:
    """theta and its solution."""
    s = point.solution
    tensors = {
        "theta": point.theta,
        "value": s.value,
        "error": s.error,
        "steps": s.steps,
        "gradient_norm": s.gradient_norm,
        "gradient": s.gradient,
    }
    tensors |= {} if s.state is None else {"state": s.state}
    numbers = {
        "point_eps": point.eps,
        "kind": int(s.kind),
        "status": [v.name for v in s.status],
        "solver": s.solver,
        "cost": s.cost.to_dict(),
        "theorem": list(s.theorem),
    }
    return Packed(tensors, numbers)


def restore_point(lower: LowerLevel, packed: Packed) -> Point:
    """The inverse of ``pack_point``."""
    t, n = packed
    solution = Solution(
        t["value"],
        t["error"],
        Kind(n["kind"]),
        tuple(Status[s] for s in n["status"]),
        t["steps"],
        Cost(**n["cost"]),
        n["solver"],
        t["gradient_norm"],
        t["gradient"],
        t.get("state"),
        tuple(n.get("theorem", ())),
    )
    return lower.point(
        t["theta"], lower.problem.energy.with_theta(t["theta"]), solution, n["point_eps"]
    )


def double_point(point: Point, lower: LowerLevel) -> Point:
    """The point for a float64 lower level; its certificate stays valid, a float32 image is one in
    float64 too.
    """
    status = tuple(
        Status.CONVERGED if s is Status.ROUNDING_FLOOR else s for s in point.solution.status
    )
    solution = replace(
        point.solution,
        value=point.solution.value.double(),
        gradient=point.solution.gradient.double(),
        state=doubled(point.solution.state),
        status=status,
    )
    theta = point.theta.double()
    return lower.point(theta, lower.problem.energy.with_theta(theta), solution, point.eps)


def doubled(tensor: Tensor | None) -> Tensor | None:
    """In float64; None stays None."""
    return None if tensor is None else tensor.double()


def checked(point: Point) -> Point:
    """The point, or Halt when some image has no certificate; at the rounding floor the one reached
    is used.
    """
    if point.failed:
        raise Halt(
            StopReason(
                "not_finite",
                "the lower level could not be solved at the present parameters: "
                f"{next(s.value for s in point.solution.status if not s.ok)}",
            )
        )
    return point


@dataclass(frozen=True)
class DescentState:
    """Of MAID and its fixed-accuracy baseline.

    Attributes:
        point: theta_k with its lower-level solution.
        adjoint: (b, ...), the latest q, or None before the first hypergradient.
        eps, delta: present accuracies.
        step_size: the first trial of the next line search.
        pairs: curvature of the upper level.
        last: (2, d), theta_{k-1} and z_{k-1}, or None.
        squares: (d,), running mean of the squared hypergradients in units, or None.
        info: what the record shows of the step that led here.
    """

    point: Point
    adjoint: Tensor | None
    eps: float
    delta: float
    step_size: float | None
    pairs: CurvaturePairs
    last: Tensor | None
    squares: Tensor | None
    info: dict[str, Any]

    @property
    def theta(self) -> Tensor:
        return self.point.theta

    def row(self, problem: Any) -> dict[str, Any]:
        """The point, and how the step was made."""
        return point_row(self.point, problem, self.info)

    def pack(self) -> Packed:
        """For a checkpoint."""
        tensors, numbers = pack_point(self.point)
        tensors |= {"pairs_s": self.pairs.s, "pairs_y": self.pairs.y}
        optional = {"adjoint": self.adjoint, "last": self.last, "squares": self.squares}
        tensors |= {k: v for k, v in optional.items() if v is not None}
        return Packed(
            tensors,
            numbers
            | {
                "eps": self.eps,
                "delta": self.delta,
                "step_size": self.step_size,
                "info": self.info,
            },
        )

    @classmethod
    def restore(cls, lower: LowerLevel, packed: Packed) -> Self:
        """The inverse of ``pack``."""
        t, n = packed
        return cls(
            restore_point(lower, packed),
            t.get("adjoint"),
            n["eps"],
            n["delta"],
            n["step_size"],
            CurvaturePairs(t["pairs_s"], t["pairs_y"]),
            t.get("last"),
            t.get("squares"),
            n["info"],
        )

    def double(self, lower: LowerLevel) -> DescentState:
        """The same state for a float64 lower level."""
        pairs = CurvaturePairs(self.pairs.s.double(), self.pairs.y.double())
        return replace(
            self,
            point=double_point(self.point, lower),
            pairs=pairs,
            adjoint=doubled(self.adjoint),
            last=doubled(self.last),
            squares=doubled(self.squares),
        )


def rounding_floor(dtype: torch.dtype, limit: str) -> Halt:
    """The floating-point type is exhausted; the upper loop may go on in float64."""
    more = "" if dtype == torch.float64 else "; float64 would go on"
    return Halt(StopReason("rounding_floor", f"{limit} in {dtype}{more}"))


def settled(point: Point) -> Point:
    """The point, or Halt: where float32 ends the run may go on in float64, elsewhere it ends."""
    checked(point)
    if point.at_floor and point.theta.dtype != torch.float64:
        raise rounding_floor(
            point.theta.dtype,
            f"the lower level cannot be solved more accurately than "
            f"{float(point.solution.error.max()):.1e}",
        )
    return point
