"""Pages from the templates of this folder; what is filled in is escaped, what is missing is an
error.
"""

from __future__ import annotations

from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined

from .words import show


def render(template: str, **values: object) -> str:
    """The page of a template, for example ``page.html.j2``, with these values."""
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FunctionLoader(_source),
    )
    environment.filters["show"] = show
    return environment.get_template(template).render(**values)


def _source(template: str) -> str:
    return files(__package__).joinpath(template).read_text(encoding="utf-8")
