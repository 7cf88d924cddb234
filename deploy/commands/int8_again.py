"""The int8 of a bundle made once more on other samples, as near to the build's as these allow."""

from dataclasses import replace
from typing import Any

from deploy.bundle.folder import Bundle
from deploy.candidates.schemes import choose_scheme
from deploy.commands.debug_samples import DebugSamples
from export.artifacts import OnnxModel
from quantize.calibration.calibrate import calibrate
from quantize.recover.recovery import BIASES_ALONE, recover
from quantize.sensitivity.by_block import Quantizer

_MADE_UP = "minmax"
"""What a build takes where its inputs are made up, which say nothing of ranges or of means."""


def quantize_again(
    bundle: Bundle, model: OnnxModel, engine: str, samples: DebugSamples
) -> tuple[Quantizer, str]:
    """How the float model of `bundle` becomes int8 for `engine`.

    Ranges come from the observer that the build used, and biases are corrected as it does; on
    samples that are made up neither is.

    Args:
        model: the float32 model of `bundle`.
        samples: what ranges and means are taken from.

    Returns:
        The quantizer, and in words what it does and where that differs from the build.

    Raises:
        BundleError: the report of `bundle` cannot be read.
        QuantizeError: a range cannot be found.
        EngineError: ONNX Runtime refuses the model or a batch.
    """
    report = bundle.report()
    data, scheme = report["data"], choose_scheme(engine)
    built_on_data = data["kind"] != "synthetic"
    observer = (data["observer"] or _MADE_UP) if samples.real else _MADE_UP
    ranges = calibrate(model, samples.all_sizes(bundle), observer=observer)
    quantizer = Quantizer(model, ranges, scheme)
    done = f"int8 was calibrated on {samples.calibrated_on} with the observer {observer}"
    if samples.real and built_on_data:
        biases = recover(model, ranges, scheme, samples.calibration, BIASES_ALONE)
        return replace(quantizer, adjustments=biases), (
            f"{done}, as in the build, and biases were corrected{_mended(report, engine)}."
        )
    if built_on_data:
        return quantizer, (
            f"{done} and no bias was corrected; the build used {data['observer']} on data, so that "
            "its int8 is another one: pass --data to make it so here."
        )
    return quantizer, f"{done}, and no bias was corrected; the build had no data."


def _mended(report: dict[str, Any], engine: str) -> str:
    """What the build did to this engine's int8 beyond that, so that it passed."""
    for row in report["candidates"]:
        rungs = row.get("recovery") or []
        if row["name"] == f"{engine}-int8" and rungs and rungs[-1]["passed"]:
            return f"; the build mended it further ({rungs[-1]['words']}), which is left out here"
    return ""
