"""Whether measurements look as if the physics had made them."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..core.errors import DataWarning
from .pairs import Pairs

if TYPE_CHECKING:
    from deepinv.physics import Physics

LARGE = 0.5
"""Relative distance of A x from y that noise alone seldom makes."""

SMALL = 0.05
"""Below this nothing is looked for: the pairs fit."""

MUCH = 0.5
"""A turn of the images must leave so much less to be named."""

LOOKED_AT = 16
"""So many pairs at most are looked at: each costs one application of A."""

STACKLEVEL = 3

_TURNS: dict[str, Callable[[Tensor], Tensor]] = {
    "flipped along the last axis": lambda x: x.flip(-1),
    "flipped along the last axis but one": lambda x: x.flip(-2),
    "turned by 180 degrees": lambda x: x.flip((-2, -1)),
    "transposed": lambda x: x.mT,
    "turned by 90 degrees": lambda x: x.mT.flip(-2),
    "turned by -90 degrees": lambda x: x.mT.flip(-1),
}


class _Misfit(NamedTuple):
    """||A x - y|| / ||y||, the s that minimizes ||s A x - y||, and what is left with it."""

    distance: float
    factor: float
    left: float


def check_plausible(pairs: Pairs, physics: Physics) -> None:
    """Warn if A x is far from y for most pairs, or for single ones, or if another turn of the
    images is much nearer.

    Args:
        physics: that of the pairs, which takes on the parameters of each.

    Warns:
        DataWarning: with the factor or the turn of the images that explains it, if one does.
    """
    places = torch.linspace(0, len(pairs) - 1, min(len(pairs), LOOKED_AT)).round().long().tolist()
    misfits = {i: _misfit(pairs[i], physics, lambda x: x) for i in places}
    typical = statistics.median(m.distance for m in misfits.values())
    found = (
        f"measurements: ||A x - y|| / ||y|| is {typical:.3g} (median of {len(misfits)} pairs), "
        "where noise alone would remain"
    )
    explained = _by_factor([*misfits.values()]) if typical > LARGE else ""
    if not explained and typical > SMALL:
        explained = _by_turn(pairs[places[0]], physics, misfits[places[0]])
    if not explained and typical > LARGE:
        explained = (
            "No factor or turn of the images explains it: another physics, pairs that do not "
            "belong together, or much noise?"
        )
    if explained:
        warnings.warn(f"{found}. {explained}", DataWarning, STACKLEVEL)
        return
    odd = [pairs.names[i] for i, m in misfits.items() if m.distance > max(LARGE, 3 * typical)]
    if odd:
        warnings.warn(
            f"{found}, but above {LARGE} for {', '.join(odd[:8])}. Check that these images and "
            "measurements belong together.",
            DataWarning,
            STACKLEVEL,
        )


def _by_factor(misfits: list[_Misfit]) -> str:
    """A sentence if one factor for all brings A x to y."""
    factors = sorted(m.factor for m in misfits)
    factor, left = statistics.median(factors), statistics.median(m.left for m in misfits)
    alike = all(abs(f - factor) <= 0.1 * abs(factor) for f in factors)
    if not factor or left > LARGE or not alike:
        return ""
    return (
        f"y is {factor:.4g} times A x, which leaves {left:.2g}. Another unit, or a physics with "
        f"another normalization? measurement_factor = {1 / factor:.4g} would make them fit."
    )


def _by_turn(first: Pairs, physics: Physics, there: _Misfit) -> str:
    """A sentence if a turn of the images brings A x much nearer to y."""
    others = {
        turn: _misfit(first, physics, turned)
        for turn, turned in _TURNS.items()
        if turned(first.x).shape == first.x.shape
    }
    turn = min(others, key=lambda name: others[name].left)
    best = others[turn]
    if best.left >= min(LARGE, MUCH * there.left):
        return ""
    scaled = f" and y = {best.factor:.3g} A x" if best.distance > LARGE else ""
    return (
        f"With the images {turn}{scaled} it is {best.left:.2g} in place of {there.left:.2g}: give "
        "the physics the orientation of the measurements, or turn the images."
    )


def _misfit(pair: Pairs, physics: Physics, turned: Callable[[Tensor], Tensor]) -> _Misfit:
    """How far one pair is from y = A x."""
    state = next(iter([*physics.parameters(), *physics.buffers()]), None)
    device = pair.x.device if state is None else state.device
    x = turned(pair.x).float() if not pair.x.is_complex() else turned(pair.x)
    params = {name: t.to(device) for name, t in pair.params.items()}
    with torch.no_grad():
        made = physics.A(x.to(device), **params)
    a, b = (_flat(t).to(torch.float64).cpu() for t in (made, pair.y))
    size, own = float(b.norm()), float(a.dot(a))
    factor = float(a.dot(b)) / own if own else 0.0
    if size == 0:
        return _Misfit(float(own > 0), factor, 0.0)
    return _Misfit(float((a - b).norm()) / size, factor, float((factor * a - b).norm()) / size)


def _flat(t: Tensor) -> Tensor:
    return (torch.view_as_real(t) if t.is_complex() else t).flatten()
