"""Pairs of true and measured images, seeded: bundled photographs, folders, phantoms, and pairs
from files of measurements.
"""

from .arrays import read_array, save_array
from .images import count_pages, list_images, load_image, natural_photographs, save_image
from .measured import from_dataset, measured
from .pairs import Pairs, Sides, pairs
from .phantoms import phantoms

__all__ = [
    "Pairs",
    "Sides",
    "count_pages",
    "from_dataset",
    "list_images",
    "load_image",
    "measured",
    "natural_photographs",
    "pairs",
    "phantoms",
    "read_array",
    "save_array",
    "save_image",
]
