"""The HTML report: one page that holds everything it shows and opens offline."""

from fewfold.report.html.page import write_report
from fewfold.report.html.sources import ReportError

__all__ = ["ReportError", "write_report"]
