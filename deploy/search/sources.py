"""What the search over precisions starts from."""

from dataclasses import dataclass
from pathlib import Path

from deploy.candidates.calibration import Calibrator
from deploy.candidates.corrections import Corrections
from deploy.candidates.schemes import choose_scheme
from deploy.config import BuildConfig
from deploy.engines.base import EngineSpec
from deploy.judging.checking import Reference
from deploy.source import Problem
from export.artifacts import OnnxModel
from export.progress import ProgressCallback
from quantize.calibration.ranges import Ranges
from quantize.sensitivity.by_block import Quantizer


@dataclass(frozen=True)
class Sources:
    """What the search starts from.

    Attributes:
        model: the fused float32 model.
        ranges: of its tensors.
        corrections: of the biases of its int8 models.
        calibrator: of the problem, for other float models.
        reference: eager, with its answers recorded.
        stage: the staged bundle; files that ship land here.
    """

    model: OnnxModel
    ranges: Ranges
    corrections: Corrections
    calibrator: Calibrator
    reference: Reference
    stage: Path
    scratch: Path

    @property
    def problem(self) -> Problem:
        """The model and its data."""
        return self.calibrator.problem

    @property
    def config(self) -> BuildConfig:
        """The options."""
        return self.calibrator.config

    @property
    def threads(self) -> int:
        """Of every engine."""
        return self.calibrator.threads

    @property
    def progress(self) -> ProgressCallback:
        """Told what goes on."""
        return self.calibrator.progress

    def quantizer(self, engine: str) -> Quantizer:
        """How the model becomes the int8 of one engine."""
        return Quantizer(self.model, self.ranges, choose_scheme(engine), self.corrections(engine))

    def spec(self, engine: str, precision: str, file: Path) -> EngineSpec:
        """How a file is opened."""
        return EngineSpec(engine, precision, str(file), self.threads, inputs=self.model.inputs)
