"""The gate that labels are: what a candidate may lose of the accuracy, and of the classes."""

from deploy.judging.accuracy import Accuracy
from deploy.judging.class_scores import ClassScores
from deploy.judging.limits import as_percent, tell_apart

_NAMED = 5
"""Lost classes that are named."""


def hold_accuracy(accuracy: Accuracy, max_drop: float) -> tuple[str, str | None]:
    """The gate in words, and why it does not hold; None where it does.

    Args:
        accuracy: of both, where the labels judge anything.
        max_drop: how much of it may be lost, a fraction. So much may the mean F1 of the classes
            lose too, beyond doubt.
    """
    gate = f"accuracy drop at most {max_drop:.2%} on {accuracy.samples} samples"
    if accuracy.threshold is not None:
        gate += f", class 1 above {accuracy.threshold:g}"
    if accuracy.drop > max_drop:
        low, high = accuracy.drop_ci95
        return gate, (
            f"accuracy drops by {tell_apart(accuracy.drop, max_drop, as_percent, 2)} (95% interval "
            f"{low:.2%} to {high:.2%}), more than {max_drop:.2%}"
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


def explain_certain_drop(accuracy: Accuracy, max_drop: float) -> str | None:
    """What float32 has lost beyond doubt; None where it may have lost no more than is allowed.

    Eager's own noise may be so large that it excuses any answers; it excuses none that are wrong
    more often than eager's. Where it is as large, accuracies differ by chance as well.
    """
    low, high = accuracy.drop_ci95
    if not low > max_drop:
        return None
    return (
        f"accuracy drops by {accuracy.drop:.2%} (95% interval {low:.2%} to {high:.2%}), more than "
        f"{max_drop:.2%} beyond doubt"
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
            f"{low:.2%} to {high:.2%}) to {f1.candidate:.2%}, more than {max_drop:.2%}"
        )
    if f1.lost:
        named = ", ".join(map(str, f1.lost[:_NAMED]))
        more = f" and {len(f1.lost) - _NAMED} more" if len(f1.lost) > _NAMED else ""
        return (
            f"of {of}, {named}{more} (counted from 0) {'is' if len(f1.lost) == 1 else 'are'} lost: "
            "the F1 there is what as many answers would have by chance, and eager's is above that"
        )
    return None
