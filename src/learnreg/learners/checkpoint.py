"""Checkpoints: the state after every accepted step in one file, written atomically; resuming gives the same numbers."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.bounds import Kind
from ..core.cost import Cost
from ..core.errors import CheckpointError, ModelFileError
from ..core.files import load_tensors, save_tensors
from ..core.results import Solution
from ..core.status import Status
from .curvature import CurvaturePairs
from .lower_level import LowerLevel
from .state import DescentState

FORMAT, FILE = "learnreg-checkpoint", "checkpoint.safetensors"


def fingerprint(problem: Any, learner: Any, strategy: Any) -> str:
    """Identifies problem, data, start, learner and strategy, so that a checkpoint is not continued on another run."""
    digest = hashlib.sha256(repr((problem.describe(), learner, strategy)).encode())
    _feed(digest, (problem.theta, problem.pairs.x, problem.pairs.y, problem.energy, problem.loss))
    return digest.hexdigest()


def _feed(digest: Any, part: Any, depth: int = 30) -> None:
    """Everything that tells ``part`` from another of its kind: tensors, numbers, words, and what it is made of."""
    if isinstance(part, Tensor):
        digest.update(str((part.dtype, tuple(part.shape))).encode())
        digest.update(part.detach().cpu().resolve_conj().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(part, str | int | float | complex | bool | torch.dtype | type(None)):
        digest.update(repr(part).encode())
    elif isinstance(part, torch.Generator | torch.device) or (callable(part) and not hasattr(part, "__dict__")):
        return
    elif isinstance(part, dict):
        for key in part:
            digest.update(repr(key).encode())
            _feed(digest, part[key], depth - 1)
    elif isinstance(part, list | tuple):
        for item in part:
            _feed(digest, item, depth - 1)
    elif depth > 0:
        digest.update(type(part).__qualname__.encode())
        private = isinstance(part, torch.nn.Module)  # modules keep parameters and buffers in underscored fields
        kept = {k: v for k, v in getattr(part, "__dict__", {}).items()
                if not k.startswith("_") or (private and k in ("_parameters", "_buffers", "_modules"))}
        _feed(digest, kept, depth - 1)


def save_checkpoint(folder: Path, state: DescentState, thetas: list[Tensor], header: dict[str, Any]) -> None:
    """Write ``folder/checkpoint.safetensors``."""
    point, solution = state.point, state.point.solution
    tensors = {"theta": point.theta, "value": solution.value, "error": solution.error, "steps": solution.steps,
               "gradient_norm": solution.gradient_norm, "gradient": solution.gradient,
               "pairs_s": state.pairs.s, "pairs_y": state.pairs.y,
               "thetas": torch.stack([t.to(point.theta.dtype) for t in thetas])}
    optional = {"adjoint": state.adjoint, "last": state.last}
    tensors |= {k: v for k, v in optional.items() if v is not None}
    numbers = {"eps": state.eps, "delta": state.delta, "step_size": state.step_size,
               "point_eps": point.eps, "kind": int(solution.kind), "status": [s.name for s in solution.status],
               "solver": solution.solver, "cost": solution.cost.to_dict(), "info": state.info}
    save_tensors(folder / FILE, tensors, {"format": FORMAT, "version": 1, "state": numbers, **header})


def load_checkpoint(folder: Path, lower: LowerLevel,
                    expected: str) -> tuple[DescentState, list[Tensor], dict[str, Any]]:
    """The state, the thetas so far and the header.

    Raises:
        CheckpointError: no intact checkpoint, or one of another run.
    """
    try:
        tensors, header = load_tensors(folder / FILE, FORMAT)
    except ModelFileError as error:
        raise CheckpointError(str(folder), given=error.given, expected="a checkpoint of this run",
                              remedy="Start without resume.") from error
    if header.get("version") != 1:
        raise CheckpointError(str(folder), given=f"version {header.get('version')}", expected="version 1",
                              remedy="Resume with the release that wrote it, or start without resume.")
    if header["fingerprint"] != expected:
        raise CheckpointError(str(folder), given="a checkpoint of another problem, data set or learner",
                              expected="the same settings as in the interrupted run",
                              remedy="Use the same configuration, or another checkpoint folder.")
    device = lower.problem.pairs.x.device
    t, n = {k: v.to(device) for k, v in tensors.items()}, header["state"]
    solution = Solution(t["value"], t["error"], Kind(n["kind"]), tuple(Status[s] for s in n["status"]), t["steps"],
                        Cost(**n["cost"]), n["solver"], t["gradient_norm"], t["gradient"])
    point = lower.point(t["theta"], lower.problem.energy.with_theta(t["theta"]), solution, n["point_eps"])
    state = DescentState(point, t.get("adjoint"), n["eps"], n["delta"], n["step_size"],
                         CurvaturePairs(t["pairs_s"], t["pairs_y"]), t.get("last"), n["info"])
    return state, list(t["thetas"]), header
