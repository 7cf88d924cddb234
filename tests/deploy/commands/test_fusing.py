"""`deploy fuse` and `deploy inspect` on files: what is written, what is refused."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from short_files import files_of_at_most
from torch import Tensor, nn
from torch.export import ExportedProgram

from deploy.cli import cli
from deploy.commands.fusing import fuse_file, inspect_file
from deploy.config import BuildConfig
from export.capture.program import contain_noise
from export.errors import ConfigError, DeployError, ExportError


def save(path: Path, seed: int = 0) -> nn.Module:
    """Layers that `torch.nn` defines, so that no trust is asked for."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 1),
        nn.Conv2d(8, 4, 3),
    ).eval()
    torch.save(net, path)
    return net


CONFIG = BuildConfig(inputs=("1x3x9x8",))


def run(*arguments: str) -> tuple[int, str]:
    answer = CliRunner().invoke(cli, arguments)
    if isinstance(answer.exception, DeployError):
        return answer.exception.exit_code, str(answer.exception)
    return answer.exit_code, answer.output


def load(path: Path) -> ExportedProgram:
    """As any user does, whom torch 2.11 tells of a buffer of its own."""
    with contain_noise():
        return torch.export.load(path)


def test_merged_program_computes_what_the_model_does_at_any_batch(tmp_path: Path) -> None:
    net = save(tmp_path / "m.pt")
    result = fuse_file(tmp_path / "m.pt", CONFIG, tmp_path / "fused.pt2")
    assert result.dynamic_batch
    program = load(result.path)
    for batch in (1, 2, 5):
        x: Tensor = torch.randn(batch, 3, 9, 8)
        torch.testing.assert_close(program.module()(x), net(x), rtol=1e-5, atol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "fused.certificate.json",
        "fused.pt2",
        "m.pt",
    ]
    evidence = json.loads(result.certificate_path.read_text())
    assert evidence["schema_version"] == 1
    assert {item["kind"] for item in evidence["fused"]} == {"conv-bn", "sequence"}


def test_a_merged_program_takes_any_size_of_the_ranges_that_were_given(tmp_path: Path) -> None:
    net = save(tmp_path / "m.pt")
    config = BuildConfig(inputs=("1x3x7:9:16x8",))
    program = load(fuse_file(tmp_path / "m.pt", config, tmp_path / "f.pt2").path)
    for height in (7, 9, 16, 11):
        x: Tensor = torch.randn(2, 3, height, 8)
        torch.testing.assert_close(program.module()(x), net(x), rtol=1e-5, atol=1e-5)
    assert (
        inspect_file(tmp_path / "m.pt", config).layers
        == inspect_file(tmp_path / "m.pt", CONFIG).layers
    )


def test_command_prints_the_table_and_where_the_files_are(tmp_path: Path) -> None:
    save(tmp_path / "m.pt")
    out = str(tmp_path / "f.pt2")
    code, text = run("fuse", str(tmp_path / "m.pt"), "--input", "1x3x9x8", "-o", out)
    assert code == 0
    assert "3 layers became 2" in text
    assert "conv3x3(conv1x1(x))" in text
    assert "f.certificate.json" in text
    assert max(map(len, text.splitlines())) <= max(80, len(out) + 40)


def test_inspect_shows_layers_and_what_would_merge_and_writes_nothing(tmp_path: Path) -> None:
    save(tmp_path / "m.pt")
    code, text = run("inspect", str(tmp_path / "m.pt"), "--input", "1x3x9x8")
    assert code == 0
    assert "8x9x8" in text
    assert "5x5" in text  # the receptive field of the last
    assert "1 block merged and 1 norm folded" in text
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt"]
    inspection = inspect_file(tmp_path / "m.pt", CONFIG)
    assert [row.path for row in inspection.layers] == ["0", "1", "3", "4"]


@pytest.mark.parametrize(
    ("output", "words"),
    [("fused.onnx", "name it .pt2"), ("nowhere/fused.pt2", "Make it first")],
)
def test_an_output_that_cannot_be_is_refused_before_anything(
    output: str, words: str, tmp_path: Path
) -> None:
    save(tmp_path / "m.pt")
    with pytest.raises(ConfigError, match=words):
        fuse_file(tmp_path / "m.pt", CONFIG, tmp_path / output)
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt"]


def test_a_disk_without_room_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    save(tmp_path / "m.pt")
    with (
        pytest.raises(ConfigError, match=r"fused.pt2 cannot be written: File too large"),
        files_of_at_most(4000),
    ):
        fuse_file(tmp_path / "m.pt", CONFIG, tmp_path / "fused.pt2")
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt"]


def test_without_inputs_the_command_says_what_to_pass(tmp_path: Path) -> None:
    save(tmp_path / "m.pt")
    code, text = run("fuse", str(tmp_path / "m.pt"))
    assert (code, "--input" in text) == (2, True)


def test_the_shape_may_come_from_the_data(tmp_path: Path) -> None:
    save(tmp_path / "m.pt")
    np.savez(tmp_path / "d.npz", x=np.zeros((4, 3, 9, 8), np.float32))
    code, text = run("inspect", str(tmp_path / "m.pt"), "--data", str(tmp_path / "d.npz"))
    assert code == 0
    assert "8x9x8" in text


def test_a_script_is_refused_with_what_can_be_done(tmp_path: Path) -> None:
    with warnings.catch_warnings():  # torch calls its own TorchScript deprecated
        warnings.simplefilter("ignore")
        script = torch.jit.trace(save(tmp_path / "m.pt"), torch.ones(1, 3, 9, 8))
        torch.jit.save(script, tmp_path / "script.pt")
    code, text = run("inspect", str(tmp_path / "script.pt"), "--input", "1x3x9x8", "--trust-all")
    assert code == 2
    assert "build it as it is with deploy build" in text


def test_a_costly_merge_is_declined_and_done_on_demand(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(nn.Sequential(nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)).eval(), tmp_path / "m.pt")
    config = BuildConfig(inputs=("1x8x6x6",))
    kept = fuse_file(tmp_path / "m.pt", config, tmp_path / "a.pt2").certificate
    assert (kept.model.layers_after, kept.fused) == (2, ())
    assert "it would not pay: 2,304 MACs merged, 1,152 as it is" in kept.skipped[0].reason
    always = BuildConfig(inputs=("1x8x6x6",), merge_always=True)
    merged = fuse_file(tmp_path / "m.pt", always, tmp_path / "b.pt2").certificate
    assert merged.model.layers_after == 1


class Scaled(nn.Module):
    """Scales by the largest value, as a number: captured where bytecode is traced."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * float(x.abs().max())


class Decided(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if x.abs().max() > 1 else self.layer(-x)


def save_own(net: nn.Module, path: Path) -> BuildConfig:
    torch.save(net.eval(), path)
    return BuildConfig(inputs=("1x8",), trust=(__name__,))


def test_a_model_that_goes_by_the_second_way_alone_takes_any_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Scaled()
    config = save_own(net, tmp_path / "m.pt")
    found = inspect_file(tmp_path / "m.pt", config)
    assert not any("batches of exactly" in warning for warning in found.warnings)
    fused = fuse_file(tmp_path / "m.pt", config, tmp_path / "fused.pt2")
    assert fused.dynamic_batch
    program = load(fused.path).module()
    for batch in (1, 5):
        x = torch.randn(batch, 8)
        torch.testing.assert_close(program(x), net(x))


def test_what_goes_by_no_way_is_named_with_what_to_write(tmp_path: Path) -> None:
    config = save_own(Decided(), tmp_path / "m.pt")
    with pytest.raises(ExportError) as refused:
        inspect_file(tmp_path / "m.pt", config)
    assert "(test_fusing.py, line " in str(refused.value)
    assert "return self.layer(x) if x.abs().max() > 1 else" in str(refused.value)
    assert str(refused.value).endswith("by torch.where.")
