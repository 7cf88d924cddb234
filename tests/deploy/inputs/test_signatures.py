"""What a model takes and returns is seen by running it, at two batch sizes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deploy.config import BuildConfig
from deploy.inputs.signatures import describe_static, settle_call
from export.errors import ConfigError, InputError


class Returning(nn.Module):
    """Returns what it is told to."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


class Recurrent(nn.Module):
    """States of every step, and those of the last one with the batch on their second axis."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 16, batch_first=True)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        return self.lstm(x)


def settle(module: nn.Module, shape: str) -> Any:
    return settle_call(module.eval(), BuildConfig(inputs=(shape,)), None)


def test_what_engines_cannot_return_is_told() -> None:
    spread = settle(
        Returning(lambda x: {"y": x, "spread": torch.distributions.Normal(x, 1.0)}), "1x2"
    )
    assert [spec.name for spec in spread.signature.outputs] == ["y"]
    assert any("also returns spread (Normal)" in warning for warning in spread.warnings)
    assert settle(Returning(lambda x: {"y": x, "loss": None, "count": 3}), "1x2").warnings == ()


def test_states_of_an_lstm_have_the_batch_on_their_second_axis() -> None:
    signature = settle(Recurrent(), "1x5x8").signature
    assert [spec.shape for spec in signature.outputs] == [
        ("batch", 5, 16),
        (1, "batch", 16),
        (1, "batch", 16),
    ]
    for batch in (1, 4, 7):
        found = signature.call(Recurrent(), {"x": torch.zeros(batch, 5, 8)})
        for spec in signature.outputs:
            assert spec.with_batch(batch) == tuple(found[spec.name].shape)


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (lambda x: x, ("batch", 2)),
        (lambda x: x.T, (2, "batch")),
        (lambda x: x.T[None], (1, 2, "batch")),
        (lambda x: x @ x.T, ("batch", "batch")),
        (lambda x: torch.cat([x, x]), ("2*batch", 2)),
        (lambda x: x[:1].expand(2, 2), (2, 2)),  # the size of the traced batch, and no batch
        (lambda x: x.new_zeros(len(x) ** 2, 3), ("axis_0", 3)),
        (lambda x: x.sum(), ()),
    ],
)
def test_an_axis_is_the_batch_where_its_size_follows_it(
    function: Callable[[Tensor], Tensor], shape: tuple[int | str, ...]
) -> None:
    (output,) = settle(Returning(function), "1x2").signature.outputs
    assert output.shape == shape


def test_a_result_that_changes_its_form_with_the_batch_is_built_for_the_one_given() -> None:
    call = settle(Returning(lambda x: tuple(x)), "5x3")
    assert call.static
    assert [spec.shape for spec in call.signature.outputs] == [(3,)] * 5
    assert "batches of exactly 5" in call.warnings[0]
    with pytest.raises(InputError, match=r"changes with the batch: .* --static-batch"):
        settle(Returning(lambda x: tuple(x)), "2x3")


def test_a_detector_is_told_what_to_build_for_batches_of_any_size() -> None:
    find = lambda x: [{"boxes": row.nonzero(), "scores": row[row > 0]} for row in x]  # noqa: E731
    call = settle(Returning(find), "1x3")
    assert call.static
    assert [spec.name for spec in call.signature.outputs] == ["output_0.boxes", "output_0.scores"]
    assert "backbone and head" in call.warnings[1]


def test_a_model_that_fails_at_other_batches_says_how() -> None:
    call = settle(Returning(lambda x: x.reshape(1, 3)), "1x3")
    assert call.static
    assert call.warnings[1].startswith("With 2 samples it raises RuntimeError: shape '[1, 3]'")


def test_an_answer_to_a_lone_sample_that_loses_its_axis_is_told_of() -> None:
    call = settle(Returning(lambda x: (x.sum(1).squeeze(), x)), "1x3")
    assert [spec.shape for spec in call.signature.outputs] == [("batch",), ("batch", 3)]
    (warning,) = call.warnings
    assert "(output_0: squeeze() without an axis" in warning
    assert settle(Returning(lambda x: x.sum(1, keepdim=True).squeeze(-1)), "1x3").warnings == ()


def test_a_static_signature_has_the_sizes_that_the_model_returns() -> None:
    module = Returning(lambda x: (torch.cat([x, x]), x.T, x @ x.T))
    call = settle(module, "1x3")
    static = describe_static(module, call.signature, 4, call.high)
    assert [spec.shape for spec in static.inputs] == [(4, 3)]
    assert [spec.shape for spec in static.outputs] == [(8, 3), (3, 4), (4, 4)]


@pytest.mark.parametrize("batch", [2, 5])
@pytest.mark.parametrize("given", ["1x3", "{}x3"])
def test_a_program_exported_for_one_batch_is_built_for_that_one(batch: int, given: str) -> None:
    example = torch.randn(batch, 3)
    module = torch.export.export(nn.Linear(3, 4), (example,)).module()
    call = settle_call(module, BuildConfig(inputs=(given.format(batch),)), None)
    assert (call.static, call.given_batch) == (True, batch)
    assert [spec.shape for spec in call.signature.outputs] == [(batch, 4)]
    assert f"batches of exactly {batch}" in call.warnings[0]


def test_a_program_exported_for_any_batch_takes_any() -> None:
    shapes = ({0: torch.export.Dim("b", min=1, max=64)},)
    program = torch.export.export(nn.Linear(3, 4), (torch.randn(2, 3),), dynamic_shapes=shapes)
    call = settle_call(program.module(), BuildConfig(inputs=("1x3",)), None)
    assert (call.static, call.warnings) == (False, ())
    assert [spec.shape for spec in call.signature.outputs] == [("batch", 4)]


def test_an_output_without_values_is_said_to_be_compared_by_nothing() -> None:
    found = settle(Returning(lambda x: (x[x > 100], x)), "1x3").warnings
    assert [text.split(" is empty")[0] for text in found] == ["Output output_0"]
    assert settle(Returning(lambda x: x[:, :1]), "1x3").warnings == ()


def test_inputs_without_a_batch_are_told_how_to_be_built() -> None:
    config = BuildConfig(inputs=("nodes:10x6", "edges:30x2:int64:10"), static_batch=True)
    with pytest.raises(ConfigError, match=r"leading sizes are 10, 30.*hands on x\[0\]"):
        settle_call(Graph().eval(), config, None)
    whole = BuildConfig(inputs=("nodes:1x10x6", "edges:1x30x2:int64:10"), static_batch=True)
    signature = settle_call(OneGraph(Graph()).eval(), whole, None).signature
    assert [spec.shape for spec in signature.outputs] == [(1, 10, 6)]


class Graph(nn.Module):
    """Sums over neighbours; takes a graph without a batch axis."""

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        return torch.zeros_like(nodes).index_add(0, edges[:, 1], nodes[edges[:, 0]])


class OneGraph(nn.Module):
    """What the message says to do."""

    def __init__(self, graph: nn.Module) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        return self.graph(nodes[0], edges[0])[None]


@pytest.mark.parametrize(
    ("weights", "given", "hint"),
    [
        (torch.float16, "1x4", "The weights are float16, and input is float32: .* 1x4:float16"),
        (torch.float64, "1x4", "The weights are float64, and input is float32: .* 1x4:float64"),
        (torch.float32, "1x4:float16", "The weights are float32, .* --input 1x4:float32"),
    ],
)
def test_an_input_of_another_type_than_the_weights_is_told_theirs(
    weights: torch.dtype, given: str, hint: str
) -> None:
    with pytest.raises(InputError, match=hint):
        settle(nn.Linear(4, 3).to(weights), given)


def test_a_wrong_size_is_not_put_down_to_the_type() -> None:
    with pytest.raises(InputError) as caught:
        settle(nn.Linear(4, 3).half(), "1x5:float16")
    assert "The weights are" not in str(caught.value)
