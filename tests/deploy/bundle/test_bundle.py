"""A bundle is whole or refused; what stands at the target is replaced whole or left alone."""

import contextlib
import errno
import fcntl
import json
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import Lean, answer, draw, fill_stage

import deploy.bundle.folder
import deploy.bundle.manifest as manifests
import deploy.bundle.staging
from deploy.bundle.folder import load, read_bundle, read_result
from deploy.bundle.staging import stage_bundle, stage_folder
from deploy.measuring.machine import usable_cores
from export.errors import BundleError

FILES = (
    "manifest.json",
    "report.json",
    "report.html",
    "golden.npz",
    "model.onnx",
    "onnx-int8/model.onnx",
)


@pytest.fixture
def never_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused bundle must not have had anything of it loaded."""

    def refuse(spec: object) -> None:
        raise AssertionError(f"an engine was opened: {spec}")

    monkeypatch.setattr(deploy.bundle.folder, "open_engine", refuse)


def rehash(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest as an attacker does, who can hash as well as we can."""
    content = json.loads((path / "manifest.json").read_text())
    change(content)
    content["manifest_sha256"] = manifests._hash_content(content)
    (path / "manifest.json").write_bytes(manifests._serialize(content))


def flip(file: Path, position: int, bit: int) -> None:
    data = bytearray(file.read_bytes())
    data[position] ^= 1 << bit
    file.write_bytes(data)


def neighbours(target: Path) -> list[str]:
    return sorted(entry.name for entry in target.parent.iterdir())


def snapshot(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


def test_the_list_of_files_is_complete(pristine: Path) -> None:
    assert sorted(snapshot(pristine)) == sorted(FILES)


def test_a_sound_bundle_is_read(pristine: Path) -> None:
    bundle = read_bundle(pristine)
    assert bundle.winner == "onnxruntime-int8"
    assert set(bundle.manifest.files) == {*FILES} - {"manifest.json"}
    assert bundle.report()["schema_version"] == 1


def test_a_bundle_can_be_moved_and_reached_through_a_link(bundle_path: Path) -> None:
    moved = bundle_path.rename(bundle_path.with_name("moved"))
    link = moved.with_name("link")
    link.symlink_to(moved)
    assert read_bundle(link).winner == "onnxruntime-int8"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
@pytest.mark.usefixtures("never_opened")
def test_one_flipped_bit_is_refused(bundle_path: Path, name: str, place: float) -> None:
    file = bundle_path / name
    flip(file, round((file.stat().st_size - 1) * place), bit=2)
    for refused in (read_bundle, load):
        with pytest.raises(BundleError, match=r"changed|damaged|no engine|format"):
            refused(bundle_path)


def test_no_byte_of_the_manifest_may_change(bundle_path: Path) -> None:
    file = bundle_path / "manifest.json"
    data = file.read_bytes()
    rng = np.random.default_rng(0)
    for position in rng.choice(len(data), 150, replace=False):
        for bit in (0, 5):
            file.write_bytes(data)
            flip(file, int(position), bit)
            with pytest.raises(BundleError):
                read_bundle(bundle_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"\n  ", b"\n\t"),
        (b"\n", b"\r\n"),
        (b'"winner"', b'"winner": "torch", "winner"'),
        (b"0.0001", b"1e-4"),
        (b"}\n", b"}"),
    ],
)
def test_another_spelling_of_the_same_manifest_is_refused(
    bundle_path: Path, old: bytes, new: bytes
) -> None:
    file = bundle_path / "manifest.json"
    data = file.read_bytes()
    assert old in data
    file.write_bytes(data.replace(old, new))
    with pytest.raises(BundleError, match="damaged"):
        read_bundle(bundle_path)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.usefixtures("never_opened")
def test_a_missing_file_is_refused(bundle_path: Path, name: str) -> None:
    (bundle_path / name).unlink()
    with pytest.raises(BundleError, match="no bundle" if name == "manifest.json" else "missing"):
        load(bundle_path)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.usefixtures("never_opened")
def test_a_linked_file_is_refused(bundle_path: Path, name: str, inside: bool) -> None:
    file = bundle_path / name
    home = bundle_path if inside else bundle_path.parent
    file.rename(home / "elsewhere")
    file.symlink_to(home / "elsewhere")
    with pytest.raises(BundleError, match="is a link"):
        load(bundle_path)


@pytest.mark.parametrize("inside", [True, False])
def test_a_linked_folder_is_refused(bundle_path: Path, inside: bool) -> None:
    folder = bundle_path / "onnx-int8"
    home = bundle_path if inside else bundle_path.parent
    folder.rename(home / "elsewhere")
    folder.symlink_to(home / "elsewhere")
    with pytest.raises(BundleError, match="onnx-int8 is a link"):
        read_bundle(bundle_path)


def test_a_linked_folder_beside_the_files_is_refused(bundle_path: Path) -> None:
    (bundle_path / "more").symlink_to(bundle_path.parent)
    with pytest.raises(BundleError, match="more is a link"):
        read_bundle(bundle_path)


@pytest.mark.parametrize("name", ["extra.py", "onnx-int8/model.onnx.data", ".hidden", "a/b/c"])
def test_an_extra_file_is_refused(bundle_path: Path, name: str) -> None:
    (bundle_path / name).parent.mkdir(parents=True, exist_ok=True)
    (bundle_path / name).write_text("x")
    with pytest.raises(BundleError, match=f"{name} is not part of the bundle"):
        read_bundle(bundle_path)


def test_a_pipe_in_place_of_a_file_is_refused_and_not_waited_for(bundle_path: Path) -> None:
    (bundle_path / "model.onnx").unlink()
    os.mkfifo(bundle_path / "model.onnx")
    with pytest.raises(BundleError, match=r"model\.onnx is missing"):
        read_bundle(bundle_path)


@pytest.mark.parametrize(
    "name", ["../outside", "a/../../outside", "/etc/hostname", "..\\outside", "C:\\x", "a\0b", ".."]
)
@pytest.mark.usefixtures("never_opened")
def test_a_manifest_that_leads_out_is_refused(bundle_path: Path, name: str) -> None:
    outside = bundle_path.parent / "outside"
    outside.write_text("x")

    def escape(content: dict[str, Any]) -> None:
        content["files"][name] = manifests.hash_file(outside)
        content["engines"]["onnxruntime-int8"]["file"] = name

    rehash(bundle_path, escape)
    with pytest.raises(BundleError, match="outside the bundle"):
        load(bundle_path)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "./model.onnx", "", "nothing"])
@pytest.mark.usefixtures("never_opened")
def test_an_engine_file_that_is_not_hashed_is_refused(bundle_path: Path, name: str) -> None:
    rehash(bundle_path, lambda c: c["engines"]["onnxruntime-int8"].update(file=name))
    with pytest.raises(BundleError, match="not in the manifest"):
        load(bundle_path)


@pytest.mark.parametrize("version", [0, 2, None, "1", [1]])
def test_another_format_is_refused_with_the_fix(bundle_path: Path, version: object) -> None:
    rehash(bundle_path, lambda content: content.update(format_version=version))
    with pytest.raises(BundleError, match=r"format .*this version reads 1. Build it again"):
        read_bundle(bundle_path)


@pytest.mark.parametrize(
    "change",
    [
        {"files": []},
        {"files": None},
        {"engines": []},
        {"engines": {"x": {}}},
        {"engines": {"x": {"surprise": 1}}},
        {"inputs": [1]},
        {"inputs": [{"name": "x"}]},
        {"outputs": {"a": 1}},
        {"surprise": 1},
    ],
    ids=str,
)
def test_a_manifest_of_another_shape_is_refused(
    bundle_path: Path, change: dict[str, object]
) -> None:
    rehash(bundle_path, lambda content: content.update(change))
    with pytest.raises(BundleError, match="damaged"):
        read_bundle(bundle_path)


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[]", b"null", b"\xff\xfe", b"{", b"[" * 100_000], ids=range(7)
)
def test_a_manifest_that_is_none_is_refused(bundle_path: Path, data: bytes) -> None:
    (bundle_path / "manifest.json").write_bytes(data)
    with pytest.raises(BundleError, match="damaged"):
        read_bundle(bundle_path)


@pytest.mark.parametrize("depth", [900, *range(980, 996)])
def test_a_manifest_as_deep_as_can_be_read_is_read_or_refused(
    bundle_path: Path, depth: int
) -> None:
    """Between what json reads and what it writes lie a few levels, and some more are ours."""
    deep: list[Any] = []
    for _ in range(depth):
        deep = [deep]
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(10 * limit)
    try:
        rehash(bundle_path, lambda content: content.update(machine={"a": deep}))
    finally:
        sys.setrecursionlimit(limit)
    with contextlib.suppress(BundleError):
        read_bundle(bundle_path)


@pytest.mark.parametrize("name", ["nothing", "file"])
def test_what_is_no_bundle_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(BundleError, match=f"{name} is no bundle.*deploy build"):
        read_bundle(tmp_path / name)


def first_engine(content: dict[str, Any]) -> dict[str, Any]:
    engine: dict[str, Any] = next(iter(content["engines"].values()))
    return engine


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda c: first_engine(c).update(golden_tolerance="wide"), "golden_tolerance"),
        (lambda c: first_engine(c).update(golden_tolerance=None), "golden_tolerance"),
        (lambda c: first_engine(c).update(golden_tolerance=math.nan), "golden_tolerance"),
        (lambda c: first_engine(c).update(golden_tolerance=True), "golden_tolerance"),
        (lambda c: first_engine(c).update(engine=5), "engine"),
        (lambda c: first_engine(c).update(engine="tensorrt"), "'tensorrt-fp32' is called 'onnx"),
        (lambda c: c["engines"].update(x=first_engine(c)), "is called 'x'"),
        (lambda c: first_engine(c).update(precision=["fp32"]), "precision"),
        (lambda c: first_engine(c).update(precision="fp99"), "'fp99', not one of fp32, tf32"),
        (lambda c: first_engine(c).update(variant=7), "variant"),
        (lambda c: first_engine(c).update(keyword="yes"), "keyword"),
        (lambda c: c.update(winner=["torch"]), "winner"),
        (lambda c: c.update(created=None), "created"),
        (lambda c: c.update(machine=[]), "machine"),
        (lambda c: c.update(build_key=4), "build_key"),
        (lambda c: c.update(inputs=[]), "no inputs"),
        (lambda c: c["inputs"][0].update(name=5), "name in inputs"),
        (lambda c: c["inputs"].append(c["inputs"][0]), "inputs have one name"),
        (lambda c: c["outputs"].append(c["outputs"][0]), "outputs have one name"),
        (lambda c: c["inputs"][0].update(name="\ud800"), "surrogates"),
        (lambda c: c["files"].update({"\ud800": "x"}), "surrogates"),
        (lambda c: c.update(winner="tensorrt-int8"), "no engine 'tensorrt-int8'; it has: onnx"),
        (lambda c: c["inputs"][0].update(dtype="object"), "dtype"),
        (lambda c: c["inputs"][0].update(shape="batch"), "shape"),
        (lambda c: c["outputs"][0].update(shape=["batch", -3]), "size"),
        (lambda c: c["outputs"][0].update(shape=["batch", 3.5]), "size"),
        (lambda c: c.update(input_ranges={"x": [math.nan, 1.0]}), "not finite"),
        (lambda c: c.update(input_ranges={"x": [0, 10**400]}), "too large"),
        (lambda c: first_engine(c).update(golden_tolerance=10**400), "too large"),
        (lambda c: c.update(input_ranges={"z": [0.0, 1.0]}), "'z', which is no input"),
    ],
)
def test_a_field_of_another_type_is_named(
    bundle_path: Path, change: Callable[[dict[str, Any]], None], word: str
) -> None:
    rehash(bundle_path, change)
    with pytest.raises(BundleError, match=r"manifest\.json is damaged") as caught:
        read_bundle(bundle_path)
    assert word in str(caught.value)


def test_a_path_that_cannot_be_looked_at_is_said(tmp_path: Path) -> None:
    """As it is with a folder that may not be entered, for whoever is not root."""
    for read in (read_bundle, read_result):
        with pytest.raises(
            BundleError, match=r"cannot be read: .*too long.* Check its permissions"
        ):
            read(tmp_path / ("a" * 300))


def test_a_winner_that_is_not_there_is_refused(bundle_path: Path) -> None:
    rehash(bundle_path, lambda content: content.update(winner="tensorrt-int8"))
    with pytest.raises(BundleError, match=r"no engine 'tensorrt-int8'; it has: onnxruntime-fp32"):
        load(bundle_path)


@pytest.mark.parametrize("engine", [None, "onnxruntime-fp32", "openvino-fp32"])
@pytest.mark.parametrize("rows", [1, 5])
def test_load_gives_the_right_answers(pristine: Path, engine: str | None, rows: int) -> None:
    x = draw(rows)
    with load(pristine, engine=engine, threads=1) as opened:
        got = opened({"x": x})
    assert list(got) == ["logits"]
    np.testing.assert_allclose(got["logits"], answer(x), rtol=1e-5, atol=1e-5)


def test_an_engine_has_every_usable_core_unless_told_otherwise(pristine: Path) -> None:
    bundle = read_bundle(pristine)
    assert bundle.spec(bundle.winner).threads == usable_cores()
    assert bundle.spec(bundle.winner, threads=3).threads == 3


def test_load_of_an_unknown_engine_lists_those_there_are(pristine: Path) -> None:
    with pytest.raises(BundleError, match=r"'tensorrt-fp16'; it has: onnxruntime-fp32, "):
        load(pristine, engine="tensorrt-fp16")


def test_load_needs_no_torch(pristine: Path, lean: Lean) -> None:
    code = (
        "import sys, numpy, deploy\n"
        f"with deploy.load({str(pristine)!r}) as engine:\n"
        "    x = numpy.ones((3, 4), numpy.float32)\n"
        "    print(engine({'x': x})['logits'].tolist())\n"
        "print([m for m in ('torch', 'onnxscript', 'openvino') if m in sys.modules])\n"
    )
    done = lean("-c", code)
    assert (done.returncode, done.stderr) == (0, "")
    first, second = done.stdout.splitlines()
    np.testing.assert_allclose(json.loads(first), answer(np.ones((3, 4))), rtol=1e-5, atol=1e-5)
    assert second == "[]"


def test_a_torch_winner_is_replaced_and_said_where_torch_is_not_installed(
    tmp_path: Path, tiny_onnx: Path, lean: Lean
) -> None:
    target = tmp_path / "torch.deploy"
    with stage_bundle(target) as stage:
        fill_stage(stage, winner="torch", torch_file=tiny_onnx)
    done = lean("-c", f"import deploy; print(type(deploy.load({str(target)!r})).__name__)")
    assert done.stdout.strip() == "OnnxRuntimeEngine"
    assert "the winner is eager torch, which is not installed" in done.stderr
    assert "onnxruntime-fp32 runs in its place" in done.stderr


def test_an_engine_that_is_not_installed_says_what_to_install(pristine: Path, lean: Lean) -> None:
    done = lean("-c", f"import deploy; deploy.load({str(pristine)!r}, engine='openvino-fp32')")
    assert "pip install 'deploykit[openvino]'" in done.stderr


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"name": "y"}, "'y' is no input of uint8"),
        ({"mean": ["a"]}, "'a'"),
        ({"mean": "123"}, "'1'"),
        ({"mean": [1.0, 2.0]}, "as many numbers as channels"),
        ({"std": []}, "numbers"),
        ({"std": [0.5, 0, 0.5]}, "divided by"),
        ({"scale": None}, "None"),
        ({"scale": math.nan}, "nan"),
        ({"dtype": "load"}, "'load'"),
    ],
)
def test_images_that_no_engine_takes_are_named(
    bundle_path: Path, change: dict[str, Any], word: str
) -> None:
    image = {"name": "x", "mean": [0.5], "std": [1.0], "scale": 255.0, "dtype": "float32"}

    def take(content: dict[str, Any], image: dict[str, Any]) -> None:
        content["inputs"] = [{"name": "x", "shape": ["batch", 4, 4, 3], "dtype": "uint8"}]
        content["images"] = {"inputs": [image], "keyword": False}

    rehash(bundle_path, lambda content: take(content, image))
    read_bundle(bundle_path)
    rehash(bundle_path, lambda content: take(content, {**image, **change}))
    with pytest.raises(BundleError, match=r"manifest\.json is damaged") as caught:
        read_bundle(bundle_path)
    assert word in str(caught.value)


def test_a_full_disk_is_said_and_the_old_bundle_stays(bundle_path: Path) -> None:
    before = snapshot(bundle_path)
    with (
        pytest.raises(BundleError, match=r"was not written: .*Make room") as caught,
        stage_bundle(bundle_path) as stage,
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(stage / "model.onnx"))
    assert "model.onnx" in str(caught.value)
    assert snapshot(bundle_path) == before
    assert neighbours(bundle_path) == [bundle_path.name]


def test_other_errors_of_the_system_keep_their_traceback(bundle_path: Path) -> None:
    with pytest.raises(OSError, match="child"), stage_bundle(bundle_path):
        raise OSError(errno.ECHILD, "no child")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, MemoryError])
@pytest.mark.parametrize("old", [True, False])
def test_whatever_ends_a_build_the_old_bundle_stays(
    bundle_path: Path, error: type[BaseException], old: bool
) -> None:
    if not old:
        shutil.rmtree(bundle_path)
    before = snapshot(bundle_path)
    beside = neighbours(bundle_path)

    def build() -> None:
        with stage_bundle(bundle_path) as stage:
            fill_stage(stage, winner="openvino-fp32")
            raise error

    with pytest.raises(error):
        build()
    assert snapshot(bundle_path) == before
    assert neighbours(bundle_path) == beside


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("call", [1, 2])
def test_an_interrupt_between_the_two_renames_brings_the_old_bundle_back(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], call: int
) -> None:
    before, beside = snapshot(bundle_path), neighbours(bundle_path)
    rename, calls = Path.rename, 0

    def interrupted(self: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls == call:
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(error), stage_bundle(bundle_path) as stage:
        fill_stage(stage, winner="openvino-fp32")
    monkeypatch.undo()
    assert snapshot(bundle_path) == before
    assert neighbours(bundle_path) == beside


def test_an_old_bundle_is_replaced_whole(bundle_path: Path) -> None:
    beside = neighbours(bundle_path)
    with stage_bundle(bundle_path) as stage:
        assert stage.parent == bundle_path.parent  # one file system, so that renames are atomic
        fill_stage(stage, winner="openvino-fp32")
        assert read_bundle(bundle_path).winner == "onnxruntime-int8"
    assert read_bundle(bundle_path).winner == "openvino-fp32"
    assert neighbours(bundle_path) == beside
    assert bundle_path.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("moment", ["while it is moved aside", "when it was moved aside"])
def test_of_two_builds_at_the_same_moment_one_stands_and_the_other_says_so(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    beside, rename = neighbours(bundle_path), Path.rename
    rival = bundle_path.parent / "rival"
    rival.mkdir()
    fill_stage(rival, winner="openvino-fp32")
    late = moment == "when it was moved aside"

    def overtaken(path: Path, target: Path) -> Path:
        monkeypatch.undo()
        if not late:
            shutil.rmtree(bundle_path)
            try:
                return rename(path, target)
            finally:
                rename(rival, bundle_path)
        moved = rename(path, target)
        rename(rival, bundle_path)
        return moved

    monkeypatch.setattr(Path, "rename", overtaken)
    with (
        pytest.raises(BundleError, match="by another command at the same moment"),
        stage_bundle(bundle_path) as stage,
    ):
        fill_stage(stage)
    assert read_bundle(bundle_path).winner == "openvino-fp32"
    assert neighbours(bundle_path) == beside


def refuse_to_lock(descriptor: int, operation: int) -> None:
    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


@pytest.mark.parametrize("locks", [True, False], ids=["", "on a disk that locks no folder"])
def test_builds_side_by_side_end_with_one_of_them_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locks: bool
) -> None:
    target = tmp_path / "net.deploy"
    if not locks:
        monkeypatch.setattr(fcntl, "flock", refuse_to_lock)

    def replace_often(name: str) -> int:
        written = 0
        for _ in range(40):
            with contextlib.suppress(BundleError), stage_folder(target, lambda _: None) as stage:
                for file in ("a", "b"):
                    (stage / file).write_text(name)
                written += 1
        return written

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(replace_often, "1234"))
    assert neighbours(target) == ["net.deploy"]
    assert (target / "a").read_text() == (target / "b").read_text()


def test_what_cannot_be_put_back_is_an_error_and_stays_beside(tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.mkdir()
    with pytest.raises(FileNotFoundError):
        deploy.bundle.staging._put_back(old, tmp_path / "gone" / "net.deploy")
    assert old.is_dir()


def test_a_damaged_bundle_can_be_built_again(bundle_path: Path) -> None:
    flip(bundle_path / "manifest.json", 40, 0)
    (bundle_path / "model.onnx").unlink()
    with stage_bundle(bundle_path) as stage:
        fill_stage(stage)
    assert read_bundle(bundle_path)


def test_through_a_link_the_bundle_is_replaced_and_the_link_stays(bundle_path: Path) -> None:
    link = bundle_path.with_name("current")
    link.symlink_to(bundle_path)
    beside = neighbours(bundle_path)
    with stage_bundle(link) as stage:
        fill_stage(stage, winner="openvino-fp32")
    assert link.is_symlink()
    assert read_bundle(bundle_path).winner == "openvino-fp32"
    assert neighbours(bundle_path) == beside


@pytest.mark.parametrize("kind", ["folder", "file", "manifest of another", "late"])
def test_what_is_no_bundle_is_left_alone(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "site"

    def occupy() -> None:
        if kind == "file":
            target.write_text("mine")
            return
        target.mkdir()
        (target / "index.html").write_text("mine")
        if kind != "folder":
            (target / "manifest.json").write_text('{"name": "a web app"}')

    if kind != "late":
        occupy()

    def build() -> None:
        with stage_bundle(target) as stage:
            assert kind == "late"
            fill_stage(stage)
            occupy()

    with pytest.raises(BundleError, match=r"is no bundle; it is left alone. Choose another"):
        build()
    assert neighbours(target) == ["site"]
    mine = target if kind == "file" else target / "index.html"
    assert mine.read_text() == "mine"


def test_a_target_that_cannot_be_written_is_an_error_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(BundleError, match="cannot be written"),
        stage_bundle(tmp_path / "file" / "model.deploy"),
    ):
        pytest.fail("there is nothing to build in")


def test_what_a_killed_build_left_is_cleaned_up_by_the_next(tmp_path: Path) -> None:
    target = tmp_path / "model.deploy"
    script = (
        "import os, pathlib, signal, sys\n"
        "from deploy.bundle.staging import stage_bundle\n"
        "with stage_bundle(pathlib.Path(sys.argv[1])) as stage:\n"
        "    (stage / 'half').write_text('x')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    dead = subprocess.run([sys.executable, "-c", script, str(target)], check=False)
    assert dead.returncode == -signal.SIGKILL
    assert len(neighbours(target)) == 1
    with stage_bundle(target) as stage:
        fill_stage(stage)
    assert neighbours(target) == ["model.deploy"]


def test_a_bundle_that_a_killed_build_moved_aside_is_put_back(
    bundle_path: Path,
) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    aside = f".{bundle_path.name}.old-{platform.node()}-{gone.pid}-"
    bundle_path.rename(bundle_path.with_name(aside))
    with pytest.raises(RuntimeError, match="no"), stage_bundle(bundle_path):
        raise RuntimeError("no")
    assert read_bundle(bundle_path).winner
    assert neighbours(bundle_path) == [bundle_path.name]


def test_the_folders_of_a_build_that_still_runs_are_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "model.deploy"
    with stage_bundle(target) as first:
        fill_stage(first)
        with stage_bundle(target) as second:
            fill_stage(second)
        assert first.is_dir()
    assert neighbours(target) == ["model.deploy"]


def test_a_changed_bundle_is_not_compared(bundle_path: Path) -> None:
    assert read_result(bundle_path)["schema_version"] == 1
    report = bundle_path / "report.json"
    report.write_bytes(report.read_bytes() + b" ")
    with pytest.raises(BundleError, match=r"report\.json"):
        read_result(bundle_path)
    assert read_result(report)["schema_version"] == 1
