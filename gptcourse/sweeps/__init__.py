"""Many runs, to compare settings: `sweep` makes every run of a grid, `search` lets Optuna choose the runs.

This is machinery: processes, files and tables. What it measures is the matter of `gptcourse.tuning`.
"""

from gptcourse.sweeps.grids import Bands, SweepTable, sweep
from gptcourse.sweeps.searches import SearchResult, search
from gptcourse.sweeps.workers import available_cores

__all__ = ["Bands", "SearchResult", "SweepTable", "available_cores", "search", "sweep"]
