"""What a study says: statements and pictures. Reads `store` and `search`, writes nothing.

Names are loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.lazy import names_of

if TYPE_CHECKING:
    from orchestrator.report.report import Report, report_of

__all__ = ["Report", "report_of"]

__getattr__ = names_of(__name__, {"report": ("Report", "report_of")})
