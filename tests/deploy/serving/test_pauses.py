"""What stays is left alone by the collector; what has become garbage before is not kept."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from deploy.serving.pauses import settle


class Node:
    """Part of a cycle, which only the collector frees."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def _frozen() -> Iterator[None]:
    """What is frozen in the end is what was collected for all tests, and nothing of these."""
    yield
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def test_what_stays_is_frozen() -> None:
    settle()
    assert gc.get_freeze_count() > 10_000
    assert len(gc.get_objects()) < 1000


@pytest.mark.thorough
def test_what_was_frozen_and_became_garbage_is_freed_the_next_time() -> None:
    node = Node()
    gone = weakref.ref(node)
    settle()
    del node
    gc.collect()
    assert gone() is not None
    settle()
    assert gone() is None
