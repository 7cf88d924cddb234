"""Options are read exactly, or refused with the option and the fix in the message."""

import dataclasses
import math
from pathlib import Path
from typing import Any, get_args

import pytest

from deploy.config import CONFIG_FIELDS, BuildConfig, Observer, make_config, read_project_options
from export.errors import ConfigError
from quantize.observers import AUTO, OBSERVERS


def project(folder: Path, text: str) -> Path:
    (folder / "pyproject.toml").write_text(text, encoding="utf-8")
    return folder


def test_defaults_are_the_gates_of_the_design() -> None:
    config = BuildConfig()
    assert (config.max_drop, config.min_agreement, config.min_sqnr) == (0.01, 0.98, None)
    assert make_config({}, where="flags") == config


def test_observers_are_those_that_calibration_knows() -> None:
    assert get_args(Observer) == (AUTO, *OBSERVERS)
    assert BuildConfig().observer == AUTO


def test_config_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        BuildConfig().seed = 3  # type: ignore[misc]


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


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("inputs", "1x3x8x8"),
        ("trust", "timm"),
        ("trust", ["timm"]),
        ("image_mean", 0.5),
        ("threads", "2"),
        ("threads", None),
        ("max_drop", "0.1"),
        ("static_batch", "no"),
        ("data", Path("x.npz")),
    ],
)
def test_a_config_made_in_python_is_held_to_the_same_types(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')} must be"):
        BuildConfig(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("threads", -1),
        ("batch", 0),
        ("seed", -1),
        ("max_drop", -0.01),
        ("max_drop", 1.0),
        ("max_drop", math.nan),
        ("min_agreement", 1.01),
        ("min_agreement", math.nan),
        ("min_sqnr", math.nan),
        ("min_sqnr", math.inf),
        ("min_sqnr", -math.inf),
        ("measure_seconds", 0.0),
        ("measure_seconds", math.inf),
        ("measure_seconds", math.nan),
        ("calibration_samples", 0),
        ("evaluation_samples", 0),
        ("opset", 17),
        ("opset", 26),
        ("observer", "entropie"),
        ("observer", ["minmax"]),
        ("image_mode", "grey"),
    ],
)
def test_value_out_of_range_names_the_option_and_what_is_taken(name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as raised:
        make_config({name: value}, where="flags")
    message = str(raised.value)
    assert message.startswith(f"--{name.replace('_', '-')} {value}: must be ")
    assert len(message.split("must be ")[1]) > 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("threads", 0),
        ("batch", 1),
        ("max_drop", 0.0),
        ("min_agreement", 0.0),
        ("min_agreement", 1.0),
        ("min_sqnr", 0.0),
        ("opset", 18),
        ("opset", 25),
        ("observer", "percentile"),
    ],
)
def test_the_edge_of_each_range_is_taken(name: str, value: Any) -> None:
    assert getattr(make_config({name: value}, where="flags"), name) == value


def test_image_options_are_one_record() -> None:
    config = BuildConfig(image_resize=256, image_crop=224, image_mean=(0.5,), image_std=(0.2,))
    assert dataclasses.astuple(config.images_for([])) == (256, 224, (0.5,), (0.2,), "rgb")


@pytest.mark.parametrize(
    ("mode", "shapes", "expected"),
    [
        (None, [], "rgb"),
        (None, [(1, 3, 28, 28)], "rgb"),
        (None, [(1, 1, 28, 28)], "gray"),
        (None, [("batch", 1, 28, 28)], "gray"),
        (None, [(1, 1, 28, 28), (1, 4)], "rgb"),
        (None, [(1, 1)], "rgb"),
        ("rgb", [(1, 1, 28, 28)], "rgb"),
        ("gray", [(1, 3, 28, 28)], "gray"),
        ("gray", [], "gray"),
    ],
)
def test_images_are_gray_for_one_channel_unless_the_option_says_otherwise(
    mode: Any, shapes: list[Any], expected: str
) -> None:
    assert BuildConfig(image_mode=mode).images_for(shapes).mode == expected


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


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, (1, 8, 16)),
        ({"batch": 16}, (1, 8, 16)),
        ({"batch": 64}, (1, 64, 64)),
        ({"batch": "1,2,4"}, (1, 2, 4)),
    ],
)
def test_engines_of_tensorrt_take_the_batch_that_is_measured(
    values: dict[str, Any], expected: tuple[int, int, int]
) -> None:
    config = make_config(values, where="here")
    (sizes,) = config.engine_options().batch
    assert (sizes.least, sizes.best, sizes.most) == expected
