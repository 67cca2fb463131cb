"""Images too large to be solved at once: tile by tile, with one certificate of the whole.

A potential whose gradient at a pixel depends on pixels within a ``reach`` only can be looked at in
windows. The first sweep solves every window as an image of its own, wider than its tile by an
overlap, and keeps the tile. Then the closing gradient of the assembled image is computed in
float64, window by window: it is that of the whole image, so that ||grad h(x~)|| / mu bounds the
distance as for any other image. Tiles that miss their share of it are solved again with their
surroundings fixed, one after the other (multiplicative Schwarz, which converges for strongly convex
functions: Tai and Espedal, SIAM J. Numer. Anal. 35 (1998)), until the whole is certified.

Memory is that of one window besides a few copies of the image.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, TypeGuard, cast

import torch
from torch import Tensor

from ..core.asking import offers
from ..core.batch import norm, per_image
from ..core.bounds import Curvature, constants_of
from ..core.certificates import distance_from_gradient
from ..core.constraints import Interval, bounds_of, domain_of
from ..core.cost import Cost
from ..core.curvature import MeanCurvature
from ..core.errors import InputError
from ..core.offers import Averaged
from ..core.protocols import AnySolver, Hessian, Potential, Saddle, State
from ..core.ranges import check_number
from ..core.results import Solution
from ..core.status import Status
from .closing import NOISE_PATIENCE, rounding_of
from .select import choose
from .views import view_of

Window = Callable[[slice, slice], Potential]
"""(rows, columns) -> the potentials of a window of all images."""

SHARE = 0.9
"""Of the gradient norm asked for, what the tiles aim at: the seams need the rest."""

MOST_SWEEPS = 30

FARTHEST = 32
"""By how many pixels a window may grow for the sake of its transforms."""

PROGRESS = 0.99
"""A gradient norm counts as lower if it is so by a hundredth."""

WRONG = 1e-9
"""Relative difference of float64 gradients by which a ``reach`` is refused."""


class Cut(Potential, Protocol):
    """A potential that can be looked at in windows."""

    @property
    def reach(self) -> int | None:
        """A gradient at a pixel depends on no pixel farther than this."""
        ...

    @property
    def back(self) -> Tensor:
        """Anything like the images, (b, c, h, w)."""
        ...

    def windows(self, double: bool = False) -> Window:
        """Windows as images of their own; in float64 if asked."""
        ...


def can_be_cut(f: Potential | Saddle) -> TypeGuard[Cut]:
    """Whether windows of f can be solved."""
    return offers(f, Cut) and f.reach is not None


@dataclass(frozen=True)
class Tiling:
    """How images are cut.

    Attributes:
        size: sides of a tile in pixels.
        overlap: by how much the window that is solved is wider than its tile, on every side.
    """

    size: int = 304
    overlap: int = 8

    def __post_init__(self) -> None:
        check_number("size", self.size, lambda v: v >= 16, "an integer >= 16", integer=True)
        check_number("overlap", self.overlap, lambda v: v >= 1, "an integer >= 1", integer=True)


class Box(NamedTuple):
    """Rows and columns of a window."""

    rows: slice
    columns: slice

    def grown(self, margin: int, sides: tuple[int, int]) -> Box:
        """Wider by a margin, as far as the image goes."""
        return Box(*(_grown(s, margin, n) for s, n in zip(self, sides, strict=True)))

    def within(self, outer: Box) -> Box:
        """The same pixels as counted inside another window."""
        return Box(
            *(slice(s.start - o.start, s.stop - o.start) for s, o in zip(self, outer, strict=True))
        )

    def of(self, x: Tensor) -> Tensor:
        """The window of images, (b, c, h, w)."""
        return x[..., self.rows, self.columns]

    @property
    def pixels(self) -> int:
        rows, columns = self
        return int((rows.stop - rows.start) * (columns.stop - columns.start))


def _grown(s: slice, margin: int, most: int) -> slice:
    return slice(max(0, s.start - margin), min(most, s.stop + margin))


def solvable(tile: Box, overlap: int, sides: tuple[int, int]) -> Box:
    """A tile wider by the overlap, and by what makes transforms of the window fast (measured: a
    step of L-BFGS on 257 x 257 pixels takes as long as one and a half on 264 x 264).
    """
    box = tile.grown(overlap, sides)
    return Box(*(_even(s, n) for s, n in zip(box, sides, strict=True)))


def _even(s: slice, most: int) -> slice:
    """A longer slice with a length of small factors, if there is one."""
    length = s.stop - s.start
    longer = next((n for n in range(length, min(most, length + FARTHEST) + 1) if _fast(n)), length)
    stop = min(most, s.start + longer)
    return slice(stop - longer, stop)


def _fast(length: int) -> bool:
    """A multiple of 8 without large prime factors."""
    rest = length
    for prime in (2, 3, 5, 7):
        while rest % prime == 0:
            rest //= prime
    return rest == 1 and length % 8 == 0


def boxes(sides: tuple[int, int], size: int) -> list[Box]:
    """Tiles of at most ``size`` pixels a side that cover an image."""
    rows, columns = (_pieces(n, size) for n in sides)
    return [Box(r, c) for r in rows for c in columns]


def _pieces(length: int, size: int) -> list[slice]:
    """Pieces of one size; a small rest is shared with the one before it."""
    edges = [*range(0, length, size), length]
    if len(edges) > 2 and length - edges[-2] < size // 2:
        edges[-2] = (edges[-3] + length) // 2
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


@torch.no_grad()
def solve_in_tiles(
    f: Cut,
    eps: float | Tensor,
    x0: Tensor,
    *,
    tiling: Tiling | None = None,
    max_steps: int = 20000,
    should_stop: Callable[[], bool] | None = None,
    progress: Callable[[float], None] | None = None,
) -> Solution:
    """``solve_potential`` for large images, certified as a whole; see the head of this file.

    Args:
        f: potentials that can be cut.
        eps: positive distance over the whole image, one value or one per image (b,).
        x0: (b, c, h, w), the start; not modified.
        tiling: how to cut; ``Tiling()`` when None.
        max_steps: of a window in a sweep.
        should_stop: asked between steps; True ends the solve with what has been reached.
        progress: told the share of the tiles that are done, from 0 to 1 in every sweep.

    Raises:
        InputError: a ``reach`` that the gradients do not keep to.
        MissingPropertyError: the potentials are not strongly convex.
    """
    view = view_of(f)
    view.require_strong_convexity()
    method, words = choose("auto", f)
    target = constants_of(f).mu.to(x0.device) * per_image(eps, x0)
    job = _Tiled(f, method, tiling or Tiling(), target, max_steps, should_stop, progress)
    job.check_reach(x0)
    return replace(job.solve(domain_of(f).project(x0)), solver=f"{words}, in tiles")


class _Closing(NamedTuple):
    """The gradient of the assembled images.

    Attributes:
        evidence: (b,), norms with the allowance for rounding.
        size: (b,), norms.
        gradient: (b, c, h, w).
        of_tiles: (tiles, b), norms over each tile.
    """

    evidence: Tensor
    size: Tensor
    gradient: Tensor
    of_tiles: Tensor


class _Tiled:
    """One solve: what it is given, and what it has spent."""

    def __init__(
        self,
        f: Cut,
        method: AnySolver,
        tiling: Tiling,
        target: Tensor,
        max_steps: int,
        should_stop: Callable[[], bool] | None,
        progress: Callable[[float], None] | None,
    ) -> None:
        self.f, self.method, self.tiling, self.target = f, method, tiling, target
        self.max_steps = max_steps
        self.stop = should_stop or (lambda: False)
        self.progress = progress or (lambda share: None)
        self.window = f.windows()
        # why a cast: ``can_be_cut`` has seen that it is known
        self.reach = cast(int, f.reach)
        height, width = f.back.shape[-2:]
        self.sides = (int(height), int(width))
        self.tiles = boxes(self.sides, tiling.size)
        self.share = [t.pixels / (height * width) for t in self.tiles]
        self.steps = torch.zeros(target.shape[0], dtype=torch.int64, device=target.device)
        self._room: Tensor | None = None
        self.work = 0.0  # gradients of whole images

    def check_reach(self, x: Tensor) -> None:
        """Compare gradients of windows with that of a larger one, at noise.

        Raises:
            InputError: they differ where they should not.
        """
        window, generator = self.f.windows(double=True), torch.Generator().manual_seed(0)
        sides = (min(self.sides[0], 4 * self.reach + 24), min(self.sides[1], 4 * self.reach + 24))
        noise = torch.rand(*x.shape[:2], *sides, generator=generator, dtype=torch.float64).to(
            x.device
        )
        expected = window(slice(0, sides[0]), slice(0, sides[1])).grad(noise)
        largest = expected.abs().max()
        for tile in boxes(sides, 2 * self.reach + 12):
            box = tile.grown(self.reach, sides)
            found = tile.within(box).of(window(*box).grad(box.of(noise).contiguous()))
            difference = float((found - tile.of(expected)).abs().max() / largest)
            if not difference <= WRONG:
                raise InputError(
                    "energy",
                    given=f"a reach of {self.reach} pixels, and gradients that see farther "
                    f"(relative difference {difference:.1e})",
                    expected="gradients that depend on no pixel farther than reach",
                    remedy="Correct reach, or let it be None: whole images are solved then.",
                )

    def solve(self, x0: Tensor) -> Solution:
        """Sweeps until the whole is certified, or no sweep helps."""
        x, best = x0.clone(), torch.full_like(self.target, torch.inf)
        todo = list(range(len(self.tiles)))
        closing, code = None, Status.MAX_STEPS
        for sweep in range(MOST_SWEEPS):
            for done, index in enumerate(todo):
                if self.stop():
                    break
                self.progress(done / len(todo))
                if sweep == 0:
                    self._first(x, index)
                else:
                    self._again(x, index)
            self.progress(1.0)
            closing = self.close(x)
            missed = ~(closing.evidence <= self.target)
            if not bool(missed.any()):
                break
            if self.stop():
                code = Status.BUDGET
                break
            if not bool(torch.isfinite(closing.evidence).all()):
                code = Status.NOT_FINITE
                break
            # a sweep that gains nothing has come down to rounding
            if not bool((closing.evidence < 0.9 * best)[missed].all()):
                code = Status.ROUNDING_FLOOR
                break
            best = closing.evidence
            todo = self._behind(closing, missed)
        assert closing is not None
        return self._solution(x, closing, code)

    def _level(self, share: float) -> Tensor:
        """The gradient norm (b,) that pixels aim at which are this share of the image."""
        return SHARE * math.sqrt(share) * self.target

    def _behind(self, closing: _Closing, missed: Tensor) -> list[int]:
        """Tiles that have more than their share of the gradient in an image that is not done."""
        levels = torch.stack([self._level(s) for s in self.share])
        late = (closing.of_tiles > levels)[:, missed].any(dim=1)
        return torch.nonzero(late).flatten().tolist() or list(range(len(self.tiles)))

    def _first(self, x: Tensor, index: int) -> None:
        """Solve a window as an image of its own, and keep the tile."""
        tile = self.tiles[index]
        box = solvable(tile, self.tiling.overlap, self.sides)
        part = self.window(*box)
        solved = self._descend(part, box.of(x).contiguous(), box)
        tile.of(x).copy_(tile.within(box).of(solved))

    def _again(self, x: Tensor, index: int) -> None:
        """Solve a window whose surroundings are as they are."""
        inner = solvable(self.tiles[index], self.tiling.overlap, self.sides)
        outer = inner.grown(self.reach, self.sides)
        around = outer.of(x).contiguous()
        part = _Framed(self.window(*outer), self.window(*inner), around, inner.within(outer))
        inner.of(x).copy_(self._descend(part, inner.of(x).contiguous(), inner))

    def _descend(self, part: Potential, x: Tensor, box: Box) -> Tensor:
        """Steps of the method until every image has its share, in the working precision."""
        unit = box.pixels / (self.sides[0] * self.sides[1])
        level = self._level(unit).to(x)
        found, index = x.clone(), torch.arange(x.shape[0], device=x.device)
        state: State = self.method.init(part, x)
        self.work += unit * state.cost.work
        lowest, waiting = state.evidence, 0
        for _ in range(self.max_steps):
            if self.stop() or waiting > NOISE_PATIENCE:
                break
            # a state of NaN is left where it was finite
            running = state.evidence > level[index]
            if not bool(running.all()):
                self._store(found, index, state, ~running)
                keep = torch.nonzero(running).flatten()
                if not keep.numel():
                    return found
                index, lowest = index[keep], lowest[keep]
                state, part = state.select(keep), part.select(keep)

            state = self.method.step(part, state)
            self.work += unit * state.cost.work
            self.steps[index] += 1
            better = state.evidence < PROGRESS * lowest
            waiting = 0 if bool(better.any()) else waiting + 1
            lowest = torch.minimum(lowest, state.evidence)
        self._store(found, index, state, torch.ones_like(index, dtype=torch.bool))
        return found

    def _store(self, found: Tensor, index: Tensor, state: State, ending: Tensor) -> None:
        """Keep the points of the images ``ending`` (a mask) that are finite."""
        chosen = torch.nonzero(ending & torch.isfinite(state.evidence)).flatten()
        found[index[chosen]] = state.point[chosen]

    def close(self, x: Tensor) -> _Closing:
        """The gradient in float64, window by window."""
        window, gradient = self.f.windows(double=True), self._gradient(x)
        squares, allowances = [], []
        for tile in self.tiles:
            box = tile.grown(self.reach, self.sides)
            part, near = window(*box), box.of(x).double()
            slope = domain_of(part).slope(near, part.grad(near))
            g = tile.within(box).of(slope).contiguous()
            tile.of(gradient).copy_(g)
            squares.append(norm(g).square())
            allowances.append(rounding_of(part, near).square())
        self.work += x.shape[0]
        of_tiles = torch.stack(squares)
        size = of_tiles.sum(dim=0).sqrt()
        evidence = size + torch.stack(allowances).sum(dim=0).sqrt()
        return _Closing(evidence, size, gradient, of_tiles.sqrt())

    def _gradient(self, x: Tensor) -> Tensor:
        """Room for a gradient, the same in every sweep."""
        if self._room is None:
            self._room = torch.empty_like(x)
        return self._room

    def _solution(self, x: Tensor, closing: _Closing, code: Status) -> Solution:
        constants = constants_of(self.f)
        status = tuple(
            Status.CONVERGED if ok else code for ok in (closing.evidence <= self.target).tolist()
        )
        return Solution(
            x,
            distance_from_gradient(closing.evidence, constants.mu),
            self.f.bounds().mu.kind,
            status,
            self.steps,
            Cost(gradients=math.ceil(self.work)),
            self.method.name,
            closing.size,
            closing.gradient,
        )


@dataclass(frozen=True, eq=False)
class _Framed:
    """A potential of the pixels inside a window, the others as they are.

    Attributes:
        outer: of the window, wider by the reach than what may move.
        inner: of what may move, as an image of its own: its averages are good enough.
        around: (b, c, ...), the window as it is.
        place: where in it the inside is.
    """

    outer: Potential
    inner: Potential
    around: Tensor
    place: Box

    @property
    def domain(self) -> Interval | None:
        """The bounds of what may move."""
        return bounds_of(self.inner)

    def _whole(self, z: Tensor) -> Tensor:
        x = self.around.clone()
        self.place.of(x).copy_(z)
        return x

    def value(self, z: Tensor) -> Tensor:
        return self.outer.value(self._whole(z))

    def grad(self, z: Tensor) -> Tensor:
        return self.place.of(self.outer.grad(self._whole(z))).contiguous()

    def linearize(self, z: Tensor) -> _FramedHessian:
        return _FramedHessian(self.outer.linearize(self._whole(z)), self.around, self.place)

    def bounds(self) -> Curvature:
        return self.outer.bounds()

    def mean_curvature(self, z: Tensor) -> MeanCurvature | None:
        return self.inner.mean_curvature(z) if offers(self.inner, Averaged) else None

    def select(self, index: Tensor) -> _Framed:
        return _Framed(
            self.outer.select(index), self.inner.select(index), self.around[index], self.place
        )

    def double(self) -> _Framed:
        return _Framed(self.outer.double(), self.inner.double(), self.around.double(), self.place)


@dataclass(frozen=True, eq=False)
class _FramedHessian:
    """The Hessian of ``_Framed``."""

    outer: Hessian
    like: Tensor
    place: Box

    def __call__(self, v: Tensor) -> Tensor:
        around = torch.zeros_like(self.like)
        self.place.of(around).copy_(v)
        return self.place.of(self.outer(around)).contiguous()

    def select(self, index: Tensor) -> _FramedHessian:
        return _FramedHessian(self.outer.select(index), self.like[index], self.place)
