"""Files and callables are read as named arrays; code, damage and bombs are refused unread."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from deploy.inputs.data import check_data, open_data
from export.artifacts import TensorSpec
from export.errors import ConfigError
from tests.samples import PLAIN, floats, open_plain, refuse, save_npz


class TestArrays:
    def test_npz_with_labels(self, tmp_path: Path) -> None:
        x, y = floats(6, 3, 4, 5), np.arange(6)
        dataset = open_plain(save_npz(tmp_path / "d.npz", x=x, y=y))
        assert len(dataset) == 6
        (spec,) = dataset.specs()
        assert (spec.name, spec.shape, spec.dtype) == (None, (1, 3, 4, 5), "float32")
        np.testing.assert_array_equal(dataset.batch([4, 1])["x"], x[[4, 1]])
        assert dataset.labels is not None
        np.testing.assert_array_equal(dataset.labels, y)

    def test_npz_with_named_inputs(self, tmp_path: Path) -> None:
        ids, mask = np.ones((4, 7), np.int64), np.zeros((4, 7), np.bool_)
        path = save_npz(tmp_path / "d.npz", ids=ids, mask=mask, y=np.zeros(4, int))
        dataset = open_plain(path)
        assert {spec.name: spec.dtype for spec in dataset.specs()} == {
            "ids": "int64",
            "mask": "bool",
        }
        refuse(lambda: open_plain(path, ["ids", "attention"]), "ids, mask", "ids, attention")

    def test_input_that_is_called_y_is_an_input_where_the_model_says_so(
        self, tmp_path: Path
    ) -> None:
        path = save_npz(tmp_path / "d.npz", x=floats(4, 2), y=floats(4, 2))
        dataset = open_plain(path, ["x", "y"])
        assert set(dataset.inputs) == {"x", "y"}
        assert dataset.labels is None


def test_labels_that_are_names_are_refused_with_what_makes_numbers_of_them(tmp_path: Path) -> None:
    names = np.array(["skip", "click", "skip", "buy"])
    path = save_npz(tmp_path / "d.npz", x=floats(4, 2), y=names)
    refuse(lambda: open_plain(path), "y holds text", "class numbers", "return_inverse=True")
    numbers = np.unique(names, return_inverse=True)[1]  # what is advised
    np.testing.assert_array_equal(numbers, [2, 1, 2, 0])


class TestTensors:
    @pytest.mark.parametrize("zipped", [True, False])
    def test_tensor_pair_and_dict(self, tmp_path: Path, zipped: bool) -> None:
        x, y = torch.from_numpy(floats(5, 2)), torch.arange(5)
        for number, content in enumerate((x, (x, y), [x, y], {"x": x, "y": y})):
            path = tmp_path / f"{number}.pt"
            torch.save(content, path, _use_new_zipfile_serialization=zipped)
            dataset = open_plain(path)
            np.testing.assert_array_equal(dataset.batch([3, 0])["x"], x[[3, 0]].numpy())
            assert (dataset.labels is None) == (number == 0)

    def test_bfloat16_and_gradients(self, tmp_path: Path) -> None:
        x = torch.tensor([[1.5], [-2.0]], dtype=torch.bfloat16, requires_grad=True)
        torch.save({"image": x}, tmp_path / "d.pt")
        dataset = open_plain(tmp_path / "d.pt")
        assert dataset.specs()[0].dtype == "bfloat16"
        assert dataset.batch([1])["image"].astype(float) == -2.0
        check_data(dataset, [TensorSpec("image", ("batch", 1), "float32")])

    def test_code_in_a_pickle_is_not_run(self, tmp_path: Path) -> None:
        torch.save(torch.nn.Linear(2, 2), tmp_path / "d.pt")
        refuse(lambda: open_plain(tmp_path / "d.pt"), "d.pt", "more than tensors", "torch.save")

    @pytest.mark.parametrize(
        "content", [{"x": "text"}, 3.0, None, torch.eye(2).to_sparse(), {"x": None}]
    )
    def test_other_content_is_refused(self, tmp_path: Path, content: object) -> None:
        torch.save(content, tmp_path / "d.pt")
        refuse(lambda: open_plain(tmp_path / "d.pt"), "d.pt", "x")


class TestSourcesRefused:
    @pytest.mark.parametrize("name", ["no.npz", "no.npy", "no.pt", "folder/no.npz"])
    def test_missing_file(self, tmp_path: Path, name: str) -> None:
        refuse(lambda: open_plain(tmp_path / name), name, "no such file")

    def test_unknown_suffix_lists_what_is_taken(self, tmp_path: Path) -> None:
        path = tmp_path / "d.csv"
        path.write_text("1,2")
        refuse(lambda: open_plain(path), "d.csv", ".npz with x", ".npy, .pt", "folder", "callable")
        refuse(lambda: open_plain(tmp_path / "nothing"), "no such file", ".npz")

    @pytest.mark.parametrize("suffix", [".npz", ".npy", ".pt"])
    def test_damaged_file(self, tmp_path: Path, suffix: str) -> None:
        for content in (b"", b"\x00garbage", b"PK\x03\x04rest"):
            path = tmp_path / f"d{suffix}"
            path.write_bytes(content)
            refuse(lambda path=path: open_plain(path), "d" + suffix)

    def test_truncated_files(self, tmp_path: Path) -> None:
        np.save(tmp_path / "d.npy", floats(100, 10))
        save_npz(tmp_path / "d.npz", x=floats(100, 10))
        for name in ("d.npy", "d.npz"):
            path = tmp_path / name
            path.write_bytes(path.read_bytes()[:-900])
            refuse(lambda path=path: open_plain(path), name)

    def test_flipped_bytes_in_an_archive(self, tmp_path: Path) -> None:
        path = save_npz(tmp_path / "d.npz", x=floats(100, 10))
        content = bytearray(path.read_bytes())
        content[2000] ^= 255
        path.write_bytes(content)
        refuse(lambda: open_plain(path), "d.npz", "CRC")

    def test_python_objects_are_refused(self, tmp_path: Path) -> None:
        ragged = np.array([np.zeros(2), np.zeros(3)], dtype=object)
        np.save(tmp_path / "d.npy", ragged, allow_pickle=True)
        save_npz(tmp_path / "d.npz", x=ragged)
        for name in ("d.npy", "d.npz"):
            path = tmp_path / name
            refuse(lambda path=path: open_plain(path), name, "Python objects", "one shape")

    def test_archive_that_declares_more_than_memory_is_refused_unread(self, tmp_path: Path) -> None:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": "<f4", "fortran_order": False, "shape": (10**12, 100)}
        )
        with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
            archive.writestr("x.npy", header.getvalue())
        refuse(lambda: open_plain(tmp_path / "d.npz"), "GiB", ".npy")

    def test_archive_with_other_files(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
            archive.writestr("readme.txt", "hello")
        refuse(lambda: open_plain(tmp_path / "d.npz"), "readme.txt", "numpy.savez")

    @pytest.mark.parametrize(
        ("arrays", "parts"),
        [
            ({"x": np.zeros((0, 3), np.float32)}, ("x holds no samples",)),
            ({"x": np.float32(1)}, ("x holds no samples",)),
            ({"y": np.arange(3)}, ("no array of inputs",)),
            ({}, ("no array of inputs",)),
            ({"x": np.zeros((4, 2)), "y": np.arange(3)}, ("x 4", "y 3")),
            ({"ids": np.zeros((4, 2)), "mask": np.zeros((5, 2))}, ("ids 4", "mask 5")),
            ({"x": np.zeros((4, 2), complex)}, ("complex128",)),
            ({"x": np.array(["a", "b"])}, ("x holds text",)),
        ],
    )
    def test_arrays_that_cannot_be_samples(
        self, tmp_path: Path, arrays: dict[str, np.ndarray], parts: tuple[str, ...]
    ) -> None:
        refuse(lambda: open_plain(save_npz(tmp_path / "d.npz", **arrays)), "d.npz", *parts)


class TestCallables:
    CODE = """
import numpy as np
import torch

def pairs():
    buffer = np.empty((4, 2), np.float32)
    for number in range(3):
        buffer[:] = number
        yield buffer, np.full(4, number)

def endless():
    while True:
        yield {"ids": torch.ones(5, 3, dtype=torch.int64)}

def loader():
    data = torch.utils.data.TensorDataset(torch.ones(6, 2))
    return torch.utils.data.DataLoader(data, batch_size=4)

def nothing():
    return []

def fails():
    yield np.zeros((2, 2))
    raise KeyError("lost")

def changes_size():
    yield np.zeros((2, 2))
    yield np.zeros((2, 3))

def changes_keys():
    yield {"a": np.zeros((2, 2))}
    yield {"b": np.zeros((2, 2))}

def text():
    yield "hello"

number = 3
"""

    @pytest.fixture(autouse=True)
    def batches(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "made_batches.py").write_text(self.CODE)
        monkeypatch.syspath_prepend(str(tmp_path))

    def test_pairs_are_copied_as_they_come(self) -> None:
        dataset = open_plain("made_batches:pairs")
        assert dataset.labels is not None
        assert dataset.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
        np.testing.assert_array_equal(dataset.batch(range(12))["x"][:, 0], dataset.labels)

    def test_endless_callable_is_stopped_at_the_limit(self) -> None:
        dataset = open_data("made_batches:endless", images=PLAIN, input_names=["ids"], limit=12)
        assert len(dataset) == 12
        assert dataset.specs()[0].dtype == "int64"
        assert len(open_plain("made_batches:endless")) == 4096

    def test_data_loader_of_lone_tensors(self) -> None:
        dataset = open_plain("made_batches:loader")
        assert len(dataset) == 6
        assert dataset.labels is None

    @pytest.mark.parametrize(
        ("name", "parts"),
        [
            ("nothing", ("no batches",)),
            ("fails", ("KeyError", "lost")),
            ("changes_size", ("batch 1", "[2, 3]")),
            ("changes_keys", ("batch 1", "'a'", "'b'")),
            ("text", ("batch 0", "str")),
            ("number", ("TypeError", "not callable")),
        ],
    )
    def test_what_is_wrong_is_named(self, name: str, parts: tuple[str, ...]) -> None:
        refuse(lambda: open_plain(f"made_batches:{name}"), f"made_batches:{name}", *parts)

    def test_missing_module_and_missing_name(self) -> None:
        refuse(lambda: open_plain("made_batches:absent"), "--data", kind=ConfigError)
        refuse(lambda: open_plain("no_such_module_here:f"), "--data", kind=ConfigError)


@pytest.mark.parametrize(
    ("saved", "names", "inputs", "labelled"),
    [
        (("x", "y"), ["y"], {"y": "x"}, True),
        (("x",), ["y"], {"y": "x"}, False),
        (("y",), ["y"], {"y": "y"}, False),
        (("x", "y"), ["x", "y"], {"x": "x", "y": "y"}, False),
    ],
)
def test_an_only_input_is_x_even_where_it_is_called_y(
    saved: tuple[str, ...],
    names: list[str],
    inputs: dict[str, str],
    labelled: bool,
    tmp_path: Path,
) -> None:
    arrays = {name: np.arange(6) + 10 * i for i, name in enumerate(saved)}
    np.savez(tmp_path / "data.npz", **arrays)  # type: ignore[arg-type]
    data = open_data(str(tmp_path / "data.npz"), images=PLAIN, input_names=names)
    found = {name: rows.tolist() for name, rows in data.batch(np.arange(6)).items()}
    assert found == {name: arrays[source].tolist() for name, source in inputs.items()}
    assert (data.labels is not None) == labelled
