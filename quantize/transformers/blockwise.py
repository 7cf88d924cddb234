"""Weights → codes of 4 or 8 bits, one scale a block of inputs of each output channel.

``w = scale * (code - zero_point)``, codes 0 to 15 or 0 to 255. Symmetric blocks have the zero point
in the middle (8, 128), others a free one. For 4 bits the range of each block is narrowed in steps,
and that with the least squared error is kept: large weights are clipped where it serves the rest.
The scale is the least-squares one of the codes.
"""

from dataclasses import dataclass

import numpy as np

_SHRINK = {4: (1.0, 0.92, 0.84), 8: (1.0,)}
_SMALLEST = np.float32(2.0**-100)


@dataclass(frozen=True)
class Blocks:
    """Quantized weights of one matrix, output channel first.

    Attributes:
        codes: uint8, [N, blocks, block size]; inputs beyond K hold the zero point.
        scales: float32, [N, blocks].
        zero_points: uint8, [N, blocks].
        inputs: K.
    """

    codes: np.ndarray
    scales: np.ndarray
    zero_points: np.ndarray
    inputs: int


def quantize_blocks(weight: np.ndarray, bits: int, block_size: int, *, symmetric: bool) -> Blocks:
    """Quantize `weight`.

    Args:
        weight: [K, N], finite.
        bits: 4 or 8.
        block_size: inputs that share a scale; the last block of K may be shorter.
        symmetric: zero points in the middle.
    """
    inputs, outputs = weight.shape
    blocks = -(-inputs // block_size)
    padded = np.zeros((outputs, blocks * block_size), np.float32)
    padded[:, :inputs] = weight.T
    values = padded.reshape(outputs, blocks, block_size)
    unit = _nonzero(np.abs(values).max(-1))
    values = values / unit[..., None]  # squares of very large weights would overflow
    tries = _symmetric(values, bits) if symmetric else _asymmetric(values, bits)
    codes, scales, zeros, least = _round(values, *tries[0], bits)
    for start in tries[1:]:
        other_codes, other_scales, other_zeros, error = _round(values, *start, bits)
        better = error < least
        codes = np.where(better[..., None], other_codes, codes)
        scales, zeros = np.where(better, other_scales, scales), np.where(better, other_zeros, zeros)
        least = np.minimum(error, least)
    return Blocks(codes.astype(np.uint8), _nonzero(scales * unit), zeros.astype(np.uint8), inputs)


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Along the last axis, two codes of 4 bits to a byte, the even one in the low half."""
    if bits == 8:
        return codes
    if codes.shape[-1] % 2:
        codes = np.concatenate([codes, np.zeros_like(codes[..., :1])], axis=-1)
    packed: np.ndarray = codes[..., 0::2] | (codes[..., 1::2] << 4)
    return packed


def _round(
    values: np.ndarray, scales: np.ndarray, zeros: np.ndarray, bits: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Codes of the values, their best scales, the zero points, and the squared error by block."""
    codes = np.clip(np.rint(values / scales[..., None]) + zeros[..., None], 0, 2**bits - 1)
    steps = codes - zeros[..., None]
    squares = (steps**2).sum(-1)
    fitted = (values * steps).sum(-1) / np.where(squares, squares, 1)
    scales = _nonzero(np.where(squares, fitted, scales))
    return codes, scales, zeros, ((steps * scales[..., None] - values) ** 2).sum(-1)


def _symmetric(values: np.ndarray, bits: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(scales, zero points) to start from, the zero point in the middle."""
    middle = 2 ** (bits - 1)
    zeros = np.full(values.shape[:2], middle, np.float32)
    at = np.abs(values).argmax(-1)[..., None]
    extreme = np.take_along_axis(values, at, -1)[..., 0]
    # there is one more code below the middle: a scale of the other sign gives it to the extreme
    units = [extreme / (middle - 1), -extreme / middle]
    return [(_nonzero(unit * shrink), zeros) for shrink in _SHRINK[bits] for unit in units]


def _asymmetric(values: np.ndarray, bits: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(scales, zero points) to start from, both ends of the range free."""
    levels = 2**bits - 1
    least, most = np.minimum(values.min(-1), 0), np.maximum(values.max(-1), 0)
    result = []
    for below in _SHRINK[bits]:
        for above in _SHRINK[bits]:
            low, high = least * below, most * above
            scales = _nonzero((high - low) / levels)
            result.append((scales, np.clip(np.rint(-low / scales), 0, levels)))
    return result


def _nonzero(scales: np.ndarray) -> np.ndarray:
    """Scales as float32; a block of zeros takes 1."""
    scales = scales.astype(np.float32)
    result: np.ndarray = np.where(np.abs(scales) < _SMALLEST, np.float32(1), scales)
    return result
