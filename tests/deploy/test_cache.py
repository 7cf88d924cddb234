"""What is kept is found again under the same key, and under no other."""

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from short_files import files_of_at_most

from deploy.cache import (
    Cache,
    hash_batches,
    hash_model,
    hash_parts,
    open_cache,
    package_versions,
)
from export.onnx.files import write_model


def test_what_is_kept_is_found_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "new" / "folder")
    cache.keep("ranges", "abc", {"x": [0.5, 1.0]})
    assert cache.find("ranges", "abc") == {"x": [0.5, 1.0]}
    assert cache.find("ranges", "abd") is None
    assert cache.find("noise", "abc") is None


def test_what_is_known_is_not_computed_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    calls = []
    values = [cache.recall("kind", "key", lambda: calls.append(1) or 7) for _ in range(3)]
    assert values == [7, 7, 7]
    assert len(calls) == 1


def test_a_damaged_file_counts_as_absent(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.keep("kind", "key", [1, 2])
    (tmp_path / "kind" / "key.json").write_text("[1, 2", encoding="utf-8")
    assert cache.find("kind", "key") is None
    assert cache.recall("kind", "key", lambda: 3) == 3
    assert cache.find("kind", "key") == 3


def test_a_folder_that_cannot_be_written_to_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    cache = Cache(tmp_path / "file")
    cache.keep("kind", "key", 1)
    assert cache.find("kind", "key") is None


def test_nothing_half_written_is_left(tmp_path: Path) -> None:
    Cache(tmp_path).keep("kind", "key", 1)
    assert [path.name for path in (tmp_path / "kind").iterdir()] == ["key.json"]


def test_what_finds_no_room_keeps_nothing_and_takes_none(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    with files_of_at_most(4000):
        cache.keep("kind", "key", [0.5] * 10_000)
    assert cache.find("kind", "key") is None
    assert list((tmp_path / "kind").iterdir()) == []


def test_without_a_cache_everything_is_computed() -> None:
    cache = open_cache(enabled=False)
    cache.keep("kind", "key", 1)
    assert cache.find("kind", "key") is None
    assert cache.recall("kind", "key", lambda: 2) == 2


def test_the_folder_is_chosen_by_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("DEPLOY_CACHE", raising=False)
    assert open_cache().folder == tmp_path / "deploykit"
    monkeypatch.setenv("DEPLOY_CACHE", str(tmp_path / "mine"))
    assert open_cache().folder == tmp_path / "mine"


def test_a_hash_depends_on_every_part_and_on_content_alone(tmp_path: Path) -> None:
    first, second = tmp_path / "a.bin", tmp_path / "b.bin"
    first.write_bytes(b"content")
    second.write_bytes(b"content")
    assert hash_parts(first, 1) == hash_parts(second, 1)
    assert hash_parts(first, 1) != hash_parts(first, 2)
    second.write_bytes(b"Content")
    assert hash_parts(first, 1) != hash_parts(second, 1)
    assert hash_parts({"a": 1, "b": 2}) == hash_parts({"b": 2, "a": 1})
    assert hash_parts("a", "b") != hash_parts("ab")


def test_a_model_whose_weights_lie_beside_it_is_another_with_other_weights(tmp_path: Path) -> None:
    def write(name: str, value: float) -> Path:
        weight = numpy_helper.from_array(np.full((64, 64), value, np.float32), "w")
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"])],
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 64])],
            [weight],
        )
        path = tmp_path / name / "model.onnx"
        write_model(helper.make_model(graph), path, limit=1000)
        assert path.with_name("model.onnx.data").exists()
        return path

    first, second, other = write("a", 1.0), write("b", 1.0), write("c", 2.0)
    assert first.read_bytes() == other.read_bytes()
    assert hash_model(first) == hash_model(second) != hash_model(other)


def test_batches_differ_by_name_shape_type_and_value() -> None:
    zeros = np.zeros((2, 3), np.float32)
    variants = [
        [{"x": zeros}],
        [{"y": zeros}],
        [{"x": zeros.reshape(3, 2)}],
        [{"x": zeros.astype(np.int32)}],
        [{"x": zeros + np.float32(1e-30)}],
    ]
    assert len({hash_batches(batches) for batches in variants}) == len(variants)


def test_versions_name_what_is_not_installed() -> None:
    versions = package_versions()
    assert versions["numpy"] == np.__version__
    assert "onnxruntime" in versions
