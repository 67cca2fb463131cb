"""``python -m learnreg`` is the command line."""

from .cli.main import app

app()
