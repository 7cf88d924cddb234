"""How the model is called: its inputs from ``--input`` or the data, its signature by running it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from deploy.config import BuildConfig
from deploy.inputs.batch_axis import Call, settle_batch, to_tensors
from deploy.inputs.data import Dataset, split_checked
from deploy.inputs.data_images import ImageRows
from deploy.inputs.dataset import Rows, describe_inputs
from deploy.inputs.declared import DTYPES, InputSpec, parse_input, synthetic_feeds
from deploy.inputs.dynamic_axes import check_axis_names, keep_axes, settle_axes
from deploy.inputs.image_inputs import read_model_specs, settle_images, take_images
from export.artifacts import BATCH, TensorSpec
from export.capture.image_model import ImageModel
from export.capture.parameters import name_inputs
from export.capture.signature import CallSignature, describe_call
from export.errors import ConfigError, DataError, InputError
from export.images import FLOATS, ImageCall

EMPTY_WARNING = (
    "Output {} is empty on synthetic inputs, since its size hangs on their values, and nothing of "
    "it is compared. Pass --data with samples for which the model finds something."
)
LEFT_OUT_WARNING = (
    "The model also returns {}: no tensor, so that engines return nothing of it. If it is needed, "
    "return the tensors in it, as a tuple or a dict of them."
)
_FLOATS = ("float64", "float32", "float16", "bfloat16")
_GRAY_HINT = (
    "Images of a folder are read as RGB; pass --image-mode gray for a network of one channel. "
)
_SCALE_HINT = (
    "Images must be scaled as in training: (x / 255 - mean) / std as float32; or, where they are "
    "[N, H, W, C], say how in --image-input, and engines do it. "
)
_CHANNELS_HINT = "If the channels are last, transpose to [N, C, H, W]. "


@dataclass(frozen=True)
class SettledCall:
    """A call of the model that was seen to work.

    Attributes:
        given_batch: the leading size of the inputs as given, or the only one that is taken.
        static: engines take this batch size only.
        high: upper bounds for synthetic integers, by input.
        module: what was called: the user's, or an `ImageModel` around it.
        images: which inputs take uint8 images, where some do.
    """

    signature: CallSignature
    given_batch: int
    static: bool
    high: dict[str, int]
    warnings: tuple[str, ...]
    module: nn.Module
    images: ImageCall | None = None


def settle_call(module: nn.Module, config: BuildConfig, data: Dataset | None) -> SettledCall:
    """Find out what `module` takes and returns, on synthetic inputs of the shapes that are given.

    Raises:
        ConfigError: the inputs are not given, or by names that the model does not have.
        DataError: the inputs come from the data, and the model does not run on them.
        InputError: the model does not run on the inputs of ``--input``.
        ExportError: it returns no tensors.
    """
    specs = _settle_inputs(config, data, _find_dtype(module))
    names, keyword = _name(module, specs, config)
    by_name = {spec.name: spec for spec in specs}
    ordered = specs if None in by_name else tuple(by_name[name] for name in names)
    specs = tuple(replace(spec, name=name) for spec, name in zip(ordered, names, strict=True))
    found = settle_images(config, specs)
    images = ImageCall(found, keyword) if found else None
    if images is not None:
        module, keyword = ImageModel(module, images, names), False
        specs = tuple(take_images(spec, found) for spec in specs)
    check_axis_names(specs)
    high = {spec.name: spec.high for spec in specs if spec.name and spec.high is not None}
    call = Call(module, specs, keyword, high)
    try:
        signature, static, warnings = settle_batch(call, config)
        signature = settle_axes(call, signature)
    except InputError as error:
        if config.inputs or data is None:
            raise _blame_dtypes(error, call) from error.__cause__
        _check_alone(data, config)
        raise _blame_data(error, module, data) from error
    empty = [spec.name for spec in signature.outputs if 0 in spec.shape]
    if empty:
        warnings = (*warnings, EMPTY_WARNING.format(", ".join(empty)))
    if signature.left_out:
        warnings = (*warnings, LEFT_OUT_WARNING.format(", ".join(signature.left_out)))
    leading = signature.inputs[0].shape[0]
    given = leading if static and isinstance(leading, int) else specs[0].shape[0]
    return SettledCall(signature, given, static, high, warnings, module, images)


def describe_static(
    module: nn.Module, signature: CallSignature, batch: int, high: Mapping[str, int]
) -> CallSignature:
    """`signature` for batches of exactly `batch`.

    Raises:
        InputError: the model does not run on such a batch.
    """
    feeds = to_tensors(synthetic_feeds(signature.inputs, batch, seed=0, high=high))
    static = describe_call(module, feeds, keyword=signature.keyword, dynamic_batch=False)
    return keep_axes(static, signature)


def _find_dtype(module: nn.Module) -> str:
    """The one float type of the weights of `module`, where images may become it; else float32."""
    kinds = {str(p.dtype).removeprefix("torch.") for p in module.parameters()} & {*_FLOATS}
    found = kinds.pop() if len(kinds) == 1 else ""
    return found if found in FLOATS else "float32"


def _settle_inputs(config: BuildConfig, data: Dataset | None, dtype: str) -> tuple[InputSpec, ...]:
    """Of ``--input``, or of the data, in which images stand for floats of `dtype`."""
    if config.inputs:
        specs = tuple(parse_input(text) for text in config.inputs)
        if len({spec.shape[0] for spec in specs}) > 1:
            sizes = ", ".join(f"{spec.shape[0]}" for spec in specs)
            raise ConfigError(
                f"--input: the leading sizes are {sizes}; the batch comes first, and is the same "
                "for every input. Where inputs have none, such as the nodes and edges of a graph, "
                "put the model into a module that takes one sample of each, 1x..., and hands on "
                "x[0]; build that with --static-batch."
            )
        return specs
    if data is not None:
        for name, rows in data.inputs.items():
            if rows.dtype.name not in DTYPES:
                raise DataError(
                    f"{data.source}: {name} is {rows.dtype}, which no input can be; convert it "
                    f"with .astype to one of {', '.join(DTYPES)}."
                )
        return read_model_specs(data, config, dtype)
    raise ConfigError(
        "The shape of the inputs is not known. Pass --input, such as --input 1x3x224x224, or "
        "--data with samples to take it from."
    )


def _name(
    module: nn.Module, specs: tuple[InputSpec, ...], config: BuildConfig
) -> tuple[tuple[str, ...], bool]:
    try:
        return name_inputs(module, [spec.name for spec in specs])
    except ConfigError as error:
        if config.inputs:
            raise
        held = ", ".join(str(spec.name) for spec in specs)
        raise DataError(
            f"{config.data}: the names of its arrays ({held}) must be those of the model's inputs, "
            f"with y for the labels. {error}"
        ) from error


def _check_alone(data: Dataset, config: BuildConfig) -> None:
    """Find what is wrong with the data whatever the model takes, before the model is asked.

    Raises:
        DataError: a sample cannot be read, has another size than the first, or holds NaN.
    """
    specs = [
        TensorSpec(name, (BATCH, *rows.shape[1:]), rows.dtype.name)
        for name, rows in data.inputs.items()
    ]
    split_checked(data, config, specs)


def _blame_dtypes(error: InputError, call: Call) -> InputError:
    """`error` with the ``--input`` in the float type of the weights, where types do not fit."""
    kinds = {str(p.dtype).removeprefix("torch.") for p in call.module.parameters()}
    kind = kinds.pop() if len(kinds) == 1 else ""
    differ = [spec for spec in call.specs if spec.dtype in _FLOATS and spec.dtype != kind]
    told = "type" in str(error.__cause__) and kind in _FLOATS
    if not told or not differ or isinstance(call.module, ImageModel):
        return error
    spec = differ[0]
    sizes = "x".join(map(str, spec.shape))
    name = f"{spec.name}:" if len(call.specs) > 1 else ""
    return InputError(
        f"{error} The weights are {kind}, and {spec.name} is {spec.dtype}: to give it as {kind}, "
        f"pass --input {name}{sizes}:{kind}."
    )


def _blame_data(error: InputError, module: nn.Module, data: Dataset) -> DataError:
    """What the model said of the arrays that its inputs were taken from, with what to do."""
    said = error.__cause__
    words = str(error) if said is None else f"{type(said).__name__}: {str(said).rstrip('.')}."
    kinds = {str(p.dtype).removeprefix("torch.") for p in module.parameters()}
    weights = f" (its weights are {', '.join(sorted(kinds))})" if kinds else ""
    hints = {_hint_dtype(data, kinds)}
    if not isinstance(module, ImageModel):
        hints |= {_find_hint(rows) for rows in data.inputs.values()}
    return DataError(
        f"{data.source}, read as {describe_inputs(data)}: the model{weights} fails on such "
        f"samples: {words} {''.join(sorted(hints))}Save the samples in the shape and dtype that "
        "the model takes, or pass --input with them to see what differs."
    )


def _hint_dtype(data: Dataset, kinds: set[str]) -> str:
    """The ``--input`` that has floats read as the weights' own type; what differs is cast."""
    differ = [s for s in data.specs() if s.dtype in _FLOATS and kinds != {s.dtype}]
    if not differ or len(kinds) != 1 or not kinds <= set(_FLOATS):
        return ""
    texts = []
    for spec in data.specs():
        dtype = next(iter(kinds)) if spec in differ else spec.dtype
        sizes = "x".join(str(size) for size in spec.shape)
        texts.append(f"--input {f'{spec.name}:' if spec.name else ''}{sizes}:{dtype}")
    return f"To have it read as {next(iter(kinds))}, pass {' '.join(texts)}. "


def _find_hint(rows: Rows) -> str:
    sample = rows.shape[1:]
    if isinstance(rows, ImageRows) and rows.images.mode == "rgb":
        return _GRAY_HINT
    if rows.dtype == np.uint8:
        return _SCALE_HINT
    if len(sample) == 3 and sample[2] in (1, 3, 4) and sample[0] not in (1, 3, 4):
        return _CHANNELS_HINT
    return ""
