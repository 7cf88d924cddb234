"""What a module keeps on itself, put back."""

import pytest
import torch
from nets import Anchored
from torch import Tensor, nn

from export.artifacts import SizeRange, TensorSpec
from export.capture.kept_attributes import Attributes, kept_attributes
from export.capture.program import capture


class Keeper(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(2, 2))
        self.seen: list[int] = [1]
        self.cache = {"a": {"deep": [1, 2]}}
        self.size = None


CHANGES = {
    "attribute": lambda net: setattr(net, "size", (2, 3)),
    "new attribute": lambda net: setattr(net.inner[0], "extra", 1),
    "no attribute": lambda net: delattr(net, "size"),
    "list": lambda net: net.seen.append(2),
    "other of the list": lambda net: net.seen.__setitem__(0, 5),
    "dict in a dict": lambda net: net.cache["a"].update(more=1),
    "list in dicts": lambda net: net.cache["a"]["deep"].clear(),
    "another dict": lambda net: setattr(net, "cache", {}),
    "buffer": lambda net: net.register_buffer("b", torch.ones(1)),
    "module": lambda net: net.inner.append(nn.ReLU()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_was_set_is_put_back(change):
    net = Keeper()
    weight, cache = net.inner[0].weight, net.cache
    with kept_attributes(net) as attributes:
        assert not attributes.differ()
        CHANGES[change](net)
        assert attributes.differ()
    assert not attributes.differ()
    assert net.inner[0].weight is weight
    assert net.cache is cache
    assert (net.seen, net.cache, net.size) == ([1], {"a": {"deep": [1, 2]}}, None)
    assert not hasattr(net.inner[0], "extra")
    assert len(net.inner) == 1
    assert not list(net.buffers())


def _set_and_fail(net: Keeper) -> None:
    net.size = 3
    raise ValueError("mine")


def test_they_are_put_back_behind_an_error():
    net = Keeper()
    with pytest.raises(ValueError, match="mine"), kept_attributes(net):
        _set_and_fail(net)
    assert net.size is None


def test_a_module_that_holds_itself_in_a_list_is_gone_through_once():
    net = Keeper()
    net.itself = [net, (net, net.cache)]
    assert not Attributes(net).differ()


SIZES = TensorSpec(
    "x", ("batch", 3, "h", "w"), "float32", {"h": SizeRange(2, 4, 12), "w": SizeRange(2, 6, 12)}
)


@pytest.mark.parametrize("inputs", [(), (SIZES,)], ids=["any batch", "any size"])
@pytest.mark.parametrize("first", [None, (2, 3, 4, 6), (5, 3, 4, 6), (2, 3, 8, 8)], ids=str)
def test_what_was_made_for_a_size_does_not_bind_a_capture(first, inputs):
    """The anchors of the image before, as YOLO has them, be it of the size that is captured."""
    net, x = Anchored().eval(), torch.randn(2, 3, 4, 6)
    if first is not None:
        net(torch.randn(first))
    kept = net.anchors, net.shape
    program = capture(net, {"x": x}, keyword=False, dynamic_batch=True, inputs=inputs)
    assert (net.anchors, net.shape) == kept
    sizes = [(1, 3, 4, 6), (3, 3, 4, 6), *([(2, 3, 9, 4)] if inputs else [])]
    for size in sizes:
        value = torch.randn(size)
        torch.testing.assert_close(program.module()(value), net.exact(value))


def test_what_was_made_for_a_size_does_not_bind_a_range_at_one_batch():
    net, x = Anchored().eval(), torch.randn(1, 3, 4, 6)
    net(x)
    program = capture(net, {"x": x}, keyword=True, dynamic_batch=False, inputs=(SIZES,))
    value = torch.randn(1, 3, 12, 5)
    torch.testing.assert_close(program.module()(x=value), net.exact(value))


def test_a_module_that_fails_beyond_its_range_is_called_below_it():
    class Limited(Anchored):
        def forward(self, x: Tensor) -> Tensor:
            torch._check(x.shape[2] <= 12)
            return super().forward(x)

    net, x = Limited().eval(), torch.randn(2, 3, 4, 6)
    net(x)
    program = capture(net, {"x": x}, keyword=False, dynamic_batch=True, inputs=(SIZES,))
    value = torch.randn(5, 3, 12, 5)
    torch.testing.assert_close(program.module()(value), net.exact(value))


class Growing(nn.Module):
    """A table that grows with the longest input so far, as those of rotary positions do."""

    def __init__(self) -> None:
        super().__init__()
        self.length, self.table = 0, torch.zeros(0)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] > self.length:
            self.length = x.shape[1]
            self.table = torch.arange(self.length).cos()
        return x * self.table[: x.shape[1]]


@pytest.mark.parametrize("dynamic_batch", [False, True])
def test_a_table_that_grew_to_the_captured_length_does_not_bind_a_range(dynamic_batch):
    net, x = Growing(), torch.randn(2, 8)
    net(x)
    spec = TensorSpec("x", ("batch", "n"), "float32", {"n": SizeRange(2, 8, 30)})
    program = capture(net, {"x": x}, keyword=False, dynamic_batch=dynamic_batch, inputs=(spec,))
    assert net.length == 8
    value = torch.randn(2, 30)
    torch.testing.assert_close(program.module()(value), value * torch.arange(30).cos())


def test_buffers_and_random_numbers_are_as_before():
    class Counted(Anchored):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls.add_(torch.rand(()))
            return super().forward(x)

    net, x = Counted().eval(), torch.randn(2, 3, 4, 6)
    net(x)
    calls, state = net.calls.item(), torch.get_rng_state()
    capture(net, {"x": x}, keyword=False, dynamic_batch=True)
    assert net.calls.item() == calls
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("inputs", [(), (SIZES,)], ids=["any batch", "any size"])
def test_a_module_that_writes_to_its_input_leaves_what_was_given(inputs):
    class Shifted(Anchored):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.sub_(0.5))

    net, x = Shifted().eval(), torch.randn(2, 3, 4, 6)
    net(x.clone())
    given = x.clone()
    capture(net, {"x": x}, keyword=False, dynamic_batch=True, inputs=inputs)
    assert torch.equal(x, given)


def test_a_capture_leaves_nothing_that_binds_it_later():
    """Sizes that are symbols were compared by the next call of the module itself."""
    net, x = Anchored().eval(), torch.randn(2, 3, 4, 6)
    program = capture(net, {"x": x}, keyword=False, dynamic_batch=True)
    torch.testing.assert_close(net(x), net.exact(x))
    assert program.module()(torch.randn(7, 3, 4, 6)).shape == (7, 24)
