"""OpenVINO's entry, its import and the one `Core` that a process has."""

import sys
import threading
from typing import Any

from export.optional import require

_LOCK = threading.Lock()
_CORES: list[Any] = []


def import_openvino() -> Any:
    """OpenVINO without its telemetry, which at import forks a process that reports to its makers.

    Where the package is not to be had, OpenVINO uses a stub of its own.
    """
    modules: dict[str, Any] = sys.modules
    modules.setdefault("openvino_telemetry", None)
    return require("openvino", extra="openvino")


def open_core() -> Any:
    """The `openvino.Core` of this process, which stays until its end.

    The plugin of each gives its thread a stack for signals and, when it goes, the one that was
    there before. Of two that do not go in the reverse of the order in which they came, the first
    takes its stack with it and the second sets it again: the next signal with a handler, Ctrl-C
    for one, ends the process by SIGSEGV (openvino 2026.4.1, Linux).

    Weights that stand beside a file are read, not mapped: who writes over that file would change
    the answers at batch sizes that are compiled later, and who shortens it would end the process.

    What OpenVINO's binding sets up when a type is first asked for its counterpart in numpy is set
    up here: two threads that come to it at once wait for each other for ever.
    """
    with _LOCK:
        if not _CORES:
            openvino = import_openvino()
            openvino.Type.f32.to_dtype()
            core = openvino.Core()
            core.set_property({"ENABLE_MMAP": False})
            _CORES.append(core)
        return _CORES[0]
