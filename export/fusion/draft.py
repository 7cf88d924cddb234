"""An ``ExportedProgram`` under edit: graph, signature and stored tensors kept together.

A program names every stored tensor three times: as a placeholder of the graph, as an entry of the
signature, and as a key of the state. Rewrites go through this file so that the three never part.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import (
    ConstantArgument,
    ExportGraphSignature,
    InputKind,
    InputSpec,
    TensorArgument,
)

from export.capture.copying import deep_copy
from export.fusion.mutation import Mutations

_STORED = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


class Draft:
    """A copy of a program for rewrites to work on; the program itself stays as it is.

    Tensors are shared with the program until `store` replaces them.
    """

    def __init__(self, program: ExportedProgram) -> None:
        self._program = program
        self.graph: fx.Graph = deep_copy(program.graph)
        for old, new in zip(program.graph.nodes, self.graph.nodes, strict=True):
            new.name = old.name  # the copy renames what shadows a builtin, as ``input`` does
        self._inputs: list[InputSpec] = list(program.graph_signature.input_specs)
        self._by_name = {spec.arg.name: spec for spec in self._inputs if spec.kind in _STORED}
        self._state: dict[str, Any] = dict(program.state_dict)
        self._constants: dict[str, Any] = dict(program.constants)
        self._changed = self._find_changed()

    def nested_nodes(self) -> Iterator[fx.Node]:
        """The nodes of branches and loop bodies, which are graphs of their own."""
        for module in self._program.graph_module.modules():
            if isinstance(module, fx.GraphModule) and module is not self._program.graph_module:
                yield from module.graph.nodes

    def stored(self, node: object) -> Tensor | None:
        """The tensor behind a placeholder; None if it is computed, passed in, or changed in place.

        A view counts: what ``weight.data *= mask`` leaves is not what is stored.
        """
        spec = self._spec(node)
        if spec is None or not isinstance(node, fx.Node) or node.name in self._changed:
            return None
        value = self._load(spec)
        return value if isinstance(value, Tensor) else None

    def kind(self, node: fx.Node) -> InputKind | None:
        """What a placeholder is for; None for any other node."""
        return next((s.kind for s in self._inputs if s.arg.name == node.name), None)

    def target(self, node: object) -> str:
        """The user's own name of a stored tensor (``stages.1.conv.weight``), or ``""``."""
        spec = self._spec(node)
        return (spec.target or "") if spec else ""

    def store(self, user: fx.Node, argument: str, tensor: Tensor, *, beside: fx.Node) -> None:
        """Make `tensor` the `argument` of `user` alone.

        A tensor that only `user` reads is replaced under its own name; one that others read too
        stays, and `tensor` gets a name of its own. A parameter stays a parameter.

        Args:
            user: the node that is to read the tensor.
            argument: the name in the operator's schema.
            tensor: the new value, in its final dtype.
            beside: a stored tensor of the same module, which gives place and name.
        """
        old = read_argument(user, argument)
        old_spec = self._spec(old)
        requires_grad = self.requires_grad(old if old_spec else beside)
        value = nn.Parameter(tensor, requires_grad=requires_grad)
        if old_spec and isinstance(old, fx.Node) and list(old.users) == [user]:
            target = old_spec.target or ""
            self._put(old_spec, target, value)
            return
        prefix = self.target(beside).rpartition(".")[0]
        node = self.add(f"{prefix}.{argument}" if prefix else argument, value, beside=beside)
        _write_argument(user, argument, node)

    def add(self, wanted: str, tensor: Tensor, *, beside: fx.Node | None) -> fx.Node:
        """A new stored tensor, named `wanted` or the like, and its placeholder.

        The placeholder comes right behind `beside`, another stored tensor; None: first of all.
        """
        target = self._free_target(wanted)
        first = next(iter(self.graph.nodes))
        place = self.graph.inserting_after(beside) if beside else self.graph.inserting_before(first)
        with place:
            node = self.graph.placeholder("p_" + target.replace(".", "_"))
        node.target = node.name
        mode = _find_fake_mode(beside or first)
        node.meta["val"] = mode.from_tensor(tensor, static_shapes=True) if mode else tensor
        names = [spec.arg.name for spec in self._inputs]
        position = names.index(beside.name) + 1 if beside else 0
        spec = InputSpec(InputKind.PARAMETER, TensorArgument(name=node.name), target)
        self._inputs.insert(position, spec)
        self._by_name[node.name] = spec
        self._state[target] = tensor
        return node

    def erase(self, node: fx.Node, replacement: fx.Node) -> None:
        """Let `replacement` stand for `node` everywhere, and drop `node`."""
        node.replace_all_uses_with(replacement)
        self.graph.erase_node(node)

    def drop_scope(self, name: str) -> None:
        """Take the member `name` of the root, which holds the model, out of all module paths."""
        prefix = f"{name}."
        self._inputs = [
            replace(spec, target=spec.target.removeprefix(prefix)) if spec.target else spec
            for spec in self._inputs
        ]
        self._by_name = {spec.arg.name: spec for spec in self._inputs if spec.kind in _STORED}
        self._state = {key.removeprefix(prefix): value for key, value in self._state.items()}
        self._constants = {k.removeprefix(prefix): value for k, value in self._constants.items()}
        for node in self.graph.nodes:
            stack = node.meta.get("nn_module_stack") or {}
            if len(stack) > 1:  # the first entry is the root itself
                inner = list(stack.items())[1:]
                node.meta["nn_module_stack"] = {
                    key: (re.sub(rf"^(L\['self'\]\.|L__self__\.)?{name}(\.|$)", r"\1", path), kind)
                    for key, (path, kind) in inner
                }

    def drop_constant_outputs(self) -> None:
        """Return None in place of every number or string; the nesting stays."""
        (output,) = (node for node in self.graph.nodes if node.op == "output")
        kept = [value if isinstance(value, fx.Node) else None for value in output.args[0]]
        output.args = (tuple(kept),)

    def finish(self) -> ExportedProgram:
        """The edited program, verified; stored tensors that nothing reads any more are gone."""
        for node in [node for node in self.graph.nodes if node.op == "placeholder"]:
            spec = self._spec(node)
            if spec is not None and not node.users:
                self.graph.erase_node(node)
                self._inputs.remove(spec)
                del self._by_name[spec.arg.name]
        kept = {spec.target for spec in self._inputs}
        self.graph.lint()
        calls = deep_copy(self._program.module_call_graph)
        module = fx.GraphModule(self._program.graph_module, self.graph)
        module.meta.update(self._program.graph_module.meta)
        return ExportedProgram(
            root=module,
            graph=module.graph,
            graph_signature=ExportGraphSignature(self._inputs, self._output_specs()),
            state_dict={key: value for key, value in self._state.items() if key in kept},
            range_constraints=deep_copy(self._program.range_constraints),
            module_call_graph=calls,
            example_inputs=self._program.example_inputs,
            constants={
                key: value
                for key, value in self._constants.items()
                if key in kept or not isinstance(value, Tensor)
            },
            verifiers=self._program.verifiers,
        )

    def _find_changed(self) -> set[str]:
        """The nodes whose memory is changed in place, under whatever name it is stored."""
        names = {node.name for node in Mutations(self.graph).changed()}
        stored = {name: self._load(spec) for name, spec in self._by_name.items()}
        memory = {name: _find_memory(value) for name, value in stored.items()}
        written = {memory.get(name) for name in names} - {None}
        return names | {name for name, place in memory.items() if place in written}

    def _load(self, spec: InputSpec) -> Any:
        return self._state.get(spec.target or "", self._constants.get(spec.target or ""))

    def _output_specs(self) -> list[Any]:
        """The output entries, naming the values that the output node returns now."""
        (output,) = (node for node in self.graph.nodes if node.op == "output")
        specs: list[Any] = deep_copy(self._program.graph_signature.output_specs)
        for spec, value in zip(specs, output.args[0], strict=True):
            if isinstance(value, fx.Node):
                spec.arg.name = value.name
            elif isinstance(spec.arg, ConstantArgument):
                spec.arg = ConstantArgument(name=spec.arg.name, value=value)
        return specs

    def _spec(self, node: object) -> InputSpec | None:
        if not isinstance(node, fx.Node) or node.op != "placeholder":
            return None
        return self._by_name.get(node.name)

    def requires_grad(self, node: object) -> bool:
        """Whether the tensor behind a placeholder is trained."""
        value = self._state.get(self.target(node))
        return isinstance(value, Tensor) and value.requires_grad

    def _put(self, spec: InputSpec, target: str, value: nn.Parameter) -> None:
        if spec.kind is InputKind.PARAMETER:
            self._state[target] = value
        elif target in self._state:
            self._state[target] = value.data
        else:
            self._constants[target] = value.data

    def _free_target(self, wanted: str) -> str:
        taken = {spec.target for spec in self._inputs}
        scope, _, leaf = wanted.rpartition(".")
        while scope in taken:  # the user's own tensor, in which nothing else can be stored
            scope += "_"
        wanted = f"{scope}.{leaf}" if scope else leaf
        names = (wanted, *(f"{wanted}_{index}" for index in range(1, len(taken) + 2)))
        return next(name for name in names if name not in taken)


def _find_memory(value: Any) -> int | None:
    """Where a tensor lies, the same for all views of it; None where that cannot be asked."""
    if type(value) not in (Tensor, nn.Parameter) or value.layout != torch.strided:
        return None
    return value.untyped_storage().data_ptr() or None


def _find_fake_mode(node: fx.Node) -> Any:
    """The mode of the tensors without data that stand for the values of a graph."""
    while getattr(node.meta.get("val"), "fake_mode", None) is None and node.op != "output":
        node = node.next
    return getattr(node.meta.get("val"), "fake_mode", None)


def read_argument(node: fx.Node, name: str, default: Any = None) -> Any:
    """Argument `name` of an aten call, whether passed in order, by name, or by its default."""
    schema = _schema(node)
    for index, argument in enumerate(schema.arguments):
        if argument.name == name:
            if index < len(node.args):
                return node.args[index]
            return node.kwargs.get(name, argument.default_value)
    return default


def _write_argument(node: fx.Node, name: str, value: fx.Node) -> None:
    names = [argument.name for argument in _schema(node).arguments]
    index = names.index(name)
    if index < len(node.args):
        node.update_arg(index, value)
    elif index == len(node.args) and name not in node.kwargs:
        node.args = (*node.args, value)
    else:
        node.update_kwarg(name, value)


def _schema(node: fx.Node) -> Any:
    return node.target._schema  # type: ignore[union-attr]
