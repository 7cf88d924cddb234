"""Facts of the machine agree with what others say of it, and become JSON."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

import deploy.measuring.machine
from deploy.measuring.machine import describe_machine, installed_versions, usable_cores


def test_facts_agree_with_psutil() -> None:
    machine = describe_machine()
    assert machine.cores == len(psutil.Process().cpu_affinity())
    assert list(machine.affinity) == sorted(psutil.Process().cpu_affinity())
    assert machine.memory_gb == pytest.approx(psutil.virtual_memory().total / 2**30, rel=0.02)
    assert machine.python == platform.python_version()
    assert machine.cpu
    assert machine.load_average >= 0


def test_facts_become_json_and_come_back() -> None:
    facts = describe_machine().as_dict()
    assert json.loads(json.dumps(facts)) == facts


def test_versions_are_those_installed_and_no_others() -> None:
    versions = installed_versions()
    assert versions["numpy"] == importlib.metadata.version("numpy")
    assert versions["onnxruntime"] == importlib.metadata.version("onnxruntime")
    assert all(versions.values())


def test_cores_are_those_this_process_may_use() -> None:
    core = min(os.sched_getaffinity(0))
    code = (
        f"import os; os.sched_setaffinity(0, {{{core}}})\n"
        "from deploy.measuring.machine import usable_cores; print(usable_cores())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"
    assert usable_cores() >= 1


@pytest.mark.parametrize(
    ("text", "cores"), [("150000 100000", 2), ("50000 100000", 1), ("400000 100000", 4)]
)
def test_a_containers_quota_limits_the_cores(tmp_path: Path, text: str, cores: int) -> None:
    file = tmp_path / "cpu.max"
    file.write_text(text)
    assert deploy.measuring.machine._quota_cores(file) == cores


@pytest.mark.parametrize("text", ["max 100000", "", "nonsense"])
def test_no_quota_is_no_limit(tmp_path: Path, text: str) -> None:
    file = tmp_path / "cpu.max"
    file.write_text(text)
    assert deploy.measuring.machine._quota_cores(file) > 10**6
    assert deploy.measuring.machine._quota_cores(tmp_path / "missing") > 10**6
