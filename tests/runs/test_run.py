"""What a run leaves behind: reconstructions, evaluations, certificates that hold, files and
sentences.
"""

from __future__ import annotations

import json
import os

import deepinv
import pytest
import torch
from tests.learners.cases import CLOCKS, GALLERY, IMAGES, Plain, exact_loss, phantoms, pictures, run
from torch import Tensor

from learnreg import Cost
from learnreg.core.errors import InputError, ModelFileError, SolveError
from learnreg.core.results import RunRecord
from learnreg.learners import MAID
from learnreg.metrics import psnr, ssim
from learnreg.problems import BilevelProblem, Energy, at_noise_level
from learnreg.regularizers import TV, Tikhonov
from learnreg.runs import Run
from learnreg.solvers import solve

COUNTERS = tuple(Cost().to_dict())


@pytest.fixture(scope="module")
def runs() -> dict[str, Run]:
    """Three short runs, one of which ended in float64; not to be changed."""
    return {
        "TV": run(pictures(), MAID(), steps=3),
        "FoE": run(pictures(IMAGES["FoE"]()), MAID(), steps=2),
        "promoted": run(pictures(), MAID(eps0=1e-9, smallest_eps=1e-10), steps=30),
    }


@pytest.fixture(params=["TV", "FoE", "promoted"])
def learned(request, runs) -> Run:
    return runs[request.param]


def noisy(*shape: int, seed: int = 5) -> Tensor:
    """Flat pictures with noise 0.1."""
    return 0.5 + 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def distance(x: Tensor, other: Tensor) -> Tensor:
    return (x.double() - other.double()).flatten(1).norm(dim=1)


# --- reconstruction -------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1, 17, 41), (3, 1, 32, 32), (1, 1, 7, 7)], ids=str)
def test_it_reconstructs_any_image_size(learned, shape):
    y = noisy(*shape)
    solution = learned.reconstruct(y, 1e-2)
    truth = solve(learned.energy.with_theta(learned.theta.double()), y.double(), 1e-9).value
    assert solution.value.shape == y.shape and solution.value.dtype == learned.theta.dtype
    assert (solution.error <= 1e-2).all() and solution.kind.certifies
    assert (distance(solution.value, truth) <= solution.error + 1e-9).all()


def test_it_reconstructs_with_the_learned_parameters(learned):
    y = phantoms()[1].y
    by_hand = solve(learned.energy.with_theta(learned.theta), y.to(learned.theta), 1e-3)
    assert learned.reconstruct(y, 1e-3).value.equal(by_hand.value)
    before = solve(learned.energy.with_theta(learned.thetas[0]), y, 1e-3)
    assert (distance(by_hand.value, before.value) > by_hand.error + before.error).all()


def test_measurements_of_another_precision_are_converted(learned):
    y = noisy(1, 1, 9, 9)
    assert learned.reconstruct(y.double(), 1e-2).value.equal(learned.reconstruct(y, 1e-2).value)


def test_another_physics_takes_the_place_of_the_first(runs):
    kernel = torch.tensor([[0, 1.0, 0], [1, 4, 1], [0, 1, 0]])[None, None] / 8
    physics = deepinv.physics.Blur(filter=kernel, padding="circular")
    problem = pictures(TV() + Tikhonov(0.05))
    learned = run(problem, MAID(), steps=1)
    y = physics(phantoms()[1].x)
    solution = learned.reconstruct(y, 1e-2, physics=physics)
    truth = solve(Energy(physics, learned.trained.regularizer), y, 1e-4)
    assert (distance(solution.value, truth.value) <= solution.error + truth.error).all()
    assert learned.energy.physics is problem.energy.physics


def test_an_accuracy_out_of_reach_is_an_error_or_a_status(runs):
    y = noisy(1, 1, 9, 9)
    with pytest.raises(
        SolveError, match=r"below what this floating-point type can reach.*image 0: \d"
    ):
        runs["TV"].reconstruct(y, 1e-12)
    solution = runs["TV"].reconstruct(y, 1e-12, throw=False)
    assert not solution.ok and 1e-12 < float(solution.error) < 1e-3
    assert runs["promoted"].reconstruct(y, 1e-10).ok


@pytest.mark.parametrize("eps", [0.0, -1.0, float("nan")])
def test_an_accuracy_must_be_positive(runs, eps):
    with pytest.raises(InputError, match=r"^eps: given"):
        runs["TV"].reconstruct(noisy(1, 1, 9, 9), eps)


# --- evaluation -----------------------------------------------------------------------------------


def test_evaluation_measures_every_image_alone(learned):
    test = phantoms()[1]
    result = learned.evaluate(test, 1e-2)
    assert (
        len(result.psnr) == len(result.names) == len(result.status) == 2
        and result.names == test.names
    )
    assert (result.error <= 1e-2).all() and result.eps == 1e-2
    assert list(result.psnr) == psnr(result.reconstruction, test.x).tolist()
    assert list(result.ssim) == ssim(result.reconstruction, test.x).tolist()
    seen = test.y.to(learned.theta)
    assert list(result.psnr_input) == psnr(seen, test.x).tolist()
    assert list(result.ssim_input) == ssim(seen, test.x).tolist()
    assert result.reconstruction.equal(learned.reconstruct(test.y, 1e-2).value)
    for i in range(2):
        alone = learned.evaluate(test[i : i + 1], 1e-2)
        assert (
            distance(alone.reconstruction, result.reconstruction[i : i + 1]) < 1e-4
        )  # convolutions round by batch
        assert alone.psnr[0] == pytest.approx(result.psnr[i], abs=1e-4)
        assert alone.ssim[0] == pytest.approx(result.ssim[i], abs=1e-5)
        assert (alone.psnr_input[0], alone.ssim_input[0]) == (
            result.psnr_input[i],
            result.ssim_input[i],
        )
        assert alone.names[0] == result.names[i]


def test_learning_was_worth_it(learned):
    result = learned.evaluate(phantoms()[1], 1e-2)
    assert all(
        after > before + 0.5 for before, after in zip(result.psnr_input, result.psnr, strict=True)
    )


def test_an_evaluation_knows_its_mean_its_spread_and_its_sentence(runs):
    result = runs["TV"].evaluate(phantoms()[1], 1e-2)
    a, b = result.psnr
    assert result.mean("psnr") == pytest.approx((a + b) / 2)
    assert result.spread("psnr") == pytest.approx(abs(a - b) / 2**0.5)
    assert runs["TV"].evaluate(phantoms()[1][:1], 1e-2).spread("psnr") == 0
    assert (
        "2 images" in repr(result)
        and "certified" in repr(result)
        and f"{(a + b) / 2:.2f}" in repr(result)
    )
    as_json(result.to_dict())


def test_pairs_without_names_are_numbered(runs):
    test = phantoms()[1]
    assert runs["TV"].evaluate(Plain(x=test.x, y=test.y), 1e-2).names == ("image 0", "image 1")


def test_an_accuracy_that_was_missed_is_shown_not_hidden(runs):
    result = runs["TV"].evaluate(phantoms()[1], 1e-12)
    assert not any(status.ok for status in result.status) and (result.error > 1e-12).all()
    assert "floating-point" in repr(result)


def test_certificates_hold(learned):
    rows = learned.check_certificate(phantoms()[1].y[:1])
    assert [row["eps"] for row in rows] == [1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3]
    for row in rows:
        assert row["true"] <= row["certified"] + 1e-8 and row["certified"] <= row["eps"], row
    assert learned.evaluate(phantoms()[1], 1e-2, check_certificate=True).honesty == rows
    assert learned.evaluate(phantoms()[1], 1e-2).honesty == ()


def test_certificates_hold_for_a_physics_with_tensors():
    kernel = torch.tensor([[0, 1.0, 0], [1, 4, 1], [0, 1, 0]])[None, None] / 8
    physics = deepinv.physics.Blur(filter=kernel, padding="circular")
    x = phantoms()[0].x
    data = Plain(x=x, y=physics(x))
    learned = run(BilevelProblem(Energy(physics, TV() + Tikhonov(0.05)), data), MAID(), steps=1)
    for row in learned.check_certificate(data.y[:1], grid=(0.1, 1e-3)):
        assert row["true"] <= row["certified"] + 1e-8 and row["certified"] <= row["eps"], row


# --- files ----------------------------------------------------------------------------------------


def test_saving_and_loading_changes_nothing(learned, tmp_path):
    assert learned.save(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert sorted(os.listdir(tmp_path / "a" / "b")) == ["history.safetensors", "model.safetensors"]
    loaded = Run.load(tmp_path / "a" / "b")
    assert loaded.theta.dtype == learned.theta.dtype
    assert loaded.theta.equal(learned.theta) and loaded.thetas.equal(learned.thetas)
    assert (
        loaded.record == learned.record
        and loaded.stop == learned.stop
        and loaded.name == learned.name
    )
    assert repr(loaded) == repr(learned) and loaded.to_json() == learned.to_json()
    y = noisy(2, 1, 12, 13)
    assert loaded.reconstruct(y, 1e-3).value.equal(learned.reconstruct(y, 1e-3).value)
    one, two = learned.evaluate(phantoms()[1], 1e-2), loaded.evaluate(phantoms()[1], 1e-2)
    assert one.to_dict() == two.to_dict() and one.reconstruction.equal(two.reconstruction)
    loaded.save(tmp_path / "again")
    for name in ("history.safetensors", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (
            tmp_path / "a" / "b" / name
        ).read_bytes()


def test_loading_takes_an_energy_or_a_physics(tmp_path, runs):
    runs["TV"].save(tmp_path)
    mine = Energy(deepinv.physics.Denoising(), TV())
    assert Run.load(tmp_path, energy=mine).energy.physics is mine.physics
    assert Run.load(str(tmp_path), physics=mine.physics).energy.physics is mine.physics
    y = noisy(1, 1, 9, 9)
    assert (
        Run.load(tmp_path, energy=mine)
        .reconstruct(y, 1e-3)
        .value.equal(runs["TV"].reconstruct(y, 1e-3).value)
    )


def test_loading_from_nowhere_is_an_error(tmp_path):
    with pytest.raises(
        InputError, match=r"given no such folder; expected a folder written by Run\.save"
    ):
        Run.load(tmp_path / "missing")
    with pytest.raises(ModelFileError, match=r"history\.safetensors: given no such file"):
        Run.load(tmp_path)


@pytest.mark.parametrize("name", ["history.safetensors", "model.safetensors"])
def test_loading_damaged_files_is_an_error(name, tmp_path, runs):
    runs["TV"].save(tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[:-10])
    with pytest.raises(ModelFileError, match=f"{name}: given a file that is not intact"):
        Run.load(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ModelFileError, match=f"{name}: given no such file"):
        Run.load(tmp_path)


def test_history_and_model_do_not_stand_in_for_each_other(tmp_path, runs):
    runs["TV"].save(tmp_path)
    (tmp_path / "history.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes())
    with pytest.raises(
        ModelFileError, match="given learnreg-model; expected a learnreg-history file"
    ):
        Run.load(tmp_path)


# --- the record -----------------------------------------------------------------------------------


def as_json(data: object) -> str:
    """Standard JSON: NaN and Infinity are not part of it."""
    text = json.dumps(data, allow_nan=False)
    assert json.loads(text) == json.loads(json.dumps(data))
    return text


def test_work_is_the_sum_of_its_counters_and_never_falls(learned):
    rows = learned.record.rows
    for row in rows:
        evaluations = (
            "values",
            "gradients",
            "linearizations",
            "hessian_products",
            "mixed_products",
        )
        assert (
            row["work"]
            == sum(row[name] for name in evaluations)
            == Cost(*(row[c] for c in COUNTERS)).work
        )
        assert row["cg_steps"] <= row["hessian_products"]
    for name in (*COUNTERS, "work", *CLOCKS, "step"):
        column = learned.record.column(name)
        assert column == sorted(column), name
    assert learned.record.column("step") == list(range(len(rows)))
    assert all(
        a < b
        for a, b in zip(
            learned.record.column("work")[:-1], learned.record.column("work")[1:], strict=True
        )
    )


def test_the_counters_count_what_the_energy_is_asked_for(monkeypatch):
    """Gradients of the energy, images counted one by one, by a spy at the energy itself."""
    from learnreg.problems.energy import EnergyAt

    asked = []
    original = EnergyAt.grad
    monkeypatch.setattr(EnergyAt, "grad", lambda self, x: asked.append(len(x)) or original(self, x))
    outcome = run(pictures(), MAID(), steps=3)
    assert outcome.record.rows[-1]["gradients"] == sum(asked)


def test_every_row_has_every_column(learned):
    documented = {
        "step",
        "loss",
        "lower",
        "upper",
        "psnr",
        "eps",
        "delta",
        "step_size",
        "trials",
        "refinements",
        "gradient_norm",
        "omega_estimated",
        "omega_certified",
        "work",
        "seconds",
        "cpu_seconds",
        *COUNTERS,
    }
    assert all(documented <= set(row) for row in learned.record.rows)
    assert all(
        row["psnr"] > 10 and row["lower"] <= row["loss"] <= row["upper"]
        for row in learned.record.rows
    )


def test_the_losses_of_the_record_are_those_of_its_thetas(learned):
    problem = pictures() if learned.name == "TV" else pictures(IMAGES["FoE"]())
    for row, theta in zip(learned.record.rows, learned.thetas, strict=True):
        assert row["lower"] - 1e-9 <= exact_loss(problem, theta) <= row["upper"] + 1e-9


def test_the_record_is_json_and_comes_back(learned):
    text = as_json(learned.record.to_dict())
    assert RunRecord.from_dict(json.loads(text)) == learned.record
    assert json.loads(learned.to_json())["stop"] == [learned.stop.code, learned.stop.sentence]


def test_a_record_with_infinite_brackets_is_json_all_the_same():
    """An energy that is NaN from the start: its upper bound is infinite."""

    class Broken(TV):
        def grad(self, x):
            return super().grad(x) * float("nan")

    outcome = run(pictures(Broken()), MAID(eps0=0.1, delta0=0.1))
    assert outcome.record.rows[0]["upper"] == float("inf")
    assert json.loads(as_json(outcome.record.to_dict()))["rows"][0]["upper"] is None
    json.loads(outcome.to_json())


def test_settings_are_enough_to_repeat_the_run(learned):
    settings = learned.record.settings
    assert {
        "seed",
        "budget",
        "solver",
        "version",
        "torch",
        "python",
        "threads",
        "device",
        "dtype",
    } <= set(settings)
    assert settings["budget"]["steps"] in (2, 3, 30) and settings["threads"] == 1
    assert "MAID(" in learned.record.learner and learned.record.images == 2
    assert len(learned.record.parameter_names) == learned.theta.numel()


# --- sentences ------------------------------------------------------------------------------------


def test_a_run_says_why_it_stopped(learned):
    text = repr(learned)
    assert learned.stop.sentence in text and str(learned.stop) == learned.stop.sentence
    assert f"after {len(learned.record.rows) - 1} steps because" in text
    last = learned.record.rows[-1]
    assert f"[{last['lower']:.5g}, {last['upper']:.5g}]" in text and "evaluations per image" in text
    assert repr(learned.record).startswith("RunRecord(")


def test_a_run_is_named_after_its_regularizer_or_as_asked(runs):
    assert runs["TV"].name == "TV" and runs["FoE"].name == "FoE"
    assert repr(run(pictures(), MAID(), steps=1, name="mine")).startswith("Run(mine: ")


@pytest.mark.parametrize("name", GALLERY)
def test_an_energy_without_a_regularizer_leaves_a_run_as_well(name):
    outcome = run(GALLERY[name](), MAID(), steps=1)
    assert outcome.name in repr(outcome) and outcome.name
    assert outcome.filters is None
    assert outcome.trained.theta.equal(outcome.theta)
    y = GALLERY[name]().pairs.y
    truth = GALLERY[name]().exact_solution(outcome.theta)
    solution = outcome.reconstruct(y, 1e-6)
    assert (distance(solution.value, truth) <= solution.error + 1e-12).all()


def test_filters_are_shown_where_there_are_any(runs):
    assert runs["TV"].filters is None
    filters = runs["FoE"].filters
    assert filters["kernels"].shape == (3, 1, 3, 3)
    assert filters["weights"].shape == filters["smoothings"].shape == (3,)
    assert not filters["kernels"].equal(
        pictures(IMAGES["FoE"]()).energy.regularizer.filters()["kernels"]
    )


def test_a_physics_with_another_noise_level_is_followed():
    outcome = run(pictures(), MAID(), steps=1)
    y = phantoms()[1].y
    louder = deepinv.physics.Denoising(deepinv.physics.GaussianNoise(0.2))
    found = outcome.reconstruct(y, 1e-3, physics=louder).value
    wanted = solve(at_noise_level(outcome.energy, 0.2), y, 1e-3).value
    assert float((found - wanted).flatten(1).norm(dim=1).max()) <= 2e-3
    as_learned = outcome.reconstruct(y, 1e-3).value
    assert float((found - as_learned).flatten(1).norm(dim=1).min()) > 0.1
