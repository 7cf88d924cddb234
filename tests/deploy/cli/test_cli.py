"""The command line: exit codes, messages that hold the fix, plain text in a pipe, Ctrl-C."""

import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import psutil
import pytest
import torch
from rich.console import Console
from samples import labelled_report
from tiny import ROOT, Cli, Lean, answer, draw
from torch import nn

import deploy
import deploy.cli
import deploy.commands.bench
import deploy.commands.verification
from deploy.bundle.folder import read_bundle
from deploy.commands.bench import Bench
from deploy.commands.verification import Verification
from deploy.config import BuildConfig
from deploy.config_reading import CONFIG_FIELDS
from deploy.report.progress import ProgressDisplay
from export.errors import DeployError, EngineError, InputError, TrustError
from export.progress import Progress

pytestmark = pytest.mark.long

COMMANDS = ("build", "bench", "verify", "compare", "doctor")
HEAVY = ("torch", "onnxruntime", "onnx", "numpy", "openvino", "rich", "deploy.pipeline")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.save(nn.Sequential(nn.Linear(4, 3)), tmp_path / "model.pt")
    return tmp_path / "model.pt"


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch, pristine: Path) -> list[BuildConfig]:
    """The configurations that ``deploy build`` was to build with; nothing is built."""
    configs: list[BuildConfig] = []

    def build(model: Path, config: BuildConfig, **rest: object) -> Any:
        configs.append(config)
        return read_bundle(pristine)

    import deploy.pipeline

    monkeypatch.setattr(deploy.pipeline, "build", build)
    return configs


def write_options(text: str) -> None:
    Path("pyproject.toml").write_text(f"[tool.deploy]\n{text}\n")


# --- help and lean start


@pytest.mark.parametrize("command", [None, *COMMANDS])
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_is_shown(cli: Cli, command: str | None, flag: str) -> None:
    code, out, err = cli(*([command] if command else []), flag)
    assert (code, err) == (0, "")
    assert out.startswith("Usage: deploy")
    if command is None:
        assert all(f"\n  {name} " in out for name in COMMANDS)


def test_the_help_of_build_lists_options_under_what_they_are_about(cli: Cli) -> None:
    _, out, _ = cli("build", "--help")
    sections = [block.splitlines() for block in out.split("\n\n")]
    titles = {block[0]: "\n".join(block[1:]) for block in sections if block[0].endswith(":")}
    assert "--data PATH" in titles["Data:"]
    assert "--max-drop FLOAT" in titles["Gates:"]
    assert "--[no-]stripped " in titles["NVIDIA GPUs:"]
    assert "--no-tf32 / --tf32 " in titles["NVIDIA GPUs:"]
    listed = re.findall(r"^  (?:-o, )?--(?:\[no-\])?([a-z0-9-]+)", out, re.MULTILINE)
    assert sorted(listed) == sorted(IN_TOML)  # each once, in one section


def test_debug_offers_no_gate_that_it_does_not_apply(cli: Cli) -> None:
    _, out, _ = cli("debug", "precision", "--help")
    assert "--min-sqnr" in out
    assert not {"--max-drop", "--min-agreement", "--classes"} & {*out.split()}


@pytest.mark.parametrize(("command", "words"), [("build", "N|MIN,OPT,MAX"), ("bench", "N  ")])
def test_a_range_of_batches_is_offered_where_engines_are_built(
    cli: Cli, command: str, words: str
) -> None:
    _, out, _ = cli(command, "--help")
    assert f"  --batch {words}" in out


@pytest.mark.parametrize("group", [(), ("ctl",), ("debug",)])
def test_no_command_is_cut_off_in_the_help(cli: Cli, group: tuple[str, ...]) -> None:
    _, out, _ = cli(*group, "--help")
    listed = out.partition("Commands:\n")[2]
    assert listed
    assert "..." not in listed


@pytest.mark.parametrize("words", [("--help",), ("build", "--help"), ("doctor",)])
def test_a_reader_that_has_gone_is_no_gate_that_failed(words: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "deploy", *words],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_pipe_that_broke_elsewhere_is_no_reader_that_has_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def break_off(**_: object) -> None:
        raise BrokenPipeError(32, "the server has closed the connection")

    monkeypatch.setattr(deploy.cli.cli.commands["doctor"], "callback", break_off)
    with pytest.raises(DeployError, match="the server"):
        deploy.cli.cli(["doctor"], standalone_mode=False)


def test_no_command_shows_the_help_and_is_wrong_use(cli: Cli) -> None:
    code, out, err = cli()
    assert code == 2
    assert "Usage: deploy" in out + err


def test_the_version_is_printed(cli: Cli) -> None:
    code, out, _ = cli("--version")
    assert code == 0
    assert out.startswith("deploy, version 0.")


@pytest.mark.parametrize("arguments", [["--help"], ["build", "--help"], ["bench", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        f"sys.argv = ['deploy', *{arguments!r}]\n"
        "from deploy.cli import main\n"
        "main()\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stderr.strip() == "[]"


def test_every_flag_is_an_option_of_the_configuration() -> None:
    beside = {"model_file", "trust_all", "bundle", "target", "a", "b", "help"}
    beside |= {"url", "token", "engine", "rate", "concurrency", "arrivals", "seconds"}
    beside |= {"connections", "timeout"}  # how a running server is driven
    beside |= {"rebuild", "fallback"}  # what may run in place of an engine that does not
    for command in deploy.cli.cli.commands.values():
        if str(command.name).startswith("export-") or command.name in ("serve", "ctl"):
            continue  # exports and servers have options of their own
        assert isinstance(command, click.Command)
        names = {str(parameter.name) for parameter in command.params}
        assert names - beside <= set(CONFIG_FIELDS)
    build = {str(parameter.name) for parameter in deploy.cli.cli.commands["build"].params}
    assert set(CONFIG_FIELDS) <= build


# --- wrong use: exit 2 and the fix


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["verify", "nothing.deploy"], "nothing.deploy is no bundle: there is no such folder"),
        (["verify", "."], "is no bundle: it has no manifest.json"),
        (["doctor", "nothing.deploy"], "nothing.deploy is no bundle"),
        (["bench", "nothing.deploy"], "nothing.deploy is no bundle"),
        (["bench", "nothing.onnx"], "no such file. Pass a bundle or an ONNX file"),
        (["compare", "nothing.deploy", "other.deploy"], "does not exist. Name the folder of a"),
        (["build", "nothing.pt", "--input", "1x4"], "There is no file nothing.pt"),
        (["build", "nothing.pt"], "There is no file nothing.pt"),
        (["compare", f"{'n' * 300}.json", "b"], "File name too long: "),
        (["build", f"{'n' * 300}.pt"], "File name too long: "),
        (["build"], "Missing argument 'MODEL'"),
        (
            ["debug", "precision", "m.deploy", "--precision", "int8", "-o", "no/it.json"],
            "no/it.json cannot be written: there is no folder",
        ),
        (["compare", "one"], "Missing argument 'B'"),
        (["build", "m.pt", "--surprise"], "No such option"),
        (
            ["bench", "m.deploy", "--batch", "many"],
            "'many' is no range of sizes: write least,best,most",
        ),
        (["bench", "m.deploy", "--batch", "0"], "--batch 0: must be 1 or more"),
        (["bench", "m.deploy", "--threads", "-1"], "--threads -1: must be 0"),
        (["bench", "m.deploy", "--measure-seconds", "0"], "must be more than 0"),
        (["build", "m.pt", "--opset", "11"], "--opset 11: must be 18 to 25"),
        (["build", "m.pt", "--max-drop", "5"], "a fraction, such as 0.01"),
        (["build", "m.pt", "--observer", "guess"], "'guess' is not one of"),
        (["surprise"], "No such command 'surprise'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_use_is_exit_2_with_the_fix(cli: Cli, arguments: list[str], words: str) -> None:
    code, out, err = cli(*arguments)
    assert code == 2
    assert words in err
    assert out == ""
    assert "Traceback" not in err


@pytest.mark.parametrize("text", ["1x", "axb", "1x4:floaty", "1x0", "", "x:1x4:int64:5:6"])
def test_a_bad_input_is_quoted_with_an_example(cli: Cli, model: Path, text: str) -> None:
    code, _, err = cli("build", model, "--input", text)
    assert code == 2
    assert f"--input {text!r}" in err
    assert "1x3x224x224" in err


def test_build_without_inputs_names_both_ways_to_give_them(cli: Cli, model: Path) -> None:
    code, _, err = cli("build", model)
    assert code == 2
    assert "--input" in err
    assert "--data" in err
    assert sorted(file.name for file in model.parent.iterdir()) == ["cwd", "model.pt"]


def test_an_output_that_is_no_bundle_is_left_alone(cli: Cli, model: Path) -> None:
    Path("site").mkdir()
    Path("site/index.html").write_text("mine")
    code, _, err = cli("build", model, "--input", "1x4", "--output", "site")
    assert code == 2
    assert "is no bundle; it is left alone. Choose another --output" in err
    assert Path("site/index.html").read_text() == "mine"


def test_a_changed_bundle_is_exit_2(cli: Cli, bundle_path: Path) -> None:
    (bundle_path / "model.onnx").write_bytes(b"changed")
    for command in ("verify", "doctor", "bench"):
        code, _, err = cli(command, bundle_path)
        assert code == 2
        assert "model.onnx was changed after the build" in err


def test_control_characters_of_a_message_do_not_reach_the_terminal(cli: Cli) -> None:
    code, _, err = cli("verify", "evil\x1b[2J.deploy")
    assert code == 2
    assert "\x1b" not in err
    assert "evil\\x1b[2J.deploy" in err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max-dorp = 1", ["unknown option 'max-dorp'. Did you mean max-drop?"]),
        ("sead = 1", ["unknown option 'sead'", "Known:", "seed", "min-sqnr", "pyproject.toml"]),
        ("seed = 'x'", ["seed must be int, not 'x'"]),
        ("seed = true", ["seed must be int, not True"]),
        ("seed = ", ["is not valid TOML"]),
    ],
)
def test_bad_project_options_are_exit_2(cli: Cli, text: str, words: list[str]) -> None:
    write_options(text)
    code, _, err = cli("doctor")
    assert code == 2
    for word in words:
        assert word in err


# --- options


@pytest.mark.usefixtures("built")
def test_a_flag_stands_over_the_project_and_that_over_the_default(
    cli: Cli, built: list[BuildConfig]
) -> None:
    write_options('seed = 5\nmax-drop = 0.2\nbatch = 4\ninputs = ["1x9"]\ntrust = ["nets"]')
    code, _, _ = cli("build", "m.pt", "--seed", "0", "--max-drop", "0", "--input", "1x4")
    assert code == 0
    config = built[0]
    assert (config.seed, config.max_drop, config.inputs) == (0, 0.0, ("1x4",))
    assert (config.batch, config.trust, config.opset) == (4, ("nets",), 20)


def test_every_flag_reaches_the_configuration(cli: Cli, built: list[BuildConfig]) -> None:
    flags = (
        "--input a:1x4 --input b:1x4 --data d.npz --model nets:make --trust p --trust q "
        "--calibration-samples 3 --evaluation-samples 4 --observer percentile --image-resize 5 "
        "--image-crop 6 --image-mean .1 --image-mean .2 --image-std .3 --image-mode gray "
        "--classes logits --max-drop .4 "
        "--min-sqnr 7 --min-agreement .5 --threads 8 --batch 9 --measure-seconds 10 --seed 11 "
        "--static-batch --merge-always --opset 21 --golden-from-data --output out.deploy"
    )
    assert cli("build", "m.pt", *flags.split())[0] == 0
    assert built == [
        BuildConfig(
            inputs=("a:1x4", "b:1x4"),
            data="d.npz",
            model="nets:make",
            trust=("p", "q"),
            static_batch=True,
            merge_always=True,
            calibration_samples=3,
            evaluation_samples=4,
            seed=11,
            image_resize=5,
            image_crop=6,
            image_mean=(0.1, 0.2),
            image_std=(0.3,),
            image_mode="gray",
            classes="logits",
            observer="percentile",
            max_drop=0.4,
            min_sqnr=7.0,
            min_agreement=0.5,
            threads=8,
            batch=9,
            measure_seconds=10.0,
            opset=21,
            golden_from_data=True,
            output="out.deploy",
        )
    ]


IN_TOML = {
    "input": '["a:1x4", "b:1x4"]',
    "data": '"d.npz"',
    "model": '"nets:make"',
    "trust": '["p", "q"]',
    "trust-all": "true",
    "image-input": '["image:mean=0.5:std=0.25"]',
    "static-batch": "true",
    "merge-always": "true",
    "calibration-samples": "3",
    "evaluation-samples": "4",
    "seed": "11",
    "image-resize": "5",
    "image-crop": "6",
    "image-mean": "[0.5, 0.25]",
    "image-std": "[0.5]",
    "image-mode": '"gray"',
    "classes": '"logits"',
    "observer": '"percentile"',
    "max-drop": "0.5",
    "min-sqnr": "7.5",
    "min-agreement": "0.5",
    "threads": "8",
    "batch": "9",
    "batches": '["1,4,8"]',
    "target": '"cuda"',
    "device": '"cpu"',
    "compute-capability": '["SM75", "SM89"]',
    "workspace-mb": "64",
    "optimization-level": "2",
    "no-tf32": "true",
    "plugin": '["ours.so"]',
    "refittable": "true",
    "stripped": "true",
    "version-compatible": "true",
    "hardware-compatible": "true",
    "measure-seconds": "10.5",
    "opset": "21",
    "effort": '"quick"',
    "recover": '["bias", "fallback"]',
    "remeasure": "true",
    "no-cache": "true",
    "golden-from-data": "true",
    "output": '"out.deploy"',
}
"""Every option of ``deploy build`` as ``[tool.deploy]`` has it."""


def test_no_option_of_build_is_missing_below() -> None:
    options = deploy.cli.cli.commands["build"].params
    flags = {option.opts[-1] for option in options if isinstance(option, click.Option)}
    assert flags - {"--help"} == {f"--{name}" for name in IN_TOML}


@pytest.mark.parametrize("name", IN_TOML)
def test_an_option_has_the_same_effect_from_the_project_as_from_its_flag(
    cli: Cli, built: list[BuildConfig], name: str
) -> None:
    value = tomllib.loads(f"it = {IN_TOML[name]}")["it"]
    values = value if isinstance(value, list) else [value]
    words = [w for v in values for w in ((f"--{name}",) if v is True else (f"--{name}", v))]
    assert cli("build", "m.pt", *words)[0] == 0
    for key in (name, name.replace("-", "_")):
        write_options(f"{key} = {IN_TOML[name]}")
        assert cli("build", "m.pt")[0] == 0
    flag, dashes, underscores = built
    assert flag == dashes == underscores != BuildConfig()


SWITCHES = [name for name, value in IN_TOML.items() if value == "true" and name != "trust-all"]


@pytest.mark.parametrize("name", SWITCHES)
def test_the_command_line_turns_off_what_the_project_has_turned_on(
    cli: Cli, built: list[BuildConfig], name: str
) -> None:
    off = name.removeprefix("no-") if name.startswith("no-") else f"no-{name}"
    write_options(f"{name} = true")
    assert cli("build", "m.pt")[0] == cli("build", "m.pt", f"--{off}")[0] == 0
    on, without = built
    assert on != BuildConfig() == without


def test_trust_all_is_every_package(cli: Cli, built: list[BuildConfig]) -> None:
    cli("build", "m.pt", "--input", "1x4", "--trust", "p", "--trust-all")
    assert built[0].trust == ("*",)


def test_verify_passes_threads_and_trust_on(
    cli: Cli, pristine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []

    def verify(bundle: object, **options: Any) -> tuple[()]:
        seen.append(options)
        return ()

    monkeypatch.setattr(deploy.commands.verification, "verify", verify)
    assert cli("verify", pristine, "--threads", "3", "--trust", "nets")[0] == 0
    assert (seen[0]["threads"], seen[0]["trust"], seen[0]["data"]) == (3, ("nets",), None)


# --- gates: exit 0 and 1


def write_report(path: Path, factor: float = 1.0) -> Path:
    report = labelled_report()
    for candidate in (c for c in report["candidates"] if c["latency"]):
        times = candidate["latency"]
        for key in ("p50_ms", "p90_ms", "p99_ms"):
            times[key] *= factor
            times[f"{key[:3]}_ci95"] = [end * factor for end in times[f"{key[:3]}_ci95"]]
        times["speedup"] /= factor
        times["speedup_ci95"] = [end / factor for end in times["speedup_ci95"]]
    path.write_text(json.dumps(report))
    return path


@pytest.mark.parametrize(("factor", "expected"), [(1.0, 0), (2.0, 1), (0.5, 0)])
def test_compare_is_1_on_a_regression_only(
    cli: Cli, tmp_path: Path, factor: float, expected: int
) -> None:
    a, b = write_report(tmp_path / "a.json"), write_report(tmp_path / "b.json", factor)
    code, out, err = cli("compare", a, b)
    assert (code, err) == (expected, "")
    assert out


def test_verify_of_a_sound_bundle_is_0(cli: Cli, pristine: Path) -> None:
    code, out, _ = cli("verify", pristine)
    assert code == 0
    assert out.count("same") == 3


def test_verify_is_1_where_an_engine_is_worse(
    cli: Cli, pristine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replay = deploy.commands.verification._replay

    def differ(bundle: Any, spec: Any, golden: Any) -> Verification:
        result = replay(bundle, spec, golden)
        return replace(result, golden="off by 3") if "int8" in spec.name else result

    monkeypatch.setattr(deploy.commands.verification, "_replay", differ)
    code, out, _ = cli("verify", pristine)
    assert code == 1
    assert out.count("DIFFERS") == 1
    assert "onnxruntime-int8: off by 3" in out


def test_an_engine_error_is_1_and_a_bug_keeps_its_traceback(
    cli: Cli, tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(error: Exception) -> Any:
        def bench(*args: object, **options: object) -> Bench:
            raise error

        return bench

    for error, expected in (
        (EngineError("e"), 1),
        (InputError("i"), 2),
        (KeyboardInterrupt(), 130),
    ):
        monkeypatch.setattr(deploy.commands.bench, "bench_onnx", fail(error))  # type: ignore[arg-type]
        assert cli("bench", tiny_onnx)[0] == expected
    monkeypatch.setattr(deploy.commands.bench, "bench_onnx", fail(ZeroDivisionError("a bug")))
    with pytest.raises(ZeroDivisionError, match="a bug"):
        cli("bench", tiny_onnx)


@pytest.mark.parametrize("command", ["verify", "doctor"])
def test_an_engine_that_is_not_trusted_is_2_with_the_command_that_works(
    cli: Cli, torch_bundle: Path, command: str
) -> None:
    code, out, err = cli(command, torch_bundle)
    assert code == 2
    assert "not trusted" in out
    assert "DIFFERS" not in out
    assert "Not verified: torch. Every other engine repeats its answers." in " ".join(out.split())
    assert "tinynets.Tiny" in err
    shown = shlex.split(err.splitlines()[-1])
    assert shown == ["deploy", command, str(torch_bundle), "--trust", "tinynets"]
    code, out, err = cli(*shown[1:])
    assert (code, err.count("Error")) == (0, 0)
    assert "not trusted" not in out


def test_bench_measures_the_engines_that_need_no_trust(cli: Cli, torch_bundle: Path) -> None:
    code, out, _ = cli("bench", torch_bundle, "--measure-seconds", 0.3)
    assert code == 0
    table, _, reason = out.partition("torch: not run: ")
    for name in ("onnxruntime-fp32", "onnxruntime-int8", "openvino-fp32"):
        assert name in table
    assert re.search(r"onnxruntime-fp32\s.*\n\s*baseline", table)
    assert "tinynets.Tiny" in reason
    shown = shlex.split(reason.splitlines()[1])
    assert shown[-2:] == ["--trust", "tinynets"]
    code, out, _ = cli(*shown[1:])
    assert code == 0
    assert "not run" not in out
    assert re.search(r"torch\s.*\n\s*baseline", out)


def test_load_of_an_untrusted_winner_says_how_python_gives_the_trust(torch_bundle: Path) -> None:
    with pytest.raises(TrustError, match=r'tinynets\.Tiny.*trust=\("tinynets",\)'):
        deploy.load(torch_bundle)
    with deploy.load(torch_bundle, trust=("tinynets",)) as engine:
        x = draw(2)
        np.testing.assert_allclose(engine({"x": x})["logits"], answer(x), atol=1e-5)


def test_doctor_is_0_without_a_bundle(cli: Cli) -> None:
    code, out, _ = cli("doctor")
    assert code == 0
    assert "onnxruntime" in out


# --- without torch


def test_build_without_torch_says_what_to_install(lean: Lean, model: Path) -> None:
    done = lean("-m", "deploy", "build", model, "--input", "1x4")
    assert done.returncode == 2
    assert "pip install 'deploykit[build]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_python_build_without_torch_says_what_to_install(lean: Lean) -> None:
    done = lean("-c", "import deploy; deploy.build")
    assert "pip install 'deploykit[build]'" in done.stderr


def test_compare_needs_no_torch(lean: Lean, tmp_path: Path) -> None:
    a, b = write_report(tmp_path / "a.json"), write_report(tmp_path / "b.json", 2.0)
    done = lean("-m", "deploy", "compare", a, b)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout
    assert "\x1b" not in done.stdout


@pytest.mark.thorough
def test_bench_needs_no_torch_and_is_plain_in_a_pipe(lean: Lean, pristine: Path) -> None:
    done = lean("-m", "deploy", "bench", pristine, "--measure-seconds", "0.5", "--threads", "1")
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    assert re.search(r"onnxruntime-fp32 .* baseline", text)
    assert "openvino-fp32: not run: openvino is not installed: pip install" in text
    assert "A/A control" in text
    assert "\x1b" not in done.stdout + done.stderr
    assert "measure latency" in done.stderr
    assert len(done.stderr.splitlines()) < 5


# --- progress


def test_progress_shows_brackets_as_they_are_on_a_terminal() -> None:
    stream = io.StringIO()
    with ProgressDisplay(Console(file=stream, force_terminal=True, width=120)) as display:
        display(Progress("check [/bold]", 1, 4, "layers[/0].conv"))
        display(Progress("measure", 0, 0))
    assert "layers[/0].conv" in stream.getvalue()


def test_a_stage_of_unknown_length_ends_when_the_next_begins() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=90, color_system=None)
    with ProgressDisplay(console) as display:
        display(Progress("load"))
        display(Progress("pack"))
    last = stream.getvalue().rpartition("load")[2]
    assert "1/1" in last
    assert "0/?" not in last


def test_a_stage_that_was_done_sooner_ends_and_one_beside_the_next_goes_on() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=90, color_system=None)
    with ProgressDisplay(console) as display:
        display(Progress("build fp16", 83, 100))
        display(Progress("build int8", 10, 100))
        display(Progress("build fp16", 90, 100))
        beside = [task.finished for task in display._bars.tasks]
        display(Progress("check"))
        after = [task.finished for task in display._bars.tasks]
    assert (beside, after) == ([False, False], [True, True, False])
    assert "90/90" in stream.getvalue().rpartition("build fp16")[2]


def test_counts_and_times_are_whole_on_a_narrow_terminal() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=80, color_system=None)
    with ProgressDisplay(console) as display:
        display(Progress("build tensorrt_rtx-fp16", 256, 1000, "network.blocks.1.0.conv_pw " * 3))
    last = stream.getvalue().rpartition("build tensorrt_rtx-fp16")[2]
    assert "256/256 0:00:00 0:00:00 network" in last
    assert max(map(len, last.splitlines())) <= 80


def test_progress_is_one_line_a_stage_elsewhere() -> None:
    stream = io.StringIO()
    with ProgressDisplay(Console(file=stream)) as display:
        for done in range(50):
            display(Progress("check", done, 50, "[/x]"))
        display(Progress("measure", 0, 0))
    lines = stream.getvalue().splitlines()
    assert [line.split("] ")[1] for line in lines] == ["check", "measure"]


# --- Ctrl-C


def _heed_interrupts() -> None:
    """A suite that runs in the background may be told to ignore them, and its children with it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def running(tiny_onnx: Path, tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [sys.executable, "-m", "deploy", "bench", str(tiny_onnx), "--measure-seconds", "60"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
        preexec_fn=_heed_interrupts,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.thorough
@pytest.mark.parametrize(("group", "early"), [(True, False), (False, False), (True, True)])
def test_ctrl_c_is_130_and_leaves_no_child(
    running: "subprocess.Popen[str]", group: bool, early: bool
) -> None:
    assert running.stderr is not None
    parent, end = psutil.Process(running.pid), time.monotonic() + 60
    while not (children := parent.children(recursive=True)) and time.monotonic() < end:
        time.sleep(0.01)
    if not early:
        assert "measure latency" in running.stderr.readline()
        children = parent.children(recursive=True)
        assert len(children) >= 3
    if group:
        os.killpg(running.pid, signal.SIGINT)  # as a terminal does
    else:
        running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=240)
    assert running.returncode == 130
    assert "Interrupted. What was there before is as it was." in err
    assert "Traceback" not in err
    assert out == ""
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []


def test_the_installed_command_is_this_one(pristine: Path) -> None:
    command = shutil.which("deploy", path=str(Path(sys.executable).parent))
    if command is None:
        pytest.skip("the deploy command is not installed beside this Python")
    done = subprocess.run(
        [command, "verify", str(pristine.parent / "nothing")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "is no bundle" in done.stderr
