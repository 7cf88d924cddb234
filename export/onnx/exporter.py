"""``ExportedProgram`` → ONNX file; and, as the last resort, ``nn.Module`` → ONNX by TorchScript."""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from export.artifacts import BATCH, OnnxModel, TensorSpec
from export.capture.image_model import find_user_module
from export.capture.locating import FOREIGN
from export.capture.outputs import flatten_outputs
from export.capture.program import condense_error, contain_noise
from export.errors import ExportError
from export.onnx.circular_padding import write_out_circular_padding
from export.onnx.cleanup import (
    AxisNames,
    name_axes,
    name_outputs,
    settle_squeezes,
    store_split_constants,
)
from export.onnx.clip_merging import merge_overlapping, store_apart
from export.onnx.division import guard_division
from export.onnx.exact_matching import match_exactly
from export.onnx.kept_operators import keep_operators
from export.onnx.plain_recurrence import list_translations
from export.onnx.pool_padding import fold_pool_padding
from export.onnx.preparation import prepare_program
from export.onnx.quick_matching import match_quickly
from export.onnx.recurrent_weights import store_recurrent_weights
from export.onnx.source_traces import condense_traces
from export.onnx.tokens import flatten_tokens

INLINE_LIMIT = 2_000_000_000
"""Bytes of weights above which they go to a file of their own: protobuf holds 2 GiB."""

TORCHSCRIPT_MAX_OPSET = 20


def to_onnx(
    program: ExportedProgram,
    path: Path,
    *,
    input_names: Sequence[str],
    output_names: Sequence[str],
    opset: int = 20,
    axes: AxisNames | None = None,
) -> OnnxModel:
    """Write `program` as ONNX.

    Args:
        program: as captured or fused; left as it is.
        path: the file to write; weights above 2 GB go to ``<path>.data`` beside it.
        input_names: names of the program's inputs, in order; an input passed by keyword keeps its
            own name and takes its place in this order.
        output_names: names of the tensors that the program returns, in order. What it returns
            beside tensors is left out.
        opset: 18 to 25.
        axes: names of further dynamic axes of the inputs, by input and number.

    Returns:
        The model with the axis ``"batch"`` on the leading dynamic axes, and `axes` on theirs. Its
        nodes keep the exporter's metadata (``pkg.torch.onnx.name_scopes``), and the line of their
        source in place of stack traces.

    Raises:
        ExportError: an operator has no ONNX form, an axis of `axes` has one size in `program`, or
            the result fails onnx's checker.

    Source: https://docs.pytorch.org/docs/stable/onnx_export.html
    """
    try:
        # As it was captured: attention whose mask is trained takes another kernel with gradients.
        with contain_noise(), torch.no_grad(), _rewriting_well(), keep_operators():
            exported = torch.onnx.export(
                prepare_program(program, opset=opset),
                dynamo=True,
                opset_version=opset,
                input_names=_order_names(program, input_names),
                custom_translation_table=list_translations(),
                verbose=False,
            )
    except Exception as error:  # many kinds come out of the exporter; all are this one finding
        raise ExportError(f"The ONNX exporter failed: {_find_cause(error)}") from error
    if exported is None:
        raise ExportError("The ONNX exporter returned nothing.")
    store_split_constants(exported.model.graph)
    name_outputs(exported.model.graph, output_names)
    name_axes(exported.model.graph, axes or {})
    store_recurrent_weights(exported.model)
    return _finish(exported.model, path, input_names, output_names)


@contextlib.contextmanager
def _rewriting_well() -> Iterator[None]:
    """The exporter's rewriter without its faults, for the length of the block."""
    with match_quickly(), match_exactly(), merge_overlapping(), store_apart():
        yield


def torchscript_to_onnx(
    module: nn.Module,
    feeds: Mapping[str, Tensor],
    path: Path,
    *,
    input_names: Sequence[str],
    output_names: Sequence[str],
    keyword: bool,
    dynamic_batch: bool,
    opset: int,
    axes: AxisNames | None = None,
) -> OnnxModel:
    """Write `module` as ONNX through tracing, the older exporter; takes ScriptModules as well.

    Control flow of Python is fixed as it went for `feeds`; that of a ScriptModule is kept.

    Args:
        module: left as it is.
        feeds: example inputs by name, in the order of the call.
        path: the file to write.
        input_names: names of the inputs, in order.
        output_names: names of the flattened output tensors, in order.
        keyword: pass the inputs by name.
        dynamic_batch: name the leading axes that have the size of the batch ``"batch"``.
        opset: up to 20; more is lowered to 20, which is all that this exporter knows.
        axes: names of further dynamic axes, by input or output and number.

    Raises:
        ExportError: the model cannot be traced or an operator has no ONNX form.
    """
    flat = _Flat(module, tuple(feeds), keyword).eval()
    values = tuple(value.clone() for value in feeds.values())  # the model may write to its inputs
    try:
        with contain_noise(), torch.no_grad(), tempfile.TemporaryDirectory() as folder:
            traced = torch.jit.trace(flat, values, check_trace=False)  # type: ignore[no-untyped-call]
            returned = [f"returned::{name}" for name in output_names]  # as nothing else is called
            outputs = dict(zip(returned, flat(*values), strict=True))
            wanted = dict(zip(returned, output_names, strict=True))
            named = {**dict(zip(input_names, values, strict=True)), **outputs}
            batch = next((value.shape[0] for value in values if value.ndim), None)
            target = Path(folder) / "model.onnx"
            torch.onnx.export(
                traced,
                values,
                target,
                dynamo=False,
                opset_version=min(opset, TORCHSCRIPT_MAX_OPSET),
                input_names=list(input_names),
                output_names=returned,
                dynamic_axes={
                    name: {
                        **({0: BATCH} if _leads(value, batch) and dynamic_batch else {}),
                        **(axes or {}).get(wanted.get(name, name), {}),
                    }
                    for name, value in named.items()
                },
            )
            model = ir.load(target)
            for _ in range(1 if find_user_module(module) is module else 2):
                _drop_wrapper_scope(model.graph)
            name_outputs(model.graph, output_names)
            name_axes(model.graph, axes or {})
            return _finish(model, path, input_names, output_names)
    except ExportError:
        raise
    except Exception as error:  # many kinds come out of the exporter; all are this one finding
        raise ExportError(f"The TorchScript exporter failed: {_find_cause(error)}") from error


def _leads(value: Tensor, batch: int | None) -> bool:
    return bool(value.ndim) and value.shape[0] == batch


class _Flat(nn.Module):
    """A module called in order with tensors, returning its tensors in a flat tuple."""

    def __init__(self, module: nn.Module, names: tuple[str, ...], keyword: bool) -> None:
        super().__init__()
        self.model = module
        self._names = names
        self._keyword = keyword

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        if self._keyword:
            return flatten_outputs(self.model(**dict(zip(self._names, values, strict=True))))[1]
        return flatten_outputs(self.model(*values))[1]


def _drop_wrapper_scope(graph: ir.Graph) -> None:
    """Take the name of `_Flat`'s member out of the names of weights and nodes."""
    for node in graph.all_nodes():
        node.name = (node.name or "").replace("/model/", "/", 1)
    for name, value in list(graph.initializers.items()):
        if name.startswith("model."):
            graph.initializers.pop(name)
            value.name = name.removeprefix("model.")
            graph.initializers[value.name] = value


def _order_names(program: ExportedProgram, names: Sequence[str]) -> list[str]:
    """`names` in the program's own order: keywords may stand in another one."""
    spec = program.call_spec.in_spec
    keywords = list(spec.children()[1].context or ()) if spec is not None else []
    return keywords if set(keywords) == set(names) else list(names)


def _find_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return condense_error(error)


def _finish(
    model: ir.Model, path: Path, input_names: Sequence[str], output_names: Sequence[str]
) -> OnnxModel:
    """Order and name what the exporter left, write the file and check it."""
    settle_squeezes(model)
    condense_traces(model, FOREIGN)
    graph = model.graph
    found, wanted = {str(value.name): value for value in graph.inputs}, list(input_names)
    if sorted(found) != sorted(wanted) or [v.name for v in graph.outputs] != list(output_names):
        raise ExportError(
            f"The exported model takes {list(found)} and returns "
            f"{[value.name for value in graph.outputs]}; "
            f"expected {wanted} and {list(output_names)}."
        )
    graph.inputs[:] = [found[name] for name in wanted]
    write_onnx(model, path)
    return OnnxModel(
        path=path,
        inputs=tuple(_describe_value(value) for value in graph.inputs),
        outputs=tuple(_describe_value(value) for value in graph.outputs),
        opset=model.opset_imports[""],
    )


def write_onnx(model: ir.Model, path: Path, *, inline_limit: int = INLINE_LIMIT) -> None:
    """Write `model` and check the file; above `inline_limit` bytes the weights stand beside it.

    Raises:
        ExportError: the file fails onnx's checker with full shape inference.
    """
    size = sum(
        value.const_value.nbytes
        for value in model.graph.initializers.values()
        if value.const_value is not None
    )
    external = f"{path.name}.data" if size > inline_limit else None
    path.parent.mkdir(parents=True, exist_ok=True)
    ir.save(model, path, external_data=external)
    try:
        _adapt_file(path)
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            f"The exported model is not valid ONNX: {condense_error(error)}"
        ) from error


def _adapt_file(path: Path) -> None:
    """What is made of the file itself, since it needs no weights."""
    proto = onnx.load(path, load_external_data=False)
    rewrites = (fold_pool_padding, write_out_circular_padding, flatten_tokens, guard_division)
    if sum(rewrite(proto) for rewrite in rewrites):
        onnx.save_model(proto, path)  # external data stays where it is


def _describe_value(value: ir.Value) -> TensorSpec:
    name = str(value.name)
    if value.shape is None or value.dtype is None:
        raise ExportError(f"The exporter gave no shape or type for {name!r}.")
    shape = tuple(
        dim if isinstance(dim, int) else str(dim.value or f"{name}_{axis}")
        for axis, dim in enumerate(value.shape)
    )
    return TensorSpec(name, shape, value.dtype.numpy().name)
