"""Any call becomes one of named flat tensors and back; a model that fails says on what."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from nets import KeywordOnly, Returning
from torch import Tensor, nn

from export.artifacts import BATCH, TensorSpec
from export.capture.parameters import name_inputs
from export.capture.signature import (
    CallSignature,
    describe_call,
)
from export.errors import InputError

A, B, C = torch.zeros(2, 3), torch.ones(2, 4), torch.full((2,), 2.0)


@pytest.mark.parametrize(
    ("keys", "names"),
    [
        (("x", "score"), ("x_out", "score")),
        (("x", "x_out"), ("x_out2", "x_out")),
        (("y", "x"), ("y_out", "x_out")),
    ],
)
def test_an_output_called_as_an_input_has_a_name_of_its_own(
    keys: tuple[str, str], names: tuple[str, str]
) -> None:
    module = Returning(lambda x, y: dict(zip(keys, (x, y), strict=True)))
    feeds = {"x": A, "y": B}
    signature = describe_call(module, feeds, keyword=False, dynamic_batch=True)
    assert tuple(spec.name for spec in signature.outputs) == names
    outputs = signature.call(module, feeds)
    assert all(torch.equal(outputs[n], value) for n, value in zip(names, (A, B), strict=True))


def call(signature: CallSignature, module: nn.Module, **feeds: Tensor) -> dict[str, Tensor]:
    return signature.call(module, feeds)


@pytest.mark.parametrize("keyword", [False, True])
def test_positional_and_keyword_calls_give_the_same(keyword: bool) -> None:
    module = Returning(lambda x, y: {"difference": x - y, "sum": (x + y,)})
    x, y = torch.randn(2, 3), torch.randn(2, 3)
    signature = describe_call(module, {"x": x, "y": y}, keyword=keyword, dynamic_batch=True)
    assert signature.keyword is keyword
    assert [spec.name for spec in signature.outputs] == ["difference", "sum.0"]
    found = call(signature, module, y=y, x=x)  # the order of the feeds does not count
    torch.testing.assert_close(found["difference"], x - y, rtol=0, atol=0)
    torch.testing.assert_close(found["sum.0"], x + y, rtol=0, atol=0)
    assert signature.args({"x": x, "y": y}) == (() if keyword else (x, y))
    assert list(signature.kwargs({"x": x, "y": y})) == (["x", "y"] if keyword else [])


def test_keyword_only_parameter_is_called_by_name() -> None:
    feeds = {"x": torch.ones(2, 3), "mask": torch.zeros(2, 3)}
    names, keyword = name_inputs(KeywordOnly(), ["x", "mask"])
    signature = describe_call(KeywordOnly(), feeds, keyword=keyword, dynamic_batch=True)
    assert tuple(spec.name for spec in signature.inputs) == names
    assert not signature.call(KeywordOnly(), feeds)["output"].any()


def test_leading_axes_of_the_batch_are_dynamic_and_others_are_not() -> None:
    module = Returning(lambda x, y: (x, x.T, x.sum(), x[0], y.long()))
    feeds = {"x": torch.zeros(5, 3), "y": torch.zeros(5, 5)}
    signature = describe_call(module, feeds, keyword=False, dynamic_batch=True)
    assert signature.inputs == (
        TensorSpec("x", (BATCH, 3), "float32"),
        TensorSpec("y", (BATCH, 5), "float32"),
    )
    assert [spec.shape for spec in signature.outputs] == [
        (BATCH, 3),
        (3, 5),
        (),
        (3,),
        (BATCH, 5),
    ]
    assert signature.outputs[-1].dtype == "int64"


def test_static_batch_and_inputs_of_unequal_length_keep_their_sizes() -> None:
    module = Returning(lambda x, y: x)
    same = {"x": torch.zeros(5, 3), "y": torch.zeros(5, 3)}
    unequal = {"x": torch.zeros(5, 3), "y": torch.zeros(2, 3)}
    for feeds, dynamic in ((same, False), (unequal, True)):
        signature = describe_call(module, feeds, keyword=False, dynamic_batch=dynamic)
        assert signature.outputs[0].shape == (5, 3)
        assert not any(spec.has_dynamic_batch for spec in signature.inputs)


def test_a_scalar_input_does_not_count_for_the_batch() -> None:
    module = Returning(lambda x, y: x * y)
    feeds = {"x": torch.zeros(5, 3), "y": torch.tensor(2.0)}
    signature = describe_call(module, feeds, keyword=False, dynamic_batch=True)
    assert [spec.shape for spec in signature.inputs] == [(BATCH, 3), ()]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int8, torch.bool])
def test_dtypes_have_numpys_names(dtype: torch.dtype) -> None:
    feeds = {"x": torch.zeros(2, 3, dtype=dtype), "y": torch.zeros(2)}
    signature = describe_call(Returning(lambda x, y: x), feeds, keyword=False, dynamic_batch=True)
    assert signature.outputs[0].dtype == str(dtype).removeprefix("torch.")


def test_describing_leaves_no_gradient_and_changes_no_weight() -> None:
    module = nn.Linear(3, 4)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    describe_call(module, {"input": torch.zeros(2, 3)}, keyword=False, dynamic_batch=True)
    assert all(parameter.grad is None for parameter in module.parameters())
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_number_that_an_embedding_lacks_is_told_from_a_wrong_shape() -> None:
    ids = {"ids": torch.tensor([[3, 10]])}
    with pytest.raises(InputError, match=r"no row of that number.*1x128:int64:30522"):
        describe_call(nn.Embedding(10, 4), ids, keyword=False, dynamic_batch=True)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("mat1 and mat2"), KeyError("ids"), AssertionError(), ValueError("Too small.")],
)
def test_a_model_that_fails_says_on_which_shapes(error: Exception) -> None:
    def fail(x: Tensor, y: Tensor) -> Tensor:
        raise error

    with pytest.raises(InputError, match=r"x \(2, 3\), y \(2, 4\)") as raised:
        describe_call(Returning(fail), {"x": A, "y": B}, keyword=False, dynamic_batch=True)
    assert type(error).__name__ in str(raised.value)
    assert "--input" in str(raised.value)
    assert ".." not in str(raised.value)
    assert raised.value.__cause__ is error


class OfDict(nn.Module):
    def __init__(self, read: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.read = read

    def forward(self, batch: Any) -> Tensor:
        return self.read(batch).relu()


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")
@pytest.mark.parametrize("read", [lambda batch: batch["x"], lambda batch: batch.get("x")])
def test_a_forward_that_reads_a_dict_is_to_be_wrapped(read: Callable[[Any], Tensor]) -> None:
    with pytest.raises(InputError, match=r"tensors out of a dict.*return self\.model\(\{'x': x"):
        describe_call(OfDict(read), {"batch": torch.ones(2, 4)}, keyword=False, dynamic_batch=True)


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (lambda x, y: x.sum(1).squeeze(), {1: (1,), 3: (3,)}),
        (lambda x, y: (x[:, :, None] * x[:, None]).squeeze(), {1: (1, 3, 3), 3: (3, 3, 3)}),
        (lambda x, y: x[:1].squeeze(), {1: (3,), 3: (3,)}),
    ],
)
def test_a_lone_sample_keeps_the_axis_that_squeeze_takes(
    function: Callable[[Tensor, Tensor], Tensor], shapes: dict[int, tuple[int, ...]]
) -> None:
    module = Returning(function)
    signature = describe_call(module, {"x": A, "y": B}, keyword=False, dynamic_batch=True)
    for batch, shape in shapes.items():
        feeds = {"x": torch.randn(batch, 3), "y": torch.randn(batch, 4)}
        found = signature.call(module, feeds)["output"]
        assert tuple(found.shape) == shape
        torch.testing.assert_close(found.squeeze(), function(feeds["x"], feeds["y"]))
