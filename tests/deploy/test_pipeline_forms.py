"""`build` of models in every form: several inputs, fixed batches, odd axes, TorchScript, .pt2."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from built_nets import QUICK, Averages, Net, OnlyOne, Recurrent, TwoInputs, Upsampler
from nets import randomize_norms

import deploy
from deploy.config import BuildConfig

pytestmark = pytest.mark.long


@pytest.mark.slow
def test_a_net_that_ends_in_the_mean_of_large_maps_is_not_refused(tmp_path: Path) -> None:
    module = randomize_norms(Upsampler(), seed=2).eval()
    module.bn3.bias.data += 2  # a mean far from 0: its sum is where float32 loses
    bundle = deploy.build(
        module,
        BuildConfig(inputs=("1x8x16x16",), measure_seconds=QUICK),
        output=tmp_path / "net.deploy",
    )
    rows = {row["name"]: row for row in bundle.report()["candidates"]}
    parity = rows["onnxruntime-fp32"]["parity"]
    assert parity["passed"], rows["onnxruntime-fp32"]["reason"]
    assert parity["outputs"][0]["error_float64"] < 8e-7
    assert bundle.winner in ("torch", *rows)


@pytest.mark.thorough
@pytest.mark.usefixtures("onnxruntime_alone")
def test_several_inputs_and_nested_outputs_keep_their_names(tmp_path: Path) -> None:
    module = TwoInputs().eval()
    bundle = deploy.build(
        module,
        BuildConfig(inputs=("ids:1x7:int64:50", "mask:1x7"), measure_seconds=QUICK),
        output=tmp_path / "two.deploy",
    )
    assert [spec.name for spec in bundle.manifest.outputs] == ["states", "pooled.0", "pooled.1"]
    assert bundle.manifest.structure == "dict(states: tensor, pooled: tuple(tensor, tensor))"
    feeds = {
        "ids": np.arange(21, dtype=np.int64).reshape(3, 7),
        "mask": np.ones((3, 7), dtype=np.float32),
    }
    with deploy.load(bundle.path, engine="onnxruntime-fp32") as engine:
        answer = engine(feeds)
    with torch.no_grad():
        expected = module(*(torch.from_numpy(value) for value in feeds.values()))
    np.testing.assert_allclose(answer["states"], expected["states"].numpy(), rtol=0, atol=1e-6)
    np.testing.assert_allclose(answer["pooled.1"], expected["pooled"][1], rtol=0, atol=1e-6)


@pytest.mark.thorough
@pytest.mark.usefixtures("onnxruntime_alone", "real_children")
def test_a_static_batch_is_kept(tmp_path: Path) -> None:
    bundle = deploy.build(
        Net().eval(),
        BuildConfig(inputs=("5x3x16x16",), static_batch=True, measure_seconds=QUICK),
        output=tmp_path / "net.deploy",
    )
    assert bundle.manifest.inputs[0].shape == (5, 3, 16, 16)
    report = bundle.report()
    assert report["measurement"]["batch"] == 5
    assert report["candidates"][0]["parity"]["batches_checked"] == [5]


@pytest.mark.slow
def test_a_model_of_one_batch_size_is_built_for_it_with_a_warning(tmp_path: Path) -> None:
    bundle = deploy.build(
        OnlyOne(),
        BuildConfig(inputs=("1x3x4",), measure_seconds=QUICK),
        output=tmp_path / "one.deploy",
    )
    assert bundle.manifest.inputs[0].shape == (1, 3, 4)
    assert any("batches of exactly 1" in warning for warning in bundle.report()["warnings"])


@pytest.mark.slow
def test_an_output_of_the_size_of_the_traced_batch_is_not_taken_for_a_batch(
    tmp_path: Path,
) -> None:
    bundle = deploy.build(
        Averages(),
        BuildConfig(inputs=("1x6",), measure_seconds=QUICK),
        output=tmp_path / "averages.deploy",
    )
    assert [spec.shape for spec in bundle.manifest.outputs] == [("batch", 4), (2,)]


@pytest.mark.slow
def test_a_batch_that_is_not_the_first_axis_of_an_output_is_still_the_batch(
    tmp_path: Path,
) -> None:
    module = Recurrent().eval()
    bundle = deploy.build(
        module,
        BuildConfig(inputs=("1x5x8",), measure_seconds=QUICK),
        output=tmp_path / "lstm.deploy",
    )
    shapes = [("batch", 5, 16), (1, "batch", 16), (1, "batch", 16)]
    assert [spec.shape for spec in bundle.manifest.outputs] == shapes
    outputs = bundle.report()["model"]["outputs"]
    assert [tuple(output["shape"]) for output in outputs] == shapes
    assert all(result.holds for result in deploy.verify(bundle))
    x = np.random.default_rng(0).standard_normal((7, 5, 8)).astype(np.float32)
    with torch.no_grad():
        _, (expected, _) = module(torch.from_numpy(x))
    for name in ("onnxruntime-fp32", "openvino-fp32"):
        with deploy.load(bundle.path, engine=name) as engine:
            assert [spec.shape for spec in engine.outputs] == shapes
            np.testing.assert_allclose(engine({"x": x})["output_1.0"], expected, rtol=0, atol=1e-6)


@pytest.mark.thorough
@pytest.mark.usefixtures("onnxruntime_alone")
def test_a_torchscript_file_is_built_without_fusion_and_says_so(tmp_path: Path) -> None:
    net = Net().eval()
    path = tmp_path / "net.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.trace(net, torch.zeros(2, 3, 16, 16)), path)
    bundle = deploy.build(
        path, BuildConfig(inputs=("1x3x16x16",), trust=("*",), measure_seconds=QUICK)
    )
    report = bundle.report()
    assert bundle.path == tmp_path / "net.deploy"
    assert report["model"]["form"] == "torchscript"
    assert report["model"]["rung"] == "torchscript"
    assert "TorchScript" in report["model"]["skipped"][0]["reason"]
    x = np.random.default_rng(0).standard_normal((3, 3, 16, 16)).astype(np.float32)
    with deploy.load(bundle.path, engine="onnxruntime-fp32") as engine:
        answer = engine({spec.name: x for spec in engine.inputs})
    expected = net(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(next(iter(answer.values())), expected, rtol=0, atol=2e-5)


@pytest.mark.thorough
@pytest.mark.usefixtures("onnxruntime_alone")
def test_an_exported_program_is_built(tmp_path: Path) -> None:
    net = Net().eval()
    path = tmp_path / "net.pt2"
    batch = torch.export.Dim("batch")
    program = torch.export.export(net, (torch.zeros(2, 3, 16, 16),), dynamic_shapes=({0: batch},))
    torch.export.save(program, path)
    bundle = deploy.build(
        path, BuildConfig(inputs=("1x3x16x16",), trust=("*",), measure_seconds=QUICK)
    )
    report = bundle.report()
    assert report["model"]["form"] == "exported_program"
    assert report["model"]["rung"] == "dynamo"
    assert ["stem", "bn1"] in [item["paths"] for item in report["model"]["fused"]]
    assert report["model"]["fusion"]["layers_before"] >= report["model"]["fusion"]["layers_after"]
