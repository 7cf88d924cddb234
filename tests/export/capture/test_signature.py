"""Any call becomes named flat tensors and back; what cannot be named says so."""

import functools
from collections import OrderedDict, defaultdict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from export.artifacts import BATCH, TensorSpec
from export.capture.signature import (
    CallSignature,
    describe_call,
    describe_structure,
    flatten_outputs,
    name_inputs,
)
from export.errors import ConfigError, ExportError, InputError

A, B, C = torch.zeros(2, 3), torch.ones(2, 4), torch.full((2,), 2.0)
Pair = namedtuple("Pair", ["mean", "scale"])


@dataclass
class Registered:
    logits: Tensor
    features: Tensor | None = None


@dataclass
class Unregistered:
    logits: Tensor


torch.export.register_dataclass(Registered, serialized_type_name="test_signature.Registered")


class Returning(nn.Module):
    """Returns what `make` makes of its two inputs."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor, y: Tensor) -> Any:
        return self.make(x, y)


class KeywordOnly(nn.Module):
    def forward(self, x: Tensor, *, mask: Tensor) -> Tensor:
        return x * mask


class Free(nn.Module):
    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        return sum(args) + sum(kwargs.values())


class First(nn.Module):
    def forward(self, x: Tensor, *rest: Tensor) -> Tensor:
        return x


class NamedAlone(nn.Module):
    def forward(self, *, wave: Tensor, gain: Tensor | None = None) -> Tensor:
        return wave if gain is None else wave * gain


class Open(nn.Module):
    def forward(self, x: Tensor, **rest: Tensor) -> Tensor:
        return x


def outputs(result: Any) -> tuple[dict[str, Tensor], str]:
    names, tensors, structure = flatten_outputs(result)
    assert len(set(names)) == len(tensors)
    return dict(zip(names, tensors, strict=True)), structure


@pytest.mark.parametrize(
    ("result", "names"),
    [
        (A, ["output"]),
        ((A,), ["output_0"]),
        ([A, B], ["output_0", "output_1"]),
        ({"logits": A}, ["logits"]),
        ({"logits": A, "boxes": [B, C]}, ["logits", "boxes.0", "boxes.1"]),
        (OrderedDict(b=A, a=B), ["b", "a"]),
        ({"a": {"b": {"c": A}}, "d": B}, ["a.b.c", "d"]),
        ((A, {"aux": B}), ["output_0", "output_1.aux"]),
        ({0: A, 1: B}, ["output_0", "output_1"]),
        (Pair(A, B), ["mean", "scale"]),
        (Registered(A, B), ["logits", "features"]),
        ({"out": Registered(A)}, ["out.logits"]),
        ((A, None, B), ["output_0", "output_2"]),
        ((A, 3, "text", True), ["output_0"]),
        ({"logits": A, "loss": None}, ["logits"]),
    ],
)
def test_outputs_are_named_by_their_path(result: Any, names: list[str]) -> None:
    found, _ = outputs(result)
    assert list(found) == names
    assert all(any(tensor is known for known in (A, B, C)) for tensor in found.values())


@pytest.mark.parametrize(
    ("result", "structure"),
    [
        (A, "tensor"),
        ((A, B), "tuple(tensor, tensor)"),
        ({"a": A, "b": [B, C]}, "dict(a: tensor, b: list(tensor, tensor))"),
        ({"b": A, "a": B}, "dict(b: tensor, a: tensor)"),
        (OrderedDict(z=A, a={"x": B}), "OrderedDict(z: tensor, a: dict(x: tensor))"),
        (defaultdict(list, a=A), "defaultdict(a: tensor)"),
        (Pair(A, B), "namedtuple(mean: tensor, scale: tensor)"),
        (Registered(A, B), "Registered(logits: tensor, features: tensor)"),
        ((A, (B, C)), "tuple(tensor, tuple(tensor, tensor))"),
        ((A, None, 3, {}, ()), "tuple(tensor, None, int, dict(), tuple())"),
    ],
)
def test_structure_is_kept_with_its_keys(result: Any, structure: str) -> None:
    assert outputs(result)[1] == structure


def test_keys_that_are_no_identifiers_are_quoted_so_that_the_nesting_can_be_told() -> None:
    flat, nested = {"a.b": A, "c": B}, {"a": {"b": A}, "c": B}
    assert list(outputs(flat)[0]) == list(outputs(nested)[0]) == ["a.b", "c"]
    assert outputs(flat)[1] == 'dict("a.b": tensor, c: tensor)'
    assert outputs(nested)[1] == "dict(a: dict(b: tensor), c: tensor)"
    odd = {0: A, "0": B, 'say "x", (y): z': C}
    assert describe_structure(odd) == (
        'dict(0: tensor, "0": tensor, "say \\"x\\", (y): z": tensor)'
    )


@pytest.mark.parametrize("result", [None, 3, "text", (), {}, [None, (1, {})]])
def test_a_result_without_tensors_is_refused_with_the_fix(result: Any) -> None:
    with pytest.raises(ExportError, match=r"returns no tensor but .*return tensors"):
        flatten_outputs(result)


@pytest.mark.parametrize("result", [Unregistered(A), (B, Unregistered(A)), {"x": Unregistered(A)}])
def test_a_dataclass_that_torch_does_not_know_is_never_dropped_silently(result: Any) -> None:
    with pytest.raises(ExportError, match=r"register_dataclass\(Unregistered\)"):
        flatten_outputs(result)


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


@pytest.mark.parametrize("result", [{"a.b": A, "a": {"b": B}}, {"'x'": A, "x": B}])
def test_two_outputs_of_one_name_are_refused(result: Any) -> None:
    with pytest.raises(ExportError, match="Two outputs of the model are called"):
        flatten_outputs(result)


@pytest.mark.parametrize(
    ("module", "names", "expected"),
    [
        (nn.Linear(3, 3), [None], (("input",), False)),
        (Returning(None), [None, None], (("x", "y"), False)),
        (Returning(None), ["x", "y"], (("x", "y"), True)),
        (Returning(None), ["y", "x"], (("y", "x"), True)),
        (Returning(None), [None], (("x",), False)),
        (KeywordOnly(), ["x", "mask"], (("x", "mask"), True)),
        (Free(), [None, None], (("input_0", "input_1"), False)),
        (Free(), ["a", "b"], (("a", "b"), False)),
        (First(), [None, None, None], (("x", "input_1", "input_2"), False)),
        (Open(), ["x", "anything"], (("x", "anything"), True)),
        (NamedAlone(), [None], (("wave",), True)),
        (nn.Identity(), [], ((), False)),
    ],
)
def test_inputs_take_their_names(
    module: nn.Module, names: list[str | None], expected: tuple[tuple[str, ...], bool]
) -> None:
    assert name_inputs(module, names) == expected


@pytest.mark.parametrize(
    ("module", "names", "message"),
    [
        (Returning(None), ["x", "z"], r"no parameter 'z'.*It takes: x, y"),
        (KeywordOnly(), ["x", "masc"], r"no parameter 'masc'.*It takes: x, mask"),
        (Returning(None), ["x", None], "Name either every input or none"),
        (NamedAlone(), [None, None], r"by name alone: wave, gain.*--input wave:1x128"),
        (Returning(None), ["x", "x"], "Two inputs are called 'x'"),
        (Returning(None), [None, None, None], r"3 inputs were given .* takes 2: x, y"),
    ],
)
def test_names_that_do_not_fit_are_refused_with_those_that_do(
    module: nn.Module, names: list[str | None], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        name_inputs(module, names)


def call(signature: CallSignature, module: nn.Module, **feeds: Tensor) -> dict[str, Tensor]:
    return signature.call(module, feeds)


class TakesBatch(nn.Module):
    def forward(self, batch: Any) -> torch.Tensor:
        return batch["image"] + batch["extra"]


@pytest.mark.parametrize("names", [("image", "extra"), (None, None)])
def test_a_forward_that_takes_all_in_one_is_to_be_wrapped(names: tuple[str | None, ...]) -> None:
    with pytest.raises(ConfigError, match="takes a dict or a list of tensors, put the model into"):
        name_inputs(TakesBatch(), names)


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


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("make", ["script", "trace"])
def test_torchscript_is_named_and_called_like_its_module(make: str) -> None:
    class Named(nn.Module):
        def forward(self, image: Tensor, scale: Tensor) -> Tensor:
            return image * scale

    feeds = {"image": torch.randn(2, 3), "scale": torch.randn(2, 3)}
    module = (
        torch.jit.script(Named())
        if make == "script"
        else torch.jit.trace(Named(), tuple(feeds.values()))
    )
    assert name_inputs(module, [None, None]) == (("image", "scale"), False)
    assert name_inputs(module, ["scale", "image"]) == (("scale", "image"), True)
    with pytest.raises(ConfigError, match="It takes: image, scale"):
        name_inputs(module, ["image", "size"])
    for keyword in (False, True):
        signature = describe_call(module, feeds, keyword=keyword, dynamic_batch=True)
        found = signature.call(module, feeds)["output"]
        torch.testing.assert_close(found, feeds["image"] * feeds["scale"])


class Divides(nn.Module):
    def forward(self, over: Tensor, under: Tensor) -> Tensor:
        return over / under


def exported(tmp_path: Path, args: tuple[Tensor, ...], **kwargs: Tensor) -> nn.Module:
    """What becomes of a program that was written to a file and read again."""
    path = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(Divides(), args, kwargs), path)
    return torch.export.load(path).module()


@pytest.mark.parametrize("order", [("over", "under"), ("under", "over")])
def test_a_program_exported_in_order_is_called_in_order_whatever_the_names_come_in(
    order: tuple[str, str], tmp_path: Path
) -> None:
    feeds = {"over": torch.rand(2, 3), "under": torch.rand(2, 3) + 1}
    module = exported(tmp_path, tuple(feeds.values()))
    names, keyword = name_inputs(module, order)
    assert (names, keyword) == (("over", "under"), False)
    signature = describe_call(
        module, {name: feeds[name] for name in names}, keyword=keyword, dynamic_batch=False
    )
    found = signature.call(module, feeds)["output"]
    torch.testing.assert_close(found, feeds["over"] / feeds["under"])
    with pytest.raises(ConfigError, match="takes over, under, and 'under' is not among"):
        name_inputs(module, ["over"])


def test_a_program_exported_by_name_is_called_by_name(tmp_path: Path) -> None:
    feeds = {"over": torch.rand(2, 3), "under": torch.rand(2, 3) + 1}
    module = exported(tmp_path, (), **feeds)
    assert name_inputs(module, ["under", "over"]) == (("under", "over"), True)
    signature = describe_call(module, feeds, keyword=True, dynamic_batch=False)
    found = signature.call(module, feeds)["output"]
    torch.testing.assert_close(found, feeds["over"] / feeds["under"])


def test_a_program_exported_both_ways_is_refused_with_what_to_do(tmp_path: Path) -> None:
    module = exported(tmp_path, (torch.rand(2, 3),), under=torch.rand(2, 3))
    with pytest.raises(ConfigError, match=r"1 inputs in order and 1 by name .*all in kwargs"):
        name_inputs(module, ["over", "under"])


def test_a_forward_that_hides_its_parameters_is_called_in_order() -> None:
    module = nn.Identity()
    module.forward = functools.partial(torch.add, alpha=2)  # type: ignore[method-assign]
    names, keyword = name_inputs(module, [None, None])
    assert (names, keyword) == (("input_0", "input_1"), False)


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


def test_an_output_under_an_empty_key_has_a_name():
    names, _, _ = flatten_outputs({"": torch.zeros(1), "other": torch.zeros(1)})
    assert names == ("output", "other")
