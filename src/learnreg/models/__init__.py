"""A trained energy as a file."""

from .model_file import load_model, model_notes, save_model

__all__ = ["load_model", "model_notes", "save_model"]
