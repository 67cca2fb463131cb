"""Inexact stochastic hypergradients: mini-batches, with step sizes and accuracies that follow
declared schedules.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from ..core.errors import InputError, MissingPropertyError
from ..core.grants import Grants
from ..core.meter import OutOfBudget
from ..core.objective import Halt, Objective, Row, Value, settled
from ..core.ranges import check_choice, check_number, check_positive, shown, tidy
from ..core.results import StopReason
from .box import Ranges, box_of, check_ranges
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
class Seen:
    """What each image looked like when it was last visited.

    Attributes:
        loss, psnr: (images,) float64.
    """

    loss: Tensor
    psnr: Tensor

    def __post_init__(self) -> None:
        for name in ("loss", "psnr"):  # kept on the host, for the record
            object.__setattr__(self, name, vars(self)[name].cpu())

    @classmethod
    def empty(cls, size: int) -> Self:
        unknown = torch.full((size,), math.nan, dtype=torch.float64)
        return cls(unknown, unknown)

    def updated(self, index: Tensor, point: Value) -> Seen:
        """With the images ``index``, as they are at ``point``."""
        loss, quality, found = self.loss.clone(), self.psnr.clone(), point.per_image()
        loss[index], quality[index] = found.loss.cpu(), found.psnr.cpu()
        return Seen(loss, quality)

    def mean_loss(self, objective: Objective, theta: Tensor) -> float:
        """Over images, with the penalty at theta."""
        return float(self.loss.mean()) + objective.penalty(theta)

    def mean_psnr(self) -> float | None:
        """Over images; None without ground truth."""
        mean = float(self.psnr.mean())
        return mean if math.isfinite(mean) else None


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
    seen: Seen
    info: Row

    def row(self) -> Row:
        """How the latest mini-batch went, and the running means."""
        return self.info


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
        check_positive("alpha0", self.alpha0, optional=True)
        check_positive("eps0", self.eps0, optional=True)
        check_positive("delta0", self.delta0, optional=True)
        check_number("step_exponent", self.step_exponent, lambda v: v >= 0, "a number >= 0")
        check_number("accuracy_exponent", self.accuracy_exponent, lambda v: v >= 0, "a number >= 0")
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

    needs: ClassVar[Grants] = Grants.LOSS | Grants.GRADIENT | Grants.SUBSETS
    state: ClassVar[type[StochasticState]] = StochasticState

    def schedule(self, k: int, start: float, exponent: float) -> float:
        """start (k + 1)^-exponent."""
        return start * (k + 1.0) ** -exponent

    def init(self, objective: Objective, theta: Tensor, seed: int = 0) -> StochasticState:
        """Solve every image at theta_0, a batch at a time: that is its first warm start, and the
        loss of row 0.
        """
        box_of(self.box, objective)
        size, batch = objective.size, min(self.batch, objective.size)
        first = objective.subset(torch.arange(batch))
        eps, delta = first.accuracies(theta, self.eps0, self.delta0)
        store: WarmStarts = InMemory.empty(size)
        seen = Seen.empty(size)
        low = high = 0.0
        for part in torch.arange(size).split(batch):
            point = objective.subset(part).evaluate(theta, eps)
            store = self._kept(store, "solutions", part.tolist(), point.warm)
            seen = seen.updated(part, point)
            low, high = low + point.lower * len(part) / size, high + point.upper * len(part) / size

        info: Row = {
            "loss": seen.mean_loss(objective, theta),
            "lower": low,
            "upper": high,
            "psnr": seen.mean_psnr(),
            "eps": eps,
            "delta": delta,
            "step_size": None,
            "gradient_norm": None,
            "batches": 0,
        }
        return StochasticState(
            theta,
            0,
            self.alpha0,
            eps,
            delta,
            seed,
            {},
            store.recorded(),
            InMemory.empty(size),
            seen,
            info,
        )

    def _kept(
        self, store: WarmStarts, what: str, index: list[int], values: Tensor | None
    ) -> WarmStarts:
        """The store with values for some images; the first values say how large a file must be."""
        if values is None:
            return store
        if self.store is not None and isinstance(store, InMemory):
            path = Path(self.store) / f"{what}.pages"
            store = OnDisk.empty(path, (len(store.entries), *values.shape[1:]), values.dtype)
        return store.put(index, values)

    def step(self, objective: Objective, state: StochasticState) -> StochasticState:
        """Mini-batch steps up to the next multiple of ``record``; fewer when the budget ends, but
        not none.
        """
        size, before = objective.size, state.k
        length = self.record or size // min(self.batch, size)
        try:
            for _ in range(length - before % length):
                state = self.mini_batch(objective, state)
        except OutOfBudget:
            if state.k == before:
                raise
        return replace(
            state, solutions=state.solutions.recorded(), adjoints=state.adjoints.recorded()
        )

    def mini_batch(
        self, objective: Objective, state: StochasticState, limit: int | None = None
    ) -> StochasticState:
        """One step of the optimizer.

        Args:
            limit: solver steps of a lower-level solve; as configured when None.

        Raises:
            Halt: the lower level could not be solved, or the gradient is not finite.
            OutOfBudget: the budget was used up.
        """
        k, size = state.k, objective.size
        index = drawn(k, size, min(self.batch, size), state.seed)
        chosen, here = index.tolist(), objective.subset(index)
        eps, delta = (
            self.schedule(k, start, self.accuracy_exponent) for start in (state.eps0, state.delta0)
        )
        try:
            start = _on(here, state.solutions, chosen)
            point = settled(here.evaluate(state.theta, eps, start, limit))
        except MissingPropertyError as error:
            raise Halt(
                StopReason(
                    "not_finite",
                    "the parameters went so far out that the lower level cannot be solved "
                    f"any more ({error}); a smaller alpha0 or a box would help",
                )
            ) from error
        z = here.gradient(point, delta, _on(here, state.adjoints, chosen), "none")
        if not torch.isfinite(z.value).all():
            raise Halt(StopReason("not_finite", "NaN or Inf appeared in the hypergradient"))

        units = objective.units.to(z.value)
        alpha0 = state.alpha0 or self._first_step(state.theta / units, units * z.value)
        alpha = self.schedule(k, alpha0 or 1.0, self.step_exponent)
        theta, memory = self._moved(state.theta / units, units * z.value, alpha, state.memory)
        seen = state.seen.updated(index, point)
        info: Row = {
            "loss": seen.mean_loss(objective, state.theta),
            "lower": None,
            "upper": None,
            "psnr": seen.mean_psnr(),
            "eps": eps,
            "delta": delta,
            "step_size": alpha if alpha0 else None,
            "gradient_norm": z.norm,
            "batches": k + 1,
        }
        moved = units * theta
        if self.box is not None:
            moved = box_of(self.box, objective).project(moved)
        return replace(
            state,
            theta=moved,
            k=k + 1,
            alpha0=alpha0,
            memory=memory,
            solutions=self._kept(state.solutions, "solutions", chosen, point.warm),
            adjoints=self._kept(state.adjoints, "adjoints", chosen, z.adjoint),
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


def _on(objective: Objective, store: WarmStarts, index: list[int]) -> Tensor | None:
    """What the store knows of some images, where the objective is."""
    found = store.take(index)
    return None if found is None else found.to(objective.device)
