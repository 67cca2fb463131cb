"""Names as parts of files and addresses, and names of what was put together."""

from __future__ import annotations

import re

from torch import nn


def slug(name: str) -> str:
    """A name as part of a file name.

    >>> slug("Adam, 3 settings")
    'adam-3-settings'
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "method"


def named(part: object) -> str:
    """A regularizer by its class; sums by their terms, scalings by what they scale.

    >>> from learnreg.regularizers import TV, Tikhonov
    >>> named(0.5 * TV() + Tikhonov())
    'TV + Tikhonov'
    """
    inside = dict(part.named_children()) if isinstance(part, nn.Module) else {}
    if "regularizer" in inside:
        return named(inside["regularizer"])
    terms = inside.get("terms")
    if isinstance(terms, nn.ModuleList) and len(terms):
        return " + ".join(named(term) for term in terms)
    return type(part).__name__
