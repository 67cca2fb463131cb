"""The kernels of a learned operator on the page, and in the files of a report."""

from __future__ import annotations

import torch
from deepinv import physics as D

import learnreg as lr
from learnreg.physics import Free, GaussianKernel, LearnedPhysics


def learned(parametrization):
    camera = lr.physics.Blur(width=0.7).build((16, 16), channels=1)
    train, test = lr.data.pairs("phantoms", camera, size=16, split=(2, 1), seed=0)
    physics = LearnedPhysics(camera, {"filter": parametrization})
    regularizer = lr.regularizers.TV(0.01) + lr.regularizers.Tikhonov(0.01, learned=False)
    problem = lr.BilevelProblem(lr.Energy(physics, regularizer), train)
    run = lr.learn(problem, lr.MAID(), budget=lr.Budget(steps=1), seed=0, name="TV")
    return run, run.evaluate(test, 0.1)


def test_a_page_shows_the_learned_kernel(tmp_path):
    run, evaluation = learned(GaussianKernel(5))
    page = lr.Report(run, evaluation).save(tmp_path).read_text(encoding="utf-8")
    assert 'alt="learned filter"' in page and "no estimate of the true one" in page
    again = lr.Report.load(tmp_path)
    kernel = run.trained.physics.tensors()["filter"].detach()
    assert torch.equal(again.runs["TV"].kernels["filter"], kernel)
    assert 'alt="learned filter"' in again.save(tmp_path / "2").read_text(encoding="utf-8")
    told = run.record.setup["physics"]
    assert told["type"] == "Blur" and told["learned"] == "filter by GaussianKernel(size=5x5)"


def test_masks_are_no_kernels():
    physics = LearnedPhysics(
        D.Inpainting((1, 80, 80), mask=torch.ones(1, 80, 80)),
        {"mask": Free(start=torch.rand(1, 1, 80, 80) + 0.5)},
    )
    assert physics.kernels() == {}
