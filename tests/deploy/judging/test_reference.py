"""The reference is eager itself; its noise is from float64, or from reruns and says why."""

import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deploy.judging.reference import Reference, to_numpy
from export.artifacts import TensorSpec
from export.capture.signature import CallSignature, describe_call


class HardFloat(nn.Module):
    """Takes a float32 tensor from NumPy, which a float64 product refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) @ torch.from_numpy(np.ones((4, 4), np.float32))


class Raising(nn.Module):
    """Raises what it is given where its input is not float32."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4)
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype is not torch.float32:
            raise self.error
        return self.linear(x)


class Stubborn(nn.Linear):
    """Cannot be copied."""

    def __deepcopy__(self, memo: dict[int, object]) -> "Stubborn":
        raise ValueError("one of a kind\nand proud of it")


class Mixed(nn.Module):
    """A batched output, a table as long as three samples, and a scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4)
        self.register_buffer("table", torch.arange(3.0))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if x.dtype is not torch.float32:
            raise TypeError("float32 only")
        return self.linear(x), self.table, self.table.sum()


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4)).eval()


def samples(rows: int = 7) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, 6)).astype(np.float32)


def reference(module: nn.Module, *, threads: int = 2, batch: int = 2) -> Reference:
    example = {"x": torch.zeros(batch, 6)}
    signature = describe_call(module, example, keyword=False, dynamic_batch=True)
    return Reference(module, signature, threads=threads)


def state(module: nn.Module) -> bytes:
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def threads_are_given_back():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_outputs_are_those_of_the_module() -> None:
    module = net()
    found = reference(module)({"x": samples()})["output"]
    with torch.no_grad():
        expected = module(torch.from_numpy(samples())).numpy()
    np.testing.assert_array_equal(found, expected)


def test_floor_is_the_float64_product_and_eager_farthest_from_it_its_noise() -> None:
    module = nn.Linear(6, 4).eval()
    judge = reference(module)
    eager = judge({"x": samples()})
    exact, noisy = judge.floor({"x": samples()}, eager)
    weight, bias = (p.detach().numpy().astype(np.float64) for p in module.parameters())
    expected = (
        np.array(
            [
                [sum(a * w for a, w in zip(row, out, strict=True)) for out in weight]
                for row in samples().astype(np.float64)
            ]
        )
        + bias
    )
    assert exact["output"].dtype == np.float64
    np.testing.assert_allclose(exact["output"], expected, rtol=1e-13)
    own, noise = (np.abs(run["output"] - exact["output"]) for run in (eager, noisy))
    assert (noise >= own).all()
    assert 0 < own.max() <= noise.max() < 1e-5
    assert judge.floor_reason is None


def test_module_is_the_same_object_and_the_same_bytes() -> None:
    module = net()
    parts, before = list(module.modules()), state(module)
    pointers = [parameter.data_ptr() for parameter in module.parameters()]
    judge = reference(module)
    judge.floor({"x": samples()}, judge({"x": samples()}))
    assert state(module) == before
    assert list(module.modules()) == parts
    assert [parameter.data_ptr() for parameter in module.parameters()] == pointers
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert all(p.requires_grad and p.grad is None for p in module.parameters())
    assert not module.training


def test_feeds_are_not_changed_and_read_only_ones_are_taken() -> None:
    class InPlace(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mul_(2)

    feed = samples()
    feed.flags.writeable = False
    judge = reference(InPlace())
    np.testing.assert_array_equal(judge({"x": feed})["output"], 2 * samples())
    np.testing.assert_array_equal(feed, samples())


def test_outputs_are_arrays_of_their_own() -> None:
    class Returning(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("total", torch.zeros(4))

        def forward(self, x: Tensor) -> Tensor:
            self.total += x.sum()
            return self.total

    module = Returning()
    judge = reference(module)
    first = judge({"x": samples()})["output"]
    kept = first.copy()
    second = judge({"x": samples()})["output"]
    np.testing.assert_array_equal(first, kept)
    assert (second != kept).all()
    assert not np.shares_memory(second, module.total.numpy())


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (HardFloat, "dtype"),
        (lambda: Raising(TypeError("no float64\nsecond line")), "no float64"),
        (lambda: Raising(AssertionError()), "AssertionError"),
        (lambda: Raising(NotImplementedError()), "NotImplementedError"),
        (lambda: Raising(KeyError("float64")), "float64"),
        (lambda: Stubborn(6, 4), "one of a kind"),
    ],
)
def test_what_cannot_run_in_float64_is_rerun_and_says_why(
    make: Callable[[], nn.Module], reason: str
) -> None:
    torch.manual_seed(1)
    module = make().eval()
    judge = reference(module)
    eager = judge({"x": samples()})
    for _ in range(2):
        exact, noisy = judge.floor({"x": samples()}, eager)
        assert exact is eager
        np.testing.assert_allclose(noisy["output"], eager["output"], rtol=1e-5, atol=1e-6)
    assert judge.floor_reason is not None
    assert reason in judge.floor_reason
    assert "\n" not in judge.floor_reason


class Held(nn.Module):
    """Multiplies by a tensor that is an attribute, and no buffer; starts from zeros of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = torch.randn(6, 4)
        self.cell = nn.GRUCell(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x @ self.matrix, torch.zeros(len(x), 4))


def test_tensors_that_are_no_buffers_run_in_float64_too() -> None:
    torch.manual_seed(1)
    judge = reference(Held().eval())
    eager = judge({"x": samples()})
    exact, noisy = judge.floor({"x": samples()}, eager)
    assert judge.floor_reason is None
    assert exact["output"].dtype == np.float64
    np.testing.assert_allclose(noisy["output"], exact["output"], rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_torchscript_model_runs_in_float64_too() -> None:
    torch.manual_seed(1)
    judge = reference(torch.jit.script(nn.Linear(6, 4)).eval())
    eager = judge({"x": samples()})
    exact, noisy = judge.floor({"x": samples()}, eager)
    assert judge.floor_reason is None
    assert exact["output"].dtype == np.float64
    np.testing.assert_allclose(noisy["output"], eager["output"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(exact["output"], eager["output"], rtol=1e-5, atol=1e-6)


class Moody(nn.Module):
    """The mean of an image, off by `error` where `when` holds of the input; exact in float64."""

    def __init__(self, when: Callable[[Tensor], bool], error: float) -> None:
        super().__init__()
        self.when, self.error = when, error

    def forward(self, x: Tensor) -> Tensor:
        mean = x.double().mean((2, 3)).to(x.dtype)
        return mean + self.error if x.dtype is torch.float32 and self.when(x) else mean


def has_two_threads(x: Tensor) -> bool:
    return torch.get_num_threads() == 2


def is_channels_last(x: Tensor) -> bool:
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def is_out_of_order(x: Tensor) -> bool:
    return bool((x[0] != 1).any())


def measure_noise(module: nn.Module) -> tuple[float, Reference]:
    """Largest |eager - exact| of the floor on three images, the first of them all ones."""
    images = np.random.default_rng(0).random((3, 2, 4, 5), dtype=np.float32)
    images[0] = 1
    signature = describe_call(
        module, {"x": torch.zeros(2, 2, 4, 5)}, keyword=False, dynamic_batch=True
    )
    judge = Reference(module.eval(), signature, threads=1)
    exact, noisy = judge.floor({"x": images}, judge({"x": images}))
    np.testing.assert_allclose(exact["output"], images.mean((2, 3), dtype=np.float64), atol=1e-12)
    return float(np.abs(noisy["output"] - exact["output"]).max()), judge


@pytest.mark.parametrize("when", [has_two_threads, is_channels_last, is_out_of_order])
def test_noise_is_that_of_the_worst_run_not_of_a_lucky_one(when: Callable[[Tensor], bool]) -> None:
    noise, judge = measure_noise(Moody(when, 2e-5))
    assert 1.9e-5 < noise < 2.1e-5
    assert judge.floor_reason is None


def test_an_answer_that_depends_on_strides_or_order_is_no_noise() -> None:
    for when in (is_channels_last, is_out_of_order):
        noise, _ = measure_noise(Moody(when, 0.1))
        assert noise < 1e-6


class HalfInside(nn.Module):
    """float32 outside; its weights are of another format, which no float64 product takes."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4).to(dtype)
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.to(self.dtype)).float()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_noise_of_narrow_weights_is_at_least_a_rounding_of_theirs(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    narrow = reference(HalfInside(dtype).eval())
    feeds = {"x": samples()}
    eager = narrow(feeds)
    floor = narrow.floor(feeds, eager)
    np.testing.assert_array_equal(floor[0]["output"], eager["output"])
    noise = np.abs(floor[1]["output"] - eager["output"]).max()
    least = torch.finfo(dtype).eps * np.abs(eager["output"]).max()
    assert 0.99 * least <= noise <= 2 * least
    assert narrow.floor_reason is not None


def test_large_batches_are_run_once() -> None:
    calls: list[int] = []

    class Counting(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(len(x))
            return super().forward(x)

    judge = reference(Counting(6, 4).eval())
    judge.floor({"x": samples(32)}, judge({"x": samples(32)}))
    assert calls.count(32) == 2  # eager and float64
    judge.floor({"x": samples(3)}, judge({"x": samples(3)}))
    assert calls.count(3) == 3


def test_a_model_that_cannot_run_in_channels_last_is_judged_by_the_other_runs() -> None:
    class Viewing(Moody):
        def forward(self, x: Tensor) -> Tensor:
            x.view(len(x), -1)
            return super().forward(x)

    noise, judge = measure_noise(Viewing(has_two_threads, 2e-5))
    assert 1.9e-5 < noise < 2.1e-5
    assert judge.floor_reason is None


@pytest.mark.parametrize("threads", [1, 2])
def test_rerun_permutes_the_batch_with_other_threads_and_undoes_both(threads: int) -> None:
    seen: list[tuple[Tensor, int]] = []

    class Watching(HardFloat):
        def forward(self, x: Tensor) -> Tensor:
            seen.append((x.clone(), torch.get_num_threads()))
            return super().forward(x)

    judge = reference(Watching(), threads=threads)
    eager = judge({"x": samples()})
    seen.clear()
    _, noisy = judge.floor({"x": samples()}, eager)
    rerun, used = seen[-1]
    assert used != threads
    assert torch.get_num_threads() == threads
    assert not np.array_equal(rerun.numpy(), samples())
    np.testing.assert_array_equal(np.sort(rerun.numpy(), axis=0), np.sort(samples(), axis=0))
    np.testing.assert_allclose(noisy["output"], eager["output"], rtol=1e-5, atol=1e-6)


def test_rerun_shows_a_model_that_depends_on_the_order_of_its_batch() -> None:
    class Cumulative(HardFloat):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cumsum(super().forward(x), 0)

    judge = reference(Cumulative())
    eager = judge({"x": samples()})
    _, noisy = judge.floor({"x": samples()}, eager)
    assert np.abs(noisy["output"] - eager["output"]).max() > 0.1


def test_rerun_leaves_outputs_without_a_batch_axis_in_place() -> None:
    judge = reference(Mixed())
    eager = judge({"x": samples(3)})
    _, noisy = judge.floor({"x": samples(3)}, eager)
    assert judge.floor_reason == "float32 only"
    np.testing.assert_allclose(noisy["output_0"], eager["output_0"], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(noisy["output_1"], np.arange(3.0))
    assert noisy["output_2"].shape == ()


def test_rerun_undoes_the_permutation_of_a_static_batch_too() -> None:
    module = HardFloat()
    signature = describe_call(module, {"x": torch.zeros(7, 6)}, keyword=False, dynamic_batch=False)
    judge = Reference(module, signature, threads=2)
    eager = judge({"x": samples()})
    _, noisy = judge.floor({"x": samples()}, eager)
    np.testing.assert_allclose(noisy["output"], eager["output"], rtol=1e-5, atol=1e-6)


def test_whole_numbers_stay_whole_in_float64() -> None:
    class Lookup(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(10, 4)

        def forward(self, ids: Tensor) -> Tensor:
            return self.table(ids)

    module = Lookup().eval()
    example = {"ids": torch.zeros(2, 3, dtype=torch.int64)}
    signature = describe_call(module, example, keyword=True, dynamic_batch=True)
    judge = Reference(module, signature, threads=1)
    feeds = {"ids": np.arange(9).reshape(3, 3)}
    exact, _ = judge.floor(feeds, judge(feeds))
    assert exact["output"].dtype == np.float64
    assert judge.floor_reason is None


def test_bfloat16_becomes_float32_and_other_dtypes_stay() -> None:
    values = torch.tensor([1.0, 2.5])
    assert to_numpy(values.bfloat16()).dtype == np.float32
    np.testing.assert_array_equal(to_numpy(values.bfloat16()), [1.0, 2.5])
    for dtype in (torch.float16, torch.float64, torch.int64, torch.bool):
        assert str(to_numpy(values.to(dtype)).dtype) == str(dtype).removeprefix("torch.")
    assert to_numpy(values.requires_grad_()).tolist() == [1.0, 2.5]


class Columns(nn.Module):
    """Each sample's answer in a column; noisy in its last bits by the place in the batch."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.dtype is not torch.float32:
            raise TypeError("float32 only")
        return x.T, x @ x.T


def test_a_rerun_puts_samples_back_on_whichever_axis_they_lie() -> None:
    outputs = (
        TensorSpec("columns", (6, "batch"), "float32"),
        TensorSpec("pairs", ("batch", "batch"), "float32"),
    )
    inputs = (TensorSpec("x", ("batch", 6), "float32"),)
    judge = Reference(Columns(), CallSignature(inputs, outputs, False, ""), threads=2)
    x = samples()
    eager = judge({"x": x})
    _, again = judge.floor({"x": x}, eager)
    np.testing.assert_array_equal(again["columns"], x.T)
    np.testing.assert_allclose(again["pairs"], x @ x.T, rtol=0, atol=1e-5)


def test_of_a_static_batch_too_samples_are_put_back_on_their_own_axis() -> None:
    signature = CallSignature(
        (TensorSpec("x", (7, 6), "float32"),),
        (TensorSpec("columns", (6, 7), "float32"), TensorSpec("pairs", (7, 7), "float32")),
        False,
        "",
    )
    judge, x = Reference(Columns(), signature, threads=2), samples()
    _, again = judge.floor({"x": x}, judge({"x": x}))
    np.testing.assert_array_equal(again["columns"], x.T)
