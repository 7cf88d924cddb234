"""The baseline of a build: eager on its device, and what it gives there."""

from collections.abc import Mapping
from dataclasses import dataclass

from deploy.engines.device import CPU, CUDA
from deploy.judging.parity import ParityReport
from export.errors import EngineError


@dataclass(frozen=True)
class EagerBaseline:
    """Where eager runs, and how far it is there from eager on the CPU.

    Attributes:
        device: ``cpu`` or ``cuda``.
        parity: of eager on the GPU; None on the CPU, where it is the reference itself.
        warning: why it does not run where it might have.
    """

    device: str = CPU
    parity: ParityReport | None = None
    warning: str | None = None


ON_CPU = EagerBaseline()


def settle_eager(
    device: str, asked: str, checked: Mapping[str, ParityReport | str]
) -> EagerBaseline:
    """The baseline, after eager was run on its device beside the candidates.

    Args:
        device: that was chosen.
        asked: ``auto``, ``cpu`` or ``cuda``, as the user gave it.
        checked: reports by name; eager's own is ``torch``, or the reason why it failed.

    Raises:
        EngineError: eager fails on the GPU, which was asked for.
    """
    if device != CUDA:
        return ON_CPU
    found = checked["torch"]
    if not isinstance(found, str):
        return EagerBaseline(CUDA, found)
    if asked == CUDA:
        raise EngineError(
            f"--device cuda: the model does not run on the GPU as it is: {found} Give --device cpu "
            "to hold the engines against eager on the CPU."
        )
    return EagerBaseline(
        CPU, None, f"The model does not run on the GPU as it is ({found}), so eager ran on the CPU."
    )
