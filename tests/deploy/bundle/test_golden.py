"""Golden answers survive the file and are told from wrong ones at each precision's tolerance."""

import io
import math
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from wrong_answers import WRONG, logits, wrong

from deploy.bundle.golden import (
    MAX_BYTES,
    TOLERANCE,
    Golden,
    choose_samples,
    find_mismatch,
    read_golden,
)
from export.errors import BundleError

Array = np.ndarray[Any, Any]
ANSWERS = {"logits": logits(4, 10, seed=3)}


def mismatch(answer: Array, precision: str) -> str | None:
    return find_mismatch(ANSWERS, {"logits": answer}, tolerance=TOLERANCE[precision])


def write_member(path: Path, data: bytes, **options: Any) -> Path:
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("input/x.npy", data)
    return path


def declare(shape: tuple[int, ...], content: bytes = b"abcd") -> bytes:
    """An array of float32 in numpy's form whose header says `shape`."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": "<f4", "fortran_order": False, "shape": shape}
    )
    return file.getvalue() + content


def encrypt(path: Path) -> Path:
    """Say of the only member that it is encrypted."""
    data = bytearray(path.read_bytes())
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + flags] |= 1
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("shape", [(2**20, 2**20), (2**62, 4), (2,), ()])
def test_a_header_that_claims_other_sizes_than_follow_is_refused(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    content = b"abcdefgh" if shape == () else b"abcd"
    path = write_member(tmp_path / "golden.npz", declare(shape, content))
    with pytest.raises(BundleError, match="size that its header claims"):
        read_golden(path)


def test_a_compressed_member_is_refused_unopened(tmp_path: Path) -> None:
    bomb = declare((2**22,), bytes(2**24))
    path = write_member(tmp_path / "golden.npz", bomb, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(BundleError, match="not stored as it is"):
        read_golden(path)


def test_an_encrypted_member_is_refused(tmp_path: Path) -> None:
    path = encrypt(write_member(tmp_path / "golden.npz", declare((1,))))
    with pytest.raises(BundleError, match="not stored as it is"):
        read_golden(path)


@pytest.mark.parametrize(
    "header",
    ["{'descr': '(", "'''", "1\n  2\n 3", "-" * 5000 + "1", "{1: 2, 'descr': 3}"],
    ids=["half", "quotes", "lines", "deep", "keys"],
)
def test_a_header_that_is_no_literal_is_refused(tmp_path: Path, header: str) -> None:
    data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()
    with pytest.raises(BundleError, match="cannot be read"):
        read_golden(write_member(tmp_path / "golden.npz", data))


@pytest.mark.parametrize(("place", "value"), [(6, 255), (8, 32), (8, 64)])
def test_an_archive_that_asks_for_more_than_zipfile_can_is_refused(
    tmp_path: Path, place: int, value: int
) -> None:
    path = write_member(tmp_path / "golden.npz", declare((1,)))
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + place] |= value
    path.write_bytes(data)
    with pytest.raises(BundleError, match="cannot be read"):
        read_golden(path)


def test_text_in_place_of_the_file_is_not_taken_for_a_pickle(tmp_path: Path) -> None:
    (tmp_path / "golden.npz").write_text("hello")
    with pytest.raises(BundleError) as caught:
        read_golden(tmp_path / "golden.npz")
    assert "pickle" not in str(caught.value)


@pytest.mark.parametrize("precision", TOLERANCE)
def test_the_recorded_answer_and_its_rounding_are_taken(precision: str) -> None:
    answer = ANSWERS["logits"]
    assert mismatch(answer, precision) is None
    assert mismatch(answer * np.float32(1 + 2**-22), precision) is None


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("name", wrong("scaled by 1.01"))
def test_wrong_answers_are_told_at_every_precision(name: str, precision: str) -> None:
    assert "'logits'" in str(mismatch(WRONG[name](ANSWERS["logits"]), precision))


def test_one_percent_of_scale_is_told_at_fp32() -> None:
    scaled = ANSWERS["logits"] * np.float32(1.01)
    assert "off by 0.01 of its largest value" in str(mismatch(scaled, "fp32"))


@pytest.mark.parametrize("precision", ["fp16", "bf16", "mixed", "int8", "int4"])
def test_one_percent_of_scale_is_within_the_tolerance_of_fewer_bits(precision: str) -> None:
    scaled = ANSWERS["logits"] * np.float32(1.01)
    assert mismatch(scaled, precision) is None
    assert mismatch(ANSWERS["logits"] * np.float32(1.1), precision) is not None


@pytest.mark.parametrize(
    ("mebibytes", "engines", "samples"),
    [(1, 1, 4), (1, 7, 4), (2, 7, 2), (3, 7, 1), (4, 1, 4), (4, 3, 2), (16, 2, 1), (64, 7, 1)],
)
def test_golden_samples_stay_within_32_mib_or_are_one(
    mebibytes: int, engines: int, samples: int
) -> None:
    sample = {"x": np.zeros((1, mebibytes * 2**18), np.float32)}
    assert choose_samples(sample, sample, engines=engines) == samples
    assert samples == 1 or samples * (1 + engines) * mebibytes * 2**20 <= MAX_BYTES


def test_missing_output_and_wrong_shape_are_told() -> None:
    assert find_mismatch(ANSWERS, {}, tolerance=1) == "output 'logits' is missing"
    assert mismatch(logits(4, 9), "int8") == "output 'logits' has shape [4, 9], not [4, 10]"
    assert "shape" in str(mismatch(logits(1, 10), "int8"))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_recorded_nonfinite_value_must_come_again(value: float) -> None:
    recorded = {"y": np.array([1.0, value], np.float32)}
    for other in (math.nan, math.inf, -math.inf, 0.0):
        found = find_mismatch(recorded, {"y": np.array([1.0, other], np.float32)}, tolerance=1e-4)
        same = other == value or (math.isnan(other) and math.isnan(value))
        assert (found is None) is same


def test_whole_numbers_must_be_equal() -> None:
    recorded = {"ids": np.array([1, 200], np.int64)}
    assert find_mismatch(recorded, {"ids": np.array([1, 200])}, tolerance=0.05) is None
    assert find_mismatch(recorded, {"ids": np.array([1, 201])}, tolerance=0.05) is not None


def test_a_few_pixels_of_a_map_of_classes_may_fall_the_other_way() -> None:
    recorded = np.random.default_rng(0).integers(0, 5, (4, 64, 64))
    answered = recorded.copy()
    answered[0, 0, :5] += 1
    assert find_mismatch({"map": recorded}, {"map": answered}, tolerance=TOLERANCE["int8"]) is None
    assert find_mismatch({"map": recorded}, {"map": answered}, tolerance=TOLERANCE["fp32"])
    shifted = np.roll(recorded, 1, axis=-1)
    assert find_mismatch({"map": recorded}, {"map": shifted}, tolerance=TOLERANCE["int8"])


@pytest.mark.parametrize("fill", [-1e9, float(np.finfo(np.float32).min)])
def test_a_fill_of_masked_values_hides_no_wrong_ones(fill: float) -> None:
    masked, wrong_ones = logits(4, 10), logits(4, 10, seed=1)
    for array in (masked, wrong_ones):
        array[:, :3] = fill
    tolerance = TOLERANCE["int8"]
    assert find_mismatch({"y": masked}, {"y": masked.copy()}, tolerance=tolerance) is None
    assert "off by" in str(find_mismatch({"y": masked}, {"y": wrong_ones}, tolerance=tolerance))
    assert find_mismatch({"y": masked}, {"y": logits(4, 10)}, tolerance=tolerance) is not None


def test_all_zero_answers_allow_the_tolerance_itself() -> None:
    zeros = {"y": np.zeros((2, 2), np.float32)}
    assert find_mismatch(zeros, {"y": zeros["y"] + np.float32(1e-5)}, tolerance=1e-4) is None
    assert find_mismatch(zeros, {"y": zeros["y"] + np.float32(1.5e-4)}, tolerance=1e-4) is not None


@pytest.mark.parametrize("size", [1e-6, 1e6])
def test_answers_are_held_to_their_own_size(size: float) -> None:
    recorded = {"y": logits() * np.float32(size)}
    near = {"y": recorded["y"] * np.float32(1 + 5e-5)}
    assert find_mismatch(recorded, near, tolerance=1e-4) is None
    far = {"y": recorded["y"] * np.float32(1 + 2e-4)}
    assert "off by" in str(find_mismatch(recorded, far, tolerance=1e-4))


def test_a_tolerance_that_is_no_number_passes_nothing() -> None:
    assert find_mismatch(ANSWERS, dict(ANSWERS), tolerance=math.nan) is not None


def test_every_output_is_looked_at() -> None:
    recorded = {"a": logits(), "b": logits()}
    answered = {"a": logits(), "b": logits() * np.float32(2)}
    assert "'b'" in str(find_mismatch(recorded, answered, tolerance=0.05))


def test_file_gives_back_the_same_bits_under_the_same_names(tmp_path: Path) -> None:
    golden = Golden(
        {"x": logits(), "file": np.arange(3, dtype=np.int64), "a/b": np.array([True, False])},
        {
            "reference": {"y": logits(), "boxes/0": logits(3)},
            "onnxruntime-int8": {"y": np.float16(logits()), "scalar": np.array(2.5)},
        },
    )
    golden.save(tmp_path / "golden.npz")
    back = read_golden(tmp_path / "golden.npz")
    assert back.inputs.keys() == golden.inputs.keys()
    assert back.outputs.keys() == golden.outputs.keys()
    for name, array in golden.inputs.items():
        assert (back.inputs[name].dtype, back.inputs[name].tobytes()) == (
            array.dtype,
            array.tobytes(),
        )
    for engine, outputs in golden.outputs.items():
        for name, array in outputs.items():
            assert back.outputs[engine][name].tobytes() == array.tobytes()
            assert back.outputs[engine][name].shape == array.shape


def test_file_has_the_same_bytes_each_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        Golden({"x": logits()}, {"reference": ANSWERS}).save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_python_objects_are_neither_written_nor_read(tmp_path: Path) -> None:
    objects = np.array([{}, None], dtype=object)
    with pytest.raises(ValueError, match=r"[Oo]bject"):
        Golden({"x": objects}, {}).save(tmp_path / "golden.npz")
    np.savez(tmp_path / "evil.npz", **{"input/x": objects})
    with pytest.raises(BundleError, match=r"evil\.npz cannot be read"):
        read_golden(tmp_path / "evil.npz")


@pytest.mark.parametrize(
    "dtype", ["U1", "S3", "complex64", "M8[s]", "m8[s]", [("a", "f4")]], ids=str
)
def test_what_no_engine_takes_or_gives_is_refused(tmp_path: Path, dtype: Any) -> None:
    Golden({}, {"reference": {"logits": np.zeros((4, 3), dtype)}}).save(tmp_path / "golden.npz")
    with pytest.raises(BundleError, match="which no engine takes or gives"):
        read_golden(tmp_path / "golden.npz")


def _truncated(path: Path) -> None:
    Golden({"x": logits()}, {}).save(path)
    path.write_bytes(path.read_bytes()[:200])


def _corrupt(path: Path) -> None:
    Golden({"x": logits()}, {}).save(path)
    content = bytearray(path.read_bytes())
    content[400] ^= 0xFF
    path.write_bytes(bytes(content))


def _foreign(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive, archive.open("x.npy", "w") as file:
        np.lib.format.write_array(file, logits())


def _lone_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, logits())


@pytest.mark.parametrize(
    "damage",
    [
        _truncated,
        _corrupt,
        _foreign,
        _lone_array,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"PK\x03\x04 nothing"),
        lambda path: path.write_text("hello"),
        lambda path: None,
    ],
    ids=["truncated", "corrupt", "foreign", "npy", "empty", "no zip", "text", "missing"],
)
def test_damaged_file_is_named_with_the_fix(tmp_path: Path, damage: Any) -> None:
    path = tmp_path / "golden.npz"
    damage(path)
    with pytest.raises(BundleError, match=r"golden\.npz cannot be read.*Build the bundle again"):
        read_golden(path)


@pytest.mark.parametrize(("precision", "most"), [("fp32", 1), ("int8", 12)])
def test_pixels_of_images_may_fall_to_the_next_number_and_class_numbers_may_not(
    precision: str, most: int
) -> None:
    images = np.random.default_rng(0).integers(0, 240, (2, 8, 8, 3), dtype=np.uint8)
    images[0, 0, 0] = 255, 254, 0

    def differs(recorded: np.ndarray, answered: np.ndarray) -> bool:
        found = find_mismatch({"y": recorded}, {"y": answered}, tolerance=TOLERANCE[precision])
        return found is not None

    assert not differs(images, np.where(images < 240, images + np.uint8(most), images))
    assert differs(images, np.where(images < 240, images + np.uint8(most + 1), images))
    assert differs(images, images.astype(np.int64) + (images < 240))
    classes, masks = images[..., 0], images % 2
    assert differs(classes, np.where(classes < 240, classes + np.uint8(1), classes))
    assert differs(masks, 1 - masks)


def test_bfloat16_comes_back_and_is_held_to_a_difference(tmp_path: Path) -> None:
    exact = logits().astype(ml_dtypes.bfloat16)
    Golden({"x": exact}, {"engine": {"y": exact}}).save(tmp_path / "golden.npz")
    read = read_golden(tmp_path / "golden.npz")
    assert read.inputs["x"].dtype == ml_dtypes.bfloat16
    recorded = read.outputs["engine"]
    assert find_mismatch(recorded, {"y": exact}, tolerance=0.0) is None
    near = (exact.astype(np.float32) * np.float32(1.01)).astype(ml_dtypes.bfloat16)
    assert find_mismatch(recorded, {"y": near}, tolerance=5e-2) is None
    assert find_mismatch(recorded, {"y": near}, tolerance=1e-3) is not None
