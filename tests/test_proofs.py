"""What users bring, whole: learned operators, counts, complex images with a mask each, volumes,
networks as regularizers. Every hypergradient is compared with central differences.
"""

from __future__ import annotations

import deepinv
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import learnreg as lr
from learnreg.core.errors import DataWarning
from learnreg.regularizers import TV, BlackBox, ExactTV, HuberTV, Tikhonov

SIDE = 14


def boxes(count: int, side: int = SIDE, seed: int = 0, channels: int = 1) -> Tensor:
    """Piecewise constant pictures in [0, 1], float64."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.zeros(count, channels, side, side, dtype=torch.float64)
    for image in x:
        for _ in range(5):
            (a, b), (c, d) = (
                sorted(torch.randint(0, side, (2,), generator=generator).tolist()) for _ in range(2)
            )
            image[:, a : b + 1, c : d + 1] = torch.rand(1, generator=generator).item()
    return x


def noise(x: Tensor, size: float, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return size * torch.randn(x.shape, generator=generator, dtype=x.dtype)


class Pairs:
    """Images and measurements, nothing else."""

    def __init__(self, x, y) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return self.x.shape[0]


class Kernel(deepinv.physics.LinearPhysics):
    """Blur with a 3x3 kernel in the shape of a plus, whose five taps are parameters."""

    def __init__(self, taps: Tensor) -> None:
        super().__init__()
        self.taps = nn.Parameter(taps)

    def kernel(self) -> Tensor:
        zero = torch.zeros_like(self.taps[:1])
        t = self.taps.split(1)
        return torch.cat([zero, t[0], zero, t[1], t[2], t[3], zero, t[4], zero]).view(1, 1, 3, 3)

    def A(self, x: Tensor, **_) -> Tensor:
        return F.conv2d(x, self.kernel(), padding=1)

    def A_adjoint(self, y: Tensor, **_) -> Tensor:
        return F.conv_transpose2d(y, self.kernel(), padding=1)


class Fourier(deepinv.physics.LinearPhysics):
    """Complex images, complex measurements, a mask."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def A(self, x: Tensor, **_) -> Tensor:
        return self.mask * torch.fft.fft2(x, norm="ortho")

    def A_adjoint(self, y: Tensor, **_) -> Tensor:
        return torch.fft.ifft2(self.mask * y, norm="ortho")


def exact(problem, theta: Tensor, eps: float = 1e-10) -> float:
    """The upper loss at theta, solved tightly."""
    energy = problem.energy.with_theta(theta)
    if isinstance(energy, lr.SaddleEnergy):
        solution = lr.solve(energy, problem.pairs.y, 1e-7, throw=False)
    else:
        solution = lr.solve(energy, problem.pairs.y, eps)
    value = solution.value
    if value.is_complex():
        value = torch.view_as_real(value).movedim(-1, 2).flatten(1, 2)
    return float(problem.loss.value(value, problem.pairs.x).mean())


def assert_hypergradient(
    problem, entries, step: float = 1e-5, rel: float = 1e-5, eps: float = 1e-10
) -> None:
    """The hypergradient against central differences of the whole bilevel map."""
    theta = problem.theta
    found = lr.hypergradient(problem, eps, eps / 10).value
    for i in entries:
        e = torch.zeros_like(theta)
        e[i] = step
        slope = (exact(problem, theta + e, eps) - exact(problem, theta - e, eps)) / (2 * step)
        assert float(found[i]) == pytest.approx(slope, rel=rel, abs=1e-7), problem.parameter_names[
            i
        ]


# --- theta anywhere -------------------------------------------------------------------------------

TRUE_TAPS = torch.tensor([0.1, 0.2, 0.4, 0.25, 0.05], dtype=torch.float64)


def blur_problem(physics, x, sigma: float = 1e-3):
    sharp = Kernel(TRUE_TAPS.clone()).requires_grad_(False)
    y = sharp.A(x) + noise(x, sigma)
    regularizer = TV(1e-3, 0.02) + Tikhonov(1e-3, learned=False)
    return lr.BilevelProblem(lr.Energy(physics, regularizer.double()), Pairs(x, y))


@pytest.mark.slow
def test_a_blur_kernel_is_differentiated_and_the_physics_lent_stays():
    start = torch.full((5,), 0.2, dtype=torch.float64)
    physics = Kernel(start.clone())
    problem = blur_problem(physics, boxes(2))
    assert problem.parameter_names[-5:] == tuple(f"physics.taps[{i}]" for i in range(5))
    assert_hypergradient(problem, (0, 1, 2, 4, 6))
    lr.learn(problem, lr.MAID(), budget=lr.Budget(steps=1))
    assert torch.equal(physics.taps, start)


def test_a_filter_that_deepinv_keeps_as_a_buffer_is_found():
    filter = nn.Parameter(torch.full((1, 1, 3, 3), 1 / 9, dtype=torch.float64))
    physics = deepinv.physics.Blur(filter=filter, padding="circular")
    problem = blur_problem(physics, boxes(2))
    assert sum(n.startswith("physics.filter") for n in problem.parameter_names) == 9
    assert_hypergradient(problem, (0, 2, 6))


@pytest.mark.slow
def test_a_blur_kernel_is_learned_tenfold(tmp_path):
    start = torch.full((5,), 0.2, dtype=torch.float64)
    problem = blur_problem(Kernel(start.clone()), boxes(8, 20))
    run = lr.learn(problem, lr.MAID(), budget=lr.Budget(work=15_000, seconds=60))
    learned = run.theta[-5:]
    assert (learned - TRUE_TAPS).norm() < (start - TRUE_TAPS).norm() / 10

    # and it comes back from a model file, into a copy of the physics that is handed over
    with pytest.warns(DataWarning, match="does not hold it"):
        run.save(tmp_path)
    again = lr.load_model(tmp_path / "model.safetensors", physics=Kernel(start.clone()))
    assert torch.equal(again.physics.taps, learned)


def test_weights_of_the_data_term_are_learned():
    x = boxes(2)
    weights = nn.Parameter(
        torch.linspace(0.5, 1.5, SIDE, dtype=torch.float64).expand(1, 1, SIDE, -1).clone()
    )
    energy = lr.Energy(deepinv.physics.Denoising(), TV(0.05, 0.05).double(), lr.WeightedL2(weights))
    problem = lr.BilevelProblem(energy, Pairs(x, x + noise(x, 0.1)))
    assert problem.parameter_names[2] == "fidelity.weights[0]"
    assert_hypergradient(problem, (0, 1, 2, 17, 100))


@pytest.mark.slow
def test_parameters_of_the_operator_of_a_saddle_point():
    physics, x = Kernel(torch.full((5,), 0.2, dtype=torch.float64)), boxes(1, 8)
    y = Kernel(TRUE_TAPS.clone()).A(x).detach()
    regularizer = lr.regularizers.LearnedTV(filters=1, smoothing=0.1, curvature=1.0).double()
    problem = lr.BilevelProblem(lr.SaddleEnergy(physics, regularizer, tikhonov=0.1), Pairs(x, y))
    theta = problem.theta
    found = lr.hypergradient(problem, 1e-6, 1e-7, strategy=lr.Piggyback()).value
    for i in (theta.numel() - 3, theta.numel() - 1):
        e = torch.zeros_like(theta)
        e[i] = 1e-3
        slope = (exact(problem, theta + e) - exact(problem, theta - e)) / 2e-3
        assert float(found[i]) == pytest.approx(slope, rel=2e-3, abs=1e-5)


# --- data terms -----------------------------------------------------------------------------------


def counts_problem():
    physics = deepinv.physics.Tomography(angles=8, img_width=SIDE, circle=False, normalize=True)
    x = 20 * boxes(2).float()
    generator = torch.Generator().manual_seed(0)
    y = torch.poisson(physics.A(x).clamp_min(0) + 2, generator=generator)
    return lr.Energy(physics, TV(0.1, 0.1) + Tikhonov(1e-2), lr.KL(background=2.0)), x, y


def test_counts_are_reconstructed_honestly_and_learned():
    energy, x, y = counts_problem()
    truth = lr.solve(energy.widened(), y.double(), 1e-8).value
    for eps in (1.0, 1e-1, 1e-2):
        solution = lr.solve(energy, y, eps)
        true = (solution.value.double() - truth).flatten(1).norm(dim=1)
        assert (true <= solution.error).all() and solution.kind.certifies
    problem = lr.BilevelProblem(energy.widened(), Pairs(x.double(), y.double()))
    assert_hypergradient(problem, (0, 1, 2), 1e-3, 1e-4, eps=1e-7)


@pytest.mark.parametrize(
    "fidelity",
    [lr.KL(1.5, 2.0), lr.Huber(0.05, 2.0), lr.WeightedL2(torch.rand(2, 1, SIDE, SIDE).double())],
    ids=["kl", "huber", "weights"],
)
def test_data_terms_have_their_derivatives_and_constants(fidelity):
    y = (3 * boxes(2)).round()
    function = fidelity.tie(y)
    a = (y + noise(y, 1.0)).requires_grad_()
    (slope,) = torch.autograd.grad(function.value(a).sum(), a)
    torch.testing.assert_close(function.grad(a), slope)

    v = noise(y, 1.0, seed=3)
    h = 1e-6
    product = (function.grad(a.detach() + h * v) - function.grad(a.detach() - h * v)) / (2 * h)
    close = (product - function.linearize(a.detach())(v)).abs() <= 1e-5 * (1 + product.abs())
    assert close.double().mean() > 0.99  # Huber's Hessian jumps at its kinks

    low, high = function.bounds()
    quotient = (function.linearize(a.detach())(v) * v).flatten(1).sum(1) / v.flatten(
        1
    ).square().sum(1)
    assert (quotient >= low - 1e-12).all() and (quotient <= high + 1e-12).all()
    part = function.select(torch.tensor([1]))
    assert torch.equal(part.grad(a.detach()[1:]), function.grad(a.detach())[1:])


def test_a_data_term_that_is_not_quadratic_is_no_longer_taken_for_one():
    """Certified 1.1e-4 for a true error of 1.1 it was once."""
    y = boxes(2)
    quartic = lr.Foreign(lambda a, y: ((a - y) ** 4 + 0.5 * (a - y) ** 2).flatten(1).sum(1))
    energy = lr.Energy(deepinv.physics.Denoising(), TV(0.1, 0.1).double(), quartic)
    with pytest.raises(lr.core.MissingPropertyError, match="stationarity"):
        lr.solve(energy, y, 1e-3)
    stationary = lr.solve(energy, y, stationarity=1e-8)
    assert stationary.error.isinf().all() and "stationary" in repr(stationary)
    declared = lr.Energy(
        deepinv.physics.Denoising(), TV(0.1, 0.1).double(), lr.Foreign(quartic.function, 1.0, 13.0)
    )
    solution = lr.solve(declared, y, 1e-4)
    assert not solution.kind.certifies  # the constants are the user's word
    assert ((solution.value - stationary.value).flatten(1).norm(dim=1) <= 2e-4).all()


def test_data_terms_of_deepinv_are_translated():
    y, physics = boxes(2) + 1, deepinv.physics.Denoising()
    ours = lr.solve(lr.Energy(physics, TV().double(), lr.L2(0.5)), y, 1e-9).value
    theirs = lr.solve(lr.Energy(physics, TV().double(), deepinv.optim.L2(0.5)), y, 1e-9).value
    torch.testing.assert_close(theirs, ours)
    poisson = lr.Energy(
        physics, TV().double() + Tikhonov(0.1), deepinv.optim.PoissonLikelihood(bkg=1.0)
    )
    assert lr.solve(poisson, y, 1e-6).ok and isinstance(poisson.fidelity, lr.KL)
    loss = lr.BilevelProblem(poisson, Pairs(y, y), nn.MSELoss()).loss
    assert loss.value(y, y + 1).tolist() == pytest.approx([1.0, 1.0])


# --- one operator per image, complex numbers, lists, volumes --------------------------------------


def mri(count: int = 3):
    magnitude, phase = boxes(count), boxes(count, seed=5)
    x = magnitude * torch.exp(1j * phase)
    generator = torch.Generator().manual_seed(2)
    masks = (torch.rand(count, 1, SIDE, SIDE, generator=generator) < 0.5).double()
    return x, masks, Fourier(masks).A(x)


def complex_energy(mask: Tensor):
    regularizer = TV(0.02, 0.05, channels="joint") + Tikhonov(1e-2)
    return lr.Energy(Fourier(mask), regularizer.double())


def test_complex_images_with_a_mask_each():
    _, masks, y = mri()
    held = lr.solve(complex_energy(masks), y, 1e-6)
    given = lr.solve(complex_energy(masks[:1]), y, 1e-6, params={"mask": masks})
    assert held.value.is_complex() and held.kind.certifies
    torch.testing.assert_close(held.value, given.value)
    for i in range(3):  # no image sees its neighbours
        alone = lr.solve(
            complex_energy(masks[:1]), y[i : i + 1], 1e-6, params={"mask": masks[i : i + 1]}
        )
        torch.testing.assert_close(alone.value[0], given.value[i], rtol=0, atol=2e-6)

    # the optimality condition, with complex arithmetic of its own
    w, nu = 0.02, 0.05
    z = held.value.clone().requires_grad_()
    rows = F.pad((z[..., 1:, :] - z[..., :-1, :]), (0, 0, 0, 1))
    columns = F.pad((z[..., 1:] - z[..., :-1]), (0, 1))
    tv = (rows.abs() ** 2 + columns.abs() ** 2 + nu**2).sqrt().sum()
    data = 0.5 * ((masks * torch.fft.fft2(z, norm="ortho") - y).abs() ** 2).sum()
    (data + w * tv + 0.5e-2 * (z.abs() ** 2).sum()).backward()
    assert z.grad.abs().max() < 1e-6


def test_learning_with_a_mask_each():
    x, masks, y = mri()
    pairs = lr.data.Pairs(x, y, Fourier(masks[:1]), ("a", "b", "c"), params={"mask": masks})
    problem = lr.BilevelProblem(complex_energy(masks[:1]), pairs)
    assert_hypergradient(problem, (0, 1, 2))
    run = lr.learn(problem, lr.MAID(), budget=lr.Budget(steps=3))
    assert run.record.rows[-1]["loss"] < run.record.rows[0]["loss"]
    evaluation = run.evaluate(pairs, 1e-3)
    assert evaluation.reconstruction.is_complex() and all(s.ok for s in evaluation.status)
    stochastic = lr.learn(problem, lr.Stochastic(batch=2), budget=lr.Budget(steps=2))
    assert len(stochastic.record.rows) == 3


def test_the_layer_differentiates_complex_measurements_and_masks():
    _, masks, y = mri(2)
    model = lr.Reconstructor(complex_energy(masks[:1]), 1e-10, relative_delta=1e-10)
    y = y.requires_grad_()
    weights = boxes(2, seed=9)

    def loss(data: Tensor) -> Tensor:
        return (weights * model(data, params={"mask": masks}).abs() ** 2).sum()

    loss(y).backward()
    direction = masks * torch.exp(1j * boxes(2, seed=11))
    h = 1e-5
    with torch.no_grad():
        slope = (loss(y + h * direction) - loss(y - h * direction)) / (2 * h)
    assert float((y.grad.conj() * direction).real.sum()) == pytest.approx(float(slope), rel=1e-5)


def test_second_derivatives_are_refused_instead_of_zero():
    y = boxes(1).requires_grad_()
    model = lr.Reconstructor(lr.Energy(deepinv.physics.Denoising(), TV().double()), 1e-6)
    (slope,) = torch.autograd.grad(model(y).square().sum(), y, create_graph=True)
    penalty = slope.square().sum()
    for inputs in (list(model.parameters()), [y]):
        with pytest.raises(lr.core.MissingPropertyError, match="once differentiable"):
            torch.autograd.grad(penalty, inputs, retain_graph=True)
    with pytest.raises(lr.core.MissingPropertyError, match="once differentiable"):
        penalty.backward()


def test_stacked_measurements():
    blur = deepinv.physics.Blur(filter=torch.rand(1, 1, 3, 3).double() / 4, padding="circular")
    physics = deepinv.physics.stack(blur, deepinv.physics.Denoising())
    x = boxes(2)
    y = physics.A(x)
    energy = lr.Energy(physics, (TV(0.01, 0.05) + Tikhonov(1e-2)).double())
    solution = lr.solve(energy, y, 1e-7)
    z = solution.value.clone().requires_grad_()
    data = sum(0.5 * ((p.A(z) - t) ** 2).sum() for p, t in zip((blur, physics[1]), y, strict=True))
    (data + energy.regularizer.value(z).sum()).backward()
    assert z.grad.abs().max() < 1e-6
    problem = lr.BilevelProblem(energy, lr.data.Pairs(x, y, physics, ("a", "b")))
    assert lr.learn(problem, lr.MAID(), budget=lr.Budget(steps=1)).record.rows


@pytest.mark.parametrize("shape", [(2, 1, 17), (2, 2, 5, 6, 4)], ids=["signal", "volume"])
@pytest.mark.parametrize("kind", [TV, HuberTV])
def test_signals_and_volumes_are_minimized(shape, kind):
    y = torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    w, nu = 0.1, 0.05
    solution = lr.solve(lr.Energy(deepinv.physics.Denoising(), kind(w, nu).double()), y, 1e-8)
    z = solution.value.clone().requires_grad_()
    squares = torch.zeros_like(z)
    for axis in range(2, len(shape)):
        n = shape[axis]
        difference = z.narrow(axis, 1, n - 1) - z.narrow(axis, 0, n - 1)
        padding = torch.zeros_like(z.narrow(axis, 0, 1))
        squares = squares + torch.cat([difference, padding], dim=axis) ** 2
    size = (squares + 1e-300).sqrt()
    huber = torch.where(size <= nu, squares / (2 * nu), size - nu / 2)
    potential = (squares + nu**2).sqrt() if kind is TV else huber
    (0.5 * ((z - y) ** 2).sum() + w * potential.sum()).backward()
    assert z.grad.abs().max() < 1e-7 and solution.kind.certifies


# --- black boxes and operators of any norm --------------------------------------------------------


class Net(nn.Module):
    """Three convolutions and a square: a potential that need not be convex."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        shapes = [(6, 1, 3, 3), (6, 6, 3, 3), (1, 6, 3, 3)]
        self.kernels = nn.ParameterList(
            nn.Parameter(0.3 * torch.randn(s, generator=generator)) for s in shapes
        )

    def forward(self, x: Tensor) -> Tensor:
        for kernel in self.kernels[:-1]:
            x = F.softplus(F.conv2d(x, kernel, padding=1), beta=10)
        return 0.1 * F.conv2d(x, self.kernels[-1], padding=1).square().flatten(1).sum(dim=1)


@pytest.mark.parametrize("learner", [lr.MAID(), lr.Stochastic(alpha0=1e-2)], ids=["maid", "adam"])
def test_a_network_is_learned_as_a_black_box(learner):
    x = boxes(2).float()
    energy = lr.Energy(deepinv.physics.Denoising(), BlackBox(Net()))
    problem = lr.BilevelProblem(energy, Pairs(x, x + noise(x, 0.1)))
    run = lr.learn(problem, learner, budget=lr.Budget(steps=8))
    first, last = run.record.rows[0]["loss"], run.record.rows[-1]["loss"]
    assert last < 0.9 * first and "exact value certified" not in repr(run)


def test_the_norm_of_the_operator_does_not_matter():
    """It took more than 1,500 steps, and learning stopped at its start."""
    physics = deepinv.physics.Tomography(
        angles=20, img_width=32, circle=False, normalize=False, adjoint_via_backprop=True
    )
    x = boxes(2, 32, seed=1).float()
    energy = lr.Energy(physics, TV() + Tikhonov(1e-2))
    solution = lr.solve(energy, physics(x), 1e-2)
    assert solution.ok and int(solution.steps.max()) <= 150
    run = lr.learn(
        lr.BilevelProblem(energy, Pairs(x, physics(x))), lr.MAID(), budget=lr.Budget(steps=3)
    )
    assert run.record.rows[0]["loss"] < 10 and len(run.record.rows) == 4


def test_everything_spent_on_an_operator_is_counted():
    calls = []

    class Counted(Kernel):
        def A(self, x: Tensor, **_) -> Tensor:
            calls.append(x.shape[0])
            return super().A(x)

    physics = Counted(torch.full((5,), 0.2)).requires_grad_(False)
    energy, y = lr.Energy(physics, TV(0.1, 0.1) + Tikhonov(0.1)), boxes(2).float()
    solution = lr.solve(energy, y, 1e-2)
    # one application of A for every gradient or product, and none of the probes left out
    assert sum(calls) <= solution.cost.work + 2 * solution.cost.linearizations + 10


def test_saddle_points_without_strong_convexity_are_refused_in_words():
    x = boxes(2).float()
    energy = lr.SaddleEnergy(Kernel(torch.full((5,), 0.2)).requires_grad_(False), ExactTV())
    problem = lr.BilevelProblem(energy, Pairs(x, x))
    with pytest.raises(lr.core.MissingPropertyError, match="tikhonov"):
        lr.learn(problem, lr.MAID(), budget=lr.Budget(steps=1))


def test_an_adjoint_made_by_autograd():
    """deepinv's own is one of float32, so that no certificate could be closed."""
    kernel = torch.rand(1, 1, 3, 3, dtype=torch.float64)
    physics = deepinv.physics.LinearPhysics(
        A=lambda x, **_: F.conv2d(x, kernel.to(x) / 4, padding=1), img_size=(1, SIDE, SIDE)
    )
    y = boxes(2).float()
    solution = lr.solve(lr.Energy(physics, TV() + Tikhonov(1e-2)), y, 1e-2)
    assert solution.ok and solution.kind.certifies


def test_torch_may_walk_through_the_modules_of_a_saddle_energy():
    """``nn.Module.apply`` was overridden, so that initializers met a method of another meaning."""
    seen = []
    energy = lr.SaddleEnergy(deepinv.physics.Denoising(), ExactTV())
    lr.Reconstructor(energy, 1e-2).apply(lambda module: seen.append(type(module).__name__))
    assert {"ExactTV", "SaddleEnergy", "Reconstructor"} <= set(seen)


def test_weights_per_image_follow_their_images_in_a_saddle_point():
    y, weights = boxes(3), 0.5 + boxes(3, seed=7)
    rounded = ExactTV(0.1, rounding=0.1).double()
    plain = lr.SaddleEnergy(deepinv.physics.Denoising(), rounded, lr.WeightedL2(weights))
    given = lr.SaddleEnergy(
        deepinv.physics.Denoising(), rounded, lr.WeightedL2(torch.ones(1, 1).double())
    )
    together = lr.solve(given, y, 1e-6, params={"weights": weights}).value
    torch.testing.assert_close(together, lr.solve(plain, y, 1e-6).value, rtol=0, atol=2e-6)
    with pytest.raises(lr.InputError, match="WeightedL2"):
        energy = lr.Energy(deepinv.physics.Denoising(), TV().double(), lr.Huber())
        lr.solve(energy, y, 1e-3, params={"weights": weights})


def test_sums_with_black_boxes_are_estimated_like_their_terms():
    energy = lr.Energy(deepinv.physics.Denoising(), 0.5 * BlackBox(Net()) + Tikhonov(0.1))
    solution = lr.solve(energy, boxes(2).float(), 1e-2)
    assert solution.ok and not solution.kind.certifies


def test_sigma_enters_as_its_square_everywhere():
    """Faults once planted and not seen: 1 / sigma in mu, and in what is passed back to the data."""
    y, physics, sigma = boxes(2), Kernel(torch.full((5,), 0.2).double()).requires_grad_(False), 0.5
    energy = lr.Energy(physics, TV(0.1, 0.1).double() + Tikhonov(0.3).double(), lr.L2(sigma))
    x, q = y + noise(y, 0.3), noise(y, 1.0, seed=4)
    residual = physics.A(x) - y
    data = 0.5 / sigma**2 * residual.square().flatten(1).sum(1)
    torch.testing.assert_close(energy.value(x, y), data + energy.regularizer.value(x))
    torch.testing.assert_close(energy.data_adjoint(x, y, q), physics.A(q) / sigma**2)

    plain = lr.Energy(deepinv.physics.Denoising(), Tikhonov(0.3).double(), lr.L2(sigma)).at(y)
    assert plain.bounds().mu.value == pytest.approx(1 / sigma**2 + 0.3)
    assert plain.bounds().L.value == pytest.approx(1 / sigma**2 + 0.3)
    norm = torch.linalg.matrix_norm(
        torch.stack(
            [physics.A(e).flatten() for e in torch.eye(SIDE**2).double().view(-1, 1, 1, SIDE, SIDE)]
        ),
        2,
    )
    assert energy.bounds(y).mu.value == pytest.approx(0.3)  # nothing is known of A from below
    L = energy.at(y).constants.L - energy.regularizer.bounds().L.value
    assert float(L[0]) == pytest.approx(float(norm) ** 2 / sigma**2, rel=0.05)


def test_the_certified_error_pays_for_the_polish():
    y = boxes(2)
    energy = lr.Energy(deepinv.physics.Denoising(), TV(0.1, 0.1).double())
    problem = lr.BilevelProblem(energy, Pairs(y, y + noise(y, 0.1)))
    plain = lr.hypergradient(problem, 1e-2, 1e-2, strategy=lr.Implicit())
    polished = lr.hypergradient(problem, 1e-2, 1e-2, strategy=lr.Implicit(estimate=True))
    moved = float((plain.value - polished.value).norm())
    assert moved > 0
    assert polished.certified == pytest.approx(plain.certified + moved)
