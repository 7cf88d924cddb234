"""Short runs happen on the event loop; what may take longer must not hold it."""

import asyncio
import threading
from collections.abc import Mapping

import numpy as np
import pytest

from deploy.engines.base import Array
from deploy.serving import batcher as module
from deploy.serving.batcher import Batcher
from deploy.serving.running import RunPlan
from deploy.serving.waiting import BatchPolicy


def test_a_request_larger_than_all_before_it_does_not_run_on_the_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "INLINE_S", 10.0)
    threads: list[str] = []

    def engine(feeds: Mapping[str, Array]) -> dict[str, Array]:
        threads.append(threading.current_thread().name)
        return {"y": feeds["x"]}

    async def scenario() -> None:
        batcher = Batcher([engine], BatchPolicy(), RunPlan({"y": 0}))
        batcher.start()
        for width in [2] * 9 + [2, 2000, 2000, 2]:
            await batcher.submit({"x": np.zeros((1, width), np.float32)}, 1)
        await batcher.stop()

    asyncio.run(scenario())
    here = threading.current_thread().name
    assert threads[-4:] == [here, "engine-0", here, here]
