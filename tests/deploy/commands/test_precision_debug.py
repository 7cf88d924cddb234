"""A bad layer planted in a net of fifty is found, exactly it, on every engine that can run it."""

import json
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny import Cli, OneFile, write_bundle_of

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))
from samples import labelled_report

from deploy.bundle.folder import Bundle, read_bundle
from deploy.commands.precision_debug import PrecisionFinding, debug_precision
from deploy.config import BuildConfig
from deploy.report.precision import describe_precision
from export.artifacts import TensorSpec
from export.errors import ConfigError, DataError

LAYERS, CHANNELS, SIZE = 50, 16, 6
PLANTED = 23
FEW, PLANTED_IN_FEW = 8, 3


def make_weights(layers: int = LAYERS) -> list[np.ndarray]:
    """[16, 16, 3, 3] each; channel 0 is dead all the way, and layers keep the size of signals."""
    rng = np.random.default_rng(0)
    weights = []
    for _ in range(layers):
        weight = rng.standard_normal((CHANNELS, CHANNELS, 3, 3)).astype(np.float32)
        weight *= np.sqrt(2 / (9 * CHANNELS))
        weight[0] = 0
        weights.append(weight)
    return weights


def make_bundle(weights: list[np.ndarray], target: Path, *, numbers: bool = False) -> Bundle:
    """A chain of convolutions; activations are clipped as ReLU6 does.

    With `numbers` it returns the largest channel of every pixel instead of its activations.
    """
    nodes, tensor = [], "x"
    for number in range(len(weights)):
        name = f"layer{number}"
        nodes.append(
            helper.make_node("Conv", [tensor, f"w{number}"], [f"c{number}"], name, pads=[1] * 4)
        )
        nodes.append(helper.make_node("Relu", [f"c{number}"], [f"r{number}"], f"relu{number}"))
        tensor = f"r{number}"
    shape = ["batch", CHANNELS, SIZE, SIZE]
    kind, sizes, dtype = TensorProto.FLOAT, shape, np.float32
    if numbers:
        nodes.append(helper.make_node("ArgMax", [tensor], ["n"], "argmax", axis=1, keepdims=0))
        tensor, kind, sizes, dtype = "n", TensorProto.INT64, ["batch", SIZE, SIZE], np.int64
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(tensor, kind, sizes)],
        [numpy_helper.from_array(weight, f"w{number}") for number, weight in enumerate(weights)],
    )
    x = np.abs(np.random.default_rng(1).standard_normal((8, *shape[1:]))).astype(np.float32)
    x[:, 0] = 0
    report = labelled_report()
    report["data"]["observer"] = "auto"
    answers = np.zeros((len(x), *sizes[1:]), dtype)
    file = OneFile(
        graph,
        (TensorSpec("x", tuple(shape), "float32"),),
        (TensorSpec(tensor, tuple(sizes), np.dtype(dtype).name),),
        {"x": x},
        {tensor: answers},
    )
    return read_bundle(write_bundle_of(target, file, report=report))


def make_sound(folder: Path) -> Bundle:
    """The chain with no layer that int8 ruins."""
    target = folder / "sound.deploy"
    return read_bundle(target) if target.exists() else make_bundle(make_weights()[:3], target)


def write_data(folder: Path, samples: int = 12) -> Path:
    """Samples without labels."""
    images = np.abs(np.random.default_rng(5).standard_normal((samples, CHANNELS, SIZE, SIZE)))
    images[:, 0] = 0
    np.savez(folder / "data.npz", x=images.astype(np.float32))
    return folder / "data.npz"


@pytest.fixture(scope="module")
def outlier(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """One layer's weights for the dead channel are so large that int8 rounds the others away."""
    weights = make_weights()
    weights[PLANTED][:, 0] = 1e3
    return make_bundle(weights, tmp_path_factory.mktemp("outlier") / "chain.deploy")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The same of few layers, for what is not about finding one of many."""
    weights = make_weights(FEW)
    weights[PLANTED_IN_FEW][:, 0] = 1e3
    return make_bundle(weights, tmp_path_factory.mktemp("small") / "chain.deploy")


@pytest.fixture(scope="module")
def vanishing(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """One layer's weights are below what float16 can hold; its neighbours make up for it."""
    weights = make_weights()
    weights[PLANTED - 1] *= np.float32(1e3)
    weights[PLANTED] *= np.float32(1e-8)
    weights[PLANTED + 1] *= np.float32(1e5)
    return make_bundle(weights, tmp_path_factory.mktemp("vanishing") / "chain.deploy")


@pytest.mark.thorough
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_the_layer_that_int8_ruins_is_named(outlier: Bundle, engine: str) -> None:
    config = BuildConfig(min_sqnr=8.0)
    found = debug_precision(outlier, precision="int8", engine=engine, config=config)
    assert [culprit.where for culprit in found.culprits] == [f"layer{PLANTED}"]
    assert found.complete
    assert found.builds < 12
    assert found.before_db < 2
    assert found.after_db >= 8
    assert found.nodes == LAYERS


@pytest.mark.thorough
def test_the_layer_that_float16_ruins_is_named(vanishing: Bundle) -> None:
    found = debug_precision(vanishing, precision="fp16")
    assert [culprit.node for culprit in found.culprits] == [f"layer{PLANTED}"]
    assert found.complete
    assert found.builds < 12
    assert found.before_db < 2
    assert found.after_db >= found.gate_db == 40


def test_what_holds_its_gate_has_no_culprit(outlier: Bundle) -> None:
    found = debug_precision(outlier, precision="fp16")
    assert found.culprits == ()
    assert found.builds == 1
    assert found.complete
    assert "holds 40.0 dB as it is" in describe_precision(found)


def test_mixes_that_run_out_are_said(small: Bundle) -> None:
    config = BuildConfig(min_sqnr=8.0)
    found = debug_precision(small, precision="int8", config=config, builds=3)
    assert not found.complete
    assert found.builds == 3
    assert "there are more such layers. Raise --builds" in describe_precision(found)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "fp8"}, "choose int8 or fp16"),
        ({"precision": "int8", "engine": "tvm"}, "choose onnxruntime or openvino"),
        ({"precision": "fp16", "engine": "openvino"}, "would find nothing wrong"),
        ({"precision": "int8", "builds": 0}, "at least 1"),
    ],
)
def test_what_cannot_be_looked_at_is_refused(
    outlier: Bundle, options: dict[str, object], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        debug_precision(outlier, **options)  # type: ignore[arg-type]


def test_the_command_names_it_and_writes_it_down(small: Bundle, cli: Cli, tmp_path: Path) -> None:
    given = ("debug", "precision", small.path, "--precision", "int8", "--min-sqnr", "8")
    code, out, _ = cli(*given, "-o", tmp_path / "found.json")
    assert code == 0
    assert f"layer{PLANTED_IN_FEW}" in out
    assert "8.0 dB were asked for" in " ".join(out.split())
    written = json.loads((tmp_path / "found.json").read_text())
    assert [culprit["where"] for culprit in written["culprits"]] == [f"layer{PLANTED_IN_FEW}"]
    code, out, _ = cli(*given, "--builds", "2")
    assert code == 1
    assert "are not reached yet" in " ".join(out.split())


def test_data_of_the_user_calibrates_in_one_part_and_is_compared_on_in_the_other(
    small: Bundle, tmp_path: Path
) -> None:
    config = BuildConfig(min_sqnr=8.0, data=str(write_data(tmp_path)))
    found = debug_precision(small, precision="int8", config=config)
    assert found.samples.startswith("6 samples of ")
    assert "calibrated on 6 other samples" in found.made
    assert [culprit.where for culprit in found.culprits] == [f"layer{PLANTED_IN_FEW}"]


def test_samples_set_apart_alone_calibrate(outlier: Bundle, tmp_path: Path) -> None:
    """They are a tenth as large as what is compared, which ranges of theirs must clip."""
    images = np.load(write_data(tmp_path))["x"]
    found = {}
    for scale in (0.1, 1.0):
        np.savez(tmp_path / "apart.npz", x=images, calibration_x=scale * images)
        config = BuildConfig(data=str(tmp_path / "apart.npz"), min_sqnr=-60.0)
        found[scale] = debug_precision(make_sound(tmp_path), precision="int8", config=config)
    assert found[1.0].before_db > found[0.1].before_db + 10
    assert "calibrated on 12 other samples" in found[1.0].made


@pytest.mark.thorough
def test_int8_is_made_as_the_build_made_it(outlier: Bundle, tmp_path: Path) -> None:
    config = BuildConfig(data=str(write_data(tmp_path, samples=64)))
    shutil.copytree(outlier.path, tmp_path / "made-up.deploy")
    report = labelled_report()
    report["data"] |= {"observer": "minmax", "kind": "synthetic"}
    (tmp_path / "made-up.deploy" / "report.json").write_text(json.dumps(report))
    made_up = replace(outlier, path=tmp_path / "made-up.deploy")
    found, plain = (
        debug_precision(bundle, precision="int8", config=config, builds=1)
        for bundle in (outlier, made_up)
    )
    assert "the observer auto, as in the build, and biases were corrected." in found.made
    assert "minmax, and no bias was corrected; the build had no data." in plain.made
    assert found.before_db > plain.before_db + 3
    assert found.made in describe_precision(found)


def test_int8_of_samples_that_are_made_up_is_said_to_be_another_one(outlier: Bundle) -> None:
    found = debug_precision(outlier, precision="int8", builds=1)
    assert "with the observer minmax and no bias was corrected" in found.made
    assert "the build used auto on data" in found.made
    assert "pass --data" in describe_precision(found)


def test_too_few_samples_for_a_fixed_batch_are_said(outlier: Bundle, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.zeros((12, CHANNELS, SIZE, SIZE), np.float32))
    fixed = (TensorSpec("x", (20, CHANNELS, SIZE, SIZE), "float32"),)
    bundle = replace(outlier, manifest=replace(outlier.manifest, inputs=fixed))
    config = BuildConfig(data=str(tmp_path / "data.npz"))
    with pytest.raises(DataError, match="12 samples do not fill one batch of 20"):
        debug_precision(bundle, precision="int8", config=config)


def test_outputs_that_are_not_finite_are_said() -> None:
    found = PrecisionFinding("a", "fp16", "b", 40.0, -math.inf, 50.0, 9, (), 3, complete=False)
    assert "outputs that are not finite on b" in describe_precision(found)


def test_a_layer_that_int8_ruins_shows_in_class_numbers_too(tmp_path: Path) -> None:
    weights = make_weights(FEW)
    weights[PLANTED_IN_FEW][:, 0] = 1e3
    bundle = make_bundle(weights, tmp_path / "numbers.deploy", numbers=True)
    config = BuildConfig(min_agreement=0.85)
    found = debug_precision(bundle, precision="int8", config=config)
    assert [culprit.where for culprit in found.culprits] == [f"layer{PLANTED_IN_FEW}"]
    assert found.before_equal is not None
    assert found.after_equal is not None
    assert found.before_equal < 0.6 < 0.85 <= found.after_equal
    said = describe_precision(found)
    assert said.startswith(f"int8 in onnxruntime: {found.before_equal:.2%} of class numbers equal")
    assert "20.0 dB and 85% of class numbers equal were asked for" in said
