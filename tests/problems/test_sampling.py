"""Learned sampling: patterns against formulas written down once more, the closed form without a
regularizer, difference quotients, coils, shapes, and masks as deepinv has them.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from deepinv.physics import MRI, Denoising, GaussianNoise, Inpainting, LinearPhysics, MultiCoilMRI
from torch import Tensor, nn

import learnreg as lr
from learnreg.core.errors import InputError, MissingPropertyError
from learnreg.learners.box import box_of
from learnreg.objectives.bilevel import Bilevel
from learnreg.problems import (
    L2,
    BilevelProblem,
    Energy,
    SaddleEnergy,
    SampledL2,
    SamplingWeights,
    SparsityPenalty,
    masked,
)
from learnreg.regularizers import TV, ExactTV, Tikhonov

H, W, KAPPA = 6, 5, 1.0  # its logarithm is exact
KINDS = ("free", "lines", "product", "radial")


class Plain(SimpleNamespace):
    def __len__(self) -> int:
        return len(self.y)


def drawn(*shape: int, seed: int = 0, complex: bool = False) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    kind = torch.complex128 if complex else torch.float64
    return torch.randn(shape, generator=g, dtype=kind)


def weights(kind: str = "free", seed: int = 0, shape=(H, W), **options) -> SamplingWeights:
    """A pattern with random numbers in (0, 1)."""
    made = SamplingWeights(shape, kind, **options).double()
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        made.numbers.copy_(0.1 + 0.8 * torch.rand(made.numbers.shape, generator=g))
    return made


def mri(h: int = H, w: int = W) -> MRI:
    return MRI(img_size=(2, h, w)).double()


def coils(count: int = 3) -> MultiCoilMRI:
    maps = drawn(count, H, W, seed=7, complex=True)
    return MultiCoilMRI(coil_maps=maps, img_size=(2, H, W)).double()


class ComplexMRI(LinearPhysics):
    """An operator of complex images with complex measurements."""

    def A(self, x, **kwargs):
        return torch.fft.fft2(x, norm="ortho")

    def A_adjoint(self, y, **kwargs):
        return torch.fft.ifft2(y, norm="ortho")


def problem(physics, term, images: int = 2, regularizer=None, noise=0.3, **arguments):
    """Random images, fully sampled measurements."""
    x = drawn(images, 2, H, W, seed=1)
    x = (
        torch.view_as_complex(x.movedim(1, -1).contiguous())[:, None]
        if arguments.pop("complex", False)
        else x
    )
    y = physics.A(x)
    y = y + noise * torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=y.dtype)
    energy = Energy(physics, regularizer or Tikhonov(KAPPA, learned=False), term)
    return BilevelProblem(energy, Plain(x=x, y=y), **arguments)


# --- patterns -------------------------------------------------------------------------------------


@pytest.mark.parametrize("parametrization", ["omega", "S"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_pattern_is_its_formula_and_its_derivative_a_difference_quotient(kind, parametrization):
    made = weights(kind, spokes=4, parametrization=parametrization)
    numbers = made.numbers.detach().clone()
    s = numbers**2 if parametrization == "S" else numbers
    expected = torch.zeros(H, W, dtype=torch.float64)
    for i in range(H):
        for j in range(W):
            if kind == "free":
                expected[i, j] = s[i * W + j]
            elif kind == "lines":
                expected[i, j] = s[j]
            elif kind == "product":
                expected[i, j] = s[j] * s[W + i * W + j]
            else:
                missed = 1.0
                for k in range(4):
                    angle = math.pi * k / 4
                    away = math.cos(angle) * (i - H // 2) - math.sin(angle) * (j - W // 2)
                    missed *= 1 - s[k] if abs(away) <= 0.5 else 1.0
                expected[i, j] = 1 - missed
    torch.testing.assert_close(made().detach(), expected)
    assert bool(((expected >= 0) & (expected <= 1)).all())

    v, direction = drawn(H, W, seed=3), drawn(len(numbers), seed=4)
    (slope,) = torch.autograd.grad((made() * v).sum(), made.numbers)
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            made.numbers.copy_(numbers + sign * 1e-6 * direction)
            ends.append(float((made() * v).sum()))
    assert float(slope @ direction) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-6)


def test_derivatives_of_spokes_hold_where_everything_is_measured():
    """All factors of a product of 1 - omega are zero then."""
    made = SamplingWeights((H, W), "radial", spokes=3)
    (slope,) = torch.autograd.grad(made().sum(), made.omega)
    alone = []
    for k in range(3):
        others = torch.ones(3).index_fill(0, torch.tensor([k]), 0.0)
        without = SamplingWeights((H, W), "radial", spokes=3, start=others)
        alone.append(float((made.mask() - without.mask()).sum()))
    assert slope.tolist() == pytest.approx(alone)  # linear in each number
    assert not torch.isnan(slope).any() and float(slope.sum()) > 0


def test_spokes_cover_everything_by_default_and_all_cross_the_zero_frequency():
    for shape in ((8, 8), (9, 6), (1, 7)):
        made = SamplingWeights(shape, "radial")
        assert bool((made() == 1).all())
        middle = (shape[0] // 2) * shape[1] + shape[1] // 2
        assert int((made.place_of == middle).sum()) == made.spokes


def test_lines_of_any_axes():
    views = weights("lines", shape=(4, 7), axis=1)
    rows = weights("lines", shape=(4, 7), axis=-2)
    assert views.numbers.numel() == 7 and rows.numbers.numel() == 4
    assert bool((views() == views()[:1]).all()) and bool((rows() == rows()[:, :1]).all())
    assert weights("lines", shape=(3, 4, 7), axis=(0, 2)).numbers.numel() == 21
    assert weights("product", shape=(3, 4, 7), axis=(0, 2)).numbers.numel() == 21 + 84


@pytest.mark.parametrize("kind", KINDS)
def test_binary_patterns(kind):
    made = weights(kind, spokes=4)
    some = made.binary(threshold=0.5)
    assert set(some().unique().tolist()) <= {0.0, 1.0}
    if kind != "radial":
        assert some().equal((made() > 0.5).double())
    assert not some.numbers.requires_grad and made.numbers.requires_grad
    before = 0.0
    for fraction in (0.2, 0.5, 1.0):
        part = made.binary(fraction=fraction) if (kind, fraction) != ("lines", 0.1) else some
        share = part.sampled()
        assert 0 < share <= fraction and share >= before
        before = share
    assert made.binary().sampled() == made.sampled()


def test_the_most_important_are_taken():
    made = SamplingWeights((1, 4), start=torch.tensor([[0.1, 0.9, 0.0, 0.4]]))
    assert made.binary(fraction=0.5)().tolist() == [[0, 1, 0, 1]]
    assert made.binary(fraction=1.0)().tolist() == [[1, 1, 0, 1]]  # zero is not wanted
    assert made.binary(threshold=0.4)().tolist() == [[0, 1, 0, 0]]


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"shape": ()}, "shape"),
        ({"shape": (4, 0)}, "shape"),
        ({"shape": 4}, "shape"),
        ({"shape": (4,), "kind": "radial"}, "(h, w)"),
        ({"kind": "circle"}, "kind"),
        ({"parametrization": "s"}, "parametrization"),
        ({"kind": "lines", "axis": 2}, "axis"),
        ({"kind": "lines", "axis": (0, 0)}, "axis"),
        ({"kind": "radial", "spokes": 0}, "spokes"),
        ({"start": 0.0}, "start"),
        ({"start": 1.1}, "start"),
        ({"start": torch.ones(4)}, "start"),
        ({"start": torch.full((4, 4), 2.0)}, "start"),
        ({"start": torch.ones(4, 4, dtype=torch.int64)}, "start"),
        ({"start": torch.full((4, 4), math.nan)}, "start"),
    ],
)
def test_what_is_no_pattern_is_refused(arguments, words):
    with pytest.raises(InputError) as refused:
        SamplingWeights(**{"shape": (4, 4), **arguments})
    assert words in str(refused.value)


@pytest.mark.parametrize(
    "options", [{"threshold": 1.0}, {"threshold": 0.95}, {"fraction": 0.0}, {"fraction": 0.01}]
)
def test_a_binary_pattern_of_nothing_is_refused(options):
    with pytest.raises(InputError, match=next(iter(options))):
        weights().binary(**options)


# --- the data term --------------------------------------------------------------------------------


def test_the_closed_form_without_a_regularizer():
    """x = F^-1(omega y / (omega + kappa)), and its derivative in omega, frequency by frequency."""
    term = SampledL2(weights())
    p = problem(mri(), term)
    omega, y, truth = term.weights().detach(), p.pairs.y, mri().A(p.pairs.x)
    x = lr.solve(p.energy, y, 1e-12).value
    expected = mri().A_adjoint(omega * y / (omega + KAPPA))
    assert float((x - expected).abs().max()) < 1e-12

    z = lr.hypergradient(p, eps=1e-12, delta=1e-12).value
    moved = omega * y / (omega + KAPPA) - truth
    slope = (moved * KAPPA * y / (omega + KAPPA) ** 2).sum(dim=1).mean(dim=0)  # Re(conj(r) y)
    assert float((z - slope.flatten()).abs().max()) < 1e-12 * float(slope.abs().max())


SETTINGS = {
    "mri": (mri, {}),
    "coils": (coils, {}),
    "complex": (ComplexMRI, {"complex": True}),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_hypergradients_are_difference_quotients_of_the_whole(setting, kind):
    """In omega and in the weight of the regularizer together, penalty included."""
    physics, options = SETTINGS[setting]
    regularizer = TV(0.1, 0.3, channels="joint") + Tikhonov(0.1, learned=False)
    energy_term = SampledL2(weights(kind, spokes=4))
    p = problem(physics(), energy_term, regularizer=regularizer.double(), **options)
    p.penalty = SparsityPenalty.of(p.energy, 0.3, 0.2)
    objective, theta = Bilevel(p), p.theta
    z = objective.gradient(objective.evaluate(theta, 1e-11), 1e-11, None, "none").value
    d = drawn(len(theta), seed=5)
    ends = [objective.evaluate(theta + s * 1e-5 * d, 1e-11).loss for s in (1, -1)]
    assert float(z @ d) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6)


def derivative(physics, term, **options) -> Tensor:
    p = problem(physics, term, **options)
    return lr.hypergradient(p, eps=1e-12, delta=1e-12).value


def test_the_derivative_of_a_line_is_the_sum_of_those_of_its_measurements():
    lines = weights("lines")
    free = SamplingWeights((H, W), start=lines().detach())
    whole, each = derivative(mri(), SampledL2(lines)), derivative(mri(), SampledL2(free))
    torch.testing.assert_close(whole, each.view(H, W).sum(dim=0))


def test_coils_and_images_share_one_pattern_and_their_derivatives_are_summed():
    """Against a pattern with a number for every coil, and against single images."""
    term = SampledL2(weights())
    apart = SampledL2(
        SamplingWeights((3, H, W), start=term.weights().detach().expand(3, H, W).contiguous())
    )
    whole = derivative(coils(), term)
    each = derivative(coils(), apart)
    torch.testing.assert_close(whole, each.view(3, -1).sum(dim=0))

    p = problem(mri(), term, images=3)
    together = lr.hypergradient(p, eps=1e-12, delta=1e-12).value
    alone = [
        lr.hypergradient(p.select(torch.tensor([i])), eps=1e-12, delta=1e-12).value
        for i in range(3)
    ]
    torch.testing.assert_close(together, sum(alone) / 3)


def test_zero_is_absorbing_for_the_root_and_not_for_omega():
    """A measurement that is switched off, although using it would lower the loss."""
    start = torch.full((H, W), 0.5, dtype=torch.float64)
    start[1, 2] = 0.0
    found = {
        name: derivative(
            mri(), SampledL2(SamplingWeights((H, W), parametrization=name, start=start)), noise=0.01
        )
        for name in ("omega", "S")
    }
    place = W + 2
    assert float(found["omega"][place]) < -1e-2
    assert float(found["S"][place]) == 0.0
    others = torch.arange(H * W) != place
    torch.testing.assert_close(found["S"][others], 2 * 0.5**0.5 * found["omega"][others])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constants_are_those_of_the_weights(dtype):
    made = weights()
    p = problem(mri(), SampledL2(made))
    energy = p.energy.with_theta(p.theta.to(dtype))
    constants = energy.at(p.pairs.y.to(dtype)).constants
    assert float(constants.mu) == pytest.approx(float(made().detach().min()) + KAPPA, rel=1e-6)
    assert float(constants.L) == pytest.approx(float(made().detach().max()) + KAPPA, rel=1e-6)
    assert constants.mu_kind.certifies


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_a_data_term_like_others(kind):
    made = SampledL2(weights(kind, spokes=4))
    lr.testing.check_data_term(made, drawn(3, 2, H, W, seed=9))


def test_any_module_may_give_the_weights():
    class Density(nn.Module):
        """A Gaussian around the zero frequency, of a width to learn."""

        def __init__(self):
            super().__init__()
            self.width = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

        def forward(self):
            down, right = (torch.linspace(-1, 1, n, dtype=torch.float64) for n in (H, W))
            return torch.exp(-(down[:, None] ** 2 + right**2) / self.width**2)

    p = problem(mri(), SampledL2(Density()))
    z = lr.hypergradient(p, eps=1e-12, delta=1e-12).value
    objective = Bilevel(p)
    ends = [objective.evaluate(p.theta + s * 1e-5, 1e-12).loss for s in (1, -1)]
    assert float(z) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6)
    with pytest.raises(InputError, match="start="):
        p.energy.fidelity.binary()


def test_views_of_a_sinogram_and_pixels_of_a_picture():
    """Nothing is about frequencies: lines along the axis of the views, free pixels."""
    physics = Denoising(GaussianNoise(0.1))
    y = drawn(2, 1, H, W)
    made = weights("lines", axis=0)
    energy = Energy(physics, Tikhonov(KAPPA, learned=False), SampledL2(made))
    x = lr.solve(energy, y, 1e-12).value
    omega = made().detach()
    torch.testing.assert_close(x, omega * y / (omega + KAPPA))


@pytest.mark.parametrize(
    "shape, y",
    [
        ((W, H), (2, 2, H, W)),
        ((H, W + 1), (2, 2, H, W)),
        ((2, 2, H, W), (2, 2, H, W)),
        ((H,), (1, H, W)),
    ],
)
def test_a_pattern_of_another_shape_is_refused(shape, y):
    with pytest.raises(InputError, match="last axes"):
        SampledL2(SamplingWeights(shape)).tie(torch.zeros(y))


def test_complex_measurements_have_one_weight_per_number():
    made = weights()
    function = SampledL2(made).tie(torch.zeros(3, 4, H, W, 2, dtype=torch.float64))
    a = torch.ones(3, 4, H, W, 2, dtype=torch.float64)
    assert function.grad(a).equal(made().detach()[..., None].expand_as(a))


def test_weights_out_of_their_range_say_that_a_box_is_missing():
    made = weights()
    with torch.no_grad():
        made.omega[3] = -0.1
    with pytest.raises(MissingPropertyError, match="box"):
        SampledL2(made).tie(torch.zeros(1, 2, H, W))


@pytest.mark.parametrize("value", [torch.ones(H, W), SamplingWeights, 3.0])
def test_what_gives_no_weights_is_refused(value):
    with pytest.raises(InputError, match="SamplingWeights"):
        SampledL2(value)


def test_saddle_points_refuse_it_in_words():
    with pytest.raises(InputError, match="differentiable Energy"):
        SaddleEnergy(mri(), ExactTV(), SampledL2(weights()))


# --- names, boxes, penalties ----------------------------------------------------------------------


def test_one_word_names_the_numbers_in_a_box():
    p = problem(mri(), SampledL2(weights()), regularizer=TV() + Tikhonov(0.1, learned=False))
    objective = Bilevel(p)
    for key in ("omega", "weights.omega", "fidelity.weights.omega"):
        box = box_of({key: [0, 1]}, objective)
        inside = torch.isfinite(box.lower)
        assert int(inside.sum()) == H * W and bool(inside[2:].all())
    for key in ("omeg", "mega", "fidelity"):
        with pytest.raises(InputError, match="no parameter"):
            box_of({key: [0, 1]}, objective)


@pytest.mark.parametrize("parametrization", ["omega", "S"])
def test_the_penalty_counts_the_numbers_of_the_pattern_alone(parametrization):
    made = weights("lines", parametrization=parametrization)
    regularizer = TV() + Tikhonov(0.1, learned=False)
    energy = Energy(mri(), regularizer, SampledL2(made))
    penalty = SparsityPenalty.of(energy, 0.3, 0.7)
    p = BilevelProblem(energy, problem(mri(), SampledL2(made)).pairs, penalty=penalty)
    s = made.numbers.detach()
    value, slope = p.penalty_at(p.theta)
    assert value == pytest.approx(float((0.3 * s + 0.7 * s * (1 - s)).sum()) / W)
    expected = torch.cat([torch.zeros(2), (0.3 + 0.7 * (1 - 2 * s)) / W])
    torch.testing.assert_close(slope, expected.to(slope))

    for end in (0.0, 1.0):  # where a box holds numbers
        _, slope = p.penalty_at(torch.full_like(p.theta, end))
        assert slope[2:].tolist() == pytest.approx([(0.3 + 0.7 * (1 - 2 * end)) / W] * W)


def test_a_penalty_without_a_pattern_is_refused():
    fixed = SampledL2(weights().binary())
    for energy in (Energy(mri(), TV()), Energy(mri(), TV(), fixed)):
        with pytest.raises(InputError, match="SamplingWeights"):
            SparsityPenalty.of(energy)
    with pytest.raises(InputError, match="beta0"):
        SparsityPenalty(0, 3, -1.0)


# --- masks of deepinv -----------------------------------------------------------------------------


@pytest.mark.parametrize("physics", [mri(), coils()], ids=["mri", "coils"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_binary_pattern_is_a_mask_of_deepinv(physics, kind):
    """The energy of the masked operator, with what it measures, has the same minimizer."""
    term = SampledL2(weights(kind, spokes=3)).binary(threshold=0.4)
    through = masked(physics, term.weights.mask())
    y = physics.A(drawn(2, 2, H, W))
    kept = term.weights.mask() * y
    regularizer = TV(0.1, 0.3).double() + Tikhonov(0.1, learned=False).double()
    one = lr.solve(Energy(physics, regularizer, term), y, 1e-10).value
    two = lr.solve(Energy(through, regularizer, L2()), kept, 1e-10).value
    assert float((one - two).norm()) <= 2e-10
    assert bool((physics.mask == 1).all()), "what was lent is as it was"


@pytest.mark.parametrize("place", [(H // 2, W // 2), (H // 2 + 1, W // 2), (H // 2, W // 2 - 2)])
def test_a_place_of_the_pattern_is_the_frequency_that_deepinv_has_there(place):
    """Only the weight of one frequency is positive: the image is a wave of that frequency."""
    start = torch.zeros(H, W, dtype=torch.float64)
    start[place] = 1.0
    energy = Energy(
        mri(), Tikhonov(KAPPA, learned=False), SampledL2(SamplingWeights((H, W), start=start))
    )
    y = torch.ones(1, 2, H, W, dtype=torch.float64)
    x = lr.solve(energy, y, 1e-12).value
    wave = torch.complex(x[0, 0], x[0, 1])
    down, right = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    turns = (place[0] - H // 2) * (down - H // 2) / H + (place[1] - W // 2) * (right - W // 2) / W
    expected = torch.exp(2j * math.pi * turns) * (1 + 1j) / (1 + KAPPA) / math.sqrt(H * W)
    torch.testing.assert_close(wave, expected.to(wave))


def test_lines_are_columns_of_k_space_as_those_of_deepinv():
    lines = SamplingWeights((H, W), "lines", start=torch.tensor([1.0, 0, 0, 1, 0]))
    assert lines.mask().sum(dim=0).tolist() == [H, 0, 0, H, 0]
    through = masked(mri(), lines.mask())
    y = through.A(drawn(1, 2, H, W))
    assert bool((y[..., [1, 2, 4]] == 0).all()) and bool((y[..., [0, 3]] != 0).any())


def test_volumes():
    """Lines along one axis of k-space, measured at all places of the two others."""
    made = weights("lines", shape=(3, H, W), axis=(1, 2)).binary(threshold=0.5)
    volume = MRI(img_size=(2, 3, H, W), three_d=True).double()
    through = masked(volume, made.mask())
    y = volume.A(drawn(1, 2, 3, H, W))
    regularizer = TV(0.1, 0.3).double() + Tikhonov(0.1, learned=False).double()
    one = lr.solve(Energy(volume, regularizer, SampledL2(made)), y, 1e-9).value
    two = lr.solve(Energy(through, regularizer), made.mask() * y, 1e-9).value
    assert float((one - two).norm()) <= 2e-9


def test_an_operator_without_a_mask_is_refused_with_another_way():
    with pytest.raises(InputError, match="binary pattern"):
        masked(ComplexMRI(), torch.ones(H, W))
    with pytest.raises(InputError, match="last axes"):
        masked(mri(), torch.ones(W, H))
    pixels = Inpainting((1, H, W), mask=torch.ones(1, H, W))
    assert int(masked(pixels, torch.eye(H, W)).mask.sum()) == W


# --- as a file ------------------------------------------------------------------------------------


@pytest.mark.parametrize("binary", [False, True], ids=["weights", "binary"])
@pytest.mark.parametrize("parametrization", ["omega", "S"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_file_keeps_the_pattern(kind, parametrization, binary, tmp_path):
    made = weights(kind, spokes=4, parametrization=parametrization)
    made = made.binary(threshold=0.3) if binary else made
    energy = Energy(mri(), TV() + Tikhonov(0.1, learned=False), SampledL2(made))
    again = lr.load_model(lr.save_model(tmp_path / "model.safetensors", energy))
    assert again.fidelity.weights().detach().equal(made().detach())
    assert again.fidelity.weights.spec() == made.spec()
    assert again.fidelity.weights.numbers.requires_grad is not binary
    assert again.fidelity.weights.numbers.dtype == torch.float64


def test_a_file_whose_numbers_do_not_fit_its_pattern_is_damaged(tmp_path):
    made = weights()
    made.spec = lambda: {**SamplingWeights.spec(made), "shape": [10**6, 10**6]}
    energy = Energy(mri(), TV() + Tikhonov(0.1, learned=False), SampledL2(made))
    path = lr.save_model(tmp_path / "model.safetensors", energy)
    with pytest.raises(InputError, match="damaged"):
        lr.load_model(path)


def test_weights_of_ones_own_come_back_into_an_object_of_their_class(tmp_path):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.share = nn.Parameter(torch.tensor(0.25, dtype=torch.float64))

        def forward(self):
            return self.share.expand(H, W)

    energy = Energy(mri(), TV() + Tikhonov(0.1, learned=False), SampledL2(Own()))
    energy.fidelity.weights.share.data.fill_(0.75)
    path = lr.save_model(tmp_path / "model.safetensors", energy)
    with pytest.raises(InputError, match="fidelity="):
        lr.load_model(path)
    again = lr.load_model(path, fidelity=SampledL2(Own()))
    assert float(again.fidelity.weights.share.detach()) == 0.75
