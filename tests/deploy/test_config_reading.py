"""Options are read exactly, or refused with the option and the fix in the message."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from deploy.config import BuildConfig
from deploy.config_reading import CONFIG_FIELDS, make_config, read_project_options
from export.errors import ConfigError


def project(folder: Path, text: str) -> Path:
    (folder / "pyproject.toml").write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize("key", ["max-drop", "max_drop"])
def test_dashes_and_underscores_are_the_same(key: str) -> None:
    assert make_config({key: 0.05}, where="flags").max_drop == 0.05


@pytest.mark.parametrize("key", ["max-dorp", "maxdrop", "", "MAX-DROP", "images", "__class__"])
def test_unknown_option_lists_every_known_one(key: str) -> None:
    with pytest.raises(ConfigError) as raised:
        make_config({key: 1}, where="pyproject.toml")
    message = str(raised.value)
    assert message.startswith(f"pyproject.toml: unknown option {key!r}")
    for field in dataclasses.fields(BuildConfig):
        assert field.name.replace("_", "-").replace("inputs", "input") in message
    assert "trust-all" in message
    assert raised.value.exit_code == 2


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("threads", "4", "int"),
        ("threads", 4.0, "int"),
        ("threads", True, "int"),
        ("threads", None, "int"),
        ("max-drop", "0.1", "float"),
        ("max-drop", False, "float"),
        ("min-sqnr", "20", "float"),
        ("static-batch", 1, "bool"),
        ("static-batch", "yes", "bool"),
        ("data", 3, "str"),
        ("data", ["a"], "str"),
        ("inputs", [3], "str"),
        ("trust", [["a"]], "str"),
        ("image-mean", ["0.5"], "float"),
        ("image-mean", [True], "float"),
        ("image-crop", 2.5, "int"),
    ],
)
def test_wrong_type_names_the_option_the_type_and_the_value(
    key: str, value: Any, expected: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        make_config({key: value}, where="flags")
    assert f"flags: {key} must be {expected}, not " in str(raised.value)


def test_a_lone_value_becomes_a_list_of_one_and_a_string_is_not_taken_apart() -> None:
    config = make_config({"inputs": "1x3x8x8", "trust": "timm", "image-mean": 1}, where="flags")
    assert config.inputs == ("1x3x8x8",)
    assert config.trust == ("timm",)
    assert config.image_mean == (1.0,)
    assert make_config({"inputs": ["a:1", "b:1"]}, where="flags").inputs == ("a:1", "b:1")


def test_whole_numbers_are_taken_for_floats() -> None:
    config = make_config({"min-sqnr": 30, "measure-seconds": 5}, where="flags")
    assert isinstance(config.min_sqnr, float)
    assert isinstance(config.measure_seconds, float)


def test_none_is_taken_where_it_means_something() -> None:
    assert make_config({"min-sqnr": None, "data": None}, where="flags") == BuildConfig()


def test_fields_are_listed_in_order() -> None:
    assert tuple(field.name for field in dataclasses.fields(BuildConfig)) == CONFIG_FIELDS


def test_project_table_is_read(tmp_path: Path) -> None:
    options = read_project_options(
        project(tmp_path, '[tool.deploy]\nmax-drop = 0.02\nbatch = 8\ninputs = ["1x3", "1x4"]\n')
    )
    assert options == {"max-drop": 0.02, "batch": 8, "inputs": ["1x3", "1x4"]}
    config = make_config(options, where="pyproject.toml")
    assert (config.batch, config.inputs) == (8, ("1x3", "1x4"))


@pytest.mark.parametrize("text", ["", "[tool.ruff]\nline-length = 1\n", "[project]\nname = 'x'\n"])
def test_project_without_the_table_has_no_options(tmp_path: Path, text: str) -> None:
    assert read_project_options(project(tmp_path, text)) == {}


def test_only_the_given_directory_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project(tmp_path, "[tool.deploy]\ntrust = ['*']\n")
    below, beside = tmp_path / "below", tmp_path / "beside"
    below.mkdir()
    beside.mkdir()
    project(beside, "[tool.deploy]\nbatch = 4\n")
    monkeypatch.chdir(tmp_path)
    assert read_project_options(below) == {}
    assert read_project_options(beside) == {"batch": 4}


def test_a_folder_called_pyproject_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").mkdir()
    assert read_project_options(tmp_path) == {}


@pytest.mark.parametrize(
    "content", [b"[tool.deploy\n", b"batch = \n", b"\xff\xfe", b"[tool.deploy]\na = 1\na = 2\n"]
)
def test_damaged_toml_names_the_file_and_the_fix(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "pyproject.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as raised:
        read_project_options(tmp_path)
    assert f"{path} is not valid TOML" in str(raised.value)
    assert "Mend it" in str(raised.value)


@pytest.mark.parametrize(
    "text", ["tool = 3\n", "[tool]\ndeploy = 3\n", "[[tool.deploy]]\nseed=1\n"]
)
def test_a_table_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"pyproject\.toml: tool\.deploy must be a table"):
        read_project_options(project(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "twice"),
    [
        ("max-drop = 0.01\nmax_drop = 0.5\n", "max_drop"),
        ("inputs = '1x3'\ninput = '1x4'\n", "input"),
        ("trust-all = true\ntrust_all = false\n", "trust_all"),
    ],
)
def test_an_option_under_two_of_its_names_is_refused(tmp_path: Path, text: str, twice: str) -> None:
    options = read_project_options(project(tmp_path, f"[tool.deploy]\n{text}"))
    with pytest.raises(ConfigError, match=f"table: '{twice}' is there twice"):
        make_config(options, where="table")


def test_options_go_by_the_names_of_their_flags_too() -> None:
    assert make_config({"input": ["1x3"]}, where="table") == BuildConfig(inputs=("1x3",))
    assert make_config({"output": "out"}, where="table") == BuildConfig(output="out")


@pytest.mark.parametrize("key", ["trust-all", "trust_all"])
def test_trust_all_trusts_all_and_its_absence_takes_nothing_back(key: str) -> None:
    assert make_config({key: True}, where="table").trust == ("*",)
    assert make_config({key: True, "trust": ["timm"]}, where="table").trust == ("*",)
    assert make_config({key: False, "trust": ["timm"]}, where="table").trust == ("timm",)
    with pytest.raises(ConfigError, match=f"table: {key} must be bool"):
        make_config({key: "yes"}, where="table")


def test_what_is_given_goes_over_the_base_and_the_rest_is_kept() -> None:
    base = make_config({"trust-all": True, "seed": 3, "batch": 2}, where="table")
    config = make_config({"trust": ("timm",), "batch": 8}, where="flags", base=base)
    assert config == BuildConfig(trust=("timm",), seed=3, batch=8)


def test_an_unknown_option_is_told_in_the_users_own_spelling(tmp_path: Path) -> None:
    options = read_project_options(project(tmp_path, "[tool.deploy]\nmax-dorp = 1\n"))
    with pytest.raises(ConfigError, match=r"unknown option 'max-dorp'\. Did you mean max-drop\?"):
        make_config(options, where="table")


def test_unreadable_project_file_is_an_error_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project(tmp_path, "")

    def refuse(*_: object, **__: object) -> str:
        raise PermissionError("not yours")

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(ConfigError, match="cannot be read: not yours"):
        read_project_options(tmp_path)


def test_nan_and_infinity_of_toml_are_refused(tmp_path: Path) -> None:
    options = read_project_options(project(tmp_path, "[tool.deploy]\nmin-sqnr = nan\n"))
    with pytest.raises(ConfigError, match="--min-sqnr nan: must be"):
        make_config(options, where="pyproject.toml")


def test_nothing_given_is_the_defaults() -> None:
    assert make_config({}, where="flags") == BuildConfig()


def test_three_batch_sizes_are_the_range_and_the_one_that_is_measured() -> None:
    config = make_config({"batch": "1,2,4"}, where="flags")
    assert (config.batch, config.batches) == (2, ("1,2,4",))
    assert make_config({"batch": "16"}, where="flags") == BuildConfig(batch=16)
    more = make_config({"batch": "1,2,4", "batches": ["8,16,32"]}, where="flags")
    assert more.batches == ("1,2,4", "8,16,32")
    with pytest.raises(ConfigError, match="flags: batch: "):
        make_config({"batch": "1,2"}, where="flags")
