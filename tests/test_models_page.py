"""Every example of docs/models.md does what the page says of it."""

import inspect
import re
import shlex
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from deploy.inputs.batch_axis import warn_of_static
from deploy.inputs.declared import parse_input
from export.capture.ladder import Exported, export_model
from export.capture.remedies import warn_of_one_way
from export.capture.signature import describe_call
from export.errors import DeployError

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
EXAMPLES = [
    (source, kind, flags, said, quoted[1])
    for section in PAGE.read_text(encoding="utf-8").split("\n## ")[1:]
    if (quoted := re.search(r"^> (.*)$", section, re.MULTILINE))
    for source, kind, flags, said in re.findall(
        r"```python\n(# (before|after): (--input .*?)((?: is| has) [a-z ]+)?\n.*?)```",
        section,
        re.DOTALL,
    )
]
"""Source, what it is, flags, what it does, and the message that its section quotes."""
_WORDS = {"It computes in bfloat16, which ONNX Runtime's kernels for CPUs hardly know": "complex"}
"""Of an example that shows the other half of its section."""
SAID = {" is traced along one way", " has one batch", " is refused", ""}


def draw(shape: tuple[int, ...], high: int | None) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    sizes = (2, *shape[1:])
    if high is None:
        return torch.randn(sizes, generator=generator)
    return torch.randint(high, sizes, generator=generator)


def build(source: str, flags: str, folder: Path) -> Exported:
    scope = {"torch": torch, "nn": nn, "F": functional}
    exec(compile(source, "net.py", "exec"), scope)
    torch.manual_seed(0)
    net = scope["Net"]().eval()
    given = [parse_input(text) for text in shlex.split(flags)[1::2]]
    own = list(inspect.signature(net.forward).parameters)
    names = [one.name or own[number] for number, one in enumerate(given)]
    feeds = {name: draw(one.shape, one.high) for name, one in zip(names, given, strict=True)}
    signature = describe_call(net, feeds, keyword=False, dynamic_batch=True)
    return export_model(net, feeds, folder, signature=signature, static_batch=False, opset=20)


def test_the_page_has_as_many_examples_as_it_had() -> None:
    assert [kind for _, kind, *_ in EXAMPLES] == ["before", "after"] * 6
    assert {said for *_, said, _ in EXAMPLES} == SAID


@pytest.mark.parametrize(("source", "kind", "flags", "said", "quoted"), EXAMPLES)
def test_each_does_what_is_said_of_it(
    source: str, kind: str, flags: str, said: str, quoted: str, tmp_path: Path
) -> None:
    if said == " is refused":
        with pytest.raises(DeployError, match=_WORDS.get(quoted, re.escape(quoted))):
            build(source, flags, tmp_path)
        return
    exported = build(source, flags, tmp_path)
    if kind == "after":
        assert exported.rung in ("dynamo", "dynamo-strict")
        assert exported.dynamic_batch
    elif said == " has one batch":
        assert not exported.dynamic_batch
        place = next(attempt.place for attempt in exported.attempts if attempt.batch)
        number = re.fullmatch(r" \(net\.py, line (\d+)\)", place)
        assert number is not None
        line = source.splitlines()[int(number[1]) - 1].strip()
        assert warn_of_static(1, f"{place[:-1]}: {line})").startswith(quoted)
    else:
        assert exported.rung.startswith("torchscript")
        refusals = [(attempt.error, attempt.place) for attempt in exported.attempts]
        warning = warn_of_one_way(exported.rung, refusals)
        assert warning is not None
        assert "net.py, line 8" in warning
        assert quoted.rpartition(") ")[2] in warning
