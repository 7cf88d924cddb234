"""What a build is given is settled: data under the names of the model, labels with their output."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from deploy.config import BuildConfig
from deploy.judging.layouts import LabelledOutput
from deploy.source import Problem, open_problem, write_module
from export.errors import ConfigError, DataError, LoadError


class Embedding(nn.Module):
    """An embedding before the classes that are made of it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = torch.tanh(self.body(x))
        return {"emb": features, "logits": self.head(features)}


@pytest.fixture
def module() -> nn.Module:
    return Embedding().eval()


def save(folder: Path, module: nn.Module, *, shuffled: bool = False) -> str:
    """Samples with the classes that `module` itself gives them, or with no such classes."""
    x = np.random.default_rng(0).standard_normal((700, 6)).astype(np.float32)
    with torch.no_grad():
        labels = module(torch.from_numpy(x))["logits"].argmax(1).numpy()
    if shuffled:
        labels = np.random.default_rng(1).permutation(labels)
    np.savez(folder / "data.npz", x=x, y=labels)
    return str(folder / "data.npz")


def open_labelled(folder: Path, module: nn.Module, data: str, **options: str) -> Problem:
    return open_problem(module, BuildConfig(data=data, **options), folder)  # type: ignore[arg-type]


def test_labels_are_held_against_the_output_that_they_are_of(
    tmp_path: Path, module: nn.Module
) -> None:
    problem = open_labelled(tmp_path, module, save(tmp_path, module))
    assert problem.labelled == (
        LabelledOutput("logits"),
    )  # and not the embedding, which comes first
    assert (problem.kind, problem.warnings) == ("labelled", ())


class Distance(nn.Module):
    """A model of two inputs, one of which has the name of labels in the data."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (x - y).square().sum(-1)


class Optional(Embedding):
    """A model that takes labels as well, where it is trained."""

    def forward(self, x: Tensor, y: Tensor | None = None) -> dict[str, Tensor]:
        return super().forward(x)


class Renamed(Embedding):
    """A model that calls its only input `y`."""

    def forward(self, y: Tensor) -> dict[str, Tensor]:
        return super().forward(y)


@pytest.mark.parametrize("inputs", [(), ("1x6", "1x6"), ("y:1x6", "x:1x6")])
def test_an_input_called_y_is_fed_with_y(tmp_path: Path, inputs: tuple[str, ...]) -> None:
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal((40, 6)).astype(np.float32) for name in ("x", "y")}
    np.savez(tmp_path / "data.npz", **arrays)  # type: ignore[arg-type]
    config = BuildConfig(data=str(tmp_path / "data.npz"), inputs=inputs)
    problem = open_problem(Distance().eval(), config, tmp_path)
    assert [spec.name for spec in problem.signature.inputs] in (["x", "y"], ["y", "x"])
    assert problem.kind == "unlabelled"
    rows = problem.evaluation.batch(np.arange(3))
    where = [int(np.flatnonzero((arrays["x"] == row).all(1))[0]) for row in rows["x"]]
    np.testing.assert_array_equal(rows["y"], arrays["y"][where])


@pytest.mark.parametrize("kind", [Optional, Renamed])
def test_y_is_labels_where_the_model_does_not_need_it_beside_x(
    tmp_path: Path, module: nn.Module, kind: type[nn.Module]
) -> None:
    other = kind().eval()
    other.load_state_dict(module.state_dict())
    problem = open_labelled(tmp_path, other, save(tmp_path, module))
    assert (problem.kind, problem.labelled) == ("labelled", (LabelledOutput("logits"),))


def test_labels_of_nothing_that_the_model_returns_are_said_to_be(
    tmp_path: Path, module: nn.Module
) -> None:
    problem = open_labelled(tmp_path, module, save(tmp_path, module, shuffled=True))
    assert not problem.labelled
    assert "The labels fit no output better than chance" in problem.warnings[0]


def test_capture_sees_samples_that_differ_where_there_are_data(
    tmp_path: Path, module: nn.Module
) -> None:
    problem = open_labelled(tmp_path, module, save(tmp_path, module))
    traced = problem.trace_feeds()["x"].numpy()
    rows = np.load(tmp_path / "data.npz")["x"]
    assert all(any((sample == row).all() for row in rows) for sample in traced)
    assert len(traced) == 2
    assert not (traced[0] == traced[1]).all()
    one = problem.evaluation.select(np.array([0]))
    assert replace(problem, evaluation=one).trace_feeds()["x"].shape == (2, 6)


def test_samples_that_the_model_fails_on_are_the_datas_error_at_capture(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Embedding(10, 4), nn.Flatten()).eval()
    np.savez(tmp_path / "data.npz", x=np.full((20, 6), 10))
    problem = open_labelled(tmp_path, module, str(tmp_path / "data.npz"))
    with pytest.raises(DataError, match=r"data\.npz: the model itself fails.*index out of range"):
        problem.trace_feeds()


def test_the_output_can_be_named_and_must_be_there(tmp_path: Path, module: nn.Module) -> None:
    data = save(tmp_path, module)
    named = open_labelled(tmp_path, module, data, classes="emb")
    assert named.labelled == (LabelledOutput("emb"),)
    with pytest.raises(ConfigError, match=r"no such output. It has: emb:batchx16:float32, logits"):
        open_labelled(tmp_path, module, data, classes="scores")
    with pytest.raises(ConfigError, match="no such output"):
        open_problem(module, BuildConfig(inputs=("1x6",), classes="scores"), tmp_path)


def test_a_sample_that_the_model_fails_on_while_outputs_are_compared_is_the_datas_error(
    tmp_path: Path,
) -> None:
    class Ids(Embedding):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            if (x > 100).any():
                raise IndexError("index out of range in self")
            return super().forward(x)

    module = Ids().eval()
    x = np.zeros((600, 6), np.float32)
    x[::7] = 1000.0
    np.savez(tmp_path / "data.npz", x=x, y=np.arange(600) % 3)
    with pytest.raises(DataError, match=r"data\.npz.*fails on this batch of .*index out of range"):
        open_labelled(tmp_path, module, str(tmp_path / "data.npz"))


def test_a_folder_of_images_is_gray_for_a_network_of_one_channel(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(4):
        Image.new("RGB", (8, 8), (255, 0, 0)).save(folder / f"{index}.png")
    module = nn.Conv2d(1, 2, 3).eval()
    config = BuildConfig(inputs=("1x1x8x8",), data=str(folder))
    problem = open_problem(module, config, tmp_path)
    batch = problem.evaluation.batch([0])["input"]
    assert batch.shape == (1, 1, 8, 8)
    np.testing.assert_allclose(batch, 0.299, atol=1 / 255)  # the luma of red, ITU-R BT.601
    alone = BuildConfig(data=str(folder), image_mode="gray")
    assert open_problem(module, alone, tmp_path).signature.inputs[0].shape == ("batch", 1, 8, 8)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file that takes nothing")
def test_a_module_that_finds_no_room_is_not_said_to_be_one_that_cannot_be_pickled(
    tmp_path: Path, module: nn.Module
) -> None:
    (tmp_path / "model.pt").symlink_to("/dev/full")
    with pytest.raises(LoadError, match="Embedding cannot be written for engine") as caught:
        write_module(module, tmp_path)
    assert "No space left on device" in str(caught.value)
    assert "set TMPDIR to a folder that has some" in str(caught.value)
