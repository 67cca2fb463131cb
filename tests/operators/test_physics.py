"""The door to deepinv: adjoints checked, spectra against dense matrices, float64 copies that are
the same operator.
"""

from __future__ import annotations

import math

import pytest
import torch
from deepinv import physics as dphysics
from torch import Tensor

from learnreg.core.bounds import Kind
from learnreg.core.errors import AdjointError, InputError, MissingPropertyError
from learnreg.operators.physics import LinearMap
from learnreg.operators.spectrum import averages
from learnreg.problems import L2, Energy
from learnreg.regularizers import TV, Tikhonov
from learnreg.solvers import solve

GREY, SHAPE = (1, 6, 5), (1, 1, 6, 5)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def coil_maps() -> Tensor:
    g = torch.Generator().manual_seed(1)
    return torch.randn(1, 3, 6, 5, dtype=torch.complex64, generator=g)


# Every physics as (constructor, image shape without batch, kind of ||A||^2).
PHYSICS = {
    "denoising": (lambda: dphysics.Denoising(dphysics.GaussianNoise(0.1)), GREY, Kind.EXACT),
    "inpainting": (
        lambda: dphysics.Inpainting(GREY, mask=(uniform(*GREY) > 0.4).float()),
        GREY,
        Kind.EXACT,
    ),
    "weighting": (lambda: dphysics.Inpainting(GREY, mask=0.5 + uniform(*GREY)), GREY, Kind.EXACT),
    "weighting_broadcast": (
        lambda: dphysics.Inpainting((2, 6, 5), mask=0.5 + uniform(*GREY)),
        (2, 6, 5),
        Kind.EXACT,
    ),
    "blur_fft": (lambda: dphysics.BlurFFT(GREY, filter=uniform(1, 1, 3, 3)), GREY, Kind.BOUND),
    "blur_fft_even": (
        lambda: dphysics.BlurFFT((1, 6, 6), filter=uniform(1, 1, 3, 3)),
        (1, 6, 6),
        Kind.BOUND,
    ),
    "blur": (
        lambda: dphysics.Blur(filter=uniform(1, 1, 3, 3), padding="reflect"),
        GREY,
        Kind.BOUND,
    ),
    "blur_circular": (
        lambda: dphysics.Blur(filter=uniform(1, 1, 3, 3), padding="circular"),
        GREY,
        Kind.BOUND,
    ),
    "blur_colours": (
        lambda: dphysics.Blur(filter=uniform(1, 3, 3, 3), padding="circular"),
        (3, 4, 5),
        Kind.BOUND,
    ),
    "blur_valid": (
        lambda: dphysics.Blur(filter=uniform(1, 1, 3, 3), padding="valid"),
        GREY,
        Kind.BOUND,
    ),
    "decolorize": (lambda: dphysics.Decolorize(), (3, 4, 4), Kind.EXACT),
    "mri": (
        lambda: dphysics.MRI(mask=(uniform(1, 2, 6, 5) > 0.4).float(), img_size=(2, 6, 5)),
        (2, 6, 5),
        Kind.EXACT,
    ),
    "mri_one_mask": (
        lambda: dphysics.MRI(
            mask=(uniform(6, 5) > 0.4).float().expand(1, 2, 6, 5).clone(), img_size=(2, 6, 5)
        ),
        (2, 6, 5),
        Kind.EXACT,
    ),
    "mri_coils": (
        lambda: dphysics.MultiCoilMRI(
            mask=torch.ones(1, 1, 6, 5), coil_maps=coil_maps(), img_size=(2, 6, 5)
        ),
        (2, 6, 5),
        Kind.BOUND,
    ),
}


@pytest.fixture(params=PHYSICS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def real(t: Tensor) -> Tensor:
    return torch.view_as_real(t) if t.is_complex() else t


def dense(operator: LinearMap, shape: tuple[int, ...]) -> Tensor:
    """A as a matrix of float64, column by column."""
    n = math.prod(shape)
    columns = [real(operator.forward(e[None])).flatten() for e in torch.eye(n).view(n, *shape)]
    return torch.stack(columns, dim=1).double()


def test_the_operator_is_that_of_deepinv(kind):
    make, shape, _ = PHYSICS[kind]
    physics, x = make(), uniform(1, *shape, seed=2)
    operator = LinearMap(physics)
    y = physics.A(x)
    torch.testing.assert_close(operator.forward(x), y)
    torch.testing.assert_close(operator.adjoint(y), physics.A_adjoint(y))
    torch.testing.assert_close(operator.normal(x), physics.A_adjoint(physics.A(x)))
    operator.check(x)


def test_the_spectrum_agrees_with_the_dense_matrix(kind):
    make, shape, known = PHYSICS[kind]
    operator = LinearMap(make())
    a = dense(operator, shape)
    values = torch.linalg.eigvalsh(a.T @ a)
    smallest, largest = max(float(values[0]), 0.0), float(values[-1])
    curvature = operator.spectrum(torch.zeros(1, *shape))
    assert curvature.L.kind == known
    if curvature.L.certified:
        assert largest <= curvature.L.value * (1 + 1e-6)  # the matrix is one of float32
        close = 1e-5 if curvature.L.kind == Kind.EXACT or "fft" in kind else 5e-3
        assert curvature.L.value == pytest.approx(largest, rel=close)
    else:  # a power iteration comes from below, and is labelled accordingly
        assert 0.95 * largest <= curvature.L.value <= 1.03 * largest
    assert curvature.mu.certified and curvature.mu.value <= smallest + 1e-6
    if kind.startswith(("denoising", "weighting")):
        assert curvature.mu.value == pytest.approx(smallest, rel=1e-5) and smallest > 0.2


def test_the_float64_copy_is_the_same_operator(kind):
    make, shape, _ = PHYSICS[kind]
    physics, x = make(), uniform(1, *shape, seed=2)
    operator, before = LinearMap(physics), {k: t.clone() for k, t in physics.state_dict().items()}
    exact = operator.double()
    y, y64 = operator.forward(x), exact.forward(x.double())
    assert real(y64).dtype == torch.float64
    torch.testing.assert_close(real(y64).float(), real(y), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        exact.adjoint(y64).float(), operator.adjoint(y), rtol=1e-5, atol=1e-5
    )
    exact.check(x.double())
    after = physics.state_dict()
    assert all(after[k].dtype == t.dtype and torch.equal(after[k], t) for k, t in before.items()), (
        "the lent physics"
    )
    assert operator.double() is exact


# --- averages of A^T A, for preconditioners -------------------------------------------------------


def normal_matrix(operator: LinearMap, shape: tuple[int, ...]) -> Tensor:
    """A^T A as (c, h, w, c, h, w)."""
    a = dense(operator, shape)
    return (a.T @ a).view(*shape, *shape)


def test_averages_have_the_shapes_of_one_image_and_no_negative_curvature(kind):
    make, shape, _ = PHYSICS[kind]
    image, operator = uniform(1, *shape), LinearMap(make())
    mean = averages(operator.on(image), image)
    assert mean.diagonal.shape == (1, *shape) and mean.symbol.shape == (
        1,
        *shape[:-1],
        shape[-1] // 2 + 1,
    )
    for t in (mean.diagonal, mean.symbol):
        assert (
            t.dtype == torch.float32
            and t.isfinite().all()
            and (t >= 0).all()
            and not t.requires_grad
        )
    kept = operator.mean_curvature(uniform(3, *shape))
    assert operator.mean_curvature(uniform(1, *shape, seed=1)) is kept, (
        "one for all images of a shape"
    )
    double = averages(operator.double().on(image.double()), image.double())
    assert double.diagonal.dtype == double.symbol.dtype == torch.float64
    torch.testing.assert_close(double.symbol.float(), mean.symbol, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["denoising", "inpainting", "weighting", "weighting_broadcast"])
def test_averages_of_a_diagonal_are_that_diagonal_and_its_mean(name):
    make, shape, _ = PHYSICS[name]
    operator = LinearMap(make())
    mean, n = operator.mean_curvature(torch.zeros(2, *shape)), math.prod(shape)
    diagonal = normal_matrix(operator, shape).view(n, n).diagonal().view(1, *shape).float()
    torch.testing.assert_close(mean.diagonal, diagonal)
    torch.testing.assert_close(
        mean.symbol, diagonal.mean(dim=(-2, -1), keepdim=True).expand_as(mean.symbol)
    )


PERIODIC = (
    "denoising",
    "blur_fft",
    "blur_fft_even",
    "blur_circular",
    "blur_colours",
    "mri_one_mask",
)


@pytest.mark.parametrize("name", PERIODIC)
def test_the_symbol_of_a_periodic_convolution_is_exact(name):
    """MRI mixes real and imaginary parts; each alone sees a convolution as well."""
    make, shape, _ = PHYSICS[name]
    operator = LinearMap(make())
    mean, full = operator.mean_curvature(torch.zeros(1, *shape)), normal_matrix(operator, shape)
    for channel in range(shape[0]):
        block = full[channel, :, :, channel]
        column = block[:, :, 0, 0]
        torch.testing.assert_close(
            block[:, :, 2, 3], column.roll((2, 3), dims=(0, 1)), rtol=0, atol=1e-6
        )
        torch.testing.assert_close(
            mean.symbol[0, channel].double(), torch.fft.rfft2(column).real, rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("name", PERIODIC)
def test_the_diagonal_of_a_periodic_convolution_is_exact(name):
    make, shape, _ = PHYSICS[name]
    operator, n = LinearMap(make()), math.prod(shape)
    exact = normal_matrix(operator, shape).view(n, n).diagonal().view(1, *shape).float()
    torch.testing.assert_close(
        operator.mean_curvature(torch.zeros(1, *shape)).diagonal, exact, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("size", [(6, 5), (8, 8), (3, 4)])
@pytest.mark.parametrize(
    "make",
    [
        lambda f, s: dphysics.Blur(filter=f, padding="circular"),
        lambda f, s: dphysics.BlurFFT((1, *s), filter=f),
    ],
    ids=["blur", "blur_fft"],
)
def test_the_symbol_of_a_blur_is_the_squared_transform_of_its_kernel(make, size):
    kernel = uniform(1, 1, 3, 3, seed=8).double()
    padded = torch.zeros(size, dtype=torch.float64)
    padded[:3, :3] = kernel[0, 0]  # where the kernel lies changes the phase only
    x = torch.zeros(1, 1, *size, dtype=torch.float64)
    symbol = LinearMap(make(kernel, size)).double().mean_curvature(x).symbol
    torch.testing.assert_close(
        symbol[0, 0], torch.fft.rfft2(padded).abs().square(), rtol=1e-6, atol=1e-7
    )


def test_the_symbol_of_mri_is_its_mask_seen_by_real_images():
    """A real image has equal shares of the frequencies k and -k; deepinv centres the mask."""
    mask = (uniform(6, 5, seed=3) > 0.4).float()
    physics = dphysics.MRI(mask=mask.expand(1, 2, 6, 5), img_size=(2, 6, 5))
    symbol = LinearMap(physics).mean_curvature(torch.zeros(1, 2, 6, 5)).symbol
    there = torch.fft.ifftshift(mask)
    back = there.flip(0, 1).roll((1, 1), dims=(0, 1))
    wanted = 0.5 * (there + back)[:, :3].expand_as(symbol)
    torch.testing.assert_close(symbol, wanted, rtol=0, atol=1e-5)


def tomography(**settings) -> dphysics.Tomography:
    return dphysics.Tomography(
        angles=20, img_width=24, circle=False, device="cpu", normalize=True, **settings
    )


def test_the_symbol_of_tomography_is_roughly_right():
    """A^T A is nearly a convolution that blurs: smooth pictures keep more energy than rough
    ones.
    """
    operator, x = LinearMap(tomography(adjoint_via_backprop=True)), torch.zeros(1, 1, 24, 24)
    mean = operator.mean_curvature(x)
    assert (mean.symbol >= 0).all() and (mean.diagonal > 0).all()
    t = torch.linspace(-1, 1, 24)
    window = torch.exp(-4 * (t[:, None] ** 2 + t[None, :] ** 2))
    quotients = []
    for waves in (0.0, 2.0, 4.0):
        v = (window * torch.cos(waves * math.pi * t))[None, None]
        exact = float((v * operator.normal(v)).sum())
        told = float((v * torch.fft.irfft2(torch.fft.rfft2(v) * mean.symbol, s=(24, 24))).sum())
        assert 0.5 < told / exact < 2, waves
        quotients.append(exact / float(v.square().sum()))
    assert quotients[0] > 3 * quotients[1] and mean.symbol[0, 0, 0, 0] > 3 * mean.symbol[0, 0, 0, 4]
    truth = torch.stack(
        [operator.normal(e)[e > 0].sum() for e in torch.eye(576)[::29].view(-1, 1, 1, 24, 24)]
    ).mean()
    assert 0.5 < float(mean.diagonal.mean() / truth) < 2


def test_averages_are_kept_until_the_physics_is_updated():
    mask, kernel = 0.5 + uniform(*SHAPE, seed=3), uniform(1, 1, 3, 3, seed=9)
    for physics, change in (
        (dphysics.Inpainting(GREY, mask=torch.ones(GREY)), {"mask": mask}),
        (dphysics.Blur(filter=uniform(1, 1, 3, 3), padding="circular"), {"filter": kernel}),
    ):
        operator, x = LinearMap(physics), uniform(*SHAPE, seed=2)
        before, double = operator.mean_curvature(x), operator.double().mean_curvature(x.double())
        assert operator.mean_curvature(x) is before
        physics.update(**change)
        after, fresh = operator.mean_curvature(x), LinearMap(physics).mean_curvature(x)
        assert torch.equal(after.diagonal, fresh.diagonal) and torch.equal(
            after.symbol, fresh.symbol
        )
        assert not torch.allclose(after.symbol, before.symbol)
        assert not torch.allclose(
            operator.double().mean_curvature(x.double()).symbol, double.symbol
        )
        other = operator.mean_curvature(uniform(1, 1, 7, 7)) if "filter" in change else after
        assert other.symbol.shape[-2:] == ((7, 4) if "filter" in change else (6, 3)), (
            "another shape has its own"
        )


def test_averages_of_a_data_term_carry_its_noise_level():
    blur = dphysics.Blur(filter=uniform(1, 1, 3, 3), padding="circular")
    x = uniform(2, *GREY, seed=1)
    plain = Energy(blur, Tikhonov(0.1)).at(x).mean_curvature(x)
    scaled = Energy(blur, Tikhonov(0.1), L2(sigma=0.5)).at(x).mean_curvature(x)
    torch.testing.assert_close(scaled.symbol, 4 * (plain.symbol - 0.1) + 0.1)
    torch.testing.assert_close(scaled.diagonal, 4 * (plain.diagonal - 0.1) + 0.1)
    assert plain.symbol.shape[0] == plain.diagonal.shape[0] == 2


# --- float64 copies and adjoints ------------------------------------------------------------------


@pytest.mark.parametrize("backprop", [True, False])
def test_a_tomography_in_use_is_promoted(backprop):
    """deepinv keeps the adjoint it made for the first dtype it saw; a copy must not inherit it."""
    physics = tomography(adjoint_via_backprop=backprop)
    operator, x = LinearMap(physics), uniform(1, 1, 24, 24)
    y = operator.forward(x)
    back = operator.adjoint(y)
    assert y.dtype == back.dtype == torch.float32
    exact = operator.double()
    y64 = exact.forward(x.double())
    back64 = exact.adjoint(y64)
    assert y64.dtype == back64.dtype == torch.float64
    torch.testing.assert_close(y64.float(), y, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(back64.float(), back, rtol=1e-4, atol=1e-5)
    if backprop:  # the adjoint without it is an approximation of deepinv's
        exact.check(x.double())
        operator.check(x)
    assert operator.adjoint(operator.forward(x)).dtype == torch.float32, (
        "the lent physics goes on as before"
    )
    torch.testing.assert_close(operator.adjoint(y), back)


class Plain(dphysics.LinearPhysics):
    """A = 2, whose adjoint and tensors are up to the test."""

    def __init__(self, adjoint: float = 2.0, table: Tensor | None = None) -> None:
        super().__init__()
        self.factor, self.table = adjoint, table

    def A(self, x: Tensor, **kwargs) -> Tensor:
        return (
            2.0 * x if self.table is None else torch.nn.functional.conv2d(x, self.table, padding=1)
        )

    def A_adjoint(self, y: Tensor, **kwargs) -> Tensor:
        return (
            self.factor * y
            if self.table is None
            else torch.nn.functional.conv_transpose2d(y, self.table, padding=1)
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_wrong_adjoint_is_refused_with_its_mismatch(dtype):
    x = torch.zeros(SHAPE, dtype=dtype)
    LinearMap(Plain(2.0)).check(x)
    with pytest.raises(
        AdjointError,
        match=r"physics Plain: given an adjoint .* relative mismatch \d\.\d\de-0\d in ",
    ):
        LinearMap(Plain(2.02)).check(x)
    with pytest.raises(AdjointError, match="adjoint_function"):
        Energy(Plain(2.02), Tikhonov(0.1).to(dtype)).at(x + 0.5)


def test_an_adjoint_that_is_wrong_for_one_size_only_is_refused_there():
    class Picky(Plain):
        def A_adjoint(self, y: Tensor, **kwargs) -> Tensor:
            return (2.0 if y.shape[-1] == 5 else 1.9) * y

    operator = LinearMap(Picky())
    operator.check(torch.zeros(SHAPE))
    with pytest.raises(AdjointError):
        operator.check(torch.zeros(1, 1, 6, 6))


def test_tensors_that_a_copy_cannot_promote_are_refused():
    """A certificate closes in float64, so the float64 copy must exist and be the same operator."""
    table = uniform(1, 1, 3, 3)
    LinearMap(Plain(table=table)).check(torch.zeros(SHAPE))  # a plain attribute is found
    hidden = dphysics.LinearPhysics(
        A=lambda x, **_: torch.nn.functional.conv2d(x, table, padding=1),
        A_adjoint=lambda y, **_: torch.nn.functional.conv_transpose2d(y, table, padding=1),
    )
    with pytest.raises(
        InputError, match=r"given a float64 copy that cannot be applied .*register_buffer"
    ):
        LinearMap(hidden).check(torch.zeros(SHAPE))

    class Other(Plain):
        def A(self, x: Tensor, **kwargs) -> Tensor:
            return (2.0 if x.dtype == torch.float32 else 2.1) * x

    with pytest.raises(InputError, match=r"given a float64 copy that differs by 4\.76e-02"):
        LinearMap(Other()).check(torch.zeros(SHAPE))


def test_what_is_no_linear_physics_is_refused():
    with pytest.raises(
        InputError, match=r"physics: given Linear; expected a deepinv.physics object"
    ):
        LinearMap(torch.nn.Linear(2, 2))
    nonlinear = dphysics.Physics(A=lambda x, **kwargs: x**2)
    with pytest.raises(
        MissingPropertyError,
        match=r"physics: given Physics, which offers no adjoint.*LinearPhysics",
    ):
        LinearMap(nonlinear)
    with pytest.raises(MissingPropertyError, match="offers no adjoint"):
        Energy(nonlinear, Tikhonov(0.1))


def test_the_zero_operator_has_norm_zero():
    class Zero(Plain):
        def A(self, x: Tensor, **kwargs) -> Tensor:
            return 0 * x

        def A_adjoint(self, y: Tensor, **kwargs) -> Tensor:
            return 0 * y

    assert LinearMap(Zero()).spectrum(torch.zeros(SHAPE)).L.value == 0


def test_a_physics_updated_in_place_is_seen():
    """deepinv replaces parameters of a physics in place (``update``): spectrum and float64 copy
    must follow.
    """
    physics = dphysics.Inpainting(GREY, mask=torch.ones(GREY))
    operator, x = LinearMap(physics), uniform(*SHAPE, seed=2)
    operator.spectrum(x), operator.double()
    mask = 0.5 + uniform(*SHAPE, seed=3)
    physics.update(mask=mask)
    assert operator.spectrum(x).mu.value == pytest.approx(float(mask.square().min()))
    assert operator.spectrum(x).L.value == pytest.approx(float(mask.square().max()))
    torch.testing.assert_close(operator.double().forward(x.double()).float(), operator.forward(x))


def test_one_operator_per_image_is_solved_or_refused_by_name():
    """deepinv allows a mask per image; finished images leave the batch, so the masks would have to
    follow.
    """
    masks = (uniform(2, *GREY) > 0.3).double()
    y, regularizer = masks * uniform(2, *GREY, seed=1), (TV(0.1, 0.1) + Tikhonov(0.1)).double()
    eps = torch.tensor([1e-1, 1e-6])
    try:
        x = solve(Energy(dphysics.Inpainting(GREY, mask=masks), regularizer), y, eps).value
    except InputError as error:
        assert "physics" in str(error)
    else:
        for i in range(2):
            alone = Energy(dphysics.Inpainting(GREY, mask=masks[i]), regularizer)
            assert (solve(alone, y[i : i + 1], 1e-6).value - x[i : i + 1]).norm() <= eps[i] + 1e-6


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_the_first_image_is_the_multiple_that_fits_the_data_best(scale):
    kernel = scale * uniform(1, 1, 3, 3)
    physics = dphysics.Blur(filter=kernel, padding="circular").double()
    y = physics.A(uniform(3, *GREY, seed=4).double()) + 0.1
    first, back = Energy(physics, TV()).double().at(y).first(), physics.A_adjoint(y)

    def misfit(x: Tensor) -> Tensor:
        return (physics.A(x) - y).square().flatten(1).sum(dim=1)

    t = (first * back).flatten(1).sum(dim=1) / back.square().flatten(1).sum(dim=1)
    torch.testing.assert_close(first, t[:, None, None, None] * back)
    for factor in (0.0, 0.5, 0.99, 1.01, 2.0):
        assert (misfit(first) < misfit(factor * first)).all()


class Slightly(dphysics.Inpainting):
    """A decomposable physics whose table of singular values is not quite that of its A."""

    def A(self, x: Tensor, **_) -> Tensor:
        return (1 + 1e-8) * self.mask * x

    def A_adjoint(self, y: Tensor, **_) -> Tensor:
        return (1 + 1e-8) * self.mask * y


def test_a_table_that_is_roughly_true_widens_the_bounds():
    mask = 0.5 + uniform(*GREY).double()
    x = torch.zeros(SHAPE, dtype=torch.float64)
    found = LinearMap(Slightly(GREY, mask=mask).double()).spectrum(x)
    low, high = ((1 + 1e-8) * float(m) for m in (mask.min(), mask.max()))
    assert found.mu.kind == found.L.kind == Kind.BOUND
    assert low**2 * (1 - 1e-4) <= found.mu.value <= low**2
    assert high**2 <= found.L.value <= high**2 * (1 + 1e-4)


class Watched(dphysics.Blur):
    """A blur that counts what it is asked for, an image at a time."""

    calls = 0

    def A(self, x: Tensor, *args, **kwargs) -> Tensor:
        self.calls += x.shape[0]
        return super().A(x, *args, **kwargs)

    def A_adjoint(self, y: Tensor, *args, **kwargs) -> Tensor:
        self.calls += y.shape[0]
        return super().A_adjoint(y, *args, **kwargs)


def test_probing_an_operator_is_paid_for():
    physics = Watched(filter=uniform(1, 1, 3, 3).double(), padding="circular")
    operator, x = LinearMap(physics), torch.zeros(SHAPE, dtype=torch.float64)
    operator.check(x)
    # A and A^T are half an evaluation each; one call asks for the shape of the data only
    assert physics.calls > 4 and abs(2 * operator.cost.hessian_products - physics.calls) <= 1
