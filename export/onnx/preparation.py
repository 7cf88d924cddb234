"""A program in the form that the ONNX exporter does well with, before it is given to it."""

import torch
from torch import fx
from torch.export import ExportedProgram

from export.fusion.draft import Draft, read_argument
from export.onnx.adaptive_pooling import write_out_adaptive_pools
from export.onnx.attention import write_out_attention
from export.onnx.complex import pair_complex_values
from export.onnx.composed import compose
from export.onnx.computed_weights import store_computed_weights
from export.onnx.constant_matrices import store_constant_matrices
from export.onnx.fourier import write_out_transforms
from export.onnx.gathers import narrow_gathered
from export.onnx.options import settle_options
from export.onnx.query_scales import scale_queries
from export.onnx.sample_weights import write_out_sample_weights
from export.onnx.short_time import write_out_short_time_spectra
from export.onnx.smooth_resizes import write_out_smooth_resizes
from export.onnx.stacks import write_out_stacks
from export.onnx.views import reshape_views
from export.onnx.whole_splits import drop_whole_splits

aten = torch.ops.aten

_POOLS = frozenset({aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default})


def prepare_program(program: ExportedProgram, *, opset: int) -> ExportedProgram:
    """A copy of `program` with what the exporter does not do well in another form; or itself.

    Numbers and strings among the results become None: the exporter takes no others. A pool to one
    value a channel becomes a mean: of a value in channels_last the exporter makes a gather out of
    the strides of the result, which is of no use where there are no strides. Adaptive pools,
    resizes that smooth, stacks and attention over more axes than four are written out, scales of
    masked scores are put to their queries, weights that are computed from others are stored, and so
    is linear algebra of stored tensors, splits into one part are left out, values that are gathered
    by fewer places are narrowed to as many, options that it refuses or overlooks are settled, and
    operators that it has no function for are composed of others.
    """
    program = compose(store_constant_matrices(program))
    (output,) = (node for node in program.graph.nodes if node.op == "output")
    constants = any(not isinstance(v, fx.Node) and v is not None for v in output.args[0])
    draft = Draft(program)
    if constants:
        draft.drop_constant_outputs()
    done = [
        settle_options(draft),
        _pool_by_mean(draft),
        write_out_adaptive_pools(draft),
        write_out_attention(draft, opset=opset),
        scale_queries(draft),
        write_out_transforms(draft),
        write_out_short_time_spectra(draft),
        pair_complex_values(draft),
        write_out_sample_weights(draft),
        store_computed_weights(draft),
        write_out_smooth_resizes(draft),
        write_out_stacks(draft),
        drop_whole_splits(draft),
        narrow_gathered(draft),
    ]
    if any(done):
        reshape_views(draft)
    return draft.finish() if constants or any(done) else program


def _pool_by_mean(draft: Draft) -> bool:
    """Whether there was a pool to one value a channel."""
    pools = [node for node in draft.graph.nodes if _pools_all(node)]
    for node in pools:
        axes = list(range(-len(read_argument(node, "output_size")), 0))
        with draft.graph.inserting_before(node):
            mean = draft.graph.call_function(
                aten.mean.dim, (read_argument(node, "self"), axes, True)
            )
        mean.meta = dict(node.meta)
        draft.erase(node, mean)
    return bool(pools)


def _pools_all(node: fx.Node) -> bool:
    """Whether each channel becomes one value."""
    return node.target in _POOLS and set(read_argument(node, "output_size")) == {1}
