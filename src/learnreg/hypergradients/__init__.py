"""Hypergradients: implicit, truncated, unrolled and piggyback differentiation, and a differentiable
layer.

``Reconstructor`` is imported from ``.layer`` on demand, because deepinv is slow to import.
"""

from .evaluate import hypergradient
from .implicit import Implicit
from .jacobian_free import JacobianFree
from .piggyback import JointPiggyback, Piggyback
from .unrolled import Unrolled

__all__ = ["Implicit", "JacobianFree", "JointPiggyback", "Piggyback", "Unrolled", "hypergradient"]
