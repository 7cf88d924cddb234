"""Samples on which a model magnifies rounding, and how far an export may be from it there.

A deep network that was never trained, or whose norms meet values unlike those that they were made
for, can lose a hundred times more of one sample than of the next. Its exports lose as much and are
right all the same. So where one is too far off by the tolerance of the whole model, every sample
gets one of its own:

- ten times what the module itself loses of it in float32 against float64, where that is rounding:
  as little as `LARGEST_NOISE`, or else no more than ten times what a change of the inputs by one
  step of float32 brings about. What is wrong is magnified there too, so that it still shows.
- none where it is neither, as beyond a discontinuity: such a sample proves nothing, and the others
  must. Where there is no other, the tolerance of the whole model stands.

A single number of the whole batch, such as a loss, is one sample; where it proves nothing, since it
is next to nothing itself, the samples of the other outputs must.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from export.capture.agreement import (
    LARGEST_NOISE,
    NOISE_FACTOR,
    Expectation,
    measure_sample_errors,
    run_eager,
    run_float64,
    widen,
)
from export.capture.arrays import to_tensor
from export.capture.signature import CallSignature

Array = np.ndarray[Any, Any]

LARGEST_AMPLIFIED = 1e-2
"""Above this part of its range, what rounding makes of a sample says nothing any more."""

_STEP = 2.0**-23
_UNKNOWN = float(np.finfo(np.float64).max)
_SEED = 20_260_102


def allow_amplified(
    module: nn.Module, signature: CallSignature, expected: Expectation
) -> Expectation:
    """`expected` with a tolerance for every sample of every floating output.

    Args:
        module: repeats its own answers.
        signature: of its call.
        expected: what it returns for one batch.

    Returns:
        `expected` itself where the module does not run in float64. What the module loses there of
        each output is noted, tolerance or not.
    """
    feeds = {name: to_tensor(array.copy()) for name, array in expected.feeds.items()}
    wide = run_float64(module, signature, feeds)
    if wide is None:
        return expected
    nudged = run_eager(module, signature, _nudge(feeds))
    samples: dict[str, Array] = {}
    losses: dict[str, float] = {}
    for (name, reference), exact, other in zip(expected.outputs.items(), wide, nudged, strict=True):
        if reference.dtype.kind != "f" or widen(exact).shape != reference.shape:
            continue
        noise = measure_sample_errors(reference, widen(exact))
        losses[name] = max(noise, default=0.0)
        echo = measure_sample_errors(reference, widen(other))
        found = _choose_tolerances(np.array(noise), np.array(echo), expected.tolerances[name])
        if found is not None:
            samples[name] = found
    if any((found < _UNKNOWN).any() for found in samples.values()):
        lone = [name for name in losses if not expected.outputs[name].ndim]
        samples = {name: np.array([_UNKNOWN]) for name in lone} | samples
    return replace(expected, samples=samples, losses=losses)


def _choose_tolerances(noise: Array, echo: Array, common: float) -> Array | None:
    """One for each sample; None where no sample proves anything."""
    amplified = (noise <= LARGEST_AMPLIFIED) & (noise <= NOISE_FACTOR * echo)
    proves = (noise <= LARGEST_NOISE) | amplified
    if not proves.any():
        return None
    return np.where(proves, np.maximum(NOISE_FACTOR * noise, common), _UNKNOWN)


def _nudge(feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Floating inputs changed by one step of float32, each value up or down."""
    generator = torch.Generator().manual_seed(_SEED)

    def change(value: Tensor) -> Tensor:
        signs = torch.randint(0, 2, value.shape, generator=generator) * 2.0 - 1.0
        return value + value * signs.to(value.dtype) * _STEP

    return {name: change(v) if v.is_floating_point() else v for name, v in feeds.items()}
