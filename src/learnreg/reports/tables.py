"""The tables of reports and comparisons for spreadsheets and papers, and what to cite."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from .content import Compared, Content
from .pairing import Spread
from .statistics import interval

ESCAPES = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}

BOOKS = {
    "MAID": r"""@article{salehi2025maid,
  title = {An Adaptively Inexact First-Order Method for Bilevel Optimization with Application to
           Hyperparameter Learning},
  author = {Salehi, Mohammad Sadegh and Mukherjee, Subhadip and Roberts, Lindon and
            Ehrhardt, Matthias J.},
  journal = {SIAM Journal on Mathematics of Data Science},
  volume = {7}, number = {3}, year = {2025}, doi = {10.1137/24M1653513}
}""",
    "HOAG": r"""@inproceedings{pedregosa2016hoag,
  title = {Hyperparameter Optimization with Approximate Gradient},
  author = {Pedregosa, Fabian},
  booktitle = {International Conference on Machine Learning}, year = {2016}
}""",
    "DFO": r"""@article{ehrhardt2021dfo,
  title = {Inexact Derivative-Free Optimization for Bilevel Learning},
  author = {Ehrhardt, Matthias J. and Roberts, Lindon},
  journal = {Journal of Mathematical Imaging and Vision}, year = {2021}
}""",
    "LBFGSB": r"""@article{byrd1995lbfgsb,
  title = {A Limited Memory Algorithm for Bound Constrained Optimization},
  author = {Byrd, Richard H. and Lu, Peihuang and Nocedal, Jorge and Zhu, Ciyou},
  journal = {SIAM Journal on Scientific Computing}, volume = {16}, number = {5}, year = {1995}
}""",
    "TV": r"""@article{rudin1992tv,
  title = {Nonlinear Total Variation Based Noise Removal Algorithms},
  author = {Rudin, Leonid I. and Osher, Stanley and Fatemi, Emad},
  journal = {Physica D}, volume = {60}, year = {1992}
}""",
    "HuberTV": r"""@article{kunisch2013bilevel,
  title = {A Bilevel Optimization Approach for Parameter Learning in Variational Models},
  author = {Kunisch, Karl and Pock, Thomas},
  journal = {SIAM Journal on Imaging Sciences}, volume = {6}, number = {2}, year = {2013}
}""",
    "TGV": r"""@article{bredies2010tgv,
  title = {Total Generalized Variation},
  author = {Bredies, Kristian and Kunisch, Karl and Pock, Thomas},
  journal = {SIAM Journal on Imaging Sciences}, volume = {3}, number = {3}, year = {2010}
}""",
    "FoE": r"""@article{roth2009foe,
  title = {Fields of Experts},
  author = {Roth, Stefan and Black, Michael J.},
  journal = {International Journal of Computer Vision}, volume = {82}, number = {2}, year = {2009}
}""",
    "LearnedTV": r"""@article{chambolle2021learning,
  title = {Learning Consistent Discretizations of the Total Variation},
  author = {Chambolle, Antonin and Pock, Thomas},
  journal = {SIAM Journal on Imaging Sciences}, volume = {14}, number = {2}, year = {2021}
}""",
}
"""What to cite for a learner or a regularizer, by its class."""

SAME = {"ExactTV": "TV", "DFOLS": "DFO"}


def tables(report: Content) -> dict[str, str]:
    """File names and contents."""
    return {
        "table.csv": _csv(_table(report)),
        "images.csv": _csv(per_image(report)),
        "pairs.csv": _csv(_pairs(report)),
        "table.tex": _latex(report),
        "references.bib": references(report),
    }


def _table(report: Content) -> list[dict[str, object]]:
    return [{key: _number(value) for key, value in row.items()} for row in report.table()]


def per_image(report: Content) -> list[dict[str, object]]:
    """One row per image and competitor; the bound of the distance to the exact minimizer where
    there is one, and the PSNR that it leaves open.
    """
    first, rows = report.first, []
    entries = first.x[0].numel()
    peaks = first.peak or (1.0,) * len(first.psnr)
    for column in report.columns:
        evaluation = report.evaluations.get(column.name) if column.learned else None
        for i, (psnr, ssim) in enumerate(zip(column.psnr, column.ssim, strict=True)):
            row: dict[str, object] = {
                "image": first.names[i] if i < len(first.names) else f"image {i}",
                "method": column.name,
                "psnr": _number(psnr),
                "ssim": _number(ssim),
            }
            error = math.nan if evaluation is None else float(evaluation.error[i])
            low, high = interval(psnr, peaks[i], error, entries)
            row |= {
                "psnr_low": _number(low),
                "psnr_high": _number(high),
                "distance": _number(error),
                "known": None if evaluation is None else evaluation.kind.label,
                "status": None if evaluation is None else evaluation.status[i].name.lower(),
            }
            rows.append(row)
    return rows


def _pairs(report: Content) -> list[dict[str, object]]:
    return [
        {
            "first": p.first,
            "second": p.second,
            "images": p.images,
            "mean_difference_db": p.mean,
            "deviation_db": p.deviation,
            "least_db": p.least,
            "most_db": p.most,
            "bootstrap_low_db": p.low,
            "bootstrap_high_db": p.high,
            "signed_rank_p": p.p,
            "better": p.wins,
            "worse": p.losses,
        }
        for p in report.pairs()
    ]


def comparison_tables(comparison: Compared) -> dict[str, str]:
    """One row per learner, and one per run, of a comparison."""
    rows = [
        {
            "learner": row.name,
            "runs": row.runs,
            "ended": row.ended,
            **{
                f"{name}_{part}": None if numbers is None else value(numbers)
                for name, numbers in (("loss", row.loss), ("gap", row.gap), ("psnr", row.psnr))
                for part, value in _PARTS.items()
            },
            "median_work": row.work and row.work.middle,
            "median_seconds": row.seconds and row.seconds.middle,
        }
        for row in comparison.table()
    ]
    runs = [
        {
            "learner": run.learner,
            "name": run.name,
            "start": run.start,
            "seed": run.seed,
            "steps": run.steps,
            "stop": run.stop[0],
            "loss": run.final and run.final["loss"],
            "psnr": run.final and run.final.get("psnr_test"),
            "failure": run.failure,
        }
        for run in comparison.runs
    ]
    return {"table.csv": _csv(rows), "runs.csv": _csv(runs)}


_PARTS: dict[str, Callable[[Spread], float | None]] = {
    "mean": lambda s: s.mean,
    "deviation": lambda s: s.deviation,
    "median": lambda s: s.middle,
}


def _number(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _csv(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows with the same keys; what is not known is empty."""
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()


def _latex(report: Content) -> str:
    """The table of the page, for the package booktabs."""
    single = len(report.first.psnr) == 1

    def number(row: Mapping[str, Any], key: str, digits: int) -> str:
        if row[key] is None or not math.isfinite(row[key]):
            return "--"
        spread = "" if single else rf" \pm {row[f'{key}_spread']:.{digits}f}"
        return f"${row[key]:.{digits}f}{spread}$"

    def count(value: float | None) -> str:
        return "--" if value is None else f"{value:.0f}"

    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{tabular}{lrrrr}",
        r"\toprule",
        r"Method & PSNR (dB) & SSIM & Parameters & Work per image \\",
        r"\midrule",
    ]
    for row in report.table():
        cells = [escaped(row["name"]), number(row, "psnr", 2), number(row, "ssim", 3)]
        cells += [count(row["parameters"]), count(row["work"])]
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def escaped(text: object) -> str:
    r"""Text for LaTeX, on one line.

    >>> escaped("A^T y & 5 %")
    'A\\textasciicircum{}T y \\& 5 \\%'
    """
    plain = "".join(ch if ch.isprintable() else " " for ch in str(text))
    return "".join(ESCAPES.get(ch, ch) for ch in plain)


def references(report: Content) -> str:
    """BibTeX of this library, and of the methods that were run."""
    kinds: list[str] = []
    versions: Mapping[str, Any] = {}
    for run in report.runs.values():
        setup = run.record.setup
        kinds += [str((setup.get("learner") or {}).get("type", run.record.learner.split("(")[0]))]
        kinds += _types(setup.get("regularizer") or {})
        versions = versions or setup.get("versions", {})
    used = list(dict.fromkeys(SAME.get(kind, kind) for kind in kinds))
    entries = [
        _software("learnreg", "learnreg", "The learnreg developers", versions),
        _software(
            "deepinv",
            "DeepInverse: a Python package for solving imaging inverse problems with deep learning",
            r"Tachella, Juli{\'a}n and others",
            versions,
        ),
        *(BOOKS[kind] for kind in used if kind in BOOKS),
    ]
    return "\n\n".join(entries) + "\n"


def _software(key: str, title: str, author: str, versions: Mapping[str, Any]) -> str:
    version = f",\n  note = {{Version {versions[key]}}}" if key in versions else ""
    return f"@misc{{{key},\n  title = {{{{{title}}}}},\n  author = {{{{{author}}}}}{version}\n}}"


def _types(spec: Mapping[str, Any]) -> Iterable[str]:
    inner = [*spec.get("terms", ()), *([spec["regularizer"]] if "regularizer" in spec else [])]
    found = [str(spec.get("type", ""))]
    for part in inner:
        found += _types(part)
    return found
