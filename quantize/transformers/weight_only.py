"""MatMul and Gemm with weights of 8 or 4 bits, which the engine unpacks as it multiplies.

Two forms of the same numbers, ``w = scale * (code - zero_point)`` with a scale for every block of
inputs of every output channel (`quantize.transformers.blockwise`):

- ``matmul_nbits``: com.microsoft.MatMulNBits. ONNX Runtime has kernels for it, and OpenVINO
  unpacks it in place as well.
- ``dequantize``: ONNX's own blocked DequantizeLinear on a constant, opset 21. ONNX Runtime makes
  MatMulNBits of it by itself, OpenVINO unpacks it in place.

Whether activations stay float is the engine's choice: ONNX Runtime's by the attribute
`accuracy_level` (0: float; 4: int8 by block), OpenVINO's by DYNAMIC_QUANTIZATION_GROUP_SIZE.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import ml_dtypes
import numpy as np
from onnx import NodeProto, helper

from export.artifacts import OnnxModel, Skip
from export.errors import NothingToQuantizeError, QuantizeError
from export.onnx.files import read_model, write_model
from export.onnx.graph import name_node, node_label
from quantize.editing import GraphEdit
from quantize.int8.insertion import Int8Result
from quantize.transformers.blockwise import Blocks, pack, quantize_blocks
from quantize.transformers.matmuls import ConstantMatMul, MatMuls, find_matmuls, read_weight
from quantize.transformers.tables import pack_tables

BLOCKED_OPSET = 21
"""The first opset whose DequantizeLinear has blocks and 4-bit types."""
_MICROSOFT = "com.microsoft"


@dataclass(frozen=True)
class WeightScheme:
    """How weights are stored.

    Attributes:
        bits: 4 or 8.
        block_size: inputs that share a scale: 32, 64 or 128.
        symmetric: the zero point is the middle code, and not stored.
        form: see the module.
        accuracy_level: of MatMulNBits. 0 keeps activations float, 4 quantizes them to int8.
        keep_float: names of nodes that stay float.
    """

    bits: Literal[4, 8]
    block_size: int = 32
    symmetric: bool = True
    form: Literal["matmul_nbits", "dequantize"] = "matmul_nbits"
    accuracy_level: Literal[0, 4] = 0
    keep_float: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.bits not in (4, 8) or self.block_size not in (32, 64, 128):
            raise QuantizeError(
                f"Weights of {self.bits} bits in blocks of {self.block_size} have no kernel; use 4 "
                "or 8 bits in blocks of 32, 64 or 128."
            )


WEIGHT_PRESETS: Mapping[str, WeightScheme] = MappingProxyType(
    {
        "int8": WeightScheme(8, accuracy_level=4),
        "int4": WeightScheme(4, symmetric=False, accuracy_level=4),
    }
)
"""By precision, for CPUs: ONNX Runtime's kernels for float activations are slower than float32."""


def quantize_weights(model: OnnxModel, scheme: WeightScheme, path: Path) -> Int8Result:
    """Write `model` with weights of `scheme` to `path`; everything else stays float32.

    Tables that are looked up by row become int8 whatever the scheme (`tables`).

    Args:
        model: the float32 model; its file is not changed.
        scheme: one of `WEIGHT_PRESETS`, or one made from it.
        path: the file to write; not `model.path`.

    Raises:
        NothingToQuantizeError: no MatMul or Gemm has constant weights of some size.
        QuantizeError: the opset is below 21 for the form ``dequantize``, weights hold NaN or
            infinity, an unknown name, or `path` is the model itself.
    """
    if model.path.resolve() == path.resolve():
        raise QuantizeError(f"{path} is the float model itself; write the new one elsewhere.")
    if scheme.form == "dequantize" and model.opset < BLOCKED_OPSET:
        raise QuantizeError(
            f"opset {model.opset} cannot hold blocks of weights; export with opset "
            f"{BLOCKED_OPSET} or later, or use the form matmul_nbits"
        )
    proto = read_model(model.path)
    edit = GraphEdit(proto)
    matmuls = find_matmuls(edit.graph, what=f"int{scheme.bits}", keep_float=scheme.keep_float)
    if scheme.form == "dequantize":
        _leave_odd_sizes(edit, matmuls, scheme)
    writer = _Writer(edit, scheme)
    for use in matmuls.found:
        edit.replace(use.node, writer.multiply(use))
    tables = pack_tables(edit)
    if scheme.form == "matmul_nbits":
        edit.import_domain(_MICROSOFT, 1)
    edit.finish()
    write_model(proto, path)
    names = (edit.graph.nodes[use.node] for use in matmuls.found)
    return Int8Result(
        replace(model, path=path),
        tuple(name_node(node) for node in names) + tables,
        tuple(matmuls.skipped),
    )


def _leave_odd_sizes(edit: GraphEdit, matmuls: MatMuls, scheme: WeightScheme) -> None:
    """OpenVINO refuses a DequantizeLinear whose last block is shorter: such matrices stay float."""
    for use in list(matmuls.found):
        inputs = read_weight(edit.graph, use).shape[0]
        if inputs % scheme.block_size:
            matmuls.found.remove(use)
            where = node_label(edit.graph.nodes[use.node])
            reason = f"{inputs} inputs are no multiple of the block of {scheme.block_size}"
            matmuls.skipped.append(Skip(where, f"int{scheme.bits}", reason))
    if not matmuls.found:
        reasons = "; ".join(f"{skip.where}: {skip.reason}" for skip in matmuls.skipped[:3])
        raise NothingToQuantizeError(f"No weights fit the blocks of DequantizeLinear: {reasons}")


class _Writer:
    """Stores weights once and writes the nodes that read them."""

    def __init__(self, edit: GraphEdit, scheme: WeightScheme) -> None:
        self._edit, self._scheme = edit, scheme
        self._stored: dict[tuple[str, bool], tuple[list[str], int, int]] = {}

    def multiply(self, use: ConstantMatMul) -> list[NodeProto]:
        """What stands in place of the product `use`."""
        node = self._edit.graph.nodes[use.node]
        name, result = name_node(node), node.output[0]
        weight, inputs, outputs = self._weight(use)
        product = self._edit.name(f"{result}_product") if use.bias else result
        if self._scheme.form == "matmul_nbits":
            nodes = [
                helper.make_node(
                    "MatMulNBits",
                    [node.input[0], *weight],
                    [product],
                    domain=_MICROSOFT,
                    K=inputs,
                    N=outputs,
                    bits=self._scheme.bits,
                    block_size=self._scheme.block_size,
                    accuracy_level=self._scheme.accuracy_level,
                )
            ]
        else:
            dense = self._edit.name(f"{use.weight}_dequantized")
            nodes = [
                helper.make_node(
                    "DequantizeLinear", weight, [dense], axis=0, block_size=self._scheme.block_size
                ),
                helper.make_node("MatMul", [node.input[0], dense], [product]),
            ]
        if use.bias:
            nodes.append(helper.make_node("Add", [product, use.bias], [result]))
        for part in nodes:
            part.name = name if part is nodes[-1] else f"{name}_{part.op_type}"
        return nodes

    def _weight(self, use: ConstantMatMul) -> tuple[list[str], int, int]:
        """Names of codes, scales and, where they are stored, zero points; K and N."""
        key = (use.weight, use.transposed)
        if key not in self._stored:
            weight, scheme = read_weight(self._edit.graph, use), self._scheme
            blocks = quantize_blocks(
                weight, scheme.bits, scheme.block_size, symmetric=scheme.symmetric
            )
            store = self._packed if scheme.form == "matmul_nbits" else self._dense
            self._stored[key] = (store(use.weight, blocks), *weight.shape)
        return self._stored[key]

    def _packed(self, name: str, blocks: Blocks) -> list[str]:
        """As MatMulNBits has it: [N, blocks, bytes], [N, blocks], [N, bytes]."""
        bits = self._scheme.bits
        names = [
            self._edit.store(f"{name}_quantized", pack(blocks.codes, bits)),
            self._edit.store(f"{name}_scale", blocks.scales),
        ]
        if not self._scheme.symmetric:
            names.append(self._edit.store(f"{name}_zero_point", pack(blocks.zero_points, bits)))
        return names

    def _dense(self, name: str, blocks: Blocks) -> list[str]:
        """As DequantizeLinear has it: [K, N] and [blocks, N], signed where the middle is 0."""
        bits, symmetric = self._scheme.bits, self._scheme.symmetric
        signed, unsigned = (np.int8, np.uint8) if bits == 8 else (ml_dtypes.int4, ml_dtypes.uint4)
        codes = blocks.codes.reshape(len(blocks.codes), -1)[:, : blocks.inputs].T
        if symmetric:
            codes = (codes.astype(np.int16) - 2 ** (bits - 1)).astype(signed)
        else:
            codes = codes.astype(unsigned)
        names = [
            self._edit.store(f"{name}_quantized", np.ascontiguousarray(codes)),
            self._edit.store(f"{name}_scale", np.ascontiguousarray(blocks.scales.T)),
        ]
        if not symmetric:
            zeros = np.ascontiguousarray(blocks.zero_points.T).astype(unsigned)
            names.append(self._edit.store(f"{name}_zero_point", zeros))
        return names
