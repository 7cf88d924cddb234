"""The tables of the HTML page, one function a section. The facts behind the answer."""

from collections.abc import Callable
from typing import Any

from deploy.report.chart import status_glyph
from deploy.report.facts import (
    Report,
    accuracies_of,
    accuracy_of,
    describe_fidelity,
    describe_output,
    list_rows,
    name_measure,
    winner_of,
)
from deploy.report.fusion import describe_fusion
from deploy.report.markup import Markup, element, facts, join, table, table_body
from deploy.report.wording import (
    UNKNOWN,
    as_heading,
    format_bytes,
    format_decibel,
    format_interval,
    format_number,
    format_percent,
    format_points,
    format_ratio,
    format_samples,
)

_PARITY_HEADS = (
    "Output",
    "Max abs",
    "Mean abs",
    "Of range",
    "Cosine",
    "SQNR",
    "Worst sample",
    "Top-1 same",
    "To float64",
    "Eager to float64",
)


_DROP_HEADS = ("Drop in points", "95% of the drop")

_FUSED_HEADS = (
    "Layers",
    "Structure",
    "Parameters",
    "MACs",
    "Error, float64",
    "Error, float32",
    "Eager's own",
    "int8 weights",
)


def describe_candidates(report: Report) -> Markup:
    """What was tried and why it did not win; a reason stands under its row at full width."""
    measure = name_measure(report)
    outputs = accuracies_of(report, report["baseline"])
    where = f" in {next(iter(outputs))}" if len(outputs) > 1 else ""
    scores = ("SQNR",) if measure is None else (f"{as_heading(measure)}{where}", "SQNR")
    heads = ("Candidate", "Status", "p50 ms", "Speed-up", *scores, "Size")
    winner = winner_of(report)["name"]
    bodies = []
    for candidate, standing in list_rows(report):
        won = candidate["name"] == winner
        latency = candidate["latency"] or {}
        word = "winner" if won else standing
        accuracy = accuracy_of(report, candidate)
        score = format_percent(accuracy.value) if accuracy else UNKNOWN
        reference = candidate["name"] == report["baseline"]["name"]
        row = [
            element("span", candidate["name"], class_="name"),
            join(status_glyph(word), word),
            _with_interval(latency.get("p50_ms"), latency.get("p50_ci95")),
            _with_interval(latency.get("speedup"), latency.get("speedup_ci95"), format_ratio, "×"),
            *([] if measure is None else [score]),
            "reference" if reference else describe_fidelity(report, candidate),
            format_bytes(candidate["size_bytes"]),
        ]
        body = table_body(heads, [row], texts=2)
        if candidate["reason"]:
            cell = element("td", candidate["reason"], colspan=len(heads))
            body = join(body, element("tbody", element("tr", cell), class_="reason"))
        bodies.append(body)
    return _grouped(heads, bodies, texts=2)


def describe_latency(report: Report) -> Markup:
    """The first call, the tail, and how near the machine's own peak."""
    heads = ("Candidate", "First ms", "p50 ms", "p90 ms", "p99 ms", "Samples", "GMAC/s", "Of peak")
    rows: list[list[object]] = []
    for candidate, _ in list_rows(report):
        latency = candidate["latency"]
        if latency is None:
            continue
        share = latency["peak_fraction"]
        rows.append(
            [
                element("span", candidate["name"], class_="name"),
                format_number(latency["first_ms"]),
                _with_interval(latency["p50_ms"], latency["p50_ci95"]),
                _with_interval(latency["p90_ms"], latency["p90_ci95"]),
                _with_interval(latency["p99_ms"], latency["p99_ci95"]),
                f"{latency['samples']:,}",
                format_number(latency["gmacs_per_s"]),
                UNKNOWN if share is None else f"{100 * share:.1f}%",
            ]
        )
    return table(heads, rows)


def describe_accuracies(report: Report) -> Markup | None:
    """The task's accuracy of both, and the paired drop, by output; None without labels."""
    outputs = accuracies_of(report, report["baseline"])
    if not outputs:
        return None
    if len(outputs) == 1:
        return _describe_accuracy(report, *outputs)
    return join(
        *(
            join(element("h3", f"{as_heading(each.measure)} in {output}"), rows)
            for output, each in outputs.items()
            if (rows := _describe_accuracy(report, output))
        )
    )


def _describe_accuracy(report: Report, output: str) -> Markup:
    """One row a candidate that has an accuracy in `output`."""
    found = accuracies_of(report, report["baseline"])[output]
    heads: tuple[str, ...] = (
        "Candidate",
        as_heading(found.measure),
        "95%",
        *_DROP_HEADS,
        "Samples",
    )
    by_class, in_units = found.f1 is not None, found.rmse is not None
    heads += ("F1", *_DROP_HEADS, "Classes") if by_class else ()
    heads += ("RMSE",) if in_units else ()
    rows: list[list[object]] = []
    for candidate, _ in list_rows(report):
        accuracy = accuracies_of(report, candidate).get(output)
        if accuracy is None:
            continue
        paired = candidate["name"] != report["baseline"]["name"]
        rows.append(
            [
                element("span", candidate["name"], class_="name"),
                format_percent(accuracy.value),
                format_interval(accuracy.ci95, format_percent, between=" to "),
                format_points(accuracy.drop) if paired else UNKNOWN,
                format_interval(accuracy.drop_ci95, format_points, between=" to ")
                if paired
                else UNKNOWN,
                f"{accuracy.samples:,}",
                *(_class_cells(accuracy.f1, paired=paired) if by_class else ()),
                *((format_number(accuracy.rmse, 4),) if in_units else ()),
            ]
        )
    return table(heads, rows)


def _class_cells(f1: dict[str, Any] | None, *, paired: bool) -> tuple[str, ...]:
    """The mean F1 of the classes, its drop, and how many classes these are."""
    if f1 is None:
        return (UNKNOWN,) * 4
    drop = (UNKNOWN, UNKNOWN)
    if paired:
        interval = format_interval(f1["drop_ci95"], format_points, between=" to ")
        drop = (format_points(f1["drop"]), interval)
    return format_percent(f1["candidate" if paired else "reference"]), *drop, f"{f1['classes']:,}"


def describe_sizes_checked(parity: dict[str, Any]) -> str:
    """What was seen at other sizes of the dynamic axes, in words; empty: there are none."""
    seen = [
        ", ".join(f"{name}={size}" for name, size in entry["sizes"].items())
        + (" (identical)" if entry["sqnr_db"] is None else f" ({entry['sqnr_db']:.0f} dB)")
        for entry in parity.get("sizes_checked") or ()
    ]
    return f"; also at {'; '.join(seen)}" if seen else ""


def describe_parity(report: Report) -> Markup:
    """Each output of each candidate beside the eager model's."""
    bodies = []
    for candidate, _ in list_rows(report):
        parity = candidate["parity"]
        if parity is None:
            continue
        passed = "passed" if parity["passed"] else "not passed"
        batches = ", ".join(str(size) for size in parity["batches_checked"])
        sizes = describe_sizes_checked(parity)
        title = element(
            "td",
            element("span", candidate["name"], class_="name"),
            status_glyph("ok" if parity["passed"] else "rejected"),
            element("b", passed),
            element(
                "small",
                f"{parity['gate']}; {format_samples(parity['samples'], parity['data'])}, "
                f"batches of {batches or 'unknown size'}{sizes}",
            ),
            colspan=len(_PARITY_HEADS),
        )
        bodies.append(element("tbody", element("tr", title), class_="group"))
        bodies.append(
            table_body(_PARITY_HEADS, [_parity_row(report, o) for o in parity["outputs"]])
        )
    if not bodies:
        return element("p", "No candidate got as far as a comparison.", class_="quiet")
    return _grouped(_PARITY_HEADS, bodies)


def describe_graph(report: Report) -> Markup:
    """What was fused and what was not, folded away: it can be long."""
    model = report["model"]
    fused: list[list[object]] = [_fused_row(item) for item in model["fused"]]
    skipped: list[list[object]] = [
        [item["where"], item["what"], item["reason"]] for item in model["skipped"]
    ]
    attempts: list[list[object]] = [[item["rung"], item["error"]] for item in model["attempts"]]
    summary = element("p", describe_fusion(model)) if model.get("fusion") else join()
    return join(
        summary,
        _folded("Merged", table(_FUSED_HEADS, fused, texts=2), len(fused)),
        _folded("Not merged", table(("Where", "What", "Reason"), skipped, texts=3), len(skipped)),
        _folded(
            "Earlier attempts to capture",
            table(("Rung", "Error"), attempts, texts=2),
            len(attempts),
        ),
    )


def describe_stages(report: Report) -> Markup:
    """Where the time of the build went."""
    return facts(*((s["name"], f"{format_number(s['seconds'], 2)} s") for s in report["stages"]))


def _parity_row(report: Report, output: dict[str, Any]) -> list[object]:
    return [
        output["name"],
        *(format_number(output[key], 2) for key in ("max_abs", "mean_abs", "relative_to_range")),
        UNKNOWN if output["cosine"] is None else f"{output['cosine']:.6f}",
        describe_output(report, output),
        _worst_sample(output.get("worst_samples")),
        format_percent(output["top1_agreement"]),
        format_number(output["error_float64"], 2),
        format_number(output["noise_float64"], 2),
    ]


def _worst_sample(samples: list[dict[str, Any]] | None) -> str:
    """Its SQNR and its row in the data."""
    return (
        f"{format_decibel(samples[0]['sqnr_db'])} ({samples[0]['sample']})" if samples else UNKNOWN
    )


def _fused_row(item: dict[str, Any]) -> list[object]:
    weights = item.get("weights")
    return [
        ", ".join(item["paths"]),
        item.get("structure", item["kind"]),
        _change(item, "parameters"),
        _change(item, "macs"),
        *(
            format_number(item.get(key), 2)
            for key in ("error_float64", "error_float32", "noise_float32")
        ),
        UNKNOWN
        if weights is None
        else f"{format_decibel(weights['sqnr_db_before'])} → "
        f"{format_decibel(weights['sqnr_db_after'])}",
    ]


def _change(item: dict[str, Any], what: str) -> str:
    before, after = item.get(f"{what}_before"), item.get(f"{what}_after")
    return UNKNOWN if before is None or after is None else f"{before:,} → {after:,}"


def _folded(what: str, content: Markup, count: int) -> Markup:
    if count == 0:
        return element("p", f"{what}: 0", class_="quiet")
    return element("details", element("summary", f"{what}: {count}"), content)


def _with_interval(
    value: float | None,
    ci95: list[float] | None,
    form: Callable[[float | None], str] = format_number,
    unit: str = "",
) -> object:
    if value is None:
        return UNKNOWN
    shown = f"{form(value)}{unit}"
    if ci95 is None or ci95[0] == ci95[1]:
        return shown
    return join(shown, element("small", format_interval(ci95, form, between="–")))


def _grouped(heads: tuple[str, ...], bodies: list[Markup], *, texts: int = 1) -> Markup:
    cells = (
        element("th", head, scope="col", class_="text" if index < texts else "number")
        for index, head in enumerate(heads)
    )
    return element("table", element("thead", element("tr", *cells)), *bodies)
