"""The log is JSON, a line an event, whatever is in the event and wherever it comes from."""

import json
import os
import subprocess
import sys

from servers import ROOT

LOGGED = """
import logging, warnings
import numpy as np
from deploy.serving.logs import log_to_stderr

log_to_stderr("info")
log = logging.getLogger("deploy.serving")
log.info("a\\n{\\"level\\": \\"error\\"}\\x1b[2J %s", "\\ud800", extra={"request_id": "x\\r\\ny"})
warnings.warn("of ours")
np.float32(1e300)
try:
    raise ValueError("two\\nlines")
except ValueError:
    log.exception("failed")
"""


def test_every_line_is_an_event() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOGGED],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "default"},
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert [event["level"] for event in events] == ["info", "warning", "warning", "error"]
    assert events[0]["request_id"] == "x\r\ny"
    assert "of ours" in events[1]["message"]
    assert "overflow" in events[2]["message"]
    assert "two\nlines" in events[3]["traceback"]
    assert done.stderr.isascii()
    assert "\x1b" not in done.stderr
