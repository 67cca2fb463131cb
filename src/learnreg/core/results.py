"""What computations leave behind: frozen, self-printing, JSON-able."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from .bounds import Kind
from .cost import Cost
from .errors import SolveError
from .status import Status, summarize


def _plain(value: object) -> object:
    """Tensors, enums and non-finite floats as plain JSON values (NaN and Inf become null)."""
    if isinstance(value, Tensor):
        return _plain(value.detach().cpu().tolist())
    if isinstance(value, Status):
        return value.name.lower()
    if isinstance(value, Kind):
        return value.label
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _plain_table(table: Mapping[str, object]) -> dict[str, Any]:
    return {key: _plain(value) for key, value in table.items()}


@dataclass(frozen=True)
class Solution:
    """Approximate minimizers with their certified distance to the exact ones.

    Attributes:
        value: (b, ...), the computed x~.
        error: (b,) float64, ||x~ - x*|| <= error when ``kind`` certifies.
        kind: how the error is known (that of mu).
        status: one Status per image.
        steps: (b,) solver steps spent on each image.
        cost: evaluations summed over images.
        solver: the name of the method, and why ``auto`` chose it.
        gradient_norm: (b,) float64, ||grad h(x~)||, without the allowance for rounding that
            ``error`` contains. Of a saddle point: the norm of the gradient of the Lagrangian in all
            variables, NaN where that has none.
        gradient: (b, ...), grad h(x~) from the float64 closing evaluation; corrected loss values
            need it. Within bounds of pixels it is the projected gradient, and the norm is of that.
            Of a saddle point: the gradient of the Lagrangian in all its variables (b, n), zero
            where there is none.
        state: (b, n), all variables of a saddle point, of which ``value`` is one; None for a
            minimizer.
        theorem: per image, which certificate gave ``error`` where there are several: "gap",
            "growth", "residual" or "kkt".
        measure: what the solve was asked to bound. Of the linear system of an adjoint ``error`` is
            a residual; of a stationary point nothing is known but the gradient norm, and ``error``
            is infinite.
    """

    value: Tensor
    error: Tensor
    kind: Kind
    status: tuple[Status, ...]
    steps: Tensor
    cost: Cost
    solver: str
    gradient_norm: Tensor
    gradient: Tensor
    state: Tensor | None = None
    theorem: tuple[str, ...] = ()
    measure: Literal["distance", "residual", "stationarity"] = "distance"

    @property
    def warm(self) -> Tensor:
        """What another solve starts from: ``state`` if there is one, else ``value``."""
        return self.value if self.state is None else self.state

    @property
    def ok(self) -> bool:
        return all(s.ok for s in self.status)

    def raise_if_failed(self) -> Solution:
        """Return self, or raise SolveError with the sentence of the worst status and the smallest
        eps reached.
        """
        if self.ok:
            return self
        bad = [i for i, s in enumerate(self.status) if not s.ok]
        sizes = self.gradient_norm if self.measure == "stationarity" else self.error
        reached = ", ".join(f"image {i}: {float(sizes[i]):.2e}" for i in bad[:5])
        said = summarize(self.status)
        if self.value.dtype in (torch.float64, torch.complex128):
            said = said.replace(" or use float64", "")
        raise SolveError(f"{said}. Reached ({self.words}): {reached}.", self)

    @property
    def words(self) -> str:
        """What ``error``, or the gradient norm of a stationary point, says."""
        if self.measure == "stationarity":
            return "gradient norm; stationary, no distance is known"
        return f"{self.kind.label} {self.measure}"

    def to_dict(self) -> dict[str, Any]:
        """Everything but the images."""
        return _plain_table(
            {
                "error": self.error,
                "kind": self.kind,
                "status": self.status,
                "steps": self.steps,
                "cost": self.cost.to_dict(),
                "solver": self.solver,
                "gradient_norm": self.gradient_norm,
            }
        )

    def __repr__(self) -> str:
        sizes = self.gradient_norm if self.measure == "stationarity" else self.error
        return (
            f"Solution({len(self.status)} images, {self.words} <= {float(sizes.max()):.2e}, "
            f"{summarize(self.status)}; {self.solver}, {self.cost})"
        )


@dataclass(frozen=True)
class LinearSolution:
    """Approximate solutions of H q = b with the residual recomputed at the end.

    Attributes:
        value: (b, ...), q.
        residual: (b,) float64, the true ||b - H q||.
        status: one Status per image.
        steps: (b,) steps spent on each image.
        cost: evaluations summed over images.
    """

    value: Tensor
    residual: Tensor
    status: tuple[Status, ...]
    steps: Tensor
    cost: Cost

    @property
    def ok(self) -> bool:
        return all(s.ok for s in self.status)

    def __repr__(self) -> str:
        return (
            f"LinearSolution({len(self.status)} images, residual <= "
            f"{float(self.residual.max()):.2e}, "
            f"{summarize(self.status)}; {self.cost})"
        )


SAFETY = 1.25
"""Factor of estimated errors (the one used with dual-weighted residuals by the authors of MAID)."""


@dataclass(frozen=True)
class Hypergradient:
    """An inexact gradient of the upper-level loss with respect to theta, and how far off it can be.

    Attributes:
        value: (d,), z, the mean over images; at the polished point when the error was estimated.
        loss: mean upper-level loss at the computed x~.
        bracket: (lower, upper) for the exact mean loss f(theta).
        bracket_kind: how the bracket is known.
        certified: proven bound of ||z - grad f||, or None when a constant it needs is not proven.
        estimated: estimate of ||z - grad f||, or None when it was not asked for.
        correction: (d,), what the polish took off z, an estimate of the error before it; None
            without an estimate.
        adjoint: (b, ...), q, for warm starts; None where none can be used.
        residual: (b,), ||H q - b||, recomputed.
        status: one Status per image of the linear solve.
        cost: evaluations summed over images.
        undecided: pixels of all images that may or may not be at a bound in the minimizer: as long
            as there are any the error is estimated at best. None where the energy has no bounds.
    """

    value: Tensor
    loss: float
    bracket: tuple[float, float]
    bracket_kind: Kind
    certified: float | None
    estimated: float | None
    correction: Tensor | None
    adjoint: Tensor | None
    residual: Tensor
    status: tuple[Status, ...]
    cost: Cost
    undecided: int | None = None

    @property
    def norm(self) -> float:
        return float(torch.linalg.vector_norm(self.value))

    def along(self, direction: Tensor, test: Literal["estimated", "certified"]) -> float:
        """A bound or an estimate of |<d, z - grad f>| for a direction d (d,); 0 where the strategy
        says nothing.
        """
        if test == "certified":
            return (self.certified or 0.0) * float(direction.norm())
        if self.correction is None:
            return 0.0
        return SAFETY * abs(float(self.correction @ direction))

    def to_dict(self) -> dict[str, Any]:
        return _plain_table(
            {
                "value": self.value,
                "loss": self.loss,
                "bracket": list(self.bracket),
                "bracket_kind": self.bracket_kind,
                "certified": self.certified,
                "estimated": self.estimated,
                "residual": self.residual,
                "status": self.status,
                "cost": self.cost.to_dict(),
                "undecided": self.undecided,
            }
        )

    def __repr__(self) -> str:
        def show(e: float | None) -> str:
            return "not known" if e is None else f"{e:.2e}"

        pixels = self.undecided
        open_sets = f" ({pixels} pixels may or may not be at a bound)" if pixels else ""
        return (
            f"Hypergradient(d={self.value.numel()}, norm {self.norm:.4g}, loss {self.loss:.6g} in "
            f"[{self.bracket[0]:.6g}, {self.bracket[1]:.6g}] ({self.bracket_kind.label}); error "
            "certified "
            f"{show(self.certified)}{open_sets}, estimated {show(self.estimated)})"
        )


@dataclass(frozen=True)
class StopReason:
    """Why a learning run ended.

    Attributes:
        code: short name: ``budget``, ``plateau``, ``stationary``, ``accuracy_floor``,
            ``rounding_floor``, ``line_search``, ``small_progress``, ``radius``, ``grid``,
            ``linear_steps``, ``no_certificate``, ``not_finite``, ``interrupted``.
        sentence: what the user reads.
    """

    code: str
    sentence: str

    def __str__(self) -> str:
        return self.sentence


@dataclass(frozen=True)
class RunRecord:
    """The history of a learning run: one row per accepted step, row 0 is the start.

    Keys of a row: ``step``, ``loss`` (at x~), ``lower``, ``upper`` (bracket of the exact loss),
    ``kind`` (how the bracket is known: certified, estimated or unknown), ``psnr`` (training
    images), ``eps``, ``delta``, ``step_size``, ``trials`` (line-search trials of this step),
    ``refinements`` (how often eps was tightened), ``gradient_norm``, ``omega_estimated``,
    ``omega_certified``, the cumulative counters of ``Cost`` and ``work`` (summed over images),
    ``seconds`` (wall), ``cpu_seconds`` (process time).

    Attributes:
        problem: sentence that says what was learned from what.
        learner: name and settings of the learner.
        images: number of training images.
        rows: see above.
        settings: everything needed to repeat the run (seed, budget, versions, learner
            configuration).
        parameter_names: one name per entry of theta.
        setup: what the run was made of, in plain values: ``data``, ``physics``, ``noise``,
            ``fidelity``, ``regularizer``, ``machine``, ``versions`` and ``date``, as far as they
            are known (see ``runs.provenance``); empty in records of earlier versions.
    """

    problem: str
    learner: str
    images: int
    rows: tuple[dict[str, Any], ...]
    settings: dict[str, Any] = field(default_factory=dict)
    parameter_names: tuple[str, ...] = ()
    setup: dict[str, Any] = field(default_factory=dict)

    def column(self, name: str) -> list[Any]:
        """One value per row; missing entries are None."""
        return [row.get(name) for row in self.rows]

    def to_dict(self) -> dict[str, Any]:
        return _plain_table(asdict(self))

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> RunRecord:
        return cls(
            data["problem"],
            data["learner"],
            data["images"],
            tuple(data["rows"]),
            data.get("settings", {}),
            tuple(data.get("parameter_names", ())),
            data.get("setup", {}),
        )

    def __repr__(self) -> str:
        if not self.rows:
            return f"RunRecord({self.problem}: empty)"
        first, last = self.rows[0], self.rows[-1]
        start, end = (
            "not known" if row["loss"] is None else f"{row['loss']:.6g}" for row in (first, last)
        )
        return (
            f"RunRecord({self.problem}: {last['step']} steps, loss {start} -> {end}, "
            f"{last['work'] / self.images:.0f} evaluations per image, {last['seconds']:.1f} s)"
        )


@dataclass(frozen=True)
class Evaluation:
    """Certified reconstructions of a set of images.

    Attributes:
        reconstruction: (b, c, h, w).
        x: (b, c, h, w) ground truth.
        y: measurements.
        psnr, ssim: one value per image for the reconstruction.
        psnr_input, ssim_input: the same for the input shown to the user, ``seen``.
        error: (b,) distance to the exact minimizer; ``kind`` says how it is known.
        kind: Kind of ``error``.
        status: one Status per image.
        eps: the accuracy asked for.
        names: where each image comes from.
        cost: evaluations summed over images.
        honesty: optional rows {"eps", "certified", "true", "reference"} from
            ``Run.check_certificate``.
        theorem: per image, which certificate gave ``error`` where there are several (see
            ``Solution``).
        peak: the peak of PSNR and SSIM, per image: 1 where white is 1, else the range of the data.
        seen: (b, c, ...), what the measurements show before anything is learned: y itself for
            denoising and deblurring, filtered back-projection for tomography, ..., else t A^T y
            with the t that fits the data best (see ``runs.baselines``); None in older files.
        seen_as: what ``seen`` is, for example "zero-filled"; "input" where nobody knows.
        setup: the held-out data in plain values, as ``data`` in ``RunRecord.setup``.
    """

    reconstruction: Tensor
    x: Tensor
    y: Tensor
    psnr: tuple[float, ...]
    ssim: tuple[float, ...]
    psnr_input: tuple[float, ...]
    ssim_input: tuple[float, ...]
    error: Tensor
    kind: Kind
    status: tuple[Status, ...]
    eps: float
    names: tuple[str, ...]
    cost: Cost
    honesty: tuple[dict[str, float], ...] = ()
    theorem: tuple[str, ...] = ()
    peak: tuple[float, ...] = ()
    seen: Tensor | None = None
    seen_as: str = "input"
    setup: dict[str, Any] = field(default_factory=dict)

    def mean(self, column: str) -> float:
        values = getattr(self, column)
        return sum(values) / len(values)

    def spread(self, column: str) -> float:
        """Sample standard deviation over images (0 for a single image)."""
        values = getattr(self, column)
        if len(values) < 2:
            return 0.0
        m = self.mean(column)
        return math.sqrt(sum((v - m) ** 2 for v in values) / (len(values) - 1))

    def to_dict(self) -> dict[str, Any]:
        """Everything but the images."""
        return _plain_table(
            {
                "psnr": self.psnr,
                "ssim": self.ssim,
                "psnr_input": self.psnr_input,
                "ssim_input": self.ssim_input,
                "error": self.error,
                "kind": self.kind,
                "status": self.status,
                "eps": self.eps,
                "names": self.names,
                "cost": self.cost.to_dict(),
                "honesty": self.honesty,
                "theorem": self.theorem,
                "peak": self.peak,
                "seen_as": self.seen_as,
                "setup": self.setup,
            }
        )

    def _peak_words(self) -> str:
        """Which peak was used, where it is not 1."""
        known = [p for p in self.peak if math.isfinite(p)]
        if not known or set(known) == {1.0}:
            return ""
        low, high = min(known), max(known)
        return f" (peak {low:.4g}{'' if low == high else f' to {high:.4g}'})"

    def __repr__(self) -> str:
        return (
            f"Evaluation({len(self.psnr)} images: PSNR {self.mean('psnr_input'):.2f} -> "
            f"{self.mean('psnr'):.2f} "
            f"+- {self.spread('psnr'):.2f} dB{self._peak_words()}, "
            f"SSIM {self.mean('ssim_input'):.3f} -> {self.mean('ssim'):.3f}; "
            f"{self.kind.label} distance to the minimizer <= {float(self.error.max()):.1e}; "
            f"{summarize(self.status)})"
        )
