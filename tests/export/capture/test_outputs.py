"""What a module returns becomes named flat tensors; what cannot be named says so."""

from collections import OrderedDict, defaultdict, namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from export import to_onnx
from export.capture.outputs import describe_structure, find_left_out, flatten_outputs
from export.capture.program import capture
from export.errors import ExportError

A, B, C = torch.zeros(2, 3), torch.ones(2, 4), torch.full((2,), 2.0)
Pair = namedtuple("Pair", ["mean", "scale"])


@dataclass
class Registered:
    logits: Tensor
    features: Tensor | None = None


@dataclass
class Unregistered:
    logits: Tensor


torch.export.register_dataclass(Registered, serialized_type_name="test_outputs.Registered")


class Cache:
    """As transformers keeps keys and values: layers of it hold the tensors."""

    def __init__(self, *layers: object) -> None:
        self.layers = [*layers]


class Named(OrderedDict[str, Tensor]):
    """As the outputs of diffusers: torch was not told the names of its parts."""


class Numbered:
    """Likewise, and its parts have none."""

    def __init__(self, *parts: Tensor) -> None:
        self.parts = parts


pytree.register_pytree_node(
    Named,
    lambda named: ([*named.values()], [*named]),
    lambda parts, keys: Named(zip(keys, parts, strict=True)),
)
pytree.register_pytree_node(
    Numbered, lambda numbered: ([*numbered.parts], None), lambda parts, _: Numbered(*parts)
)


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
        (Named(sample=A, extra=B), ["sample", "extra"]),
        ((A, {"out": Named(sample=B)}), ["output_0", "output_1.out.sample"]),
        (Numbered(A, B), ["output_0", "output_1"]),
        (Pair(Named(sample=A), Numbered(B)), ["mean.sample", "scale.0"]),
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
        (Named(sample=A, extra=B), "Named(sample: tensor, extra: tensor)"),
        ([Numbered(A, B)], "list(Numbered(tensor, tensor))"),
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
    ("result", "left_out"),
    [
        ({"logits": A, "cache": Cache(Cache(B))}, ("cache (Cache)",)),
        ((A, np.zeros(2), Cache({"keys": (B,)})), ("output_1 (ndarray)", "output_2 (Cache)")),
        ((A, torch.distributions.Normal(B, 1.0)), ("output_1 (Normal)",)),
        ({"logits": A, "cache": Cache(), "loss": None, "more": (3, "text", Cache)}, ()),
        (A, ()),
        (Registered(A, B), ()),
    ],
)
def test_what_holds_values_and_is_no_output_is_known(
    result: Any, left_out: tuple[str, ...]
) -> None:
    assert find_left_out(result) == left_out


@pytest.mark.parametrize("result", [{"a.b": A, "a": {"b": B}}, {"'x'": A, "x": B}])
def test_two_outputs_of_one_name_are_refused(result: Any) -> None:
    with pytest.raises(ExportError, match="Two outputs of the model are called"):
        flatten_outputs(result)


def test_an_output_under_an_empty_key_has_a_name():
    names, _, _ = flatten_outputs({"": torch.zeros(1), "other": torch.zeros(1)})
    assert names == ("output", "other")


@pytest.mark.parametrize("strict", [False, True])
def test_what_torch_was_told_no_names_of_is_exported(strict, tmp_path):
    class Denoiser(nn.Module):
        def forward(self, x: Tensor) -> Named:
            return Named(sample=x * 2, extra=x.sum(1))

    feeds = {"x": torch.rand(2, 3)}
    names, _, structure = flatten_outputs(Denoiser()(**feeds))
    assert structure == "Named(sample: tensor, extra: tensor)"
    program = capture(Denoiser(), feeds, keyword=False, dynamic_batch=True, strict=strict)
    model = to_onnx(program, tmp_path / "model.onnx", input_names=["x"], output_names=names)
    x = torch.rand(3, 3)
    session = onnxruntime.InferenceSession(model.path)
    sample, extra = session.run(["sample", "extra"], {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(sample), x * 2)
    torch.testing.assert_close(torch.from_numpy(extra), x.sum(1))
