"""run.json and run.safetensors of a report, read back."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from ..core import (
    Cost,
    Evaluation,
    InputError,
    Kind,
    ModelFileError,
    RunRecord,
    Status,
    StopReason,
)
from .beside import Kept
from .columns import Measured

FORMAT, VERSION = "learnreg-run", 2
OLDEST = 1
"""Files since this version are read; what they do not hold is not known."""

_AGAIN = "Save the report again from its run, or restore run.json and run.safetensors together."


@dataclass(frozen=True)
class SavedRun:
    """A run as a report keeps it.

    Attributes:
        name: display name, for example "TV" or "FoE".
        record, stop: the history, and why it ended.
        theta: (d,), learned parameters.
        filters: None, or ``kernels`` (K, c, s, s), ``weights`` (K,) and optionally ``smoothings``
            (K,).
        kernels: None, or learned kernels of the operator by name, (k, 1, h, w).
    """

    name: str
    record: RunRecord
    stop: StopReason
    theta: Tensor
    filters: Mapping[str, Tensor] | None = None
    kernels: Mapping[str, Tensor] | None = None


@dataclass(frozen=True)
class Stored:
    """What a folder holds of a report; attributes as the arguments of ``Report.compare``."""

    methods: dict[str, tuple[SavedRun, Evaluation]]
    models: dict[str, Kept]
    baselines: dict[str, Measured]
    config: dict[str, str]
    command: str
    settings: dict[str, Any]


def read(folder: Path) -> Stored:
    """The content of both files.

    Raises:
        InputError: a file is missing.
        ModelFileError: a file is corrupted, foreign, of another version, or the two do not match.
    """
    text, tensors = (_bytes(folder / name) for name in ("run.json", "run.safetensors"))
    where = str(folder / "run.json")
    data = _checked(where, text)
    try:
        found, expected = hashlib.sha256(tensors).hexdigest(), data["tensors"]["sha256"]
        if found != expected:
            raise ModelFileError(
                str(folder / "run.safetensors"),
                given=f"sha256 {found[:12]}...",
                expected=f"{expected[:12]}..., named in run.json",
                remedy=_AGAIN,
            )
        return _restored(data, safetensors.torch.load(tensors))
    except InputError:
        raise
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        safetensors.SafetensorError,
    ) as error:
        raise ModelFileError(
            where,
            given=f"incomplete content ({type(error).__name__}: {error})",
            expected="record, stop and evaluation of each method",
            remedy=_AGAIN,
        ) from error


def _checked(where: str, text: bytes) -> dict[str, Any]:
    """The tables of run.json, once they are ours."""
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ModelFileError(
            where, given=f"no valid JSON ({error})", expected=f"a {FORMAT} file", remedy=_AGAIN
        ) from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ModelFileError(
            where,
            given="a file of another kind",
            expected=f'JSON with "format": "{FORMAT}"',
            remedy="Point to the folder that Report.save wrote.",
        )
    version = data.get("version")
    if not isinstance(version, int) or not OLDEST <= version <= VERSION:
        raise ModelFileError(
            where,
            given=f"version {version}",
            expected=f"version {OLDEST} to {VERSION}",
            remedy="Read it with the release of learnreg that wrote it.",
        )
    return data


def _restored(data: Mapping[str, Any], stored: Mapping[str, Tensor]) -> Stored:
    repeat = data.get("repeat", {})
    methods = {m["name"]: _method(m, n, stored) for n, m in enumerate(data["methods"])}
    models = {m["name"]: Kept(**m["model"]) for m in data["methods"] if m.get("model")}
    baselines = {
        b["name"]: Measured(
            stored[f"baseline.{n}"], _numbers(b["psnr"]), _numbers(b["ssim"]), b["words"]
        )
        for n, b in enumerate(data.get("baselines", ()))
    }
    return Stored(
        methods,
        models,
        baselines,
        dict(repeat.get("config", {})),
        str(repeat.get("command", "")),
        dict(data.get("settings", {})),
    )


def _method(
    data: dict[str, Any], number: int, stored: Mapping[str, Tensor]
) -> tuple[SavedRun, Evaluation]:
    e = data["evaluation"]
    filters, kernels = (
        {k.removeprefix(prefix): v for k, v in stored.items() if k.startswith(prefix)}
        for prefix in (f"{number}.filters.", f"{number}.kernels.")
    )
    columns = {c: _numbers(e[c]) for c in ("psnr", "ssim", "psnr_input", "ssim_input", "error")}
    error = torch.tensor(columns.pop("error"), dtype=torch.float64)
    kind = {k.label: k for k in (Kind.UNKNOWN, Kind.ESTIMATE, Kind.BOUND)}[e["kind"]]
    known = "seen_as" in e  # older files do not keep the picture
    evaluation = Evaluation(
        stored[f"{number}.reconstruction"],
        stored["x"],
        stored["y"],
        **columns,
        error=error,
        kind=kind,
        status=tuple(Status[s.upper()] for s in e["status"]),
        eps=e["eps"],
        names=tuple(e["names"]),
        cost=Cost(**e["cost"]),
        honesty=tuple(e["honesty"]),
        theorem=tuple(e.get("theorem", ())),
        peak=_numbers(e.get("peak", ())),
        seen=stored.get("seen", stored["y"] if known and e["seen_as"] != "input" else None),
        seen_as=e.get("seen_as", "input"),
        setup=dict(e.get("setup", {})),
    )
    stop = StopReason(data["stop"]["code"], data["stop"]["sentence"])
    run = SavedRun(
        data["name"],
        RunRecord.from_dict(data["record"]),
        stop,
        stored[f"{number}.theta"],
        filters or None,
        kernels or None,
    )
    if not all(isinstance(row, dict) for row in (*run.record.rows, *evaluation.honesty)):
        raise TypeError("a row is no table of named numbers")
    if any(
        len(v) != len(evaluation.x) for v in (*columns.values(), error, evaluation.reconstruction)
    ):
        raise ValueError("the number of images differs between columns")
    return run, evaluation


def _numbers(values: list[float | None] | tuple[float, ...]) -> tuple[float, ...]:
    return tuple(math.nan if v is None else v for v in values)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            str(path),
            given=error.strerror,
            expected="a file written by Report.save",
            remedy="Name the folder of a saved report.",
        ) from error
