"""Real engines in processes of their own beside a numpy reference: wrong ones are found out."""

import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import deploy.engines.process
from deploy.config import BuildConfig
from deploy.engines.base import EngineSpec, Feeds
from deploy.engines.process import EngineProcess
from deploy.inputs.data import ArrayRows, Dataset
from deploy.inputs.dataset import VALUE_BYTES
from deploy.judging.checking import CheckPlan, check_candidates, compare_candidates
from deploy.judging.gates import judge_parity
from deploy.judging.layouts import LabelledOutput
from deploy.judging.parity import ParityReport
from deploy.judging.pieces import Run
from export.artifacts import BATCH, SizeRange, TensorSpec
from export.errors import DataError, EngineError
from export.progress import Progress

Array = np.ndarray[Any, Any]
WEIGHT = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
SAMPLES = np.random.default_rng(1).standard_normal((50, 3, 4, 4)).astype(np.float32)
Nodes = list[onnx.NodeProto]


class NumpyReference:
    """A 1x1 convolution followed by a mean over the image; float64 gives its floor."""

    outputs = (TensorSpec("y", (BATCH, 5), "float32"),)

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, feeds: Feeds) -> dict[str, Array]:
        self.batches.append(len(feeds["x"]))
        return {"y": self._run(feeds["x"], np.float32)}

    def floor(
        self, feeds: Feeds, eager: dict[str, Array]
    ) -> tuple[dict[str, Array], dict[str, Array]] | None:
        return {"y": self._run(feeds["x"], np.float64)}, eager

    def _run(self, x: Array, dtype: type) -> Array:
        pixels = np.einsum("oc,nchw->nohw", WEIGHT.astype(dtype), x.astype(dtype))
        return pixels.mean(axis=(2, 3), dtype=dtype)


def dataset(samples: Array = SAMPLES, labels: Array | None = None) -> Dataset:
    return Dataset({"x": ArrayRows(samples, samples.dtype)}, labels, "data.npz")


def write(
    folder: Path, name: str, tail: Nodes, *, last: str = "z", **constants: Array
) -> EngineSpec:
    """A model that computes z as the reference does, and then `tail`; its output is y."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["pixels"]),
        helper.make_node("ReduceMean", ["pixels", "axes"], ["z"], keepdims=0),
        *tail,
        helper.make_node("Identity", [last], ["y"]),
    ]
    values = {"w": WEIGHT[:, :, None, None], "axes": np.array([2, 3]), **constants}
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [BATCH, 3, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, key) for key, value in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path = folder / f"{name}.onnx"
    onnx.save(model, path)
    return EngineSpec("onnxruntime", "fp32", str(path), threads=1)


def _node(operator: str, *inputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, list(inputs), ["v"], **attributes)


def _candidates(folder: Path) -> dict[str, EngineSpec]:
    swap = np.array([0, 3, 2, 1, 4])
    f32 = np.float32
    return {
        "right": write(folder, "right", []),
        "scaled": write(folder, "scaled", [_node("Mul", "z", "k")], last="v", k=f32(1.01)),
        "channels": write(
            folder, "channels", [_node("Gather", "z", "order", axis=1)], last="v", order=swap
        ),
        "nan": write(folder, "nan", [_node("Sqrt", "z")], last="v"),
        "inf": write(folder, "inf", [_node("Div", "z", "k")], last="v", k=f32(0)),
        "zeros": write(folder, "zeros", [_node("Mul", "z", "k")], last="v", k=f32(0)),
        "samples": _reversed(folder),
        "baked": write(folder, "baked", [_node("Reshape", "z", "s")], last="v", s=np.array([2, 5])),
        "leaking": write(
            folder,
            "leaking",
            [
                helper.make_node("ReduceMax", ["z", "zero"], ["m"], keepdims=1),
                _node("Add", "z", "m"),
            ],
            last="v",
            zero=np.array([0]),
        ),
        "shape": write(folder, "shape", [_node("Unsqueeze", "z", "s")], last="v", s=np.array([2])),
        "missing": _renamed(folder),
        "no file": EngineSpec("onnxruntime", "fp32", str(folder / "none.onnx"), threads=1),
    }


def _reversed(folder: Path) -> EngineSpec:
    return write(
        folder,
        "samples",
        [_node("Slice", "z", "begin", "end", "zero", "step")],
        last="v",
        begin=np.array([-1]),
        end=np.array([-(2**40)]),
        zero=np.array([0]),
        step=np.array([-1]),
    )


def _renamed(folder: Path) -> EngineSpec:
    spec = write(folder, "missing", [])
    model = onnx.load(spec.path)
    model.graph.output[0].name = model.graph.node[-1].output[0] = "other"
    onnx.save(model, spec.path)
    return spec


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ParityReport | str]:
    specs = _candidates(tmp_path_factory.mktemp("engines"))
    labels = NumpyReference()({"x": SAMPLES})["y"].argmax(axis=1)
    plan = CheckPlan(labelled=(LabelledOutput("y"),))
    return check_candidates(NumpyReference(), specs, dataset(labels=labels), plan)


def passes(report: ParityReport | str, precision: str = "fp32") -> bool:
    assert isinstance(report, ParityReport), report
    return judge_parity(report, precision, kind="unlabelled", config=BuildConfig()).passed


def test_every_candidate_has_its_result_in_order(
    checked: dict[str, ParityReport | str], tmp_path: Path
) -> None:
    assert list(checked) == list(_candidates(tmp_path))


def test_right_engine_passes_on_all_samples_at_all_batch_sizes(
    checked: dict[str, ParityReport | str],
) -> None:
    report = checked["right"]
    assert isinstance(report, ParityReport)
    assert passes(report)
    assert report.samples == 50
    assert report.batches_checked == (1, 2, 3, 12, 32)
    assert report.consistency_db is not None
    assert report.consistency_db > 100
    found = report.accuracies["y"]
    assert (found.samples, found.drop) == (50, 0)
    noise = report.outputs[0].noise_float64
    assert noise is not None
    assert 0 < noise < 1e-6


@pytest.mark.parametrize(
    "name", ["scaled", "channels", "nan", "inf", "zeros", "samples", "leaking"]
)
def test_wrong_engine_is_rejected_as_fp32(
    checked: dict[str, ParityReport | str], name: str
) -> None:
    assert not passes(checked[name])


@pytest.mark.parametrize("name", ["channels", "nan", "inf", "zeros", "samples", "leaking"])
def test_wrong_engine_is_rejected_as_int8(
    checked: dict[str, ParityReport | str], name: str
) -> None:
    assert not passes(checked[name], "int8")


def test_one_percent_of_scale_is_not_seen_as_int8(checked: dict[str, ParityReport | str]) -> None:
    assert passes(checked["scaled"], "int8")


def test_samples_that_change_places_are_told_by_the_batch_sizes_alone(
    checked: dict[str, ParityReport | str],
) -> None:
    for name in ("samples", "leaking"):
        report = checked[name]
        assert isinstance(report, ParityReport)
        assert report.consistency_db is not None
        assert report.consistency_db < 20


def test_engine_that_cannot_run_says_at_which_batch_size(
    checked: dict[str, ParityReport | str],
) -> None:
    assert "at batch size 1: " in str(checked["baked"])
    assert "shape [1, 5, 1] instead of [1, 5]" in str(checked["shape"])
    assert "output 'y' is missing" in str(checked["missing"])
    assert "none.onnx" in str(checked["no file"])


def test_a_batch_size_baked_in_as_the_traced_one_is_found_first(tmp_path: Path) -> None:
    """Broadcasting hides a baked size where the engine repeats what it was given."""
    extra = np.zeros((2, 1), np.float32)
    spec = write(tmp_path, "broadcast", [_node("Add", "z", "k")], last="v", k=extra)
    results = check_candidates(NumpyReference(), {"a": spec}, dataset(), CheckPlan())
    assert "output 'y' has shape [2, 5] instead of [1, 5]" in str(results["a"])


class ColumnsReference(NumpyReference):
    """The same with each sample's answer in a column, as an LSTM returns its states."""

    outputs = (TensorSpec("y", (5, BATCH), "float32"),)

    def _run(self, x: Array, dtype: type) -> Array:
        return super()._run(x, dtype).T


def test_answers_in_columns_are_compared_by_sample(tmp_path: Path) -> None:
    turn = helper.make_node("Transpose", ["t"], ["v"], perm=[1, 0])

    def turned(name: str, *nodes: onnx.NodeProto, **constants: Array) -> EngineSpec:
        return write(tmp_path, name, [*nodes, turn], last="v", **constants)

    specs = {
        "right": turned("right", helper.make_node("Identity", ["z"], ["t"])),
        "leaking": turned(
            "leaking",
            helper.make_node("ReduceMax", ["z", "zero"], ["m"], keepdims=1),
            helper.make_node("Add", ["z", "m"], ["t"]),
            zero=np.array([0]),
        ),
        "classes": turned(
            "classes",
            helper.make_node("Gather", ["z", "order"], ["t"], axis=1),
            order=np.array([0, 3, 2, 1, 4]),
        ),
    }
    found = check_candidates(ColumnsReference(), specs, dataset(), CheckPlan())
    right, leaking, classes = (found[name] for name in specs)
    assert passes(right)
    assert isinstance(right, ParityReport)
    assert right.consistency_db is not None
    assert right.consistency_db > 100
    assert right.outputs[0].top1_agreement == 1
    assert not passes(leaking)
    assert isinstance(leaking, ParityReport)
    assert leaking.consistency_db is not None
    assert leaking.consistency_db < 20
    assert isinstance(classes, ParityReport)
    logits = NumpyReference()({"x": SAMPLES})["y"]
    same = (logits.argmax(axis=1) == logits[:, [0, 3, 2, 1, 4]].argmax(axis=1)).mean()
    assert classes.outputs[0].top1_agreement == pytest.approx(same)


class PairsReference(NumpyReference):
    """How alike each two samples of the batch are."""

    outputs = (TensorSpec("y", (BATCH, BATCH), "float32"),)

    def _run(self, x: Array, dtype: type) -> Array:
        rows = super()._run(x, dtype)
        return rows @ rows.T


def test_an_answer_for_each_pair_of_samples_is_compared_within_its_batch(tmp_path: Path) -> None:
    pairs = [
        helper.make_node("Transpose", ["z"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["z", "t"], ["v"]),
    ]
    spec = write(tmp_path, "pairs", pairs, last="v")
    report = check_candidates(PairsReference(), {"a": spec}, dataset(), CheckPlan())["a"]
    assert passes(report)
    assert isinstance(report, ParityReport)
    assert report.consistency_db is None
    assert report.outputs[0].top1_agreement is None


class DyingProcess(EngineProcess):
    """Really killed before its fourth call, if its model is called so."""

    calls = 0

    def __call__(self, feeds: Feeds) -> dict[str, Array]:
        self.calls += 1
        if self.calls == 4 and "dying" in self.spec.path:
            os.kill(self.pid, signal.SIGKILL)
        return super().__call__(feeds)


def test_a_crash_takes_only_its_own_candidate_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deploy.engines.process, "EngineProcess", DyingProcess)
    specs = {name: write(tmp_path, name, []) for name in ("first", "dying", "last")}
    results = check_candidates(NumpyReference(), specs, dataset(), CheckPlan())
    assert "SIGKILL" in str(results["dying"])
    assert "at batch size 32" in str(results["dying"])
    for name in ("first", "last"):
        report = results[name]
        assert passes(report)
        assert isinstance(report, ParityReport)
        assert report.samples == 50


@pytest.mark.parametrize(
    ("samples", "batches"), [(1, (1, 2, 3)), (3, (1, 2, 3)), (10, (1, 2, 3, 4))]
)
def test_only_batch_sizes_that_were_run_are_claimed(
    tmp_path: Path, samples: int, batches: tuple[int, ...]
) -> None:
    spec = write(tmp_path, "right", [])
    report = check_candidates(
        NumpyReference(), {"a": spec}, dataset(SAMPLES[:samples]), CheckPlan()
    )["a"]
    assert isinstance(report, ParityReport)
    assert report.batches_checked == batches
    assert report.consistency_db is not None
    assert report.samples == samples


def test_of_a_network_of_large_values_few_samples_are_run_at_a_time(tmp_path: Path) -> None:
    spec, reference = write(tmp_path, "right", []), NumpyReference()
    plan = CheckPlan(row_bytes=VALUE_BYTES // 2)
    report = check_candidates(reference, {"a": spec}, dataset(), plan)["a"]
    assert isinstance(report, ParityReport)
    assert report.samples == 50
    assert max(reference.batches) == 3
    assert reference.batches.count(2) > 20
    check_candidates(reference, {"a": spec}, dataset(), CheckPlan(row_bytes=VALUE_BYTES // 31))
    assert max(reference.batches) == 31


def test_static_batch_is_the_only_size_that_is_run(tmp_path: Path) -> None:
    spec = write(tmp_path, "baked", [_node("Reshape", "z", "s")], last="v", s=np.array([8, 5]))
    reference = NumpyReference()
    seen: list[Progress] = []
    report = check_candidates(
        reference, {"a": spec}, dataset(), CheckPlan(static_batch=8), seen.append
    )["a"]
    assert passes(report)
    assert isinstance(report, ParityReport)
    assert set(reference.batches) == {8}
    assert (report.samples, report.batches_checked, report.consistency_db) == (48, (8,), None)
    assert seen[0].stage == "check parity"
    assert seen[-1].done == 48


def test_the_last_full_batch_of_a_static_size_is_compared_too() -> None:
    def wrong_at_last(feeds: Feeds) -> dict[str, Array]:
        found = NumpyReference()(feeds)["y"]
        return {"y": np.where((feeds["x"][:, :1, 0, 0] == SAMPLES[47, 0, 0, 0]), 0, found)}

    plan = CheckPlan(static_batch=8)
    candidates: dict[str, Run] = {"right": NumpyReference(), "wrong": wrong_at_last}
    for samples in (48, 50):
        data = dataset(SAMPLES[:samples])
        found = compare_candidates(NumpyReference(), candidates, data, plan)
        assert isinstance(found["right"], ParityReport)
        assert found["right"].samples == 48
        assert (passes(found["right"]), passes(found["wrong"])) == (True, False)


def test_a_model_that_returns_nan_itself_leaves_nothing_to_hold_an_engine_against() -> None:
    class Undefined(NumpyReference):
        def _run(self, x: Array, dtype: type) -> Array:
            found = super()._run(x, dtype)
            found[x[:, 0, 0, 0] == SAMPLES[20, 0, 0, 0], 2] = np.nan
            return found

    with pytest.raises(DataError, match=r"samples 6 on: .* NaN in output 'y'.*Check its weights"):
        compare_candidates(Undefined(), {"same": Undefined()}, dataset(), CheckPlan())


def test_data_that_does_not_fill_the_static_batch_is_refused(tmp_path: Path) -> None:
    spec = write(tmp_path, "right", [])
    with pytest.raises(DataError, match=r"data\.npz: 50 samples .* one batch of 64.*Pass more"):
        check_candidates(NumpyReference(), {"a": spec}, dataset(), CheckPlan(static_batch=64))


class TwoOutputs(NumpyReference):
    """Also returns a table that has no batch axis."""

    outputs = (*NumpyReference.outputs, TensorSpec("w", (5, 3, 1, 1), "float32"))

    def _both(self, feeds: Feeds, dtype: type) -> dict[str, Array]:
        table = WEIGHT[:, :, None, None].astype(dtype)
        return {"w": table, "y": self._run(feeds["x"], dtype)}

    def __call__(self, feeds: Feeds) -> dict[str, Array]:
        return self._both(feeds, np.float32)

    def floor(
        self, feeds: Feeds, eager: dict[str, Array]
    ) -> tuple[dict[str, Array], dict[str, Array]] | None:
        return self._both(feeds, np.float64), eager


def test_an_output_without_a_batch_axis_is_compared_and_not_joined(tmp_path: Path) -> None:
    spec = write(tmp_path, "two", [])
    model = onnx.load(spec.path)
    value = helper.make_tensor_value_info("table", TensorProto.FLOAT, [5, 3, 1, 1])
    value.name = "w"
    model.graph.initializer[0].name = model.graph.node[0].input[1] = "weight"
    model.graph.node.append(helper.make_node("Identity", ["weight"], ["w"]))
    model.graph.output.append(value)
    onnx.save(model, spec.path)
    report = check_candidates(TwoOutputs(), {"a": spec}, dataset(), CheckPlan())["a"]
    assert passes(report)
    assert isinstance(report, ParityReport)
    assert report.samples == 50
    assert report.consistency_db is not None


class SqueezedReference(NumpyReference):
    """So many numbers a sample, by ``squeeze()``: of one sample alone its axis is not left."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size
        self.outputs = (TensorSpec("y", (BATCH, size)[: 1 + (size > 1)], "float32"),)

    def _run(self, x: Array, dtype: type) -> Array:
        return super()._run(x, dtype)[:, : self._size].squeeze()


@pytest.mark.parametrize("size", [1, 5])
def test_a_lone_sample_whose_axis_is_squeezed_away_is_compared_all_the_same(size: int) -> None:
    right = SqueezedReference(size)
    candidates: dict[str, Run] = {
        "right": SqueezedReference(size),
        "leaking": lambda feeds: {"y": right(feeds)["y"] + len(feeds["x"])},
    }
    found = compare_candidates(SqueezedReference(size), candidates, dataset(), CheckPlan())
    assert passes(found["right"])
    assert isinstance(found["right"], ParityReport)
    assert found["right"].consistency_db == math.inf
    assert not passes(found["leaking"])


def test_a_lone_sample_of_evaluation_is_tried_at_all_batch_sizes() -> None:
    right = NumpyReference()
    candidates: dict[str, Run] = {
        "right": NumpyReference(),
        "baked": lambda feeds: {"y": right(feeds)["y"].reshape(1, 5)},
    }
    found = compare_candidates(NumpyReference(), candidates, dataset(SAMPLES[:1]), CheckPlan())
    assert passes(found["right"])
    assert isinstance(found["right"], ParityReport)
    assert found["right"].batches_checked == (1, 2, 3)
    assert not found["right"].batch_dependent
    assert "at batch sizes 1 to 3" in str(found["baked"])


def test_a_model_whose_answers_depend_on_the_batch_is_told_from_one_that_was_not_asked() -> None:
    class Centred(NumpyReference):
        def _run(self, x: Array, dtype: type) -> Array:
            rows = super()._run(x, dtype)
            return rows - rows.mean(axis=0)

    found = compare_candidates(Centred(), {"a": Centred()}, dataset(), CheckPlan())["a"]
    assert isinstance(found, ParityReport)
    assert (found.batch_dependent, found.consistency_db) == (True, None)
    static = compare_candidates(Centred(), {"a": Centred()}, dataset(), CheckPlan(2))["a"]
    assert isinstance(static, ParityReport)
    assert not static.batch_dependent


class Ranking(NumpyReference):
    """Scores, and which of the batch's samples comes first, second and so on by them."""

    outputs = (TensorSpec("y", ("batch", 5), "float32"), TensorSpec("rank", ("batch",), "int64"))

    def __call__(self, feeds: Feeds) -> dict[str, Array]:
        scores = super().__call__(feeds)["y"]
        return {"y": scores, "rank": scores.max(axis=1).argsort()}

    def floor(
        self, feeds: Feeds, eager: dict[str, Array]
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        return {"y": self._run(feeds["x"], np.float64), "rank": eager["rank"]}, eager


def test_a_model_that_ranks_the_samples_of_a_batch_depends_on_it() -> None:
    found = compare_candidates(Ranking(), {"a": Ranking()}, dataset(), CheckPlan())["a"]
    assert isinstance(found, ParityReport)
    assert found.batch_dependent


def test_a_failing_reference_is_not_taken_for_a_failing_candidate(tmp_path: Path) -> None:
    class Failing(NumpyReference):
        def __call__(self, feeds: Feeds) -> dict[str, Array]:
            raise EngineError("the reference itself fails")

    with pytest.raises(EngineError, match="the reference itself"):
        check_candidates(Failing(), {"a": write(tmp_path, "a", [])}, dataset(), CheckPlan())


def test_no_candidates_no_results() -> None:
    assert check_candidates(NumpyReference(), {}, dataset(), CheckPlan()) == {}


RANGED = TensorSpec(
    "x", (BATCH, 3, "h", "w"), "float32", {"h": SizeRange(2, 4, 8), "w": SizeRange(4, 4, 7)}
)


def judge_sizes(run: Run) -> tuple[ParityReport | str, str | None]:
    """What is found of an engine that is compared at other sizes too, and the gate's reason."""
    plan = CheckPlan(inputs=(RANGED,))
    report = compare_candidates(NumpyReference(), {"it": run}, dataset(), plan)["it"]
    if isinstance(report, str):
        return report, report
    return report, judge_parity(report, "fp32", kind="unlabelled", config=BuildConfig()).reason


def test_an_engine_that_is_right_at_every_size_passes() -> None:
    report, reason = judge_sizes(lambda feeds: NumpyReference()(feeds))
    assert reason is None
    assert isinstance(report, ParityReport)
    assert [dict(seen.sizes) for seen in report.sizes_checked] == [
        {"h": 2, "w": 4},
        {"h": 8, "w": 7},
        {"h": 3, "w": 5},
    ]


def test_an_engine_that_has_a_size_baked_in_is_rejected_with_that_size() -> None:
    def baked(feeds: Feeds) -> dict[str, Array]:
        """A mean that divides by the pixels of the best size."""
        pixels = feeds["x"].shape[2] * feeds["x"].shape[3]
        return {"y": NumpyReference()(feeds)["y"] * np.float32(pixels / 16)}

    _, reason = judge_sizes(baked)
    assert reason is not None
    assert reason.startswith("at h=2, w=4 the SQNR is 6.0 dB, and ")  # of half of what is right


def test_an_engine_that_fails_or_answers_in_another_shape_at_a_size_says_which() -> None:
    def fails(feeds: Feeds) -> dict[str, Array]:
        if feeds["x"].shape[2] == 8:
            raise EngineError("no kernel")
        return NumpyReference()(feeds)

    def reshapes(feeds: Feeds) -> dict[str, Array]:
        y = NumpyReference()(feeds)["y"]
        return {"y": y if feeds["x"].shape[2] != 3 else y[:, :4]}

    assert judge_sizes(fails)[0] == "at h=8, w=7: no kernel"
    assert str(judge_sizes(reshapes)[0]).startswith("at h=3, w=5: output 'y' has shape")


def test_a_coarse_engine_may_be_as_coarse_at_other_sizes_and_no_worse() -> None:
    def coarse(step: float) -> Run:
        def run(feeds: Feeds) -> dict[str, Array]:
            y = NumpyReference()(feeds)["y"]
            wide = step if feeds["x"].shape[2] == 4 else 5 * step
            return {"y": (np.round(y / wide) * wide).astype(np.float32)}

        return run

    plan, config = CheckPlan(inputs=(RANGED,)), BuildConfig(min_agreement=0.0, min_sqnr=10.0)
    for run, holds in ((coarse(1e-7), True), (coarse(0.05), False)):
        report = compare_candidates(NumpyReference(), {"it": run}, dataset(), plan)["it"]
        assert isinstance(report, ParityReport)
        verdict = judge_parity(report, "int8", kind="unlabelled", config=config)
        assert verdict.passed == holds, verdict


def test_a_ruined_sample_is_named_by_its_row_in_the_data() -> None:
    """Not by its place among those drawn for evaluation."""
    drawn = np.arange(49, -1, -2)
    reference = NumpyReference()
    others = reference({"x": SAMPLES[drawn]})["y"]

    def run(feeds: Feeds) -> dict[str, Array]:
        ruined = (feeds["x"] == SAMPLES[37]).all(axis=(1, 2, 3))
        right = reference(feeds)["y"] * np.float32(1.0001)
        return {"y": np.where(ruined[:, None], others[:1], right)}

    found = compare_candidates(reference, {"it": run}, dataset().select(drawn), CheckPlan())["it"]
    assert isinstance(found, ParityReport)
    assert found.outputs[0].worst_samples[0].sample == 37
    assert not judge_parity(
        found, "int8", kind="unlabelled", config=BuildConfig(min_sqnr=10.0, min_agreement=0.0)
    ).passed


def test_no_more_samples_at_once_than_a_server_takes_are_asked_of_an_engine() -> None:
    right = NumpyReference()

    def run(feeds: Feeds) -> dict[str, Array]:
        assert len(feeds["x"]) <= 2
        return right(feeds)

    plan = CheckPlan(largest_batch=2)
    report = compare_candidates(NumpyReference(), {"small": run}, dataset(), plan)["small"]
    assert passes(report)
    assert isinstance(report, ParityReport)
    assert (report.samples, report.batches_checked) == (50, (1, 2))
