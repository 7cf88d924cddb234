"""Files that torch writes: of a write that fails its writer tells nothing, or ends the process.

It is C++, and finishes the archive while it is taken down: where that fails, the program is
aborted. So it is given a file that takes everything, and keeps what went wrong until torch is done.
"""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast


@contextlib.contextmanager
def open_for_torch(path: Path) -> Iterator[IO[bytes]]:
    """A new file at `path`, for `torch.save` and `torch.export.save`.

    Raises:
        OSError: it cannot be opened, or, when the block has ended well, was not written; it names
            `path`.
    """
    file = _Patient(path.open("wb"))
    try:
        yield cast(IO[bytes], file)
    finally:
        file.finish()
    if file.failure is not None:
        failure = file.failure
        raise OSError(failure.errno, failure.strerror, str(path)) from failure


class _Patient(io.RawIOBase):
    """Writes to `file` until that fails, and takes the rest all the same."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.failure: OSError | None = None

    def writable(self) -> bool:
        """Which torch asks."""
        return True

    def seekable(self) -> bool:
        """Likewise."""
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        """`torch.export.save` ends at the beginning again."""
        with self._keep_failure():
            return self._file.seek(offset, whence)
        return offset

    def write(self, data: Any) -> int:
        """All of `data`, as it seems."""
        if self.failure is None:
            with self._keep_failure():
                self._file.write(data)
        return memoryview(data).nbytes

    def finish(self) -> None:
        """Write what is held back, and close the file."""
        with self._keep_failure():
            self._file.close()

    @contextlib.contextmanager
    def _keep_failure(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.failure = self.failure or error
