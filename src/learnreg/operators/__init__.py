"""Linear maps: the door to deepinv physics, differences, filter banks, checks."""

from .checks import dot_test, taylor_test
from .physics import LinearMap

__all__ = ["LinearMap", "dot_test", "taylor_test"]
