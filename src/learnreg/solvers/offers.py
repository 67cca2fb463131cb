"""What a potential or a saddle function may offer besides what it must: each saves work or sharpens
a number, and none is needed. What regularizers offer as well is in ``core.offers``.

One member each, so that asking costs next to nothing: ``offers(f, Started)``.
"""

from __future__ import annotations

from typing import Literal, Protocol

from torch import Tensor

from ..core.cost import Cost
from ..core.protocols import Blocks


class Certifying(Protocol):
    """Certifies its own points: what tells a saddle function from a potential."""

    def certify(self, z: Tensor) -> object: ...


# --- at the front door ----------------------------------------------------------------------------


class Started(Protocol):
    """Knows a good start: saves the A^T y that the energy would need for it."""

    def first(self) -> Tensor: ...


class Backprojected(Protocol):
    """Keeps A^T y: the shape and type of images, without another A^T y."""

    @property
    def back(self) -> Tensor: ...


class Billed(Protocol):
    """Says what tying it to its data has cost: the bill of a solve is complete."""

    @property
    def spent(self) -> Cost: ...


class ImageLayout(Protocol):
    """Real images as what the physics calls images, complex ones for example."""

    def image_out(self, x: Tensor) -> Tensor: ...


class LaidOut(Protocol):
    """An operator that knows its layout."""

    @property
    def layout(self) -> ImageLayout: ...


class Operated(Protocol):
    """Names its operator: solutions come back in the layout of the physics."""

    @property
    def operator(self) -> LaidOut: ...


# --- on accuracy ----------------------------------------------------------------------------------


class Noisy(Protocol):
    """Rounding of a gradient over machine epsilon times ||x||: float64 is used where it pays."""

    def noise(self) -> float: ...


class Rounded(Protocol):
    """Bounds what rounding makes of a gradient norm at x, (b,): certificates pay no more."""

    def rounding(self, x: Tensor) -> Tensor: ...


class Constrained(Protocol):
    """Says that iterates never reach its domain: refused at the start, not after many steps."""

    @property
    def constrained(self) -> bool: ...


class Measuring(Protocol):
    """Its certificate bounds something else than a distance: solutions name it."""

    @property
    def measure(self) -> Literal["distance", "residual", "stationarity"]: ...


class Bounded(Protocol):
    """Of a method: its points keep to the bounds that ``core.constraints.domain_of`` tells, to the
    last bit, and its evidence is the norm of the projected gradient.
    """

    @property
    def bounded(self) -> bool: ...


# --- on speed -------------------------------------------------------------------------------------


class Priced(Protocol):
    """What a gradient costs, in operations on one vector of pixels: ``auto`` chooses better."""

    def effort(self) -> float: ...


class Majorized(Protocol):
    """Symbols of circulants >= K_ju^T K_ju, None where not worth it: steps in a metric."""

    def majorants(self) -> tuple[Tensor, ...] | None: ...


class Halved(Protocol):
    """The gap in two parts (b,), of x and of p: step sizes balance them."""

    def halves(self, x: Blocks, p: Blocks, kx: Blocks, ktp: Blocks) -> tuple[Tensor, Tensor]: ...
