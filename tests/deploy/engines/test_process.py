"""A child that crashes, exits or hangs is an error with its last words; nothing stays behind."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from process_state import no_child_left
from tiny import ROOT, answer, draw

from deploy.engines import EngineSpec
from deploy.engines.process import ChildProcess, EngineProcess, call_in_child
from export.errors import BundleError, EngineError, MissingExtraError

FUNCTIONS = """
import ctypes, os, signal, sys, time
from export.errors import BundleError, MissingExtraError

def say(text):
    print(text, file=sys.stderr, flush=True)

def segfault():
    say("vendor: first"); say("vendor: second"); say("vendor: third"); say("vendor: bad tensor")
    ctypes.string_at(0)

def abort():
    os.abort()

def kill_self():
    os.kill(os.getpid(), signal.SIGKILL)

def leave(status):
    say("vendor: license expired")
    os._exit(status)

def leave_politely():
    sys.exit("vendor: goodbye")

def sleep():
    time.sleep(600)

def spin():
    while True:
        pass

def stubborn():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    spin()

def refuse():
    raise BundleError("the user's own fault")

def lack():
    raise MissingExtraError("pip install it")

def fail():
    raise ZeroDivisionError("in vendor code")

def fill():
    with open("/dev/full", "wb") as file:
        file.write(bytes(100_000))

def exhaust():
    raise MemoryError("4 TiB")

def answer_badly():
    return lambda: None

def shout():
    print("to stdout"); os.write(1, b"also to stdout")
    return "answered"

def facts(**kwargs):
    return {"kwargs": kwargs, "omp": os.environ["OMP_NUM_THREADS"], "pid": os.getpid(),
            "sigint": signal.getsignal(signal.SIGINT) is signal.SIG_IGN}
"""


@pytest.fixture(autouse=True)
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "misbehave.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Every test: the children that it started are gone."""
    with no_child_left():
        yield


def wait_until_gone(pids: list[int], seconds: float) -> list[int]:
    """Those of `pids` that still run after `seconds`; zombies do not."""

    def runs(pid: int) -> bool:
        try:
            return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False

    end = time.monotonic() + seconds
    while (left := [pid for pid in pids if runs(pid)]) and time.monotonic() < end:
        time.sleep(0.05)
    return left


def test_a_child_answers_and_knows_its_threads() -> None:
    facts = call_in_child("misbehave:facts", threads=3, a=1, b=[2])
    assert facts["kwargs"] == {"a": 1, "b": [2]}
    assert facts["omp"] == "3"
    assert facts["pid"] != os.getpid()


def test_a_child_leaves_ctrl_c_to_its_parent() -> None:
    assert call_in_child("misbehave:facts")["sigint"]


def test_a_segfault_names_the_signal_and_the_last_words() -> None:
    with pytest.raises(EngineError) as caught:
        call_in_child("misbehave:segfault")
    message = str(caught.value)
    assert "signal SIGSEGV" in message
    assert "vendor: second | vendor: third | vendor: bad tensor" in message
    assert "first" not in message


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("abort", "signal SIGABRT"),
        ("kill_self", "signal SIGKILL"),
        ("leave_politely", "exit code 1; its last words: vendor: goodbye"),
        ("answer_badly", "exit code 1; its last words: "),
    ],
)
def test_a_death_says_how(function: str, words: str) -> None:
    with pytest.raises(EngineError, match=words):
        call_in_child(f"misbehave:{function}")


def test_an_exit_says_its_code_and_last_words() -> None:
    with pytest.raises(EngineError, match=r"exit code 7; its last words: vendor: license expired"):
        call_in_child("misbehave:leave", status=7)


def test_an_exit_with_0_is_a_death_all_the_same() -> None:
    with pytest.raises(EngineError, match="exit code 0"):
        call_in_child("misbehave:leave", status=0)


@pytest.mark.parametrize(
    ("function", "kind"), [("refuse", BundleError), ("lack", MissingExtraError)]
)
def test_an_error_of_ours_arrives_as_it_is(function: str, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        call_in_child(f"misbehave:{function}")


@pytest.mark.parametrize(
    ("function", "words"),
    [("fail", "ZeroDivisionError: in vendor code"), ("exhaust", "MemoryError: 4 TiB")],
)
def test_a_fault_of_others_becomes_a_reason_and_the_child_goes_on(
    function: str, words: str
) -> None:
    with ChildProcess(threads=1) as child:
        with pytest.raises(EngineError, match=words):
            child.request("call", f"misbehave:{function}", {})
        assert child.request("call", "misbehave:facts", {})["pid"] == child.pid


def test_a_full_disk_is_no_fault_of_the_engine() -> None:
    with pytest.raises(OSError, match="No space left") as caught:
        call_in_child("misbehave:fill")
    assert caught.value.errno == errno.ENOSPC


def test_what_a_library_prints_does_not_disturb_the_answers() -> None:
    with ChildProcess(threads=1) as child:
        for _ in range(3):
            assert child.request("call", "misbehave:shout", {}) == "answered"


@pytest.mark.parametrize("function", ["sleep", "spin", "stubborn"])
def test_a_hang_ends_after_the_timeout(function: str) -> None:
    with ChildProcess(threads=1) as child:
        with pytest.raises(EngineError, match="did not answer within"):
            child.request("call", f"misbehave:{function}", {}, timeout=1.0)  # of 600 or more
        assert not psutil.pid_exists(child.pid)
        with pytest.raises(EngineError, match="ended before"):
            child.request("call", "misbehave:facts", {})


def test_a_dead_child_stays_an_error_and_is_no_hang() -> None:
    with ChildProcess(threads=1) as child:
        for _ in range(2):
            with pytest.raises(EngineError, match="exit code 7"):
                child.request("call", "misbehave:leave", {"status": 7})


def test_a_child_killed_from_outside_is_an_error() -> None:
    with ChildProcess(threads=1) as child:
        child.request("call", "misbehave:facts", {})
        os.kill(child.pid, signal.SIGKILL)
        with pytest.raises(EngineError, match="SIGKILL"):
            child.request("call", "misbehave:facts", {})


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_the_child_ends_with_its_context_whatever_happened(error: type[BaseException]) -> None:
    pids = []

    def work() -> None:
        with ChildProcess(threads=1) as child:
            pids.append(child.pid)
            child.request("call", "misbehave:facts", {})
            raise error

    with pytest.raises(error):
        work()
    assert not psutil.pid_exists(pids[0])


def test_closing_twice_is_closing() -> None:
    with ChildProcess(threads=1) as child:
        child.close()
        child.close()


PARENT = """
import sys
sys.path[:0] = {path!r}
from deploy.engines.process import ChildProcess
child = ChildProcess(threads=1)
child.request("call", "misbehave:facts", {{}})
print(child.pid, flush=True)
child.request("call", "misbehave:{function}", {{}}) if {function!r} else sys.stdin.read()
"""


@pytest.mark.parametrize("function", ["", "sleep", "spin", "stubborn"])
def test_a_child_ends_when_its_parent_is_killed(tmp_path: Path, function: str) -> None:
    code = textwrap.dedent(PARENT.format(path=[str(ROOT), str(tmp_path)], function=function))
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        time.sleep(0.2)  # until it is in the middle of its call
        assert psutil.pid_exists(pid)
        parent.kill()
    assert wait_until_gone([pid], 30) == []


def test_an_engine_in_a_child_answers_as_one_here(tiny_onnx: Path) -> None:
    spec = EngineSpec("onnxruntime", "fp32", str(tiny_onnx), 1)
    x = draw(5)
    with EngineProcess(spec) as process:
        assert [str(tensor) for tensor in process.inputs] == ["x:batchx4:float32"]
        assert [str(tensor) for tensor in process.outputs] == ["logits:batchx3:float32"]
        np.testing.assert_allclose(process({"x": x})["logits"], answer(x), rtol=1e-5, atol=1e-5)
        assert process.prepare({"x": x}) > 0
        seconds = process.time(7, warmup=2)
        assert seconds.shape == (7,)
        assert seconds.dtype == np.float64
        assert (seconds > 0).all()
        assert seconds.min() < 0.1
        with pytest.raises(EngineError, match="no input 'y'"):
            process({"y": x})
        assert process({"x": x[:1]})["logits"].shape == (1, 3)


def test_an_engine_that_cannot_be_opened_leaves_no_child(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"this is no model")
    spec = EngineSpec("onnxruntime", "fp32", str(tmp_path / "broken.onnx"), 1)
    with pytest.raises(EngineError, match=r"cannot open .*broken\.onnx"):
        EngineProcess(spec)


def test_timing_before_opening_is_said() -> None:
    with (
        ChildProcess(threads=1) as child,
        pytest.raises(EngineError, match="no engine is open"),
    ):
        child.request("time", 1, 0)
