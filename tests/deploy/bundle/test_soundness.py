"""What a manifest records of inputs and outputs is what the files have, or nothing opens."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from tiny import CLASSES, FEATURES

import deploy
from deploy.bundle.folder import Bundle, read_bundle
from deploy.bundle.manifest import write_manifest
from deploy.commands.verification import verify
from export.artifacts import TensorSpec
from export.errors import BundleError, EngineError

WRONG = {
    "another name": (("other", ("batch", FEATURES), "float32"), "its inputs are x, and other"),
    "another dtype": (("x", ("batch", FEATURES), "float16"), "float32 is not float16"),
    "another rank": (("x", ("batch", 1, FEATURES), "float32"), "2 axes are not 3"),
    "another size": (("x", ("batch", 5), "float32"), "axis 1 is 4, not 5"),
    "a fixed batch": (("x", (2, FEATURES), "float32"), "axis 0 is dynamic (batch), not 2"),
    "an axis of any size": (("x", ("batch", "width"), "float32"), "axis 1 is 4, not dynamic"),
}
WRONG_OUTPUTS = {
    "another name": (("other", ("batch", CLASSES), "float32"), "its outputs are logits, and other"),
    "another dtype": (("logits", ("batch", CLASSES), "int64"), "float32 is not int64"),
    "another rank": (("logits", ("batch",), "float32"), "2 axes are not 1"),
    "another size": (("logits", ("batch", 2), "float32"), "axis 1 is 3, not 2"),
    "an axis of any size": (("logits", ("batch", "n"), "float32"), "axis 1 is 3, not dynamic"),
}
CASES = [
    *(("inputs", *case) for case in WRONG.values()),
    *(("outputs", *case) for case in WRONG_OUTPUTS.values()),
]


def keep_fields(path: Path) -> dict[str, Any]:
    """What the manifest says, without the hashes."""
    manifest = read_bundle(path).manifest
    return {key: value for key, value in vars(manifest).items() if key != "files"}


def rewrite_manifest(path: Path, **fields: object) -> Bundle:
    """A bundle whose manifest says `fields`, with all hashes right."""
    write_manifest(path, **{**keep_fields(path), **fields})
    return read_bundle(path)


@pytest.mark.parametrize(("what", "recorded", "words"), CASES)
def test_a_manifest_that_says_other_than_the_files_is_refused(
    bundle_path: Path, what: str, recorded: tuple[str, tuple[int | str, ...], str], words: str
) -> None:
    bundle = rewrite_manifest(bundle_path, **{what: (TensorSpec(*recorded),)})
    with pytest.raises(BundleError) as refused:
        verify(bundle)
    assert words in str(refused.value)
    assert str(refused.value).startswith(f"{bundle_path}: model.onnx: ")
    if recorded[0] != "other":
        assert str(TensorSpec(*recorded)) in str(refused.value)


@pytest.mark.parametrize("engine", ["onnxruntime-fp32", "openvino-fp32"])
@pytest.mark.parametrize(("recorded", "words"), WRONG.values())
def test_no_engine_opens_a_file_that_takes_something_else(
    bundle_path: Path,
    engine: str,
    recorded: tuple[str, tuple[int | str, ...], str],
    words: str,
) -> None:
    rewrite_manifest(bundle_path, inputs=(TensorSpec(*recorded),))
    with pytest.raises(EngineError) as refused:
        deploy.load(bundle_path, engine=engine)
    assert words in str(refused.value)
    assert str(bundle_path / "model.onnx") in str(refused.value)


@pytest.mark.parametrize(("recorded", "words"), WRONG_OUTPUTS.values())
def test_no_engine_opens_a_file_that_returns_something_else(
    bundle_path: Path, recorded: tuple[str, tuple[int | str, ...], str], words: str
) -> None:
    rewrite_manifest(bundle_path, outputs=(TensorSpec(*recorded),))
    with pytest.raises(EngineError) as refused:
        deploy.load(bundle_path, engine="onnxruntime-fp32")
    assert words in str(refused.value)


@pytest.mark.parametrize("left", ["sizes", "rank"])
def test_what_a_file_leaves_open_of_its_outputs_is_no_difference(
    bundle_path: Path, left: str
) -> None:
    """Exporters cannot infer every size, and the build takes the signature from eager."""
    fields = keep_fields(bundle_path)
    file = bundle_path / "model.onnx"
    model = onnx.load(file)
    kind = model.graph.output[0].type.tensor_type
    if left == "rank":
        kind.ClearField("shape")
    else:
        kind.shape.dim[1].dim_param = "unknown"
    onnx.save(model, file)
    write_manifest(bundle_path, **fields)
    assert all(result.holds for result in verify(read_bundle(bundle_path)))
    with deploy.load(bundle_path, engine="onnxruntime-fp32") as engine:
        assert engine.outputs[0].name == "logits"


def test_the_file_that_an_engine_was_built_from_is_held_too(bundle_path: Path) -> None:
    """An engine of TensorRT is built anew from it."""
    fields = keep_fields(bundle_path)
    other = bundle_path / "tensorrt-fp16" / "model.onnx"
    other.parent.mkdir()
    model = onnx.load(bundle_path / "model.onnx")
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    onnx.save(model, other)
    engine = bundle_path / "tensorrt-fp16" / "model.engine"
    engine.write_bytes(b"plan")
    entry = replace(
        fields["engines"]["onnxruntime-fp32"],
        engine="tensorrt",
        precision="fp16",
        file="tensorrt-fp16/model.engine",
        source="tensorrt-fp16/model.onnx",
        not_run="no NVIDIA GPU",
    )
    fields["engines"] = {**fields["engines"], "tensorrt-fp16": entry}
    write_manifest(bundle_path, **fields)
    with pytest.raises(BundleError, match=r"tensorrt-fp16/model\.onnx: input 'x' was recorded"):
        verify(read_bundle(bundle_path))
