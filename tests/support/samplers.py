"""The samplers of statistical tests: one each time, the others each night (see `nightly` in
pyproject.toml).
"""

from __future__ import annotations

import pytest

LEARNERS = ("tpe", pytest.param("gp", marks=pytest.mark.nightly))
"""Those that learn from trials of all cells; each runs the same code around its model."""
