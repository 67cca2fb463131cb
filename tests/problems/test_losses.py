"""Upper losses: values, derivatives and brackets, with and without ground truth."""

from __future__ import annotations

import math

import deepinv
import pytest
import torch
from torch import Tensor

import learnreg as lr
from learnreg.core.batch import expand, norm
from learnreg.core.bounds import Kind
from learnreg.core.errors import InputError, MissingPropertyError
from learnreg.core.maps import Upper
from learnreg.core.measured import real_channels
from learnreg.problems import BilevelProblem, Energy, gallery
from learnreg.problems.losses import (
    Custom,
    ScaledSquaredError,
    SquaredError,
    WeightedSquaredError,
    as_loss,
    tied_loss,
)
from learnreg.problems.measurement_losses import SURE, Whiteness
from learnreg.regularizers import TV, Tikhonov

SHAPE = (3, 1, 8, 7)
SIGMA = 0.1


def images(seed: int, count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((count, *SHAPE[1:]), generator=generator, dtype=torch.float64)


def mask() -> Tensor:
    return (images(7)[0] > 0.4).double() * 2.5


def blur() -> torch.nn.Module:
    """A periodic one, whose singular values are known."""
    kernel = torch.tensor([[0.1, 0.2, 0.1], [0.2, 0.4, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    return deepinv.physics.BlurFFT(SHAPE[1:], filter=kernel[None, None])


def smooth_energy(physics: torch.nn.Module | None = None) -> Energy:
    regularizer = TV(0.05, 0.1) + Tikhonov(0.1, learned=False)
    return Energy(physics or deepinv.physics.Denoising(), regularizer).double()


def of_measurements(loss: SURE | Whiteness, physics: torch.nn.Module | None = None) -> Upper:
    return BilevelProblem(smooth_energy(physics), images(1), loss).upper


CERTIFIED = {
    "squared": lambda: tied_loss(SquaredError(), images(1)),
    "scaled": lambda: tied_loss(ScaledSquaredError(3.0, mean=True), images(1)),
    "weighted": lambda: tied_loss(WeightedSquaredError(mask()), images(1)),
    "weighted lightly": lambda: tied_loss(WeightedSquaredError(0.1 * mask()), images(1)),
    "SURE": lambda: of_measurements(SURE(SIGMA)),
    "SURE of a blur": lambda: of_measurements(SURE(SIGMA, tau=0.05, seed=3), blur()),
}
ESTIMATED = {
    "L1": lambda: tied_loss(Custom(torch.nn.L1Loss()), images(1)),
    "fourth powers": lambda: tied_loss(
        Custom(lambda x, t: (x - t).pow(4).flatten(1).sum(dim=1)), images(1)
    ),
    "whiteness": lambda: of_measurements(Whiteness()),
    "whiteness of a blur": lambda: of_measurements(Whiteness(), blur()),
}
ALL = CERTIFIED | ESTIMATED


def count(name: str) -> int:
    """SURE asks for every image twice."""
    return 6 if name.startswith("SURE") else 3


@pytest.mark.parametrize("name", ALL)
def test_the_gradient_is_the_slope_of_the_value(name):
    upper, x, v = ALL[name](), images(2, count(name)), images(3, count(name)) - 0.5
    h = 1e-6
    slope = (upper.grad(x) * v).flatten(1).sum(dim=1)
    found = (upper.value(x + h * v) - upper.value(x - h * v)) / (2 * h)
    assert torch.allclose(found, slope, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("eps", [1e-3, 0.1, 2.0])
@pytest.mark.parametrize("name", CERTIFIED)
def test_no_image_in_the_ball_leaves_a_certified_bracket(name, eps):
    upper, x = CERTIFIED[name](), images(2, count(name))
    lower, upper_end = upper.bracket(x, torch.full((count(name),), eps, dtype=torch.float64))
    assert upper.kind.certifies
    slope = upper.grad(x)
    for seed in range(20):
        v = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)
        for direction in (v, slope, -slope):
            moved = x + expand(eps / norm(direction).clamp_min(1e-300), x) * direction
            value = upper.value(moved)
            assert (lower - 1e-12 <= value).all() and (value <= upper_end + 1e-12).all()


@pytest.mark.parametrize("name", ESTIMATED)
def test_an_estimated_bracket_says_so_and_is_right_to_first_order(name):
    upper, x = ESTIMATED[name](), images(2)
    eps = torch.full((3,), 1e-5, dtype=torch.float64)
    lower, upper_end = upper.bracket(x, eps)
    assert upper.kind is Kind.ESTIMATE and not upper.smooth.certified
    wanted = norm(upper.grad(x)) * eps
    assert torch.allclose((upper_end - lower) / 2, wanted, rtol=1e-3)
    unknown = upper.bracket(x, torch.full((3,), math.inf, dtype=torch.float64))
    assert (unknown[0] == -math.inf).all() and (unknown[1] == math.inf).all()


@pytest.mark.parametrize("name", ALL)
def test_images_are_strangers_and_types_are_kept_apart(name):
    upper, x = ALL[name](), images(2, count(name))
    index = torch.tensor([2, 0])
    part = upper.select(index)
    assert torch.allclose(part.value(x[index]), upper.value(x)[index], rtol=1e-13)
    assert torch.allclose(part.grad(x[index]), upper.grad(x)[index], rtol=1e-12, atol=1e-15)
    narrow = upper.to(torch.float32)
    assert narrow.grad(x.float()).dtype == torch.float32
    assert torch.allclose(narrow.value(x.float()).double(), upper.value(x), rtol=1e-3, atol=1e-4)


def test_words_about_constants_are_taken_and_not_called_certified():
    x, truth = images(2), images(1)
    eps = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    plain = Custom(lambda a, b: (a - b).abs().flatten(1).sum(dim=1), lipschitz=10.0)
    lower, upper = tied_loss(plain, truth).bracket(x, eps)
    assert torch.allclose(upper - lower, 20 * eps)
    smooth = tied_loss(Custom(SquaredError().value, smoothness=1.0), truth)
    exact = SquaredError().bracket(x, truth, eps)
    found = smooth.bracket(x, eps)
    assert (found[0] <= exact[0] + 1e-12).all() and (found[1] >= exact[1] - 1e-12).all()
    assert smooth.smooth.kind is Kind.ESTIMATE and smooth.kind is Kind.ESTIMATE


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_squared_errors_of_torch_are_translated(reduction):
    x, truth = images(2), images(1)
    theirs = torch.nn.MSELoss(reduction=reduction)
    found = tied_loss(as_loss(theirs), truth).value(x)
    wanted = torch.stack([theirs(a, b) for a, b in zip(x, truth, strict=True)])
    assert torch.allclose(found, wanted, rtol=1e-12)


def test_a_mean_over_the_batch_is_taken_image_by_image():
    x, truth = images(2), images(1)
    found = tied_loss(as_loss(torch.nn.L1Loss()), truth).value(x)
    assert torch.allclose(found, (x - truth).abs().flatten(1).mean(dim=1))


def test_a_network_judges_in_its_own_type_and_is_not_touched():
    torch.manual_seed(0)
    network = torch.nn.Conv2d(1, 2, 3)
    kept = network.weight.detach().clone()
    distance = Custom(_Perceptual(network))
    upper, x = tied_loss(distance, images(1)), images(2)
    assert upper.value(x).dtype == torch.float64 and upper.grad(x).dtype == torch.float64
    wanted = (network(x.float()) - network(images(1).float())).flatten(1).square().sum(dim=1)
    assert torch.allclose(upper.value(x), wanted.double(), rtol=1e-5)
    assert network.weight.dtype == torch.float32 and torch.equal(network.weight, kept)


class _Perceptual(torch.nn.Module):
    """The squared distance of features."""

    def __init__(self, features: torch.nn.Module) -> None:
        super().__init__()
        self.features = features

    def forward(self, x: Tensor, truth: Tensor) -> Tensor:
        return (self.features(x) - self.features(truth)).flatten(1).square().sum(dim=1)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (deepinv.loss.metric.SSIM(), r"larger for better images.*SSIM\(train_loss=True\)"),
        (SquaredError, "loss: given the class SquaredError"),
        (3.0, "loss: given 3.0"),
        (torch.nn.L1Loss, "given the class L1Loss"),
    ],
)
def test_what_is_no_loss_is_refused(loss, message):
    with pytest.raises(InputError, match=message):
        BilevelProblem(smooth_energy(), lr.data.Pairs(images(1), images(2), blur(), "abc"), loss)


def test_a_function_without_a_derivative_or_of_the_wrong_shape_is_refused():
    truth = images(1)
    with pytest.raises(InputError, match="without a derivative"):
        tied_loss(Custom(lambda x, t: (x - t).detach().flatten(1).sum(1)), truth).grad(truth)
    with pytest.raises(InputError, match="one number per image"):
        tied_loss(Custom(lambda x, t: x - t), truth).value(truth)
    with pytest.raises(InputError, match="smoothness: given -1"):
        Custom(torch.nn.L1Loss(), smoothness=-1.0)
    with pytest.raises(InputError, match="weights"):
        WeightedSquaredError(-mask())


def test_a_function_of_complex_images_sees_complex_images():
    x, truth = (torch.complex(images(k), images(k + 1)) for k in (2, 5))
    physics = deepinv.physics.Denoising()
    pairs = lr.data.Pairs(truth, truth, physics, "abc")
    energy = Energy(physics, TV(0.05, 0.1)).double()
    problem = BilevelProblem(
        energy, pairs, lambda a, b: (a.abs() - b.abs()).square().flatten(1).sum(dim=1)
    )
    wanted = (x.abs() - truth.abs()).square().flatten(1).sum(dim=1)
    assert torch.allclose(problem.upper.value(real_channels(x)), wanted)
    with pytest.raises(InputError, match="complex values"):
        BilevelProblem(energy, pairs, lambda a, b: (a - b).flatten(1).sum(dim=1)).upper.value(
            real_channels(x)
        )


def test_a_function_may_write_to_its_arguments_and_changes_nothing():
    truth, x = images(1), images(2)
    kept = truth.clone(), x.clone()

    def rough(a: Tensor, b: Tensor) -> Tensor:
        return (a.clamp_(0.2, 0.8) - b.clamp_(0.2, 0.8)).square().flatten(1).sum(dim=1)

    upper = tied_loss(Custom(rough), truth)
    upper.value(x), upper.grad(x), upper.bracket(x, torch.full((3,), 0.1).double())
    assert torch.equal(truth, kept[0]) and torch.equal(x, kept[1])


def test_weights_of_each_image_follow_the_batch():
    weights, x = images(3), images(2)
    upper = tied_loss(WeightedSquaredError(weights), images(1))
    for index in (torch.tensor([2]), torch.tensor([2, 0])):
        part = upper.select(index)
        assert torch.allclose(part.value(x[index]), upper.value(x)[index])
        assert torch.allclose(part.grad(x[index]), upper.grad(x)[index])
    physics = deepinv.physics.Denoising(deepinv.physics.GaussianNoise(SIGMA))
    train, _ = lr.data.pairs("phantoms", physics, size=16, split=(3, 1), seed=0)
    each = WeightedSquaredError(torch.rand(train.x.shape))
    problem = BilevelProblem(Energy(physics, TV(0.05, 0.1)), train, each)
    lr.learn(problem, lr.Stochastic(batch=1), budget=lr.Budget(steps=1))
    with pytest.raises(InputError, match="those of 2 images"):
        BilevelProblem(Energy(physics, TV()), train, WeightedSquaredError(torch.ones(2, 1, 16, 16)))


def test_what_goes_wrong_in_a_function_is_said_in_words():
    network = torch.nn.Conv2d(1, 1, 3)
    with pytest.raises(InputError, match=r"Wrap a network in an nn\.Module"):
        tied_loss(Custom(lambda a, b: network(a - b).flatten(1).sum(1)), images(1)).value(images(2))
    with pytest.raises(InputError, match="cannot be called with two images"):
        Custom(lambda a: a)
    with pytest.raises(InputError, match="take SSIM or"):
        metric = deepinv.loss.metric.PSNR(train_loss=True)
        tied_loss(Custom(metric), images(1)).grad(images(2))


def test_a_loss_that_becomes_nan_ends_the_run_in_words():
    physics = deepinv.physics.Denoising(deepinv.physics.GaussianNoise(SIGMA))
    train, _ = lr.data.pairs("phantoms", physics, size=16, split=(2, 1), seed=0)
    problem = BilevelProblem(
        Energy(physics, TV()), train, lambda a, b: (a - b).flatten(1).sum(1) * math.nan
    )
    run = lr.learn(problem, lr.MAID(), budget=lr.Budget(steps=2))
    assert run.stop.code == "not_finite" and "the loss is nan" in run.stop.sentence


# --- without ground truth -------------------------------------------------------------------------


def test_sure_of_a_linear_smoother_is_its_closed_form():
    """x(y) = y / (1 + w): residual, and divergence 1 / (1 + w) per pixel, whatever the probe."""
    weight, y = 0.3, images(1)
    energy = Energy(deepinv.physics.Denoising(), Tikhonov(weight).double())
    problem = BilevelProblem(energy, y, SURE(SIGMA, seed=5))
    x = torch.cat([y, problem.data[3:]]) / (1 + weight)
    share = weight / (1 + weight)
    residual = share**2 * y.flatten(1).square().mean(dim=1)
    wanted = residual - SIGMA**2 + 2 * SIGMA**2 / (1 + weight)
    assert float(problem.upper.value(x).mean()) == pytest.approx(float(wanted.mean()), rel=1e-10)


def test_sure_is_unbiased():
    """Its mean over noise is the mean squared error, of a smoother that is not linear."""
    energy, truth = smooth_energy(), images(1, 1).expand(400, -1, -1, -1)
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(0), dtype=truth.dtype)
    y = truth + SIGMA * noise
    problem = BilevelProblem(energy, y, SURE(SIGMA))
    x = lr.solve(energy, problem.data, 1e-7).value
    estimated = problem.upper.value(x)
    each = (estimated[:400] + estimated[400:]) / 2
    true = (x[:400] - truth).flatten(1).square().mean(dim=1)
    gap = each - true
    assert abs(float(gap.mean())) < 4 * float(gap.std()) / 20
    assert float(each.mean()) == pytest.approx(float(true.mean()), rel=0.05)


def test_sure_counts_what_is_measured_only():
    """With a mask its mean is the mean squared error of the pixels that are seen."""
    seen = (images(9, 1)[0] > 0.6).double()
    physics = deepinv.physics.Inpainting(SHAPE[1:], mask=seen)
    truth = images(1, 1).expand(300, -1, -1, -1)
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(0), dtype=truth.dtype)
    energy = smooth_energy(physics)
    problem = BilevelProblem(energy, seen * (truth + SIGMA * noise), SURE(SIGMA))
    x = lr.solve(energy, problem.data, 1e-6).value
    values = problem.upper.value(x)
    estimated = (values[:300] + values[300:]) / 2
    true = (seen * (x[:300] - truth)).flatten(1).square().sum(dim=1) / seen.sum()
    gap = estimated - true
    assert abs(float(gap.mean())) < 4 * float(gap.std()) / math.sqrt(300)
    assert float(estimated.mean()) > 0


@pytest.mark.parametrize("loss", [SURE(SIGMA), Whiteness()], ids=["SURE", "whiteness"])
@pytest.mark.parametrize("physics", [None, blur()], ids=["denoising", "blur"])
def test_the_hypergradient_is_that_of_the_loss_of_exact_minimizers(physics, loss):
    problem = BilevelProblem(smooth_energy(physics), images(1), loss)

    def f(theta: Tensor) -> float:
        x = lr.solve(problem.energy.with_theta(theta), problem.data, 1e-10).value
        return float(problem.upper.value(x).mean())

    found = lr.hypergradient(problem, 1e-9, 1e-10)
    for k in range(len(problem.theta)):
        unit = torch.zeros_like(problem.theta)
        unit[k] = 1e-4
        slope = (f(problem.theta + unit) - f(problem.theta - unit)) / 2e-4
        assert float(found.value[k]) == pytest.approx(slope, rel=1e-5, abs=1e-9)
    assert found.bracket[0] <= found.loss <= found.bracket[1]


def test_whiteness_knows_white_noise_from_a_wave_and_has_no_unit():
    noise = torch.randn(4, 1, 64, 64, generator=torch.Generator().manual_seed(0)).double()
    wave = torch.cos(2 * math.pi * torch.arange(64) / 8).double().expand(1, 1, 64, 64)
    upper = BilevelProblem(smooth_energy(), torch.zeros_like(noise), Whiteness()).upper
    assert torch.allclose(upper.value(noise), torch.full((4,), 2.0).double(), atol=0.15)
    assert torch.allclose(upper.value(1e4 * noise), upper.value(noise), rtol=1e-10)
    one = upper.select(torch.tensor([0]))
    assert float(one.value(wave)) == pytest.approx(64 * 64 / 2, rel=1e-6)
    spike = torch.zeros_like(wave)
    spike[..., 3, 5] = 1.0
    assert float(one.value(spike)) == pytest.approx(1.0, rel=1e-10)


@pytest.mark.parametrize(
    "loss",
    [
        deepinv.loss.metric.SSIM(train_loss=True),
        torch.nn.L1Loss(),
        SURE(SIGMA),
        Whiteness(),
        WeightedSquaredError(torch.ones(1, 1, 1)),
    ],
    ids=lambda v: type(v).__name__,
)
def test_learning_makes_it_small_and_pictures_better(loss):
    """From far too little smoothing; the loss is evaluated again, tightly."""
    physics = deepinv.physics.Denoising(deepinv.physics.GaussianNoise(SIGMA))
    train, test = lr.data.pairs("phantoms", physics, size=24, split=(3, 2), seed=0)
    free = isinstance(loss, SURE | Whiteness)
    problem = BilevelProblem(Energy(physics, TV(0.01, 0.1)), train.y if free else train, loss)
    run = lr.learn(problem, lr.MAID(), budget=lr.Budget(steps=5))

    def exact(theta: Tensor) -> float:
        wide = problem.to(torch.float64)
        x = lr.solve(wide.energy.with_theta(theta.double()), wide.data, 1e-6).value
        return float(wide.upper.value(x).mean())

    losses = [exact(theta) for theta in run.thetas]
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]
    start = lr.Run(run.record, run.stop, run.thetas[0], run.thetas[:1], problem.energy)
    before, after = (r.evaluate(test, 1e-2).mean("psnr") for r in (start, run))
    assert after > before + 1
    certified = run.record.rows[-1]["kind"] == "certified"
    assert certified == isinstance(loss, SURE | WeightedSquaredError)
    assert (run.record.rows[-1]["psnr"] is None) == free


def test_sure_learns_nearly_what_ground_truth_teaches():
    physics = deepinv.physics.Denoising(deepinv.physics.GaussianNoise(SIGMA))
    train, test = lr.data.pairs("natural", physics, size=48, split=(4, 3), seed=0)
    psnr = []
    for problem in (
        BilevelProblem(Energy(physics, TV(0.02, 0.1)), train),
        BilevelProblem(Energy(physics, TV(0.02, 0.1)), train.y, SURE(SIGMA)),
    ):
        run = lr.learn(problem, lr.MAID(), budget=lr.Budget(work=400))
        psnr.append(run.evaluate(test, 1e-2).mean("psnr"))
    assert abs(psnr[0] - psnr[1]) < 0.3


def test_complex_measurements_with_a_mask_per_image_learn_without_truth():
    generator = torch.Generator().manual_seed(0)
    masks = (torch.rand(3, 1, 12, 12, generator=generator) < 0.6).float().expand(3, 2, 12, 12)
    physics = deepinv.physics.MRI(mask=torch.ones(1, 2, 12, 12), img_size=(1, 2, 12, 12))
    x = torch.rand(3, 2, 12, 12, generator=generator)
    y = physics(x, mask=masks) * masks
    data = lr.Measured(y, {"mask": masks})
    energy = Energy(physics, TV(0.02, 0.1) + Tikhonov(0.05, learned=False))
    for loss in (SURE(0.05), Whiteness()):
        problem = BilevelProblem(energy, data, loss)
        run = lr.learn(problem, lr.MAID(), budget=lr.Budget(steps=2))
        assert run.record.rows[-1]["loss"] < run.record.rows[0]["loss"]


def test_what_cannot_be_judged_from_measurements_is_refused():
    learned = deepinv.physics.Blur(filter=torch.nn.Parameter(torch.ones(1, 1, 3, 3) / 9))
    with pytest.raises(MissingPropertyError, match="an operator that is learned"):
        BilevelProblem(Energy(learned, TV()), images(1).float(), SURE(SIGMA))
    with pytest.raises(InputError, match="pairs"):
        BilevelProblem(smooth_energy(), images(1))
    with pytest.raises(InputError, match="whose operator it knows"):
        problem = gallery.quadratic(images=2, n=3, d=2)
        BilevelProblem(problem.energy, problem.pairs, SURE(SIGMA))
    numbers = deepinv.physics.CompressedSensing(m=5, img_size=(1, 8, 8))
    energy = Energy(numbers, TV() + Tikhonov(0.1))
    with pytest.raises(InputError, match="neighbours"):
        BilevelProblem(energy, numbers(torch.rand(2, 1, 8, 8)), Whiteness())
    with pytest.raises(InputError, match="sigma"):
        SURE(0.0)
    for loss in (Whiteness(), SURE(SIGMA)):
        with pytest.raises(MissingPropertyError, match="smoothness"):
            problem = BilevelProblem(smooth_energy(), images(1), loss)
            lr.learn(problem, lr.DFO(), budget=lr.Budget(steps=1))
    with pytest.raises(InputError, match="neighbours"):
        BilevelProblem(smooth_energy(), images(1)[..., :1, :1], Whiteness())
    each = deepinv.physics.Inpainting(SHAPE[1:], mask=(images(9) > 0.4).double())
    with pytest.raises(InputError, match=r"lr\.Measured\(y, \{'mask': physics\.mask\}\)"):
        BilevelProblem(smooth_energy(each), each.A(images(1)), SURE(SIGMA))
