"""What a server changes of its process is put back for the tests after it."""

import contextlib
import logging
import resource
import signal
import subprocess
import sys
import warnings

import pytest
from process_state import no_child_left, process_as_before

from deploy.serving.logs import log_to_stderr
from deploy.serving.pauses import shorten_turns


def read_state() -> list[object]:
    root, ours = logging.getLogger(), logging.getLogger("deploy")
    return [
        (list(root.handlers), root.level, list(ours.handlers), ours.level, ours.propagate),
        signal.getsignal(signal.SIGTERM),
        sys.getswitchinterval(),
        resource.getrlimit(resource.RLIMIT_NOFILE),
        warnings.showwarning,
    ]


def test_a_server_leaves_nothing_behind(caplog: pytest.LogCaptureFixture) -> None:
    before = read_state()
    with process_as_before():
        log_to_stderr("info")
        logging.getLogger("deploy").propagate = False
        signal.signal(signal.SIGTERM, lambda *_: None)
        shorten_turns()
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, before[3][1]))  # type: ignore[index]
        changed = [old != new for old, new in zip(before, read_state(), strict=True)]
        assert changed == [True] * len(before)
    assert read_state() == before
    logging.getLogger("deploy.serving").warning("heard")
    assert [record.message for record in caplog.records] == ["heard"]


def test_a_child_that_is_left_is_found_and_those_from_before_are_not() -> None:
    command = [sys.executable, "-c", "input()"]

    def start() -> "subprocess.Popen[bytes]":
        return subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)

    with start(), contextlib.ExitStack() as started:
        with no_child_left():
            pass
        with pytest.raises(AssertionError, match="left running"), no_child_left():
            started.enter_context(start())
