"""Where and with what a benchmark was run: what each of its numbers holds for."""

import datetime
import platform
from importlib.metadata import version
from typing import Any

from deploy.measuring.machine import describe_machine, usable_cores


def describe_conditions(*packages: str) -> dict[str, Any]:
    """Machine, threads, Python, the versions of `packages` and the date, ready for JSON."""
    machine = describe_machine()
    return {
        "machine": machine.cpu,
        "features": machine.features,
        "threads": usable_cores(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
    }
