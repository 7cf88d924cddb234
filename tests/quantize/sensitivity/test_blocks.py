"""Layers become blocks by their paths, in order, and never more than asked for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantize.sensitivity.blocks import group_blocks

RESNET = [
    "conv1",
    *(f"layer{s}.{b}.conv{c}" for s in (1, 2, 3, 4) for b in (0, 1) for c in (1, 2)),
    "fc",
]


def name_layers(paths: list[str]) -> list[tuple[str, str]]:
    return [(f"node_{index}", path) for index, path in enumerate(paths)]


def test_stages_are_blocks_where_there_is_room_for_no_more() -> None:
    blocks = group_blocks(name_layers(RESNET), 6)
    assert [b.name for b in blocks] == ["conv1", "layer1", "layer2", "layer3", "layer4", "fc"]
    assert [len(b.nodes) for b in blocks] == [1, 4, 4, 4, 4, 1]


def test_stages_are_split_as_far_as_the_limit_allows() -> None:
    names = [b.name for b in group_blocks(name_layers(RESNET), 8)]
    assert names == ["conv1", "layer1.0", "layer1.1", "layer2.0", "layer2.1", *names[5:]]
    assert names[5:] == ["layer3", "layer4", "fc"]


def test_with_room_for_all_every_layer_is_a_block() -> None:
    blocks = group_blocks(name_layers(RESNET), 100)
    assert [b.name for b in blocks] == RESNET


def test_a_flat_list_of_layers_is_cut_into_stretches() -> None:
    blocks = group_blocks(name_layers([f"conv{i}" for i in range(10)]), 3)
    assert [len(b.nodes) for b in blocks] == [4, 4, 2]
    assert blocks[0].name == "conv0 to conv3"


def test_a_module_called_twice_is_not_taken_for_one_block() -> None:
    blocks = group_blocks(name_layers(["stem", "shared.conv", "middle", "shared.conv"]), 4)
    assert [b.nodes for b in blocks] == [(f"node_{i}",) for i in range(4)]
    assert len({b.nodes for b in blocks}) == 4


def test_nothing_gives_nothing() -> None:
    assert group_blocks([], 4) == ()


@given(
    st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=4), min_size=1, max_size=40),
    st.integers(1, 50),
)
def test_every_layer_is_in_one_block_in_order(paths: list[list[str]], limit: int) -> None:
    layers = name_layers([".".join(parts) for parts in paths])
    blocks = group_blocks(layers, limit)
    assert [node for block in blocks for node in block.nodes] == [node for node, _ in layers]
    assert 1 <= len(blocks) <= limit
    assert all(block.nodes and block.name for block in blocks)


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_equal_paths_can_still_be_split(limit: int) -> None:
    assert len(group_blocks(name_layers(["conv"] * 5), limit)) == limit


def test_a_path_that_layers_of_other_blocks_have_too_does_not_name_a_block() -> None:
    paths = ["body.0.a", "body.0.b", "body.1.a", "body.1.b", "head", "body.2.a", "body.2.b"]
    names = [block.name for block in group_blocks(name_layers(paths), 3)]
    assert names == ["body.0.a to body.1.b", "head", "body.2"]
