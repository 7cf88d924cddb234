"""The least integer divided by -1 has an answer, as torch gives it, and ends no process."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from export.onnx.division import find_trapping, guard_division
from export.onnx.exporter import to_onnx

RUN = """
import sys
import numpy as np, onnxruntime
feeds = dict(np.load(sys.argv[2]))
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
np.save(sys.argv[3], session.run(None, feeds)[0])
"""


def _run_apart(path: Path, **feeds: np.ndarray) -> np.ndarray:
    """The first answer of ONNX Runtime in a process of its own, which must not end otherwise."""
    given, taken = path.with_name("feeds.npz"), path.with_name("answer.npy")
    np.savez(given, **feeds)
    done = subprocess.run(
        [sys.executable, "-c", RUN, path, given, taken], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.returncode}: {done.stderr}"
    return np.load(taken)


def _model(
    nodes: Sequence[NodeProto], constants: dict[str, np.ndarray] | None = None, kind: str = "INT64"
) -> onnx.ModelProto:
    """A graph of integers a and b, [batch], to c; f is float32."""
    number = getattr(TensorProto, kind)
    graph = helper.make_graph(
        list(nodes),
        "divide",
        [
            helper.make_tensor_value_info("a", number, ["batch"]),
            helper.make_tensor_value_info("b", number, ["batch"]),
            helper.make_tensor_value_info("f", TensorProto.FLOAT, ["batch"]),
        ],
        [helper.make_tensor_value_info("c", number, [None])],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _node(kind: str, inputs: str, output: str, **attributes: object) -> NodeProto:
    return helper.make_node(kind, inputs.split(), [output], name=f"n_{output}", **attributes)


class _Of(nn.Module):
    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.function(a, b)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize(
    "function",
    [lambda a, b: a // b, lambda a, b: a % b, lambda a, b: (a // b) * b + a % b - (b // -1)],
    ids=["quotient", "remainder", "both-and-a-constant"],
)
def test_what_is_exported_answers_as_torch_and_lives(
    function: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype, tmp_path: Path
) -> None:
    module = _Of(function).eval()
    a = torch.tensor([9, -7, 5], dtype=dtype)
    axis = {0: torch.export.Dim("batch", min=2, max=64)}
    program = torch.export.export(module, (a, a.abs()), dynamic_shapes=(axis, axis))
    path = tmp_path / "model.onnx"
    to_onnx(program, path, input_names=["a", "b"], output_names=["c"])
    limits = torch.iinfo(dtype)
    a = torch.tensor([limits.min, limits.max, limits.min, limits.min + 1, -7, 7, 0], dtype=dtype)
    b = torch.tensor([-1, -1, 1, -1, 2, -2, limits.min], dtype=dtype)
    assert _run_apart(path, a=a.numpy(), b=b.numpy()).tolist() == module(a, b).tolist()


@pytest.mark.parametrize("kind", ["INT32", "INT64"])
@pytest.mark.parametrize("operator", ["Div", "Mod"])
def test_no_other_result_changes(operator: str, kind: str) -> None:
    model = _model([_node(operator, "a b", "c")], kind=kind)
    assert guard_division(model) == 1
    onnx.checker.check_model(model, full_check=True)
    random = np.random.default_rng(0)
    dtype = getattr(np, kind.lower())
    a = random.integers(-50, 50, 500).astype(dtype)
    b = random.integers(1, 9, 500).astype(dtype) * random.choice([-1, 1], 500).astype(dtype)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    found = session.run(None, {"a": a, "b": b, "f": np.zeros(500, np.float32)})[0]
    expected = np.trunc(a / b) if operator == "Div" else np.mod(a, b)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        pytest.param([_node("Div", "a k", "c")], {"k": np.array([7, 2])}, id="constant-divisor"),
        pytest.param([_node("Mod", "k b", "c")], {"k": np.array([7, 2])}, id="constant-dividend"),
        pytest.param([_node("Mod", "a b", "c", fmod=1)], {}, id="remainder-of-c"),
        pytest.param(
            [_node("Shape", "f", "s"), _node("Div", "a s", "c")], {}, id="divisor-is-a-size"
        ),
        pytest.param(
            [
                _node("Shape", "f", "s"),
                _node("Add", "s k", "more"),
                _node("Cast", "more", "i", to=TensorProto.INT64),
                _node("Div", "a i", "c"),
            ],
            {"k": np.array([1])},
            id="divisor-is-computed-from-sizes",
        ),
        pytest.param(
            [_node("Max", "b k", "m"), _node("Div", "a m", "c")],
            {"k": np.array([1])},
            id="divisor-is-bounded",
        ),
        pytest.param(
            [_node("Clip", "b k", "m"), _node("Div", "a m", "c")],
            {"k": np.array(1)},
            id="divisor-is-clipped",
        ),
        pytest.param(
            [
                _node("Cast", "a", "i", to=TensorProto.INT8),
                _node("Cast", "i", "j", to=TensorProto.INT64),
                _node("Div", "j b", "c"),
            ],
            {},
            id="dividend-was-narrow",
        ),
        pytest.param(
            [
                _node("Div", "f k", "g"),
                _node("Cast", "g", "c", to=TensorProto.INT64),
            ],
            {"k": np.array([-1], np.float32)},
            id="floats",
        ),
    ],
)
def test_what_cannot_trap_is_left_as_it_is(
    nodes: list[NodeProto], constants: dict[str, np.ndarray]
) -> None:
    model = _model(nodes, constants)
    before = model.SerializeToString()
    assert find_trapping(model) == ()
    assert guard_division(model) == 0
    assert model.SerializeToString() == before


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        pytest.param([_node("Div", "a k", "c")], {"k": np.array([3, -1])}, id="constant-divisor"),
        pytest.param(
            [_node("Div", "k b", "c")], {"k": np.array([-(2**63)])}, id="constant-dividend"
        ),
        pytest.param(
            [_node("Cast", "f", "i", to=TensorProto.INT64), _node("Div", "i b", "c")],
            {},
            id="from-floats",
        ),
        pytest.param(
            [_node("Max", "b k", "m"), _node("Mul", "m m", "n"), _node("Div", "a n", "c")],
            {"k": np.array([1])},
            id="natural-but-may-overflow",
        ),
        pytest.param(
            [_node("Clip", "b _ k", "m"), _node("Div", "a m", "c")],
            {"k": np.array(1)},
            id="clipped-on-the-other-side",
        ),
        pytest.param(
            [_node("Shape", "f", "s"), _node("Sub", "s b", "d"), _node("Div", "a d", "c")],
            {},
            id="difference-of-sizes",
        ),
        pytest.param(
            [
                _node("Equal", "a k", "e"),
                _node("Where", "e one b", "w"),
                _node("Div", "a w", "c"),
            ],
            {"k": np.array([-1]), "one": np.array([1])},
            id="asks-for-another-tensor",
        ),
        pytest.param(
            [
                _node("Cast", "f", "u", to=TensorProto.UINT8),
                _node("Cast", "u", "i", to=TensorProto.INT8),
                _node("Cast", "i", "j", to=TensorProto.INT64),
                _node("Div", "a j", "c"),
            ],
            {},
            id="natural-number-that-wraps",
        ),
        pytest.param(
            [
                _node("Cast", "k", "i", to=TensorProto.INT32),
                _node("Cast", "i", "j", to=TensorProto.INT64),
                _node("Div", "a j", "c"),
            ],
            {"k": np.array([2**32 - 1])},
            id="constant-that-wraps",
        ),
    ],
)
def test_what_may_trap_is_found_and_is_not_after_the_rewrite(
    nodes: list[NodeProto], constants: dict[str, np.ndarray], tmp_path: Path
) -> None:
    for node in nodes:
        node.input[:] = ["" if name == "_" else name for name in node.input]
    model = _model(nodes, constants)
    assert find_trapping(model) == ("n_c",)
    assert guard_division(model) == 1
    assert find_trapping(model) == ()
    onnx.checker.check_model(model, full_check=True)
    assert {"n_c"} <= {node.name for node in model.graph.node}


def test_a_division_in_a_branch_is_guarded(tmp_path: Path) -> None:
    branch = helper.make_graph(
        [_node("Div", "a b", "q")],
        "then",
        [],
        [helper.make_tensor_value_info("q", TensorProto.INT64, [None])],
    )
    other = helper.make_graph(
        [_node("Add", "a b", "q")],
        "else",
        [],
        [helper.make_tensor_value_info("q", TensorProto.INT64, [None])],
    )
    model = _model(
        [
            _node("ReduceMax", "f", "most", keepdims=0),
            _node("Greater", "most zero", "asked"),
            _node("If", "asked", "c", then_branch=branch, else_branch=other),
        ],
        {"zero": np.zeros((), np.float32)},
    )
    assert find_trapping(model) == ("n_q",)
    assert guard_division(model) == 1
    assert find_trapping(model) == ()
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    least, ones = np.full(3, -(2**63)), np.full(3, -1)
    answered = _run_apart(path, a=least, b=ones, f=np.ones(3, np.float32))
    assert answered.tolist() == least.tolist()


def test_a_divisor_that_many_divisions_share_is_replaced_once() -> None:
    model = _model(
        [_node("Div", "a b", "q"), _node("Mod", "a b", "r"), _node("Add", "q r", "c")], {}
    )
    assert guard_division(model) == 2
    kinds = [node.op_type for node in model.graph.node]
    assert kinds == ["Equal", "Where", "Where", "Mul", "Div", "Mod", "Add"]


@pytest.mark.parametrize(
    ("nodes", "constants", "found"),
    [
        ([_node("Div", "a b", "c")], {}, ("n_c",)),
        ([_node("Max", "b k", "m"), _node("Div", "a m", "c")], {"k": np.array([1])}, ()),
        ([_node("Max", "b k", "m"), _node("Div", "a m", "c")], {"k": np.array([0])}, ("n_c",)),
        ([_node("Div", "a k", "c")], {"k": np.array([4, 2])}, ()),
        ([_node("Div", "a k", "c")], {"k": np.array([4, 0])}, ("n_c",)),
        ([_node("Shape", "f", "s"), _node("Mod", "a s", "c")], {}, ()),
    ],
)
def test_divisors_that_may_be_zero(
    nodes: list[NodeProto], constants: dict[str, np.ndarray], found: tuple[str, ...]
) -> None:
    model = _model(nodes, constants)
    guard_division(model)
    assert find_trapping(model, by_zero=True) == found
