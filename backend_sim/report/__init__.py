"""Pictures of a simulated run: a self-contained HTML page, and a timeline for trace viewers."""

from __future__ import annotations

from escc.backend_sim.report.page import html_report
from escc.backend_sim.report.trace import chrome_trace

__all__ = ["chrome_trace", "html_report"]
