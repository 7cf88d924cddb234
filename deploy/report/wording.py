"""Numbers and texts as people read them. Unknown values read ``-``."""

import math
from collections.abc import Callable, Sequence
from typing import Any

UNKNOWN = "-"
NO_SIGNAL_DB = -300.0
"""How a report writes an SQNR below all others, since JSON has no infinity."""


def clean(text: object) -> str:
    """`text` on one line, with control and formatting characters spelled out.

    Names and reasons come from files of others: an escape sequence must not reach a terminal, nor a
    change of writing direction a page.
    """
    return escape(" ".join(str(text).split()))


def escape(text: str) -> str:
    """`text` with control and formatting characters spelled out, its spaces as they are."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def as_heading(text: str) -> str:
    """`text` with a capital in front."""
    return text[:1].upper() + text[1:]


def list_words(words: Sequence[str]) -> str:
    """``a, b and c``; `words` are not empty."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def format_number(value: float | None, digits: int = 3) -> str:
    """`value` to `digits` significant digits; exponents only where it is far from 1."""
    if value is None:
        return UNKNOWN
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "infinite"
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")
    magnitude = math.floor(math.log10(abs(rounded)))
    if magnitude < -4 or magnitude > 6:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(0, digits - 1 - magnitude)}f}"


def format_ratio(value: float | None) -> str:
    """A speed-up without its sign; one digit is enough for what is ten times slower.

    What is not 1 does not read as 1 where four places show it, since a gate asks for more than 1.
    """
    if value is not None and value != 1 and round(value, 2) == 1:
        return f"{value:.2f}" if round(value, 4) == 1 else f"{value:.4f}"
    return format_number(value, 3 if value is None or value >= 0.1 else 1)


def format_percent(value: float | None) -> str:
    """A fraction as percent with two places, 0.9761 as ``97.61%``; all but all is not ``100.00%``.

    Nor is next to none ``0.00%``: as many places are shown as that takes.
    """
    if value is None or not math.isfinite(value):
        return format_number(value)
    for places in range(2, 7):
        text = f"{100 * value:.{places}f}"
        if float(text) not in (0, 100):
            break
    return f"{100 * value:.2f}%" if value in (0, 1) else f"{text}%"


def format_points(value: float | None) -> str:
    """A difference of fractions in percentage points, without the unit."""
    return UNKNOWN if value is None else f"{round(100 * value, 2) + 0.0:.2f}"


def format_decibel(value: float | None) -> str:
    """An SQNR; infinite reads ``identical``, and where the reference is 0 it is ``no signal``."""
    if value is None or math.isnan(value):
        return format_number(value)
    if value <= NO_SIGNAL_DB:
        return "no signal"
    return "identical" if math.isinf(value) and value > 0 else f"{value:.1f} dB"


def format_error(decibel: float) -> str:
    """What an SQNR comes to, for those who do not think in dB: 26 dB as ``5.0%``.

    It is the root mean square of the error over that of the outputs, and holds for floats alone.
    """
    percent = 100 * 10 ** (-decibel / 20)
    return f"{format_number(percent, 2)}%" if percent >= 0.001 else "less than 0.001%"


def format_interval(
    pair: Sequence[float] | None, form: Callable[[float | None], str], *, between: str = "-"
) -> str:
    """Both ends of an interval; ``to`` in between where an end can be negative."""
    if pair is None:
        return UNKNOWN
    return f"{form(pair[0])}{between}{form(pair[1])}"


def format_bytes(value: float | None) -> str:
    """A size in units of 1000."""
    if value is None:
        return UNKNOWN
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5 or unit == "GB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{format_number(value)} {unit}"
        value /= 1000
    raise AssertionError("unreachable")


def format_count(value: float | None) -> str:
    """A count with a unit: 11,689,512 as ``11.7 million``."""
    if value is None:
        return UNKNOWN
    for size, unit, least in (
        (1e12, "trillion", 0.9995e12),
        (1e9, "billion", 0.9995e9),
        (1e6, "million", 1e6),
    ):
        if value >= least:
            return f"{format_number(value / size)} {unit}"
    return f"{value:,.0f}"


def format_samples(count: int, of: str = "") -> str:
    """``1 sample``, ``1,000 evaluation samples``."""
    return f"{count:,} {f'{of} ' if of else ''}sample{'s' * (count != 1)}"


def format_seconds(value: float | None) -> str:
    """A duration: ``0.21 s``, ``12 s``, ``3 min 5 s``."""
    if value is None:
        return UNKNOWN
    if value >= 100:
        minutes, seconds = divmod(round(value), 60)
        return f"{minutes} min {seconds} s"
    return f"{value:.0f} s" if value >= 10 else f"{format_number(value, 2)} s"


def format_time(created: str) -> str:
    """An ISO 8601 time in UTC as ``2026-11-24 03:00 UTC``; anything else as it is."""
    if len(created) >= 17 and created[10] == "T" and created.endswith("Z"):
        return f"{created[:10]} {created[11:16]} UTC"
    return clean(created)


def format_conditions(report: dict[str, Any]) -> str:
    """Machine, threads, batch and time, in one line: what every number of a report holds for."""
    machine, measurement = report["machine"], report["measurement"]
    devices = " and ".join(clean(name) for name in (machine["cpu"], machine["gpu"]) if name)
    eager = ""
    if machine["gpu"] and "device" in measurement:
        eager = f"eager on the {'GPU' if measurement['device'] == 'cuda' else 'CPU'}, "
    return (
        f"{devices or 'unknown machine'}, {_threads(measurement['threads'])}, "
        f"batch {measurement['batch']}, {eager}{format_time(report['created'])}"
    )


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def format_tensor(tensor: dict[str, object]) -> str:
    """``image: batch x 3 x 32 x 32, float32``; a range reads ``128 to 512 (best 224)``."""
    shape, ranges = tensor["shape"], tensor.get("ranges") or {}
    assert isinstance(ranges, dict)  # the schema says so
    texts = {name: f"{s['least']} to {s['most']} (best {s['best']})" for name, s in ranges.items()}
    parts = shape if isinstance(shape, list) else [shape]
    sizes = " x ".join(texts.get(size, str(size)) for size in parts)
    return f"{tensor['name']}: {sizes or 'scalar'}, {tensor['dtype']}"


def format_images(images: dict[str, Any]) -> str:
    """``x: the model is given (image / 255 - 0.5) / 0.25``, with numbers in brackets by channel."""
    mean, std = (_format_channels(images[key]) for key in ("mean", "std"))
    return f"{images['name']}: the model is given (image / {images['scale']:g} - {mean}) / {std}"


def _format_channels(values: list[float]) -> str:
    listed = ", ".join(f"{value:g}" for value in values)
    return listed if len(values) == 1 else f"[{listed}]"
