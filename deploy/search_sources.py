"""What the search over precisions starts from."""

from dataclasses import dataclass
from pathlib import Path

from deploy.calibration import Calibrator
from deploy.checking import Reference
from deploy.config import BuildConfig
from deploy.engines.base import EngineSpec
from deploy.source import Problem
from export.artifacts import OnnxModel
from export.progress import ProgressCallback
from quantize.ranges import Ranges


@dataclass(frozen=True)
class Sources:
    """What the search starts from.

    Attributes:
        model: the fused float32 model.
        ranges: of its tensors.
        calibrator: of the problem, for other float models.
        reference: eager, with its answers recorded.
        stage: the staged bundle; files that ship land here.
    """

    model: OnnxModel
    ranges: Ranges
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

    def spec(self, engine: str, precision: str, file: Path) -> EngineSpec:
        """How a file is opened."""
        return EngineSpec(engine, precision, str(file), self.threads)
