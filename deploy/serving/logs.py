"""Logs as JSON on stderr, a line an event."""

import json
import logging
import time
from typing import Any

_FIELDS = ("request_id", "status", "duration_ms", "client", "http_port", "grpc_port", "seconds")
"""What an event may carry beside its message."""


class JsonFormatter(logging.Formatter):
    """One event as one line."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of `record`."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        entry: dict[str, Any] = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "pid": record.process,
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry |= {key: getattr(record, key) for key in _FIELDS if hasattr(record, key)}
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def log_to_stderr(level: str) -> None:
    """Send what is logged from `level` on to stderr; other packages from warnings on.

    Warnings of Python's, which numpy has many of, are events of the log too.
    """
    logging.captureWarnings(True)
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("deploy").setLevel(level.upper())
