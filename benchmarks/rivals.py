"""Solvers from elsewhere under our rule: scipy's L-BFGS-B and conjugate gradients, deepinv's GD and
FISTA.

None of them knows the rule ||grad h(x)|| / mu <= eps, so a ``Watch`` looks for them, with the clock
stopped and the gradient in float64, and one run serves all eps. A run is a function (problem,
levels, limits) -> entries, where the problem offers ``f`` and ``exact`` (a batch of potentials in
float32 and float64), ``x0``, ``mu``, ``L``, ``images``.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import deepinv as dinv
import numpy as np
import scipy
import torch
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor

from learnreg.core.batch import norm

HOPE, DOUBT = 0.1, 10.0
"""Of machine epsilon times L ||x||: deepinv's methods try float32 for gradient norms above HOPE;
those below DOUBT may be rounding."""


@dataclass(frozen=True)
class Limits:
    """Where a run ends that reaches nothing: CPU seconds and evaluations, both of the whole
    batch.
    """

    seconds: float
    evaluations: int


@dataclass(frozen=True)
class Entry:
    """Seconds and evaluations per image until ``eps`` was certified, or until the run was ended
    (not ``ok``).
    """

    seconds: float
    evaluations: float
    eps: float
    ok: bool


Entries = dict[float | None, Entry]
"""By the eps asked for; None stands for the place where a method's own rule would have stopped."""


class Finished(Exception):
    """Nothing more to learn from this run."""


class Watch:
    """The clock of a run that does not know our rule; notes what had been spent when each eps was
    first certified.

    Args:
        mu: of the energy.
        levels: the eps to be reached.
        limits: of the run.
        images: how many the run serves; entries are per image.
        noise: gradient norms below may be rounding; a run that no longer improves there is ended.
    """

    def __init__(
        self, mu: float, levels: list[float], limits: Limits, images: int, noise: float = 0.0
    ) -> None:
        self.mu, self.levels, self.limits, self.images, self.noise = (
            mu,
            levels,
            limits,
            images,
            noise,
        )
        self.spent, self.evaluations, self.next = 0.0, 0, 0
        self.least, self.last, self.improved = float("inf"), float("inf"), 0
        self.entries: Entries = {}

    def __enter__(self) -> None:
        self.since = time.process_time()

    def __exit__(self, *_: object) -> None:
        self.spent += time.process_time() - self.since

    @contextmanager
    def free(self) -> Iterator[None]:
        """The clock stands still inside."""
        self.__exit__()
        try:
            yield
        finally:
            self.__enter__()

    def due(self) -> bool:
        """True when the rule should be looked at again, outside the clock."""
        if self.evaluations < self.next and not self.over:
            return False
        self.next = self.evaluations + max(self.images, self.evaluations // 50)
        return True

    def note(self, size: float) -> None:
        """Enter a gradient norm in float64, the largest of the images."""
        if size < 0.9 * self.last:
            self.last, self.improved = size, self.evaluations
        self.least = min(self.least, size)
        for eps in self.levels:
            if eps not in self.entries and size <= self.mu * eps:
                self.entries[eps] = self.entry(size, True)

    def entry(self, size: float, ok: bool) -> Entry:
        """What has been spent so far."""
        return Entry(self.spent / self.images, self.evaluations / self.images, size / self.mu, ok)

    @property
    def over(self) -> bool:
        return self.spent > self.limits.seconds or self.evaluations >= self.limits.evaluations

    @property
    def stalled(self) -> bool:
        """Nothing but rounding keeps this run from improving, as far as can be seen."""
        return (
            self.least < self.noise and self.evaluations > 1.5 * self.improved + 100 * self.images
        )

    @property
    def done(self) -> bool:
        return self.over or self.stalled or all(eps in self.entries for eps in self.levels)

    def results(self) -> Entries:
        """Entries of all levels, those not reached included."""
        missed = self.entry(self.least, False)
        return {
            eps: self.entries.get(eps, missed)
            for eps in (*self.levels, None)
            if eps or eps in self.entries
        }


def averaged(parts: list[Entries], levels: list[float]) -> Entries:
    """Runs of single images as one: means of what was spent, the worst eps."""
    return {
        eps: Entry(
            statistics.fmean(p[eps].seconds for p in parts),
            statistics.fmean(p[eps].evaluations for p in parts),
            max(p[eps].eps for p in parts),
            all(p[eps].ok for p in parts),
        )
        for eps in levels
    }


def one_by_one(
    run: Callable[..., None], problem: Any, levels: list[float], limits: Limits
) -> Entries:
    """``run(f, x0, watch)`` for every image alone, in float64."""
    parts = []
    for i in range(problem.images):
        share = Limits(limits.seconds / problem.images, limits.evaluations // problem.images)
        watch = Watch(problem.mu, levels, share, 1)
        with suppress(Finished):
            run(problem.exact.select(torch.tensor([i])), problem.x0[i : i + 1].double(), watch)
        parts.append(watch.results())
    return averaged(parts, levels)


def scipy_lbfgs(f: Any, x0: Tensor, watch: Watch) -> None:
    """scipy.optimize.minimize; every point it tries counts as an iterate."""

    def value_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
        x = torch.from_numpy(flat).view_as(x0)
        g = f.grad(x)
        watch.evaluations += 1
        with watch.free():
            value = float(f.value(x))
            watch.note(float(g.norm()))
            if watch.done:
                raise Finished
        return value, g.numpy().ravel()

    options = {"maxcor": 10, "ftol": 0.0, "gtol": 0.0, "maxiter": 10**9, "maxfun": 10**9}
    with watch:
        scipy.optimize.minimize(
            value_and_gradient, x0.numpy().ravel(), jac=True, method="L-BFGS-B", options=options
        )


def scipy_cg(f: Any, x0: Tensor, watch: Watch) -> None:
    """scipy.sparse.linalg.cg for H d = -grad h(x0), x = x0 + d."""

    def product(flat: np.ndarray) -> np.ndarray:
        watch.evaluations += 1
        return H(torch.from_numpy(flat).view_as(x0)).numpy().ravel()

    def look(flat: np.ndarray) -> None:
        with watch.free():
            if watch.due():
                watch.note(float(f.grad(x0 + torch.from_numpy(flat).view_as(x0)).norm()))
            if watch.done:
                raise Finished

    with watch:
        H, g = f.linearize(x0), f.grad(x0)
        watch.evaluations += 1
        A = LinearOperator((x0.numel(), x0.numel()), matvec=product, dtype=np.float64)
        cg(A, -g.numpy().ravel(), rtol=0.0, atol=0.0, maxiter=10**9, callback=look)


class Whole(dinv.optim.DataFidelity):
    """The gradient of the whole energy in the place of a data term: the best deepinv's loop can be
    given.
    """

    def __init__(self, f: Any, watch: Watch) -> None:
        super().__init__()
        self.f, self.watch = f, watch

    def grad(self, x: Tensor, y: Tensor, physics: Any, *args: Any, **kwargs: Any) -> Tensor:
        self.watch.evaluations += x.shape[0]
        return self.f.grad(x)


class Nothing(dinv.optim.ZeroPrior):
    """No prior, at no cost; not "explicit", or deepinv would ask for values."""

    def __init__(self) -> None:
        super().__init__()
        self.explicit_prior = False

    def grad(self, x: Tensor, *args: Any, **kwargs: Any) -> float:
        return 0.0


class Watched:
    """deepinv's hook for stopping rules, with our rule for the iterate it would return."""

    watch: Watch
    exact: Any

    def check_conv_fn(self, it: int, X_prev: dict, X: dict) -> bool:
        with self.watch.free():
            own = None not in self.watch.entries and super().check_conv_fn(it, X_prev, X)
            if own or self.watch.due():
                size = float(norm(self.exact.grad(X["est"][0].double())).max())
                self.watch.note(size)
                if own:
                    self.watch.entries[None] = self.watch.entry(size, False)
            return self.watch.done


class WatchedGD(Watched, dinv.optim.GD):
    """Gradient descent."""


class WatchedFISTA(Watched, dinv.optim.FISTA):
    """FISTA."""


def deepinv_gd(x0: Tensor, mu: float, L: float, steps: int) -> tuple[type, dict[str, Any]]:
    """Gradient descent with the best fixed step."""
    return WatchedGD, {"stepsize": 2 / (L + mu), "custom_init": lambda *_: (x0,)}


def deepinv_fista(x0: Tensor, mu: float, L: float, steps: int) -> tuple[type, dict[str, Any]]:
    """FISTA as it comes."""
    return WatchedFISTA, {"stepsize": 1 / L, "custom_init": lambda *_: (x0, x0)}


def deepinv_nesterov(x0: Tensor, mu: float, L: float, steps: int) -> tuple[type, dict[str, Any]]:
    """FISTA with Nesterov's momentum: a_k such that (k + a_k - 1) / (k + a_k) = (1 - r) / (1 + r),
    r^2 = mu / L.
    """
    r = (mu / L) ** 0.5
    a = [(1 + r) / (2 * r) - k for k in range(steps)]
    return WatchedFISTA, {
        "params_algo": {"stepsize": 1 / L, "a": a},
        "custom_init": lambda *_: (x0, x0),
    }


def of_deepinv(
    make: Callable[..., tuple[type, dict[str, Any]]],
    problem: Any,
    levels: list[float],
    limits: Limits,
) -> Entries:
    """In float32 as far as that can go; in float64 from the start for the eps beyond."""
    noise = torch.finfo(torch.float32).eps * problem.L * float(norm(problem.x0).max())
    coarse = [eps for eps in levels if problem.mu * eps > HOPE * noise]
    entries: Entries = {}
    if coarse:
        watch = deepinv_run(make, problem, problem.f, problem.x0, coarse, limits, DOUBT * noise)
        entries = {eps: e for eps, e in watch.results().items() if e.ok or eps is None}
        if watch.over:  # too slow, and float64 is slower
            return dict.fromkeys(levels, watch.entry(watch.least, False)) | entries
    fine = [eps for eps in levels if eps not in entries]
    if fine:
        entries = (
            deepinv_run(make, problem, problem.exact, problem.x0.double(), fine, limits).results()
            | entries
        )
    return entries


def deepinv_run(
    make: Callable[..., tuple[type, dict[str, Any]]],
    problem: Any,
    f: Any,
    x0: Tensor,
    levels: list[float],
    limits: Limits,
    noise: float = 0.0,
) -> Watch:
    """One run in the precision of x0."""
    watch, steps = Watch(problem.mu, levels, limits, problem.images, noise), limits.evaluations + 3
    kind, settings = make(x0, problem.mu, problem.L, steps)
    model = kind(
        data_fidelity=Whole(f, watch), prior=Nothing(), max_iter=steps, early_stop=True, **settings
    )
    model.watch, model.exact = watch, problem.exact
    with watch:
        model(problem.y, None)
    return watch


RIVALS: dict[str, Callable[..., Entries]] = {
    "scipy-lbfgs": partial(one_by_one, scipy_lbfgs),
    "scipy-cg": partial(one_by_one, scipy_cg),
    **{
        f"deepinv-{name}": partial(of_deepinv, make)
        for name, make in {
            "gd": deepinv_gd,
            "fista": deepinv_fista,
            "nesterov": deepinv_nesterov,
        }.items()
    },
}
