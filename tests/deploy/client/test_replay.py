"""A running server is held to a bundle: right answers pass, every kind of wrong one is found."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oip_server import Served, serve
from tiny import Cli, answer, draw

from deploy.bundle.folder import read_bundle
from deploy.client.replay import ServedModel, verify_server
from deploy.commands.verification import Verification
from deploy.config import BuildConfig
from export.errors import BundleError, ServerError


def right(feeds: dict[str, Any]) -> dict[str, Any]:
    return {"logits": answer(feeds["x"]).astype(np.float32)}


def check(
    bundle: Path, served: Served, *, engine: str | None = None, **config: Any
) -> Verification:
    with serve(served) as url:
        model = ServedModel(url, engine=engine)
        (result,) = verify_server(read_bundle(bundle), model, config=BuildConfig(**config))
        assert f"http://{result.name.partition(' @ ')[2]}" == url
    return result


@pytest.fixture
def data(tmp_path: Path) -> str:
    x = draw(400, seed=9)
    labels = answer(x).argmax(axis=1)
    labels[:20] = (labels[:20] + 1) % 3
    np.savez(tmp_path / "data.npz", x=x, y=labels)
    return str(tmp_path / "data.npz")


@pytest.mark.parametrize("binary", [True, False])
def test_a_server_that_repeats_the_recorded_answers_holds(pristine: Path, binary: bool) -> None:
    served = Served(right, binary=binary)
    result = check(pristine, served)
    assert result.holds
    assert result.was_run
    assert result.name.startswith("onnxruntime-int8 @ ")  # the winner
    assert served.rows == [4, 4]  # to see whether they are taken, and to compare


def wrong(change: Any) -> Any:
    return lambda feeds: {"logits": change(right(feeds)["logits"])}


@pytest.mark.parametrize(
    "change",
    [
        lambda y: y * np.float32(1.01),
        lambda y: y[:, [1, 0, 2]],
        lambda y: y[::-1].copy(),
        lambda y: np.where(np.arange(3) == 1, np.float32(np.nan), y),
        lambda y: y[:, :2].copy(),
        lambda y: np.zeros_like(y),
    ],
    ids=["x1.01", "channels permuted", "samples swapped", "NaN", "shape", "zeros"],
)
def test_wrong_answers_are_found(pristine: Path, change: Any) -> None:
    result = check(pristine, Served(wrong(change)))
    assert not result.holds
    assert "'logits'" in str(result.golden)


def test_another_output_is_found(pristine: Path) -> None:
    result = check(pristine, Served(lambda feeds: {"scores": right(feeds)["logits"]}))
    assert result.golden == "output 'logits' is missing"


def test_a_server_that_takes_single_rows_is_asked_for_single_rows(
    pristine: Path, data: str
) -> None:
    served = Served(right, most=1)
    result = check(pristine, served, data=data, evaluation_samples=310)
    assert result.holds
    assert served.rows[0] == 4
    assert set(served.rows[1:]) == {1}
    assert result.parity is not None
    assert result.parity.samples == 310


def test_data_is_judged_by_the_gates_through_the_wire(pristine: Path, data: str) -> None:
    served = Served(right)
    result = check(pristine, served, data=data)
    assert result.verdict is not None
    assert result.verdict.passed
    assert result.parity is not None
    (accuracy,) = result.parity.accuracies.values()
    assert accuracy.candidate == pytest.approx(0.95)
    assert max(served.rows) == 4  # no more at once than were taken of the golden inputs


def test_a_server_that_is_wrong_beyond_the_golden_inputs_fails_its_gate(
    pristine: Path, data: str
) -> None:
    golden = draw(4, seed=1)

    def overfitted(feeds: dict[str, Any]) -> dict[str, Any]:
        known = len(feeds["x"]) == 4 and np.array_equal(feeds["x"], golden)
        return right(feeds) if known else {"logits": -right(feeds)["logits"]}

    result = check(pristine, Served(overfitted), data=data)
    assert result.golden is None
    assert not result.holds
    assert result.verdict is not None
    assert "accuracy" in str(result.verdict.reason)


def test_a_server_that_mixes_up_its_batches_fails(pristine: Path, data: str) -> None:
    def mixed(feeds: dict[str, Any]) -> dict[str, Any]:
        y = right(feeds)["logits"]
        return {"logits": np.roll(y, 1, axis=0) if len(y) == 3 else y}

    result = check(pristine, Served(mixed), data=data)
    assert result.verdict is not None
    assert not result.verdict.passed
    assert "batch" in str(result.verdict.reason)


def test_the_engine_is_the_one_that_the_server_names(pristine: Path) -> None:
    served = Served(right, parameters={"deploy": {"engine": "onnxruntime-fp32"}})
    assert check(pristine, served).name.startswith("onnxruntime-fp32 @ ")
    named = check(pristine, served, engine="openvino-fp32")
    assert named.name.startswith("openvino-fp32 @ ")
    deep: Any = "openvino-fp32"
    for _ in range(900):
        deep = [deep]
    assert check(pristine, Served(right, parameters={"a": deep})).name.startswith("openvino-fp32")
    with pytest.raises(BundleError, match="has no engine 'other'"):
        check(pristine, served, engine="other")


def test_an_error_of_the_server_is_the_finding(pristine: Path) -> None:
    result = check(pristine, Served(right, most=0))
    assert "answers 400: 1 rows are more than 0" in str(result.golden)


def test_a_model_that_is_not_there_is_an_error(pristine: Path) -> None:
    with serve(Served(right)) as url, pytest.raises(ServerError, match="answers 404"):
        verify_server(read_bundle(pristine), ServedModel(url, "other"))


def test_the_command_line_says_whether_it_holds(cli: Cli, pristine: Path, data: str) -> None:
    with serve(Served(right)) as url:
        code, out, err = cli("verify", pristine, "--url", url, "--data", data)
        assert (code, "Verified" in out) == (0, True), out + err
    with serve(Served(wrong(lambda y: y * np.float32(1.1)))) as url:
        code, out, _ = cli("verify", pristine, "--url", url)
        assert (code, "DIFFERS" in out) == (1, True)
    code, _, err = cli("verify", pristine, "--url", url)
    assert code == 1
    assert "cannot be reached" in err
    for flag, value in (("--model", "tiny"), ("--engine", "onnxruntime-fp32")):
        code, _, err = cli("verify", pristine, flag, value)
        assert code == 2
        assert f"{flag} is for a running server. Pass its address: --url URL." in err
