"""The gate that labels are: what a candidate may lose of the accuracy, and of the classes."""

from collections.abc import Mapping

from deploy.judging.accuracy import Accuracy
from deploy.judging.class_scores import ClassScores
from deploy.judging.limits import as_percent, show_drop, tell_apart

_NAMED = 5
"""Lost classes that are named."""
_ROUNDING = 1e-9
_GROWTH = 10
"""Shares of `max_drop` by which the squared error of a regression may grow: 10% by default."""


def hold_accuracies(held: Mapping[str, Accuracy], max_drop: float) -> tuple[str, str | None]:
    """The gate of all outputs in words, and why it does not hold; None where it does.

    Args:
        held: by output, where the labels judge anything; see `hold_accuracy`.
        max_drop: how much of each may be lost, a fraction.
    """
    gates, reasons = [], []
    for name, accuracy in held.items():
        gate, reason = hold_accuracy(accuracy, max_drop)
        where = f"{name}: " if len(held) > 1 else ""
        gates.append(f"{where}{gate}")
        reasons += [] if reason is None else [f"{where}{reason}"]
    return "; ".join(gates), "; ".join(reasons) or None


def hold_accuracy(accuracy: Accuracy, max_drop: float) -> tuple[str, str | None]:
    """The gate in words, and why it does not hold; None where it does.

    Args:
        accuracy: of both, where the labels judge anything.
        max_drop: how much of it may be lost, a fraction. So much may the mean F1 of the classes
            lose too, beyond doubt.
    """
    if accuracy.of_targets:
        return _hold_targets(accuracy, max_drop)
    gate = f"accuracy drop at most {show_drop(max_drop)} on {accuracy.samples} samples"
    if accuracy.threshold is not None:
        gate += f", class 1 above {accuracy.threshold:g}"
    if accuracy.drop > max_drop:
        low, high = accuracy.drop_ci95
        return gate, (
            f"accuracy drops by {tell_apart(accuracy.drop, max_drop, as_percent, 2)} (95% interval "
            f"{low:.2%} to {high:.2%}), more than {show_drop(max_drop)}"
        )
    if accuracy.forgotten:
        return f"{gate}, and above chance as eager's is", (
            f"its accuracy, {accuracy.candidate:.2%}, is what its answers would come to by chance "
            f"({accuracy.candidate_chance:.2%}), and eager's {accuracy.reference:.2%} is above "
            "that: classes that are rare are lost"
        )
    if accuracy.f1 is None:
        return gate, None
    of = _name_classes(accuracy, accuracy.f1.classes)
    return f"{gate}, and of the F1 of {of}", _explain_classes(accuracy.f1, of, max_drop)


def _hold_targets(accuracy: Accuracy, max_drop: float) -> tuple[str, str | None]:
    """R² may drop by `max_drop`, and its squared error grow by ten times that share of itself.

    Where nearly all is explained a hundredth of R² would be more than the whole error of eager.
    """
    limit = _limit_drop(accuracy, max_drop)
    own = f", which lets eager's squared error grow by {limit / (1 - accuracy.reference):.0%}"
    gate = f"{accuracy.measure} drop at most {limit:.3%} on {accuracy.samples} samples"
    gate += own if limit < max_drop * (1 - _ROUNDING) else ""
    if accuracy.drop <= limit:
        return gate, None
    low, high = accuracy.drop_ci95
    return gate, (
        f"{accuracy.measure} drops by {tell_apart(accuracy.drop, limit, as_percent, 3)} (95% "
        f"interval {low:.3%} to {high:.3%}), more than {limit:.3%}"
    )


def _limit_drop(accuracy: Accuracy, max_drop: float) -> float:
    """How much may be lost."""
    if not accuracy.of_targets:
        return max_drop
    return max_drop * min(1.0, _GROWTH * max(0.0, 1 - accuracy.reference))


def explain_certain_drops(held: Mapping[str, Accuracy], max_drop: float) -> str:
    """What float32 has lost of outputs beyond doubt, see `explain_certain_drop`; empty: nothing."""
    found = {name: explain_certain_drop(each, max_drop) for name, each in held.items()}
    several = len(held) > 1
    return "; ".join(f"{name}: {drop}" if several else drop for name, drop in found.items() if drop)


def explain_certain_drop(accuracy: Accuracy, max_drop: float) -> str | None:
    """What float32 has lost beyond doubt; None where it may have lost no more than is allowed.

    Eager's own noise may be so large that it excuses any answers; it excuses none that are wrong
    more often than eager's. Where it is as large, accuracies differ by chance as well.
    """
    low, high = accuracy.drop_ci95
    limit = _limit_drop(accuracy, max_drop)
    if not low > limit:
        return None
    digits = 3 if accuracy.of_targets else 2
    shown = [as_percent(value, digits) for value in (accuracy.drop, low, high)]
    most = as_percent(limit, digits) if accuracy.of_targets else show_drop(limit)
    return (
        f"{accuracy.measure} drops by {shown[0]} (95% interval {shown[1]} to {shown[2]}), more "
        f"than {most} beyond doubt"
    )


def _name_classes(accuracy: Accuracy, classes: int) -> str:
    """What the F1 is the mean of."""
    if accuracy.ranks:
        return f"{classes} labels"
    if accuracy.threshold is not None:
        return "class 1"
    return f"{classes} class{'es' * (classes > 1)}"


def _explain_classes(f1: ClassScores, of: str, max_drop: float) -> str | None:
    low, high = f1.drop_ci95
    if f1.drop > max_drop and low > 0:
        return (
            f"the F1 of {of} drops by {tell_apart(f1.drop, max_drop, as_percent, 2)} (95% interval "
            f"{low:.2%} to {high:.2%}) to {f1.candidate:.2%}, more than {show_drop(max_drop)}"
        )
    if f1.lost:
        named = ", ".join(map(str, f1.lost[:_NAMED]))
        more = f" and {len(f1.lost) - _NAMED} more" if len(f1.lost) > _NAMED else ""
        return (
            f"of {of}, {named}{more} (counted from 0) {'is' if len(f1.lost) == 1 else 'are'} lost: "
            "the F1 there is what as many answers would have by chance, and eager's is above that"
        )
    return None
