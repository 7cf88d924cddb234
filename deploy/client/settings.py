"""How a server is driven."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from deploy.option_values import check_choice, check_option
from export.errors import ConfigError

Arrivals = Literal["poisson", "fixed"]

MAX_CONNECTIONS = 500
"""``select`` takes 1,024 files; see `deploy.client.generator`."""


@dataclass(frozen=True)
class LoadSettings:
    """How a server is driven: at a rate (open loop) or by a number of callers (closed loop).

    Attributes:
        rate: requests a second, whether or not earlier ones were answered; None: a closed loop.
        concurrency: callers of a closed loop, each of which waits for its answer; None with a
            `rate`; with neither, one caller.
        arrivals: of an open loop: as independent callers come, or evenly.
        seconds: for how long requests are made.
        batch: rows of a request.
        seed: of arrivals and inputs.
        connections: at most so many; a request that finds none free waits, and that counts.
        timeout: seconds after which a request is given up, from when it was to be made.
    """

    rate: float | None = None
    concurrency: int | None = None
    arrivals: Arrivals = "poisson"
    seconds: float = 10.0
    batch: int = 1
    seed: int = 0
    connections: int = 128
    timeout: float = 30.0

    def __post_init__(self) -> None:
        if self.rate is not None and self.concurrency is not None:
            raise ConfigError(
                "--rate and --concurrency exclude each other: the one is an open loop, the other "
                "a closed one. Pass one of them."
            )
        check_option(
            self.rate is None or 0 < self.rate < math.inf, "rate", self.rate, "more than 0"
        )
        check_option(0 < self.seconds < math.inf, "seconds", self.seconds, "more than 0")
        check_option(0 < self.timeout < math.inf, "timeout", self.timeout, "more than 0")
        check_option(self.batch >= 1, "batch", self.batch, "1 or more")
        check_option(self.seed >= 0, "seed", self.seed, "0 or more")
        check_choice("arrivals", self.arrivals, Arrivals)
        for name, count in (("concurrency", self.callers), ("connections", self.connections)):
            check_option(1 <= count <= MAX_CONNECTIONS, name, count, f"1 to {MAX_CONNECTIONS}")
        if self.rate is None and self.callers > self.connections:
            raise ConfigError(
                f"--connections {self.connections}: {self.callers} callers need as many."
            )

    @property
    def callers(self) -> int:
        """Of a closed loop."""
        return 1 if self.concurrency is None else self.concurrency


def make_settings(flags: Mapping[str, Any], *, batch: int, seed: int) -> LoadSettings:
    """Settings from flags of the command line; those that are None have their defaults.

    Raises:
        ConfigError: a value cannot be used.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    if "arrivals" in given and "rate" not in given:
        raise ConfigError(
            f"--arrivals {given['arrivals']} is for --rate: callers of a closed loop wait for "
            "their answers. Pass --rate, or leave it out."
        )
    return LoadSettings(**given, batch=batch, seed=seed)


def refuse_without_url(flags: Mapping[str, Any]) -> None:
    """Flags that only a running server has a use for.

    Raises:
        ConfigError: one of them is given.
    """
    for name, value in flags.items():
        if value is not None:
            option = name.replace("_", "-")
            raise ConfigError(f"--{option} is for a running server. Pass its address: --url URL.")
