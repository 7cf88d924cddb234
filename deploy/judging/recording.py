"""A reference that remembers: eager runs once on the evaluation data, however often it is asked.

The search holds one model after another against the same answers.
"""

from dataclasses import dataclass, field

from deploy.cache import hash_batches
from deploy.engines.base import Feeds
from deploy.judging.checking import Reference
from deploy.judging.rows import Outputs
from export.artifacts import TensorSpec

_LIMIT_BYTES = 512 * 2**20


@dataclass
class RecordedReference:
    """Another reference, with its answers kept by the content of what was asked.

    Answers beyond half a gigabyte are not kept, but asked for again.
    """

    reference: Reference
    _answers: dict[str, Outputs] = field(default_factory=dict)
    _floors: dict[str, tuple[Outputs, Outputs] | None] = field(default_factory=dict)
    _bytes: int = 0

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The signature's outputs."""
        return self.reference.outputs

    def __call__(self, feeds: Feeds) -> Outputs:
        """Its outputs; not to be changed by the caller."""
        key = hash_batches([feeds])
        if key in self._answers:
            return self._answers[key]
        outputs = self.reference(feeds)
        if self._has_room(outputs):
            self._answers[key] = outputs
        return outputs

    def floor(self, feeds: Feeds, eager: Outputs) -> tuple[Outputs, Outputs] | None:
        """The exact outputs, and its own farthest from them as noise; None where not known."""
        key = hash_batches([feeds])
        if key in self._floors:
            return self._floors[key]
        floor = self.reference.floor(feeds, eager)
        if floor is None or (self._has_room(floor[0]) and self._has_room(floor[1])):
            self._floors[key] = floor
        return floor

    def _has_room(self, outputs: Outputs) -> bool:
        self._bytes += sum(array.nbytes for array in outputs.values())
        return self._bytes <= _LIMIT_BYTES
