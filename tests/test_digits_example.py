"""The example's network and data are what its README says. Training itself takes half a minute."""

import importlib.util
import tomllib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from deploy.config import ImageConfig
from deploy.config_reading import make_config
from deploy.inputs.data import check_data, open_data, split_data
from deploy.judging.labels import check_labels
from export.artifacts import TensorSpec

EXAMPLE = Path(__file__).parents[1] / "examples" / "digits"
INPUT = TensorSpec("images", ("batch", 1, 32, 32), "float32")

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("sklearn") is None,
    reason="the example trains on scikit-learn's digits",
)


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    return importlib.import_module("train")


@pytest.fixture
def network(train: ModuleType) -> ModuleType:
    return importlib.import_module("repvgg_digits")


def test_every_block_has_the_branches_that_its_shapes_allow(network: ModuleType) -> None:
    model = network.RepVGGDigits()
    blocks = [block for block in model.modules() if isinstance(block, network.RepVGGBlock)]
    assert len(blocks) == 10
    assert sum(block.bn_identity is not None for block in blocks) == 6
    for block in blocks:
        same = block.conv3.in_channels == block.conv3.out_channels and block.conv3.stride == (1, 1)
        assert (block.bn_identity is not None) == same


def test_network_gives_ten_logits_for_any_batch(network: ModuleType) -> None:
    model = network.RepVGGDigits().eval()
    with torch.inference_mode():
        assert model(torch.zeros(3, 1, 32, 32)).shape == (3, 10)
        assert model(torch.zeros(1, 1, 32, 32)).shape == (1, 10)


def test_saved_module_comes_back_from_its_own_module(network: ModuleType, tmp_path: Path) -> None:
    model = network.RepVGGDigits().eval()
    torch.save(model, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    assert type(loaded).__module__ == "repvgg_digits"
    assert not loaded.training
    x = torch.from_numpy(np.random.default_rng(0).random((2, 1, 32, 32), np.float32))
    with torch.inference_mode():
        assert torch.equal(loaded(x), model(x))


def test_halves_share_no_sample_and_repeat_for_a_seed(train: ModuleType) -> None:
    data = train.load_data()
    assert len(data.test_x) == 600
    assert len(data.train_x) == 1197
    assert data.train_x.shape[1:] == (1, 32, 32)
    train_rows = {row.tobytes() for row in data.train_x.numpy()}
    assert not any(row.tobytes() in train_rows for row in data.test_x.numpy())
    assert torch.equal(data.test_x, train.load_data().test_x)
    assert not torch.equal(data.test_x, train.load_data(seed=1).test_x)


def test_written_data_calibrates_on_training_samples_only(
    train: ModuleType, tmp_path: Path
) -> None:
    data = train.load_data()
    train.write_data(tmp_path / "data.npz", data)
    dataset = open_data(str(tmp_path / "data.npz"), images=ImageConfig(), input_names=["images"])
    check_data(dataset, [INPUT])
    assert dataset.labels is not None
    check_labels(dataset, 10)
    split = split_data(dataset, calibration_samples=256, evaluation_samples=1000, seed=0)
    assert len(split.calibration) == 256
    assert len(split.evaluation) == 600
    held_out = {row.tobytes() for row in data.test_x.numpy()}
    calibration = split.calibration.batch(range(256))["images"]
    assert not any(row.tobytes() in held_out for row in calibration)
    evaluation = split.evaluation.batch(range(600))["images"]
    assert {row.tobytes() for row in evaluation} == held_out


@pytest.mark.thorough
def test_training_repeats_for_a_seed(train: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    data = train.load_data()
    part = train.Digits(data.train_x[:128], data.train_y[:128], data.test_x, data.test_y)
    first = train.train_model(part, epochs=1)
    second = train.train_model(part, epochs=1)
    assert "epoch 1/1" in capsys.readouterr().out
    assert not first.training
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    images, labels = data.test_x[:100], data.test_y[:100]
    assert 0.0 <= train.measure_accuracy(first, images, labels) <= 1.0


def test_options_of_the_example_are_known_options() -> None:
    content = tomllib.loads((EXAMPLE / "pyproject.toml").read_text(encoding="utf-8"))
    config = make_config(content["tool"]["deploy"], where="examples/digits")
    assert config.data == "data.npz"
    assert config.trust == ("repvgg_digits",)
