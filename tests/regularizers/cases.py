"""Small regularizers at non-trivial theta, their plain formulas, and energies with brute-force
truths.

A new regularizer adds one line to ``CASES`` (and, better, its formula to ``PLAIN``) and inherits
every contract test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import deepinv
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from learnreg.problems import BilevelProblem, Energy
from learnreg.regularizers import TV, BlackBox, FoE, HuberTV, Regularizer, Scaled, Sum, Tikhonov


@dataclass(frozen=True)
class Case:
    """``make()`` gives a fresh regularizer in float64, ``shape`` (c, h, w) is that of its images,
    ``certified`` tells whether it bounds the change of its derivatives, ``bounded`` whether its
    curvature, and whether averages are offered."""

    name: str
    make: Callable[[], Regularizer]
    shape: tuple[int, int, int] = (1, 6, 5)
    certified: bool = True
    bounded: bool = True

    @property
    def pixels(self) -> int:
        c, h, w = self.shape
        return c * h * w

    def images(self, seed: int = 0) -> Tensor:
        """(7, c, h, w): what a bound must survive. Flat images make curvature maximal, faint ones
        its change.
        """
        g = torch.Generator().manual_seed(seed)
        noise = torch.randn(7, *self.shape, generator=g, dtype=torch.float64)
        spike = torch.zeros(self.shape, dtype=torch.float64)
        spike[..., 0, 2] = 1
        return torch.stack(
            [
                torch.rand(self.shape, generator=g, dtype=torch.float64),
                torch.zeros_like(spike),
                torch.full_like(spike, 0.7),
                spike,
                0.5 + 0.03 * noise[4],
                0.2 * noise[5],
                noise[6],
            ]
        )


def perturbed(regularizer: Regularizer, seed: int = 0, scale: float = 0.2) -> Regularizer:
    """The regularizer in float64 with noise on every parameter, so that no symmetry of the start
    survives.
    """
    regularizer = regularizer.double()
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in regularizer.parameters():
            p.add_(scale * torch.randn(p.shape, generator=g, dtype=p.dtype))
    return regularizer


def tv(isotropic: bool, weight: float = 0.3, smoothing: float = 0.2) -> Regularizer:
    return perturbed(TV(weight, smoothing, isotropic=isotropic))


def foe(**arguments: object) -> Regularizer:
    return perturbed(FoE(**{"filters": 3, "size": 3, "weight": 0.3, "smoothing": 0.2, **arguments}))


def smooth_net(seed: int = 0) -> nn.Module:
    """Images of any size with one channel -> one value each; smooth, not convex."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SmoothNet()


class SmoothNet(nn.Module):
    """sum of softplus(C_2 tanh(C_1 x)) and of squares."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 3, 3, padding=1)
        self.second = nn.Conv2d(3, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        maps = F.softplus(self.second(torch.tanh(self.first(x))))
        return maps.flatten(1).sum(dim=1) + 0.05 * x.square().flatten(1).sum(dim=1)


def _plain_net(r: BlackBox, x: Tensor) -> Tensor:
    net = r.module
    maps = F.conv2d(x, net.first.weight, net.first.bias, padding=1).tanh()
    maps = F.softplus(F.conv2d(maps, net.second.weight, net.second.bias, padding=1))
    return maps.sum(dim=(1, 2, 3)) + 0.05 * (x * x).sum(dim=(1, 2, 3))


CASES = (
    Case("tikhonov", lambda: perturbed(Tikhonov(0.3))),
    Case("tikhonov_fixed", lambda: perturbed(Tikhonov(0.3, learned=False))),
    Case("tv", lambda: tv(True)),
    Case("tv_two_channels", lambda: tv(True), (2, 4, 4)),
    Case("tv_one_row", lambda: tv(True), (1, 1, 7)),
    Case("tv_anisotropic", lambda: tv(False)),
    Case("tv_joint", lambda: perturbed(TV(0.3, 0.2, channels="joint")), (2, 4, 4)),
    Case("tv_joint_anisotropic", lambda: perturbed(TV(0.3, 0.2, False, "joint")), (3, 3, 4)),
    Case("tv_sharp", lambda: tv(False, smoothing=0.01)),
    Case("huber_tv", lambda: perturbed(HuberTV(0.3, 0.2)), certified=False),
    Case(
        "huber_tv_joint",
        lambda: perturbed(HuberTV(0.3, 0.2, channels="joint")),
        (2, 4, 4),
        certified=False,
    ),
    Case("foe", lambda: foe()),
    Case("foe_zero_padding_free_mean", lambda: foe(init="random", padding="zero", zero_mean=False)),
    Case("foe_reflect_free_mean", lambda: foe(init="random", zero_mean=False)),
    Case("foe_as_large_as_the_image", lambda: foe(filters=2, size=5, init="random"), (1, 5, 5)),
    Case("foe_two_channels", lambda: foe(filters=2, channels=2), (2, 5, 4)),
    Case("foe_floor", lambda: foe(least_smoothing=0.15)),
    Case("foe_in_grey_levels", lambda: foe(filters=2, smoothing=5.0, least_smoothing=1.5)),
    # pointwise: the norm bounds are attained, so that a certificate too small has nowhere to hide
    Case(
        "foe_pointwise",
        lambda: foe(filters=1, size=1, init="random", padding="zero", zero_mean=False),
        (1, 2, 3),
    ),
    Case("foe_sharp", lambda: foe(filters=2, smoothing=0.02, seed=1)),
    Case("sum", lambda: tv(True) + foe() + Tikhonov(0.1).double()),
    Case("scaled", lambda: 0.4 * tv(False)),
    Case(
        "sum_of_scaled",
        lambda: 2.0 * foe(filters=2, init="random") + 0.5 * (tv(True) + Tikhonov(0.2).double()),
    ),
    Case("scaled_by_zero", lambda: 0 * tv(True)),
    Case("black_box", lambda: perturbed(BlackBox(smooth_net())), certified=False, bounded=False),
)


def _differences(x: Tensor) -> tuple[Tensor, Tensor]:
    """Forward differences, 0 where the neighbour is missing."""
    return (
        F.pad(x[..., 1:, :] - x[..., :-1, :], (0, 0, 0, 1)),
        F.pad(x[..., :, 1:] - x[..., :, :-1], (0, 1, 0, 0)),
    )


def _plain_tv(r: TV, x: Tensor) -> Tensor:
    w, nu = r.log_weight.exp(), r.log_smoothing.exp()
    rows, columns = _differences(x)
    sizes = [rows**2 + columns**2] if r.isotropic else [rows**2, columns**2]
    if r.channels == "joint":
        sizes = [s.sum(dim=1, keepdim=True) for s in sizes]
    return w * sum((torch.sqrt(s + nu**2) - nu).sum(dim=(1, 2, 3)) for s in sizes)


def _plain_huber(r: HuberTV, x: Tensor) -> Tensor:
    w, nu = r.log_weight.exp(), r.log_smoothing.exp()
    rows, columns = _differences(x)
    square = rows**2 + columns**2
    square = square.sum(dim=1, keepdim=True) if r.channels == "joint" else square
    beyond = square > nu**2
    size = torch.sqrt(torch.where(beyond, square, torch.ones_like(square)))
    return w * torch.where(beyond, size - nu / 2, square / (2 * nu)).sum(dim=(1, 2, 3))


def _plain_foe(r: FoE, x: Tensor) -> Tensor:
    c = r.kernels - r.kernels.mean(dim=(2, 3), keepdim=True) if r.zero_mean else r.kernels
    margin = c.shape[-1] // 2
    padded = F.pad(x, [margin] * 4, mode="reflect" if r.padding == "reflect" else "constant")
    nu = (r.least_smoothing + r.log_smoothings.exp())[:, None, None]
    potentials = (torch.sqrt(F.conv2d(padded, c) ** 2 + nu**2) - nu).sum(dim=(2, 3))
    return potentials @ (r.log_scale + r.log_weights).exp()


PLAIN: dict[type, Callable] = {
    Tikhonov: lambda r, x: 0.5 * r.log_weight.exp() * (x * x).sum(dim=(1, 2, 3)),
    TV: _plain_tv,
    HuberTV: _plain_huber,
    FoE: _plain_foe,
    BlackBox: _plain_net,
    Sum: lambda r, x: sum(plain(term, x) for term in r.terms),
    Scaled: lambda r, x: r.factor * plain(r.regularizer, x),
}


def plain(regularizer: Regularizer, x: Tensor) -> Tensor:
    """R(x) as its docstring writes it, (b,), differentiable in x and theta any number of times."""
    return PLAIN[type(regularizer)](regularizer, x)


# --- energies and problems ------------------------------------------------------------------------


def denoising(regularizer: Regularizer) -> Energy:
    return Energy(deepinv.physics.Denoising(deepinv.physics.GaussianNoise(0.1)), regularizer)


ENERGIES: dict[str, Callable[[], Energy]] = {
    "tv": lambda: denoising(tv(True, 0.1, 0.05)),
    "tv_sharp": lambda: denoising(tv(False, 0.1, 0.003)),
    "foe": lambda: denoising(foe(weight=0.1, smoothing=0.05)),
    "foe_zero_padding": lambda: denoising(
        foe(padding="zero", zero_mean=False, init="random", weight=0.05)
    ),
    "sum": lambda: denoising(tv(True, 0.1, 0.1) + foe(filters=2, weight=0.05)),
}


class Pairs(SimpleNamespace):
    """Ground truth x and measurements y."""

    def __len__(self) -> int:
        return self.x.shape[0]


def pairs(count: int = 3, size: tuple[int, int] = (5, 6), seed: int = 0) -> Pairs:
    """Piecewise smooth pictures with noise 0.1: (count, 1, h, w), float64."""
    g = torch.Generator().manual_seed(seed)
    h, w = size
    rows, columns = (
        torch.linspace(0, 1, h)[:, None].double(),
        torch.linspace(0, 1, w)[None, :].double(),
    )
    a = torch.rand(count, 3, 1, 1, generator=g, dtype=torch.float64)
    x = (0.5 * (a[:, 0] * rows + a[:, 1] * columns) + 0.4 * (columns > a[:, 2])).unsqueeze(1)
    return Pairs(x=x, y=x + 0.1 * torch.randn(x.shape, generator=g, dtype=torch.float64))


def problem(
    energy: Energy, count: int = 3, size: tuple[int, int] = (5, 6), seed: int = 0
) -> BilevelProblem:
    return BilevelProblem(energy, pairs(count, size, seed))


def hessian(linearized: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Tensor:
    """The dense Hessian (n, n) from one that was linearized at n copies of one image."""
    n = int(torch.tensor(shape).prod())
    eye = torch.eye(n, dtype=torch.float64)
    return linearized(eye.view(n, *shape)).reshape(n, n).T


@torch.no_grad()
def newton(energy: Energy, y: Tensor, tolerance: float = 1e-12) -> Tensor:
    """The minimizers by dense Newton steps with backtracking on the gradient norm, one image after
    the other.
    """
    out = []
    for image in y.double():
        potential = energy.widened().at(image[None])
        dense = energy.widened().at(image.expand(image.numel(), *image.shape))
        x = image.clone()[None]
        g = potential.grad(x)
        while g.norm() > tolerance:
            h = hessian(dense.linearize(x.expand(image.numel(), *image.shape)), image.shape)
            step, t = torch.linalg.solve(h, g.flatten()).view_as(x), 1.0
            while potential.grad(x - t * step).norm() > (1 - 0.1 * t) * g.norm() and t > 1e-6:
                t /= 2
            x = x - t * step
            previous, g = g.norm(), potential.grad(x)
            if g.norm() >= previous:  # as good as rounding allows
                break
        assert g.norm() < 1e-10
        out.append(x)
    return torch.cat(out)
