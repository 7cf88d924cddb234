"""Labels of several outputs: each is held against its own, and each is a gate."""

import io
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from deploy.commands.verification import Verification
from deploy.config import BuildConfig
from deploy.engines.base import Feeds
from deploy.inputs.data import ArrayRows, Dataset
from deploy.judging.accuracy import MIN_LABELLED
from deploy.judging.agreement_gate import list_scores
from deploy.judging.checking import CheckPlan, take_labels
from deploy.judging.gates import Verdict, judge_parity
from deploy.judging.label_notes import describe_reading, describe_undecided, warn_of_labels
from deploy.judging.labelled_outputs import Labelling, choose_labelled
from deploy.judging.layouts import LabelForm, LabelledOutput
from deploy.judging.parity import ParityAccumulator, ParityReport
from deploy.judging.verdicts import describe_turned
from deploy.parity_words import describe_accuracies
from deploy.report.tables import print_verification
from deploy.results import CandidateResult
from export.artifacts import BATCH, TensorSpec
from export.errors import ConfigError, DataError
from tests.samples import refuse

Array = np.ndarray[Any, Any]

ROWS = 600
KIND = TensorSpec("kind", (BATCH, 3), "float32")
AGE = TensorSpec("age", (BATCH, 1), "float32")
TOKENS = TensorSpec("tokens", (BATCH, 4, 4), "float32")
PLAIN = TensorSpec("plain", (BATCH, 3), "float32")
OUTPUTS = (PLAIN, AGE, KIND, TOKENS)
RNG = np.random.default_rng(0)
KINDS = RNG.integers(0, 3, ROWS)
AGES = RNG.uniform(1, 90, ROWS).astype(np.float32)
TAGS = RNG.integers(0, 4, (ROWS, 4))
ANSWERS = {
    "kind": 6 * np.eye(3)[KINDS] + RNG.standard_normal((ROWS, 3)),
    "age": AGES[:, None] + RNG.standard_normal((ROWS, 1)),
    "tokens": np.moveaxis(6 * np.eye(4)[TAGS], 2, 1) + RNG.standard_normal((ROWS, 4, 4)),
    "plain": RNG.standard_normal((ROWS, 3)),
}


def run(feeds: Feeds) -> dict[str, Array]:
    rows = feeds["x"][:, 0].astype(np.int64)
    return {name: values[rows] for name, values in ANSWERS.items()}


def samples(labels: Array | None = None, **labels_of: Array) -> Dataset:
    """Samples whose only value is their row number."""
    rows = np.arange(ROWS, dtype=np.float32)[:, None]
    inputs = {"x": ArrayRows(rows, rows.dtype)}
    return Dataset(inputs, labels, "data.npz", labels_of=labels_of)


def choose(data: Dataset, *named: str) -> Labelling:
    return choose_labelled(data, data, OUTPUTS, run, CheckPlan(), named=named)


TARGETS = LabelForm(targets=True)
ALL_THE_SAME = (
    "{}The targets of the samples to judge on are all the same, or NaN: they judge nothing. Bring "
    "samples whose targets differ."
)


def test_each_is_of_the_output_that_it_names_and_the_other_of_the_best_of_the_rest() -> None:
    data = samples(KINDS, age=AGES, tokens=TAGS)
    assert choose(data, "tokens:1") == Labelling(
        (
            LabelledOutput("kind"),
            LabelledOutput("age", TARGETS),
            LabelledOutput("tokens", LabelForm(axis=1)),
        )
    )
    assert choose(samples(kind=KINDS)) == Labelling((LabelledOutput("kind"),))


def test_on_which_axis_classes_lie_is_found_by_what_eager_answers() -> None:
    (found,) = choose(samples(tokens=TAGS)).outputs
    assert found == LabelledOutput("tokens", LabelForm(axis=1))


def test_labels_without_a_name_are_of_no_output_that_has_its_own() -> None:
    unlike = np.roll(KINDS, 1)  # so that `plain` alone is left, which knows nothing of them
    found = choose(samples(KINDS, kind=unlike))
    assert found.outputs == (LabelledOutput("plain"), LabelledOutput("kind"))


def test_what_is_said_of_labels_says_of_which() -> None:
    same = np.full(ROWS, 40, np.float32)
    assert choose(samples(same, kind=KINDS)).warnings == (ALL_THE_SAME.format("y: "),)
    assert choose(samples(kind=KINDS, age=same)).warnings == (ALL_THE_SAME.format("y_age: "),)
    assert choose(samples(same)).warnings == (ALL_THE_SAME.format(""),)


def test_labels_beside_those_of_all_outputs_are_refused() -> None:
    own = {"plain": KINDS, "kind": KINDS, "age": AGES, "tokens": TAGS}
    refuse(lambda: choose(samples(KINDS, **own)), "data.npz: y", "plain, age, kind")


def test_labels_are_taken_by_the_output_that_they_are_held_against() -> None:
    data = samples(KINDS, age=AGES)
    plan = CheckPlan(labelled=choose(data).outputs)
    rows = np.array([5, 3])
    part = data.select(np.arange(100, 200))
    assert part.is_labelled
    found = take_labels(part, plan, rows)
    assert list(found) == ["kind", "age"]
    np.testing.assert_array_equal(found["kind"], KINDS[[105, 103]])
    np.testing.assert_array_equal(found["age"], AGES[[105, 103]])


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({"ages": AGES}, ("y_ages", "none of that name", "plain, age, kind, tokens", "--input")),
        ({"kind": KINDS + 1}, ("data.npz, y_kind", "label 3 in row", "0..2")),
        ({"kind": TAGS}, ("data.npz, y_kind", "the labels are Nx4", "kind:batchx3:float32")),
        ({"age": TAGS.astype(float)}, ("data.npz, y_age", "the labels are float64", "[N, 4]")),
        ({"age": KINDS}, ("data.npz, y_age", "N integers up to 2", "0 from 1", "float32)")),
    ],
    ids=["no output", "no class", "another form", "other targets", "classes for a score"],
)
def test_what_does_not_fit_its_output_is_named(
    labels: dict[str, Array], words: tuple[str, ...]
) -> None:
    refuse(lambda: choose(samples(**labels)), *words, kind=DataError)


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ("kinds", ("--classes 'kinds'", "no such output")),
        ("kind", ("--classes 'kind'", "labels of tokens alone", "y_kind")),
        ("tokens:0", ("--classes 'tokens:0'", "cannot lie on that axis")),
    ],
)
def test_an_output_that_is_named_must_be_there_and_have_labels(
    named: str, words: tuple[str, ...]
) -> None:
    refuse(lambda: choose(samples(tokens=TAGS), named), *words, kind=ConfigError)


LABELS = {"kind": KINDS, "age": AGES}
LABELLED = (LabelledOutput("kind"), LabelledOutput("age", TARGETS))


def report(rows: int = ROWS, *, exact: bool = False, **changes: Array) -> ParityReport:
    """What a candidate gets that answers with `changes` in place of eager's outputs."""
    parity = ParityAccumulator(("kind", "age", "plain"), LABELLED)
    ours = {name: ANSWERS[name][:rows] for name in parity.names}
    theirs = ours | {name: values[:rows] for name, values in changes.items()}
    labels = {name: values[:rows] for name, values in LABELS.items()}
    floor = ({name: values + 1e3 for name, values in ours.items()}, ours) if exact else None
    parity.update(ours, theirs, rows=rows, labels=labels, floor=floor)
    return parity.result()


def judge(parity: ParityReport, precision: str = "int8", **options: Any) -> Verdict:
    config = BuildConfig(**options)
    return judge_parity(parity, precision, kind="labelled", config=config)


FLIPPED = ANSWERS["kind"] * np.where(np.arange(ROWS) % 20, 1, -1)[:, None]  # 30 rows
COARSE = ANSWERS["age"] + 20 * RNG.standard_normal((ROWS, 1))


def test_accuracies_are_those_of_each_output() -> None:
    found = report(kind=FLIPPED).accuracies
    assert [(name, each.measure) for name, each in found.items()] == [
        ("kind", "accuracy"),
        ("age", "R²"),
    ]
    right = ANSWERS["kind"].argmax(1) == KINDS
    assert found["kind"].reference == right.mean()
    assert found["kind"].candidate == (FLIPPED.argmax(1) == KINDS).mean()
    residue = np.square(ANSWERS["age"][:, 0] - AGES).sum()
    spread = np.square(AGES - AGES.mean(dtype=np.float64)).sum()
    assert found["age"].reference == pytest.approx(1 - residue / spread, abs=1e-6)
    assert found["age"].drop == 0


def test_each_holds_its_own_and_the_rest_the_sqnr() -> None:
    verdict = judge(report())
    assert verdict.passed
    gates = verdict.gate.split("; ")
    assert gates[0] == "kind: accuracy drop at most 1.00% on 600 samples"
    assert gates[1].startswith("age: R² drop at most 0.")
    assert gates[2].startswith("other outputs: SQNR at least 20 dB")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": FLIPPED}, ["kind: accuracy drops by 5.00%"]),
        ({"age": COARSE}, ["age: R² drops by "]),
        ({"kind": FLIPPED, "age": COARSE}, ["kind: accuracy drops by", "; age: R² drops by"]),
        ({"plain": -ANSWERS["plain"]}, ["output 'plain' has an SQNR of -6.0 dB"]),
    ],
    ids=["first", "second", "both", "unlabelled"],
)
def test_one_that_is_lost_is_named(changes: dict[str, Array], words: list[str]) -> None:
    verdict = judge(report(**changes))
    assert not verdict.passed
    assert all(each in str(verdict.reason) for each in words)


def test_an_output_that_is_far_off_passes_by_labels_of_its_own_alone() -> None:
    """18 dB from eager, whose error is as large: its classes are right."""
    scale = 0.1 * np.abs(ANSWERS["kind"]).mean()
    noisy = ANSWERS["kind"] + scale * RNG.standard_normal((ROWS, 3))
    found = report(kind=noisy + 0.6)
    assert found.outputs[0].sqnr_db < 20
    assert judge(found).passed
    parity = ParityAccumulator(("kind", "age", "plain"), LABELLED[1:])
    ours = {name: ANSWERS[name] for name in parity.names}
    parity.update(ours, {**ours, "kind": noisy + 0.6}, rows=ROWS, labels=LABELS)
    assert not judge(parity.result()).passed


def test_float32_may_lose_none_of_them_beyond_doubt() -> None:
    verdict = judge(report(exact=True, age=COARSE), "fp32")
    assert not verdict.passed
    assert "age: R² drops by" in str(verdict.reason)
    assert verdict.gate.endswith("no accuracy lost beyond doubt")
    assert judge(report(exact=True), "fp32").passed


def test_few_labels_say_which_outputs_have_classes_that_must_agree() -> None:
    near = ANSWERS["kind"].copy()
    order = np.argsort(near, axis=1)
    rows = np.arange(0, ROWS, 10)
    near[rows, order[rows, 1]] = near[rows, order[rows, 2]] + 1e-3
    lifted, shifted = ANSWERS["kind"] + 100, near + 100
    parity = ParityAccumulator(("kind", "age"), LABELLED)
    ours = {"kind": lifted[:200], "age": ANSWERS["age"][:200]}
    labels = {name: values[:200] for name, values in LABELS.items()}
    parity.update(ours, {**ours, "kind": shifted[:200]}, rows=200, labels=labels)
    verdict = judge(parity.result())
    assert not verdict.passed
    assert "top-1 agrees on 90.0% of 200 samples" in str(verdict.reason)
    assert "more samples with labels" in str(verdict.reason)


def count_few() -> ParityReport:
    """What few tags of tokens and few ages tell beside the kinds of all."""
    names = ("kind", "age", "tokens")
    forms = (LabelForm(), TARGETS, LabelForm(axis=1))
    parity = ParityAccumulator(names, tuple(map(LabelledOutput, names, forms)))
    tags, ages, ours = TAGS.copy(), AGES.copy(), {name: ANSWERS[name] for name in names}
    tags[200:], ages[150:] = -100, np.nan
    parity.update(ours, ours, rows=ROWS, labels={"kind": KINDS, "age": ages, "tokens": tags})
    return parity.result()


def test_what_is_said_of_few_labels_beside_many_names_the_output_and_what_judges_it() -> None:
    parity = count_few()
    assert list(parity.held) == ["kind"]
    assert list(parity.judged) == ["kind", "age", "tokens"]
    for name, count, measure in (("age", 150, "R²"), ("tokens", 200, "accuracy")):
        gated = name in {output.name for output in list_scores(parity)}
        assert str(warn_of_labels(parity.accuracies[name], name, (), agreement=gated)) == (
            f"{count} labelled samples are too few to judge {measure} by (300 are needed); SQNR "
            f"was judged instead. They were held against {name!r}."
        )


def test_the_verdict_counts_the_samples_of_all_outputs() -> None:
    assert describe_accuracies(count_few()).endswith(" on 150 to 600 samples")
    assert describe_accuracies(report()).endswith(" on 600 samples")


@pytest.mark.parametrize("known", [True, False])
def test_an_output_of_targets_has_no_classes_whose_answers_differ(known: bool) -> None:
    """Of `plain` with targets that eager knows nothing of; without, it may hold scores."""
    labelled = LABELLED[:1] + (LabelledOutput("plain", TARGETS),) * known
    parity = ParityAccumulator(("kind", "plain"), labelled)
    ours = {name: ANSWERS[name] for name in parity.names}
    turned = ANSWERS["plain"] + 0.3 * np.eye(3)[KINDS]
    targets = RNG.standard_normal((ROWS, 3)).astype(np.float32)
    labels = {"kind": KINDS, "plain": targets}
    parity.update(ours, {**ours, "plain": turned}, rows=ROWS, labels=labels)
    found = CandidateResult("int8", "onnxruntime", "int8", "ok", parity=parity.result())
    said = describe_turned(found, "labelled", BuildConfig())
    assert said is None if known else "of output 'plain'" in str(said)


def test_labels_that_eager_does_not_know_judge_nothing_and_the_others_do() -> None:
    parity = ParityAccumulator(("kind", "plain"), (LabelledOutput("plain"), LabelledOutput("kind")))
    ours = {name: ANSWERS[name] for name in parity.names}
    labels = {"plain": KINDS, "kind": KINDS}
    parity.update(ours, {**ours, "kind": FLIPPED}, rows=ROWS, labels=labels)
    found = parity.result()
    assert list(found.accuracies) == ["plain", "kind"]
    assert list(found.judged) == list(found.held) == ["kind"]
    assert found.main_accuracy == found.accuracies["kind"]
    assert str(judge(found).reason).startswith("accuracy drops by 5.00%")


@pytest.mark.parametrize("rows", [20, ROWS])
def test_why_labels_of_an_output_do_not_decide_is_said_of_each(rows: int) -> None:
    parity = ParityAccumulator(("kind", "plain"), (LabelledOutput("plain"), LabelledOutput("kind")))
    ours = {name: ANSWERS[name][:rows] for name in parity.names}
    data = samples(plain=KINDS, kind=KINDS).select(np.arange(rows))
    parity.update(ours, ours, rows=rows, labels=data.labels_of)
    found = parity.result()
    warnings = describe_undecided(found, data, OUTPUTS)
    assert "the labels judge nothing" in warnings[0] or "too few to tell" in warnings[0]
    assert "They were held against 'plain'." in warnings[0]
    few = (
        f"{rows} labelled samples are too few to judge accuracy by ({MIN_LABELLED} are needed); "
        "SQNR and top-1 agreement were judged instead. They were held against 'kind'."
    )
    assert warnings[1:] == ([few] if rows < MIN_LABELLED else [])
    stream = io.StringIO()
    verified = Verification(
        "int8", None, parity=found, verdict=judge(found), warnings=tuple(warnings)
    )
    print_verification([verified, verified], Console(file=stream, width=300))
    assert stream.getvalue().count("Warning: ") == len(warnings)


def test_the_reading_of_each_is_said() -> None:
    said = str(describe_reading([report()]))
    assert said.startswith("Of age: the target of a sample is what a regression predicts")
    tokens = LabelledOutput("tokens", LabelForm(axis=1))
    parity = ParityAccumulator(("tokens", "age"), (tokens, LABELLED[1]))
    ours = {name: ANSWERS[name] for name in parity.names}
    parity.update(ours, ours, rows=ROWS, labels={"tokens": TAGS, "age": AGES})
    said = str(describe_reading([parity.result()]))
    assert said.startswith("Of tokens: each of the 4 labels of a sample is one of 4 classes")
    assert ". Of age: the target of a sample is " in said


def test_samples_without_a_class_of_one_output_are_not_judged_in_it() -> None:
    some = np.where(np.arange(ROWS) % 3, KINDS, -1)
    some[5] = -100
    found = choose(samples(kind=some, age=AGES))
    assert found.outputs == LABELLED
    parity = ParityAccumulator(("kind", "age"), LABELLED)
    ours = {name: ANSWERS[name] for name in parity.names}
    theirs = {**ours, "kind": FLIPPED}
    for part in np.array_split(np.arange(ROWS), [1, 4, 400]):  # the first has no class at all
        one, other = (
            {name: values[part] for name, values in each.items()} for each in (ours, theirs)
        )
        parity.update(one, other, rows=len(part), labels={"kind": some[part], "age": AGES[part]})
    result = parity.result().accuracies
    known = some >= 0
    assert (result["kind"].samples, result["age"].samples) == (known.sum(), ROWS)
    assert result["kind"].reference == (ANSWERS["kind"].argmax(1) == KINDS)[known].mean()
    assert result["kind"].candidate == (FLIPPED.argmax(1) == KINDS)[known].mean()
    never = choose(samples(kind=np.full(ROWS, -1), age=AGES))
    assert [each.name for each in never.outputs] == ["age"]
    assert "y_kind: All labels of the samples to judge on are 255, -1 or -100" in never.warnings[0]
