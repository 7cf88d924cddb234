"""Room for connections, each of which is an open file of the process."""

import contextlib
import resource

_ENOUGH = 2**16
_BESIDES = 1024
"""Files beside the connections of HTTP: those of gRPC, and of libraries."""


def allow_open_files(connections: int) -> None:
    """Raise the number of files that this process may have open, as far as the system lets it.

    Most systems begin with 1,024, for programs of old. Where they are spent, which idle connections
    to gRPC's port are enough for, nobody is answered any more, and nothing is loaded.

    Args:
        connections: of HTTP, that may be open at a time.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(_ENOUGH, connections + _BESIDES)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # a system may have a bound of its own
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
