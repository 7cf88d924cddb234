"""The report as one HTML page that needs nothing else: no script, font or image from outside."""

from importlib import resources

from deploy.report.census import describe_census
from deploy.report.chart import draw_latency
from deploy.report.facts import (
    Report,
    accuracies_of,
    describe_luck,
    describe_openings,
    name_measure,
)
from deploy.report.figures import draw_figures
from deploy.report.finish import describe_finish, finish_sentence
from deploy.report.markup import Markup, element, facts
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
    format_conditions,
    format_count,
    format_images,
    format_number,
    format_points,
    format_seconds,
    format_tensor,
    format_time,
)

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
    return element(
        "header",
        element("p", "deploy report", class_="eyebrow"),
        element("h1", report["model"]["name"]),
        element("p", report["verdict"], class_="verdict"),
        element("p", format_conditions(report), class_="quiet"),
        _optional(finish_sentence(report)),
        draw_figures(report),
    )


def _name_accuracies(report: Report) -> str:
    """What the section of accuracies is called; empty without labels, where there is none."""
    several = len(accuracies_of(report, report["baseline"])) > 1
    return "Accuracy by output" if several else as_heading(name_measure(report) or "")


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
