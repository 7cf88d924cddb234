"""Both layouts of the inspector's JSON, as NVIDIA documents them."""

import json

import pytest

from export.errors import EngineError
from export.tensorrt.inspection import InspectedLayer, read_inspection


def tensor_10(name: str, kind: str) -> dict[str, object]:
    return {"Name": name, "Location": "Device", "Dimensions": [1, 8, 4, 4], "Format/Datatype": kind}


def tensor_11(name: str, kind: str) -> dict[str, object]:
    layout = "Row major linear format (kLINEAR)"
    return {"Name": name, "Dimensions": [1, 8, 4, 4], "DataType": kind, "Format": layout}


def layers(tensor, kinds: dict[str, str]) -> list[dict[str, object]]:
    """An int8 convolution fused with its Relu, a reformat, a softmax in fp16, shape arithmetic."""
    return [
        {
            "Name": "stem.conv + stem.relu",
            "LayerType": "CaskConvolution",
            "Inputs": [tensor("x", kinds["int8"])],
            "Outputs": [tensor("a", kinds["int8"])],
            "TacticName": "sm80_xmma_fprop",
            "Metadata": "[ONNX Layer: node_conv]\u001e[ONNX Layer: node_relu]",
        },
        {
            "Name": "Reformatting CopyNode for Input Tensor 0 to softmax",
            "LayerType": "Reformat",
            "Inputs": [tensor("a", kinds["int8"])],
            "Outputs": [tensor("b", kinds["fp16"])],
        },
        {
            "Name": "softmax",
            "LayerType": "SoftMax",
            "Inputs": [tensor("b", kinds["fp16"])],
            "Outputs": [tensor("c", kinds["fp32"])],
        },
        {
            "Name": "shape",
            "LayerType": "Shape",
            "Inputs": [tensor("n", kinds["int64"])],
            "Outputs": [tensor("m", kinds["int64"])],
        },
    ]


TEN = {
    "int8": "Thirty-two wide channel vectorized row major Int8 format.",
    "fp16": "Row major linear FP16 format",
    "fp32": "Row major linear FP32",
    "int64": "Int64",
}
ELEVEN = {"int8": "Int8", "fp16": "Half", "fp32": "Float", "int64": "Int64"}


@pytest.mark.parametrize(
    "document",
    [
        {"Layers": layers(tensor_10, TEN), "Bindings": ["x", "c"]},
        {"Layers": layers(tensor_11, ELEVEN), "I/O Tensors": [{"Name": "x", "IOMode": "Input"}]},
    ],
    ids=["TensorRT 10", "TensorRT 11"],
)
def test_both_layouts_say_the_same(document: dict[str, object]) -> None:
    found = read_inspection(json.dumps(document))
    assert found == (
        InspectedLayer(
            "stem.conv + stem.relu",
            "CaskConvolution",
            "int8",
            False,
            ("node_conv", "node_relu"),
            "sm80_xmma_fprop",
        ),
        InspectedLayer(
            "Reformatting CopyNode for Input Tensor 0 to softmax",
            "Reformat",
            "int8",
            True,
            ("Reformatting CopyNode for Input Tensor 0 to softmax",),
        ),
        InspectedLayer("softmax", "SoftMax", "fp16", False, ("softmax",)),
        InspectedLayer("shape", "Shape", "other", False, ("shape",)),
    )


def test_a_product_of_int8_and_half_counts_as_int8_and_bfloat16_is_not_float() -> None:
    gemm = {
        "Name": "gemm",
        "LayerType": "Gemm",
        "Inputs": [tensor_11("x", "Half"), tensor_11("w", "Int8")],
        "Outputs": [tensor_11("y", "Half")],
    }
    add = {**gemm, "Name": "add", "LayerType": "PointWise", "Inputs": [tensor_11("x", "BFloat16")]}
    found = read_inspection(json.dumps({"Layers": [gemm, add]}))
    assert [layer.precision for layer in found] == ["int8", "bf16"]


def test_an_engine_that_tells_names_alone_has_layers_of_unknown_precision() -> None:
    found = read_inspection('{"Layers": ["conv1 + relu1", "Reformatting CopyNode for x"]}')
    assert [(layer.precision, layer.reformat) for layer in found] == [
        ("other", False),
        ("other", True),
    ]
    assert found[0].origins == ("conv1", "relu1")


@pytest.mark.parametrize("document", ["", "[]", "{}", '{"Layers": [3]}', '{"Layers": [{}]}'])
def test_what_is_no_such_document_is_refused(document: str) -> None:
    with pytest.raises(EngineError, match="cannot be read"):
        read_inspection(document)
