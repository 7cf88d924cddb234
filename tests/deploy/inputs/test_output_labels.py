"""Arrays that hold the labels of the output in their name, in every kind of data."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deploy.config import BuildConfig, ImageConfig
from deploy.inputs.data import check_data, open_data
from deploy.inputs.dataset import Dataset
from deploy.judging.layouts import LabelForm, LabelledOutput
from deploy.source import Problem, open_problem
from export.artifacts import TensorSpec
from tests.samples import floats, open_plain, refuse, save_npz

KINDS = np.arange(40) % 3
AGES = np.linspace(1, 60, 40)


def check(data: Dataset) -> None:
    assert list(data.inputs) == ["x"]
    assert data.labels is None
    assert sorted(data.labels_of) == ["age", "kind"]
    np.testing.assert_array_equal(data.labels_of["kind"], KINDS)
    np.testing.assert_array_equal(data.labels_of["age"], AGES)
    assert data.is_labelled


def test_an_archive_names_them(tmp_path: Path) -> None:
    check(open_plain(save_npz(tmp_path / "d.npz", x=floats(40, 2), y_kind=KINDS, y_age=AGES)))


def test_a_file_of_tensors_has_them_by_name_or_as_a_dict_behind_x(tmp_path: Path) -> None:
    x, kind, age = torch.from_numpy(floats(40, 2)), torch.from_numpy(KINDS), torch.from_numpy(AGES)
    torch.save({"x": x, "y_kind": kind, "y_age": age}, tmp_path / "a.pt")
    torch.save((x, {"kind": kind, "age": age}), tmp_path / "b.pt")
    torch.save({"x": x, "y": {"kind": kind, "age": age}}, tmp_path / "c.pt")
    for name in ("a.pt", "b.pt", "c.pt"):
        check(open_plain(tmp_path / name))


def test_labels_of_one_output_twice_are_refused(tmp_path: Path) -> None:
    x, kind = torch.from_numpy(floats(40, 2)), torch.from_numpy(KINDS)
    torch.save({"x": x, "y": {"kind": kind}, "y_kind": kind}, tmp_path / "a.pt")
    refuse(lambda: open_plain(tmp_path / "a.pt"), "a.pt: y_kind", "y['kind']")


def test_a_callable_yields_them_batch_by_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "batches_of_two.py").write_text(
        "import numpy as np\n"
        "def batches():\n"
        "    for start in range(0, 40, 16):\n"
        "        rows = np.arange(start, min(start + 16, 40))\n"
        "        ages = np.linspace(1, 60, 40)[rows]\n"
        "        yield np.zeros((len(rows), 2), np.float32), {'kind': rows % 3, 'age': ages}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    check(open_plain("batches_of_two:batches"))
    sys.modules.pop("batches_of_two")


def test_labels_for_calibration_are_no_inputs(tmp_path: Path) -> None:
    arrays = {"x": floats(40, 2), "y_kind": KINDS, "calibration_x": floats(9, 2)}
    path = save_npz(tmp_path / "d.npz", **arrays, calibration_y_kind=KINDS[:9])
    data = open_plain(path)
    assert data.calibration is not None
    assert list(data.calibration.inputs) == ["x"]


def test_they_go_with_their_samples_and_have_as_many_rows(tmp_path: Path) -> None:
    path = save_npz(tmp_path / "d.npz", x=floats(40, 2), y=KINDS, y_age=AGES)
    data = open_plain(path).select(np.array([7, 2]))
    assert data.labels is not None
    assert data.labels.tolist() == [1, 2]
    assert data.labels_of["age"].tolist() == AGES[[7, 2]].tolist()
    assert data.find_labels("age") is data.labels_of["age"]
    assert data.find_labels("other") is data.labels
    views = data.view_labels()
    assert [(name, view.source.removeprefix(str(path))) for name, view in views.items()] == [
        (None, ""),
        ("age", ", y_age"),
    ]
    short = save_npz(tmp_path / "short.npz", x=floats(40, 2), y_age=AGES[:39])
    refuse(lambda: open_plain(short), "differ in length", "y_age 39")


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.where(KINDS == 2, -2, KINDS), ("d.npz, y_kind", "label -2 in row 2", "negative")),
        (np.where(AGES > 50, np.inf, AGES), ("d.npz, y_kind", "the labels hold Inf in row 33")),
    ],
)
def test_values_that_cannot_be_are_named_with_their_array(
    tmp_path: Path, labels: np.ndarray, words: tuple[str, ...]
) -> None:
    data = open_plain(save_npz(tmp_path / "d.npz", x=floats(40, 2), y=KINDS, y_kind=labels))
    refuse(lambda: check_data(data, [TensorSpec("x", ("batch", 2), "float32")]), *words)


def test_text_is_refused_by_name(tmp_path: Path) -> None:
    path = save_npz(tmp_path / "d.npz", x=floats(3, 2), y_kind=np.array(["cat", "dog", "cat"]))
    refuse(lambda: open_plain(path), "d.npz: y_kind holds text", "numpy.unique")


class Heads(nn.Module):
    """Two outputs, and an input that is called as labels of one are."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(2, 4)

    def forward(self, x: Tensor, y_mean: Tensor, y_age: Tensor | None = None) -> dict[str, Tensor]:
        scores = self.body(x - y_mean)
        return {"kind": scores[:, :3], "age": scores[:, 3:]}


def open_heads(folder: Path, arrays: dict[str, np.ndarray], **options: object) -> Problem:
    data = str(save_npz(folder / "d.npz", **arrays))
    config = BuildConfig(data=data, **options)  # type: ignore[arg-type]
    return open_problem(Heads().eval(), config, folder)


@pytest.mark.parametrize("inputs", [(), ("x:1x2", "y_mean:1x2")])
def test_what_forward_needs_is_an_input_and_what_it_may_do_without_labels(
    tmp_path: Path, inputs: tuple[str, ...]
) -> None:
    arrays = {"x": floats(40, 2), "y_mean": floats(40, 2), "y_age": AGES}
    problem = open_heads(tmp_path, arrays, inputs=inputs)
    assert [spec.name for spec in problem.signature.inputs] == ["x", "y_mean"]
    assert problem.labelled == (LabelledOutput("age", LabelForm(targets=True)),)
    assert problem.kind == "labelled"


def test_of_a_known_model_all_that_it_does_not_take_is_labels(tmp_path: Path) -> None:
    arrays = {"x": floats(40, 2), "y_mean": floats(40, 2), "y_age": AGES}
    path = str(save_npz(tmp_path / "d.npz", **arrays))
    data = open_data(path, images=ImageConfig(), input_names=["x", "y_mean"])
    assert (list(data.inputs), list(data.labels_of)) == (["x", "y_mean"], ["age"])
    lone = open_data(path, images=ImageConfig(), input_names=["image"])
    assert (list(lone.inputs), list(lone.labels_of)) == (["image"], ["mean", "age"])


def test_an_array_of_no_output_is_refused_with_what_there_is(tmp_path: Path) -> None:
    arrays = {"x": floats(40, 2), "y_mean": floats(40, 2), "y_ages": AGES}
    refuse(
        lambda: open_heads(tmp_path, arrays),
        "d.npz: y_ages holds labels of an output 'ages'",
        "Its outputs are: kind, age.",
    )


def test_a_class_that_is_not_known_is_taken_beside_other_labels_alone(tmp_path: Path) -> None:
    specs = [TensorSpec("x", ("batch", 2), "float32")]
    some = np.where(KINDS == 2, -1, np.where(KINDS == 1, -100, KINDS))
    both = save_npz(tmp_path / "both.npz", x=floats(40, 2), y_kind=some, y_age=AGES)
    check_data(open_plain(both), specs)
    one = save_npz(tmp_path / "one.npz", x=floats(40, 2), y_kind=some)
    refuse(
        lambda: check_data(open_plain(one), specs), "label -100 in row 1", "take unlabelled rows"
    )
