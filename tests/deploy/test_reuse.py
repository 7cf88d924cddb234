"""A bundle is kept where nothing has changed, and built again where anything has."""

import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from deploy.bundle.folder import describe_reuse, read_bundle
from deploy.bundle.manifest import MANIFEST, write_manifest
from deploy.config import BuildConfig
from deploy.measuring.machine import Machine, describe_machine
from deploy.pipeline import build
from deploy.reuse import build_key, data_key, find_built
from deploy.source import Problem, open_problem
from export.errors import BundleError

PACKAGE = """
from torch import nn

class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        return self.linear(x).relu()
"""


LAZY = """
import importlib.util
import sys
from importlib.machinery import SourceFileLoader
from types import ModuleType

class Optional(ModuleType):
    def __getattr__(self, name):
        raise ImportError(f"{self.__name__} is not installed")

class Slots:
    __slots__ = ()
    __module__ = "reusedslots"

optional = sys.modules["reusedoptional"] = Optional("reusedoptional")
loader = importlib.util.LazyLoader(SourceFileLoader("reusedlater", "/nowhere/reusedlater.py"))
later = importlib.util.module_from_spec(importlib.util.spec_from_loader("reusedlater", loader))
sys.modules["reusedlater"] = later
loader.exec_module(later)
slots = sys.modules["reusedslots"] = Slots()
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a package of the user's, ``reusednets``."""
    file = tmp_path / "packages" / "reusednets.py"
    file.parent.mkdir()
    file.write_text(PACKAGE, encoding="utf-8")
    monkeypatch.syspath_prepend(file.parent)
    monkeypatch.delitem(sys.modules, "reusednets", raising=False)
    return file


@pytest.fixture
def config(tmp_path: Path) -> BuildConfig:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", x=rng.standard_normal((40, 4)).astype(np.float32))
    return BuildConfig(
        data=str(tmp_path / "data.npz"), trust=("reusednets",), calibration_samples=8
    )


@pytest.fixture
def problem(package: Path, config: BuildConfig, tmp_path: Path) -> Problem:
    from reusednets import Tiny  # type: ignore[import-not-found]

    torch.manual_seed(0)
    torch.save(Tiny().eval(), tmp_path / "tiny.pt")
    return open_problem(tmp_path / "tiny.pt", config, tmp_path)


@pytest.fixture(scope="module")
def machine() -> Machine:
    return describe_machine()


def test_the_same_build_has_the_same_key(
    problem: Problem, config: BuildConfig, machine: Machine
) -> None:
    key = build_key(problem, config, machine)
    assert key is not None
    assert build_key(problem, config, machine) == key


@pytest.mark.parametrize("option", [{"seed": 1}, {"max_drop": 0.02}, {"effort": "quick"}])
def test_another_option_is_another_build(
    problem: Problem, config: BuildConfig, machine: Machine, option: dict[str, Any]
) -> None:
    assert build_key(problem, replace(config, **option), machine) != build_key(
        problem, config, machine
    )


def test_where_it_is_written_makes_no_other_build(
    problem: Problem, config: BuildConfig, machine: Machine
) -> None:
    other = replace(config, output="elsewhere", remeasure=True, no_cache=True)
    assert build_key(problem, other, machine) == build_key(problem, config, machine)


def test_other_weights_data_or_code_are_another_build(
    problem: Problem, config: BuildConfig, machine: Machine, package: Path
) -> None:
    keys = [build_key(problem, config, machine)]
    package.write_text(PACKAGE.replace("relu", "tanh"), encoding="utf-8")
    keys.append(build_key(problem, config, machine))
    np.savez(Path(str(config.data)), x=np.zeros((40, 4), np.float32))
    keys.append(build_key(problem, config, machine))
    with problem.file.open("ab") as file:
        file.write(b"\0")
    keys.append(build_key(problem, config, machine))
    assert len(set(keys)) == 4
    assert None not in keys


def test_a_function_that_the_classes_use_from_another_file_is_part_of_the_code(
    package: Path, config: BuildConfig, machine: Machine, tmp_path: Path
) -> None:
    package.write_text(
        PACKAGE.replace("from torch", "from reusedops import act\nfrom torch").replace(
            "self.linear(x).relu()", "act(self.linear(x))"
        ),
        encoding="utf-8",
    )
    package.with_name("reusedops.py").write_text(
        "import reuseddeep\n\ndef act(x):\n    return reuseddeep.act(x)\n", encoding="utf-8"
    )
    deep = package.with_name("reuseddeep.py")
    deep.write_text("def act(x):\n    return x.relu()\n", encoding="utf-8")
    from reusednets import Tiny

    torch.save(Tiny().eval(), tmp_path / "tiny.pt")
    problem = open_problem(tmp_path / "tiny.pt", config, tmp_path)
    before = build_key(problem, config, machine)
    assert before is not None
    assert build_key(problem, config, machine) == before
    deep.write_text("def act(x):\n    return x.sigmoid()\n", encoding="utf-8")
    assert build_key(problem, config, machine) != before


def test_modules_that_load_when_they_are_asked_are_not_asked(
    package: Path, config: BuildConfig, machine: Machine, tmp_path: Path
) -> None:
    """What they would load may be missing: packages offer so what only few of their users have."""
    package.write_text(PACKAGE.replace("from torch", "import reusedlazy\nfrom torch"), "utf-8")
    package.with_name("reusedlazy.py").write_text(LAZY, "utf-8")
    from reusednets import Tiny

    torch.save(Tiny().eval(), tmp_path / "tiny.pt")
    try:
        problem = open_problem(tmp_path / "tiny.pt", config, tmp_path)
        assert build_key(problem, config, machine) is not None
    finally:
        for name in ("reusedlazy", "reusedoptional", "reusedlater", "reusedslots"):
            sys.modules.pop(name, None)


def test_a_file_that_the_model_reads_is_part_of_the_build(
    package: Path, config: BuildConfig, machine: Machine, tmp_path: Path
) -> None:
    read = "(Path(__file__).with_name('gain.txt').read_text())"
    package.write_text(
        "from pathlib import Path\n"
        + PACKAGE.replace(".relu()", " * self.gain").replace(
            "nn.Linear(4, 3)", f"nn.Linear(4, 3)\n        self.gain = float{read}"
        )
        + "\ndef make():\n    return Tiny()\n",
        encoding="utf-8",
    )
    gain = package.with_name("gain.txt")
    config = replace(config, model="reusednets:make")
    gain.write_text("2", encoding="utf-8")
    from reusednets import make

    torch.save(make().state_dict(), tmp_path / "tiny.pt")
    keys = []
    for text in ("2", "2", "3"):
        gain.write_text(text, encoding="utf-8")
        keys.append(
            build_key(open_problem(tmp_path / "tiny.pt", config, tmp_path), config, machine)
        )
    assert keys[0] == keys[1] is not None
    assert keys[2] not in (keys[0], None)


def test_a_callable_is_never_taken_for_unchanged() -> None:
    assert data_key(BuildConfig(data="package.module:batches")) is None
    assert data_key(BuildConfig(inputs=("1x4",))) is not None


def test_a_file_added_to_a_folder_is_other_data(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"a")
    before = data_key(BuildConfig(data=str(folder)))
    assert data_key(BuildConfig(data=str(folder))) == before
    (folder / "b.png").write_bytes(b"b")
    assert data_key(BuildConfig(data=str(folder))) != before


def test_a_class_of_a_script_is_never_taken_for_unchanged(
    problem: Problem, config: BuildConfig, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Local(nn.Module):
        """Of no file that could be read again."""

    monkeypatch.setattr(Local, "__module__", "__main__")
    local = replace(problem, module=Local())
    assert build_key(local, config, machine) is None


def test_only_a_sound_bundle_of_that_key_is_found(bundle_path: Path) -> None:
    assert find_built(bundle_path, None) is None
    assert find_built(bundle_path, "0" * 64) is None
    assert find_built(bundle_path.with_name("absent.deploy"), "0" * 64) is None


@pytest.mark.parametrize("option", ["remeasure", "no_cache"])
def test_what_stands_is_not_kept_where_it_is_not_wanted(
    monkeypatch: pytest.MonkeyPatch, bundle_path: Path, option: str
) -> None:
    stands = read_bundle(bundle_path)

    def begin(target: Path) -> Any:
        raise BundleError("built again")

    monkeypatch.setattr("deploy.pipeline.find_built", lambda target, key: stands)
    monkeypatch.setattr("deploy.pipeline.stage_bundle", begin)
    config = BuildConfig(inputs=("1x4",), device="cpu")
    assert build(nn.Linear(4, 3), config, output=bundle_path) is stands
    with pytest.raises(BundleError, match="built again"):
        build(nn.Linear(4, 3), replace(config, **{option: True}), output=bundle_path)


def test_what_is_found_says_of_when_its_times_are(bundle_path: Path) -> None:
    manifest = read_bundle(bundle_path).manifest
    values = {f.name: getattr(manifest, f.name) for f in fields(manifest) if f.name != "files"}
    (bundle_path / MANIFEST).unlink()
    write_manifest(bundle_path, **{**values, "build_key": "k"})
    found = find_built(bundle_path, "k")
    assert found is not None
    assert found.reused
    assert manifest.created == "2026-11-24T03:00:00Z"
    assert "measured on 2026-11-24 03:00 UTC" in describe_reuse(found)
    assert "--remeasure" in describe_reuse(found)
    with (bundle_path / "model.onnx").open("ab") as file:
        file.write(b"\0")
    assert find_built(bundle_path, "k") is None
