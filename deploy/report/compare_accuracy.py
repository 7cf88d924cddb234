"""The accuracy of two reports side by side: a difference counts only beyond both intervals."""

from typing import Any

from deploy.report.difference import Difference, with_interval
from deploy.report.facts import Accuracy, Report, accuracies_of, winner_of
from deploy.report.wording import UNKNOWN, format_interval, format_percent, format_points


def compare_accuracy(a: Report, b: Report) -> list[Difference]:
    """The accuracy of the winners, what they lose, and the F1 of their classes; [] without any.

    Of several outputs with labels that of each; of one it is no matter what the output is called.
    """
    first, second = (accuracies_of(report, winner_of(report)) for report in (a, b))
    if len(first) < 2 and len(second) < 2:
        one, other = (next(iter(found.values()), None) for found in (first, second))
        return _compare(one, other, "")
    return [
        difference
        for output in dict.fromkeys((*first, *second))
        for difference in _compare(first.get(output), second.get(output), f" in {output}")
    ]


def _compare(first: Accuracy | None, second: Accuracy | None, where: str) -> list[Difference]:
    """That of one output in both reports; `where` follows what is compared."""
    if first is None and second is None:
        return []
    lower = dropped = False
    name = next(each.measure for each in (first, second) if each is not None)
    if first is not None and second is not None and first.measure != second.measure:
        return [_tell_apart(first, second, where)]
    if first is not None and second is not None:
        lower = second.ci95[1] < first.ci95[0]
        dropped = second.drop_ci95[0] > first.drop_ci95[1]
    gone = second is None
    note = "lower: the 95% intervals do not overlap" if lower else ""
    if gone:
        note = "B was not judged on labelled data, as A was: build it with the same --data"
    return [
        Difference(
            f"{name}{where}",
            _show_accuracy(first),
            _show_accuracy(second),
            _points(first, second, "value"),
            regression=lower or gone,
            note=note,
        ),
        Difference(
            f"drop{where}, points",
            _show_drop(first),
            _show_drop(second),
            _points(first, second, "drop"),
            regression=dropped,
            note="larger against its own reference: the paired 95% intervals do not overlap"
            if dropped
            else "",
        ),
        *_compare_f1(first, second, where),
    ]


def _tell_apart(first: Accuracy, second: Accuracy, where: str) -> Difference:
    """Of measures of different kinds, which nothing can be said of together."""
    one, other = (f"{each.measure}\n{format_percent(each.value)}" for each in (first, second))
    note = "classes in one report, targets of a regression in the other: build both with one --data"
    what = f"accuracy{where}"
    return Difference(what, one, other, UNKNOWN, regression=False, note=note)


def _compare_f1(a: Accuracy | None, b: Accuracy | None, where: str) -> list[Difference]:
    """Where both reports have it: samples of many labels."""
    first, second = (None if each is None else each.f1 for each in (a, b))
    if first is None or second is None:
        return []
    dropped = second["drop_ci95"][0] > first["drop_ci95"][1]
    change = round(100 * (second["candidate"] - first["candidate"]), 2) + 0.0
    return [
        Difference(
            f"F1{where}, and its drop",
            _show_f1(first),
            _show_f1(second),
            f"{change:+.2f}",
            regression=dropped,
            note="larger drop than in A: the paired 95% intervals do not overlap"
            if dropped
            else "",
        )
    ]


def _show_f1(f1: dict[str, Any]) -> str:
    interval = format_interval(f1["drop_ci95"], format_points, between=" to ")
    return f"{format_percent(f1['candidate'])}\n{interval}"


def _show_accuracy(accuracy: Accuracy | None) -> str:
    if accuracy is None:
        return UNKNOWN
    return with_interval(accuracy.value, accuracy.ci95, format_percent)


def _show_drop(accuracy: Accuracy | None) -> str:
    if accuracy is None:
        return UNKNOWN
    interval = format_interval(accuracy.drop_ci95, format_points, between=" to ")
    return f"{format_points(accuracy.drop)}\n{interval}"


def _points(a: Accuracy | None, b: Accuracy | None, field: str) -> str:
    if a is None or b is None:
        return UNKNOWN
    return f"{round(100 * (getattr(b, field) - getattr(a, field)), 2) + 0.0:+.2f}"
