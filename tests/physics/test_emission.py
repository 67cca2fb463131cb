"""Emission tomography against dense matrices; what its parameters do; foreign projectors."""

from __future__ import annotations

import math

import pytest
import torch
from deepinv.physics import Blur, LinearPhysics, Tomography
from torch import Tensor

import learnreg as lr
from learnreg import physics as P
from learnreg.core.bounds import Kind
from learnreg.core.errors import AdjointError, InputError, LearnregError
from learnreg.core.measured import Measured
from learnreg.operators.nonnegative import known_nonnegative
from learnreg.operators.physics import LinearMap
from learnreg.physics.emission import FWHM, disc_attenuation

SIDE, VIEWS = 12, 8


def rays() -> Tomography:
    return Tomography(VIEWS, SIDE, circle=False, normalize=False, adjoint_via_backprop=True)


def random(seed: int, *shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


CELLS = rays().A(torch.zeros(1, 1, SIDE, SIDE)).shape[-2]
FACTORS = 0.2 + 0.8 * random(0, 1, 1, CELLS, VIEWS)


def whole() -> P.EmissionTomography:
    return P.EmissionTomography(rays(), FACTORS, P.resolution(2.0))


def matrix(physics: LinearPhysics) -> Tensor:
    pixels = torch.eye(SIDE**2, dtype=torch.float64).view(-1, 1, SIDE, SIDE)
    return physics.A(pixels).flatten(1).T


def wide(physics: LinearPhysics) -> LinearPhysics:
    return LinearMap(physics).double().physics


def test_it_is_the_product_of_its_factors():
    blur = Blur(P.resolution(2.0).double(), padding="constant")
    product = FACTORS.double().flatten()[:, None] * matrix(wide(rays())) @ matrix(blur)
    found = matrix(wide(whole()))
    torch.testing.assert_close(found, product, rtol=1e-6, atol=1e-6)
    assert (found >= 0).all()


@pytest.mark.parametrize("made", [whole, lambda: P.EmissionTomography(rays())])
def test_its_norm_is_proven(made):
    x = random(1, 2, 1, SIDE, SIDE)
    bound = LinearMap(made()).spectrum(x).L
    exact = float(torch.linalg.matrix_norm(matrix(wide(made())), 2)) ** 2
    assert bound.kind is Kind.BOUND and exact <= bound.value <= 1.01 * exact


def test_the_user_word_for_a_projector_stays_the_user_word():
    class Own(Tomography):
        """Of a class that nobody knows."""

    own = Own(VIEWS, SIDE, circle=False, normalize=False)
    assert known_nonnegative(P.EmissionTomography(own)) is Kind.UNKNOWN
    own.nonnegative = True
    assert known_nonnegative(P.EmissionTomography(own)) is Kind.ESTIMATE
    signed = whole()
    signed.filter = -signed.filter
    assert known_nonnegative(signed) is Kind.UNKNOWN
    mended = whole()
    mended.A = lambda x: -x
    assert known_nonnegative(mended) is Kind.UNKNOWN


def test_attenuation_of_a_map_is_the_exponential_of_its_projection():
    mu = random(2, 2, 1, SIDE, SIDE)
    found = P.EmissionTomography(rays()).attenuated_by(mu)
    torch.testing.assert_close(found.attenuation, torch.exp(-rays().A(mu)))
    x = random(3, 2, 1, SIDE, SIDE)
    torch.testing.assert_close(found.A(x), torch.exp(-rays().A(mu)) * rays().A(x))


def test_a_disc_weakens_the_rays_through_its_middle_most():
    c = disc_attenuation(21, 20, 2.0).flatten()
    assert c[10] == pytest.approx(math.exp(-2), rel=1e-6)
    assert torch.equal(c, c.flip(0)) and (c[1:11] <= c[:10]).all() and c[0] == 1


@pytest.mark.parametrize("fwhm", [0.1, 1.0, 3.5])
def test_a_blur_has_its_width(fwhm):
    g = P.resolution(fwhm)[0, 0].double()
    middle = g.shape[0] // 2
    assert float(g.sum()) == pytest.approx(1) and g.shape[0] % 2
    ratio = float(g[middle, middle + 1] / g[middle, middle])
    assert ratio == pytest.approx(math.exp(-0.5 * (FWHM / fwhm) ** 2), rel=1e-4, abs=1e-30)


def test_back_projection_undoes_the_attenuation():
    x = torch.zeros(1, 1, SIDE, SIDE)
    x[..., 4:8, 4:8] = 1
    attenuated = P.EmissionTomography(rays(), FACTORS)
    torch.testing.assert_close(attenuated.fbp(attenuated.A(x)), rays().fbp(rays().A(x)))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"inner": torch.nn.Identity()}, "projector"),
        ({"attenuation": -FACTORS}, "attenuation.*>= 0"),
        ({"attenuation": 1 + FACTORS}, "attenuation.*<= 1.*attenuated_by"),
        ({"attenuation": FACTORS * float("nan")}, "attenuation"),
        ({"attenuation": 0.5}, "attenuation"),
        ({"filter": -P.resolution(1.0)}, "filter"),
        ({"filter": torch.ones(1, 1, 2, 2)}, "odd"),
        ({"filter": torch.ones(3, 3)}, "odd"),
    ],
)
def test_what_is_no_scanner_is_refused(arguments, words):
    with pytest.raises(InputError, match=words):
        P.EmissionTomography(**{"inner": rays(), **arguments})


def test_contamination_is_a_share_of_the_trues():
    trues = whole().A(random(4, 3, 1, SIDE, SIDE) * torch.tensor([1.0, 5, 0.1]).view(3, 1, 1, 1))
    r = P.contamination(trues, 0.5)
    torch.testing.assert_close(r.mean(dim=(1, 2, 3)), 0.5 * trues.mean(dim=(1, 2, 3)))
    assert (r > 0).all() and r.shape == trues.shape
    for bad in (torch.zeros(1, 1, 4, 4), trues[0], -trues):
        with pytest.raises(InputError, match="trues"):
            P.contamination(bad)


# --- counts ---------------------------------------------------------------------------------------


def test_counts_take_backgrounds_and_gains_per_image():
    z, r = torch.full((2, 1, 60, 60), 3.0), torch.tensor([5.0, 50.0]).view(2, 1, 1, 1)
    physics = P.EmissionTomography(rays(), noise_model=P.Counts(0.5, rng=torch.Generator()))
    y = physics.noise_model(z, seed=0, background=r)
    torch.testing.assert_close(y.mean(dim=(1, 2, 3)), torch.tensor([11.0, 56.0]), rtol=0.03, atol=0)
    assert float(physics.noise_model.background) == 0  # what was given is for that call
    gain = torch.tensor([0.5, 3.0])
    y = P.Counts(gain, 2.0, rng=torch.Generator())(z, seed=1)
    torch.testing.assert_close(y.mean(dim=(1, 2, 3)), torch.tensor([8.0, 3.0]), rtol=0.03, atol=0)


def test_a_scan_with_its_own_attenuation_and_background_is_solved_as_one():
    physics = P.EmissionTomography(rays(), filter=P.resolution(1.5), noise_model=P.Counts(0.05))
    x = lr.data.phantoms(3, SIDE, 0)
    c = torch.exp(-rays().A(0.05 * random(5, 3, 1, SIDE, SIDE)))
    trues = physics.A(x, attenuation=c) / 0.05
    r = P.contamination(trues)
    torch.manual_seed(0)
    y = torch.poisson(trues + r)
    energy = lr.Energy(
        P.EmissionTomography(rays(), filter=P.resolution(1.5)),
        lr.regularizers.TV(0.5, 0.1) + lr.regularizers.Tikhonov(0.5, learned=False),
        lr.KL(gain=0.05),
    )
    params = {"attenuation": c, "background": r}
    found = lr.solve(energy, y, eps=0.02, params=params)
    assert found.ok
    for i in range(3):
        part = slice(i, i + 1)
        own = {name: t[part] for name, t in params.items()}
        alone = lr.solve(energy, y[part], eps=0.02, params=own)
        assert torch.dist(alone.value, found.value[part]) <= 0.04
    kinds = energy.at(Measured(y, params)).constants
    assert kinds.mu_kind > Kind.ESTIMATE and kinds.L_kind is Kind.BOUND


# --- foreign projectors ---------------------------------------------------------------------------


class Foreign(LinearPhysics):
    """Emission tomography as deepinv has it: ``A(x, add_background=False)``, tensors
    ``attenuation`` and ``background``, and a projector that is no module, as that of parallelproj.
    """

    def __init__(self, narrow: bool, crooked: bool = False) -> None:
        super().__init__()
        self.register_buffer("attenuation", FACTORS.clone())
        self.register_buffer("background", torch.ones(1, 1, CELLS, VIEWS))
        self.proj, self.narrow, self.crooked = wide(rays()), narrow, crooked

    def _rounded(self, t: Tensor) -> Tensor:
        return t.float() if self.narrow else t

    def A(self, x, add_background=False, attenuation=None, background=None, **_):
        self.update_parameters(attenuation=attenuation, background=background)
        out = self._rounded(self.proj.A(x.double())).to(self.attenuation) * self.attenuation
        return out + self.background if add_background else out

    def A_adjoint(self, y, attenuation=None, background=None, **_):
        self.update_parameters(attenuation=attenuation, background=background)
        scale = 1.01 if self.crooked else 1.0
        back = self.proj.A_adjoint((y * self.attenuation).double())
        return self._rounded(scale * back).to(self.attenuation)


def of_foreign(physics: LinearPhysics) -> lr.Energy:
    ridge = lr.regularizers.Tikhonov(0.5, learned=False)
    return lr.Energy(physics, lr.regularizers.TV(0.5, 0.1) + ridge, lr.KL())


def test_a_foreign_scanner_is_taken_as_it_is():
    physics, x = Foreign(narrow=False), 5 * lr.data.phantoms(2, SIDE, 0)
    r = P.contamination(physics.A(x)).float()
    y = torch.poisson(physics.A(x) + r, generator=torch.Generator().manual_seed(0))
    ours = P.EmissionTomography(rays(), FACTORS)
    one = lr.solve(of_foreign(physics), y, eps=1e-2, params={"background": r})
    other = lr.solve(of_foreign(ours), y, eps=1e-2, params={"background": r})
    assert one.ok and torch.dist(one.value, other.value) <= 4e-2
    assert torch.equal(physics.background, torch.ones(1, 1, CELLS, VIEWS))


def test_a_projector_of_single_precision_is_refused_in_words():
    """What it gives in float64 is rounded to float32: no certificate could be closed with it."""
    y = torch.ones(1, 1, CELLS, VIEWS)
    with pytest.raises(LearnregError, match=r"mismatch|differs") as error:
        lr.solve(of_foreign(Foreign(narrow=True)), y, eps=1e-2)
    assert error.value.remedy
    with pytest.raises(AdjointError, match="adjoint"):
        lr.solve(of_foreign(Foreign(narrow=False, crooked=True)), y, eps=1e-2)
