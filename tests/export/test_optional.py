"""What is not installed is asked for by its extra; what is broken keeps its own reason."""

import sys
from pathlib import Path

import pytest

from export.errors import InputError, MissingExtraError
from export.optional import is_installed, require


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder of packages; whatever is imported from it is forgotten afterwards."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.partition(".")[0].startswith("vendor_"):
            del sys.modules[name]


def test_installed_module_is_returned() -> None:
    assert require("json", extra="none") is sys.modules["json"]
    assert require("os.path", extra="none").join("a", "b") == "a/b"


@pytest.mark.parametrize("module", ["vendor_absent", "vendor_absent.part.deeper"])
def test_missing_module_names_the_extra_to_install(module: str) -> None:
    with pytest.raises(MissingExtraError) as raised:
        require(module, extra="trt")
    message = str(raised.value)
    assert "'vendor_absent', which is not installed" in message
    assert "pip install 'deploykit[trt]'" in message
    assert isinstance(raised.value, InputError)
    assert isinstance(raised.value.__cause__, ModuleNotFoundError)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import vendor_dependency", "No module named 'vendor_dependency'"),
        ("raise ImportError('libcudart.so.13: cannot open')", "libcudart.so.13: cannot open"),
        ("raise OSError('libvendor.so: wrong ELF class')", "libvendor.so: wrong ELF class"),
        ("from . import absent", "absent"),
        ("from .absent import name", "vendor_broken.absent"),
    ],
)
def test_installed_but_broken_module_keeps_its_reason(site: Path, code: str, reason: str) -> None:
    package = site / "vendor_broken"
    package.mkdir()
    (package / "__init__.py").write_text(code)
    with pytest.raises(MissingExtraError) as raised:
        require("vendor_broken", extra="rtx")
    message = str(raised.value)
    assert reason in message
    assert "installed and cannot be imported" in message
    assert "deploykit[rtx]" in message


def test_a_bug_inside_a_module_keeps_its_traceback(site: Path) -> None:
    (site / "vendor_buggy.py").write_text("1 / 0")
    with pytest.raises(ZeroDivisionError):
        require("vendor_buggy", extra="trt")


def test_missing_part_of_an_installed_package_is_not_called_uninstalled(site: Path) -> None:
    (site / "vendor_partial").mkdir()
    (site / "vendor_partial" / "__init__.py").write_text("")
    with pytest.raises(MissingExtraError, match=r"cannot be imported.*vendor_partial\.part"):
        require("vendor_partial.part", extra="trt")


def test_is_installed_does_not_import(site: Path) -> None:
    (site / "vendor_quiet.py").write_text("raise RuntimeError('imported')")
    assert is_installed("vendor_quiet")
    assert "vendor_quiet" not in sys.modules
    assert not is_installed("vendor_absent")
    assert not is_installed("vendor_absent.part")


def test_a_folder_of_that_name_is_no_package(site: Path) -> None:
    (site / "vendor_folder").mkdir()
    assert not is_installed("vendor_folder")
    with pytest.raises(MissingExtraError, match="'vendor_folder', which is not installed"):
        require("vendor_folder", extra="trt")
