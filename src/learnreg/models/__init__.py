"""A trained energy as a file, and as a function of images."""

from .accuracy import Demands
from .model_file import load_model, model_notes, save_model
from .trained import TrainedModel, find_model, load

__all__ = [
    "Demands",
    "TrainedModel",
    "find_model",
    "load",
    "load_model",
    "model_notes",
    "save_model",
]
