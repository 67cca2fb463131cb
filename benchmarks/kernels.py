"""Fields of Experts against the roofline: CPU time of its four operations and of the matrix
products they stand for.

    OMP_NUM_THREADS=1 python benchmarks/kernels.py --threads 1 --json kernels.json
    python benchmarks/kernels.py --cases 8x96 --filters 24 --size 5 --dtype float64 --repeats 10

A filter bank of K filters s x s on n pixels is one dense product [K x s^2] [s^2 x n], 2 K s^2 n
flops. The roofline of an operation is the time of as many such products as it needs, in the shape
that runs fastest here (n is cut into equal pieces; the best length is searched), on the same
machine with the same threads:
    gradient        2   correlate, adjoint
    linearization   1   correlate
    Hessian product 2   correlate, adjoint
    mixed product   4   correlate x and v, multiply the maps of each with the windows of the other
Pointwise work and memory traffic are free at the roofline. ``ratio`` is time over roofline,
``of 2`` time over that of two products, whatever the operation needs. Rows ``plain`` are what one
writes without thinking: F.conv2d, the sum of sqrt(t^2 + nu^2) and autograd through it (its adjoint
is conv_transpose2d), once for the gradient, twice for the Hessian product; batches of large images
go through it one image at a time, which it likes better.

Times are CPU seconds of the process (all threads together) per call, divided by the images: the
least of ``--repeats`` measurements, and the spread, by how much their median exceeds it. All rows
take turns in every repeat, so that a busy machine does not favour one of them.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import deepinv as dinv
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

import learnreg as lr
from learnreg.cli.memory import keep_large_blocks
from learnreg.hypergradients.implicit import mixed_product
from learnreg.regularizers import FoE

GOAL = 3.0
"""What the project wants: no operation slower than this many times its roofline."""

PIECES = (128, 256, 512, 1024, 2048, 4096, 8192)
"""Lengths n of the second factor that are tried for the roofline."""

LONGEST = 0.02
"""A measurement repeats its call until it lasts this many seconds."""

LARGE = 2**28
"""Bytes of feature maps of the batch beyond which ``plain`` gets one image at a time."""


@dataclass(frozen=True)
class Row:
    """One operation of one case; times in milliseconds of CPU per image."""

    case: str
    operation: str
    products: int
    milliseconds: float
    spread: float
    roofline: float
    ratio: float
    of_two: float


@dataclass(frozen=True)
class Case:
    """A batch of square images and a bank of filters."""

    images: int
    side: int
    filters: int
    size: int
    dtype: torch.dtype

    def __str__(self) -> str:
        count = "1 image" if self.images == 1 else f"{self.images} images"
        return f"{count} {self.side}x{self.side}, {self.filters} filters {self.size}x{self.size}"

    @property
    def map_bytes(self) -> int:
        """Feature maps of the batch."""
        return self.images * self.filters * self.side**2 * torch.finfo(self.dtype).bits // 8


# --- what is measured -----------------------------------------------------------------------------


def ours(foe: FoE, x: Tensor, v: Tensor) -> dict[str, tuple[Callable[[], Any], int]]:
    """Name -> (call, products) of the four operations."""
    energy = lr.Energy(dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1)), foe)
    with torch.no_grad():
        hessian = foe.linearize(x)
    return {
        "gradient": (torch.no_grad()(lambda: foe.grad(x)), 2),
        "linearization": (torch.no_grad()(lambda: foe.linearize(x)), 1),
        "Hessian product": (torch.no_grad()(lambda: hessian(v)), 2),
        "mixed product": (lambda: mixed_product(energy, x, x, v), 4),
    }


def plain(case: Case, foe: FoE, x: Tensor, v: Tensor) -> dict[str, tuple[Callable[[], Any], int]]:
    """The same gradient and Hessian product by autograd through the formula."""
    group = 1 if case.map_bytes > LARGE else case.images
    parts = list(zip(x.split(group), v.split(group), strict=True))
    return {
        "gradient, plain": (lambda: torch.cat([plain_gradient(foe, a) for a, _ in parts]), 2),
        "Hessian product, plain": (
            lambda: torch.cat([plain_product(foe, a, b) for a, b in parts]),
            2,
        ),
    }


def plain_value(foe: FoE, x: Tensor) -> Tensor:
    """R(x) + constant, as its formula reads, summed over the batch."""
    kernels, weights, smoothings = foe.effective()
    nu, margin = smoothings.view(-1, 1, 1), kernels.shape[-1] // 2
    maps = F.conv2d(F.pad(x, (margin,) * 4, mode="reflect"), kernels)
    return (weights.view(-1, 1, 1) * torch.sqrt(maps**2 + nu**2)).sum()


def plain_gradient(foe: FoE, x: Tensor) -> Tensor:
    at = x.detach().requires_grad_()
    return torch.autograd.grad(plain_value(foe, at), at)[0]


def plain_product(foe: FoE, x: Tensor, v: Tensor) -> Tensor:
    at = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(plain_value(foe, at), at, create_graph=True)
    return torch.autograd.grad(gradient, at, v)[0]


def products(case: Case) -> dict[str, tuple[Callable[[], Any], int]]:
    """The dense product in pieces of several lengths; the integer is the length of a piece."""
    taps = case.size**2
    a = torch.randn(case.filters, taps, dtype=case.dtype)
    found = {}
    for n in PIECES:
        b, out = (
            torch.randn(taps, n, dtype=case.dtype),
            torch.empty(case.filters, n, dtype=case.dtype),
        )
        found[f"product {n}"] = ((lambda b=b, out=out: torch.mm(a, b, out=out)), n)
    return found


# --- measuring ------------------------------------------------------------------------------------


def seconds(call: Callable[[], Any], count: int) -> float:
    """CPU seconds of the process per call."""
    start = time.process_time()
    for _ in range(count):
        call()
    return (time.process_time() - start) / count


def measure(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """CPU seconds per call, ``repeats`` measurements of every one, taking turns; after a
    warm-up.
    """
    counts = {}
    for name, call in calls.items():
        call()
        counts[name] = max(1, round(LONGEST / max(seconds(call, 1), 1e-7)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            times[name].append(seconds(call, counts[name]))
    return times


def study(case: Case, repeats: int) -> list[Row]:
    """All rows of a case."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(case.images, 1, case.side, case.side, generator=generator).to(case.dtype)
    v = torch.randn(x.shape, generator=generator).to(case.dtype)
    foe = FoE(case.filters, case.size).to(case.dtype)
    compare(foe, x[:1], v[:1])
    operations, dense = ours(foe, x, v) | plain(case, foe, x, v), products(case)
    times = measure({name: call for name, (call, _) in (operations | dense).items()}, repeats)
    one = 1e3 * case.side**2 * min(min(times[name]) / n for name, (_, n) in dense.items())
    return [row(case, name, count, times[name], one) for name, (_, count) in operations.items()]


def row(case: Case, name: str, count: int, times: list[float], one: float) -> Row:
    """``one`` is the time of one product, in milliseconds per image."""
    best = min(times)
    each = 1e3 * best / case.images
    return Row(
        str(case),
        name,
        count,
        each,
        statistics.median(times) / best - 1,
        count * one,
        each / (count * one),
        each / (2 * one),
    )


def compare(foe: FoE, x: Tensor, v: Tensor) -> None:
    """Refuse to time two different functions."""
    with torch.no_grad():
        gradient, product = foe.grad(x), foe.linearize(x)(v)
    for a, b in ((gradient, plain_gradient(foe, x)), (product, plain_product(foe, x, v))):
        error = float(torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b))
        assert error < 1e-4, f"the plain evaluation differs by {error:.1e}"


# --- telling --------------------------------------------------------------------------------------


def show(rows: list[Row], title: str) -> None:
    table = Table(title=f"{title}: CPU ms per image")
    table.add_column("operation", no_wrap=True)
    for heading in ("ms", "spread", "GEMMs", "roof", "ratio", "of 2"):
        table.add_column(heading, justify="right", no_wrap=True)
    for r in rows:
        table.add_row(
            r.operation,
            f"{r.milliseconds:.3f}",
            f"{r.spread:.0%}",
            str(r.products),
            f"{r.roofline:.3f}",
            f"{r.ratio:.2f}",
            f"{r.of_two:.2f}",
        )
    Console().print(table)


def verdict(rows: list[Row]) -> str:
    """One sentence on the goal."""
    worst = max((r for r in rows if not r.operation.endswith("plain")), key=lambda r: r.ratio)
    word = "met" if worst.ratio <= GOAL else "missed"
    return (
        f"Goal of {GOAL:g} x roofline {word}: "
        f"the slowest is {worst.operation}, {worst.case}, {worst.ratio:.2f}."
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cases", nargs="+", default=["8x96", "8x512"], help="images x side of the squares"
    )
    parser.add_argument("--filters", type=int, default=48)
    parser.add_argument("--size", type=int, default=7)
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--plain-malloc",
        action="store_true",
        help="leave glibc's allocator as it is; the commands of learnreg let it keep large blocks",
    )
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    kept = not args.plain_malloc and keep_large_blocks()
    rows: list[Row] = []
    for text in args.cases:
        images, side = map(int, text.split("x"))
        case = Case(images, side, args.filters, args.size, getattr(torch, args.dtype))
        found = study(case, args.repeats)
        show(found, f"{case}, {args.dtype}, {args.threads} thread{'s' if args.threads > 1 else ''}")
        rows += found
    print(verdict(rows))
    if args.json:
        document = {
            "threads": args.threads,
            "dtype": args.dtype,
            "repeats": args.repeats,
            "torch": torch.__version__,
            "cpu": torch.backends.cpu.get_cpu_capability(),
            "machine": platform.machine(),
            "keeps_large_blocks": kept,
            "rows": [asdict(r) for r in rows],
            "verdict": verdict(rows),
        }
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
