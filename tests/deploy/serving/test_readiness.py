"""A bundle proves itself before it is served; what cannot is never ready, and says why."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from host_graphs import Session, Value
from servers import Server, rows, serving, spoil_golden
from tiny import Lean, answer, draw, fill_stage

from deploy.bundle.folder import Bundle, read_bundle
from deploy.bundle.manifest import read_manifest, write_manifest
from deploy.bundle.staging import stage_bundle
from deploy.serving.models.readiness import open_verified, rank_engines
from deploy.serving.options import ServeOptions
from export.artifacts import TensorSpec
from export.errors import BundleError, EngineError, GateError

OPTIONS = ServeOptions(threads=1)


def test_the_winner_is_opened_verified_and_warm(pristine: Path) -> None:
    opened = open_verified(read_bundle(pristine), OPTIONS)
    assert opened.name == "onnxruntime-int8"
    assert opened.degraded is None
    assert opened.policy.batched
    assert opened.notes == ()
    x = draw(3)
    np.testing.assert_allclose(opened.engines[0]({"x": x})["logits"], answer(x), rtol=1e-5)
    opened.close()
    with pytest.raises(EngineError, match="closed"):
        opened.engines[0]({"x": x})


def test_shadow_samples_without_anything_to_compare_with_are_told_of(pristine: Path) -> None:
    for engine, notes in (("onnxruntime-int8", 0), ("onnxruntime-fp32", 1)):
        options = replace(OPTIONS, shadow=0.5, engine=engine)
        opened = open_verified(read_bundle(pristine), options)
        assert len(opened.notes) == notes
        assert all(note.endswith("is what is served") for note in opened.notes)
        opened.close()


def test_as_many_instances_as_asked_for(pristine: Path) -> None:
    opened = open_verified(read_bundle(pristine), ServeOptions(threads=1, instances=3))
    assert len({id(engine) for engine in opened.engines}) == 3
    opened.close()


@pytest.mark.parametrize("factor", [1.001, -1.0, 0.0])
def test_an_engine_that_answers_otherwise_than_recorded_is_refused(
    bundle_path: Path, factor: float
) -> None:
    spoil_golden(bundle_path, factor)
    with pytest.raises(GateError, match="does not repeat the answers recorded"):
        open_verified(read_bundle(bundle_path), OPTIONS)


@pytest.mark.parametrize(
    ("what", "spec"),
    [
        ("inputs", TensorSpec("x", ("batch", 5), "float32")),
        ("inputs", TensorSpec("x", ("batch", "n", 1), "float32")),
        ("inputs", TensorSpec("x", ("batch", 4), "int64")),
        ("inputs", TensorSpec("pixels", ("batch", 4), "float32")),
        ("outputs", TensorSpec("logits", ("batch", 3), "float64")),
        ("outputs", TensorSpec("scores", ("batch", 3), "float32")),
        ("outputs", TensorSpec("logits", ("batch",), "float32")),
    ],
    ids=str,
)
def test_a_manifest_that_says_otherwise_than_the_engine_is_refused(
    bundle_path: Path, what: str, spec: TensorSpec
) -> None:
    """Clients are told what the manifest says; each of their requests would fail."""
    values = dict(vars(read_manifest(bundle_path)))
    (bundle_path / "manifest.json").unlink()
    values.pop("files")
    write_manifest(bundle_path, **{**values, what: (spec,)})
    words = {
        "inputs": (BundleError, "golden.npz does not fit its manifest: "),
        "outputs": (EngineError, r"(was|were) recorded"),
    }
    error, text = words[what]
    with pytest.raises(error, match=text):
        open_verified(read_bundle(bundle_path), ServeOptions(threads=1))


@pytest.mark.parametrize("rows", [2**40, 2**63])
def test_a_batch_that_no_memory_holds_is_said(pristine: Path, rows: int) -> None:
    options = ServeOptions(threads=1, max_batch=rows, engine="onnxruntime-fp32")
    with pytest.raises(EngineError, match=f"A batch of {rows} rows .* Lower --max-batch"):
        open_verified(read_bundle(pristine), options)


def test_openvino_has_as_many_programs_as_it_keeps(pristine: Path) -> None:
    pytest.importorskip("openvino")
    options = ServeOptions(threads=1, engine="openvino-fp32", max_batch=16)
    opened = open_verified(read_bundle(pristine), options)
    assert opened.sizes == (1, 4, 8, 16)
    opened.close()


ON_GPU = "onnxruntime-fp32"


def move_to_gpu(path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """The bundle with `ON_GPU` said to be an engine on the GPU; a stand-in is opened for it."""
    Session.forget()
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr("deploy.engines.onnxruntime_cuda.has_cuda_provider", lambda: True)
    bundle = read_bundle(path)
    entry = replace(bundle.manifest.engines[ON_GPU], variant="cuda")
    engines = {**bundle.manifest.engines, ON_GPU: entry}
    return replace(bundle, manifest=replace(bundle.manifest, engines=engines))


def test_cuda_graphs_are_captured_before_the_first_request(
    pristine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Session.forget()
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(onnxruntime, "OrtValue", Value)
    monkeypatch.setattr("deploy.engines.onnxruntime_cuda.has_cuda_provider", lambda: True)
    bundle, name = read_bundle(pristine), "onnxruntime-fp32"
    entry = replace(bundle.manifest.engines[name], variant="cuda-graphs")
    engines = {**bundle.manifest.engines, name: entry}
    bundle = replace(bundle, manifest=replace(bundle.manifest, engines=engines))
    opened = open_verified(bundle, ServeOptions(threads=1, engine=name, max_batch=16))
    try:
        assert opened.sizes == (1, 4, 8, 16)
        assert len(Session.opened) == 4  # of the golden samples, a graph was captured already
        assert opened.notes[0].startswith("CUDA graphs of batches of 1, 4, 8, 16; each instance")
        Session.runs.clear()
        for size in opened.sizes:
            opened.engines[0]({"x": draw(size)})
        assert [kind for _, kind in Session.runs] == ["replay"] * 4
    finally:
        opened.close()


def test_a_convolution_on_the_gpu_has_a_session_for_each_size_that_runs_are_filled_to(
    pristine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = move_to_gpu(pristine, monkeypatch)
    monkeypatch.setattr("deploy.serving.models.warming.needs_sessions", lambda *_: True)
    monkeypatch.setattr("deploy.engines.onnxruntime_cuda.needs_sessions", lambda *_: True)
    opened = open_verified(bundle, ServeOptions(threads=1, engine=ON_GPU, max_batch=16))
    try:
        assert opened.sizes == (1, 4, 8, 16)
        assert len(Session.opened) == 4
        assert opened.notes[0].startswith("Sessions of batches of 1, 4, 8, 16; each instance")
        Session.runs.clear()
        for size in opened.sizes:
            opened.engines[0]({"x": draw(size)})
        assert len(Session.opened) == 4
    finally:
        opened.close()


@pytest.mark.parametrize(
    ("most", "sizes"),
    [(1, (1,)), (3, (1, 2, 3)), (48, (*range(1, 17), 32, 48)), (64, (*range(1, 17), 32, 64))],
)
def test_without_convolutions_an_engine_on_the_gpu_is_warmed_at_every_size_up_to_sixteen(
    pristine: Path, monkeypatch: pytest.MonkeyPatch, most: int, sizes: tuple[int, ...]
) -> None:
    bundle = move_to_gpu(pristine, monkeypatch)
    monkeypatch.setattr("deploy.serving.models.warming.needs_sessions", lambda *_: False)
    opened = open_verified(bundle, ServeOptions(threads=1, engine=ON_GPU, max_batch=most))
    opened.close()
    assert tuple(opened.run_seconds) == sizes
    assert opened.sizes == ()  # it takes any


def test_the_order_in_which_engines_are_tried(pristine: Path, tmp_path: Path) -> None:
    ranked = rank_engines(read_bundle(pristine))
    assert ranked[0] == "onnxruntime-int8"
    assert sorted(ranked) == ["onnxruntime-fp32", "onnxruntime-int8", "openvino-fp32"]
    with stage_bundle(tmp_path / "torch.deploy") as stage:
        fill_stage(stage, winner="torch", torch_file=pristine / "model.onnx")
    assert rank_engines(read_bundle(tmp_path / "torch.deploy"))[:2] == ["torch", "onnxruntime-fp32"]


def test_an_engine_that_is_named_has_no_fallback(pristine: Path) -> None:
    with pytest.raises(BundleError, match="has no engine 'tensorrt-fp16'; it has: "):
        open_verified(read_bundle(pristine), ServeOptions(engine="tensorrt-fp16"))


def test_a_bundle_that_is_not_what_it_was_is_live_and_not_ready(bundle_path: Path) -> None:
    spoil_golden(bundle_path, 1.5)
    server = Server(bundle_path)
    try:
        reason = server.wait_for("tiny version 1 is not ready")["message"]
        assert "is off by" in reason
        server.wait_for("not ready, and will not be")
        assert server.ask("/v2/health/live") == {"live": True}
        status, headers, body = server.request("GET", "/v2/health/ready")
        assert (status, headers["retry-after"]) == (503, "1")
        assert json.loads(body) == {"error": "not ready: tiny"}
        assert server.infer("tiny", rows([1, 2, 3, 4]))[0] == 503
        assert server.request("GET", "/v2/models/tiny/ready")[0] == 503
        described = server.ask("/v2/models/tiny")["parameters"]
        assert (described["state"], described["engine"]) == ("UNAVAILABLE", None)
        assert described["reason"].startswith("GateError")
        assert b"unavailable: GateError" in server.request("GET", "/")[2]
        assert server.metrics()['deploy_model_ready{model="tiny",version="1"}'] == 0
    finally:
        assert server.stop() == 0


@pytest.mark.thorough
def test_a_winner_that_cannot_be_opened_is_replaced_and_that_is_said(torch_bundle: Path) -> None:
    """The winner is the user's own file, which needs trust that is not given here."""
    with serving(torch_bundle) as server:
        described = server.ask("/v2/models/torch")["parameters"]
        assert described["engine"] == "onnxruntime-fp32"
        assert described["degraded"].startswith("torch cannot be opened here (its model file")
        assert server.metrics()['deploy_model_degraded{model="torch",version="1"}'] == 1
        assert b"degraded" in server.request("GET", "/")[2]
        assert server.infer("torch", rows([1, 2, 3, 4]))[0] == 200


_SERVE = """
import asyncio, sys
from pathlib import Path
from deploy.serving import lifecycle
from deploy.serving.options import ServeOptions

async def scenario():
    models = lifecycle.make_models(lifecycle.find_bundles([Path(sys.argv[1])]), OPTIONS)
    server = lifecycle.Lifecycle(models, OPTIONS)
    running = asyncio.ensure_future(server.run())
    while not server.repository.ready:
        await asyncio.sleep(0.01)
    model = models[0]
    print(model.opened.name, "|", model.opened.degraded)
    server._stop.set()
    await running

OPTIONS = ServeOptions(port=0, grpc_port=0, drain=0.0, threads=1)
asyncio.run(scenario())
print([m for m in ("torch", "onnxscript", "openvino") if m in sys.modules])
"""


@pytest.mark.parametrize(
    ("winner", "expected"),
    [
        ("onnxruntime-int8", "onnxruntime-int8 | None"),
        (
            "torch",
            "onnxruntime-fp32 | torch cannot be opened here (its package is not installed); "
            "onnxruntime-fp32 runs",
        ),
    ],
)
def test_serving_needs_no_torch(
    pristine: Path, tmp_path: Path, lean: Lean, winner: str, expected: str
) -> None:
    target = tmp_path / "lean.deploy"
    with stage_bundle(target) as stage:
        fill_stage(stage, winner=winner, torch_file=pristine / "model.onnx")
    done = lean("-c", _SERVE, target)
    assert done.stdout.splitlines() == [expected, "[]"], done.stderr
