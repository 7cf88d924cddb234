"""What a climb tried, and what it had no time for, are two things."""

import pytest

from deploy.search.rungs import OUT_OF_TIME, Rung, describe_vain

TRIED = Rung("rounding", "adaptive rounding", False, "output 'y' has an SQNR of 3.1 dB", 3.1, None)
FAILED = Rung("equalization", "equalization", False, "no layer could be equalized", None, None)
LEFT = Rung("fallback", "layers kept float", False, OUT_OF_TIME, None, None)


@pytest.mark.parametrize(
    ("rungs", "words"),
    [
        ([], ""),
        ([TRIED, FAILED], "tried in vain: adaptive rounding, equalization"),
        (
            [TRIED, LEFT],
            "tried in vain: adaptive rounding; no time in --effort quick for layers kept float",
        ),
        ([LEFT], "no time in --effort quick for layers kept float"),
    ],
)
def test_what_was_not_begun_was_not_tried_in_vain(rungs: list[Rung], words: str) -> None:
    assert describe_vain(rungs, "quick") == words
