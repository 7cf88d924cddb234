"""The report of a build: as JSON with a schema, on the terminal, as one HTML page, and compared.

A report is plain data, the ``dict`` that ``report.json`` holds; ``docs/report.md`` documents it.
What is named here is imported when it is first asked for: a server reads reports and draws none.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deploy.report.compare import Comparison, compare_reports, print_comparison
    from deploy.report.difference import Difference
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

_MODULES = {
    "compare": ("Comparison", "compare_reports", "print_comparison"),
    "difference": ("Difference",),
    "html": ("render_html",),
    "reading": ("SCHEMA_VERSION", "load_schema", "read_report"),
    "terminal": ("print_report",),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
