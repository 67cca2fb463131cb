"""An operator for every image: what is done with a batch is what is done image by image, with every
operator, energy and use that takes one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import deepinv
import pytest
import torch
from deepinv import physics as D
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import learnreg as lr
from learnreg.core.measured import Measured, Native
from learnreg.regularizers import TV, ExactTV, Tikhonov

SIDE, COUNT = 8, 3
SIZE = (SIDE, SIDE)
EPS = 1e-2


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def box() -> Tensor:
    return torch.ones(1, 1, 3, 3) / 9


MASKS = (drawn(0, COUNT, 1, *SIZE) < 0.6).float()
KERNELS = (drawn(1, COUNT, 1, 3, 3) + 0.1) / 6
COILS = torch.complex(drawn(2, COUNT, 2, *SIZE), drawn(3, COUNT, 2, *SIZE))


def composed() -> nn.Module:
    with warnings.catch_warnings():  # deepinv says that a product has no closed inverse
        warnings.simplefilter("ignore")
        return D.Inpainting((1, *SIZE)) * D.Blur(filter=box(), padding="circular")


def stacked() -> nn.Module:
    return D.stack(D.Blur(filter=box(), padding="circular"), D.Inpainting((1, *SIZE)))


def emission() -> nn.Module:
    rays = D.Tomography(6, SIDE, circle=False, normalize=False, adjoint_via_backprop=True)
    return lr.physics.EmissionTomography(rays, filter=lr.physics.resolution(1.5))


def coils() -> nn.Module:
    return D.MultiCoilMRI(mask=torch.ones(SIZE), coil_maps=COILS[:1], img_size=(2, *SIZE))


@dataclass(frozen=True)
class Case:
    make: Callable[[], nn.Module]
    channels: int
    params: dict[str, Tensor]


CASES = {
    "inpainting": Case(lambda: D.Inpainting((1, *SIZE)), 1, {"mask": MASKS}),
    "blur": Case(lambda: D.Blur(filter=box(), padding="circular"), 1, {"filter": KERNELS}),
    "blur by FFT": Case(lambda: D.BlurFFT((1, *SIZE), filter=box()), 1, {"filter": KERNELS}),
    "downsampling": Case(
        lambda: D.Downsampling((1, *SIZE), filter=box(), factor=2), 1, {"filter": KERNELS}
    ),
    "decimation": Case(lambda: lr.physics.SuperResolution(2).build(SIZE), 1, {"filter": KERNELS}),
    "MRI": Case(lambda: D.MRI(img_size=(2, *SIZE)), 2, {"mask": MASKS}),
    "MRI of real images": Case(lambda: lr.physics.MRI().build(SIZE), 1, {"mask": MASKS}),
    "coils": Case(coils, 2, {"mask": MASKS, "coil_maps": COILS}),
    "coils, real images": Case(
        lambda: lr.physics.MRI(coils=2).build(SIZE), 1, {"mask": MASKS, "coil_maps": COILS}
    ),
    "emission": Case(emission, 1, {"attenuation": 0.2 + 0.8 * drawn(4, COUNT, 1, 12, 6)}),
    "composed": Case(composed, 1, {"mask": MASKS, "filter": KERNELS}),
    "stacked": Case(stacked, 1, {"mask": MASKS, "filter": KERNELS}),
}
FAST_SADDLES = ("inpainting", "MRI of real images")
"""Saddle points of these take a second, of others up to ten."""

each = pytest.mark.parametrize("name", CASES)
kinds = pytest.mark.parametrize("kind", ["smooth", "saddle"])
each_kind = pytest.mark.parametrize(
    ("name", "kind"),
    [(name, "smooth") for name in CASES]
    + [
        pytest.param(name, "saddle", marks=[] if name in FAST_SADDLES else pytest.mark.slow)
        for name in CASES
    ],
)
SMOOTH, SADDLE = ("blur", "coils", "stacked"), ("inpainting",)
few_kinds = pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(name, kind, marks=[] if name in fast else pytest.mark.slow)
        for kind, fast in (("smooth", SMOOTH), ("saddle", SADDLE))
        for name in CASES
    ],
)


def one(params: dict[str, Tensor], i: int) -> dict[str, Tensor]:
    return {key: t[i : i + 1] for key, t in params.items()}


def truth(case: Case) -> Tensor:
    return drawn(9, COUNT, case.channels, *SIZE)


def measurements(case: Case) -> Native:
    """A x of every image by an operator of its own, which deepinv is told in its call."""
    x = truth(case)
    singles = [case.make().A(x[i : i + 1], **one(case.params, i)) for i in range(COUNT)]
    if isinstance(singles[0], Tensor):
        return torch.cat(singles)
    parts = zip(*singles, strict=True)
    return deepinv.utils.TensorList([torch.cat(same) for same in parts])


def energy(case: Case, kind: str) -> lr.Energy | lr.SaddleEnergy:
    if kind == "smooth":
        return lr.Energy(case.make(), TV(0.05, 0.1) + Tikhonov(0.5, learned=False))
    return lr.SaddleEnergy(case.make(), ExactTV(0.05), tikhonov=0.5)


def pairs(case: Case, names: str = "abc") -> lr.data.Pairs:
    return lr.data.Pairs(
        truth(case), measurements(case), case.make(), tuple(names), params=case.params
    )


@each_kind
def test_a_solve_of_all_is_one_of_each(name, kind):
    case, y = CASES[name], measurements(CASES[name])
    e = energy(case, kind)
    whole = lr.solve(e, y, eps=EPS, params=case.params)
    assert whole.ok
    for i in range(COUNT):
        alone = Measured(y)[torch.tensor([i])].y
        found = lr.solve(e, alone, eps=EPS, params=one(case.params, i))
        assert torch.dist(found.value, whole.value[i : i + 1]) <= 2 * EPS
        if i:  # and the operators matter
            wrong = lr.solve(e, alone, eps=EPS, params=one(case.params, 0), throw=False)
            assert torch.dist(wrong.value, whole.value[i : i + 1]) > 2 * EPS


@few_kinds
def test_a_hypergradient_is_the_mean_of_those_of_each(name, kind):
    case, e = CASES[name], energy(CASES[name], kind)
    ask = {"eps": 1e-3, "delta": 1e-3}
    whole = lr.hypergradient(lr.BilevelProblem(e, pairs(case)), **ask)
    singles = [
        lr.hypergradient(lr.BilevelProblem(e, pairs(case)[i : i + 1]), **ask).value
        for i in range(COUNT)
    ]
    expected = torch.stack(singles).mean(dim=0)
    torch.testing.assert_close(whole.value, expected, rtol=2e-2, atol=2e-3)


@few_kinds
def test_mini_batches_keep_image_and_operator_together(name, kind):
    """The loss at the end is small only if every image has met its own operator."""
    case = CASES[name]
    problem = lr.BilevelProblem(energy(case, kind), pairs(case))
    run = lr.learn(problem, lr.Stochastic(batch=2), budget=lr.Budget(steps=3))
    if kind == "smooth":  # with the operator of the first image
        assert run.evaluate(pairs(case), eps=1e-2, check_certificate=True).honesty
    assert run.theta.isfinite().all() and not torch.equal(run.theta, problem.theta)
    at = run.evaluate(pairs(case), eps=1e-2)
    turned = lr.data.Pairs(
        truth(case),
        measurements(case),
        case.make(),
        ("a", "b", "c"),
        params={key: t.roll(1, 0) for key, t in case.params.items()},
    )
    other = run.evaluate(turned, eps=1e-2)
    assert sum(at.psnr) > sum(other.psnr)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["blur", "coils", "stacked", "emission"])
@pytest.mark.parametrize(
    "learner",
    [lr.MAID(), lr.LBFGSB(), lr.HOAG(), lr.Deferred(), lr.DFO()],
    ids=lambda made: type(made).__name__,
)
def test_every_learner_takes_them(name, learner):
    problem = lr.BilevelProblem(energy(CASES[name], "smooth"), pairs(CASES[name]))
    run = lr.learn(problem, learner, budget=lr.Budget(steps=2))
    assert run.theta.isfinite().all()


@each_kind
def test_the_layer_takes_them_in_either_way_and_its_gradient_is_that_of_each(name, kind):
    case, y = CASES[name], measurements(CASES[name])
    model = lr.Reconstructor(energy(case, kind), 1e-3, relative_delta=1e-3)
    out = model(y, params=case.params)
    out.square().sum().backward()
    found = next(p.grad.clone() for p in model.parameters() if p.requires_grad)
    model.zero_grad()
    for i in range(COUNT):
        single = model(Measured(y)[torch.tensor([i])].y, params=one(case.params, i))
        single.square().sum().backward()
    summed = next(p.grad for p in model.parameters() if p.requires_grad)
    torch.testing.assert_close(found, summed, rtol=2e-2, atol=2e-3)

    physics = case.make()
    own = physics.physics_list if name == "stacked" else [physics]
    for part in own:  # stacks of deepinv do not hand on what they are updated with
        part.update(**case.params)
    with torch.no_grad():
        assert torch.dist(model(y, physics), out) <= 4e-3


@each
def test_a_model_file_holds_the_operator_without_those_of_the_images(name, tmp_path):
    case, y = CASES[name], measurements(CASES[name])
    e = energy(case, "smooth")
    again = lr.load_model(lr.save_model(tmp_path / "m.safetensors", e))
    one_way = lr.solve(e, y, eps=EPS, params=case.params)
    other = lr.solve(again, y, eps=EPS, params=case.params)
    assert torch.dist(one_way.value, other.value) <= 2 * EPS


@pytest.mark.parametrize("name", ["inpainting", "coils"])
def test_a_comparison_takes_them(name):
    case = CASES[name]
    problem = lr.BilevelProblem(energy(case, "smooth"), pairs(case))
    learners = {"MAID": lr.MAID(), "drawn": lr.Stochastic(batch=2)}
    found = lr.compare(problem, learners, budget=lr.Budget(steps=1), test=pairs(case, "def"))
    assert len(found.runs) == 2 and all(row["failure"] is None for row in found.runs)


# --- a stack is looked into -----------------------------------------------------------------------


def test_a_stack_of_operators_with_tensors_is_certified_in_float32():
    """deepinv keeps them in a plain list, where no float64 copy finds them by itself."""
    case = CASES["stacked"]
    physics = D.stack(D.Blur(filter=box(), padding="circular"), D.Inpainting((1, *SIZE), mask=0.5))
    e = lr.Energy(physics, TV(0.05, 0.1) + Tikhonov(0.5, learned=False))
    x = truth(case)
    assert lr.solve(e, physics(x), eps=1e-3).ok
    assert isinstance(physics.physics_list, list)  # what was lent is as it was


def test_a_change_inside_of_a_stack_is_noticed():
    physics = D.stack(D.Blur(filter=box(), padding="circular"), D.Inpainting((1, *SIZE), mask=0.5))
    e = lr.Energy(physics, Tikhonov(0.5, learned=False))
    x = truth(CASES["stacked"])
    before = e.operator.spectrum(x).L.value
    physics[0].filter = 3 * box()
    assert e.operator.spectrum(x).L.value > 4 * before


# --- inside of deepinv's Trainer ------------------------------------------------------------------


class Images(Dataset):
    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Tensor:
        return self.x[i]


NOISE = D.GaussianNoise(0.05)
GENERATED = {
    "random masks": (
        lambda: D.MRI(img_size=(2, *SIZE), noise_model=NOISE),
        lambda: D.generator.RandomMaskGenerator((2, *SIZE), acceleration=2),
        2,
    ),
    "kernels": (
        lambda: D.Blur(filter=torch.ones(1, 1, 5, 5) / 25, padding="circular", noise_model=NOISE),
        lambda: D.generator.MotionBlurGenerator((5, 5)),
        1,
    ),
    "noise levels": (lambda: D.Denoising(NOISE), lambda: D.generator.SigmaGenerator(0.05, 0.2), 1),
}


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")  # deepinv's own
@pytest.mark.parametrize("name", GENERATED)
@kinds
def test_a_reconstructor_is_trained_with_an_operator_for_every_image(name, kind):
    make, generator, channels = GENERATED[name]
    case = Case(make, channels, {})
    model = lr.Reconstructor(energy(case, kind), 1e-2)
    before = [p.detach().clone() for p in model.parameters() if p.requires_grad]
    x = drawn(5, 4, channels, *SIZE)
    trainer = deepinv.Trainer(
        model=model,
        physics=make(),
        optimizer=torch.optim.Adam(model.parameters(), 0.1),
        train_dataloader=DataLoader(Images(x), batch_size=2),
        epochs=1,
        losses=deepinv.loss.SupLoss(),
        physics_generator=generator(),
        online_measurements=True,
        save_path=None,
        verbose=False,
        show_progress_bar=False,
        device="cpu",
        non_blocking_transfers=False,
    )
    trainer.train()
    after = [p for p in model.parameters() if p.requires_grad]
    moved = [float((a - b).abs().max()) for a, b in zip(before, after, strict=True)]
    assert all(0.05 < step < 0.5 for step in moved)
