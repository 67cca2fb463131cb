"""Inexact stochastic hypergradients: mini-batches, with step sizes and accuracies that follow
declared schedules.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor

from ..core.errors import InputError, MissingPropertyError
from ..core.ranges import check_choice, check_number, check_positive, shown, tidy
from ..core.results import StopReason
from ..hypergradients.implicit import without_errors
from ..metrics import data_psnr
from .box import Ranges, box_of, check_ranges
from .lower_level import LowerLevel, OutOfBudget, Point, first_accuracies
from .state import Halt, Packed, settled
from .warm_starts import InMemory, OnDisk, WarmStarts

PRESETS: dict[str, dict[str, Any]] = {
    "isgd": {"optimizer": "sgd", "step_exponent": 0.0, "accuracy_exponent": 0.0},
    "isgd-ds": {"optimizer": "sgd", "step_exponent": 0.5, "accuracy_exponent": 0.25},
    "isgd-vanishing": {"optimizer": "sgd", "step_exponent": 0.6, "accuracy_exponent": 0.5},
    "iadam": {"optimizer": "adam", "step_exponent": 0.5, "accuracy_exponent": 0.25},
}
"""Constant steps and accuracies; the balanced exponents; exponents for a vanishing gradient;
Adam.
"""

FIRST_MOVE = {"sgd": 0.05, "adam": 0.1}
"""First move relative to theta (SGD), or per parameter in units (Adam), when no step size is
given.
"""


@dataclass(frozen=True)
class Stochastic:
    """Inexact stochastic gradient descent, or Adam, on mini-batches (Salehi et al., arXiv
    2412.12049, 2511.06774).

    Mini-batch step k = 0, 1, ...: draw a batch; solve its lower levels to eps_k, each image from
    its own last solution, and its linear systems to delta_k; feed z_k to the optimizer with step
    size alpha_k; project on the box. Schedules:
        alpha_k = alpha0 (k + 1)^-q,   eps_k = eps0 (k + 1)^-p,   delta_k = delta0 (k + 1)^-p.
    For SGD on a smooth objective with bias of size eps_k the standard argument gives, after k
    steps,
        min ||grad f||^2 <= O(k^-(1-q)) + O(k^-q) + O(k^-min(2p, 1-q)),
    so q = 1/2 with p >= 1/4 (the defaults) balances the terms: ||grad f|| = O(k^-1/4) up to
    logarithms, the rate named in the abstract of arXiv 2511.06774. The gradient vanishes (liminf)
    if 1/2 < q <= 1 and 2p + q > 1. For Adam no such statement is made here. Constant steps or
    accuracies reach a neighbourhood only.

    Theta is scaled by its natural units. One step of the run is ``record`` mini-batch steps; the
    loss shown is the mean over images of their latest losses, seen at different theta, so it has no
    bracket (re-evaluate the run for that). Every pass visits the images in a new order drawn from
    the seed; what does not fill a batch is left out of the pass.

    Args:
        optimizer: ``sgd`` or ``adam`` (torch.optim).
        batch: images per mini-batch; all of them when there are fewer.
        alpha0: first step size; when None, for SGD a first move of 5 % of theta, for Adam 0.1 units
            per parameter.
        step_exponent: q >= 0.
        eps0: first accuracy, a distance per image; derived at theta_0 when None.
        delta0: first residual of the linear systems; derived at theta_0 when None.
        accuracy_exponent: p >= 0.
        momentum: of SGD, in [0, 1).
        box: [lower, upper] of the parameters, or a table by name.
        record: mini-batch steps between two rows of the record; a pass through the data when None.
        store: folder for the warm starts of data larger than memory; in memory when None.

    Raises:
        InputError: a value out of range.
    """

    optimizer: Literal["sgd", "adam"] = "sgd"
    batch: int = 8
    alpha0: float | None = None
    step_exponent: float = 0.5
    eps0: float | None = None
    delta0: float | None = None
    accuracy_exponent: float = 0.25
    momentum: float = 0.0
    box: Ranges = None
    record: int | None = None
    store: str | None = None

    def __post_init__(self) -> None:
        tidy(self)
        check_choice("optimizer", self.optimizer, tuple(FIRST_MOVE))
        check_number("batch", self.batch, lambda v: v >= 1, "an integer >= 1", integer=True)
        for name in ("alpha0", "eps0", "delta0"):
            check_positive(name, getattr(self, name), optional=True)
        for name in ("step_exponent", "accuracy_exponent"):
            check_number(name, getattr(self, name), lambda v: v >= 0, "a number >= 0")
        check_number("momentum", self.momentum, lambda v: 0 <= v < 1, "a number in [0, 1)")
        if self.momentum and self.optimizer != "sgd":
            raise InputError(
                "momentum",
                given=f"{self.momentum:g} with Adam, which has its own",
                expected="0",
                remedy="Leave it out, or use optimizer='sgd'.",
            )
        check_ranges("box", self.box)
        check_number(
            "record", self.record, lambda v: v >= 1, "an integer >= 1", integer=True, optional=True
        )
        if not isinstance(self.store, str | PathLike | None):
            raise InputError(
                "store",
                given=shown(self.store),
                expected="a folder or None",
                remedy="For example store='warm'.",
            )

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Stochastic:
        """A named method: ``isgd``, ``isgd-ds`` (decreasing steps), ``isgd-vanishing``, ``iadam``.

        Args:
            changes: settings that replace those of the preset.

        Raises:
            InputError: an unknown name.
        """
        check_choice("preset", name, tuple(PRESETS))
        return cls(**{**PRESETS[name], **changes})

    def strategy(self, given: Any) -> Any:
        """No error of z is needed: nothing would react to it."""
        return without_errors(given)

    def schedule(self, k: int, start: float, exponent: float) -> float:
        """start (k + 1)^-exponent."""
        return start * (k + 1.0) ** -exponent

    def init(self, lower: LowerLevel, theta: Tensor, seed: int = 0) -> StochasticState:
        """Solve every image at theta_0, a batch at a time: that is its first warm start, and the
        loss of row 0.
        """
        problem = lower.problem
        box_of(self.box, problem)
        size, batch = problem.size, min(self.batch, problem.size)
        eps, delta = first_accuracies(
            lower.on(problem.select(torch.arange(batch))), theta, self.eps0, self.delta0
        )
        store: WarmStarts | None = None
        seen = _Seen.empty(size)
        low = high = 0.0
        for part in torch.arange(size).split(batch):
            here = lower.on(problem.select(part.to(problem.pairs.x.device)))
            point = here.solve(theta, eps, here.start(theta))
            store = (store or self._empty(size, point)).put(part.tolist(), point.solution.warm)
            seen = seen.updated(part, point, here.problem)
            low, high = low + point.lower * len(part) / size, high + point.upper * len(part) / size
        assert store is not None
        info = {
            "loss": seen.mean_loss(problem, theta),
            "lower": low,
            "upper": high,
            "psnr": float(seen.psnr.mean()),
            "eps": eps,
            "delta": delta,
            "step_size": None,
            "gradient_norm": None,
            "batches": 0,
        }
        adjoints = InMemory.empty(size) if self.store is None else _second(store)
        return StochasticState(
            theta,
            0,
            self.alpha0,
            eps,
            delta,
            seed,
            {},
            store.recorded(),
            adjoints.recorded(),
            seen,
            info,
        )

    def restore(self, lower: LowerLevel, packed: Packed) -> StochasticState:
        """The state of a checkpoint."""
        return StochasticState.restore(packed)

    def _empty(self, size: int, point: Point) -> WarmStarts:
        value = point.solution.warm
        if self.store is None:
            return InMemory.empty(size)
        return OnDisk.empty(
            Path(self.store) / "solutions.pages", (size, *value.shape[1:]), value.dtype
        )

    def step(self, lower: LowerLevel, state: StochasticState) -> StochasticState:
        """Mini-batch steps up to the next multiple of ``record``; fewer when the budget ends, but
        not none.
        """
        size, before = lower.problem.size, state.k
        length = self.record or size // min(self.batch, size)
        try:
            for _ in range(length - before % length):
                state = self._mini_batch(lower, state)
        except OutOfBudget:
            if state.k == before:
                raise
        return replace(
            state, solutions=state.solutions.recorded(), adjoints=state.adjoints.recorded()
        )

    def _mini_batch(self, lower: LowerLevel, state: StochasticState) -> StochasticState:
        """One step of the optimizer."""
        problem, k = lower.problem, state.k
        index = drawn(k, problem.size, min(self.batch, problem.size), state.seed)
        chosen = index.tolist()
        here = lower.on(problem.select(index.to(problem.pairs.x.device)))
        eps, delta = (
            self.schedule(k, start, self.accuracy_exponent) for start in (state.eps0, state.delta0)
        )
        x0 = state.solutions.take(chosen, torch.zeros_like(here.problem.pairs.x))
        try:
            point = settled(here.solve(state.theta, eps, x0))
        except MissingPropertyError as error:
            raise Halt(
                StopReason(
                    "not_finite",
                    "the parameters went so far out that the lower level cannot be solved "
                    f"any more ({error}); a smaller alpha0 or a box would help",
                )
            ) from error
        joint = getattr(
            here.strategy, "joint", False
        )  # then the adjoint is a part of the solution's state
        z = here.gradient(
            point, delta, None if joint else state.adjoints.take(chosen, torch.zeros_like(x0))
        )
        if not torch.isfinite(z.value).all():
            raise Halt(StopReason("not_finite", "NaN or Inf appeared in the hypergradient"))
        units = problem.units.to(z.value)
        alpha0 = state.alpha0 or self._first_step(state.theta / units, units * z.value)
        alpha = self.schedule(k, alpha0 or 1.0, self.step_exponent)
        theta, memory = self._moved(state.theta / units, units * z.value, alpha, state.memory)
        seen = state.seen.updated(index, point, here.problem)
        info = {
            "loss": seen.mean_loss(problem, state.theta),
            "lower": None,
            "upper": None,
            "psnr": float(seen.psnr.mean()),
            "eps": eps,
            "delta": delta,
            "step_size": alpha if alpha0 else None,
            "gradient_norm": z.norm,
            "batches": k + 1,
        }
        moved = (
            units * theta if self.box is None else box_of(self.box, problem).project(units * theta)
        )
        return replace(
            state,
            theta=moved,
            k=k + 1,
            alpha0=alpha0,
            memory=memory,
            solutions=state.solutions.put(chosen, point.solution.warm),
            adjoints=state.adjoints if joint else state.adjoints.put(chosen, z.adjoint),
            seen=seen,
            info=info,
        )

    def _first_step(self, scaled: Tensor, gradient: Tensor) -> float | None:
        """alpha0 when none is given; None where a gradient of zero, which moves nothing, cannot
        tell.
        """
        if self.optimizer == "adam":
            return FIRST_MOVE["adam"]
        norm = float(gradient.norm())
        return FIRST_MOVE["sgd"] * max(float(scaled.norm()), 1.0) / norm if norm else None

    def _moved(
        self, scaled: Tensor, gradient: Tensor, alpha: float, memory: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Theta (in units) after one step of torch.optim, and what the optimizer remembers; nothing
        is overwritten.
        """
        parameter = torch.nn.Parameter(scaled.clone())
        optimizer: torch.optim.Optimizer = (
            torch.optim.Adam([parameter], lr=alpha)
            if self.optimizer == "adam"
            else torch.optim.SGD([parameter], lr=alpha, momentum=self.momentum)
        )
        if memory:
            optimizer.state[parameter] = {name: value.clone() for name, value in memory.items()}
        parameter.grad = gradient
        optimizer.step()
        kept = {name: v for name, v in optimizer.state[parameter].items() if isinstance(v, Tensor)}
        return parameter.detach().clone(), kept


def drawn(k: int, size: int, batch: int, seed: int) -> Tensor:
    """The images of mini-batch k: a part of a permutation that depends on the seed and the number
    of the pass only.

    >>> batches = torch.cat([drawn(k, 6, 2, seed=1) for k in range(3)])
    >>> bool((batches.sort().values == torch.arange(6)).all())
    True
    """
    number, part = divmod(k, size // batch)
    generator = torch.Generator().manual_seed((seed * 1_000_003 + number) % 2**63)
    return torch.randperm(size, generator=generator)[part * batch : (part + 1) * batch]


def _second(store: WarmStarts) -> OnDisk:
    """A file like that of ``store`` for the adjoints."""
    assert isinstance(store, OnDisk)
    return OnDisk.empty(
        store.pages.path.with_name("adjoints.pages"), store.pages.shape, store.pages.dtype
    )


@dataclass(frozen=True)
class _Seen:
    """What each image looked like when it was last visited.

    Attributes:
        loss, psnr: (images,) float64.
    """

    loss: Tensor
    psnr: Tensor

    @classmethod
    def empty(cls, size: int) -> Self:
        return cls(
            torch.full((size,), math.nan, dtype=torch.float64),
            torch.full((size,), math.nan, dtype=torch.float64),
        )

    def updated(self, index: Tensor, point: Point, part: Any) -> _Seen:
        """With the images ``index``, as they are at ``point``."""
        x, x_true = point.solution.value, part.pairs.x
        loss, quality = self.loss.clone(), self.psnr.clone()
        loss[index] = part.loss.value(x.double(), x_true.double()).cpu()
        quality[index] = data_psnr(x, x_true).double().cpu()
        return _Seen(loss, quality)

    def mean_loss(self, problem: Any, theta: Tensor) -> float:
        """Over images, with the penalty at theta."""
        return float(self.loss.mean()) + problem.penalty_at(theta)[0]


@dataclass(frozen=True)
class StochasticState:
    """Between two rows of the record.

    Attributes:
        theta: (d,).
        k: mini-batch steps so far.
        alpha0, eps0, delta0: where the schedules start; alpha0 is None before the first step if it
            is derived there.
        seed: of the order of the images.
        memory: what the optimizer remembers, in units.
        solutions, adjoints: warm starts of x and q, one per image.
        seen: latest loss and PSNR of every image.
        info: what the record shows.
    """

    theta: Tensor
    k: int
    alpha0: float | None
    eps0: float
    delta0: float
    seed: int
    memory: dict[str, Tensor]
    solutions: WarmStarts
    adjoints: WarmStarts
    seen: _Seen
    info: dict[str, Any]

    def row(self, problem: Any) -> dict[str, Any]:
        """How the latest mini-batch went, and the running means."""
        return self.info

    def pack(self) -> Packed:
        """For a checkpoint."""
        tensors = {"theta": self.theta, "seen.loss": self.seen.loss, "seen.psnr": self.seen.psnr}
        numbers: dict[str, Any] = {
            k: getattr(self, k) for k in ("k", "alpha0", "eps0", "delta0", "seed", "info")
        }
        packed = Packed(tensors, numbers).holding("memory", Packed(self.memory, {}))
        return packed.holding("solutions", self.solutions.pack()).holding(
            "adjoints", self.adjoints.pack()
        )

    @classmethod
    def restore(cls, packed: Packed) -> Self:
        """The inverse of ``pack``."""
        t, n = packed

        def store(name: str) -> WarmStarts:
            kept = packed.part(name)
            return OnDisk.restore(kept) if "path" in kept.numbers else InMemory.restore(kept)

        seen = _Seen(t["seen.loss"].cpu(), t["seen.psnr"].cpu())
        return cls(
            t["theta"],
            n["k"],
            n["alpha0"],
            n["eps0"],
            n["delta0"],
            n["seed"],
            packed.part("memory").tensors,
            store("solutions"),
            store("adjoints"),
            seen,
            n["info"],
        )

    def double(self, lower: LowerLevel) -> StochasticState:
        """The same state for a float64 lower level."""
        memory = {
            k: v.double() if v.is_floating_point() and v.dim() else v
            for k, v in self.memory.items()
        }
        return replace(
            self,
            theta=self.theta.double(),
            memory=memory,
            solutions=self.solutions.double(),
            adjoints=self.adjoints.double(),
        )
