"""Proven norms of operators whose parts are known, against the singular values of matrices."""

import math

import pytest
import torch
from deepinv import physics as dphysics
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import learnreg as lr
from learnreg.core.bounds import Bound, Kind
from learnreg.core.errors import LearnregError
from learnreg.operators.nonnegative import known_nonnegative
from learnreg.operators.physics import LinearMap

PADDINGS = ("circular", "valid", "constant", "reflect", "replicate")


def drawn(*shape: int, seed: int, signed: bool = False) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return (torch.randn if signed else torch.rand)(*shape, generator=g)


def values(operator: LinearMap, x: Tensor) -> Tensor:
    """Squared singular values of A for images like x, from the largest on."""
    eye = torch.eye(x[0].numel(), dtype=torch.float64).view(-1, *x.shape[1:])
    tied = operator.on(x).double()
    columns = [tied.forward(e[None]).flatten() for e in eye]
    return torch.linalg.svdvals(torch.stack(columns, dim=1)) ** 2


def check(physics: nn.Module, x: Tensor, loose: float = math.inf) -> Bound:
    """The bound is one, is proven, and is not looser than that."""
    operator = LinearMap(physics)
    found, true = operator.spectrum(x), values(operator, x)
    assert found.L.certified
    assert float(true[0]) <= found.L.value * (1 + 1e-9)
    assert found.L.value <= loose * float(true[0])
    smallest = float(true[-1]) if len(true) == x[0].numel() else 0.0
    assert found.mu.value <= smallest + 1e-9 * float(true[0])
    return found.mu


@given(
    padding=st.sampled_from(PADDINGS),
    sides=st.tuples(st.integers(1, 5), st.integers(2, 5)),
    image=st.tuples(st.integers(5, 8), st.integers(5, 8)),
    channels=st.integers(1, 2),
    signed=st.booleans(),
    fft=st.booleans(),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=20, deadline=None)
def test_norms_of_blurs_with_signed_kernels(padding, sides, image, channels, signed, fft, seed):
    kernel = drawn(1, channels, *sides, seed=seed, signed=signed)
    physics, x = (
        dphysics.Blur(filter=kernel, padding=padding, use_fft=fft),
        torch.zeros(1, 2, *image),
    )
    try:
        LinearMap(physics).check(x)
    except LearnregError:  # deepinv's adjoint fails for a few sides of kernels
        assume(False)
    check(physics, x, loose=1.05 if not signed else math.inf)


@pytest.mark.parametrize("signed", [False, True])
def test_a_circular_blur_is_known_exactly_from_both_sides(signed):
    physics = dphysics.Blur(filter=drawn(1, 1, 3, 3, seed=1, signed=signed), padding="circular")
    x = torch.zeros(1, 1, 8, 6)
    assert check(physics, x, loose=1 + 1e-9).value > 0
    assert LinearMap(physics).on(x).map.cost.power_iterations == 0


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("made", [dphysics.Downsampling, dphysics.Upsampling])
def test_norms_of_sampling(made, factor, padding):
    if made is dphysics.Upsampling and padding == "valid":
        pytest.skip("deepinv has none")
    kernel = drawn(1, 1, 3, 3, seed=factor, signed=True)
    physics = made(img_size=(1, 12, 12), filter=kernel, factor=factor, padding=padding)
    side = 12 if made is dphysics.Downsampling else 12 // factor
    exact = padding == "circular"
    check(physics, torch.zeros(1, 1, side, side), loose=1 + 1e-9 if exact else math.inf)
    plain = made(img_size=(1, 12, 12), filter=None, factor=factor)
    check(plain, torch.zeros(1, 1, side, side), loose=1 + 1e-9)


def test_volumes():
    for padding in ("circular", "valid"):
        kernel = drawn(1, 1, 3, 3, 3, seed=4, signed=True)
        check(dphysics.Blur(filter=kernel, padding=padding), torch.zeros(1, 1, 5, 4, 6))


@pytest.mark.parametrize("padding", PADDINGS)
def test_one_bound_for_each_signed_kernel(padding):
    kernels = drawn(3, 1, 3, 3, seed=3, signed=True)
    operator = LinearMap(dphysics.Blur(filter=kernels, padding=padding))
    x = torch.zeros(3, 1, 6, 5)
    together = operator.on(x).spectrum(x)
    assert together.L_kind is Kind.BOUND and together.L.shape == (3,)
    for i in range(3):
        alone = LinearMap(dphysics.Blur(filter=kernels[i : i + 1], padding=padding))
        assert float(together.L[i]) == pytest.approx(alone.spectrum(x[:1]).L.value, rel=1e-9)
        check(alone.physics, x[:1])


def blur(seed: int, signed: bool, padding: str = "reflect") -> dphysics.Blur:
    return dphysics.Blur(filter=drawn(1, 1, 3, 3, seed=seed, signed=signed), padding=padding)


def tomography() -> dphysics.Tomography:
    return dphysics.Tomography(
        angles=5, img_width=8, normalize=False, adjoint_via_backprop=True, circle=False
    )


COMPOSED = {
    "signed * signed": lambda: blur(2, True) * blur(1, True),
    "rays * blur": lambda: tomography() * blur(1, False),
    "rays * signed": lambda: tomography() * blur(1, True),
    "three": lambda: tomography() * (blur(1, False) * blur(2, False)),
    "mask * blur": lambda: dphysics.Inpainting((1, 8, 8), mask=0.5) * blur(3, True, "circular"),
    "stack": lambda: blur(1, True).stack(blur(2, False)),
    "stack of rays": lambda: tomography().stack(blur(2, False)),
    "stack of products": lambda: (tomography() * blur(1, False)).stack(blur(2, True)),
}


@pytest.mark.filterwarnings("ignore:At least one input physics")
@pytest.mark.parametrize("name", COMPOSED)
def test_products_and_stacks(name):
    physics = COMPOSED[name]()
    nonnegative = known_nonnegative(physics) is Kind.BOUND
    assert nonnegative == (name in ("rays * blur", "three", "stack of rays"))
    check(physics, torch.zeros(1, 1, 8, 8), loose=1.01 if nonnegative else math.inf)


class Unknown(dphysics.Blur):
    """A subclass may do as it likes."""


@pytest.mark.parametrize("wrap", [lambda p: p, lambda p: p * blur(1, True), lambda p: p.stack(p)])
def test_what_is_not_known_is_an_estimate_in_every_company(wrap):
    physics = wrap(Unknown(filter=drawn(1, 1, 3, 3, seed=1), padding="circular"))
    assert LinearMap(physics).spectrum(torch.zeros(1, 1, 8, 8)).L.kind is Kind.ESTIMATE


class Declared(dphysics.LinearPhysics):
    """Twice the image, by its own word."""

    def __init__(self, bound: Bound) -> None:
        super().__init__()
        self.bound = bound

    def A(self, x: Tensor, **_: object) -> Tensor:
        return 2 * x

    A_adjoint = A

    def norm_bound(self, x: Tensor) -> Bound:
        return self.bound


def test_a_declared_norm_has_the_kind_that_was_declared():
    x = torch.zeros(1, 1, 4, 4)
    proven = LinearMap(Declared(Bound.proven(2.0))).spectrum(x).L
    assert (proven.value, proven.kind) == (4.0, Kind.BOUND)
    assert LinearMap(Declared(Bound.estimate(2.0))).spectrum(x).L.kind is Kind.ESTIMATE


@pytest.mark.parametrize("make", [Bound.proven, Bound.estimate])
def test_a_declared_norm_that_an_image_refutes_is_refused(make):
    x = torch.zeros(1, 1, 4, 4)
    with pytest.raises(lr.InputError, match=r"norm_bound: given 1\.9; .* stretches an image by 2"):
        LinearMap(Declared(make(1.9))).spectrum(x)


def test_coils_have_the_norm_of_their_maps():
    physics = lr.physics.MRI(coils=3).build((6, 8), channels=2)
    x = torch.zeros(1, 2, 6, 8)
    check(physics, x)


# --- trial points of a learner --------------------------------------------------------------------


class Counting:
    """Applications of a blur, in images."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, kind: type = dphysics.Blur) -> None:
        self.seen = 0

        def of(method: object) -> object:
            def counted(physics: object, x: Tensor, *args: object, **more: object) -> Tensor:
                self.seen += x.shape[0]
                return method(physics, x, *args, **more)

            return counted

        for name in ("A", "A_adjoint"):
            monkeypatch.setattr(kind, name, of(getattr(kind, name)))


@pytest.mark.parametrize("padding", PADDINGS)
def test_a_trial_point_costs_few_products_and_all_are_counted(padding, monkeypatch):
    kernel = drawn(1, 1, 3, 3, seed=1, signed=True).requires_grad_()
    energy = lr.Energy(dphysics.Blur(filter=kernel, padding=padding), lr.regularizers.TV())
    truth = drawn(4, 1, 8, 8, seed=2)
    y = energy.physics.A(truth).detach()
    energy.at(y)
    used = Counting(monkeypatch)
    theta = torch.cat([p.detach().flatten() for p in energy.parameters()])
    theta = torch.cat([theta, 1.1 * kernel.detach().flatten()])
    trial = energy.with_theta(theta)
    f = trial.at(y, truth)
    assert used.seen == 2 * f.spent.work <= 8, "four products with one image at most"
    assert f.bounds().L.certified
    trial.at(y, truth)
    assert used.seen == 2 * f.spent.work, "and nothing at the same point again"


def test_the_norm_of_a_part_that_is_not_learned_is_found_once(monkeypatch):
    learned = dphysics.Blur(
        filter=drawn(1, 1, 3, 3, seed=1, signed=True).requires_grad_(), padding="reflect"
    )
    energy = lr.Energy(tomography() * learned, lr.regularizers.TV())
    x = torch.zeros(1, 1, 8, 8)
    y = energy.physics.A(x).detach()
    energy.at(y)
    used = Counting(monkeypatch, dphysics.Tomography)
    theta = torch.cat([p.detach().flatten() for p in lr.core.params.trainable(energy)])
    f = energy.with_theta(1.01 * theta).at(y, x)
    assert used.seen == 0 and f.bounds().L.certified


class Shrinking(dphysics.LinearPhysics):
    """theta x, whose norm nobody but itself knows."""

    def __init__(self, known: bool) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor([2.0]))
        if known:
            self.sensitivity = lambda x: Bound.proven(1.0)

    def A(self, x: Tensor, **_: object) -> Tensor:
        return self.factor * x

    A_adjoint = A


@pytest.mark.parametrize("known", [False, True])
def test_norms_of_unknown_operators_move_along_with_theta(known):
    energy = lr.Energy(Shrinking(known), lr.regularizers.TV())
    y = drawn(2, 1, 6, 6, seed=1)
    first = energy.at(y).operator.spectrum(y)
    theta = torch.cat([p.detach().flatten() for p in energy.parameters()])
    theta[-1] = 2.05
    f = energy.with_theta(theta).at(y, y)
    found = f.operator.spectrum(y)
    assert float(found.L) >= 2.05**2 and found.L_kind is Kind.ESTIMATE
    assert float(first.L) < float(found.L) < 1.1 * float(first.L)
    assert f.spent.power_iterations == (0 if known else 6)


def test_an_operator_that_was_learned_is_looked_at_again():
    energy = lr.Energy(Shrinking(False), lr.regularizers.TV())
    y = drawn(2, 1, 6, 6, seed=1)
    energy.at(y)
    theta = torch.cat([p.detach().flatten() for p in energy.parameters()])
    last = energy.with_theta(theta).untrusted()
    assert last.at(y, y).spent.power_iterations == 30
