"""Run: what a learning run leaves behind; it reconstructs, evaluates and saves."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self

from torch import Tensor, nn

from ..core.asking import offers
from ..core.batch import norm
from ..core.errors import InputError, SolveError
from ..core.files import load_tensors, save_tensors
from ..core.guards import check_measured, check_pairs, isolated
from ..core.measured import Measured, Native, complex_channels, measured, native_of
from ..core.noise import followed, learned_level
from ..core.offers import Filters, LearnedKernels
from ..core.ranges import check_number
from ..core.results import Evaluation, RunRecord, Solution, StopReason
from ..metrics import scale_of
from ..metrics.quality import qualities
from ..models import load_model, save_model
from ..problems.bilevel import PairsLike, WithParams
from ..solvers.solve import solve
from ..solvers.views import view_of
from .baselines import Seen, seen_in
from .provenance import data_of
from .validation import best_step

FORMAT, MODEL = "learnreg-history", "model.safetensors"

SHARP = 10.0
"""A reference says something about accuracies that are so many times its own distance, or
larger.
"""


class Learnable(Protocol):
    """An energy with parameters."""

    def with_theta(self, theta: Tensor) -> Self: ...


class Probed(Protocol):
    """An energy whose operator is probed before it is trusted."""

    def untrusted(self) -> Self: ...


class Modelled(Protocol):
    """What a model file is made of."""

    regularizer: Any
    fidelity: Any
    physics: Any


class TruePairs(PairsLike, Protocol):
    """Pairs with ground truth."""

    @property
    def x(self) -> Tensor: ...


class Named(Protocol):
    """Pairs that know where their images come from."""

    names: Sequence[str]


@dataclass(frozen=True)
class Run:
    """The result of ``learn``.

    Attributes:
        record: one row per accepted step.
        stop: why it ended.
        theta: (d,), the last accepted parameters.
        thetas: (steps + 1, d), all of them.
        energy: the learned energy, with the parameters ``theta``; a copy, so that the one handed to
            the BilevelProblem keeps its start values.
        name: display name.
    """

    record: RunRecord
    stop: StopReason
    theta: Tensor
    thetas: Tensor
    energy: Any
    name: str = ""

    def __post_init__(self) -> None:
        if offers(self.energy, Learnable):
            learned = self.energy.with_theta(self.theta)
            # an operator that was learned is probed again before anything is certified with it
            unproven = learned.untrusted() if offers(learned, Probed) else learned
            object.__setattr__(self, "energy", unproven)

    @property
    def trained(self) -> Any:
        """The learned energy, ``energy`` under its earlier name."""
        return self.energy

    @property
    def best_step(self) -> int | None:
        """The step whose loss was the smallest in validation; None without ``validation`` pairs."""
        return best_step(self.record.rows)

    def at(self, step: int) -> Run:
        """The run as it was after a step, for example ``run.at(run.best_step)``.

        Raises:
            InputError: a step that it did not make.
        """
        last = len(self.record.rows) - 1
        check_number(
            "step", step, lambda v: 0 <= v <= last, f"an integer from 0 to {last}", integer=True
        )
        record = replace(self.record, rows=self.record.rows[: step + 1])
        return replace(self, record=record, theta=self.thetas[step], thetas=self.thetas[: step + 1])

    @property
    def filters(self) -> dict[str, Tensor] | None:
        """Learned filters for reports, or None."""
        parts = dict(self.trained.named_children()) if isinstance(self.trained, nn.Module) else {}
        regularizer = parts.get("regularizer")
        return regularizer.filters() if offers(regularizer, Filters) else None

    @property
    def kernels(self) -> dict[str, Tensor] | None:
        """Learned kernels of the physics for reports, by the name of their tensor, or None."""
        parts = dict(self.trained.named_children()) if isinstance(self.trained, nn.Module) else {}
        physics = parts.get("physics")
        return physics.kernels() if offers(physics, LearnedKernels) else None

    @isolated
    def reconstruct(
        self,
        y: Native | Measured,
        eps: float,
        *,
        physics: nn.Module | None = None,
        params: Mapping[str, Tensor] | None = None,
        throw: bool = True,
    ) -> Solution:
        """Reconstruction of y (b, ...), any image size that the physics takes; see ``solve`` for
        the errors raised and for ``params``.

        Args:
            physics: in the place of that of the training data; where its Gaussian noise has another
                level, the energy follows it (``problems.at_noise_level``).
        """
        energy = self.trained
        if physics is not None:
            energy = followed(energy.with_physics(physics), learned_level(energy), stacklevel=4)
        return solve(energy, self._like_theta(y), eps, params=params, throw=throw)

    def _like_theta(self, y: Native | Measured) -> Native | Measured:
        """Measurements in the precision of theta and where it is; complex ones stay complex."""
        if isinstance(y, Measured):
            return y.to(self.theta.dtype)
        if not isinstance(y, Tensor):
            return y  # a list of tensors, or refused by ``solve`` in its own words
        check_measured(y, self.trained)
        if not (y.is_floating_point() or y.is_complex()):
            return y
        dtype = self.theta.dtype.to_complex() if y.is_complex() else self.theta.dtype
        return y.to(dtype=dtype)

    @isolated
    def evaluate(
        self, pairs: TruePairs, eps: float, *, check_certificate: bool = False
    ) -> Evaluation:
        """Reconstruct every image of ``pairs`` and measure it.

        ``Evaluation.seen`` is what the measurements show without any of this (see
        ``runs.baselines.seen_in``). PSNR and SSIM take the peak that suits the true images
        (``metrics.scale_of``), which ``Evaluation.peak`` names; they are NaN where they are not
        defined, SSIM for volumes, signals and images below 11 x 11 pixels.

        Args:
            pairs: ``.x`` and ``.y``.
            eps: certified distance per image.
            check_certificate: also compare certificates with true errors on the first image (see
                ``check_certificate``).
        """
        check_pairs(pairs)
        params = pairs.params if offers(pairs, WithParams) else None
        data = Measured(pairs.y, params) if params else pairs.y
        solution = self.reconstruct(data, eps, throw=False)
        seen = self._seen(data, solution.value, pairs.x)
        scale = scale_of(pairs.x, together=True)
        named = pairs.names if offers(pairs, Named) else None
        names = named or tuple(f"image {i}" for i in range(len(pairs)))
        result = Evaluation(
            solution.value,
            pairs.x,
            pairs.y,
            *qualities(solution.value, pairs.x),
            *qualities(seen.image, pairs.x),
            solution.error,
            solution.kind,
            solution.status,
            float(eps),
            tuple(names),
            solution.cost,
            theorem=solution.theorem,
            peak=tuple(scale.peak.tolist()),
            seen=seen.image,
            seen_as=seen.name,
            setup=data_of(pairs),
        )
        return (
            replace(result, honesty=self.check_certificate(measured(data)[:1]))
            if check_certificate
            else result
        )

    def _seen(self, data: Native | Measured, like: Tensor, truth: Tensor) -> Seen:
        """What the measurements show of the images before anything is reconstructed."""
        start = self.trained.start(self._like_theta(data))
        start = complex_channels(start) if like.is_complex() else start
        return seen_in(self.trained, data, start, truth)

    def check_certificate(
        self,
        y: Native | Measured,
        grid: Sequence[float] | None = None,
        reference_eps: float | None = None,
    ) -> tuple[dict[str, float], ...]:
        """Certified against true distance on one image; truth is a float64 solve to
        ``reference_eps``.

        For a saddle point the truth is what a limited number of solver steps reaches if that is
        less, and accuracies that it says nothing about are left out.

        Args:
            y: (1, ...), measurements; with the parameters of its operator where it has some.
            grid: accuracies to compare at; 1 to 1e-3 when None, 1 to 1e-2 for a saddle point.
            reference_eps: 1e-8 when None, 1e-4 for a saddle point.

        Returns:
            Rows {"eps", "certified", "true", "reference"}; ``true`` is off by at most
            ``reference``.

        Raises:
            SolveError: the reference is farther from the truth than a tenth of every accuracy in
                the grid.
        """
        exact = self.energy.with_theta(
            self.theta.double()
        ).widened()  # with_theta copies, so nothing lent changes
        wide = native_of(measured(y).to(self.theta.double().dtype))
        usual = view_of(exact.at(wide)).reference
        grid = grid or usual.grid
        truth = solve(
            exact, wide, reference_eps or usual.eps, budget=usual.steps, throw=not usual.steps
        )
        reference = float(truth.error[0])
        checked = [eps for eps in grid if truth.ok or eps >= SHARP * reference]
        if not checked:
            raise SolveError(
                f"the reference solve was within {reference:.1e} of the truth after "
                f"{int(truth.steps[0])} steps, which says nothing about distances up to "
                f"{max(grid):g}",
                truth,
            )
        rows = []
        for eps in checked:
            solution = self.reconstruct(y, eps, throw=False)
            rows.append(
                {
                    "eps": eps,
                    "certified": float(solution.error[0]),
                    "reference": reference,
                    "true": float(norm(solution.value.double() - truth.value)[0]),
                }
            )
        return tuple(rows)

    @property
    def has_model(self) -> bool:
        """Whether a model file can be written: an objective of your own may have no energy."""
        return offers(self.energy, Modelled)

    def save(self, folder: str | Path) -> Path:
        """Write ``model.safetensors`` (for reuse) and ``history.safetensors`` (record and all
        thetas) to ``folder``.

        Where the objective gave no energy there is nothing for a model file; it is left out, with
        a warning.
        """
        folder = Path(folder)
        if not self.has_model:
            warnings.warn(
                f"No model file is written to {folder}: the objective gave "
                f"{type(self.energy).__qualname__}, not an energy. theta is in the history.",
                UserWarning,
                stacklevel=2,
            )
            return self.save_history(folder)
        self.save_model(folder / MODEL)
        return self.save_history(folder)

    def save_model(self, path: str | Path) -> Path:
        """Write the model alone; equal runs give equal files.

        Raises:
            InputError: the objective gave no energy, so that there is nothing to write.
        """
        if not self.has_model:
            raise InputError(
                "model",
                given=f"{type(self.energy).__qualname__}, which is no energy",
                expected="an energy of a regularizer, a data term and a physics",
                remedy="Keep Run.theta, or save_history, and build the objective again.",
            )
        notes: dict[str, object] = {
            "name": self.name,
            "problem": self.record.problem,
            "stop": self.stop.sentence,
        }
        data = self.record.setup.get("data")
        if isinstance(data, dict) and "units" in data:
            notes["units"] = data["units"]
        if isinstance(data, dict) and "seed" in data:
            notes["pictures"] = True  # images of [0, 1], not measured pairs in units of their own
        return save_model(path, self.energy, notes)

    def lacking(self, path: str | Path) -> str:
        """What has to be handed to ``load_model`` besides the file that ``save_model`` wrote:
        "regularizer", "fidelity", "physics", several of them, or nothing.
        """
        parts = {
            "regularizer": self.energy.regularizer,
            "fidelity": self.energy.fidelity,
            "physics": self.energy.physics,
        }
        missing: list[str] = []
        for candidates in ([], ["physics"], ["fidelity"], ["regularizer"], [*parts]):
            try:
                load_model(path, **{name: parts[name] for name in candidates})
                missing = candidates
                break
            except InputError:
                missing = [*parts]
        return ", ".join(missing)

    def save_history(self, folder: str | Path) -> Path:
        """Write ``history.safetensors`` alone."""
        folder = Path(folder)
        if not self.has_model:
            (folder / MODEL).unlink(missing_ok=True)  # of another run
        header = {
            "format": FORMAT,
            "version": 1,
            "record": self.record.to_dict(),
            "name": self.name,
            "stop": [self.stop.code, self.stop.sentence],
            "model": self.has_model,
        }
        save_tensors(
            folder / "history.safetensors", {"theta": self.theta, "thetas": self.thetas}, header
        )
        return folder

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        energy: nn.Module | None = None,
        physics: nn.Module | None = None,
    ) -> Run:
        """Read what ``save`` wrote.

        Args:
            energy: the energy, for regularizers that a model file cannot rebuild; a run that had
                none is read without.
            physics: replaces the stored one.

        Raises:
            ModelFileError: missing, corrupted or foreign files.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise InputError(
                str(folder), given="no such folder", expected="a folder written by Run.save"
            )
        tensors, header = load_tensors(folder / "history.safetensors", FORMAT)
        found: Any = energy
        if energy is None and header.get("model", True):
            found = load_model(folder / MODEL, physics=physics)
        return cls(
            RunRecord.from_dict(header["record"]),
            StopReason(*header["stop"]),
            tensors["theta"],
            tensors["thetas"],
            found,
            header["name"],
        )

    def to_json(self) -> str:
        """Record and stop reason."""
        return json.dumps(
            {"record": self.record.to_dict(), "stop": [self.stop.code, self.stop.sentence]}
        )

    def __repr__(self) -> str:
        if not self.record.rows:
            return f"Run({self.name}: {self.stop})"
        first, last = self.record.rows[0], self.record.rows[-1]
        loss, start, lower, upper = (
            _show(v, ".5g") for v in (last["loss"], first["loss"], last["lower"], last["upper"])
        )
        known = {
            "certified": "certified in",
            "estimated": "estimated (not certified) in",
            None: "bracketed by",  # records of earlier versions do not say how
        }.get(last.get("kind"))
        bracket = (
            "no exact value known"
            if last["upper"] is None or known is None
            else f"exact value {known} [{lower}, {upper}]"
        )
        return (
            f"Run({self.name}: {self.record.problem})\n"
            f"  stopped after {last['step']} steps because {self.stop}\n"
            f"  loss {start} -> {loss}, {bracket}; training PSNR {_show(last['psnr'], '.2f')} dB\n"
            f"  {last['work'] / self.record.images:.0f} evaluations per image, "
            f"{last['seconds']:.1f} s"
        )


def _show(value: float | None, spec: str) -> str:
    """A number, or the words for one that the learner did not need."""
    return "not known" if value is None else format(value, spec)
