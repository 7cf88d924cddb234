"""The report of a build: as JSON with a schema, on the terminal, as one HTML page, and compared.

A report is plain data, the ``dict`` that ``report.json`` holds; ``docs/report.md`` documents it.
"""

from deploy.report.compare import Comparison, Difference, compare_reports, print_comparison
from deploy.report.html import render_html
from deploy.report.reading import SCHEMA_VERSION, load_schema, read_report
from deploy.report.terminal import print_report

__all__ = [
    "SCHEMA_VERSION",
    "Comparison",
    "Difference",
    "compare_reports",
    "load_schema",
    "print_comparison",
    "print_report",
    "read_report",
    "render_html",
]
