"""Operators that learn: derivatives in every place, lent physics untouched, refusals in words."""

from __future__ import annotations

import copy
import itertools
import pickle
import warnings
from types import SimpleNamespace

import deepinv as dinv
import pytest
import torch
from deepinv import physics as D
from torch import Tensor, nn

import learnreg as lr
from learnreg.core.bounds import Kind
from learnreg.core.errors import InputError, MissingPropertyError
from learnreg.core.params import trainable
from learnreg.objectives import Bilevel
from learnreg.operators.private import snapshot
from learnreg.physics import LearnedPhysics
from learnreg.physics import kernel_parameters as K

SIDE = 10


class Pairs(SimpleNamespace):
    def __len__(self):
        return len(self.x)


def seeded(*shape, complex=False):
    dtype = torch.complex128 if complex else torch.float64
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=dtype)


def blur(padding="reflect", **more):
    return D.Blur(filter=torch.ones(1, 1, 3, 3) / 9, padding=padding, **more)


KERNELS = {
    "free": lambda **k: K.Free(5, start=0.8, **k),
    "simplex": lambda **k: K.SimplexKernel(5, start=0.8, **k),
    "radial": lambda **k: K.RadialKernel(5, start=0.8, **k),
    "gaussian": lambda **k: K.GaussianKernel(5, std=0.8, **k),
    "turned": lambda **k: K.GaussianKernel(5, std=(1.2, 0.6), anisotropic=True, angle=30, **k),
    "motion": lambda **k: K.MotionKernel(5, length=2.5, angle=20, **k),
    "disc": lambda **k: K.DiscKernel(5, radius=1.2, **k),
}


def mask(*shape):
    return K.Free(start=0.5 + torch.rand(shape, generator=torch.Generator().manual_seed(1)))


def maps(*shape):
    return K.Free(start=seeded(*shape, complex=True).to(torch.complex64))


PLACES = {
    **{
        f"{padding} {name}": (lambda p=padding: blur(p), "filter", make, (1, SIDE, SIDE))
        for padding, (name, make) in itertools.product(
            ("circular", "constant", "reflect", "replicate", "valid"), KERNELS.items()
        )
    },
    "FFT": (lambda: blur("valid", use_fft=True), "filter", KERNELS["disc"], (1, SIDE, SIDE)),
    "per channel": (
        blur,
        "filter",
        lambda: K.GaussianKernel(3, channels=3),
        (3, SIDE, SIDE),
    ),
    "BlurFFT": (
        lambda: D.BlurFFT((3, SIDE, SIDE), filter=torch.ones(1, 1, 3, 3) / 9),
        "filter",
        KERNELS["gaussian"],
        (3, SIDE, SIDE),
    ),
    "downsampling": (
        lambda: D.Downsampling((1, SIDE, SIDE), filter="gaussian", factor=2),
        "filter",
        KERNELS["radial"],
        (1, SIDE, SIDE),
    ),
    "decimation": (
        lambda: lr.physics.SuperResolution().build((SIDE, SIDE)),
        "filter",
        KERNELS["motion"],
        (1, SIDE, SIDE),
    ),
    "space varying": (
        lambda: D.SpaceVaryingBlur(
            filters=torch.rand(1, 1, 2, 3, 3),
            multipliers=torch.rand(1, 1, 2, SIDE, SIDE),
            padding="reflect",
        ),
        "filters",
        lambda: K.Free(start=torch.rand(1, 1, 2, 3, 3)),
        (1, SIDE, SIDE),
    ),
    "inpainting": (
        lambda: D.Inpainting((1, SIDE, SIDE), mask=torch.ones(1, SIDE, SIDE)),
        "mask",
        lambda: mask(1, 1, SIDE, SIDE),
        (1, SIDE, SIDE),
    ),
    "MRI": (
        lambda: D.MRI(mask=torch.ones(2, SIDE, SIDE)),
        "mask",
        lambda: mask(1, 1, SIDE, SIDE),
        (2, SIDE, SIDE),
    ),
    "real images in MRI": (
        lambda: lr.physics.MRI().build((SIDE, SIDE)),
        "mask",
        lambda: mask(1, 2, SIDE, SIDE),
        (1, SIDE, SIDE),
    ),
    "coils": (
        lambda: D.MultiCoilMRI(
            mask=torch.ones(2, SIDE, SIDE),
            coil_maps=torch.ones(2, SIDE, SIDE, dtype=torch.complex64),
            img_size=(2, SIDE, SIDE),
        ),
        "coil_maps",
        lambda: maps(1, 2, SIDE, SIDE),
        (2, SIDE, SIDE),
    ),
    "no kernel so far": (
        lambda: D.Blur(padding="circular"),
        "filter",
        KERNELS["simplex"],
        (1, SIDE, SIDE),
    ),
    "adjoint by autograd": (
        lambda: OnlyForward(img_size=(1, SIDE, SIDE)),
        "taps",
        lambda: K.Free(start=torch.tensor([0.5, 0.3, 0.2])),
        (1, SIDE, SIDE),
    ),
}


class OnlyForward(D.LinearPhysics):
    """Shifts along rows; deepinv makes the adjoint."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.register_buffer("taps", torch.tensor([1.0, 0.0, 0.0]))

    def A(self, x, taps=None, **kwargs):
        self.update_parameters(taps=taps)
        return sum(t * x.roll(k, -1) for k, t in enumerate(self.taps))


def place(name, count=2):
    """An energy, its true images, and noisy measurements of another operator."""
    make, tensor, parameters, shape = PLACES[name]
    physics = LearnedPhysics(make(), {tensor: parameters()}, image=shape)
    energy = lr.Energy(
        physics, lr.regularizers.TV(0.02, 0.1) + lr.regularizers.Tikhonov(1e-2, learned=False)
    )
    x = torch.rand((count, *shape), generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        y = physics.A(x.float()).double()
    return energy, Pairs(x=x, y=y + 0.1 * seeded(*y.shape))


def moved(theta, step, index=None):
    d = seeded(len(theta)).to(theta)
    d = d / d.norm()
    return theta + step * d, theta - step * d, d


@pytest.mark.parametrize("name", PLACES)
def test_the_mixed_derivative_is_a_central_difference(name):
    """J^T w against grad_x h at two theta."""
    energy, data = place(name)
    theta = lr.BilevelProblem(energy, data).theta
    w = seeded(*data.x.shape)
    here = energy.with_theta(theta)
    with torch.enable_grad():
        scalar = here.directional(data.x, data.y, w).sum()
        found = torch.autograd.grad(scalar, trainable(here), allow_unused=True)
    exact = torch.cat([g.reshape(-1) for g in found])
    ahead, behind, d = moved(theta, 1e-5)
    slopes = [energy.with_theta(t).grad(data.x, data.y) for t in (ahead, behind)]
    difference = float((w * (slopes[0] - slopes[1])).sum()) / 2e-5
    assert float(exact @ d) == pytest.approx(difference, rel=1e-6, abs=1e-8 * float(exact.norm()))


@pytest.mark.parametrize(
    "name", ["reflect gaussian", "circular turned", "valid free", "constant motion", "MRI", "coils"]
)
def test_the_bilevel_gradient_is_a_central_difference(name):
    energy, data = place(name)
    problem = lr.BilevelProblem(energy, data)
    objective = Bilevel(problem)
    theta = problem.theta
    z = objective.gradient(objective.evaluate(theta, 1e-9), 1e-10).value
    ahead, behind, d = moved(theta, 1e-4)
    rise = objective.evaluate(ahead, 1e-10).loss - objective.evaluate(behind, 1e-10).loss
    assert float(z @ d) == pytest.approx(rise / 2e-4, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("name", [n for n in PLACES if n != "FFT"])
def test_a_learned_operator_passes_the_checks_of_operators(name):
    energy, data = place(name)
    lr.testing.check_operator(energy.physics, data.x.float())


def test_only_the_kernel_is_learned_with_the_regularizer_fixed():
    energy, data = place("reflect gaussian")
    energy.regularizer.requires_grad_(False)
    problem = lr.BilevelProblem(energy, data)
    assert problem.parameter_names == ("physics.parametrizations.filter.log_std",)
    run = lr.learn(problem, lr.MAID(), budget=lr.Budget(steps=2), seed=0)
    assert run.record.rows[-1]["loss"] < run.record.rows[0]["loss"]
    assert torch.equal(
        run.trained.regularizer.terms[0].log_weight.double(),
        problem.energy.regularizer.terms[0].log_weight.double(),
    )


def test_without_a_residual_half_of_the_derivative_vanishes():
    """J^T w = (dA x)^* (A w) + (dA w)^* r, and r = 0."""
    energy, data = place("reflect free")
    theta = lr.BilevelProblem(energy, data).theta
    here, w = energy.with_theta(theta), seeded(*data.x.shape)
    with torch.no_grad():
        y = here.physics.A(data.x)
    with torch.enable_grad():
        (found,) = torch.autograd.grad(
            here.directional(data.x, y, w).sum(), [here.physics.parametrizations["filter"].taps]
        )
        k = here.physics.tensors()["filter"]
        first = (here.physics.base.A(data.x, filter=k) * here.physics.A(w).detach()).sum()
        (alone,) = torch.autograd.grad(first, [here.physics.parametrizations["filter"].taps])
    assert torch.allclose(found, alone, rtol=1e-10)


# --- what is lent ---------------------------------------------------------------------------------


def looks(physics):
    return {
        **{name: t.detach().clone() for name, t in physics.named_buffers()},
        **{name: t.detach().clone() for name, t in physics.named_parameters()},
    }


@pytest.mark.parametrize("name", ["reflect gaussian", "downsampling", "BlurFFT", "coils"])
def test_what_is_lent_stays_as_it_is_bit_for_bit(name):
    energy, data = place(name)
    base = energy.physics.base
    before, seen = looks(base), snapshot(base)
    run = lr.learn(lr.BilevelProblem(energy, data), lr.MAID(), budget=lr.Budget(steps=1), seed=0)
    run.reconstruct(data.y, eps=1e-1)
    after = looks(base)
    assert before.keys() == after.keys()
    assert all(torch.equal(t, after[key]) for key, t in before.items())
    assert lr.operators.private.same(seen, snapshot(base))
    assert not any(t.requires_grad for t in base.buffers())


def test_two_energies_share_one_physics():
    base = blur()
    narrow = LearnedPhysics(base, {"filter": K.GaussianKernel(5, std=0.5)})
    wide = LearnedPhysics(base, {"filter": K.GaussianKernel(5, std=2.0)})
    x = torch.rand(1, 1, 8, 8)
    first = narrow.A(x)
    assert not torch.allclose(wide.A(x), first)
    assert torch.equal(narrow.A(x), first)
    assert torch.equal(base.filter, torch.ones(1, 1, 3, 3) / 9)
    # and two energies one learned physics: each learns a copy
    data = Pairs(x=x, y=first.detach())
    start = narrow.parametrizations["filter"].log_std.item()
    for weight in (0.01, 0.1):
        energy = lr.Energy(narrow, lr.regularizers.TV(weight) + lr.regularizers.Tikhonov(0.1))
        lr.learn(lr.BilevelProblem(energy, data), lr.MAID(), budget=lr.Budget(steps=1), seed=0)
    assert narrow.parametrizations["filter"].log_std.item() == start


def test_what_was_learned_comes_as_a_plain_physics():
    physics = LearnedPhysics(
        blur(noise_model=D.GaussianNoise(0.1)), {"filter": KERNELS["motion"]()}
    )
    plain, x = physics.learned(), torch.rand(2, 1, 8, 8)
    assert type(plain) is D.Blur and not list(plain.parameters())
    assert torch.equal(plain.A(x), physics.A(x).detach())
    with torch.no_grad():
        physics.parametrizations["filter"].line.add_(1)
    assert not torch.equal(plain.A(x), physics.A(x))  # a copy
    assert float(plain.noise_model.sigma) == pytest.approx(0.1)


def test_noise_is_masked_where_the_learned_mask_masks():
    hidden = torch.ones(1, 1, 6, 6)
    hidden[..., 0] = 0
    physics = LearnedPhysics(
        D.Inpainting((1, 6, 6), mask=torch.ones(1, 6, 6), noise_model=D.GaussianNoise(1.0)),
        {"mask": K.Free(start=hidden)},
    )
    y = physics(torch.rand(1, 1, 6, 6))
    assert bool((y[..., 0] == 0).all()) and bool((y[..., 1:] != 0).all())


def test_another_level_of_noise_is_that_of_the_measurements():
    physics = LearnedPhysics(
        blur(noise_model=D.GaussianNoise(0.0)), {"filter": K.GaussianKernel(5)}
    )
    x = torch.rand(1, 1, 8, 8)
    assert torch.equal(physics(x), physics.A(x))
    physics.update(sigma=torch.tensor([5.0]))
    assert float((physics(x) - physics.A(x)).detach().norm()) > 1
    assert float(physics.base.noise_model.sigma) == 0
    physics.noise_model = D.GaussianNoise(0.0)
    assert torch.equal(physics(x), physics.A(x))
    assert float(physics.learned().noise_model.sigma) == 0
    noisy = LearnedPhysics(D.Blur(filter=torch.ones(1, 1, 3, 3) / 9), {"filter": K.Free(3)})
    assert torch.equal(noisy(x), noisy.A(x))


def test_other_tensors_are_updated_in_a_copy():
    base = D.MultiCoilMRI(
        mask=torch.ones(2, 6, 6),
        coil_maps=torch.ones(2, 6, 6, dtype=torch.complex64),
        img_size=(2, 6, 6),
    )
    physics = LearnedPhysics(base, {"coil_maps": maps(1, 2, 6, 6)})
    x, none = torch.rand(1, 2, 6, 6), torch.zeros(1, 2, 6, 6)
    assert not bool(physics.A(x, mask=none).any()) and bool(physics.A(x).any())
    physics.update(mask=none)
    assert not bool(physics.A(x).any()) and bool(base.A(x).any())
    with pytest.raises(InputError, match="coil_maps: given a tensor for it"):
        physics.update(coil_maps=torch.ones(1, 2, 6, 6, dtype=torch.complex64))


def test_masks_of_single_scans_go_with_learned_maps():
    """Parameters per image of the base, beside the learned ones."""
    energy, data = place("coils")
    masks = torch.ones(2, 2, SIDE, SIDE, dtype=torch.float64)
    masks[1, ..., ::2] = 0
    y = lr.Measured(data.y, {"mask": masks})
    both = lr.solve(energy.with_theta(lr.BilevelProblem(energy, data).theta), y, 1e-6).value
    second = energy.physics.base.clone()
    second.update(mask=masks[1:])
    alone = LearnedPhysics(second, dict(energy.physics.parametrizations.items()))
    other = lr.Energy(alone, energy.regularizer)
    theta = lr.BilevelProblem(other, data).theta
    found = lr.solve(other.with_theta(theta), data.y[1:], 1e-6).value
    assert torch.allclose(both[1:], found, atol=1e-5)


# --- copies, files --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["reflect turned", "coils", "no kernel so far"])
def test_copies_and_pickles_are_the_same_operator(name):
    energy, data = place(name)
    again = pickle.loads(pickle.dumps(energy))
    for other in (again.physics, copy.deepcopy(energy.physics)):
        assert torch.equal(other.A(data.x.float()), energy.physics.A(data.x.float()))
        assert [n for n, _ in other.named_parameters()] == [
            n for n, _ in energy.physics.named_parameters()
        ]


def test_float64_is_one_copy_away():
    physics = LearnedPhysics(blur(), {"filter": K.GaussianKernel(5)})
    x = torch.rand(1, 1, 8, 8)
    wide = copy.deepcopy(physics).double()
    assert wide.A(x.double()).dtype == torch.float64
    assert torch.allclose(wide.A(x.double()).float(), physics.A(x), atol=1e-6)
    energy = lr.Energy(physics, lr.regularizers.TV() + lr.regularizers.Tikhonov(0.1))
    assert lr.solve(energy, x.double(), 1e-8).ok


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("name", [n for n in PLACES if n not in ("FFT", "adjoint by autograd")])
def test_a_model_file_gives_it_back(tmp_path, name, learned):
    energy, data = place(name)
    energy.physics.parametrizations.requires_grad_(learned)
    with torch.no_grad():
        for p in energy.physics.parametrizations.parameters():
            p.add_(0.01)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lr.save_model(tmp_path / "m.safetensors", energy)
    again = lr.load_model(tmp_path / "m.safetensors")
    for key, t in energy.physics.tensors().items():
        assert torch.equal(again.physics.tensors()[key], t)
    assert torch.allclose(again.physics.A(data.x.float()), energy.physics.A(data.x.float()))
    marks = [p.requires_grad for p in again.physics.parametrizations.parameters()]
    assert marks and all(mark is learned for mark in marks)


class Own(nn.Module):
    """A kernel of the user's own."""

    def __init__(self):
        super().__init__()
        self.t = nn.Parameter(torch.zeros(()))

    def forward(self):
        k = torch.stack([self.t.exp(), torch.ones(()).to(self.t), self.t.exp()])
        return (k / k.sum())[None, None, None].expand(1, 1, 3, 3) / 3


def test_a_module_of_ones_own_learns_and_is_named_in_files(tmp_path):
    physics = LearnedPhysics(blur(), {"filter": Own()})
    energy = lr.Energy(physics, lr.regularizers.TV() + lr.regularizers.Tikhonov(0.1))
    x = torch.rand(2, 1, 8, 8)
    problem = lr.BilevelProblem(energy, Pairs(x=x, y=physics.A(x).detach()))
    run = lr.learn(problem, lr.MAID(), budget=lr.Budget(steps=1), seed=0)
    with pytest.warns(lr.core.errors.DataWarning, match="Own of filter is no class"):
        lr.save_model(tmp_path / "m.safetensors", run.trained)
    again = lr.load_model(tmp_path / "m.safetensors", physics=physics)
    kernel = run.trained.physics.tensors()["filter"]
    assert torch.allclose(again.physics.tensors()["filter"].double(), kernel.double())


@pytest.mark.parametrize(
    "damage",
    [
        {"parametrizations": {}},
        {"parametrizations": {"filter": {"type": "Blur"}}},
        {"parametrizations": {"filter": {"type": "GaussianKernel", "size": [10**6, 10**6]}}},
        {
            "parametrizations": {
                "filter": {"type": "RadialKernel", "size": [5, 5], "channels": 1, "images": 1}
            }
        },
        {"parametrizations": {"filter": {"type": "Free", "shape": [5], "complex": False}}},
        {"parametrizations": 3},
    ],
)
def test_damaged_recipes_are_refused(damage):
    physics = LearnedPhysics(blur(), {"filter": K.GaussianKernel(5)})
    header, tensors = lr.physics.describe(physics)
    assert lr.physics.rebuild(header, tensors) is not physics
    with pytest.raises(lr.core.errors.ModelFileError, match="damaged recipe"):
        lr.physics.rebuild({**header, "settings": damage}, tensors)


def test_a_checkpoint_goes_on_to_the_same_numbers(tmp_path):
    energy, data = place("reflect gaussian")
    problem = lr.BilevelProblem(energy, data)
    whole = lr.learn(problem, lr.MAID(), budget=lr.Budget(steps=3), seed=0)
    lr.learn(problem, lr.MAID(), budget=lr.Budget(steps=1), seed=0, checkpoint=tmp_path / "c")
    rest = lr.learn(
        problem,
        lr.MAID(),
        budget=lr.Budget(steps=3),
        seed=0,
        checkpoint=tmp_path / "c",
        resume=True,
    )
    assert torch.equal(whole.theta, rest.theta)


# --- kernels of single images, proven norms, steps ------------------------------------------------


def test_every_image_has_a_kernel_of_its_own():
    physics = LearnedPhysics(blur(), {"filter": K.GaussianKernel(5, images=2)})
    with torch.no_grad():
        physics.parametrizations["filter"].log_std[1] = 0.5
    energy = lr.Energy(physics, lr.regularizers.TV(0.02, 0.1) + lr.regularizers.Tikhonov(0.01))
    x = torch.rand(2, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    y = physics.A(x).detach() + 0.05
    problem = lr.BilevelProblem(energy, Pairs(x=x.double(), y=y.double()))
    objective, theta = Bilevel(problem), problem.theta
    z = objective.gradient(objective.evaluate(theta, 1e-9), 1e-10).value
    ahead, behind, d = moved(theta, 1e-4)
    rise = objective.evaluate(ahead, 1e-10).loss - objective.evaluate(behind, 1e-10).loss
    assert float(z @ d) == pytest.approx(rise / 2e-4, rel=1e-6)
    with pytest.raises(InputError):
        lr.solve(energy, y[:1], 1e-2)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_norm_at_the_present_parameters_is_proven(kernel):
    """Of signed taps as well, and sharp where none is negative."""
    energy, data = place(f"reflect {kernel}")
    if kernel == "free":
        with torch.no_grad():
            energy.physics.parametrizations["filter"].taps[0, 0, 0, 0] = -0.05
    energy = energy.with_theta(lr.BilevelProblem(energy, data).theta)
    found = energy.operator.on(data.x).spectrum(data.x)
    assert found.L_kind is Kind.BOUND
    with torch.no_grad():
        columns = torch.eye(SIDE**2).double().reshape(-1, 1, SIDE, SIDE)
        matrix = energy.physics.A(columns).reshape(SIDE**2, -1)
    norm = float(torch.linalg.matrix_norm(matrix, 2)) ** 2
    assert norm <= float(found.L) <= (1.5 if kernel == "free" else 1.01) * norm


def test_steps_are_in_the_units_of_what_is_learned():
    energy, data = place("reflect free")
    problem = lr.BilevelProblem(energy, data)
    taps = energy.physics.tensors()["filter"].detach()
    assert problem.units[:2].tolist() == [1, 1]
    assert problem.units[2:].tolist() == pytest.approx([0.1 * float(taps.amax())] * 25)


def test_in_turn_is_a_learner_with_some_parameters_frozen():
    """The alternating baseline needs no code of its own, and falls at every half."""
    energy, data = place("reflect gaussian")
    losses = []
    for number in range(4):
        energy.regularizer.terms[0].requires_grad_(number % 2 == 0)
        energy.physics.parametrizations.requires_grad_(number % 2 == 1)
        run = lr.learn(
            lr.BilevelProblem(energy, data), lr.MAID(), budget=lr.Budget(steps=1), seed=0
        )
        energy = run.trained
        losses += [run.record.rows[0]["loss"], run.record.rows[-1]["loss"]]
    assert losses[-1] < losses[0]


# --- refused in words -----------------------------------------------------------------------------


def tomography():
    return D.Tomography(angles=5, img_width=16, circle=False, normalize=False)


class Deaf(D.LinearPhysics):
    """Has a tensor and does not take it as an argument."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.ones(1))

    def A(self, x, **kwargs):
        return self.scale * x

    A_adjoint = A


class Rounded(Deaf):
    """Uses its argument through a function that autograd cannot follow."""

    def A(self, x, scale=None, **kwargs):
        return x if scale is None else scale.detach() * x

    A_adjoint = A


REFUSED = {
    "angles": (
        lambda: LearnedPhysics(tomography(), {"angles": K.Free(start=torch.arange(5.0))}),
        "Tomography, whose A x is the same for every angles",
    ),
    "a deaf operator": (
        lambda: LearnedPhysics(Deaf(), {"scale": K.Free(start=torch.ones(1))}),
        "the same for every scale",
    ),
    "no derivative": (
        lambda: LearnedPhysics(Rounded(), {"scale": K.Free(start=torch.ones(1))}),
        "autograd can differentiate in scale",
    ),
    "no such tensor": (
        lambda: LearnedPhysics(tomography(), {"filter": K.GaussianKernel(5)}),
        "'filter' for Tomography; expected names of its tensors: .*angles",
    ),
    "no tensor at all": (
        lambda: LearnedPhysics(D.LinearPhysics(), {"filter": K.GaussianKernel(5)}),
        "it has none",
    ),
    "nothing": (lambda: LearnedPhysics(blur(), {}), "modules by the names of tensors"),
    "a tensor": (
        lambda: LearnedPhysics(blur(), {"filter": torch.ones(1, 1, 3, 3)}),
        "a module whose forward",
    ),
    "a class": (lambda: LearnedPhysics(D.Blur, {"filter": K.GaussianKernel(5)}), "the class Blur"),
    "no physics": (lambda: LearnedPhysics(nn.ReLU(), {"filter": K.GaussianKernel(5)}), "base: "),
    "learned twice": (
        lambda: LearnedPhysics(
            D.Blur(filter=nn.Parameter(torch.ones(1, 1, 3, 3))), {"filter": K.GaussianKernel(5)}
        ),
        "requires a gradient in Blur already",
    ),
    "twice around": (
        lambda: LearnedPhysics(
            LearnedPhysics(blur(), {"filter": K.GaussianKernel(5)}), {"filter": Own()}
        ),
        "the physics inside",
    ),
    "larger than the images": (
        lambda: LearnedPhysics(
            D.BlurFFT((1, 4, 4), filter=torch.ones(1, 1, 3, 3)), {"filter": K.GaussianKernel(5)}
        ),
        "5 x 5 pixels for images of 4 x 4",
    ),
    "channels": (
        lambda: LearnedPhysics(blur(), {"filter": K.GaussianKernel(3, channels=2)}, (3, 8, 8)),
        r"c=2 and C=3",
    ),
    "a start that does not move": (
        lambda: LearnedPhysics(blur(), {"filter": Still()}),
        "of which log_std does not move the tensor",
    ),
    "images that are none": (
        lambda: LearnedPhysics(OnlyChannels(), {"gain": K.Free(start=torch.ones(7, 1, 1))}),
        r"Pass image=\(channels, height, width\)",
    ),
}


class Still(nn.Module):
    """A Gaussian that starts as a single pixel."""

    def __init__(self):
        super().__init__()
        self.log_std = nn.Parameter(torch.tensor(-2.5))

    def forward(self):
        t = torch.arange(-1, 2)
        k = torch.exp(-(t[:, None] ** 2 + t**2) / (2 * torch.exp(2 * self.log_std)))
        return (k / k.sum())[None, None]


class OnlyChannels(Deaf):
    """Takes images of seven channels; nobody could guess it."""

    def __init__(self):
        super().__init__()
        self.register_buffer("gain", torch.ones(7, 1, 1))

    def A(self, x, gain=None, **kwargs):
        if x.shape[1] != 7:
            raise RuntimeError("seven channels")
        return x * (self.gain if gain is None else gain)

    A_adjoint = A


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_learned_is_refused_in_words(name):
    make, words = REFUSED[name]
    with pytest.raises(InputError, match=words):
        make()


def test_an_operator_without_an_adjoint_is_refused():
    with pytest.raises(MissingPropertyError, match="no adjoint"):
        LearnedPhysics(D.Physics(), {"filter": K.GaussianKernel(5)})


def test_a_shape_that_is_told_helps():
    physics = LearnedPhysics(
        OnlyChannels(), {"gain": K.Free(start=torch.ones(7, 1, 1))}, image=(7, 4, 4)
    )
    assert physics.A(torch.ones(1, 7, 4, 4)).sum() == 7 * 16


def test_images_that_do_not_fit_are_refused_in_words():
    physics = LearnedPhysics(blur(), {"filter": K.GaussianKernel(9)})
    with pytest.raises(InputError, match="9 x 9 pixels for images of 4 x 4"):
        physics.A(torch.ones(1, 1, 4, 4))
    coloured = LearnedPhysics(blur(), {"filter": K.GaussianKernel(3, channels=3)})
    energy = lr.Energy(coloured, lr.regularizers.TV() + lr.regularizers.Tikhonov(0.1))
    with pytest.raises(InputError, match="kernel"):
        lr.solve(energy, torch.ones(1, 2, 8, 8), 1e-2)


def test_inference_mode_leaves_nothing_behind():
    with torch.inference_mode():
        physics = LearnedPhysics(blur(), {"filter": K.GaussianKernel(5)})
        physics.A(torch.ones(1, 1, 8, 8))
    energy = lr.Energy(physics, lr.regularizers.TV() + lr.regularizers.Tikhonov(0.1))
    assert lr.solve(energy, torch.rand(1, 1, 8, 8), 1e-2).ok


def test_a_stack_and_a_product_learn_the_tensor_of_their_parts():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        product = blur("circular") * D.Inpainting((1, 8, 8), mask=torch.ones(1, 8, 8))
        stack = blur("circular").stack(D.Inpainting((1, 8, 8), mask=torch.ones(1, 8, 8)))
    for base in (product, stack):
        physics = LearnedPhysics(base, {"filter": K.GaussianKernel(5)}, image=(1, 8, 8))
        energy = lr.Energy(physics, lr.regularizers.TV() + lr.regularizers.Tikhonov(0.1))
        y = physics.A(torch.rand(1, 1, 8, 8))
        detached = y.detach() if isinstance(y, Tensor) else type(y)([t.detach() for t in y])
        assert lr.solve(energy, detached, 1e-4).ok
        first = y if isinstance(y, Tensor) else y[0]
        first.sum().backward()
        assert physics.parametrizations["filter"].log_std.grad is not None


def test_unrolled_and_layers_see_the_kernel_too():
    """Differentiation through the iterations uses A and A^T of one theta."""
    energy, data = place("circular gaussian")
    problem = lr.BilevelProblem(energy, data)
    implicit = Bilevel(problem)
    z = implicit.gradient(implicit.evaluate(problem.theta, 1e-9), 1e-9).value
    layer = lr.Reconstructor(energy.with_theta(problem.theta), 1e-9, relative_delta=1e-9)
    loss = 0.5 * (layer(data.y) - data.x).square().flatten(1).sum(1).mean()
    loss.backward()
    parameters = trainable(layer)
    slope = torch.cat([p.grad.reshape(-1) for p in parameters])
    assert torch.allclose(slope, z, rtol=1e-5, atol=1e-7)
    assert dinv is not None


@pytest.mark.parametrize("padding", ["reflect", "circular", "replicate", "constant"])
@pytest.mark.parametrize("count", [1, 2])
def test_a_kernel_that_is_larger_than_the_images_is_named(padding, count):
    physics = LearnedPhysics(blur(padding), {"filter": K.GaussianKernel(9)})
    ridge = lr.regularizers.Tikhonov(0.1, learned=False)
    energy = lr.Energy(physics, lr.regularizers.TV() + ridge)
    with pytest.raises(InputError, match="a kernel of 9 x 9 pixels for images of 7 x 6"):
        lr.solve(energy, torch.rand(count, 1, 7, 6), eps=1e-2)


@pytest.mark.parametrize("size", [1e25, 1e38])
@pytest.mark.parametrize("learns", [True, False])
def test_an_operator_without_a_finite_norm_is_named(size, learns):
    taps = torch.full((1, 1, 3, 3), size)
    physics = LearnedPhysics(blur(), {"filter": K.Free(start=taps)}) if learns else D.Blur(taps)
    ridge = lr.regularizers.Tikhonov(0.1, learned=False)
    with pytest.raises(InputError, match="NaN or Inf"):
        lr.solve(lr.Energy(physics, ridge), torch.rand(1, 1, 7, 6), eps=1e-2)


@pytest.mark.parametrize("mask", [None, torch.ones(1, 9, 8)], ids=["none", "ones"])
def test_a_mask_for_every_image_beside_a_learned_kernel(mask):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deepinv says that the product has no SVD
        product = D.Inpainting((1, 9, 8), mask=mask) * blur()
    if mask is None:
        with pytest.raises(InputError, match=r"whose mask is None.*mask=torch.ones"):
            LearnedPhysics(product, {"filter": K.GaussianKernel(3)})
        return

    physics = LearnedPhysics(product, {"filter": K.GaussianKernel(3)})
    x = torch.rand(2, 1, 9, 8, generator=torch.Generator().manual_seed(0))
    masks = (x > 0.3).float()
    energy = lr.Energy(physics, lr.regularizers.TV() + lr.regularizers.Tikhonov(0.1, learned=False))
    both = lr.solve(energy, masks * x, eps=1e-4, params={"mask": masks}).value
    for i in range(2):
        alone = masks[i : i + 1]
        one = lr.solve(energy, alone * x[i : i + 1], eps=1e-4, params={"mask": alone}).value
        torch.testing.assert_close(both[i : i + 1], one, atol=2e-4, rtol=0)
