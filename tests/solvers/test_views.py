"""Potentials and saddle functions behind one front: who asks which is which, what is optional, and
that both views answer alike.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

import deepinv
import pytest
import torch
from tests.regularizers.cases import denoising, pairs, tv
from torch import Tensor

import learnreg.solvers
from learnreg.core import offers as core_offers
from learnreg.core.asking import offers as asked
from learnreg.core.batch import put_fields, select_fields
from learnreg.core.errors import MissingPropertyError
from learnreg.core.protocols import Potential, Saddle
from learnreg.linear.precondition import PerImage, narrowed
from learnreg.problems import Energy, SaddleEnergy, gallery
from learnreg.regularizers import ExactTV, Tikhonov
from learnreg.solvers import offers, solve
from learnreg.solvers.solve import most_steps, solve_potential, spent_on, start_distance
from learnreg.solvers.views import SaddleView, SmoothView, is_saddle, view_of

ROOM = Path(learnreg.solvers.__file__).parent
FILES = sorted([*ROOM.glob("*.py"), *(ROOM.parent / "linear").glob("*.py")])


def smooth() -> tuple[Potential, Tensor]:
    y = pairs(3).y
    return denoising(tv(True)).at(y), y


def weak() -> tuple[Potential, Tensor]:
    """With mu = 0.05, far from one."""
    kernel = torch.ones(1, 1, 3, 3, dtype=torch.float64) / 9
    blur = deepinv.physics.Blur(filter=kernel, padding="circular")
    y = pairs(3).y
    return Energy(blur, tv(True) + Tikhonov(0.05, learned=False).double()).at(y), y


def saddle() -> tuple[Saddle, Tensor]:
    y = pairs(3).y
    energy = SaddleEnergy(denoising(tv(True)).physics, ExactTV(0.1, rounding=0.05).double())
    return energy.at(y), y


def called(file: Path) -> set[str]:
    """Names of the functions that a file calls."""
    calls = (n.func for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Call))
    return {f.id for f in calls if isinstance(f, ast.Name)}


# --- who asks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES, ids=[f"{f.parent.name}/{f.name}" for f in FILES])
def test_nobody_but_the_views_asks_what_a_function_is(file):
    calls = called(file)
    assert not calls & {"getattr", "hasattr"}, "an offer is a protocol, asked for by its members"
    if file.name != "views.py":
        assert "is_saddle" not in calls
        names = {n.id for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Name)}
        assert not names & {"Certifying", "SaddleView", "SmoothView"}


# --- what is optional -----------------------------------------------------------------------------

PROTOCOLS = vars(core_offers) | vars(offers)
SMOOTH = {
    "Started",
    "Backprojected",
    "Billed",
    "Operated",
    "Noisy",
    "Rounded",
    "Priced",
    "Averaged",
    "KnowsAverages",
    "DualVariable",
}
SADDLE = {
    "Certifying",
    "Started",
    "Backprojected",
    "Billed",
    "Operated",
    "Constrained",
    "Majorized",
    "Halved",
}


@pytest.mark.parametrize(("make", "expected"), [(smooth, SMOOTH), (saddle, SADDLE)])
def test_ours_offer_what_saves_work(make, expected):
    """A method that is renamed in one place only would pass for one that is missing."""
    f, _ = make()
    for name in expected:
        assert asked(f, PROTOCOLS[name]), name


def test_the_gallery_offers_nothing_and_is_solved_all_the_same():
    problem = gallery.quadratic(images=2, n=4)
    f = problem.energy.at(problem.pairs.y)
    missing = SMOOTH - {"Operated", "Billed", "Backprojected"}
    assert not any(asked(f, PROTOCOLS[name]) for name in missing)
    assert solve(problem.energy, problem.pairs.y, 1e-6).ok


def test_what_is_spent_on_something_else_is_not_on_the_bill():
    class Shopping:
        spent = "an afternoon"

    assert spent_on(Shopping()).work == 0 == spent_on(object()).work


# --- the two views --------------------------------------------------------------------------------


def test_the_question_is_answered_once_and_rightly():
    (f, _), (s, _) = smooth(), saddle()
    assert not is_saddle(f) and isinstance(view_of(f), SmoothView)
    assert is_saddle(s) and isinstance(view_of(s), SaddleView)
    assert isinstance(f, Potential) and isinstance(s, Saddle)


@pytest.mark.parametrize("make", [smooth, saddle])
def test_views_follow_the_batch_and_the_precision(make):
    f, y = make()
    view, index = view_of(f), torch.tensor([2, 0])
    z = view.variables(y)
    assert z.shape[0] == 3 and torch.equal(view.variables(z), z), "variables are left alone"

    part = view.select(index)
    assert type(part) is type(view) is type(view.double())
    whole, chosen = view.close(z), part.close(z[index])
    torch.testing.assert_close(chosen.evidence, whole.evidence[index])
    torch.testing.assert_close(chosen.gradient, whole.gradient[index])
    torch.testing.assert_close(part.noise(z[index]), view.noise(z)[index])
    assert whole.evidence.dtype == torch.float64


@pytest.mark.parametrize("make", [smooth, weak, saddle])
def test_what_a_view_says_of_a_start_is_true(make):
    f, y = make()
    view = view_of(f)
    exact = solve_potential(f, 1e-8, y).value
    away = (exact - y).flatten(1).norm(dim=1)
    bound = start_distance(f, y)
    assert (away <= bound * (1 + 1e-6) + 1e-8).all()

    # the rule of the view agrees: an image is done at eps exactly where its evidence says so
    closing, rule = view.close(view.variables(y)), view.rule("distance")
    distance = rule.distance(closing.evidence)
    torch.testing.assert_close(distance, bound.double(), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(rule.target * distance, closing.evidence, rtol=1e-12, atol=0)


def test_a_saddle_step_is_many_iterations():
    assert most_steps(saddle()[0]) < most_steps(smooth()[0])


def test_only_potentials_have_a_gradient_to_hand_out():
    f, _ = smooth()
    assert view_of(f).require_gradient("Energy") is f
    with pytest.raises(MissingPropertyError, match="SaddleEnergy, which has no gradient"):
        view_of(saddle()[0]).require_gradient("SaddleEnergy")


@pytest.mark.parametrize("solver", ["auto", "pdhg"])
def test_no_gradient_norm_is_asked_of_a_saddle_function(solver):
    """Not even where mu = 0, so that a distance is refused as well."""
    y = pairs(2, (9, 8)).y
    kernel = torch.ones(1, 1, 3, 3, dtype=torch.float64) / 9
    blur = deepinv.physics.Blur(filter=kernel, padding="circular")
    for tikhonov in (0.0, 1e-2):
        energy = SaddleEnergy(blur, ExactTV(0.1).double(), tikhonov=tikhonov)
        with pytest.raises(MissingPropertyError, match="stationarity: given a SaddleAt"):
            solve(energy, y, stationarity=1e-2, solver=solver)


def test_near_rounding_is_where_the_type_of_the_variables_ends():
    for f, y in (smooth(), saddle()):
        view = view_of(f)
        z = view.variables(y)
        loose, tight = torch.full((3,), 1.0).double(), torch.full((3,), 1e-6).double()
        assert not view.near_rounding(loose, z.float(), "distance").any()
        assert view.near_rounding(tight * 1e-3, z.float(), "distance").all()
        assert not view.near_rounding(tight, z, "distance").any()


@pytest.mark.parametrize("make", [smooth, weak])
def test_a_distance_is_near_rounding_where_its_gradient_is(make):
    """A gradient of mu eps certifies eps."""
    f, y = make()
    view, mu = view_of(f), f.bounds().mu.value
    answers = []
    for eps in torch.logspace(-9, 0, 40, dtype=torch.float64):
        of_distance = view.near_rounding(eps.expand(3), y.float(), "distance")
        of_gradient = view.near_rounding(mu * eps.expand(3), y.float(), "stationarity")
        assert of_distance.equal(of_gradient)
        answers.append(bool(of_distance.all()))
    assert answers[0] and not answers[-1]


def test_a_small_gradient_alone_is_no_distance():
    f, y = weak()
    view = view_of(f)
    rule, evidence = view.rule("stationarity"), view.close(y).evidence
    assert torch.equal(rule.distance(evidence), torch.full_like(evidence, torch.inf))
    assert float(rule.target) == 1.0, "what is asked for is the gradient itself"


# --- batches in dataclasses -----------------------------------------------------------------------


@dataclass
class Pair:
    a: Tensor
    b: Tensor
    words: str


def test_images_of_a_dataclass_are_taken_and_put_back():
    whole = Pair(torch.arange(4.0), torch.arange(8.0).view(4, 2), "whole")
    index = torch.tensor([3, 1])
    part = select_fields(whole, index, words="part")
    assert part.a.tolist() == [3, 1] and part.b.tolist() == [[6, 7], [2, 3]]
    assert part.words == "part" and select_fields(whole, index).words == "whole"

    moved = Pair(-part.a, -part.b, "moved")
    back = put_fields(whole, index, moved)
    assert back.a.tolist() == [0, -1, 2, -3] and back.words == "whole"
    assert back.b[:, 0].tolist() == [0, -2, 4, -6] and whole.a.tolist() == [0, 1, 2, 3]


def test_a_preconditioner_follows_the_batch_if_it_differs_from_image_to_image():
    class Scaled:
        def __init__(self, scale: Tensor) -> None:
            self.scale = scale

        def __call__(self, r: Tensor) -> Tensor:
            return self.scale[:, None] * r

        def select(self, index: Tensor) -> Scaled:
            return Scaled(self.scale[index])

    index, plain = torch.tensor([1]), torch.neg
    own = narrowed(Scaled(torch.tensor([1.0, 2.0])), index)
    assert own is not None and own(torch.ones(1, 2)).tolist() == [[2, 2]]
    assert narrowed(plain, index) is plain and not asked(plain, PerImage)
    assert narrowed(None, index) is None
