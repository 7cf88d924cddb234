import copy
import math
import operator
import random
import time
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import trees
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy
from torch import Tensor, nn
from torch.nn import functional as F
from trees import (
    Activation,
    Case,
    Concat,
    Conv,
    Excite,
    Identity,
    Negate,
    Norm,
    Pad,
    Pool,
    Scale,
    Sequence,
    Shift,
    Slice,
    Split,
    Sum,
    Tapped,
    Tree,
    build,
    cases,
    judge,
    refusals,
)

from export import fuse
from export.capture.program import capture

pytestmark = pytest.mark.long

TOLERANCE = 1e-10
LAYERS = {"conv1d", "conv2d", "conv3d", "convolution", "linear"}
BORDERS = {"pad", "constant_pad_nd"}
OPTIONS = settings(
    max_examples=10,
    database=None,
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow],
)


def run(module: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    with torch.no_grad(), warnings.catch_warnings():  # torch says once that even "same" copies
        warnings.filterwarnings("ignore", "Using padding='same'", UserWarning)
        outputs = module(x)
    return outputs if isinstance(outputs, tuple) else (outputs,)


def assert_same_function(net: nn.Module, module: nn.Module, x: Tensor) -> None:
    """The oracle is the network as it was, in float64."""
    for expected, found in zip(run(net, x), run(module, x), strict=True):
        assert found.dtype == torch.float64
        assert found.shape == expected.shape
        error = float((found - expected).abs().max() / expected.abs().max())
        assert error <= TOLERANCE, f"differs by {error:.2g} of its largest output"


def list_operations(module: nn.Module) -> list[str]:
    """``conv2d`` for ``aten.conv2d.default``."""
    nodes = (node for node in module.graph.nodes if node.op.startswith("call_"))
    return [
        "getitem" if n.target is operator.getitem else str(n.target).split(".")[1] for n in nodes
    ]


def check(case: Case, fuse: Callable[..., Any] = fuse) -> None:
    """Fuse the network of `case` and hold the result to its label."""
    net = build(case.tree, case.shape)
    original = copy.deepcopy(net)
    result = fuse(net, case.inputs(2), merge_always=True)
    for batch in (1, 3):
        assert_same_function(original, result.module, case.inputs(batch))
    if case.mergeable:
        operations = list_operations(result.module)
        others = [name for name in operations if name not in LAYERS]
        reasons = [f"{skip.where}: {skip.reason}" for skip in result.skipped]
        assert len(operations) - len(others) == 1, f"must be one layer: {operations}, {reasons}"
        assert len(others) <= 1, f"must be one layer: {operations}, {reasons}"
        assert set(others) <= BORDERS, f"must be one layer: {operations}, {reasons}"
        assert result.fused or any(isinstance(node, Pad) for node in trees.walk(case.tree))
    else:
        assert result.skipped, f"left without a reason: {case.cause}"
        assert all(skip.reason.strip() for skip in result.skipped)
    assert all(item.error_float64 <= TOLERANCE for item in result.fused)


def for_each(
    strategy: SearchStrategy[Case], act: Callable[[Case], None], rounds: range, **options: Any
) -> int:
    """Call `act` once on each tree drawn in these rounds; the number of different ones.

    The numbers of the rounds are the seeds. After ten trees hypothesis goes over to varying those
    that it has, so a round has ten. A tree that fails is made smaller for a minute.
    """
    passed: set[Case] = set()
    failed: set[Case] = set()
    stop = math.inf

    def act_once(case: Case) -> None:
        nonlocal stop
        if case in passed or (time.monotonic() > stop and case not in failed):
            return
        try:
            act(case)
        except Exception:
            failed.add(case)
            stop = min(stop, time.monotonic() + 60)
            raise
        passed.add(case)

    for number in rounds:
        seed(number)(settings(OPTIONS, **options)(given(strategy)(act_once)))()
    return len(passed)


@pytest.fixture(scope="module")
def drawn() -> list[Case]:
    """Different trees."""
    found: list[Case] = []
    for_each(cases(), found.append, range(25), phases=[Phase.generate])
    return found


def test_hundred_random_trees_merge_or_are_refused_with_a_reason():
    assert for_each(cases(), check, range(14)) >= 100


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (1, 2), (1, 3)])
@pytest.mark.parametrize("padded", [False, True])
def test_channels_taken_behind_a_norm_are_those_of_one_layer(start, stop, padded):
    """The norm alone would be folded into its layer, and the rest of the channels thrown away."""
    parts = (*[Pad((1, 0), (0, 2))] * padded, Conv(4, (3, 3)), Norm(), Slice(start, stop))
    check(Case((2, (6, 5)), Sequence(parts), mergeable=True))


@pytest.mark.parametrize("cause", trees.CAUSES)
def test_trees_are_refused_for_each_cause(cause):
    for_each(refusals(cause), check, range(1), max_examples=3)


@pytest.mark.slow
def test_two_thousand_random_trees_merge_or_are_refused_with_a_reason():
    first = random.randrange(2**32)  # other trees in every run; pytest-randomly prints its seed
    assert for_each(cases(), check, range(first, first + 280)) >= 2000


def test_most_trees_must_merge_and_every_kind_occurs(drawn):
    merging = [case for case in drawn if case.mergeable]
    assert len(drawn) >= 200
    assert len(merging) >= 0.6 * len(drawn)
    assert {len(case.shape[1]) for case in merging} == {0, 1, 2, 3}
    kinds = {type(node) for case in merging for node in trees.walk(case.tree)}
    assert kinds == set(Tree.__args__) - {Activation, Excite, Tapped}


def assemble(case: Case) -> nn.Module:
    """The convolution with the impulse response of the case's network."""
    net = build(case.tree, case.shape)
    reach = trees.trace(case.tree, trees.reach_of_nothing(case.shape), case.shape[1])
    kernel = trees.assemble_kernel(*trees.measure_impulses(net, case.shape), reach.strides)
    assert kernel is not None
    weight, bias = kernel
    if not reach.strides:
        return trees.Apply(lambda x, w: F.linear(x, w, bias), weight)
    amounts: list[int] = []
    for axis, (stride, count) in enumerate(zip(reach.strides, reach.shape[1], strict=True), 2):
        border, span = stride * (count - 1), weight.shape[axis]
        used = weight.abs().transpose(0, axis).flatten(1).amax(1) > 1e-12 * weight.abs().max()
        start, stop = int(used.nonzero()[0]), int(used.nonzero()[-1]) + 1
        weight = weight.narrow(axis, start, stop - start)
        amounts = [border - start, border - (span - stop), *amounts]
    convolve = (F.conv1d, F.conv2d, F.conv3d)[len(reach.strides) - 1]
    return trees.Apply(lambda x, w: convolve(F.pad(x, amounts), w, bias, reach.strides), weight)


@pytest.mark.thorough
def test_mergeable_trees_equal_the_convolution_of_their_impulse_response(drawn):
    merging = [case for case in drawn if case.mergeable]
    assert len(merging) >= 100
    for case in merging:
        assert_same_function(build(case.tree, case.shape), assemble(case), case.inputs(3))


def conv(kernel: int = 3, **options: Any) -> Conv:
    return Conv(4, (kernel, kernel), **options)


PADDED = conv(padding=(1, 1))
POINT = conv(1)
LABELS: dict[str, tuple[tuple[Tree, ...] | Tree, str]] = {
    "repvgg": (Sum(((PADDED, Norm()), (POINT, Norm()), Norm()), (1, 1, 1)), ""),
    "acnet": (
        Sum((PADDED, Conv(4, (1, 3), padding=(0, 1)), Conv(4, (3, 1), padding=(1, 0))), (1, 1, 1)),
        "",
    ),
    "repmixer": (Sum((Identity(), (Sum((PADDED, Norm()), (1, -1)), Scale())), (1, 1)), ""),
    "point before a border": ((POINT, PADDED), ""),
    "point with bias before a border": ((conv(1, bias=True), PADDED), trees.BIAS),
    "point with bias without a border": ((conv(1, bias=True), conv()), ""),
    "strided point before a border, last position left over": (
        (conv(1, stride=(2, 2)), PADDED),
        "",
    ),
    "norm before a border": ((Norm(), PADDED), trees.BIAS),
    "norm before a pool with a border": ((Norm(), Pool((3, 3), (), (1, 1))), trees.BIAS),
    "pool before a border": ((Pool((3, 3), (), (1, 1)), PADDED), trees.BORDER),
    "two borders": ((PADDED, PADDED), trees.BORDER),
    "border only in front": ((PADDED, conv()), ""),
    "border only behind": ((conv(), PADDED), trees.BORDER),
    "borders on different axes": (
        (Conv(4, (1, 3), padding=(0, 1)), Conv(4, (3, 1), padding=(1, 0))),
        "",
    ),
    "borders on the same axis": (
        (Conv(4, (1, 3), padding=(0, 1)), Conv(4, (1, 3), padding=(0, 1))),
        trees.BORDER,
    ),
    "stride that steps over the border": (
        (conv(2, stride=(2, 2)), conv(2, stride=(2, 2), padding=(1, 1))),
        "",
    ),
    "explicit border": ((Pad((1, 0), (2, 1)), PADDED), ""),
    "bias before an explicit border": ((Shift(), Pad((1, 0), (0, 0)), conv()), trees.BIAS),
    "strides differ": (
        Sum((conv(2, stride=(2, 2)), conv(3, dilation=(2, 2))), (1, 1)),
        trees.STRIDE,
    ),
    "sizes broadcast": (Sum((PADDED, conv(8)), (1, 1)), trees.BROADCAST),
    "halves": (
        Split((1, 3), (Conv(2, (3, 3), padding=(1, 1)), Negate())),
        "",
    ),
    "taken channels": ((Slice(1, 3), PADDED), ""),
    "side by side": (Concat((PADDED, POINT, Identity())), ""),
    "pool leaves out its border": (
        (Pool((3, 3), (), (1, 1), count_padding=False), POINT),
        trees.POOL,
    ),
    "activation between": ((POINT, Activation("relu"), POINT), trees.NONLINEAR),
}


def nest(tree: tuple[Any, ...] | Tree) -> Tree:
    """Tuples as sequences."""
    if isinstance(tree, tuple):
        return Sequence(tuple(nest(part) for part in tree))
    if isinstance(tree, Sum | Concat):
        return trees.replace(tree, terms=tuple(nest(term) for term in tree.terms))
    return tree


@pytest.mark.parametrize("name", LABELS)
def test_rule_knows_the_structures_and_their_caveats(name):
    tree, cause = LABELS[name]
    assert judge(nest(tree), (4, (8, 8))) == (not cause, cause)


@pytest.mark.parametrize(
    "name", ["two borders", "border only behind", "point with bias before a border"]
)
def test_impulse_response_of_two_borders_is_no_convolutions(name):
    tree = nest(LABELS[name][0])
    response = trees.measure_impulses(build(tree, (4, (8, 8))), (4, (8, 8)))
    assert trees.assemble_kernel(*response, (1, 1)) is None


def test_label_is_withheld_where_a_bias_is_zero_by_accident():
    pair = Concat((Conv(2, (1,), bias=True), Conv(2, (1,))))
    tree = Sequence((pair, Slice(2, 4), Conv(2, (3,), padding=(1,))))
    assert judge(tree, (3, (7,))) == (None, trees.BIAS)


def test_label_is_withheld_where_only_the_border_is_read():
    outer = (Conv(4, (3,), stride=(3,), padding=(3,)), Conv(4, (1,), stride=(3,)))
    assert judge(nest(outer), (1, (6,))) == (None, "")


def test_repr_of_a_case_can_be_pasted(drawn):
    for case in drawn:
        assert eval(repr(case), vars(trees)) == case
    assert repr(Conv(4, (3,), bias=True)) == "Conv(outputs=4, kernel=(3,), bias=True)"


def fuse_into(module: nn.Module, x: Tensor, skipped: tuple[Any, ...] = ()) -> SimpleNamespace:
    """A result that claims `module` to be the fused one."""
    program = capture(module, {"x": x}, keyword=False, dynamic_batch=True)
    claim = SimpleNamespace(error_float64=0.0)
    return SimpleNamespace(
        module=program.module(check_guards=False), fused=(claim,), skipped=skipped
    )


def test_check_accepts_one_convolution_and_rejects_what_is_not_right():
    case = Case((3, (7, 6)), nest((Conv(4, (3, 3), padding=(1, 1)), Norm())), True)
    merged = assemble(case)
    check(case, lambda net, x, merge_always: fuse_into(merged, x))
    with pytest.raises(AssertionError, match="must be one layer"):
        check(case, lambda net, x, merge_always: fuse_into(net, x))
    refused = trees.replace(case, mergeable=False, cause=trees.BORDER)
    with pytest.raises(AssertionError, match="left without a reason"):
        check(refused, lambda net, x, merge_always: fuse_into(net, x))
    with torch.no_grad():
        merged.weight *= 1 + 1e-8
    with pytest.raises(AssertionError, match="differs by"):
        check(case, lambda net, x, merge_always: fuse_into(merged, x))
