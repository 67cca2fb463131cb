"""Memory of Fields of Experts, in feature maps: what lives at the worst moment, counted storage by
storage.

A map is one number per filter and pixel. Operations go through the batch in tiles whose maps fit in
CHUNK_BYTES; only a Hessian keeps maps of the whole batch, its weights. Besides these there are a
few vectors of pixels. Scratch space inside one operation of torch is not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from tests.hypergradients.pulls import gradient_of
from tests.regularizers.cases import Pairs, denoising
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import learnreg as lr
from learnreg.core.protocols import Solver
from learnreg.hypergradients import Implicit
from learnreg.linear.cg import CG
from learnreg.problems import BilevelProblem, Energy
from learnreg.regularizers import FoE, foe
from learnreg.solvers.agd import AGD
from learnreg.solvers.iterate import minimize
from learnreg.solvers.lbfgs import LBFGS

# Measured, rounded up a little.
# in a sandwich: the maps of one tile, the copies of the adjoint (49 for 48 filters), their sums
# over rows
TILES = 2.3
PIXELS = 2  # padded vectors of pixels of the batch: the image and the result
# weights of the batch: of the Hessian, and those of the images that conjugate gradients still run
# on
KEPT = 2
POLISHED = 3  # the same with the Hessian at the polished point
SOLVER_PIXELS = 16  # x, q, residuals, directions, some of them in float64
CERTIFICATE = 10  # maps of one image in float64, one image after the other
SPECTRA = (
    2 * 16 * 128 * 65
)  # bytes per filter: its spectrum on the grid of the norm bounds and that of its square

FILTERS, SIZE = 48, 7
BUDGET = 4 * 2**30


class Meter(TorchDispatchMode):
    """Bytes of all storages made inside the context and alive at the same time: ``now`` and
    ``peak``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Callable, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        given = {t.untyped_storage()._cdata for t in _tensors((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        for t in _tensors(out):
            storage = t.untyped_storage()
            if storage._cdata not in self._alive and storage._cdata not in given:
                self._enter(storage)
        return out

    def _enter(self, storage: torch.UntypedStorage) -> None:
        self._alive[storage._cdata] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._leave, storage._cdata)

    def _leave(self, key: int) -> None:
        self.now -= self._alive.pop(key)


def _tensors(x: Any) -> Iterator[Tensor]:
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, list | tuple):
        for part in x:
            yield from _tensors(part)
    elif isinstance(x, dict):
        yield from _tensors(list(x.values()))


def peak(call: Callable[[], Any], warm: bool = False) -> int:
    """Bytes alive at the worst moment of ``call``, what it returns included; a call before it fills
    the caches.
    """
    if not warm:
        call()
    with Meter() as meter:
        call()
    return meter.peak


def test_the_meter_counts_storages():
    with Meter() as meter:
        a = torch.zeros(1000)
        b = a[10:].view(33, 30)
        del a
        c = b.mul_(2).exp()
        assert meter.now == meter.peak == 4 * (1000 + 990)
        del b
        assert (meter.now, meter.peak) == (c.nbytes, 4 * 1990)


# --- the cases ------------------------------------------------------------------------------------


def maps(side: int, images: int = 1) -> int:
    """Bytes of the feature maps of a batch."""
    return 4 * FILTERS * side**2 * images


def chunk(side: int) -> int:
    """CHUNK_BYTES as large pictures see them: a part of the maps of one image."""
    return maps(side) // 4


def pixels(side: int, images: int) -> int:
    """Bytes of one padded vector of pixels of a batch."""
    return 4 * (side + SIZE - 1) ** 2 * images


def images(side: int, count: int) -> tuple[Tensor, Tensor]:
    """Pictures and directions."""
    generator = torch.Generator().manual_seed(0)
    return (
        torch.rand(count, 1, side, side, generator=generator),
        torch.randn(count, 1, side, side, generator=generator),
    )


@pytest.fixture
def chunked(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    return lambda side: monkeypatch.setattr(foe, "CHUNK_BYTES", chunk(side))


@torch.no_grad()
def gradient(side: int, count: int) -> int:
    r, (x, _) = FoE(FILTERS, SIZE), images(side, count)
    return peak(lambda: r.grad(x))


@torch.no_grad()
def linearization_and_product(side: int, count: int) -> int:
    r, (x, v) = FoE(FILTERS, SIZE), images(side, count)
    return peak(lambda: r.linearize(x)(v))


def hypergradient(side: int, count: int, strategy: Implicit) -> int:
    x, v = images(side, count)
    problem = BilevelProblem(denoising(FoE(FILTERS, SIZE)), Pairs(x=x, y=x + 0.1 * v))
    solution = lr.solve(problem.energy, problem.pairs.y, 0.5)
    return peak(lambda: gradient_of(strategy, problem, problem.energy, solution, 0.1))


# --- multiples of the feature maps ----------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 6])
def test_a_gradient_needs_the_maps_of_one_tile(chunked, count):
    chunked(32)
    assert gradient(32, count) <= TILES * chunk(32) + PIXELS * pixels(32, count)


@pytest.mark.parametrize("count", [1, 2, 6])
def test_a_hessian_keeps_its_weights_and_needs_one_tile(chunked, count):
    chunked(32)
    used = linearization_and_product(32, count)
    assert (
        maps(32, count) <= used <= maps(32, count) + TILES * chunk(32) + PIXELS * pixels(32, count)
    )


@pytest.mark.parametrize("count", [2, 6])
@pytest.mark.parametrize(
    ("strategy", "kept"),
    [
        (Implicit(certify=False), KEPT),
        (Implicit(certify=False, estimate=True, polish_steps=2), POLISHED),
    ],
    ids=["plain", "estimated"],
)
def test_a_hypergradient_keeps_the_weights_of_its_linear_systems(chunked, strategy, kept, count):
    """The mixed product, however many images it takes at a time, does not show."""
    chunked(32)
    used = hypergradient(32, count, strategy)
    assert used <= kept * maps(32, count) + TILES * chunk(32) + SOLVER_PIXELS * pixels(32, count)


def test_a_certificate_looks_at_one_image_at_a_time(chunked):
    chunked(32)
    one, many = (hypergradient(32, count, Implicit()) - maps(32, count) for count in (1, 4))
    assert many <= CERTIFICATE * 2 * maps(32) + SPECTRA * FILTERS + SOLVER_PIXELS * pixels(32, 4)
    assert many - one <= SOLVER_PIXELS * pixels(32, 4)


# --- however long it takes ------------------------------------------------------------------------


def solve(energy: Energy, y: Tensor, solver: Solver, steps: int) -> None:
    solution = minimize(energy.at(y), 1e-9, solver, y, max_steps=steps)
    assert solution.steps.tolist() == [steps] * len(y), (
        "the accuracy is out of reach, so that all steps are taken"
    )


@torch.no_grad()
def solve_linear(energy: Energy, y: Tensor, steps: int) -> None:
    solution = CG(max_steps=steps)(energy.at(y).linearize(y), y, 1e-30)
    assert solution.steps.tolist() == [steps] * len(y)


@pytest.mark.parametrize(
    ("run", "few"),
    [(partial(solve, solver=AGD()), 5), (partial(solve, solver=LBFGS()), 8), (solve_linear, 5)],
    ids=["agd", "lbfgs_with_its_memory_full", "cg"],
)
def test_more_steps_need_no_more_memory(chunked, run, few):
    chunked(24)
    sharp = FoE(
        FILTERS, SIZE, weight=0.1, smoothing=1e-3, least_smoothing=0.0
    )  # 50 steps are far too few
    energy, (x, _) = denoising(sharp), images(24, 3)
    expected = peak(lambda: run(energy, x, steps=few))
    assert peak(lambda: run(energy, x, steps=50), warm=True) == expected


# --- large pictures -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "operation",
    [
        gradient,
        linearization_and_product,
        partial(hypergradient, strategy=Implicit(estimate=True, polish_steps=2)),
    ],
    ids=["gradient", "linearization_and_product", "hypergradient"],
)
def test_eight_large_pictures_fit(chunked, operation):
    """Everything grows at most like the pixels of an image, so pictures 64x64 tell of pictures
    512x512.
    """
    chunked(64)
    assert operation(64, 8) * (512 // 64) ** 2 < BUDGET
