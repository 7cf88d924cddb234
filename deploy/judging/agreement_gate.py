"""The gate of the largest values: how often those of scores of classes may differ from eager's."""

from collections.abc import Sequence

from deploy.judging.accuracy import MIN_LABELLED
from deploy.judging.limits import as_percent, show_share, tell_apart
from deploy.judging.output_parity import OutputParity
from deploy.judging.parity import ParityReport
from deploy.judging.shares import explain_few, holds_share


def list_scores(report: ParityReport) -> list[OutputParity]:
    """The outputs that are taken for scores of classes: those with such labels, or a lone one."""
    many = {name for name, each in report.accuracies.items() if each.read_as is not None}
    return [
        output
        for output in report.outputs
        if (output.name in report.judged or len(report.outputs) == 1)
        and output.name not in many
        and not output.integer
        and output.top1_agreement is not None
    ]


def hold_agreement(
    report: ParityReport, scores: Sequence[OutputParity], least: float
) -> tuple[str, str | None]:
    """The gate in words, and why it does not hold; None where it does.

    Args:
        report: of all outputs.
        scores: of `list_scores`, one at least.
        least: share of the rows whose largest value must be eager's.
    """
    gate = f"top-1 agreement at least {show_share(least)}"
    for output in scores:
        if holds_share(output, least):
            continue
        accuracy = report.accuracies.get(output.name)
        few = accuracy is not None and accuracy.samples < MIN_LABELLED
        labels = "more samples with labels" if few else "labels with the data"
        share = tell_apart(output.top1_agreement or 0.0, least, as_percent, 1)
        where = f" in output {output.name!r}" if len(scores) > 1 else ""
        return gate, (
            f"top-1 agrees{where} on {share} of {output.compared} samples, below "
            f"{show_share(least)}; pass {labels}, or --min-agreement 0 if this is no classifier"
        )
    return f"{gate}{explain_few(scores[0], least)}", None
