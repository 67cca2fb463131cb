"""What a page must not pass over: what was learned, in words; dead filters, floors, failures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

DEAD = 1e-6
"""Of the largest weight, or of the peak of the data: filters that weigh less do nothing."""

AT_FLOOR = 0.01
"""A smoothing is at its floor when it is above by less than this share of it."""

LISTED = 12
"""Names in a sentence; more of them are counted."""

REGULARIZERS = {
    "TV": "total variation",
    "ExactTV": "total variation",
    "HuberTV": "Huber total variation",
    "TGV": "total generalised variation",
    "LearnedTV": "learned total variation",
    "FoE": "Fields of Experts",
    "Tikhonov": "Tikhonov",
    "ICNN": "an input-convex network",
    "BlackBox": "a network",
}
TASKS = {
    "Denoising": "denoising",
    "Blur": "deblurring",
    "BlurFFT": "deblurring",
    "SpaceVaryingBlur": "deblurring",
    "Tomography": "tomography",
    "TomographyWithAstra": "tomography",
    "MRI": "MRI",
    "RealImages": "MRI",
    "MultiCoilMRI": "multi-coil MRI",
    "DynamicMRI": "dynamic MRI",
    "NonCartesianMRI": "MRI",
    "Inpainting": "inpainting",
    "Demosaicing": "demosaicing",
    "Downsampling": "super-resolution",
    "Decolorize": "colourisation",
    "CompressedSensing": "compressed sensing",
    "SinglePixelCamera": "single-pixel imaging",
    "Pansharpen": "pansharpening",
    "PET": "PET",
}
NOISES = {
    "GaussianNoise": "Gaussian noise",
    "PoissonNoise": "Poisson noise",
    "PoissonGaussianNoise": "Poisson and Gaussian noise",
    "UniformNoise": "uniform noise",
    "ZeroNoise": "no noise",
    "LaplaceNoise": "Laplace noise",
    "SaltPepperNoise": "salt-and-pepper noise",
    "RicianNoise": "Rician noise",
    "GammaNoise": "gamma noise",
}


def regularizer_words(spec: Mapping[str, Any] | None) -> str:
    """A regularizer in words, from its ``spec``.

    >>> regularizer_words({"type": "Sum", "terms": [{"type": "TV"}, {"type": "Tikhonov"}]})
    'total variation + Tikhonov'
    """
    spec = spec or {}
    kind = str(spec.get("type", ""))
    if kind == "Sum":
        return " + ".join(regularizer_words(term) for term in spec.get("terms", ()))
    if kind == "Scaled":
        return regularizer_words(spec.get("regularizer"))
    return REGULARIZERS.get(kind, kind)


def task_words(setup: Mapping[str, Any]) -> str:
    """What the physics makes of the problem: "denoising", "tomography", ..."""
    kind = str((setup.get("physics") or {}).get("type", ""))
    return TASKS.get(kind, kind)


def noise_words(setup: Mapping[str, Any]) -> str:
    """The noise with its numbers.

    >>> noise_words({"noise": {"type": "GaussianNoise", "sigma": 0.10000000149}})
    'Gaussian noise, sigma 0.1'
    """
    noise = setup.get("noise")
    if not noise:
        return "no noise model" if "physics" in setup else "not known"
    kind = str(noise.get("type", ""))
    numbers = [
        f"{name} {value:.6g}"
        for name, value in noise.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    return ", ".join([NOISES.get(kind, kind), *numbers])


def title(setups: Mapping[str, Mapping[str, Any]]) -> str:
    """What was learned for what, from ``RunRecord.setup`` of every method; the names of the methods
    where records say nothing.
    """
    words = {name: learned_words(setup) for name, setup in setups.items()}
    if not all(words.values()):
        return f"Learned regulariser{'s' * (len(setups) > 1)}: {', '.join(setups)}"
    tasks = {task_words(setup) for setup in setups.values()}
    what = listed(list(dict.fromkeys(words.values())))
    task = f" for {tasks.pop()}" if len(tasks) == 1 else ""
    return f"{what[:1].upper()}{what[1:]}{task}"


def learned_words(setup: Mapping[str, Any]) -> str:
    """The regularizer, and what else was learned."""
    words = regularizer_words(setup.get("regularizer"))
    learned = setup.get("learned", ())
    also = [
        text
        for part, text in (("fidelity", "data term"), ("physics", "operator"))
        if part in learned
    ]
    return f"{words} with a learned {' and '.join(also)}" if words and also else words


def listed(names: Sequence[str], most: int = LISTED) -> str:
    """``a, b and c``; beyond ``most`` names the rest is counted."""
    names = [*names]
    if len(names) > most:
        names = [*names[:most], f"{len(names) - most} more"]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


# --- parameters that do nothing, or that want to go on --------------------------------------------


def dead_filters(filters: Mapping[str, Tensor], peak: float = 1.0) -> list[int]:
    """Numbers of the filters that add nothing: of no weight, or of no entries."""
    weights = filters["weights"].detach().cpu().double().flatten().abs()
    sizes = filters["kernels"].detach().cpu().double().flatten(1).norm(dim=1)
    light = (weights < DEAD * weights.max()) | (weights < DEAD * peak)
    empty = sizes <= DEAD * sizes.max()
    return [int(k) for k in torch.nonzero(light | empty).flatten()]


def remarks(
    filters: Mapping[str, Tensor] | None,
    setup: Mapping[str, Any],
    theta: Tensor,
    names: Sequence[str],
    peak: float = 1.0,
) -> list[str]:
    """Sentences on dead filters, smoothings at their floor and parameters at the ends of their
    box.
    """
    found: list[str] = []
    if filters:
        count = len(filters["weights"])
        if dead := dead_filters(filters, peak):
            verb = "is" if len(dead) == 1 else "are"
            found.append(
                f"{len(dead)} of {count} filters {verb} dead (weight below {DEAD:g} of the largest "
                f"one or of the peak of the images): {_numbered(dead)}. They add nothing, and a "
                "smaller bank would do the same."
            )
        floor = _floor(setup.get("regularizer"))
        if floor and "smoothings" in filters:
            values = filters["smoothings"].detach().cpu().double().flatten()
            low = [int(k) for k in torch.nonzero(values <= floor * (1 + AT_FLOOR)).flatten()]
            if low:
                found.append(
                    f"The smoothing of {len(low)} of {count} filters is at its floor {floor:.4g}: "
                    f"{_numbered(low)}. The learning would have gone on below it."
                )
    return [*found, *_at_ends(setup.get("box"), theta, names)]


def _floor(spec: Mapping[str, Any] | None) -> float | None:
    """The least smoothing of the first part that has one."""
    if not spec:
        return None
    if "least_smoothing" in spec:
        return float(spec["least_smoothing"])
    parts = [*spec.get("terms", ()), *([spec["regularizer"]] if "regularizer" in spec else [])]
    return next((floor for floor in map(_floor, parts) if floor is not None), None)


def _at_ends(box: object, theta: Tensor, names: Sequence[str]) -> list[str]:
    """Which parameters ended at an end of the box of the learner."""
    ranges = box if isinstance(box, Mapping) else {"": box} if isinstance(box, list) else {}
    values, found = theta.detach().double().flatten().tolist(), []
    for key, pair in ranges.items():
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            continue
        for end, word in zip(pair, ("lower", "upper"), strict=True):
            if not isinstance(end, int | float) or not math.isfinite(end):
                continue
            near = 1e-5 * (1 + abs(end))
            at = [
                name
                for name, value in zip(names, values, strict=False)
                if key in ("", name, name.partition("[")[0]) and abs(value - end) <= near
            ]
            if at:
                found.append(
                    f"{len(at)} of {len(values)} parameters ended at the {word} end {end:g} of "
                    f"their box: {listed(at)}. A wider box may do better."
                )
    return found


def _numbered(numbers: Sequence[int]) -> str:
    """Filters by their number, counted from 1 in the order of the model."""
    return f"number{'s' * (len(numbers) > 1)} {listed([str(k + 1) for k in numbers])}"
