"""The Kullback-Leibler distance to counts: the data term of Poisson noise."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.batch import expand
from ..core.errors import InputError
from ..core.ranges import check_number, check_positive
from .base import Convex, Step, beyond, matched, peak, refuse, slack, total
from .functions import checked_data
from .tangent import Diagonal, pick


class KullbackLeibler(Convex):
    """phi(a) = sum w (a + r - y + y log(y / (a + r))) for a + r > 0 (>= 0 where y = 0), with data
    y, background r and weights w.

    phi*(s) = -sum r s + w y log(1 - s / w) for s < w (<= w where y = 0). Neither the gradient of
    phi nor that of phi* is Lipschitz, so no constant is offered; derivatives hold in the interior
    of the domain.

    Args:
        data: y >= 0, (b or 1, ...).
        background: r >= 0, a number or a tensor (b or 1, ...).
        weight: w > 0, a number or a tensor (b or 1, ...).

    Raises:
        InputError: negative, not finite or of the wrong type.
    """

    separable = True
    smoothing = (
        "Its curvature is unbounded: use the proximal map, or a data term with bounded curvature "
        "(Squares)."
    )

    def __init__(
        self,
        data: Tensor,
        background: float | Tensor = 0.0,
        weight: float | Tensor = 1.0,
    ) -> None:
        checked_data("data", data)
        if not isinstance(data, Tensor) or bool((data < 0).any()):
            raise InputError(
                "data",
                given="None or a negative entry",
                expected="counts >= 0",
                remedy="Clamp the data at zero with data.clamp_min(0).",
            )
        if isinstance(background, Tensor):
            checked_data("background", background)
            if bool((background < 0).any()):
                raise InputError(
                    "background",
                    given="a negative entry",
                    expected="numbers >= 0",
                    remedy="Clamp the background at zero.",
                )
        else:
            check_number("background", background, lambda v: v >= 0, "a finite number >= 0")
        if isinstance(weight, Tensor):
            checked_data("weight", weight)
            if bool((weight <= 0).any()):
                raise InputError(
                    "weight", given="zero or a negative entry", expected="positive numbers"
                )
        else:
            check_positive("weight", weight)
        self.data, self.background, self.weight = data, background, weight

    def _intensity(self, a: Tensor) -> Tensor:
        """a + r, at least zero."""
        return (a + self.background).clamp_min_(0)

    def _a_outside(self, a: Tensor) -> Tensor:
        return beyond(peak((a + self.background).neg_() - slack(a) * a.abs()), 0.0)

    def _s_outside(self, s: Tensor) -> Tensor:
        return beyond(peak(s / self.weight), 1 + slack(s))

    def value(self, a: Tensor) -> Tensor:
        local = self._distance(self._intensity(a)) * self.weight
        return refuse(total(local), self._a_outside(a))

    def conjugate(self, s: Tensor) -> Tensor:
        inside = -(s / self.weight).clamp_max(1)
        local = torch.special.xlog1py(self.data, inside) * self.weight + self.background * s
        return refuse(-total(local), self._s_outside(s))

    def _distance(self, mean: Tensor) -> Tensor:
        """mean - y + y log(y / mean) per entry; log1p near mean = y, where it is of second
        order.
        """
        excess = mean - self.data
        base = self.data.clamp_min(torch.finfo(mean.dtype).tiny)
        relative = excess / base
        log = torch.where(relative.abs() < 0.5, relative.log1p(), (mean / base).log())
        return (excess - torch.where(self.data > 0, self.data * log, 0.0)).clamp_min_(0)

    def gap(self, a: Tensor, s: Tensor) -> Tensor:
        """w times the distance of (a + r)(1 - s / w) to y."""
        mean = self._intensity(a) * (1 - s / self.weight).clamp_min_(0)
        local = self._distance(mean) * self.weight
        return refuse(total(local), self._a_outside(a) | self._s_outside(s))

    def prox(self, a: Tensor, step: Step) -> Tensor:
        step = matched(step, a) * self.weight
        return _positive_root(a + self.background - step, step * self.data).sub_(self.background)

    def prox_conjugate(self, s: Tensor, step: Step) -> Tensor:
        step, w = matched(step, s), self.weight
        return w - _positive_root(w - s - step * self.background, step * self.data * w)

    def prox_tangent(self, a: Tensor, step: Step) -> Diagonal:
        """m / (2 m - b) for the root m of m^2 - b m = step y; along y = 0 the step function of
        b.
        """
        step = matched(step, a) * self.weight
        b, product = a + self.background - step, step * self.data
        root = torch.sqrt(b * b + 4 * product).clamp_min_(torch.finfo(a.dtype).tiny)
        return Diagonal(_positive_root(b, product).div_(root))

    def grad(self, a: Tensor) -> Tensor:
        return (1 - self.data / self._interior(a + self.background)) * self.weight

    def floor(self) -> float | Tensor:
        return -self.background

    def hessian(self, a: Tensor) -> Diagonal:
        return Diagonal(self._curvature(a + self.background) * self.weight)

    def conjugate_grad(self, s: Tensor) -> Tensor:
        return self.data / self._interior(1 - s / self.weight) - self.background

    def conjugate_hessian(self, s: Tensor) -> Diagonal:
        return Diagonal(self._curvature(1 - s / self.weight) / self.weight)

    def _curvature(self, m: Tensor) -> Tensor:
        """y / m^2."""
        m = self._interior(m)
        return self.data / m / m

    @staticmethod
    def _interior(m: Tensor) -> Tensor:
        return m.clamp_min(torch.finfo(m.dtype).tiny)

    def gauge(self, s: Tensor) -> Tensor:
        """A hair above the largest s / w, because the domain is open where y > 0."""
        return (peak(s / self.weight) * (1 + slack(s))).clamp_min_(1)

    def change(self, a: Tensor, radius: Tensor) -> Tensor:
        """w (y / (m - radius)^2 - y / m^2), m = a + r: towards zero the curvature changes most."""
        m = a + self.background
        return (self._curvature(m - expand(radius, a)) - self._curvature(m)) * self.weight

    def growth(self, a: Tensor, s: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
        """Curvature where y > 0, and steepness at the border where y = 0.

        For a weight of one, and of s / w as many times as much for w.
        y > 0: with u = a + r and t = (z - a) / u the first bracket is y [log(1 + t) - t / (1 + t)],
        that is (z - a)^2 int_0^1 tau y / (u + tau (z - a))^2 dtau, whose integral falls with z: it
        is smallest at z = a + radius. y = 0: phi is a + r for a >= -r, and the second bracket
        (1 - s)(z + r); with the same of a as allowance their sum is at least (1 - s)|z - a|, and
        within the radius that is (1 - s) (z - a)^2 / radius.
        """
        weight = self.weight.double() if isinstance(self.weight, Tensor) else self.weight
        a, s, y = a.double(), s.double() / weight, self.data.double()
        u, reach = self._intensity(a), expand(radius, a)
        t = reach / u
        # below 1e-4 cancellation is worse than the series, whose terms alternate and fall
        k = torch.where(t < 1e-4, 1 - 4 / 3 * t, 2 * (torch.log1p(t) - t / (1 + t)) / t.square())
        steep = torch.where(y > 0, 0.0, (1 - s).clamp_min(0)).expand_as(a)
        m = torch.where(y > 0, y / u.square() * k, 2 * steep / reach)
        return weight * m, total(weight * steep * u)

    def select(self, index: Tensor) -> KullbackLeibler:
        def chosen(t: float | Tensor) -> float | Tensor:
            return pick(t, index) if isinstance(t, Tensor) else t

        data = pick(self.data, index)
        return KullbackLeibler(data, chosen(self.background), chosen(self.weight))

    def double(self) -> KullbackLeibler:
        def wide(t: float | Tensor) -> float | Tensor:
            return t.double() if isinstance(t, Tensor) else t

        return KullbackLeibler(self.data.double(), wide(self.background), wide(self.weight))


def _positive_root(b: Tensor, product: Tensor) -> Tensor:
    """The root w >= 0 of w^2 - b w = product >= 0: max(b, 0) + product / m with m = (|b| + sqrt(b^2
    + 4 product)) / 2.

    Both signs of b share this form, and no large numbers are subtracted.
    """
    m = (
        torch.sqrt(b * b + 4 * product)
        .add_(b.abs())
        .mul_(0.5)
        .clamp_min_(torch.finfo(b.dtype).tiny)
    )
    return (product / m).add_(b.clamp_min(0))
