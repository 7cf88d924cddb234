"""What our code touches of TensorRT is there, alike, in both products and both major versions.

The bindings of NVIDIA TensorRT are on the package index, its libraries are not. So the real
bindings are imported, in a process of their own, against stubs of the three libraries that export
the C functions by which the bindings enter them. No engine can be built that way; every class, enum
and signature can be read. TensorRT for RTX is complete and is read as it is installed.
`tensorrt_interface.py` is the table of what is touched.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tensorrt_interface import CLASSES, ENUMS, GONE, MODULE
from tensorrt_usage import find_overrides, find_touched

ROOT = Path(__file__).parent.parent.parent
PROBE = Path(__file__).with_name("tensorrt_probe.py")


@dataclass(frozen=True)
class Product:
    """One TensorRT: the requirement that brings its bindings, its module, its major version."""

    requirement: str
    module: str
    major: int
    only_here: frozenset[str] = frozenset()


PRODUCTS = {
    "tensorrt-11": Product("tensorrt_cu13_bindings==11.4.0.106", "tensorrt_bindings", 11),
    "tensorrt-10": Product("tensorrt_cu13_bindings==10.13.3.9", "tensorrt_bindings", 10),
    "tensorrt-rtx": Product(
        "tensorrt-rtx",
        "tensorrt_rtx",
        1,
        frozenset(
            {
                "ComputeCapability",
                "CudaGraphStrategy",
                "IRuntimeConfig.create_runtime_cache",
                "IRuntimeConfig.cuda_graph_strategy",
                "IRuntimeConfig.set_runtime_cache",
                "IBuilderConfig.num_compute_capabilities",
                "IBuilderConfig.set_compute_capability",
                "Runtime.get_engine_validity",
            }
        ),
    ),
}
"""`only_here`: of the tables, what the other products must lack, or this one is out of date."""

STUB = """
int getInferLibVersion(void) { return VERSION; }
int getNvOnnxParserVersion(void) { return VERSION; }
int initLibNvInferPlugins(void) { return 1; }
void *createInferBuilder_INTERNAL(void) { return 0; }
void *createInferRefitter_INTERNAL(void) { return 0; }
void *createInferRuntime_INTERNAL(void) { return 0; }
void *createNvOnnxParser_INTERNAL(void) { return 0; }
void *createNvOnnxParserRefitter_INTERNAL(void) { return 0; }
void *getBuilderPluginRegistry(void) { return 0; }
void *getPluginRegistry(void) { return 0; }
"""
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")


@pytest.fixture(scope="session")
def downloads(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where bindings are kept from one run of the tests to the next."""
    cache = getattr(request.config, "cache", None)
    return cache.mkdir("tensorrt-bindings") if cache else tmp_path_factory.mktemp("bindings")


@pytest.fixture(scope="module", params=PRODUCTS)
def offered(
    request: pytest.FixtureRequest, downloads: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Product, dict[str, Any]]:
    """A product and what its bindings offer, as the probe saw it."""
    product = PRODUCTS[request.param]
    if product.module == "tensorrt_rtx":
        if find_spec("tensorrt_rtx") is None:
            pytest.skip("needs tensorrt-rtx")
        return product, _probe(product.module)
    stubs = _compile_stubs(product.major, tmp_path_factory.mktemp("stubs"))
    bindings = _download(product.requirement, downloads)
    paths = {"PYTHONPATH": str(bindings), "LD_LIBRARY_PATH": str(stubs)}
    # -S: bindings and libraries that are installed here are not those that are asked about.
    return product, _probe("-S", product.module, **paths)


def test_the_version_is_the_one_that_was_asked_for(offered: tuple[Product, dict[str, Any]]) -> None:
    product, offer = offered
    assert offer["version"].startswith(f"{product.major}.")
    assert product.requirement.partition("==")[2] in offer["version"]


def test_every_enum_member_and_signature_that_we_touch_is_there(
    offered: tuple[Product, dict[str, Any]],
) -> None:
    product, offer = offered
    assert list(_differences(offer, _absent(product))) == []


def test_what_one_product_alone_has_the_others_lack(
    offered: tuple[Product, dict[str, Any]],
) -> None:
    product, offer = offered
    present = set(offer["enums"]) | {
        f"{name}.{key}" for name, keys in offer["classes"].items() for key in keys
    }
    assert _absent(product) & present == set()


def test_precision_by_builder_flag_is_history(offered: tuple[Product, dict[str, Any]]) -> None:
    product, offer = offered
    assert GONE & set(offer["enums"]["BuilderFlag"]) == (GONE if product.major == 10 else set())


def test_a_missing_or_changed_name_is_seen() -> None:
    classes = {name: {key: [text] for key, text in keys.items()} for name, keys in CLASSES.items()}
    enums = {name: members.split() for name, members in ENUMS.items()}
    offer = {"enums": enums, "classes": classes, "others": list(MODULE)}
    assert list(_differences(offer, frozenset())) == []
    enums["BuilderFlag"].remove("TF32")
    classes["Builder"].pop("create_network")
    classes["IExecutionContext"]["execute_async_v3"] = ["(stream: int) -> bool"]
    assert list(_differences(offer, frozenset())) == [
        "BuilderFlag.TF32 is missing",
        "Builder.create_network is missing",
        "IExecutionContext.execute_async_v3 is ['(stream: int) -> bool'], not "
        "(stream_handle: int) -> bool",
    ]


def test_the_tables_name_all_that_our_code_touches() -> None:
    tables = {
        *MODULE,
        *CLASSES,
        *ENUMS,
        *(f"{name}.{key}" for name, keys in CLASSES.items() for key in keys),
        *(f"{name}.{member}" for name, members in ENUMS.items() for member in members.split()),
        *(f"{name}.{key}" for name in ENUMS for key in ("__members__", "name", "value")),
    }
    touched = {
        name: f"{path.name}:{line}" for path in _sources() for name, line in find_touched(path)
    }
    assert {
        "BuilderFlag.TF32",
        "ILogger.ERROR",
        "OnnxParser.parse_from_file",
        "ParserError.node_operator",
    } <= set(touched)
    unknown = {name: where for name, where in touched.items() if name not in tables}
    assert unknown == {}, str(unknown)


def test_values_are_followed_to_what_they_are(tmp_path: Path) -> None:
    source = tmp_path / "source.py"
    source.write_text(
        "def f(trt: Any, engine: Any, config: Options) -> None:\n"
        "    config.ours\n"
        "    own = engine.create_serialization_config()\n"
        "    own.set_flag(trt.SerializationFlag.NOT_THERE)\n"
        "    trt.Runtime(log).no_such_method()\n"
        "    parser = trt.OnnxParserRefitter(r, log)\n"
        "    [error.desc() for error in (parser.get_error(i) for i in range(parser.num_errors))]\n"
        "    trt.NoSuchClass\n",
        encoding="utf-8",
    )
    assert {name for name, _ in find_touched(source)} == {
        "ICudaEngine.create_serialization_config",
        "ISerializationConfig.set_flag",
        "NoSuchClass",
        "OnnxParserRefitter",
        "OnnxParserRefitter.get_error",
        "OnnxParserRefitter.num_errors",
        "ParserError.desc",
        "Runtime",
        "Runtime.no_such_method",
        "SerializationFlag",
        "SerializationFlag.NOT_THERE",
    }


def test_what_tensorrt_calls_back_takes_as_many_arguments_as_it_passes() -> None:
    seen = []
    for path in _sources():
        for base, method in find_overrides(path):
            if method.name in CLASSES[base] and method.name != "__init__":
                passed = CLASSES[base][method.name].partition(")")[0].count(",") + 1
                assert len(method.args.args) - 1 == passed, f"{path.name}: {base}.{method.name}"
                seen.append(f"{base}.{method.name}")
    assert "ILogger.log" in seen


def _absent(product: Product) -> frozenset[str]:
    """Of the tables, what `product` must lack."""
    return frozenset().union(*(p.only_here for p in PRODUCTS.values())) - product.only_here


def _differences(offer: dict[str, Any], absent: frozenset[str]) -> Iterator[str]:
    """What the tables name and `offer` has not, or has otherwise."""
    yield from (f"{name} is missing" for name in MODULE if name not in offer["others"])
    for name, members in ENUMS.items():
        if name not in absent:
            there = offer["enums"].get(name, ())
            yield from (f"{name}.{m} is missing" for m in members.split() if m not in there)
    for name, keys in CLASSES.items():
        there = offer["classes"].get(name, {})
        for key, signature in keys.items():
            if f"{name}.{key}" in absent:
                continue
            if key not in there:
                yield f"{name}.{key} is missing"
            elif signature and signature not in there[key]:
                yield f"{name}.{key} is {there[key]}, not {signature}"


def _compile_stubs(major: int, folder: Path) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler: `cc` is not on the PATH")
    source = folder / "stub.c"
    source.write_text(STUB, encoding="ascii")
    for library in LIBRARIES:
        name = f"lib{library}.so.{major}"
        command = [compiler, "-shared", "-fPIC", f"-DVERSION={major * 10000}"]
        command += [f"-Wl,-soname,{name}", str(source), "-o", str(folder / name)]
        subprocess.run(command, check=True)
    return folder


def _download(requirement: str, downloads: Path) -> Path:
    """The unpacked distribution; it is never installed where other code would find it."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    target = downloads / f"{requirement.replace('==', '-')}-python{version}"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=downloads) as scratch:
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
            command += ["--no-compile", "--only-binary=:all:", "--retries=1", "--timeout=15"]
            command += ["--disable-pip-version-check", "--target", f"{scratch}/site", requirement]
            answer = subprocess.run(command, capture_output=True, text=True, check=False)
            if answer.returncode:
                errors = re.findall(r"^ERROR: (.*)$", answer.stderr, re.MULTILINE)
                pytest.skip(f"{requirement} is not to be had here: {(errors or ['pip failed'])[0]}")
            Path(scratch, "site").rename(target)
    return target


def _probe(*arguments: str, **environment: str) -> dict[str, Any]:
    *flags, module = arguments
    answer = subprocess.run(
        [sys.executable, *flags, str(PROBE), module],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)


def _sources() -> Iterator[Path]:
    """Our modules that hold TensorRT in their hands."""
    for house in ("deploy", "export", "quantize"):
        for path in sorted((ROOT / house).rglob("*.py")):
            named = "tensorrt" in path.relative_to(ROOT).as_posix()
            if named or re.search(r"\btrt\.", path.read_text(encoding="utf-8")):
                yield path
