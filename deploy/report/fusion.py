"""What was merged, as text: the terminal of `deploy fuse` and `deploy inspect`, and the warnings.

Works on plain values, as a certificate or ``report.json`` holds them.
"""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from deploy.report.wording import UNKNOWN, clean, format_count, format_number
from export.artifacts import SQNR_LOSS_DB

_PLACES = 3
_PLAIN_KINDS = ("conv-bn", "linear-bn")


def print_certificate(certificate: dict[str, Any], console: Console) -> None:
    """The answer, one row a merged block, what was left and why, and warnings."""
    sentence = describe_fusion({**certificate, "fusion": certificate["model"]})
    console.print(Text(clean(sentence), style="bold", overflow="fold"))
    blocks = [item for item in certificate["fused"] if item["kind"] not in _PLAIN_KINDS]
    plain = [item for item in certificate["fused"] if item["kind"] in _PLAIN_KINDS]
    if certificate["fused"]:
        console.print()
        console.print(_make_table(blocks, plain))
    for line in summarize_skips(certificate["skipped"]):
        console.print(Text(clean(f"Left: {line}"), overflow="fold"))
    warning = warn_of_outliers(certificate["fused"])
    if warning:
        console.print(Text(clean(f"Warning: {warning}"), style="yellow", overflow="fold"))


def print_layers(layers: Sequence[Any], console: Console) -> None:
    """One row a layer: where, what, how large, and how far it sees."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for index, head in enumerate(
        ("layer", "operator", "output", "parameters", "MACs", "receptive\nfield")
    ):
        table.add_column(head, justify="left" if index < 2 else "right", overflow="fold")
    for row in layers:
        field = row.receptive_field
        sees = "all" if field is None else _join(field) if field else "-"
        cells = (row.path, row.operator, _join(row.output), f"{row.parameters:,}", f"{row.macs:,}")
        table.add_row(*(Text(clean(cell)) for cell in (*cells, sees)))
    console.print(table)


def describe_fusion(model: dict[str, Any]) -> str:
    """What came of it all, in a sentence or two, from ``fused`` and ``fusion`` of a report."""
    fused, skipped, model = model["fused"], model["skipped"], model["fusion"]
    if not fused:
        places = len(skipped)
        if places:
            left = "1 place was" if places == 1 else f"{places} places were"
            return f"Nothing was merged: {left} looked at, and left for a reason."
        return "Nothing was merged: no layers stand together that are one layer exactly."
    merged = sum(item["kind"] not in _PLAIN_KINDS for item in fused)
    folded = len(fused) - merged
    counts = ((merged, "block", "merged"), (folded, "norm", "folded"))
    parts = [f"{_count(number, what)} {done}" for number, what, done in counts if number]
    changes = (
        _describe_change("layers", str(model["layers_before"]), str(model["layers_after"])),
        *(
            _describe_change(noun, *(format_count(model[f"{key}_{when}"]) for when in _WHEN))
            for noun, key in (("parameters", "parameters"), ("MACs", "macs"))
        ),
    )
    text = f"{' and '.join(parts)}: {', '.join(changes)}."
    if model["error_float32"] is None:
        return f"{text} The whole model was not held against float64: {model['reason']}."
    return (
        f"{text} The whole model is off by {format_number(model['error_float32'], 2)} from "
        f"float64, eager itself by {format_number(model['noise_float32'], 2)}."
    )


def _describe_change(noun: str, before: str, after: str) -> str:
    """``9 layers became 3``, or ``3 layers as before``."""
    return f"{after} {noun} as before" if before == after else f"{before} {noun} became {after}"


def summarize_skips(skipped: Sequence[dict[str, Any]]) -> list[str]:
    """One line a reason, with how often and where."""
    places: dict[str, list[str]] = {}
    for item in skipped:
        places.setdefault(item["reason"], []).append(item["where"])
    lines = []
    for reason, where in places.items():
        shown = "; ".join(where[:_PLACES]) + ("; ..." if len(where) > _PLACES else "")
        count = f"{len(where)} places: " if len(where) > 1 else ""
        lines.append(f"{count}{reason} ({shown})")
    return lines


def warn_of_outliers(fused: Sequence[dict[str, Any]]) -> str | None:
    """The merged blocks whose weights int8 would hurt; None where there are none."""
    worse = [
        (weights["sqnr_db_before"] - weights["sqnr_db_after"], item, weights)
        for item in fused
        if (weights := item.get("weights")) is not None
        and None not in (weights["sqnr_db_before"], weights["sqnr_db_after"])
        and weights["sqnr_db_before"] - weights["sqnr_db_after"] > SQNR_LOSS_DB
    ]
    if not worse:
        return None
    _, item, weights = max(worse, key=lambda entry: entry[0])
    return (
        f"Merging left outliers in the weights of {len(worse)} of {len(fused)} layers; rounded to "
        f"int8 they lose more than before. The worst is {name_block(item['paths'])}: "
        f"{weights['sqnr_db_before']:.1f} dB before, {weights['sqnr_db_after']:.1f} dB merged. "
        "Look at the accuracy of int8 before you ship it."
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _make_table(blocks: list[dict[str, Any]], plain: list[dict[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("merged", overflow="fold")
    for head in ("parameters\nafter", "MACs\nafter", "error\neager's", "int8 dB\nafter"):
        table.add_column(head, justify="right", overflow="fold")
    for item in blocks:
        label = Text(clean(name_block(item["paths"])))
        label.append(f"\n{clean(item['structure'])}", style="dim")
        table.add_row(label, *_cells([item]))
    if plain:
        table.add_row(Text(_describe_plain(len(plain))), *_cells(plain))
    return table


def _describe_plain(count: int) -> str:
    return "1 norm folded" if count == 1 else f"{count} norms folded, the worst error shown"


def name_block(paths: Sequence[str]) -> str:
    """The module that holds all of `paths`; the paths where there is none."""
    split = [path.split(".") for path in paths]
    depth = 0
    while all(len(parts) > depth for parts in split) and len({p[depth] for p in split}) == 1:
        depth += 1
    if depth:
        return ".".join(split[0][:depth])
    return ", ".join(paths[:_PLACES]) + (", ..." if len(paths) > _PLACES else "")


def _cells(items: list[dict[str, Any]]) -> list[Text]:
    worst = max(items, key=lambda item: item["error_float32"])
    weights = worst["weights"] if len(items) == 1 else None
    pairs = (
        *(
            tuple(f"{sum(item[f'{what}_{when}'] for item in items):,}" for when in _WHEN)
            for what in ("parameters", "macs")
        ),
        tuple(format_number(worst[key], 2) for key in ("error_float32", "noise_float32")),
        (UNKNOWN, "")
        if weights is None
        else tuple(_decibel(weights[f"sqnr_db_{when}"]) for when in _WHEN),
    )
    cells = []
    for before, after in pairs:
        cell = Text(before)
        cell.append(f"\n{after}", style="dim")
        cells.append(cell)
    return cells


def _decibel(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.1f}"


def _join(sizes: Sequence[int]) -> str:
    return "x".join(str(size) for size in sizes) or "scalar"


_WHEN = ("before", "after")
