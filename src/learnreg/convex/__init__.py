"""Convex functions of one block: proximal maps, conjugates, duality gaps, derivatives and proven
constants.
"""

from .base import Convex, Step
from .boxed import Boxed
from .epigraph import Epigraph
from .functions import Box, Squares, Zero
from .hinge import Hinge
from .norms import Norm
from .poisson import KullbackLeibler
from .ridged import Ridged, ridged
from .smooth import SmoothNorm
from .tangent import Diagonal, Radial, Tangent

__all__ = [
    "Convex",
    "Step",
    "Tangent",
    "Diagonal",
    "Radial",
    "Zero",
    "Squares",
    "Norm",
    "SmoothNorm",
    "Hinge",
    "Box",
    "Boxed",
    "KullbackLeibler",
    "Ridged",
    "ridged",
    "Epigraph",
]
