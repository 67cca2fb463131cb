"""Names as parts of files and addresses."""

from __future__ import annotations

import re


def slug(name: str) -> str:
    """A name as part of a file name.

    >>> slug("Adam, 3 settings")
    'adam-3-settings'
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "method"
