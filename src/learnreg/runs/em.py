"""Reconstructions of counts that learn nothing or a few numbers: MLEM, OSEM and BSREM of deepinv.

Expectation maximization (Shepp and Vardi, IEEE Trans. Med. Imaging 1, 1982) climbs the likelihood
of counts through non-negative images, and is stopped before it fits the noise. With ordered subsets
of views (Hudson and Larkin, 1994) every step costs a fraction of a projection. BSREM (De Pierro and
Fessler, 2001) adds a regularizer, here the relative difference prior (Nuyts et al., 2002). When to
stop and how much to regularize is chosen on training images.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor

from ..core.asking import offers
from ..core.errors import InputError
from ..core.ranges import check_integer, check_number
from ..physics.emission import EmissionTomography
from ..problems.bilevel import WithParams
from ..problems.counts import KL
from ..problems.per_image import with_tensors
from .baselines import Baseline, Pictures

STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0)
"""Weights of the prior that BSREM tries, per measurement of a pixel: times the mean of A^T 1."""

RELAXED = 0.1
"""Steps of BSREM in epoch k are 1 / (1 + RELAXED k), as they have to become small."""


SMALLEST = 1e-3
"""Of images to start from: expectation maximization never leaves zero."""


class Reconstruction(Protocol):
    """A method of deepinv, which has no types."""

    def __call__(self, y: object, physics: object) -> Tensor: ...


class Counted(LinearPhysics):
    """A x with a background, as deepinv's methods for counts ask for it: in units of A x.

    Args:
        physics: the operator.
        background: gain times the expected counts without an image, like measurements.
        part: entries of the last axis of the measurements that are looked at, all when None.
    """

    background: Tensor

    def __init__(
        self, physics: LinearPhysics, background: Tensor, part: Tensor | None = None
    ) -> None:
        super().__init__()
        self.whole, self.views, self.part = physics, background.shape[-1], part
        chosen = background if part is None else background[..., part]
        self.register_buffer("background", chosen)

    def A(self, x: Tensor, add_background: bool = False, **kwargs: object) -> Tensor:
        y: Tensor = self.whole.A(x)
        y = y if self.part is None else y[..., self.part]
        return y + self.background if add_background else y

    def A_adjoint(self, y: Tensor, **kwargs: object) -> Tensor:
        if self.part is not None:
            y = y.new_zeros(*y.shape[:-1], self.views).index_copy(-1, self.part.to(y.device), y)
        back: Tensor = self.whole.A_adjoint(y)
        return back


@dataclass(frozen=True, eq=False)
class _Scan:
    """Measurements as deepinv's methods want them: gain times counts, with the background apart."""

    x: Tensor
    y: Tensor
    physics: LinearPhysics
    background: Tensor

    @classmethod
    def of(cls, pairs: Pictures, fidelity: KL) -> _Scan:
        """Raises: InputError for measurements that are no counts."""
        params = dict(pairs.params) if offers(pairs, WithParams) else {}
        term = with_tensors(fidelity, {k: t for k, t in params.items() if k in fidelity.per_image})
        y = pairs.y
        if not isinstance(y, Tensor) or y.is_complex():
            raise InputError(
                "y",
                given=type(y).__name__,
                expected="counts in one real tensor",
                remedy="Leave this baseline out.",
            )
        counts, background, gain, _ = term.counted(y)
        physics = cast(LinearPhysics, pairs.physics)
        own = {k: t for k, t in params.items() if k not in fidelity.per_image}
        if own:
            physics = physics.clone()
            physics.update(**own)
        level = torch.as_tensor(background * gain, dtype=y.dtype, device=y.device)
        return cls(pairs.x, counts * gain, physics, level.expand_as(y))

    def _of_views(self, count: int) -> list[LinearPhysics] | None:
        """Operators of every ``count``-th view that cost no more than their share of a projection;
        None where there are none: then subsets cost whole projections.
        """
        from deepinv.physics import Tomography
        from deepinv.physics.functional.tomography_subsets import split_physics

        emission = self.physics if type(self.physics) is EmissionTomography else None
        rays = self.physics if emission is None else emission.inner
        if type(rays) is not Tomography or self.y.shape[-1] % count:
            return None
        parts: list[LinearPhysics] = list(split_physics(rays, count, device=self.y.device))
        if emission is None:
            return parts
        c = emission.attenuation
        shares = [c[..., k::count] if c.shape[-1] > 1 else c for k in range(count)]
        return [
            EmissionTomography(part, share, emission.filter)
            for part, share in zip(parts, shares, strict=True)
        ]

    def subsets(self, count: int) -> tuple[list[Tensor], list[Counted]]:
        """Every ``count``-th view, from the first, the second, ... on."""
        views = self.y.shape[-1]
        if count > views:
            raise InputError(
                "subsets", given=str(count), expected=f"at most {views}, the number of views"
            )
        parts = [torch.arange(first, views, count) for first in range(count)]
        y = [self.y[..., part] for part in parts]
        cheap = self._of_views(count) if count > 1 else None
        if cheap is None:
            return y, [Counted(self.physics, self.background, part) for part in parts]
        backgrounds = [self.background[..., part] for part in parts]
        return y, [Counted(p, r) for p, r in zip(cheap, backgrounds, strict=True)]

    def start(self) -> Tensor:
        """Images of one number each, with as many expected counts as were counted."""
        with torch.no_grad():
            seen = self.physics.A(torch.ones_like(self.x)).flatten(1).sum(dim=1)
        above = (self.y - self.background).flatten(1).sum(dim=1)
        level = (above / seen).clamp_min(SMALLEST)
        return level.view(-1, *[1] * (self.x.dim() - 1)) * torch.ones_like(self.x)

    def error(self, x: Tensor) -> float:
        """Mean squared error; infinite where an image is not finite."""
        found = float((x - self.x).double().square().mean())
        return found if math.isfinite(found) else math.inf


def mlem(
    train: Pictures, test: Pictures, fidelity: KL | None = None, *, epochs: int = 60
) -> Baseline:
    """Maximum-likelihood expectation maximization, stopped where it suits the training images best.

    Args:
        train, test: pairs of counts; nothing of ``test`` is used to choose where to stop. Their
            parameters per image are taken into account.
        fidelity: says background, gain and scale of the counts; ``KL()`` when None.
        epochs: the most that are tried; each costs A and A^T once.

    Raises:
        InputError: measurements that are no counts.

    Example:
        ``Report(..., baselines={"MLEM": mlem(train, test, lr.KL(5.0, 0.02))})``
    """
    return osem(train, test, fidelity, subsets=1, epochs=epochs)


def osem(
    train: Pictures,
    test: Pictures,
    fidelity: KL | None = None,
    *,
    subsets: int = 10,
    epochs: int = 20,
) -> Baseline:
    """``mlem`` with ordered subsets of views, the last axis of the measurements.

    Args:
        subsets: number of subsets; 1 is MLEM.
        train, test, fidelity, epochs: as for ``mlem``.

    Raises:
        InputError: measurements that are no counts, fewer views than subsets.
    """
    from deepinv.optim import OSEM

    check_integer("subsets", subsets, 1)
    check_integer("epochs", epochs, 1)
    term = KL() if fidelity is None else fidelity

    def epoch(start: Tensor, k: int) -> Reconstruction:
        made: Reconstruction = OSEM(num_subsets=subsets, max_iter=1, custom_init=_from(start))
        return made

    stop, _ = _best_epoch(_Scan.of(train, term), subsets, epochs, epoch)
    images = _run(_Scan.of(test, term), subsets, stop, epoch)
    name = "MLEM" if subsets == 1 else f"OSEM of {subsets} subsets"
    return Baseline.of(images, test.x, f"{name}, {stop} epochs, the best for the training images")


def bsrem(
    train: Pictures,
    test: Pictures,
    fidelity: KL | None = None,
    *,
    subsets: int = 10,
    epochs: int = 20,
    gamma: float = 2.0,
    strengths: tuple[float, ...] = STRENGTHS,
) -> Baseline:
    """BSREM with the relative difference prior, whose weight suits the training images best.

    Args:
        gamma: of the prior, >= 0: what it forgives edges.
        strengths: weights that are tried, relative to the mean of A^T 1.
        train, test, fidelity, subsets, epochs: as for ``osem``.

    Raises:
        InputError: as ``osem``, and strengths that are not positive.
    """
    from deepinv.optim import BSREM
    from deepinv.optim.prior import RDP

    check_integer("subsets", subsets, 1)
    check_integer("epochs", epochs, 1)
    check_number("gamma", gamma, lambda v: v >= 0, "a number >= 0")
    if not strengths or not all(s > 0 for s in strengths):
        raise InputError("strengths", given=str(strengths), expected="positive numbers")
    term = KL() if fidelity is None else fidelity
    scan = _Scan.of(train, term)
    with torch.no_grad():
        seen = float(scan.physics.A_adjoint(torch.ones_like(scan.y)).mean())

    def method(strength: float) -> Callable[[Tensor, int], Reconstruction]:
        def epoch(start: Tensor, k: int) -> Reconstruction:
            made: Reconstruction = BSREM(
                prior=RDP(gamma),
                lambda_reg=strength * seen,
                num_subsets=subsets,
                stepsize=1 / (1 + RELAXED * k),
                max_iter=1,
                custom_init=_from(start),
            )
            return made

        return epoch

    tried = {s: _best_epoch(scan, subsets, epochs, method(s)) for s in strengths}
    best = min(tried, key=lambda s: tried[s][1])
    images = _run(_Scan.of(test, term), subsets, tried[best][0], method(best))
    words = f"BSREM of {subsets} subsets with the relative difference prior of weight {best:g}"
    return Baseline.of(images, test.x, f"{words}, the best for the training images")


def _from(start: Tensor) -> Callable[[object, object], Tensor]:
    return lambda y, physics: start


def _epochs(
    scan: _Scan, subsets: int, count: int, method: Callable[[Tensor, int], Reconstruction]
) -> list[Tensor]:
    """The images after every epoch, from a constant on."""
    from deepinv.physics import StackedLinearPhysics
    from deepinv.utils import TensorList

    parts, physics = scan.subsets(subsets)
    y, stacked = TensorList(parts), StackedLinearPhysics(physics)
    images = [scan.start()]
    with torch.no_grad():
        for k in range(count):
            images.append(method(images[-1], k)(y, stacked))
    return images


def _run(
    scan: _Scan, subsets: int, count: int, method: Callable[[Tensor, int], Reconstruction]
) -> Tensor:
    return _epochs(scan, subsets, count, method)[-1]


def _best_epoch(
    scan: _Scan, subsets: int, count: int, method: Callable[[Tensor, int], Reconstruction]
) -> tuple[int, float]:
    """The epoch whose images have the least mean squared error, and that."""
    errors = [scan.error(x) for x in _epochs(scan, subsets, count, method)]
    best = min(range(1, count + 1), key=errors.__getitem__)
    return best, errors[best]
