"""The product uses names of libraries alone that the lowest versions have which it allows."""

import ast

import library_names
from library_names import LOWEST, is_there, list_used


def test_the_lowest_versions_have_every_name_that_is_used() -> None:
    known = {*LOWEST.read_text(encoding="utf-8").split()}
    unknown = {name: where for name, where in list_used().items() if name not in known}
    assert not unknown, (
        f"{unknown}: make test-lowest, then .venv-lowest/bin/python tests/library_names.py"
    )


def test_the_installed_versions_have_them_too() -> None:
    used = list_used()
    assert not [f"{where}: {name}" for name, where in used.items() if not is_there(name)]
    assert {"torch.Tensor", "torch.export.Dim", "torch.fx.experimental.symbolic_shapes"} <= {
        *used,
        *(name.rpartition(".")[0] for name in used),
    }


def test_names_are_found_however_they_are_imported() -> None:
    source = """
import torch
import torch.fx as graphs
from torch.utils import _pytree as pytree
from torch.nn import functional as F, Module

def flatten(tree: pytree.FlattenFn) -> torch.Tensor.shape:
    return F.relu(graphs.Node.nowhere) + Module().forward(torch.ops.aten.add.Tensor(1))
"""
    tree = ast.parse(source)
    known = dict(library_names._list_imports(tree))
    found = {name for name, _ in library_names._list_attributes(tree, known)}
    assert found == {
        "torch.utils._pytree.FlattenFn",
        "torch.Tensor.shape",
        "torch.nn.functional.relu",
        "torch.fx.Node.nowhere",
        "torch.ops.aten.add.Tensor",
    }
    imported = {name for name, _ in library_names._list_imported(tree)}
    assert {"torch", "torch.fx", "torch.utils._pytree", "torch.nn.Module"} <= imported
    assert is_there("torch.ops.aten.add.Tensor")
    assert not is_there("torch.fx.Node.nowhere")
    assert not is_there("torch.nowhere.at_all")
