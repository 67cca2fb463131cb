"""Hypergradients: implicit differentiation with error bounds, and a differentiable reconstruction layer.

``Reconstructor`` is imported from ``.layer`` on demand, because deepinv is slow to import.
"""

from .evaluate import hypergradient
from .implicit import Implicit

__all__ = ["Implicit", "hypergradient"]
