"""What a run looks like afterwards: pictures, tables and one self-contained page, read from records alone."""

from .report import LearnedRun, Report, SavedRun

__all__ = ["LearnedRun", "Report", "SavedRun"]
