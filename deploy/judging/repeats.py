"""Does the model repeat its answers: does it draw random numbers, does a call change it.

The export was seen to agree on a few samples. A number that is drawn may reach the answers to one
sample in a hundred alone, and a buffer may drift too slowly to show within three calls.
"""

import pickle
import random

import numpy as np
import torch
from torch import nn

from deploy.engines.base import Feeds
from deploy.inputs.batch_axis import to_tensors
from deploy.inputs.data import Dataset
from deploy.judging.checking import CheckPlan, iterate_batches, run_reference
from deploy.judging.reference import is_same_answer, run_eager
from deploy.judging.rows import Outputs
from export.capture.image_model import find_user_module
from export.capture.randomness import describe_random, find_draw
from export.capture.signature import CallSignature
from export.errors import InputError

_DRAWS = (
    "The model draws {}. Its answers to {} samples were the same on two runs, so engines were held "
    "to them; where such numbers do reach an answer, no engine repeats it. Draw none in eval mode, "
    "or take them as an input."
)
_CHANGES = (
    "The model changes what it holds when it is called ({}), so that an answer may hang on what "
    "was asked before. Engines change nothing: they hold it as it was when they were built. Return "
    "it and take it as an input, or leave it alone in eval mode."
)
_NAMED = 3


def check_repeats(
    module: nn.Module, signature: CallSignature, data: Dataset, plan: CheckPlan
) -> tuple[str, ...]:
    """Warnings of a model that draws random numbers, or whose buffers a call changes.

    Of one that draws the answers to all of `data` are asked twice.

    Raises:
        InputError: it does not repeat them.
        DataError: it fails on them.
    """
    feeds = next((feeds for feeds, _ in iterate_batches(data, plan)), None)
    if feeds is None:  # fewer samples than the only batch size, which the comparison refuses
        return ()
    held = {name: value.clone() for name, value in find_user_module(module).named_buffers()}
    before = _read_generators(module)

    def run(asked: Feeds) -> Outputs:
        return run_eager(module, signature, asked)

    run_reference(run, feeds, data.source)
    after = _read_generators(module)
    drawn = [name for name, state in after.items() if before.get(name) != state]
    warnings = [_CHANGES.format(names)] if (names := _list_changed(module, held)) else []
    if not drawn:
        return tuple(warnings)
    draw = find_draw(module, to_tensors(feeds), signature)
    draw = draw or f"random numbers with {' and '.join(drawn)}"
    done = 0
    for asked, _ in iterate_batches(data, plan):
        first, again = (run_reference(run, asked, data.source) for _ in range(2))
        rows = len(next(iter(asked.values())))
        if not is_same_answer(first, again):
            where = f"samples {done} to {done + rows - 1} of {data.source} have other answers"
            raise InputError(describe_random(f"on a second run {where}", draw))
        done += rows
    return (*warnings, _DRAWS.format(draw, done))


def _list_changed(module: nn.Module, held: dict[str, torch.Tensor]) -> str:
    """Names of the buffers that are not what they were in `held`."""
    changed = []
    for name, value in find_user_module(module).named_buffers():
        known = held.get(name)
        if known is None or known.shape != value.shape or not _equal(known, value):
            changed.append(name)
    more = f" and {len(changed) - _NAMED} more" if len(changed) > _NAMED else ""
    return ", ".join(f"buffer {name!r}" for name in changed[:_NAMED]) + more


def _equal(known: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether all values are the same; NaN is NaN."""
    return bool(((known == value) | ((known != known) & (value != value))).all())


def _read_generators(module: nn.Module) -> dict[str, bytes]:
    """The state of each generator that `module` may draw from: those of all, and its own."""
    states = {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy.random": pickle.dumps(np.random.get_state()),
        "random": pickle.dumps(random.getstate()),
    }
    for path, child in find_user_module(module).named_modules():
        for name, value in vars(child).items():
            state = _read_state(value)
            if state is not None:
                states[f"its generator {f'{path}.{name}'.lstrip('.')!r}"] = state
    return states


def _read_state(value: object) -> bytes | None:
    """Of a generator of torch, numpy or Python; None of anything else."""
    if isinstance(value, torch.Generator):
        return value.get_state().numpy().tobytes()
    if isinstance(value, np.random.Generator):
        return pickle.dumps(value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        return pickle.dumps(value.get_state())
    return pickle.dumps(value.getstate()) if isinstance(value, random.Random) else None
