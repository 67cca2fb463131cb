"""The door to deepinv: A, its adjoint and what is known of its spectrum, checked before the first
use.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from ..core.bounds import Bound, Curvature, Kind
from ..core.curvature import MeanCurvature
from ..core.errors import AdjointError, InputError, MissingPropertyError, ModelFileError
from .checks import dot_test

POWER_ITERATIONS = 30

MAJORANT_ITERATIONS = 12
"""For a constant of step sizes only: 3 % below the limit on CT, of which the margin of 5 % takes
care (measured).
"""

LIFT = 1e-2
"""Of the largest mean curvature of A^T A: what its majorant has at least, at every frequency."""


class LinearMap:
    """A linear deepinv physics seen as a matrix A with ||A||^2 and a lower bound of A^T A.

    The adjoint is checked by a dot test at the first use of each image shape; the spectrum is exact
    for physics that know their singular values, otherwise ||A||^2 is a power-iteration *estimate*
    and the lower bound is 0.

    Args:
        physics: a ``deepinv.physics.LinearPhysics`` (Denoising, Blur, MRI, Tomography, ...).

    Raises:
        InputError: not a deepinv physics.
        MissingPropertyError: a physics without an adjoint (not linear).
    """

    def __init__(self, physics: torch.nn.Module) -> None:
        from deepinv.physics import Denoising, Inpainting, LinearPhysics, Physics

        if not isinstance(physics, Physics):
            raise InputError(
                "physics",
                given=type(physics).__name__,
                expected="a deepinv.physics object",
                remedy="For denoising use "
                "deepinv.physics.Denoising(deepinv.physics.GaussianNoise(0.1)).",
            )
        if not isinstance(physics, LinearPhysics):
            raise MissingPropertyError(
                "physics",
                given=f"{type(physics).__name__}, which offers no adjoint",
                expected="a LinearPhysics",
                remedy="Gradients of ||A x - y||^2 need A^T; derive your operator from "
                "deepinv.physics.LinearPhysics.",
            )
        self.physics = physics
        self.is_identity = type(physics) is Denoising
        self.is_mask = isinstance(physics, Inpainting)
        self._checked: set[tuple] = set()
        self._spectrum: dict[tuple, Curvature] = {}
        self._mean: dict[tuple, MeanCurvature] = {}
        self._majorants: dict[tuple, Tensor] = {}
        self._double: LinearMap | None = None
        self._seen: list[tuple[Tensor, int]] = []

    def _refresh(self) -> None:
        """Forget what was computed for other tensors of the physics (``physics.update`` replaces
        them in place).
        """
        now = [(t, t._version) for t in (*self.physics.parameters(), *self.physics.buffers())]
        if len(now) != len(self._seen) or any(
            a is not c or b != d for (a, b), (c, d) in zip(now, self._seen, strict=True)
        ):
            self._checked, self._spectrum, self._mean, self._double, self._seen = (
                set(),
                {},
                {},
                None,
                now,
            )
            self._majorants = {}

    def forward(self, x: Tensor) -> Tensor:
        """A x."""
        return x if self.is_identity else self.physics.A(x)

    def adjoint(self, y: Tensor) -> Tensor:
        """A^T y."""
        return y if self.is_identity else self.physics.A_adjoint(y)

    def normal(self, x: Tensor) -> Tensor:
        """A^T A x."""
        return x if self.is_identity else self.physics.A_adjoint(self.physics.A(x))

    def double(self) -> LinearMap:
        """The same operator in float64 (kept, so the copy is made once)."""
        if self.is_identity:
            return self
        self._refresh()
        if self._double is None:
            self._double = LinearMap(_widened(copy.deepcopy(self.physics)))
        return self._double

    def check(self, x: Tensor) -> None:
        """Refuse an adjoint that fails the dot test on images like ``x`` (b, c, h, w), once per
        shape.

        Raises:
            AdjointError: with the measured mismatch.
            InputError: the float64 copy, which closes every certificate, is not the same operator.
        """
        self._refresh()
        key = (tuple(x.shape[1:]), x.dtype)
        if self.is_identity or key in self._checked:
            return
        probe = x[:1].detach()
        if self.physics.A(probe).shape[0] != 1:
            raise InputError(
                f"physics {type(self.physics).__name__}",
                given="parameters for a batch of images",
                expected="one operator for all images",
                remedy="Solve image by image, each with its own physics.",
            )
        mismatch = dot_test(self.physics.A, self.physics.A_adjoint, probe)
        tolerance = 1e3 * torch.finfo(x.dtype).eps
        if not mismatch <= tolerance:
            raise AdjointError(
                f"physics {type(self.physics).__name__}",
                given=f"an adjoint that fails the dot test with relative mismatch {mismatch:.2e}",
                expected=f"at most {tolerance:.0e}",
                remedy="Implement A_adjoint as the exact transpose of A (for example with "
                "deepinv.physics.adjoint_function).",
            )
        if x.dtype != torch.float64:
            self._check_double(probe, tolerance)
        self._checked.add(key)

    @torch.no_grad()
    def _check_double(self, x: Tensor, tolerance: float) -> None:
        """Compare A u in the precision of ``x`` with the float64 copy at one random u of its
        shape.
        """
        u = torch.randn(
            x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
        ).to(x)
        try:
            exact = self.double().forward(u.double())
            if exact.dtype not in (torch.float64, torch.complex128):
                raise RuntimeError(f"it gives {exact.dtype}")
            difference = float(
                (self.forward(u).to(exact.dtype) - exact).norm() / exact.norm().clamp_min(1e-300)
            )
            given = f"a float64 copy that differs by {difference:.2e} (relative)"
        except RuntimeError as error:  # torch refuses to mix precisions
            difference, given = float("inf"), f"a float64 copy that cannot be applied ({error})"
        if not difference <= tolerance:
            raise InputError(
                f"physics {type(self.physics).__name__}",
                given=given,
                expected=f"at most {tolerance:.0e}",
                remedy="Hold its tensors in buffers or parameters (register_buffer), so that a "
                "copy can be promoted, "
                "or work in float64.",
            )

    def spectrum(self, x: Tensor) -> Curvature:
        """Bounds of A^T A on images like ``x`` (b, c, h, w): mu from below, L = ||A||^2 from
        above.
        """
        if self.is_identity:
            return Curvature(Bound.exact(1.0), Bound.exact(1.0))
        self._refresh()
        key = tuple(x.shape[1:])
        if key not in self._spectrum:
            self._spectrum[key] = self._singular_values(x[:1]) or Curvature(
                Bound.proven(0.0), Bound.estimate(1.02 * self._power_iterations(x[:1].detach()))
            )
        return self._spectrum[key]

    @property
    def effort(self) -> float:
        """What A and A^T cost, in operations on one vector of pixels; rough (that of an FFT or a
        blur if not known).
        """
        return 2.0 if self.is_identity else 4.0 if self.is_mask else 30.0

    def mean_curvature(self, x: Tensor) -> MeanCurvature:
        """Averages of A^T A for images like ``x`` (b, c, h, w), as one image (1, ...) that
        broadcasts.

        Exact for the identity, for masks of pixels, and where A^T A is a periodic convolution;
        otherwise the response to one pixel in the middle stands for all of them (good for
        tomography, whose A^T A is nearly a convolution).
        """
        self._refresh()
        key = (tuple(x.shape[1:]), x.dtype, x.device)
        if key not in self._mean:
            self._mean[key] = self._averages(x[:1].detach())
        return self._mean[key]

    @torch.no_grad()
    def majorant(self, x: Tensor) -> Tensor:
        """The symbol (1, c, h, w // 2 + 1) of a circulant C >= A^T A, for ``torch.fft.rfft2`` of
        images like x.

        A multiple of the mean symbol, lifted where that is nearly zero, with a factor from power
        iterations (an estimate); ||A||^2 at all frequencies where that is smaller on average, for
        an A that knows no frequencies.
        """
        self._refresh()
        key = (tuple(x.shape[1:]), x.dtype, x.device)
        if key not in self._majorants:
            mean = self.mean_curvature(x).symbol
            lifted = mean + LIFT * mean.amax()
            root = lifted.rsqrt()

            def whitened(v: Tensor) -> Tensor:
                return torch.fft.irfft2(torch.fft.rfft2(v) * root, s=v.shape[-2:])

            largest = self._power_iterations(
                x[:1], lambda v: whitened(self.normal(whitened(v))), MAJORANT_ITERATIONS
            )
            majorant, flat = 1.05 * largest * lifted, self.spectrum(x).L.value
            self._majorants[key] = (
                majorant if majorant.mean() < flat else torch.full_like(majorant, flat)
            )
        return self._majorants[key]

    @torch.no_grad()
    def _averages(self, x: Tensor) -> MeanCurvature:
        half = x.new_ones(*x.shape[:-1], x.shape[-1] // 2 + 1)
        if self.is_identity:
            return MeanCurvature(torch.ones_like(x), half)
        if self.is_mask:
            diagonal = self.normal(torch.ones_like(x))
            return MeanCurvature(diagonal, half * diagonal.mean(dim=(-2, -1), keepdim=True))
        h, w = x.shape[-2:]
        symbols, centres = [], []
        for channel in range(x.shape[1]):
            pixel = torch.zeros_like(x)
            pixel[:, channel, h // 2, w // 2] = 1
            response = self.normal(pixel)[:, channel].roll((-(h // 2), -(w // 2)), dims=(-2, -1))
            centres.append(response[..., :1, :1])
            symbols.append(torch.fft.rfft2(response).real.clamp_min(0))
        return MeanCurvature(
            torch.stack(centres, dim=1).clamp_min(0).expand_as(x), torch.stack(symbols, dim=1)
        )

    def _singular_values(self, x: Tensor) -> Curvature | None:
        """The spectrum of a decomposable physics A = U diag(mask) V^T; None when it is not one."""
        from deepinv.physics import DecomposablePhysics

        mask = getattr(self.physics, "mask", None)
        if not isinstance(self.physics, DecomposablePhysics) or not isinstance(mask, Tensor):
            return None
        squares = mask.detach().abs().double().square()
        try:
            full = (
                torch.broadcast_shapes(mask.shape, x.shape) == x.shape
            )  # a value for every degree of freedom
        except RuntimeError:
            full = False
        smallest = float(squares.min()) if full and mask.numel() > 1 else 0.0
        return Curvature(Bound(smallest, Kind.EXACT), Bound(float(squares.max()), Kind.EXACT))

    @torch.no_grad()
    def _power_iterations(
        self,
        x: Tensor,
        apply: Callable[[Tensor], Tensor] | None = None,
        count: int = POWER_ITERATIONS,
    ) -> float:
        """The largest eigenvalue of A^T A, or of another symmetric map, from below."""
        v = torch.randn(
            x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
        ).to(x)
        size = 0.0
        for _ in range(count):
            v = v / v.norm()
            v = (apply or self.normal)(v)
            size = float(v.norm())
            if size == 0.0:
                break
        return size

    def __repr__(self) -> str:
        return f"LinearMap({type(self.physics).__name__})"


def _widened(physics: torch.nn.Module) -> torch.nn.Module:
    """``physics`` with its tensors in float64; deepinv's tomography also keeps a dtype and an
    adjoint made for it.
    """
    for module in physics.modules():
        if getattr(module, "dtype", None) == torch.float32:
            setattr(module, "dtype", torch.float64)  # noqa: B010 - not one of torch's own attributes
        if getattr(module, "_auto_grad_adjoint_fn", None) is not None:
            setattr(module, "_auto_grad_adjoint_fn", None)  # noqa: B010
    return physics._apply(_promoted)


def _promoted(t: Tensor) -> Tensor:
    """Real tensors to float64, complex ones to complex128: ``Module.to(torch.float64)`` would drop
    imaginary parts.
    """
    if t.is_complex():
        return t.to(torch.complex128)
    return t.to(torch.float64) if t.is_floating_point() else t


def describe_physics(physics: torch.nn.Module) -> dict[str, object]:
    """What a model file stores of a physics: everything for Gaussian denoising, only the name of
    any other.
    """
    sigma = getattr(getattr(physics, "noise_model", None), "sigma", None)
    description: dict[str, object] = {"type": type(physics).__name__}
    if sigma is not None:
        description["sigma"] = float(torch.as_tensor(sigma).flatten()[0])
    return description


def physics_from_description(description: dict[str, object]) -> torch.nn.Module:
    """The physics that a model file describes.

    Raises:
        ModelFileError: one that the file cannot rebuild.
    """
    from deepinv.physics import Denoising, GaussianNoise

    sigma = description.get("sigma", 0.1) if isinstance(description, dict) else None
    if not isinstance(sigma, int | float) or not sigma >= 0:
        raise ModelFileError(
            "physics",
            given=description,
            expected="a type and a noise level sigma >= 0",
            remedy="Restore the file from its run.",
        )
    if description.get("type") != "Denoising":
        raise ModelFileError(
            "physics",
            given=f"a model for {description.get('type')}",
            expected="physics=...",
            remedy="Pass the deepinv physics it was trained for to load_model(path, physics=...).",
        )
    return Denoising(GaussianNoise(sigma))
