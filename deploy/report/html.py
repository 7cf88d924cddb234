"""The report as one HTML page that needs nothing else: no script, font or image from outside."""

import math
from importlib import resources

from deploy.report.census import describe_census
from deploy.report.chart import draw_latency
from deploy.report.facts import (
    WIDE,
    Candidate,
    Report,
    accuracies_of,
    baseline_wins,
    describe_fidelity,
    describe_luck,
    describe_openings,
    name_measure,
    sqnr_of,
    top1_of,
    winner_of,
)
from deploy.report.finish import describe_finish, finish_sentence
from deploy.report.markup import Markup, element, facts, join
from deploy.report.search import join_search
from deploy.report.sections import (
    describe_accuracies,
    describe_candidates,
    describe_graph,
    describe_latency,
    describe_parity,
    describe_stages,
)
from deploy.report.terminal import control_sentence, tie_sentences
from deploy.report.wording import (
    as_heading,
    format_bytes,
    format_conditions,
    format_count,
    format_error,
    format_images,
    format_interval,
    format_number,
    format_percent,
    format_points,
    format_ratio,
    format_samples,
    format_seconds,
    format_tensor,
    format_time,
)

_MOST_FIGURES = 3
"""Outputs whose accuracy is shown large; the section below has all."""
_IN_A_ROW = 5
"""Figures that stand beside each other; of more there are fewer in a row, for they are wider."""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def render_html(report: Report) -> str:
    """`report` as one self-contained HTML document; every text of it is escaped."""
    name = report["model"]["name"]
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"{name} - deploy report"),
        element("style", _stylesheet()),
    )
    body = element("body", element("main", *_sections(report)), _footer(report))
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def _sections(report: Report) -> tuple[Markup | None, ...]:
    return (
        _headline(report),
        _warnings(report),
        _section(
            "Latency",
            draw_latency(report),
            *map(_quiet, (*tie_sentences(report), control_sentence(report))),
        ),
        _section("Candidates", describe_candidates(report)),
        _section("Finished later", describe_finish(report)),
        _section(_name_accuracies(report), describe_accuracies(report)),
        _section("Parity with the eager model", describe_parity(report), _parity_note()),
        _section("Latency in detail", describe_latency(report), _latency_note()),
        _section("Precision, block by block", join_search(report)),
        _section("Precision census", describe_census(report), _census_note()),
        _section("Model", _model_facts(report), describe_graph(report)),
        element(
            "div",
            _section("How it was measured", _measurement_facts(report)),
            _section("Gates and data", _gate_facts(report)),
            _section("Machine", _machine_facts(report)),
            _section("Time of the build", describe_stages(report)),
            class_="columns",
        ),
    )


def _headline(report: Report) -> Markup:
    figures = _key_figures(report)
    return element(
        "header",
        element("p", "deploy report", class_="eyebrow"),
        element("h1", report["model"]["name"]),
        element("p", report["verdict"], class_="verdict"),
        element("p", format_conditions(report), class_="quiet"),
        _optional(finish_sentence(report)),
        element("div", *figures, class_="figures many" if len(figures) > _IN_A_ROW else "figures"),
    )


def _name_accuracies(report: Report) -> str:
    """What the section of accuracies is called; empty without labels, where there is none."""
    several = len(accuracies_of(report, report["baseline"])) > 1
    return "Accuracy by output" if several else as_heading(name_measure(report) or "")


def _key_figures(report: Report) -> list[Markup]:
    winner, baseline = winner_of(report), report["baseline"]
    before, after = baseline["latency"], winner["latency"]
    kept = baseline_wins(report)
    figures = [
        _figure("Winner", winner["name"], f"{winner['engine']}, {winner['precision']}", "name")
    ]
    if after is not None:
        interval = format_interval(after["speedup_ci95"], format_ratio, between=" to ")
        note = "nothing was faster and passed" if kept else f"95% {interval}"
        low, high = after["speedup_ci95"]
        wide = high > WIDE * low  # as the verdict has it
        shown = f"at least {format_ratio(low)}×" if wide else f"{format_ratio(after['speedup'])}×"
        figures.append(_figure("Speed-up", shown, note))
    if after is not None and before is not None:
        old, new = format_number(before["p50_ms"]), format_number(after["p50_ms"])
        interval = format_interval(after["p50_ci95"], format_number, between=" to ")
        p50: object = new if kept else _change(old, new)
        figures.append(_figure("p50 in ms", p50, f"95% {interval}"))
    figures += _fidelity_figures(report, winner)
    old, new = format_bytes(baseline["size_bytes"]), format_bytes(winner["size_bytes"])
    ratio = None
    if not kept and baseline["size_bytes"] and winner["size_bytes"]:
        ratio = f"{100 * winner['size_bytes'] / baseline['size_bytes']:.0f}% of the original"
    figures.append(_figure("Size", new if kept else _change(old, new), ratio))
    return figures


def _fidelity_figures(report: Report, winner: Candidate) -> list[Markup]:
    """The accuracies where there are labels, else how near the outputs are."""
    found, references = (accuracies_of(report, row) for row in (winner, report["baseline"]))
    shared = [output for output in references if output in found]
    if not shared:
        return [_nearness_figure(report, winner)]
    figures = []
    for output in shared[:_MOST_FIGURES]:
        accuracy = found[output]
        name = as_heading(accuracy.measure) + (f" in {output}" if len(shared) > 1 else "")
        if baseline_wins(report):
            note = format_samples(accuracy.samples)
            figures.append(_figure(name, format_percent(accuracy.value), note))
            continue
        interval = format_interval(accuracy.drop_ci95, format_points, between=" to ")
        before = format_percent(references[output].value)
        shown = _change(before, format_percent(accuracy.value))
        note = f"drop {format_points(accuracy.drop)} points, 95% {interval}"
        figures.append(_figure(name, shown, note))
    return figures


def _nearness_figure(report: Report, winner: Candidate) -> Markup:
    """How near the outputs are, where no labels judge."""
    kept = baseline_wins(report)
    if kept:
        return _figure("Outputs", "unchanged", "your own model")
    top1 = top1_of(report, winner)
    agreement = None if top1 is None else f"top-1 agreement {format_percent(top1)}"
    parity = winner["parity"]
    labels = "labels judge nothing" if report["data"]["kind"] == "labelled" else "no labels"
    source = f"{parity['data']} data, {labels}" if parity else "not compared"
    sqnr, error = sqnr_of(report, winner), None
    floats = all("float" in output["dtype"] for output in report["model"]["outputs"])
    if sqnr is not None and math.isfinite(sqnr) and floats:
        error = f"an error of {format_error(sqnr)}"
    note = "; ".join(part for part in (error, agreement, source) if part)
    near = describe_fidelity(report, winner)
    what = "Outputs" if near.endswith("equal") else "SQNR of the outputs"
    return _figure(what, near, note)


def _figure(term: str, value: object, note: str | None, kind: str | None = None) -> Markup:
    return element(
        "div",
        element("span", term, class_="term"),
        element("span", value, class_=f"big {kind or ''}".strip()),
        element("span", note, class_="note") if note else None,
    )


def _change(old: str, new: str) -> Markup:
    return join(element("s", old), Markup(" → "), new)


def _warnings(report: Report) -> Markup | None:
    if not report["warnings"]:
        return None
    items = (element("li", warning) for warning in report["warnings"])
    return element("aside", element("b", "Warnings"), element("ul", *items))


def _model_facts(report: Report) -> Markup:
    model = report["model"]
    return facts(
        ("Parameters", format_count(model["parameters"])),
        ("MACs per sample", format_count(model["macs"])),
        ("Read as", model["form"].replace("_", " ")),
        ("Captured by", model["rung"]),
        ("Inputs", "; ".join(format_tensor(tensor) for tensor in model["inputs"])),
        ("Images", "; ".join(format_images(images) for images in model.get("images", ()))),
        ("Outputs", "; ".join(format_tensor(tensor) for tensor in model["outputs"])),
        ("SHA-256", element("code", model["sha256"]) if model["sha256"] else None),
    )


def _measurement_facts(report: Report) -> Markup:
    measurement = report["measurement"]
    return facts(
        ("Batch", measurement["batch"]),
        ("Threads", measurement["threads"]),
        (
            "Order",
            f"{measurement['rounds']} rounds; in each, {measurement['blocks_per_round']} short "
            f"blocks of every candidate in random order, after warm-up{describe_openings(report)}",
        ),
        (
            "Speed-up",
            "the baseline's time over that of a candidate in the same round, median over rounds; "
            "so it may differ a little from one p50 over the other",
        ),
        (
            "Intervals",
            f"95%, bootstrap over rounds and blocks, widened by {describe_luck(report)}; no "
            "sample was left out",
        ),
        ("Took", format_seconds(measurement["seconds"])),
    )


def _name_labelled(report: Report) -> str | None:
    """The outputs that labels were held against; None without any."""
    several = [each["output"] for each in report["data"].get("labelled", ())]
    return ", ".join(several) or report["data"]["classes_of"]


def _gate_facts(report: Report) -> Markup:
    gates, data = report["gates"], report["data"]
    decibels = ", ".join(
        f"{key} {value:g} dB" for key, value in gates["min_sqnr_db"].items() if value
    )
    drop = gates["max_drop"]
    calibration, evaluation = (_used(report, f"{k}_samples") for k in ("calibration", "evaluation"))
    samples = f"{calibration:,} to calibrate, {evaluation:,} to judge"
    synthetic = data["kind"] == "synthetic"
    return facts(
        ("Data", "synthetic: no --data was given" if synthetic else data["source"]),
        ("Labels", "yes" if data["kind"] == "labelled" else "no"),
        ("Labels held against", _name_labelled(report)),
        ("Labels read as", data.get("labels")),
        ("Samples", None if synthetic else samples),
        ("Observer", None if synthetic else data["observer"]),
        ("Accuracy drop", None if drop is None else f"at most {format_points(drop)} points"),
        ("SQNR, without labels", f"at least {decibels}" if decibels else None),
        ("Speed-up", "the 95% interval has to exclude 1"),
    )


def _used(report: Report, key: str) -> int:
    """Samples of a part of the data; where engines take one batch size, those that fill batches."""
    shape = report["model"]["inputs"][0]["shape"]
    samples: int = report["data"][key]
    return samples - samples % shape[0] if shape and isinstance(shape[0], int) else samples


def _machine_facts(report: Report) -> Markup:
    machine = report["machine"]
    memory, affinity = machine["memory_gb"], machine["affinity"]
    peaks = (f"{k} {format_number(v)}" for k, v in machine["peak_gmacs"].items() if v is not None)
    return facts(
        ("CPU", machine["cpu"]),
        ("GPU", machine["gpu"] or "none"),
        ("Cores", machine["cores"]),
        ("Allowed cores", None if not affinity else ", ".join(str(core) for core in affinity)),
        ("Memory", None if memory is None else f"{memory:.1f} GiB"),
        ("Load average", machine["load_average"]),
        ("Features", ", ".join(machine["features"])),
        ("Peak GMAC/s, measured", ", ".join(peaks)),
        ("System", machine["os"]),
        ("Python", machine["python"]),
        *((name, version) for name, version in machine["versions"].items()),
    )


def _parity_note() -> Markup:
    return _quiet(
        "SQNR: power of the output over the power of the error, higher is closer: at 20 dB the "
        "error is 10% of the output, at 40 dB 1%; of class numbers, how many are equal. "
        "To float64: relative error against a float64 run. Eager to float64: the same of eager "
        "itself, the largest of several runs; it is the noise floor."
    )


def _census_note() -> Markup:
    return _quiet(
        "What each engine really runs, by its own profiler, which costs some time itself. "
        "Reformats only change layout or precision."
    )


def _latency_note() -> Markup:
    return _quiet(
        "Small figures are 95% intervals. p99 takes 1,000 samples. Of peak: beside the most "
        "that this machine was measured to do in that precision."
    )


def _section(title: str, *content: Markup | None) -> Markup | None:
    if content[0] is None:
        return None
    return element("section", element("h2", title), *content)


def _optional(text: str | None) -> Markup | None:
    return None if text is None else element("p", text)


def _quiet(text: str) -> Markup:
    return element("p", text, class_="quiet")


def _footer(report: Report) -> Markup:
    return element(
        "footer",
        f"deploykit {report['deploykit']}, {format_time(report['created'])}. "
        "The same facts as data: report.json.",
    )


def _stylesheet() -> Markup:
    sheet = resources.files("deploy.report").joinpath("report.css")
    return Markup(sheet.read_text(encoding="utf-8"))
