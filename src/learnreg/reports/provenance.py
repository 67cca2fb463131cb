"""What a run was made of and how to repeat it, as rows and sentences of a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from ..core import Evaluation, RunRecord, StopReason
from .findings import listed, noise_words, task_words
from .words import show

Facts: TypeAlias = list[tuple[str, str]]

MANY = 8
"""Longer lists of numbers are shortened on the page; run.json has all of them."""

NAMES = 1000
"""More names of images than these are only in run.json."""


def made_of(record: RunRecord, evaluation: Evaluation) -> Facts:
    """(what, how) of a run and its evaluation; nothing that the record does not say."""
    setup, settings = record.setup, record.settings
    rows: Facts = []
    if "physics" in setup:
        rows.append(("task", task_words(setup)))
        rows.append(("physics", compact(setup["physics"])))
        rows.append(("noise", noise_words(setup)))
    for name, data in (("training data", setup.get("data")), ("held-out data", evaluation.setup)):
        if data:
            rows.append((name, data_words(data)))
    for name, key in (("data term", "fidelity"), ("regularizer", "regularizer")):
        if setup.get(key):
            rows.append((name, compact(setup[key])))
    if setup.get("constraint"):
        rows.append(("constraint", str(setup["constraint"])))
    if "learned" in setup:
        rows.append(("learned", f"the parameters of the {listed(setup['learned'] or ['nothing'])}"))
    if setup.get("start"):
        starts = zip(record.parameter_names, setup["start"], strict=False)
        rows.append(("start values", ", ".join(f"{n} {show(v)}" for n, v in starts)))
    rows.append(("learner", record.learner))
    for name, key in (("lower-level solver", "solver"), ("seed", "seed"), ("precision", "dtype")):
        if key in settings:
            rows.append((name, show(settings[key])))
    if isinstance(settings.get("budget"), Mapping):
        rows.append(("budget", budget_words(settings["budget"])))
    rows.append(("accuracy of the evaluation", f"eps = {show(evaluation.eps)}"))
    if "machine" in setup:
        m = setup["machine"]
        words = f"{m.get('system')}, {m.get('device')}, {m.get('cpus')} cores"
        rows.append(("machine", f"{words}, threads used: {m.get('threads')}"))
    if "versions" in setup:
        rows.append(("versions", ", ".join(f"{k} {v}" for k, v in setup["versions"].items())))
    if "date" in setup:
        rows.append(("date", str(setup["date"])))
    return rows


def names_of(data: Mapping[str, Any]) -> Sequence[str]:
    """The images by name, no more than a page can hold."""
    names = [str(name) for name in data.get("names", ())]
    return names if len(names) <= NAMES else [*names[:NAMES], f"{len(names) - NAMES} more"]


def data_words(data: Mapping[str, Any]) -> str:
    """Number, size, sources and seed of images."""
    shape = " x ".join(map(str, data.get("shape", ())))
    words = f"{data.get('images', 'unknown')} images{f' of {shape}' if shape else ''}"
    measurements = [" x ".join(map(str, s)) for s in data.get("measurements", ())]
    if measurements and measurements != [shape]:
        words += f", measurements of {' and '.join(measurements)}"
    if sources := data.get("sources"):
        words += f", from {len(sources)} source{'s' * (len(sources) > 1)}: {listed(sources)}"
    return words + ("" if data.get("seed") is None else f"; seed {data['seed']}")


def budget_words(budget: Mapping[str, Any]) -> str:
    """The parts that were given."""
    units = {"seconds": "s", "work": "evaluations per image", "steps": "steps"}
    given = [f"{show(v)} {units.get(k, k)}" for k, v in budget.items() if v is not None]
    return " or ".join(given) or "none"


def compact(table: Mapping[str, Any]) -> str:
    """A described object on one line.

    >>> compact({"type": "Blur", "padding": "valid", "taps": list(range(20))})
    'Blur (padding valid, taps 0, 1, 2 ... 19 (20 values))'
    """
    inner = ", ".join(f"{name} {_short(value)}" for name, value in table.items() if name != "type")
    return f"{table.get('type', 'unknown')}{f' ({inner})' if inner else ''}"


def _short(value: object) -> str:
    if isinstance(value, Mapping):
        return compact(value)
    if isinstance(value, list | tuple):
        inner = [_short(v) for v in value]
        if len(inner) > MANY:
            inner = [f"{', '.join(inner[:3])} ... {inner[-1]} ({len(value)} values)"]
        return ", ".join(inner)
    return show(value)


def repeat_words(records: Mapping[str, RunRecord], stops: Mapping[str, StopReason]) -> str:
    """What a repetition will share, and what not."""
    parts = []
    for name, record in records.items():
        budget = record.settings.get("budget") or {}
        timed = isinstance(budget, Mapping) and budget.get("seconds") is not None
        # why the sentence: a budget may have several parts, and the code does not say which
        if timed and "second" in stops[name].sentence and record.rows:
            steps = record.rows[-1].get("step")
            parts.append(f"{name} took {show(steps)} steps")
    words = (
        "The same versions on the same kind of machine, with the same number of threads, give the "
        "same numbers; others differ in the last digits."
    )
    if parts:
        words += (
            " The budget was in seconds, in which another machine takes another number of steps: "
            f"{listed(parts)} here. For the same numbers give the budget in steps."
        )
    return words
