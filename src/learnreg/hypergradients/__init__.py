"""Hypergradients: implicit, truncated and unrolled differentiation, and a differentiable reconstruction layer.

``Reconstructor`` is imported from ``.layer`` on demand, because deepinv is slow to import.
"""

from .evaluate import hypergradient
from .implicit import Implicit
from .jacobian_free import JacobianFree
from .unrolled import Unrolled

__all__ = ["Implicit", "JacobianFree", "Unrolled", "hypergradient"]
