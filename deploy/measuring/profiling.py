"""The census of a candidate that was measured, taken in a child."""

from dataclasses import replace

from deploy.engines.base import Feeds
from deploy.engines.process import call_in_child
from deploy.measuring.census import Census
from deploy.results import CandidateResult
from export.errors import DeployError
from export.progress import Progress, ProgressCallback, ignore_progress


def add_census(
    result: CandidateResult, feeds: Feeds, progress: ProgressCallback = ignore_progress
) -> CandidateResult:
    """Add what the engine ran in which precision, or why that is not known."""
    if result.spec is None or result.latency is None:
        return result
    progress(Progress("census", detail=result.name))
    try:
        census: Census | str = call_in_child(
            "deploy.measuring.census:take_census",
            threads=result.spec.threads,
            spec=result.spec,
            feeds=dict(feeds),
        )
    except (DeployError, OSError) as error:  # a full disk too: what is measured is lost by neither
        census = str(error)
    return replace(result, census=census)
