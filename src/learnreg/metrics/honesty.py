"""Honesty of a certificate: true error / certified error, at most 1 if the certificate tells the
truth.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.errors import InputError


@dataclass(frozen=True, repr=False)
class Honesty:
    """How the certified errors of some images compare with their true errors.

    Args:
        ratios: true error / certified error, one per image: at most 1 for an honest certificate,
            close to 1 for a sharp one. 0/0 counts as 1 (attained); a positive error certified as 0
            gives inf.
        tolerance: a ratio up to ``1 + tolerance`` counts as honest, since both errors are rounded.
    """

    ratios: tuple[float, ...]
    tolerance: float

    @property
    def worst(self) -> float:
        """The largest ratio."""
        return max(self.ratios)

    @property
    def median(self) -> float:
        """The median ratio."""
        return statistics.median(self.ratios)

    @property
    def violations(self) -> tuple[int, ...]:
        """The images whose true error exceeds the certified one, by their place in the batch."""
        return tuple(i for i, ratio in enumerate(self.ratios) if ratio > 1 + self.tolerance)

    @property
    def violated(self) -> bool:
        """Whether any certificate was wrong."""
        return bool(self.violations)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and lists, ready for JSON."""
        return {
            "ratios": list(self.ratios),
            "worst": self.worst,
            "median": self.median,
            "violated": self.violated,
            "violations": list(self.violations),
            "tolerance": self.tolerance,
        }

    def __repr__(self) -> str:
        n = len(self.ratios)
        numbers = (
            f"true / certified error of {n} image(s): "
            f"worst {self.worst:.3g}, median {self.median:.3g}"
        )
        if self.violated:
            wrong = self.violations
            which = ", ".join(map(str, wrong[:5])) + (", ..." if len(wrong) > 5 else "")
            return (
                f"Honesty({numbers}; "
                f"the certificate is WRONG for {len(wrong)} of them: image {which})"
            )
        return f"Honesty({numbers}; every certificate holds)"


def honesty(
    true_error: Tensor | Sequence[float],
    certified_error: Tensor | Sequence[float],
    *,
    tolerance: float = 1e-6,
) -> Honesty:
    """Compare true errors with certified ones, image by image.

    Args:
        true_error: distances to the truth (b,), finite and >= 0.
        certified_error: what was certified (b,), >= 0; inf is allowed (a certificate that says
            nothing).
        tolerance: relative excess that is put down to rounding, >= 0; a ratio above
            ``1 + tolerance`` is a violation.

    Raises:
        InputError: no values, different lengths, negative or NaN errors, an infinite true error, a
            bad tolerance.
    """
    if not (0 <= tolerance < math.inf):
        raise InputError(
            "tolerance",
            given=tolerance,
            expected="a finite number >= 0",
            remedy="Rounding alone stays below 1e-6.",
        )
    true, certified = _values(true_error, "true_error"), _values(certified_error, "certified_error")
    if len(true) != len(certified):
        raise InputError(
            "certified_error",
            given=f"{len(certified)} values",
            expected=f"{len(true)}, as in true_error",
            remedy="Pass one true and one certified error per image.",
        )
    if math.inf in true:
        raise InputError(
            "true_error",
            given="an infinite value",
            expected="finite errors",
            remedy="Look for a diverged solve.",
        )
    return Honesty(
        tuple(_ratio(t, c) for t, c in zip(true, certified, strict=True)), float(tolerance)
    )


def _ratio(true: float, certified: float) -> float:
    if certified == 0:
        return 1.0 if true == 0 else math.inf
    return true / certified


def _values(errors: Tensor | Sequence[float], what: str) -> list[float]:
    values = torch.as_tensor(errors, dtype=torch.float64).detach().flatten().tolist()
    if not values or any(math.isnan(v) or v < 0 for v in values):
        given = "no values" if not values else f"the values {values[:5]}"
        raise InputError(
            what,
            given=given,
            expected="one number >= 0 per image",
            remedy="Errors are distances: norms, not differences.",
        )
    return values
