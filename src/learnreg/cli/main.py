"""The commands and their options; whatever is slow to import is imported when a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .. import __version__
from .guard import EXIT_CODES, announce, guarded

if TYPE_CHECKING:
    from rich.console import Console

LOADING = "loading PyTorch and deepinv takes a few seconds ..."

app = typer.Typer(
    name="learnreg",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Learn the regularizer of an imaging inverse problem from data, with certified "
    "inexactness.",
    epilog=EXIT_CODES,
)

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on from the checkpoint in the output folder.")
]


def _console() -> Console:
    from rich.console import Console

    return Console()


def _begin(config: Path, command: str) -> None:
    """Say at once what goes on, and what is wrong with a file that cannot be read at all."""
    from .tables import read_tables

    announce(f"learnreg {__version__}: reading {config}; {LOADING}")
    if config.is_file():  # a pipe can be read only once
        read_tables(config, command)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"learnreg {__version__}")
        raise typer.Exit


@app.callback()
def common(
    show: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Options of all commands."""


@app.command()
@guarded
def demo(
    name: Annotated[
        str, typer.Argument(help="photographs (denoised), ct (few views) or mri (accelerated).")
    ] = "photographs",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder for the report.",
            show_default="report, report-ct, report-mri",
        ),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            help="Most time for learning, in seconds; it ends sooner when nothing more is gained.",
            show_default="90; 120 for ct and mri",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of crops, noise and mask.")] = 0,
    resume: Resume = False,
    debug: Debug = False,
) -> None:
    """Learn to reconstruct from photographs and write a report: no file and no network needed.

    photographs: noise is removed. ct: images from few views. mri: images from a quarter of the
    measurements. A method with learned filters is compared with total variation.
    """
    announce(f"learnreg {__version__}: a demonstration; {LOADING}")
    from .demo import run_demo

    run_demo(name, output, seconds, seed, resume, _console())


@app.command()
@guarded
def learn(
    config: Annotated[
        Path | None, typer.Argument(help="Configuration file (TOML).", show_default=False)
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            show_default=False,
            help="Folder for the results; replaces that of the file.",
        ),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(show_default=False, help="Budget in seconds; replaces that of the file."),
    ] = None,
    resume: Resume = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run in the output folder.")
    ] = False,
    example: Annotated[
        bool,
        typer.Option(
            "--example",
            help="Print a commented configuration and exit; a name in the place of CONFIG chooses "
            "another physics: --example CT.",
        ),
    ] = False,
    debug: Debug = False,
) -> None:
    """Run the job that a configuration file describes: learn, evaluate on held-out images,
    report.
    """
    if example:
        from .config import example as text

        typer.echo(text(None if config is None else str(config)), nl=False)
        return
    if config is None:
        raise typer.BadParameter(
            "name a configuration file, or make one: learnreg learn --example > config.toml",
            param_hint="CONFIG",
        )
    _begin(config, "learn")
    from .learn import run_learn

    run_learn(
        config, _console(), output=output, seconds=seconds, resume=resume, overwrite=overwrite
    )


@app.command()
@guarded
def compare(
    config: Annotated[
        Path | None, typer.Argument(help="Configuration file (TOML).", show_default=False)
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            show_default=False,
            help="Folder for the results; replaces that of the file.",
        ),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            show_default=False, help="Budget of each run in seconds; replaces that of the file."
        ),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(show_default=False, help="Runs at a time; replaces that of the file."),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Skip the finished runs in the output folder, go on with the others."
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the runs in the output folder.")
    ] = False,
    example: Annotated[
        bool, typer.Option("--example", help="Print a commented configuration and exit.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Run several learners from several starts with several seeds on one problem, and report who
    did best.
    """
    if example:
        from .compare_config import example as text

        typer.echo(text(), nl=False)
        return
    if config is None:
        raise typer.BadParameter(
            "name a configuration file, or make one: learnreg compare --example > config.toml",
            param_hint="CONFIG",
        )
    _begin(config, "compare")
    from .compare import run_compare

    run_compare(
        config,
        _console(),
        output=output,
        seconds=seconds,
        processes=processes,
        resume=resume,
        overwrite=overwrite,
    )


@app.command()
@guarded
def reconstruct(
    inputs: Annotated[
        list[Path], typer.Argument(show_default=False, help="Noisy images, or folders.")
    ],
    model: Annotated[
        Path,
        typer.Option(
            "--model",
            "-m",
            help="The folder of a run, or its model.safetensors.",
            show_default=False,
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output", "-o", help="File for one image, folder for several.", show_default=False
        ),
    ],
    eps: Annotated[
        float | None,
        typer.Option(
            help="Largest distance to the exact minimizer, over all pixels of an image.",
            show_default="by --quality",
        ),
    ] = None,
    quality: Annotated[
        str | None,
        typer.Option(
            help="draft: certified to one 8-bit grey level in the root mean square, usually a "
            "fifth of it; fine: to a fortieth of one.",
            show_default="fine",
        ),
    ] = None,
    sigma: Annotated[
        str | None,
        typer.Option(
            help="Noise level of the images, where black is 0 and white is 1: 0.1, 25/255, or "
            "auto.",
            show_default="that of the model",
        ),
    ] = None,
    max_seconds: Annotated[
        float | None,
        typer.Option(
            help="Time for each image; what has been reached is written, and listed at the end.",
            show_default=False,
        ),
    ] = None,
    channel_wise: Annotated[
        bool,
        typer.Option(
            "--channel-wise",
            help="Treat each channel as a grey image, as models for grey images do anyway.",
        ),
    ] = False,
    float64: Annotated[
        bool, typer.Option("--float64", help="Compute in double precision.")
    ] = False,
    memory: Annotated[
        str | None,
        typer.Option(
            help="Memory that a solve may take, for example 800MB or 2GB.",
            show_default="what is free",
        ),
    ] = None,
    processes: Annotated[int, typer.Option(help="Files at a time, each by one thread.")] = 1,
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Leave out images whose result is there.")
    ] = False,
    levels: Annotated[
        str | None,
        typer.Option(
            "--range",
            help="Numbers of the pictures that are black and white: 0,4095 for 12 bits, or "
            "-1000,2000.",
            metavar="LO,HI",
            show_default="that of the training images",
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Apply a learned model to images of any size; each with its distance to the exact minimizer,
    certified where the constants are proven and estimated elsewhere.

    TIFF stacks are taken page by page, DICOM and NIfTI files slice by slice, and written as such.
    One file or page that fails does not stop the others: failures are listed at the end (exit code
    3).
    """
    console = _console()
    # what is imported next takes seconds
    console.print("Starting ...")
    from .reconstruct import run_reconstruct

    run_reconstruct(
        model,
        inputs,
        output,
        console,
        eps=eps,
        quality=quality,
        sigma=sigma,
        max_seconds=max_seconds,
        channel_wise=channel_wise,
        float64=float64,
        memory=memory,
        processes=processes,
        skip_existing=skip_existing,
        levels=levels,
        debug=debug,
    )


@app.command()
@guarded
def report(
    folder: Annotated[
        Path, typer.Argument(help="Folder of an earlier run or comparison.", show_default=False)
    ],
    debug: Debug = False,
) -> None:
    """Render the page of an earlier run or comparison again, without computing anything."""
    announce(f"learnreg {__version__}: reading {folder}; {LOADING}")
    from .report import run_report

    run_report(folder, _console())


@app.command()
def version() -> None:
    """Show the versions of learnreg and of what it stands on."""
    import platform
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    typer.echo(f"learnreg {__version__}")
    typer.echo(f"python {platform.python_version()} on {platform.platform()}")
    for package in ("torch", "deepinv", "numpy"):
        try:
            typer.echo(f"{package} {installed(package)}")
        except PackageNotFoundError:
            typer.echo(f"{package} is not installed")
