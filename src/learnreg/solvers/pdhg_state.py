"""What primal-dual hybrid gradient knows between two steps."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from ..core.cost import Cost
from ..core.protocols import Blocks, SplitSaddle
from .metric import Metric, Point


@dataclass(frozen=True)
class Steps:
    """Block steps: tau_i = t primal[i], sigma_j = dual[j] / t, with ||S^(1/2) K T^(1/2)|| <= 1.

    Attributes:
        primal, dual: T and S.
        t: the first t.
        theta: constant extrapolation.
        gamma: min_i mu_i T_i, the strong convexity of g in the metric of T.
        weak: whether gamma was too small to go by, and is zero here.
    """

    primal: tuple[float, ...]
    dual: tuple[float, ...]
    t: float = 1.0
    theta: float = 1.0
    gamma: float = 0.0
    weak: bool = False


@dataclass
class PDHGState:
    """x, p with K x + b, K^T p and the K x + b before; the rest steers the step sizes, per image.

    Attributes:
        anchor: where the moves are counted from: x and p, with a ``metric`` p and K x + b.
        metric: in the place of t and ``steps``, if the image is stepped in one.
        relaxed: with a ``metric`` or a weak gamma, where the next iteration begins; that is not x,
            p, and need not be feasible.
        fresh: whether f makes new tensors of K x + b, that may be written over when they are of no
            more use.
    """

    f: SplitSaddle
    steps: Steps
    x: Blocks
    p: Blocks
    kx: Blocks
    before: Blocks
    ktp: Blocks
    t: Tensor
    theta: Tensor
    accelerating: Tensor
    anchor: tuple[Blocks, Blocks]
    since: int
    window: int
    evidence: Tensor
    cost: Cost
    metric: Metric | None = None
    relaxed: Point | None = None
    fresh: bool = False

    @property
    def point(self) -> Tensor:
        """All variables and t as (b, n): a start from here goes on at the same pace."""
        return self.f.pack(self.x, self.p, self.t if self.metric is None else None)

    def select(self, index: Tensor) -> PDHGState:
        """The images at positions ``index``."""

        def chosen(blocks: Blocks) -> Blocks:
            return tuple(b[index] for b in blocks)

        return replace(
            self,
            f=self.f.select(index),
            x=chosen(self.x),
            p=chosen(self.p),
            kx=chosen(self.kx),
            before=chosen(self.before),
            ktp=chosen(self.ktp),
            t=self.t[index],
            theta=self.theta[index],
            accelerating=self.accelerating[index],
            anchor=(chosen(self.anchor[0]), chosen(self.anchor[1])),
            evidence=self.evidence[index],
            metric=None if self.metric is None else self.metric.select(index),
            relaxed=None if self.relaxed is None else self.relaxed.select(index),
        )
