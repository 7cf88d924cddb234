"""What a build is given, settled: the module, its call, its inputs, its data."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from deploy.config import BuildConfig
from deploy.engines.base import EngineSpec, Feeds
from deploy.engines.device import CPU
from deploy.full_disk import explain_full
from deploy.inputs.batch_axis import TRACE_BATCH, to_tensors, warn_of_static
from deploy.inputs.data import ArrayRows, Dataset, open_data, split_checked
from deploy.inputs.dataset import LABELS
from deploy.inputs.declared import parse_input, synthetic_feeds
from deploy.inputs.signatures import (
    SettledCall,
    describe_static,
    settle_call,
)
from deploy.judging.checking import CheckPlan, run_reference
from deploy.judging.gates import DataKind
from deploy.judging.labelled_outputs import Labelling, choose_labelled
from deploy.judging.layouts import LabelledOutput
from deploy.judging.reference import run_eager
from deploy.judging.repeats import check_repeats
from deploy.judging.rows import Outputs
from deploy.loading.model_files import load_model, prepare_module
from deploy.loading.unpicklable import OTHER_WAY, describe_unpicklable
from deploy.torch_files import open_for_torch
from export.capture.parameters import list_needed
from export.capture.program import condense_error
from export.capture.signature import CallSignature
from export.errors import LoadError
from export.images import ImageCall

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_SYNTHETIC_SAMPLES = 16


@dataclass(frozen=True)
class Problem:
    """One model with everything that a build needs to know of it.

    Attributes:
        module: the user's, in eval mode, on the CPU.
        file: the user's model file, or the one that a module was written to.
        kind: what the evaluation data is worth.
        given_batch: the leading size of the inputs as given.
        static_batch: the only batch size of every engine; None: dynamic.
        labelled: the outputs that labels are held against; none without labels.
        high: upper bounds for synthetic integers, by input.
        images: which inputs take uint8 images; `module` is then an `ImageModel` around the user's.
        row_bytes: of the largest value that the float32 model makes of one sample; 0: not known.
    """

    name: str
    module: nn.Module
    file: Path
    form: str
    program: "ExportedProgram | None"
    trust: tuple[str, ...]
    factory: str | None
    signature: CallSignature
    given_batch: int
    static_batch: int | None
    latency_batch: int
    calibration: Dataset
    evaluation: Dataset
    kind: DataKind
    source: str | None
    labelled: tuple[LabelledOutput, ...]
    high: dict[str, int]
    seed: int
    warnings: tuple[str, ...]
    images: ImageCall | None = None
    row_bytes: int = 0

    def trace_rows(self) -> Feeds:
        """Example inputs: a batch of 2, or the static one; of the data where given.

        Noise is unlike what the model was made for: where it drives every score of a detector below
        what two runtimes agree on, the class numbers behind them differ, though no export is wrong.
        """
        batch = self.static_batch or TRACE_BATCH
        if self.kind == "synthetic":
            return self.synthetic(batch, seed=self.seed)
        count = len(self.evaluation)
        return self.evaluation.batch(np.arange(batch) * max(1, count // batch) % count)

    def trace_feeds(self) -> dict[str, torch.Tensor]:
        """`trace_rows` as tensors, for capture.

        Raises:
            DataError: the model itself fails on these samples.
        """
        rows = self.trace_rows()
        if self.kind != "synthetic":
            run_reference(
                lambda feeds: run_eager(self.module, self.signature, feeds),
                rows,
                self.evaluation.source,
            )
        return to_tensors(rows)

    def synthetic(self, batch: int, *, seed: int) -> Feeds:
        """Seeded synthetic inputs of the model's signature."""
        return synthetic_feeds(self.signature.inputs, batch, seed=seed, high=self.high)

    def check_plan(self) -> CheckPlan:
        """How candidates are compared with eager."""
        inputs = self.signature.inputs
        return CheckPlan(
            self.static_batch,
            self.labelled,
            inputs=inputs,
            row_bytes=self.row_bytes,
        )

    def latency_feeds(self) -> Feeds:
        """What every engine is timed on: evaluation samples, repeated to fill the batch."""
        return self.evaluation.batch(np.arange(self.latency_batch) % len(self.evaluation))

    def baseline_spec(self, threads: int, device: str = CPU) -> EngineSpec:
        """Eager torch on a device, as a child process opens it."""
        return EngineSpec(
            engine="torch",
            precision="fp32",
            path=str(self.file),
            threads=threads,
            trust=self.trust,
            factory=self.factory,
            keyword=self.signature.keyword,
            inputs=self.signature.inputs,
            outputs=self.signature.outputs,
            variant="" if device == CPU else device,
            images=self.images,
        )

    def check_repeats(self) -> "Problem":
        """The same with what is to be said of a model that may not repeat its answers.

        Raises:
            InputError: it does not.
            DataError: it fails on the data.
        """
        found = check_repeats(self.module, self.signature, self.evaluation, self.check_plan())
        return replace(self, warnings=(*self.warnings, *found))

    def with_static_batch(self, place: str = "") -> "Problem":
        """The same for a model that cannot be exported with a dynamic batch.

        Args:
            place: of the code that is the reason, where it is known.

        Raises:
            InputError: the model does not run on a batch of that size.
        """
        warning = warn_of_static(self.given_batch, place)
        return replace(
            self,
            signature=describe_static(self.module, self.signature, self.given_batch, self.high),
            static_batch=self.given_batch,
            latency_batch=self.given_batch,
            warnings=(*self.warnings, warning),
        )


def open_problem(model: Path | str | nn.Module, config: BuildConfig, scratch: Path) -> Problem:
    """Load the model and the data, settle the signature, and hold one against the other.

    Raises:
        InputError: the model cannot be loaded, the inputs are not given or do not fit, or the data
            cannot be used.
        ExportError: the model itself fails on these inputs.
    """
    trust: tuple[str, ...] = ("*",)
    if isinstance(model, nn.Module):
        module, loaded_warnings = prepare_module(model)
        file, form, program = write_module(module, scratch), "module", None
        name = type(model).__name__
    else:
        file, trust = Path(model), config.trust
        loaded = load_model(file, trust=trust, factory=config.model)
        module, form, program = loaded.module, loaded.form, loaded.program
        loaded_warnings, name = loaded.warnings, file.name
    data = _open(config, module)
    call = settle_call(module, config, data)
    if call.images is not None:
        module, program = call.module, None
    calibration, evaluation, kind = _split(data, call, config)
    labelling = _choose_labelled(module, call, data, evaluation, config.classes)
    return Problem(
        name=name,
        module=module,
        file=file,
        form=form,
        program=program,
        trust=trust,
        factory=config.model,
        signature=call.signature,
        given_batch=call.given_batch,
        static_batch=call.given_batch if call.static else None,
        latency_batch=call.given_batch if call.static else config.batch,
        calibration=calibration,
        evaluation=evaluation,
        kind=kind,
        source=config.data,
        labelled=labelling.outputs,
        high=call.high,
        seed=config.seed,
        warnings=(*loaded_warnings, *call.warnings, *labelling.warnings),
        images=call.images,
    )


def write_module(module: nn.Module, folder: Path) -> Path:
    """A module from memory as a file that child processes can open, classes of scripts included.

    Raises:
        LoadError: something in the module cannot be pickled, or there is no room for it.
    """
    path = folder / "model.pt"
    try:
        with open_for_torch(path) as file:
            _pickle_module(module, file)
    except OSError as error:
        what, fix = explain_full(error, folder, otherwise="set TMPDIR to a folder that has some")
        raise LoadError(
            f"{type(module).__name__} cannot be written for engine processes to open: {what}. {fix}"
        ) from error
    return path


def _pickle_module(module: nn.Module, file: Any) -> None:
    import cloudpickle

    try:
        torch.save(module, file, pickle_module=cloudpickle)
    except Exception as error:  # __getstate__ of the user's own classes: whatever it raises
        what = describe_unpicklable(module, cloudpickle.dumps)
        raise LoadError(
            f"{type(module).__name__} cannot be pickled, so that engine processes could not open "
            f"it: {condense_error(error)}{what}. {OTHER_WAY}"
        ) from error


def _open(config: BuildConfig, module: nn.Module) -> Dataset | None:
    if config.data is None:
        return None
    limit = config.calibration_samples + config.evaluation_samples
    shapes = [parse_input(text).shape for text in config.inputs]
    images = config.images_for(shapes, uint8=bool(config.image_input))
    taken = _list_taken(config, module)
    return open_data(config.data, images=images, input_names=None, limit=limit, taken=taken)


def _list_taken(config: BuildConfig, module: nn.Module) -> set[str]:
    """Arrays that are inputs and no labels, called ``y`` as well: of ``--input``, or of forward.

    The only input of a model is `x` in the data, where forward calls it ``y``.
    """
    names = {spec.name for spec in map(parse_input, config.inputs) if spec.name is not None}
    if names:
        return names
    needed = {*list_needed(module)}
    return needed - {LABELS} if len(needed) == 1 else needed


def _split(
    data: Dataset | None, call: SettledCall, config: BuildConfig
) -> tuple[Dataset, Dataset, DataKind]:
    signature = call.signature
    if data is None:
        count = max(_SYNTHETIC_SAMPLES, call.given_batch)
        synthetic = [
            _synthetic_dataset(signature, count, config.seed + offset, call.high)
            for offset in (0, 1)
        ]
        return synthetic[0], synthetic[1], "synthetic"
    at_best = tuple(replace(s, shape=(s.shape[0], *s.with_batch(1)[1:])) for s in signature.inputs)
    split = split_checked(data, config, at_best)
    kind: DataKind = "labelled" if split.evaluation.is_labelled else "unlabelled"
    return split.calibration.bind(signature.inputs), split.evaluation.bind(signature.inputs), kind


def _synthetic_dataset(
    signature: CallSignature, count: int, seed: int, high: dict[str, int]
) -> Dataset:
    arrays = synthetic_feeds(signature.inputs, count, seed=seed, high=high)
    rows = {name: ArrayRows(array, array.dtype) for name, array in arrays.items()}
    return Dataset(rows, None, "synthetic", named=True)


def _choose_labelled(
    module: nn.Module,
    call: SettledCall,
    data: Dataset | None,
    evaluation: Dataset,
    named: str | None,
) -> Labelling:
    """The outputs that labels are held against; the name that was given is checked always."""

    def run(feeds: Feeds) -> Outputs:
        return run_eager(module, call.signature, feeds)

    return choose_labelled(
        evaluation if data is None else data,
        evaluation,
        call.signature.outputs,
        lambda feeds: run_reference(run, feeds, evaluation.source),
        CheckPlan(call.given_batch if call.static else None),
        named=() if named is None else (named,),
    )
