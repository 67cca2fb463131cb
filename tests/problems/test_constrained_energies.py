"""Energies with bounds of pixels: what carries them on, what files and records say, learning."""

from __future__ import annotations

import copy
import math
import pickle
from itertools import pairwise

import deepinv
import pytest
import torch
from tests.regularizers.cases import Pairs
from tests.solvers.constrained import Matrix, denoised, noisy, random
from torch import Tensor

import learnreg as lr
from learnreg.cli.config import load_config
from learnreg.core.errors import ConfigError, DataWarning, InputError
from learnreg.models.model_file import VERSION
from learnreg.problems import BilevelProblem, Energy, SaddleEnergy, at_noise_level, energy_for
from learnreg.regularizers import TV, ExactTV
from learnreg.runs.digest import digest_of
from learnreg.runs.provenance import energy_of

NOISE = deepinv.physics.Denoising(deepinv.physics.GaussianNoise(0.1))
CONSTRAINTS = {
    "number": (0.0, None),
    "box": (0.0, 0.25),
    "per pixel": (-0.1 * random(1, 1, 12, 10, seed=3), math.inf),
}


def kinds(constraint: object) -> list[Energy | SaddleEnergy]:
    return [
        Energy(NOISE, TV(0.05, 0.02).double(), constraint=constraint),
        SaddleEnergy(NOISE, ExactTV(0.05).double(), constraint=constraint),
    ]


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=5e-4)


@pytest.mark.parametrize("constraint", CONSTRAINTS.values(), ids=CONSTRAINTS)
def test_every_copy_keeps_the_constraint(constraint):
    other = deepinv.physics.Denoising(deepinv.physics.GaussianNoise(0.2))
    for energy in kinds(constraint):
        theta = BilevelProblem(energy, Pairs(x=noisy(), y=noisy())).theta
        copies = {
            "theta": energy.with_theta(theta + 0.1),
            "float64": energy.widened(),
            "physics": energy.with_physics(other),
            "following": energy.with_physics(other).following(0.1),
            "level": at_noise_level(energy, 0.2, learned=0.1),
            "deep": copy.deepcopy(energy),
            "pickle": pickle.loads(pickle.dumps(energy)),
        }
        for name, again in copies.items():
            assert again.constraint == energy.constraint, name
            x = lr.solve(again, noisy(), 1e-2).value
            assert again.constraint.tied(x).contains(x).all(), name


@pytest.mark.parametrize("constraint", CONSTRAINTS.values(), ids=CONSTRAINTS)
def test_model_files_keep_the_constraint(constraint, tmp_path):
    for energy in kinds(constraint):
        lr.save_model(tmp_path / "m.safetensors", energy)
        again = lr.load_model(tmp_path / "m.safetensors")
        assert again.constraint == energy.constraint and VERSION == 3
        same(lr.solve(again, noisy(), 1e-4).value, lr.solve(energy, noisy(), 1e-4).value)
        model = lr.load(tmp_path / "m.safetensors")
        x = model(noisy(dtype=torch.float32))
        assert energy.constraint.tied(x).contains(x).all()


def test_files_without_bounds_are_what_they_were(tmp_path):
    """Earlier releases read them, and digests of runs stay those of before."""
    free, bound = kinds(None)[0], kinds((0.0, None))[0]
    lr.save_model(tmp_path / "m.safetensors", free)
    assert lr.load_model(tmp_path / "m.safetensors").constraint is None
    assert "constraint" not in vars(free) and "constraint" in vars(bound)


def test_runs_are_told_apart_by_their_bounds():
    found = {
        digest_of(Energy(NOISE, TV(), constraint=c))
        for c in (
            None,
            (0, None),
            (0, 1),
            (torch.zeros(1, 1, 4, 4), 1),
            (torch.ones(1, 1, 4, 4), 1),
        )
    }
    assert len(found) == 5
    assert digest_of(Energy(NOISE, TV(), constraint=lr.NonNegative())) in found


def test_records_and_sentences_name_the_bounds():
    for energy in kinds((0, 1)):
        assert "0 <= x <= 1" in energy.describe()
        assert energy_of(energy)["constraint"] == "0 <= x <= 1"
    assert "constraint" not in energy_of(kinds(None)[0])


@pytest.mark.parametrize("wrong", [0, "x >= 0", (0, 1, 2), torch.zeros(1, 1, 4, 4)])
def test_what_is_no_constraint_is_refused_at_the_door(wrong):
    for make in (
        lambda: Energy(NOISE, TV(), constraint=wrong),
        lambda: SaddleEnergy(NOISE, ExactTV(), constraint=wrong),
        lambda: energy_for(NOISE, TV(), constraint=wrong),
    ):
        with pytest.raises(InputError, match="constraint"):
            make()


def test_bounds_of_other_images_are_refused_when_data_come():
    energy = Energy(NOISE, TV(), constraint=(torch.zeros(1, 1, 8, 8), None))
    with pytest.raises(InputError, match="constraint"):
        lr.solve(energy, noisy().float(), 1e-2)


def test_the_start_of_a_solve_lies_inside():
    for energy in kinds((0.0, 0.1)):
        for start in (energy.start(noisy()), energy.at(noisy()).first()):
            assert ((start >= 0) & (start <= 0.1)).all()


def test_true_images_in_other_units_are_remarked():
    energy = kinds((0.0, 1.0))[0]
    with pytest.warns(DataWarning, match="0 <= x <= 1"):
        BilevelProblem(energy, Pairs(x=255 * random(2, 1, 12, 10, seed=1), y=noisy(2)))
    BilevelProblem(energy, Pairs(x=random(2, 1, 12, 10, seed=1) - 0.3, y=noisy(2)))


def test_bounds_per_image_follow_their_images_through_learning():
    """They belong to the pairs, so that subsets of them have their own."""
    physics, truth = denoised("TV", None).physics, random(3, 1, 12, 10, seed=2) * 0.3
    lower = truth - 0.02
    y = truth + 0.2 * (random(3, 1, 12, 10, seed=3) - 0.5)
    pairs = lr.data.Pairs(truth, y, physics, ("a", "b", "c"), params={"lower": lower})
    p = BilevelProblem(denoised("TV", None), pairs)
    run = lr.learn(p, lr.MAID(), budget=lr.Budget(steps=2))
    x = run.evaluate(pairs, 1e-3).reconstruction
    assert (x >= lower - 1e-6).all() and ((x - lower).abs() < 1e-6).any()
    part = p.select(torch.tensor([2, 0]))
    x = lr.solve(part.energy, part.data.y, 1e-3, params=part.data.params).value
    assert (x >= lower[[2, 0]] - 1e-6).all()


# --- learning -------------------------------------------------------------------------------------


def dark(n: int, seed: int) -> Tensor:
    """Images (1, 16, 16) that are zero but for two rectangles."""
    g = torch.Generator().manual_seed(seed)
    x = torch.zeros(n, 1, 16, 16)
    for i in range(n):
        for _ in range(2):
            a, b = torch.randint(0, 11, (2,), generator=g).tolist()
            x[i, 0, a : a + 5, b : b + 5] = 0.3 + 0.7 * float(torch.rand(1, generator=g))
    return x


def pairs_of(physics: torch.nn.Module, seed: int) -> lr.data.Pairs:
    x = dark(3, seed)
    torch.manual_seed(seed)
    return lr.data.Pairs(x, physics(x), physics, ("a", "b", "c"))


@pytest.mark.parametrize(
    "learner", [lr.MAID(), lr.LBFGSB(eps=1e-2, delta=1e-2)], ids=["maid", "lbfgsb"]
)
def test_learning_within_bounds_beats_learning_without(learner, tmp_path):
    """On images that are zero in most places; every step of MAID is certified as ever."""
    physics = deepinv.physics.Denoising(deepinv.physics.GaussianNoise(0.25))
    train, test = pairs_of(physics, 1), pairs_of(physics, 2)
    score, loss = {}, {}
    for constraint in (None, lr.NonNegative()):
        energy = Energy(physics, TV(0.05, 0.02), constraint=constraint)
        run = lr.learn(BilevelProblem(energy, train), learner, budget=lr.Budget(steps=8))
        rows = run.record.rows
        assert all(row["lower"] <= row["loss"] <= row["upper"] for row in rows)
        if isinstance(learner, lr.MAID):
            assert all(b["upper"] <= a["upper"] for a, b in pairwise(rows))
        loss[constraint], score[constraint] = (
            rows[-1]["loss"],
            run.evaluate(test, 1e-2).mean("psnr"),
        )
    assert run.evaluate(test, 1e-2).reconstruction.min() == 0
    bound = lr.NonNegative()
    assert loss[bound] < 0.95 * loss[None] and score[bound] > score[None] + 0.05


def test_the_certified_test_goes_on_until_every_pixel_is_decided():
    truth = (noisy(1, seed=5) + 0.05).clamp(0, 0.2)
    p = BilevelProblem(denoised("TV", (0.0, 0.125)), Pairs(x=truth, y=noisy(1)))
    assert lr.hypergradient(p, 3e-2, 1e-3, strategy=lr.Implicit()).undecided > 0
    budget = lr.Budget(steps=2, work=20000)
    rows = lr.learn(p, lr.MAID(test="certified", eps0=3e-2), budget=budget).record.rows
    assert len(rows) > 1 and all(row["omega_certified"] is not None for row in rows[1:])
    assert rows[1]["eps"] < 3e-2


def test_a_bounded_run_resumes_to_the_same_numbers(tmp_path):
    physics = deepinv.physics.Denoising(deepinv.physics.GaussianNoise(0.25))
    p = BilevelProblem(Energy(physics, TV(0.05, 0.02), constraint=(0, 1)), pairs_of(physics, 1))
    whole = lr.learn(p, lr.MAID(), budget=lr.Budget(steps=4))
    lr.learn(p, lr.MAID(), budget=lr.Budget(steps=2), checkpoint=tmp_path)
    again = lr.learn(p, lr.MAID(), budget=lr.Budget(steps=4), checkpoint=tmp_path, resume=True)
    assert torch.equal(whole.theta, again.theta)
    other = BilevelProblem(Energy(physics, TV(0.05, 0.02)), pairs_of(physics, 1))
    with pytest.raises(lr.core.CheckpointError):
        lr.learn(other, lr.MAID(), budget=lr.Budget(steps=4), checkpoint=tmp_path, resume=True)


def test_counts_without_a_sign_are_no_trouble_within_bounds():
    """Emission: the minimizer without bounds is negative somewhere, and farther from the truth."""
    M = random(30, 20, seed=1) * (random(30, 20, seed=2) < 0.4)
    truth = (random(1, 1, 4, 5, seed=3) - 0.5).clamp_min(0) * 8
    physics = Matrix(M, (1, 4, 5))
    y = torch.poisson(physics.A(truth) + 0.5, generator=torch.Generator().manual_seed(1))
    part = TV(0.05, 0.1).double() + lr.regularizers.Tikhonov(1e-2, learned=False)
    free, bound = (Energy(physics, part, lr.KL(0.5), c) for c in (None, lr.NonNegative()))
    plain, x = (lr.solve(e, y, 1e-3, solver="newton").value for e in (free, bound))
    assert float(plain.min()) < -1e-2 and float(x.min()) == 0
    assert float((x - truth).norm()) < float((plain - truth).norm())


# --- configurations -------------------------------------------------------------------------------

FILE = """
[data]
source = "phantoms"
size = 16
train = 1
test = 1
[regularizer]
type = "{kind}"
{table}
[budget]
steps = 1
"""


def written(path, table: str, kind: str = "TV"):
    (path / "c.toml").write_text(FILE.format(table=table, kind=kind))
    return path / "c.toml"


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("[constraint]", "x >= 0"),
        ("[constraint]\nlower = 0\nupper = 1.0", "0 <= x <= 1"),
        ("[constraint]\nlower = -inf\nupper = 1.0", "x <= 1"),
    ],
)
@pytest.mark.parametrize("kind", ["TV", "ExactTV"])
def test_a_section_bounds_the_energy(table, words, kind, tmp_path):
    config = load_config(written(tmp_path, table, kind))
    energy = config.build_energy(config.build_physics((16, 16), 1), 1)
    assert energy.constraint.words == words
    (tmp_path / "again.toml").write_text(config.to_toml())
    assert load_config(tmp_path / "again.toml") == config


@pytest.mark.parametrize(
    "keys", ["lower = 1\nupper = 0", "lower = nan", 'lower = "0"', "least = 0", "upper = -inf"]
)
def test_sections_that_bound_nothing_sensible_are_refused(keys, tmp_path):
    with pytest.raises(ConfigError, match="constraint"):
        load_config(written(tmp_path, f"[constraint]\n{keys}"))


def test_no_section_is_no_constraint(tmp_path):
    config = load_config(written(tmp_path, ""))
    assert config.constraint is None
    assert config.build_energy(config.build_physics((16, 16), 1), 1).constraint is None
    assert denoised("TV", None).constraint is None
