"""Pairs of true and measured images, seeded: bundled photographs, folders, phantoms."""

from .images import list_images, load_image, natural_photographs, save_image
from .pairs import Pairs, Sides, pairs
from .phantoms import phantoms

__all__ = [
    "Pairs",
    "Sides",
    "list_images",
    "load_image",
    "natural_photographs",
    "pairs",
    "phantoms",
    "save_image",
]
