"""Data terms of counts: backgrounds and gains as numbers, per measurement and per image."""

from __future__ import annotations

import math

import pytest
import torch
from deepinv.optim import PoissonLikelihood
from deepinv.physics import Blur, Denoising, GaussianNoise, Inpainting, Tomography
from torch import Tensor

import learnreg as lr
from learnreg.core.bounds import Kind
from learnreg.core.errors import InputError
from learnreg.core.measured import Measured
from learnreg.problems import KL, L2, Energy, PoissonGaussian, SaddleEnergy, WeightedL2
from learnreg.problems.fidelity import data_constants
from learnreg.problems.per_image import KNOWN, in_double, of_images
from learnreg.regularizers import TV, ExactTV, Tikhonov
from learnreg.testing import check_data_term

SHAPE = (3, 1, 4, 5)
H = 1e-6


def random(seed: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=g, dtype=torch.float64)


def counts(seed: int = 0) -> Tensor:
    return (6 * random(seed)).round()


ROWS = {"all": (1, *SHAPE[1:]), "each": SHAPE, "number": (3,), "short": (3, *SHAPE[2:])}
"""Shapes of tensors: one for all images, one for each, a number for each, without channels."""

TERMS = {
    "numbers": lambda shape: KL(0.7, 2.5),
    "scaled": lambda shape: KL(0.7, 2.5, scaled=True),
    "background": lambda shape: KL(0.2 + random(1, shape), 2.5),
    "gain": lambda shape: KL(0.7, 0.5 + random(2, shape)),
    "both, scaled": lambda shape: KL(0.2 + random(1, shape), 0.5 + random(2, shape), scaled=True),
    "read-out": lambda shape: PoissonGaussian(0.0, 2.5, 1.3),
    "read-out, tensors": lambda shape: PoissonGaussian(
        random(1, shape), 0.5 + random(2, shape), 0.3 + random(3, shape)
    ),
}
each = pytest.mark.parametrize("name", TERMS)
rows = pytest.mark.parametrize("shape", ROWS.values(), ids=ROWS)


def spread(v: float | Tensor) -> Tensor:
    v = torch.as_tensor(v, dtype=torch.float64)
    if v.dim():
        v = v.reshape(v.shape[0], *[1] * (4 - v.dim()), *v.shape[1:])
    return v.expand(SHAPE)


@each
@rows
def test_every_entry_has_numbers_of_its_own(name, shape):
    """The term with tensors is the one with numbers, entry by entry."""
    term, y, a = TERMS[name](shape), counts(), 5 * random(4) - 1
    if isinstance(term, PoissonGaussian):
        y = y - 1.0
    f = term.tie(y)
    fields = {k: spread(v) for k, v in vars(term).items() if k != "scaled"}
    value, slope, bend = torch.zeros(3), torch.zeros(SHAPE), torch.zeros(SHAPE)
    value, slope, bend = (t.double() for t in (value, slope, bend))
    for place in torch.cartesian_prod(*(torch.arange(n) for n in SHAPE)).tolist():
        at = tuple(place)
        own = {k: float(v[at]) for k, v in fields.items()}
        if isinstance(term, KL):
            own["scaled"] = term.scaled
        one = type(term)(**own).tie(y[at].reshape(1, 1))
        point = a[at].reshape(1, 1)
        value[at[0]] += one.value(point)[0]
        slope[at], bend[at] = one.grad(point), one.linearize(point)(torch.ones_like(point))
    torch.testing.assert_close(f.value(a), value)
    torch.testing.assert_close(f.grad(a), slope)
    torch.testing.assert_close(f.linearize(a)(torch.ones_like(a)), bend)


@each
@rows
def test_the_contract_of_data_terms_holds(name, shape):
    term, y = TERMS[name](shape), counts()
    if isinstance(term, PoissonGaussian):
        y = y - 1.5
    check_data_term(term, y)
    check_data_term(term, y, 4 * random(5) - 2)


@each
@rows
def test_what_goes_back_to_the_measurements_is_a_difference_quotient(name, shape):
    term, y = TERMS[name](shape), counts() + 0.5
    if isinstance(term, PoissonGaussian):
        y = y - 3.0
    a, w, e = 4 * random(6) - 1, random(7) - 0.5, random(8) - 0.5
    f = term.tie(y)
    moved = (term.tie(y + H * e).grad(a) - term.tie(y - H * e).grad(a)) / (2 * H)
    expected = -(moved * w).flatten(1).sum(dim=1)
    torch.testing.assert_close((f.to_data(a, w) * e).flatten(1).sum(dim=1), expected)


@each
@rows
def test_saddle_points_minimize_the_same_function(name, shape):
    term, y = TERMS[name](shape), counts()
    f, block = term.tie(y), term.of_data(y)
    a, b = 4 * random(9), 4 * random(10)
    torch.testing.assert_close(block.value(a) - block.value(b), f.value(a) - f.value(b))
    torch.testing.assert_close(block.grad(a), f.grad(a))
    torch.testing.assert_close(block.hessian(a)(b), f.linearize(a)(b))


@each
@rows
def test_parts_of_a_batch_and_float64_copies_keep_their_tensors(name, shape):
    term, y, a = TERMS[name](shape), counts() + 1, 5 * random(4)
    index = torch.tensor([2, 0])
    whole = term.tie(y).grad(a)[index]
    torch.testing.assert_close(of_images(term, index).tie(y[index]).grad(a[index]), whole)
    torch.testing.assert_close(term.tie(y).select(index).grad(a[index]), whole)
    wide = in_double(term).tie(y).grad(a)
    torch.testing.assert_close(wide, term.tie(y).grad(a))
    box = (slice(1, 3), slice(0, 4))
    cut = term.tie(y).window(box).grad(a[..., 1:3, 0:4])
    torch.testing.assert_close(cut, term.tie(y).grad(a)[..., 1:3, 0:4])


# --- per image, by params -------------------------------------------------------------------------


def energies(term: object) -> list[object]:
    physics = Denoising(GaussianNoise(0.1))
    ridge = Tikhonov(0.3, learned=False)
    return [
        Energy(physics, TV(0.1, 0.1) + ridge, term).double(),
        SaddleEnergy(physics, ExactTV(0.1), term, tikhonov=0.3).double(),
    ]


PER_IMAGE = {
    "background": (KL(1.0), 0.2 + random(11)),
    "gain": (KL(1.0), 0.5 + random(12)),
    "sigma": (PoissonGaussian(0.5, 1.5), 0.5 + random(13)),
    "weights": (WeightedL2(torch.ones(1, 1)), 0.3 + random(14)),
}


@pytest.mark.parametrize("name", PER_IMAGE)
@pytest.mark.parametrize("kind", [0, 1], ids=["smooth", "saddle"])
def test_parameters_per_image_are_those_of_solves_image_by_image(name, kind):
    term, given = PER_IMAGE[name]
    energy, y = energies(term)[kind], counts() + 1
    whole = lr.solve(energy, y, eps=1e-3, params={name: given})
    assert whole.ok
    for i in range(SHAPE[0]):
        part = slice(i, i + 1)
        single = energies(term.replaced(**{name: given[part]}))[kind]
        alone = lr.solve(single, y[part], eps=1e-3)
        assert torch.dist(whole.value[part], alone.value) <= 2e-3


def test_a_name_that_physics_and_data_term_share_belongs_to_the_data_term():
    class WithBackground(Inpainting):
        def __init__(self) -> None:
            super().__init__(SHAPE[1:], mask=torch.ones(SHAPE[1:]))
            self.register_buffer("background", torch.zeros(1, *SHAPE[1:]))

    ridge = Tikhonov(0.3, learned=False)
    energy = Energy(WithBackground(), TV(0.1, 0.1) + ridge, KL(1.0)).double()
    r = 0.5 + random(3)
    found = energy.at(Measured(counts(), {"background": r})).data
    assert torch.equal(found.background, r)
    assert energy.physics.background.shape[0] == 1
    # with a data term that has none it is a matter of the physics alone, which A does not see
    energy = Energy(WithBackground(), TV(0.1, 0.1) + ridge).double()
    assert lr.solve(energy, counts(), eps=1e-2, params={"background": r}).ok


@pytest.mark.parametrize("name", ["weights", "background"])
@pytest.mark.parametrize("kind", [0, 1], ids=["smooth", "saddle"])
def test_parameters_of_another_data_term_are_refused(name, kind):
    energy = energies(L2())[kind]
    with pytest.raises(InputError, match=f"{name} with L2.*{KNOWN[name]}"):
        lr.solve(energy, counts(), eps=1e-2, params={name: 1 + random(1)})


@pytest.mark.parametrize("name", PER_IMAGE)
@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (lambda t: t[:, :, :3], "broadcasts to"),
        (lambda t: t[:2], "2|slice"),
        (lambda t: t * float("nan"), "NaN"),
        (lambda t: -t, "negative"),
        (lambda t: t.long(), "floating-point"),
    ],
    ids=["sides", "images", "NaN", "negative", "integers"],
)
def test_tensors_that_do_not_fit_are_refused(name, bad, words):
    term, given = PER_IMAGE[name]
    with pytest.raises(InputError, match=words):
        lr.solve(energies(term)[0], counts(), eps=1e-2, params={name: bad(given)})


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("background", [0.0, torch.zeros(1, 1, 1, 1), random(1).round()[:1]])
def test_an_energy_wants_a_background_at_once_and_a_saddle_point_does_not(background):
    physics = Denoising(GaussianNoise(0.1))
    with pytest.raises(InputError, match=r"background: given 0.*SaddleEnergy"):
        Energy(physics, TV(0.1), KL(background))
    y = counts() + 1
    energy = SaddleEnergy(physics, ExactTV(0.01), KL(background), tikhonov=0.1).double()
    found = lr.solve(energy, y, eps=1e-2)
    assert found.ok and (found.value > -1e-6).all()


def test_a_background_per_image_with_zeros_is_refused():
    with pytest.raises(InputError, match="background: given 0"):
        lr.solve(energies(KL(1.0))[0], counts(), eps=1e-2, params={"background": 0 * random(1)})


@pytest.mark.parametrize("make", [KL, PoissonGaussian])
@pytest.mark.parametrize(
    "given",
    [
        {"background": -1.0},
        {"background": float("nan")},
        {"background": "1"},
        {"gain": 0.0},
        {"gain": torch.zeros(1, 1)},
        {"background": torch.tensor(-1.0)},
    ],
    ids=str,
)
def test_numbers_out_of_range_are_refused(make, given):
    with pytest.raises(InputError, match=next(iter(given))):
        make(**given)


def test_negative_counts_are_refused_and_name_what_takes_them():
    with pytest.raises(InputError, match=r"counts >= 0.*PoissonGaussian"):
        KL(1.0).tie(counts() - 1)


def test_deepinvs_likelihood_without_a_background_is_one_of_saddle_points():
    physics = Denoising(GaussianNoise(0.1))
    with pytest.raises(InputError, match="background"):
        Energy(physics, TV(0.1), PoissonLikelihood(gain=2.0))
    assert SaddleEnergy(physics, ExactTV(), PoissonLikelihood(gain=2.0)).fidelity == KL(
        0.0, 2.0, scaled=True
    )
    r = torch.full((1, 1, 4, 5), 0.5)
    assert Energy(physics, TV(0.1), PoissonLikelihood(bkg=r)).fidelity == KL(r, scaled=True)


def test_equality_is_by_value():
    r = random(1)
    assert KL(r) == KL(r.clone()) != KL(r + 1)
    assert KL(1.0) != KL(r) and KL(1.0) == KL(1.0) and hash(KL(r)) == hash(KL(r.clone()))
    assert KL(1.0) != PoissonGaussian(1.0)


# --- L ----------------------------------------------------------------------------------------


def tomography() -> Tomography:
    angles = torch.linspace(0, 180, 9)[:-1]
    return Tomography(angles, 12, circle=False, normalize=False, adjoint_via_backprop=True).double()


@pytest.mark.parametrize("name", ["numbers", "background", "read-out"])
def test_the_curvature_of_counts_behind_a_nonnegative_operator_is_bounded_sharply(name):
    physics, x = tomography(), 0.2 + random(3, (2, 1, 12, 12))
    u = physics.A(x)
    y = torch.poisson(u, generator=torch.Generator().manual_seed(0))
    r = 0.5 + 3 * random(4, tuple(u.shape))
    term = {"numbers": KL(2.0), "background": KL(r), "read-out": PoissonGaussian(r, 1.5, 2.0)}[name]
    at = Energy(physics, Tikhonov(1e-3), term).double().at(y)
    function = at.data
    own, spectrum = function.constants(), at.operator.spectrum(x)
    matrix = physics.A(torch.eye(144, dtype=torch.float64).view(144, 1, 12, 12)).flatten(1).T
    found = data_constants(function, at.operator, x)
    for i in range(2):
        w = function.steepest()[i].flatten()
        exact = torch.linalg.matrix_norm(matrix.T @ (w[:, None] * matrix), 2)
        assert exact <= found.L[i] <= 1.2 * exact
        assert found.L[i] < own.L[i] * spectrum.L.max()
    assert found.L_kind is Kind.BOUND
    assert at.spent.hessian_products > 0


def test_a_signed_operator_keeps_the_bound_of_its_norm():
    kernel = torch.tensor([[[0.5, 1.0, -0.5]] * 3], dtype=torch.float64)[None]
    physics = Blur(filter=kernel, padding="circular").double()
    at = Energy(physics, Tikhonov(1e-3), KL(0.1 + random(2)[:1])).double().at(counts() + 1)
    expected = at.data.constants().L * at.operator.spectrum(counts()).L
    found = data_constants(at.data, at.operator, counts())
    torch.testing.assert_close(found.L, expected)


# --- what the models mean -------------------------------------------------------------------------


@pytest.mark.parametrize("gain", [0.5, 3.0])
@pytest.mark.parametrize("scaled", [False, True])
def test_a_gain_in_a_saddle_point_has_the_minimizer_of_one_pixel(gain, scaled):
    """1/g - y/(g u) + k a = 0 with u = a/g + r, alone for every pixel."""
    r, k, y = 0.4, 0.2, counts() + 1
    energy = SaddleEnergy(
        Denoising(GaussianNoise(0.1)), ExactTV(1e-9), KL(r, gain, scaled), tikhonov=k
    ).double()
    found = lr.solve(energy, y * gain if scaled else y, eps=1e-5)
    low, high = torch.zeros_like(y), torch.full_like(y, 100.0)
    for _ in range(80):
        a = (low + high) / 2
        slope = (1 - y / (a / gain + r)) / gain + k * a
        low, high = torch.where(slope < 0, a, low), torch.where(slope < 0, high, a)
    assert found.ok
    torch.testing.assert_close(found.value, a, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("rate", "sigma"), [(0.5, 1.0), (2.0, 0.7), (20.0, 3.0)])
def test_the_shifted_likelihood_estimates_what_was_measured(rate, sigma):
    """A constant from many measurements: right but for the bias of clipping, and nearer than KL of
    clipped data.
    """
    g, gain, n = torch.Generator().manual_seed(0), 2.0, 40000
    y = gain * torch.poisson(torch.full((n,), rate, dtype=torch.float64), generator=g)
    y = (y + sigma * torch.randn(n, generator=g, dtype=torch.float64))[None]

    def minimizer(term: KL | PoissonGaussian, y: Tensor) -> float:
        f, low, high = term.tie(y), 0.0, 200.0
        for _ in range(60):
            a = 0.5 * (low + high)
            rising = float(f.grad(torch.full_like(y, a)).sum()) > 0
            low, high = (low, a) if rising else (a, high)
        return low / gain

    shifted = y / gain + (sigma / gain) ** 2
    cut = float((-shifted).clamp_min(0).mean())
    error = abs(minimizer(PoissonGaussian(0.0, gain, sigma), y) - rate)
    standard = math.sqrt((rate + (sigma / gain) ** 2) / n)
    clipped = abs(minimizer(KL(1e-3, gain, scaled=True), y.clamp_min(0)) - rate)
    assert error <= 4 * standard + cut and error <= clipped + 2 * standard


def test_weights_of_counts_are_inverse_variances():
    g = torch.Generator().manual_seed(0)
    u = torch.full((1, 20000), 30.0, dtype=torch.float64)
    y = 2 * torch.poisson(u, generator=g) + 3 * torch.randn(u.shape, generator=g, dtype=u.dtype)
    weights = lr.problems.count_weights(y, gain=2.0, sigma=3.0)
    assert float((1 / weights).mean()) == pytest.approx(float(y.var()), rel=0.05)
    assert torch.isfinite(lr.problems.count_weights(y - 200)).all()


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "term",
    [
        KL(0.3 + random(1)[:1].float(), 2.0, scaled=True),
        KL(1.0, 0.5 + random(1)[:1].float()),
        PoissonGaussian(0.5, 2.0, 0.3),
        PoissonGaussian(random(1)[:1].float(), 2.0, 0.3),
    ],
    ids=["background", "gain", "read-out", "read-out background"],
)
def test_model_files_hold_the_tensors_of_a_data_term(term, tmp_path):
    energy = Energy(Denoising(GaussianNoise(0.1)), TV(0.1) + Tikhonov(0.1), term)
    loaded = lr.load_model(lr.save_model(tmp_path / "m.safetensors", energy))
    assert loaded.fidelity == term


# --- where a solve starts -------------------------------------------------------------------------


@pytest.mark.parametrize("gain", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("kind", ["smooth", "saddle"])
@pytest.mark.parametrize("denoising", [True, False])
def test_a_solve_of_counts_starts_in_the_units_of_the_image(gain, kind, denoising):
    """Neither gain nor background is part of the picture that is started from."""
    physics = Denoising(GaussianNoise(0.1)) if denoising else tomography()
    x = 0.2 + random(3, (2, 1, 12, 12))
    r = 5 + random(4, tuple(physics.A(x).shape))
    y = physics.A(x) / gain + r
    ridge = Tikhonov(0.1, learned=False)
    if kind == "smooth":
        of_counts, plain = Energy(physics, ridge, KL(r, gain)), Energy(physics, ridge)
    else:
        of_counts = SaddleEnergy(physics, ExactTV(), KL(r, gain), tikhonov=0.1)
        plain = SaddleEnergy(physics, ExactTV(), tikhonov=0.1)
    expected = plain.double().start(physics.A(x))
    torch.testing.assert_close(of_counts.double().start(y), expected)
    first = of_counts.at(y).first()
    if kind == "smooth":
        torch.testing.assert_close(first, expected)
    else:  # with the background, which keeps it from where A x = 0
        again = plain.start(physics.A(x) + gain * r)
        torch.testing.assert_close(first, again)
