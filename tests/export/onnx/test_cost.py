import subprocess
import sys

import onnx
import pytest
import torch
from nets import bottleneck_net
from onnx import TensorProto, helper
from torch import nn

from export import fuse_program, model_cost, to_onnx
from export.artifacts import BATCH, SizeRange, TensorSpec
from export.capture.program import capture
from export.onnx.cost import count_row_bytes

TORCH_FREE = ("artifacts", "onnx.cost", "errors", "optional", "progress")


def export(net, x, path):
    program = fuse_program(capture(net, {"x": x}, keyword=False, dynamic_batch=True)).program
    return to_onnx(program, path / "model.onnx", input_names=["x"], output_names=["y"])


class Sequence(nn.Module):
    """The outputs of a recurrent network at every step."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[0]


def recurrent(kind, **options):
    return Sequence(kind(4, 6, batch_first=True, **options))


CASES = {
    "lstm": (recurrent(nn.LSTM), (5, 4), 5 * 4 * 6 * (4 + 6)),
    "gru both ways": (recurrent(nn.GRU, bidirectional=True), (5, 4), 2 * 5 * 3 * 6 * (4 + 6)),
    "conv": (nn.Conv2d(4, 6, 3, padding=1), (4, 8, 9), 6 * 8 * 9 * 4 * 9),
    "strided": (nn.Conv2d(4, 6, 3, stride=2), (4, 9, 9), 6 * 4 * 4 * 4 * 9),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), (4, 8, 9), 6 * 6 * 7 * 2 * 9),
    "depthwise": (nn.Conv2d(4, 4, 5, groups=4), (4, 8, 9), 4 * 4 * 5 * 25),
    "1d": (nn.Conv1d(4, 6, 3), (4, 8), 6 * 6 * 4 * 3),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2), (4, 5, 6), 4 * 5 * 6 * 6 * 9),
    "linear": (nn.Linear(4, 6), (4,), 24),
    "linear in the middle": (nn.Linear(4, 6), (5, 4), 5 * 24),
}


@pytest.mark.parametrize("name", CASES)
def test_layer_costs_its_closed_form_at_any_batch(tmp_path, name):
    layer, shape, macs = CASES[name]
    model = export(layer, torch.randn(2, *shape), tmp_path)
    parameters = sum(p.numel() for p in layer.parameters())
    for batch in (1, 3):
        cost = model_cost(model, batch=batch)
        assert cost.macs == batch * macs
        state = cost.layers[0].op in ("LSTM", "GRU")  # begins with a zero, which is stored as well
        stored = parameters + state
        assert not state or cost.layers[0].parameters == parameters
        assert cost.parameters == stored
        assert cost.parameter_bytes == 4 * stored


@pytest.mark.thorough
@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_what_follows_an_enlarged_map_of_any_size_is_counted(tmp_path, mode):
    net = nn.Sequential(
        *(nn.Conv2d(3, 4, 1), nn.Upsample(scale_factor=2, mode=mode), nn.Conv2d(4, 4, 1)),
        *(nn.Upsample(scale_factor=1.5, mode=mode), nn.Conv2d(4, 2, 1)),
    )
    sizes = SizeRange(4, 8, 16)
    x = TensorSpec("x", (BATCH, 3, "x_2", 8), "float32", ranges={"x_2": sizes})
    feeds = {"x": torch.randn(2, 3, 8, 8)}
    program = capture(net, feeds, keyword=False, dynamic_batch=True, inputs=(x,))
    model = to_onnx(
        program,
        tmp_path / "model.onnx",
        input_names=["x"],
        output_names=["y"],
        axes={"x": {0: BATCH, 2: "x_2"}},
    )
    cost = model_cost(model, batch=2, axes={"x_2": 6})
    assert [layer.macs for layer in cost.layers] == [
        2 * 6 * 8 * 12,
        2 * 12 * 16 * 16,
        2 * 18 * 24 * 8,
    ]


def test_product_of_two_activations_has_no_parameters(tmp_path):
    class Attention(nn.Module):
        def forward(self, x):
            return torch.softmax(x @ x.transpose(1, 2), -1) @ x

    cost = model_cost(export(Attention(), torch.randn(2, 5, 8), tmp_path))
    assert [(layer.macs, layer.parameters) for layer in cost.layers] == [(200, 0), (200, 0)]
    assert cost.parameters == 0


def test_the_largest_value_of_a_sample_is_found_behind_every_layer(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 7, 3), nn.Upsample(scale_factor=2), nn.Conv2d(7, 2, 1))
    assert count_row_bytes(export(net, torch.randn(2, 3, 11, 9), tmp_path)) == 4 * 7 * 18 * 14
    wide = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(24, 1))
    assert count_row_bytes(export(wide, torch.randn(2, 3, 4, 3), tmp_path)) == 4 * 2 * 4 * 3


@pytest.mark.slow
def test_resnet50_sized_net_has_its_published_cost(tmp_path):
    net = bottleneck_net((3, 4, 6, 3), 64, 1000)
    cost = model_cost(export(net, torch.randn(2, 3, 224, 224), tmp_path))
    assert cost.macs == 4_089_184_256
    folded_away = 26_560  # gamma and beta become one bias
    assert cost.parameters == 25_557_032 - folded_away
    assert [layer.name for layer in cost.layers[:2]] == ["stem.0", "stages.0.0.conv1"]
    assert len(cost.layers) == 54


def test_quantized_weights_count_as_stored():
    weight = helper.make_tensor("w", TensorProto.INT8, [4, 3], [1] * 12)
    scale = helper.make_tensor("s", TensorProto.FLOAT, [], [0.1])
    zero = helper.make_tensor("z", TensorProto.INT8, [], [0])
    graph = helper.make_graph(
        [
            helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wf"]),
            helper.make_node("Gemm", ["x", "wf"], ["y"], name="head", transB=1),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [weight, scale, zero],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    onnx.checker.check_model(proto)
    before = proto.SerializeToString()
    cost = model_cost(proto, batch=2)
    assert (cost.macs, cost.parameters, cost.parameter_bytes) == (24, 12, 12)
    assert (cost.layers[0].name, cost.layers[0].parameters) == ("head", 12)
    assert proto.SerializeToString() == before


def test_torch_is_not_loaded_by_what_is_free_of_it():
    """One after the other in one process, which ends at the first that loads it."""
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    if 'torch' in sys.modules:\n"
        "        sys.exit(f'{name} loads torch')\n"
    )
    names = ["export", *(f"export.{name}" for name in TORCH_FREE)]
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
