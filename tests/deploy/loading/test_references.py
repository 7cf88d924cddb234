"""An object is found by its dotted name, or the message says what is wrong with the name."""

import sys
from pathlib import Path

import pytest

from deploy.loading.references import import_object
from export.errors import ConfigError


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """The name of an importable package with a module ``nets``; another one for every test."""
    name = f"kit_{abs(hash(request.node.nodeid)):x}"
    (tmp_path / "src" / name).mkdir(parents=True)
    (tmp_path / "src" / name / "__init__.py").write_text("")
    (tmp_path / "src" / name / "nets.py").write_text("def make():\n    return 3\n")
    monkeypatch.syspath_prepend(tmp_path / "src")
    return name


def test_object_is_found(package: str) -> None:
    assert import_object(f"{package}.nets:make", what="--model")() == 3


@pytest.mark.parametrize(
    "reference", ["nets", "nets.make", "nets.py/make", "a/b.py:make", "nets.py:make", "a:", ":b"]
)
def test_malformed(reference: str) -> None:
    with pytest.raises(ConfigError, match=r"package\.module:attribute"):
        import_object(reference, what="--model")


def test_missing_module_is_named() -> None:
    with pytest.raises(ConfigError, match="no module 'no_such_pkg'"):
        import_object("no_such_pkg.nets:make", what="--model")


def test_missing_attribute_lists_close_names(package: str) -> None:
    with pytest.raises(ConfigError, match="Close: make"):
        import_object(f"{package}.nets:mak", what="--model")


@pytest.mark.parametrize(
    ("source", "word"), [("1 / 0", "ZeroDivisionError"), ("import no_such", "no_such")]
)
def test_import_that_raises(tmp_path: Path, package: str, source: str, word: str) -> None:
    (tmp_path / "src" / package / "bad.py").write_text(source)
    with pytest.raises(ConfigError, match=word) as caught:
        import_object(f"{package}.bad:make", what="--model")
    assert caught.value.exit_code == 2


def test_attribute_that_is_imported_late_and_fails(tmp_path: Path, package: str) -> None:
    (tmp_path / "src" / package / "late.py").write_text(
        "def __getattr__(name):\n"
        "    if name == 'make':\n"
        "        raise ModuleNotFoundError('no part make here') from ValueError('no CUDA')\n"
        "    raise AttributeError(name)\n"
    )
    with pytest.raises(ConfigError, match=r"no part make here.*ValueError: no CUDA") as caught:
        import_object(f"{package}.late:make", what="--model")
    assert caught.value.exit_code == 2


def test_working_directory_is_searched_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "colorsys.py").write_text("shadow = True")
    (tmp_path / "only_here_now.py").write_text("value = 5")
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    assert import_object("only_here_now:value", what="--model") == 5
    assert sys.path[-1] == str(tmp_path)
    assert callable(import_object("colorsys:rgb_to_hsv", what="--model"))
