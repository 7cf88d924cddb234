"""The InferenceService is one that KServe takes, and says what the bundle says."""

import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from altered import alter, with_plan
from kserve_schema import INFERENCE_SERVICE
from tiny import Cli, Lean

from deploy.bundle.folder import Bundle, read_bundle
from deploy.bundle.manifest import BundledEngine
from deploy.exports.kserve import KserveOptions, export_kserve, make_service
from export.errors import BundleError, ConfigError

OWN = KserveOptions(image="example.org/deploy:1.2", storage_uri="s3://models/tiny.deploy")
TRITON = KserveOptions(runtime="triton", storage_uri="gs://models/repo")
VALIDATOR = jsonschema.Draft202012Validator(INFERENCE_SERVICE)


@pytest.fixture
def bundle(bundle_path: Path) -> Bundle:
    return read_bundle(bundle_path)


def predictor(bundle: Bundle, options: KserveOptions, tmp_path: Path) -> Any:
    """As it is read back from the file, after the schema has passed it."""
    export_kserve(bundle, tmp_path / "isvc.yaml", options)
    service = yaml.safe_load((tmp_path / "isvc.yaml").read_text(encoding="utf-8"))
    VALIDATOR.validate(service)
    assert service["metadata"] == {"name": "tiny"}
    return service["spec"]["predictor"]


def test_our_image_serves_the_bundle_that_kserve_downloads(bundle: Bundle, tmp_path: Path) -> None:
    (container,) = predictor(bundle, OWN, tmp_path)["containers"]
    assert (container["name"], container["image"]) == ("kserve-container", OWN.image)
    assert container["args"][:2] == ["serve", "/mnt/models"]
    flags = dict(zip(container["args"][2::2], container["args"][3::2], strict=True))
    (port,) = container["ports"]
    assert flags.pop("--stop-timeout") == "20"  # Kubernetes waits for 30 s
    assert flags == {"--host": "0.0.0.0", "--port": str(port["containerPort"]), "--grpc-port": "0"}
    assert {e["name"]: e["value"] for e in container["env"]} == {
        "PROTOCOL": "v2",
        "STORAGE_URI": OWN.storage_uri,
    }
    assert container["readinessProbe"]["httpGet"]["path"] == "/v2/health/ready"
    assert container["livenessProbe"]["httpGet"]["path"] == "/v2/health/live"
    assert container["securityContext"]["runAsNonRoot"] is True
    cores = str(bundle.report()["measurement"]["threads"])
    assert container["resources"] == {"requests": {"cpu": cores}, "limits": {"cpu": cores}}


def test_an_image_that_brings_the_bundle_has_it_where_ours_looks(
    bundle: Bundle, tmp_path: Path
) -> None:
    (container,) = predictor(bundle, KserveOptions(image="mine:1"), tmp_path)["containers"]
    assert container["args"][:2] == ["serve", "/bundle"]
    assert [e["name"] for e in container["env"]] == ["PROTOCOL"]


def test_tritons_runtime_has_a_fixed_tag(bundle: Bundle, tmp_path: Path) -> None:
    model = predictor(bundle, TRITON, tmp_path)["model"]
    assert model["modelFormat"] == {"name": "onnx"}
    assert (model["runtime"], model["protocolVersion"]) == ("kserve-tritonserver", "v2")
    assert model["runtimeVersion"] == "24.10-py3"
    assert model["storageUri"] == "gs://models/repo"
    assert "image" not in model


def test_another_image_of_triton_takes_the_place_of_the_tag(bundle: Bundle, tmp_path: Path) -> None:
    options = KserveOptions(runtime="triton", image="mine:2", storage_uri="pvc://disk/repo")
    model = predictor(bundle, options, tmp_path)["model"]
    assert (model["image"], model.get("runtimeVersion")) == ("mine:2", None)


def test_an_engine_of_tensorrt_asks_for_a_gpu(bundle: Bundle, tmp_path: Path) -> None:
    plan = with_plan(bundle)
    model = predictor(plan, TRITON, tmp_path)["model"]
    assert model["modelFormat"] == {"name": "tensorrt"}
    assert model["resources"]["limits"]["nvidia.com/gpu"] == "1"
    (container,) = predictor(plan, OWN, tmp_path)["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"


@pytest.mark.parametrize(
    ("name", "variant"),
    [("onnxruntime-fp16-cuda-graphs", "cuda-graphs"), ("torch", "cuda")],
)
def test_whatever_is_to_run_on_a_gpu_asks_for_one(bundle: Bundle, name: str, variant: str) -> None:
    engine, precision = ("torch", "fp32") if name == "torch" else ("onnxruntime", "fp16")
    entry = BundledEngine(engine, precision, "model.onnx", 0.1, variant=variant)
    engines = {**bundle.manifest.engines, name: entry}
    changed = alter(bundle, engines=engines, winner=name)
    for runtime, limit in (("deploy", "1"), ("triton", None)):  # which takes another engine
        options = KserveOptions(runtime, image="server:1", storage_uri="s3://models/tiny")
        predictor = make_service(changed, options)[0]["spec"]["predictor"]
        place = predictor["containers"][0] if runtime == "deploy" else predictor["model"]
        assert place["resources"]["limits"].get("nvidia.com/gpu") == limit


def test_triton_in_place_of_a_winner_that_it_cannot_run_is_warned_of(
    bundle: Bundle, tmp_path: Path
) -> None:
    changed = alter(bundle, winner="openvino-fp32")
    assert export_kserve(changed, tmp_path / "a.yaml", OWN) == ()
    (warning,) = export_kserve(changed, tmp_path / "b.yaml", TRITON)
    assert "Triton does not run the winner, openvino-fp32" in warning


@pytest.mark.parametrize(
    ("file", "name"),
    [("My Net_v2.pt", "my-net-v2"), ("2024.pt", "model-2024"), ("ü.pt", "model"), ("A" * 90, None)],
)
def test_the_name_is_one_that_dns_takes(bundle: Bundle, file: str, name: str | None) -> None:
    service, _ = make_service(alter(bundle, model=file), OWN)
    VALIDATOR.validate(service)
    made = service["metadata"]["name"]
    assert made == (name or made)
    assert len(f"{made}-predictor") <= 63


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (KserveOptions(), "--runtime deploy needs --image"),
        (KserveOptions(runtime="triton"), "--runtime triton needs --storage-uri"),
        (KserveOptions(image="x", storage_uri="/local/path"), "--storage-uri '/local/path'"),
        (KserveOptions(image="x y"), "--image 'x y'"),
        (KserveOptions(image="x", name="Tiny"), "--name 'Tiny'"),
        (KserveOptions(image="x", name="t" * 54), "53 at most"),
        (KserveOptions(runtime="other"), "must be deploy or triton"),  # type: ignore[arg-type]
    ],
)
def test_options_that_cannot_be_used_are_refused(
    bundle: Bundle, tmp_path: Path, options: KserveOptions, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        export_kserve(bundle, tmp_path / "isvc.yaml", options)
    assert not (tmp_path / "isvc.yaml").exists()


def test_a_file_of_others_is_left_alone_and_an_own_one_replaced(
    bundle: Bundle, tmp_path: Path
) -> None:
    (tmp_path / "isvc.yaml").write_text("mine")
    with pytest.raises(BundleError, match="it is left alone"):
        export_kserve(bundle, tmp_path / "isvc.yaml", OWN)
    assert (tmp_path / "isvc.yaml").read_text() == "mine"
    with pytest.raises(BundleError, match="is a folder"):
        export_kserve(bundle, tmp_path, OWN)
    with pytest.raises(BundleError, match=r"too long.* Choose another --output"):
        export_kserve(bundle, tmp_path / ("a" * 300), OWN)
    for options in (OWN, TRITON):
        export_kserve(bundle, tmp_path / "own.yaml", options)
    assert "kserve-tritonserver" in (tmp_path / "own.yaml").read_text()
    assert {"isvc.yaml", "own.yaml"} <= set(os.listdir(tmp_path))
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".own")]


@pytest.mark.parametrize("change", ["predictors", "storageURI", "kind"])
def test_the_schema_can_fail(bundle: Bundle, change: str) -> None:
    service, _ = make_service(bundle, TRITON)
    if change == "predictors":
        service["spec"]["predictors"] = service["spec"].pop("predictor")
    elif change == "storageURI":
        model = service["spec"]["predictor"]["model"]
        model["storageURI"] = model.pop("storageUri")
    else:
        service["kind"] = "Service"
    assert not VALIDATOR.is_valid(service)


@pytest.mark.parametrize("options", [OWN, TRITON], ids=["deploy", "triton"])
def test_kserves_own_models_know_every_field(bundle: Bundle, options: KserveOptions) -> None:
    models = pytest.importorskip("kserve.models", reason="the kserve package is not installed")
    service, _ = make_service(bundle, options)
    predictor = service["spec"]["predictor"]
    assert set(predictor) <= set(models.V1beta1PredictorSpec.attribute_map.values())
    model = predictor.get("model", {})
    assert set(model) <= set(models.V1beta1ModelSpec.attribute_map.values())
    assert set(model.get("modelFormat", {})) <= set(
        models.V1beta1ModelFormat.attribute_map.values()
    )


def test_kubernetes_takes_our_container(bundle: Bundle) -> None:
    kubernetes = pytest.importorskip(
        "kubernetes_validate", reason="the kubernetes-validate package is not installed"
    )
    service, _ = make_service(bundle, OWN)
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "tiny"},
        "spec": service["spec"]["predictor"],
    }
    kubernetes.validate(pod, kubernetes.latest_version(), strict=True)


def test_the_command_line_writes_it_and_says_what_is_missing(
    cli: Cli, pristine: Path, tmp_path: Path
) -> None:
    target = tmp_path / "isvc.yaml"
    code, out, err = cli("export-kserve", pristine, "-o", target, "--image", "mine:1")
    assert (code, out, err) == (0, f"InferenceService: {target}\n", "")
    code, _, err = cli("export-kserve", pristine, "-o", target)
    assert code == 2
    assert "--runtime deploy needs --image" in err


def test_it_needs_no_torch(pristine: Path, tmp_path: Path, lean: Lean) -> None:
    done = lean(
        "-m", "deploy", "export-kserve", pristine, "-o", tmp_path / "a.yaml", "--image", "x"
    )
    assert done.returncode == 0, done.stderr
