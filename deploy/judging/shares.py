"""Shares of equal answers, judged on as many answers as there are."""

from deploy.judging.output_parity import OutputParity

LIKELY = 0.05
"""What comes about less often than this at the least share speaks against it."""


def holds_share(output: OutputParity, least: float) -> bool:
    """Whether `top1_agreement` is at least `least`, as far as so many answers can tell.

    Of few answers a single one that differs is a larger share than is allowed, however good the
    engine. It is no fault where an engine of just the share `least` would likely show one.
    """
    if output.top1_agreement is None or output.top1_agreement >= least:
        return True
    differ = round((1 - output.top1_agreement) * output.compared)
    return differ == 1 and _tell_little(output, least)


def explain_few(output: OutputParity, least: float) -> str:
    """What a gate adds where its share is judged on few answers; else nothing."""
    few = _tell_little(output, least)
    return f" ({output.compared} are too few to tell: one may differ)" if few else ""


def _tell_little(output: OutputParity, least: float) -> bool:
    """Whether none may differ by the share alone, where one may well do by chance."""
    none_allowed = output.compared * (1 - least) < 1 - 1e-9
    return none_allowed and 1 - least**output.compared >= LIKELY
