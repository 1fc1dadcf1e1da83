"""Turns a run directory into report.json, a self-contained HTML page and a terminal table."""

from tagpr_rl.report.page.collect import collect
from tagpr_rl.report.page.html import build_report
from tagpr_rl.report.page.views import summary_table

__all__ = ["build_report", "collect", "summary_table"]
