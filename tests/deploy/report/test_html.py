"""The page: well-formed, self-contained, escaped, complete, and not blank in a browser."""

import re
import shutil
import subprocess
import zlib
from html.parser import HTMLParser
from pathlib import Path

import pytest
from samples import HOSTILE, SAMPLES, hostile_report, labelled_report, no_data_report, torch_report

from deploy.report import render_html

VOID = {"meta", "line", "path", "rect"}
CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)


class Page(HTMLParser):
    """Collects tags and text, and fails on tags that do not balance."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(source)
        self.close()
        assert self.open == []

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in VOID
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words.append(data)


@pytest.mark.parametrize("name", SAMPLES)
def test_tags_balance(name: str) -> None:
    assert {"html", "main", "svg", "table", "h1"} <= set(Page(render_html(SAMPLES[name]())).tags)


@pytest.mark.parametrize("name", SAMPLES)
def test_needs_nothing_from_outside_and_runs_nothing(name: str) -> None:
    source = render_html(SAMPLES[name]())
    page = Page(source)
    assert not {"script", "link", "img", "iframe", "object", "base", "form"} & set(page.tags)
    names = {attribute for attribute, _ in page.attributes}
    assert not {"src", "href", "srcset", "style"} & names
    assert not [attribute for attribute in names if attribute.startswith("on")]
    assert not re.search(r"https?:|//[a-z]|url\(|@import", source)
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes


def test_hostile_text_is_escaped_everywhere() -> None:
    source = render_html(hostile_report())
    page = Page(source)
    assert "<script" not in source
    assert "\x1b" not in source
    assert "\u202e" not in source
    shown = HOSTILE.replace("\x1b", r"\x1b").replace("\u202e", r"\u202e")
    assert page.text.count(shown) >= 12


@pytest.mark.parametrize("name", SAMPLES)
def test_hostile_text_adds_no_attribute(name: str) -> None:
    known = {a for a, _ in Page(render_html(labelled_report())).attributes}
    assert {a for a, _ in Page(render_html(SAMPLES[name]())).attributes} <= known


@pytest.mark.parametrize("name", SAMPLES)
def test_says_the_verdict_before_anything_else_and_every_reason(name: str) -> None:
    report = SAMPLES[name]()
    text = Page(render_html(report)).text
    reasons = [c["reason"] for c in report["candidates"] if c["reason"]]
    if name != "hostile":
        assert all(reason in text for reason in [*reasons, *report["warnings"]])
        assert text.index(report["verdict"]) < text.index("Speed-up")


def test_shows_the_key_figures() -> None:
    text = Page(render_html(labelled_report())).text
    for figure in ("7.09×", "2.11 → 0.298", "94.62% → 94.41%", "1.13 MB → 318 kB"):
        assert figure in text
    unlabelled = Page(render_html(no_data_report())).text
    assert "SQNR of the outputs 129.4 dB an error of less than 0.001%;" in unlabelled
    assert "nothing was faster and passed" in Page(render_html(torch_report())).text


def test_the_worst_sample_is_shown_with_its_row_in_the_data() -> None:
    report = labelled_report()
    output = next(c for c in report["candidates"] if c["precision"] == "int8")["parity"]["outputs"][
        0
    ]
    output["worst_samples"] = [{"sample": 812, "sqnr_db": 9.63, "times_median": 71.0}]
    assert "9.6 dB (812)" in Page(render_html(report)).text


def test_the_scale_is_logarithmic_only_where_the_times_lie_far_apart() -> None:
    assert "log scale" in render_html(torch_report())
    report = no_data_report()
    report["candidates"] = report["candidates"][:1]
    assert "linear scale" in render_html(report)


def test_a_report_of_the_baseline_alone_renders() -> None:
    report = torch_report() | {"candidates": [], "control": None, "warnings": []}
    assert "No candidate got as far" in Page(render_html(report)).text
    report["baseline"]["latency"] = None
    assert "Nothing was timed" in Page(render_html(report)).text


def test_status_is_told_by_a_word_and_a_shape() -> None:
    page = Page(render_html(labelled_report()))
    for word in ("winner", "rejected", "failed", "not run", "baseline"):
        assert word in page.text
    shapes = {value for name, value in page.attributes if name == "d"}
    assert len(shapes) >= 6


def _rows(png: bytes) -> list[bytes]:
    """The rows of a PNG, each with its filter byte; the first pixel of the first is as it is."""
    data, position = b"", 8
    channels = 4 if png[25] == 6 else 3
    width = int.from_bytes(png[16:20], "big")
    while position < len(png):
        length = int.from_bytes(png[position : position + 4], "big")
        if png[position + 4 : position + 8] == b"IDAT":
            data += png[position + 8 : position + 8 + length]
        position += length + 12
    raw = zlib.decompress(data)
    stride = 1 + width * channels
    return [raw[start : start + stride] for start in range(0, len(raw), stride)]


@pytest.mark.thorough
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium to render the page with")
@pytest.mark.parametrize(("scheme", "dark"), [("1", False), ("0", True)])
def test_renders_in_a_browser(scheme: str, dark: bool, tmp_path: Path) -> None:
    page, image = tmp_path / "report.html", tmp_path / "report.png"
    page.write_text(render_html(labelled_report()), encoding="utf-8")
    flags = (
        "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking "
    )
    flags += "disable-component-update disable-sync hide-scrollbars"
    subprocess.run(
        [
            str(CHROMIUM),
            *(f"--{flag}" for flag in flags.split()),
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--blink-settings=preferredColorScheme={scheme}",
            f"--screenshot={image}",
            "--window-size=1200,1200",
            page.as_uri(),
        ],
        check=True,
        capture_output=True,
        timeout=120,
    )
    rows = _rows(image.read_bytes())
    first = rows[0][1:4]
    assert (max(first) < 64) == dark
    assert len(set(rows)) > 100


def test_a_batch_that_is_not_filled_is_not_counted() -> None:
    report = labelled_report()
    assert "256 to calibrate, 1,000 to judge" in Page(render_html(report)).text
    report["model"]["inputs"][0]["shape"][0] = 3
    assert "255 to calibrate, 999 to judge" in Page(render_html(report)).text


def test_what_was_left_for_a_reason_is_not_said_to_be_nothing() -> None:
    report = labelled_report()
    report["model"]["fused"] = []
    assert "Nothing was merged: 1 place was looked at, and left" in Page(render_html(report)).text
    report["model"]["skipped"] *= 2
    assert "Nothing was merged: 2 places were looked at" in Page(render_html(report)).text
    report["model"]["skipped"] = []
    assert "no layers stand together" in Page(render_html(report)).text


def test_a_wide_interval_shows_its_lower_end_as_the_verdict_does() -> None:
    report = labelled_report()
    winner = next(c for c in report["candidates"] if c["name"] == report["winner"])
    assert "Speed-up 7.09×" in Page(render_html(report)).text
    winner["latency"]["speedup_ci95"] = [2.75, 1793.0]
    assert "Speed-up at least 2.75× 95% 2.75 to 1,793" in Page(render_html(report)).text
