"""Numbers, names and sentences as the pages print them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..core import StopReason


def show(value: object, digits: int | None = None) -> str:
    """A value as it is printed; None, NaN and Inf are "not known".

    >>> show(12345.678, 1), show(None), show(1e-05), show(True)
    ('12,345.7', 'not known', '1e-05', 'yes')
    """
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "not known"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float) and digits is not None:
        return f"{value:,.{digits}f}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def sentence(text: str) -> str:
    """``text`` with a full stop at its end."""
    text = text.strip()
    return text if text.endswith((".", "!", "?")) else f"{text}."


def reason(stop: StopReason) -> str:
    """Why a run ended, as a sentence of its own."""
    text = sentence(stop.sentence)
    return text[:1].upper() + text[1:]


_EVIDENCE = {
    "gap": "the primal-dual gap",
    "residual": "the optimality condition at the picture, with the dual variable that belongs to "
    "it",
    "kkt": "the residuals of the optimality system",
}


def evidence(theorems: Sequence[str]) -> str:
    """What certified distances of images follow from, by the names in ``Solution.theorem``; of a
    minimizer if none.

    >>> evidence(())
    'the final gradient and a proven lower bound of the curvature'
    >>> evidence(["gap", "kkt", "gap"])
    'strong convexity and the primal-dual gap (2 images) or the residuals of the optimality system
    (1 image)'
    """
    counts = {name: list(theorems).count(name) for name in _EVIDENCE if name in theorems}
    if not counts:
        return "the final gradient and a proven lower bound of the curvature"
    parts = [
        _EVIDENCE[name] + (f" ({n} image{'' if n == 1 else 's'})" if len(counts) > 1 else "")
        for name, n in counts.items()
    ]
    return f"strong convexity and {' or '.join(parts)}"
