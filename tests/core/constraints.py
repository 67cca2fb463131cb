"""One table of what the public constructors and functions take: name, allowed range, type.

``test_bad_values.py`` makes its cases from it, so a new setting is tested by one line here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import deepinv
import torch

import learnreg as lr
from learnreg.learners import Adaptive
from learnreg.linear.cg import CG
from learnreg.linear.minres import MINRES
from learnreg.solvers import AGD, LBFGS, PDHG, NewtonCG, NmAPG, PrimalDualNewton


@dataclass(frozen=True)
class Setting:
    """What one argument takes.

    Attributes:
        kind: number, integer, flag, choice, object, images, text.
        good: values that are taken.
        outside: values of the right type that are out of range.
        optional: None is taken.
        plural: one value per image is taken as well.
    """

    kind: str
    good: tuple[Any, ...] = ()
    outside: tuple[Any, ...] = ()
    optional: bool = False
    plural: bool = False


def positive(good: float = 0.5, **more: Any) -> Setting:
    return Setting("number", (good,), (0.0, -1.0), **more)


def fraction(good: float = 0.4) -> Setting:
    return Setting("number", (good,), (0.0, 1.0, -0.5, 2.0))


def least(low: float, good: float, **more: Any) -> Setting:
    return Setting("number", (good,), (low - 0.5,), **more)


def within(good: float, *outside: float) -> Setting:
    return Setting("number", (good,), outside)


def integer(low: int, good: int, *outside: int, **more: Any) -> Setting:
    return Setting("integer", (good,), (low - 1, *outside), **more)


def choice(*words: str) -> Setting:
    return Setting("choice", words, (words[0] + "?",))


def thing(**more: Any) -> Setting:
    return Setting("object", **more)


FLAG = Setting("flag", (True, False))
IMAGES = Setting("images")
BOX = Setting("object", ([-7, 0],), ([1, 0], [0, 0, 1], [float("nan"), 1]), optional=True)


@dataclass(frozen=True)
class Entry:
    """A constructor or function, the arguments that it needs, and what it takes."""

    call: Callable[..., Any]
    needed: Callable[[], dict[str, Any]] = field(default=dict)
    settings: dict[str, Setting] = field(default_factory=dict)
    cheap: bool = True
    """Whether a good value may be tried: constructors, and functions that take no time."""


@cache
def denoising() -> deepinv.physics.Physics:
    return deepinv.physics.Denoising(deepinv.physics.GaussianNoise(0.1))


@cache
def pair() -> lr.data.Pairs:
    x = torch.rand(2, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    return lr.data.Pairs(
        x,
        x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1)),
        denoising(),
        ("a", "b"),
    )


def energy() -> lr.Energy:
    return lr.Energy(denoising(), lr.regularizers.TV())


def problem() -> lr.BilevelProblem:
    return lr.BilevelProblem(energy(), pair())


R = lr.regularizers
DESCENT = {
    "alpha0": positive(optional=True),
    "rho": fraction(),
    "growth": least(1, 1.5),
    "eta": fraction(),
    "sufficient": within(1e-3, 0.0, -1.0, 0.9),
    "trials": integer(1, 3),
    "memory": integer(0, 3),
}

COUNTED = {"background": least(0, 0.5, plural=True), "gain": positive(plural=True)}
"""Numbers or tensors."""


TABLE: dict[str, Entry] = {
    "MAID": Entry(
        lr.MAID,
        settings=DESCENT
        | {
            "eps0": positive(optional=True),
            "delta0": positive(optional=True),
            "accuracy": thing(),
            "rounds": integer(1, 3),
            "test": choice("estimated", "certified"),
            "gradient_tolerance": positive(),
            "smallest_eps": positive(),
            "box": BOX,
        },
    ),
    "Adaptive": Entry(Adaptive, settings={"tighten": fraction(), "loosen": least(1, 1.5)}),
    "FixedAccuracy": Entry(
        lr.FixedAccuracy, settings=DESCENT | {"eps": positive(), "delta": positive(), "box": BOX}
    ),
    "HOAG": Entry(
        lr.HOAG,
        settings={
            "schedule": choice("quadratic", "cubic", "geometric"),
            "eps0": positive(optional=True),
            "delta0": positive(optional=True),
            "ratio": fraction(),
            "alpha0": positive(optional=True),
            "constant": least(0, 0.5),
            "box": BOX,
            "gradient_tolerance": positive(),
        },
    ),
    "LBFGSB": Entry(
        lr.LBFGSB,
        settings={
            "eps": positive(),
            "delta": positive(),
            "memory": integer(1, 5),
            "box": BOX,
            "loss_tolerance": least(0, 1e-3),
            "gradient_tolerance": least(0, 1e-3),
        },
    ),
    "Stochastic": Entry(
        lr.Stochastic,
        settings={
            "optimizer": choice("sgd", "adam"),
            "batch": integer(1, 4),
            "alpha0": positive(optional=True),
            "step_exponent": least(0, 0.5),
            "eps0": positive(optional=True),
            "delta0": positive(optional=True),
            "accuracy_exponent": least(0, 0.5),
            "momentum": within(0.5, -0.1, 1.0),
            "box": BOX,
            "record": integer(1, 4, optional=True),
        },
    ),
    "Deferred": Entry(
        lr.Deferred,
        settings={
            "length": integer(1, 10),
            "share": fraction(),
            "longest": integer(10, 100),
        },
    ),
    "DFO": Entry(
        lr.DFO,
        settings={
            "box": BOX,
            "radius0": positive(),
            "radius_end": within(1e-3, 0.0, -1.0, 5.0),
            "eps": positive(optional=True),
            "residuals": choice("auto", "images", "pixels"),
            "model_error": positive(),
            "eta1": fraction(0.1),
            "eta2": within(0.5, 0.05, 1.0),
            "eta1_accuracy": within(0.01, 0.0, 0.5),
            "gamma_dec": fraction(),
            "gamma_inc": within(1.5, 1.0, -2.0),
            "gamma_inc_bar": within(1.5, 1.0, -2.0),
        },
    ),
    "DFOLS": Entry(
        lr.DFOLS,
        settings={
            "box": BOX,
            "radius0": positive(),
            "radius_end": within(1e-3, 0.0, -1.0, 5.0),
            "eps": positive(optional=True),
            "model_error": positive(),
        },
    ),
    "GridSearch": Entry(
        lr.GridSearch, lambda: {"box": [-7, 0]}, {"points": integer(2, 4), "eps": positive()}
    ),
    "RandomSearch": Entry(lr.RandomSearch, lambda: {"box": [-7, 0]}, {"eps": positive()}),
    "OptunaSearch": Entry(lr.OptunaSearch, lambda: {"box": [-7, 0]}, {"eps": positive()}),
    "Budget": Entry(
        lr.Budget,
        lambda: {"seconds": 1.0},
        {
            "work": positive(optional=True),
            "steps": integer(1, 4, optional=True),
        },
    ),
    "Budget of seconds": Entry(
        lr.Budget, lambda: {"steps": 1}, {"seconds": positive(optional=True)}
    ),
    "Implicit": Entry(
        lr.Implicit,
        settings={
            "linear": thing(),
            "estimate": FLAG,
            "certify": FLAG,
            "polish_steps": integer(1, 4),
            "group": integer(1, 4),
        },
    ),
    "JacobianFree": Entry(
        lr.JacobianFree,
        settings={
            "terms": integer(1, 4),
            "step": positive(optional=True),
            "certify": FLAG,
            "group": integer(1, 4),
        },
    ),
    "Unrolled": Entry(
        lr.Unrolled,
        settings={
            "steps": integer(1, 4),
            "start": choice("data", "solution"),
            "method": choice("gd", "agd"),
            "step": positive(optional=True),
            "segment": integer(1, 4, optional=True),
            "group": integer(1, 4),
        },
    ),
    "Piggyback": Entry(
        lr.Piggyback,
        settings={
            "solver": thing(),
            "estimate": FLAG,
            "certify": FLAG,
            "max_steps": integer(1, 4),
            "group": integer(1, 4),
        },
    ),
    "JointPiggyback": Entry(
        lr.JointPiggyback,
        settings={"steps": integer(1, 4), "balance": positive(), "group": integer(1, 4)},
    ),
    "CG": Entry(CG, settings={"max_steps": integer(1, 4), "restarts": integer(0, 4)}),
    "MINRES": Entry(MINRES, settings={"max_steps": integer(1, 4), "restarts": integer(0, 4)}),
    "AGD": Entry(AGD, settings={"optimism": within(0.5, 0.0, -1.0, 1.5)}),
    "LBFGS": Entry(LBFGS, settings={"memory": integer(1, 4), "refresh": integer(1, 4)}),
    "NewtonCG": Entry(NewtonCG, settings={"forcing": fraction(), "inner_steps": integer(1, 4)}),
    "PrimalDualNewton": Entry(
        PrimalDualNewton, settings={"forcing": fraction(), "inner_steps": integer(1, 4)}
    ),
    "NmAPG": Entry(
        NmAPG,
        settings={
            "rho": fraction(),
            "delta": positive(),
            "eta": within(0.5, -0.1, 1.0),
            "trials": integer(1, 4),
            "L_init": positive(),
            "L_min": positive(),
            "restart": FLAG,
        },
    ),
    "PDHG": Entry(
        PDHG,
        settings={
            "rule": choice("auto", "basic", "accelerated", "linear", "balanced"),
            "balance": positive(),
            "interval": integer(1, 4),
        },
    ),
    "TV": Entry(R.TV, settings={"weight": positive(), "smoothing": positive(), "isotropic": FLAG}),
    "HuberTV": Entry(R.HuberTV, settings={"weight": positive(), "smoothing": positive()}),
    "Tikhonov": Entry(R.Tikhonov, settings={"weight": positive(), "learned": FLAG}),
    "FoE": Entry(
        R.FoE,
        lambda: {"filters": 4, "size": 3},
        settings={
            "filters": integer(1, 4, 10_000),
            "size": integer(1, 3, 4),
            "channels": integer(1, 2),
            "zero_mean": FLAG,
            "padding": choice("reflect", "zero"),
            "init": choice("auto", "dct", "opponent", "random"),
            "weight": positive(optional=True),
            "smoothing": positive(),
            "least_smoothing": within(1e-3, -1.0, 0.5),
            "seed": integer(0, 4),
        },
    ),
    "ExactTV": Entry(
        R.ExactTV,
        settings={"weight": positive(), "isotropic": FLAG, "rounding": least(0, 0.5)},
    ),
    "TGV": Entry(
        R.TGV,
        settings={
            "weight": positive(),
            "ratio": positive(),
            "rounding": least(0, 0.5),
            "curvature": least(0, 0.5),
        },
    ),
    "LearnedTV": Entry(
        R.LearnedTV,
        settings={
            "filters": integer(1, 2),
            "size": integer(3, 5, 4),
            "weight": positive(),
            "padding": choice("reflect", "zero"),
            "rounding": least(0, 0.5),
            "smoothing": least(0, 0.5),
            "curvature": least(0, 0.5),
            "init": choice("interpolated", "identity", "random"),
            "seed": integer(0, 4),
        },
    ),
    "ICNN": Entry(
        R.ICNN,
        settings={
            "channels": integer(1, 4),
            "size": integer(1, 3, 4),
            "layers": integer(1, 2),
            "pooling": integer(1, 4),
            "units": integer(1, 4, optional=True),
            "head_size": integer(1, 3, 2),
            "slope": within(0.5, -0.1, 1.0),
            "rounding": least(0, 0.5),
            "curvature": least(0, 0.5),
            "in_channels": integer(1, 2),
            "zero_mean": FLAG,
            "padding": choice("reflect", "zero"),
            "weight": positive(optional=True),
            "seed": integer(0, 4),
        },
    ),
    "Scaled": Entry(R.base.Scaled, lambda: {"regularizer": R.TV()}, {"factor": least(0, 0.5)}),
    "L2": Entry(lr.L2, settings={"sigma": positive()}),
    "L1": Entry(lr.L1, settings={"weight": positive()}),
    "KL": Entry(lr.KL, settings=COUNTED),
    "Poisson": Entry(lr.Poisson, settings=COUNTED),
    "PoissonGaussian": Entry(
        lr.PoissonGaussian,
        settings=COUNTED | {"sigma": positive(plural=True)},
    ),
    # infinite bounds are none: see test_constraints.py for what they refuse
    "Between": Entry(lr.Between),
    "NonNegative": Entry(lr.NonNegative),
    "SamplingWeights": Entry(
        lr.SamplingWeights,
        lambda: {"shape": (6, 5)},
        {
            "kind": choice("free", "lines", "product", "radial"),
            "axis": integer(-2, 1, 2),
            "spokes": integer(1, 3, optional=True),
            "parametrization": choice("omega", "S"),
            "start": within(0.5, 0.0, -0.1, 1.5),
        },
    ),
    "SampledL2": Entry(
        lr.SampledL2, lambda: {"weights": lr.SamplingWeights((6, 5))}, {"weights": thing()}
    ),
    "SparsityPenalty": Entry(
        lr.SparsityPenalty,
        lambda: {"first": 2, "count": 30},
        {
            "first": integer(0, 3),
            "count": integer(1, 3),
            "beta0": least(0, 0.5),
            "beta1": least(0, 0.5),
        },
    ),
    "Huber": Entry(lr.Huber, settings={"threshold": positive(), "weight": positive()}),
    "Energy": Entry(
        lr.Energy,
        lambda: {"physics": denoising(), "regularizer": R.TV()},
        {"physics": thing(), "regularizer": thing(), "fidelity": thing(optional=True)},
    ),
    "SaddleEnergy": Entry(
        lr.SaddleEnergy,
        lambda: {"physics": denoising(), "regularizer": R.ExactTV()},
        {"physics": thing(), "regularizer": thing(), "tikhonov": least(0, 0.5)},
    ),
    "BilevelProblem": Entry(
        lr.BilevelProblem,
        lambda: {"energy": energy(), "pairs": pair()},
        {"energy": thing(), "pairs": thing(), "loss": thing(optional=True)},
    ),
    "ScoreMatching": Entry(
        lr.ScoreMatching,
        lambda: {"energy": energy(), "pairs": pair()},
        {"energy": thing(), "pairs": thing()},
    ),
    "WeightedSquaredError": Entry(
        lr.WeightedSquaredError,
        lambda: {"weights": torch.ones(1, 12, 12)},
        {
            "weights": Setting(
                "object",
                (torch.zeros(1, 12, 12), torch.ones(12)),
                (-torch.ones(12), torch.full((12,), torch.nan), torch.full((12,), torch.inf)),
            )
        },
    ),
    "Custom": Entry(
        lr.Custom,
        lambda: {"function": torch.nn.L1Loss()},
        {
            "function": Setting("object", (torch.nn.L1Loss(), torch.dist), (torch.nn.L1Loss,)),
            "smoothness": positive(optional=True),
            "lipschitz": positive(optional=True),
            "energy": Setting("flag", (False,)),
        },
    ),
    "DataConsistency": Entry(lr.DataConsistency, dict, {"mean": FLAG}),
    "SURE": Entry(
        lr.SURE,
        lambda: {"sigma": 0.1},
        {"sigma": positive(), "tau": positive(optional=True), "seed": integer(0, 4)},
    ),
    "Whiteness": Entry(lr.Whiteness),
    "solve": Entry(
        lr.solve,
        lambda: {"energy": energy(), "y": pair().y, "eps": 1.0},
        {
            "energy": thing(),
            "y": IMAGES,
            "eps": positive(plural=True),
            "solver": thing(),
            "x0": Setting("images", optional=True),
            "budget": integer(1, 100, optional=True),
            "throw": FLAG,
        },
    ),
    "certify": Entry(
        lr.certify,
        lambda: {"energy": energy(), "y": pair().y, "x": pair().x},
        {"energy": thing(), "y": IMAGES, "x": IMAGES, "sharpness": fraction()},
    ),
    "hypergradient": Entry(
        lr.hypergradient,
        lambda: {"problem": problem(), "eps": 1.0, "delta": 1.0},
        {
            "problem": thing(),
            "eps": positive(plural=True),
            "delta": positive(plural=True),
            "strategy": thing(optional=True),
            "solver": thing(),
        },
    ),
    "Reconstructor": Entry(
        lambda **arguments: lr.Reconstructor(**arguments),
        lambda: {"energy": energy(), "eps": 1.0},
        {
            "energy": thing(),
            "eps": positive(plural=True),
            "solver": thing(),
            "hypergradient": thing(optional=True),
            "relative_delta": positive(plural=True),
        },
    ),
    "learn": Entry(
        lr.learn,
        lambda: {"problem": problem(), "learner": lr.MAID(), "budget": lr.Budget(work=1)},
        {
            "problem": thing(),
            "learner": thing(),
            "hypergradient": thing(optional=True),
            "budget": thing(),
            "seed": integer(0, 4),
            "checkpoint": Setting("text", optional=True),
            "resume": FLAG,
            "solver": thing(),
            "progress": thing(optional=True),
            "promote": FLAG,
        },
        cheap=False,
    ),
    "Pairs": Entry(
        lr.data.Pairs,
        lambda: {"x": pair().x, "y": pair().y, "physics": denoising(), "names": ("a", "b")},
        {"x": IMAGES, "y": IMAGES},
    ),
    "pairs": Entry(
        lr.data.pairs,
        lambda: {
            "source": "phantoms",
            "physics": denoising(),
            "size": 12,
            "split": (1, 1),
            "seed": 0,
        },
        {
            "source": thing(),
            "physics": thing(),
            "size": integer(1, 12),
            "split": thing(),
            "seed": integer(0, 4),
            "channels": integer(1, 1, 2, 4),
            "scale": Setting("number", (1.0,), (0.0, -1.0, 1.5), optional=True),
        },
    ),
    "psnr": Entry(
        lr.metrics.psnr,
        lambda: {"x": pair().x, "ref": pair().x.flip(0)},
        {
            "x": IMAGES,
            "ref": IMAGES,
            "max_pixel": positive(optional=True, plural=True),
            "clip": Setting("flag", (True, False), optional=True),
        },
    ),
    "ssim": Entry(
        lr.metrics.ssim,
        lambda: {"x": pair().x, "ref": pair().x.flip(0)},
        {
            "x": IMAGES,
            "ref": IMAGES,
            "max_pixel": positive(optional=True, plural=True),
            "clip": Setting("flag", (True, False), optional=True),
        },
    ),
}
