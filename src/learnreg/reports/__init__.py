"""What a run looks like afterwards: pictures, tables and one self-contained page, read from records
alone.
"""

from .comparison import Comparison
from .pairing import ComparedRun
from .report import LearnedRun, Report
from .stored import SavedRun

__all__ = ["ComparedRun", "Comparison", "LearnedRun", "Report", "SavedRun"]
