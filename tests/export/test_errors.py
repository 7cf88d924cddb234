"""The tree in the docstring is the tree in the code, with its exit codes."""

import inspect
import pickle
import re

import pytest

from export import errors

CLASSES = {
    name: value
    for name, value in vars(errors).items()
    if inspect.isclass(value) and issubclass(value, Exception)
}


def drawn() -> dict[str, tuple[str | None, int | None]]:
    """Parent and exit code of every class, as the docstring draws them."""
    found: dict[str, tuple[str | None, int | None]] = {}
    above: list[tuple[int, str]] = []
    for line in str(errors.__doc__).splitlines():
        match = re.match(r"[ │├└─]*(\w+Error)\b", line)
        if match is None:
            continue
        column, name = match.start(1), match.group(1)
        above = [entry for entry in above if entry[0] < column]
        code = re.search(r"exit (\d)", line)
        found[name] = (above[-1][1] if above else None, int(code[1]) if code else None)
        above.append((column, name))
    return found


def test_every_error_is_drawn_under_its_parent() -> None:
    tree = drawn()
    assert tree.keys() == CLASSES.keys()
    for name, (parent, _) in tree.items():
        base = CLASSES[name].__base__
        assert base.__name__ == (parent or "Exception")


@pytest.mark.parametrize("name", CLASSES)
def test_exit_code_is_the_one_drawn(name: str) -> None:
    tree = drawn()
    code, at = None, name
    while code is None and at is not None:
        parent, code = tree[at]
        at = parent
    assert CLASSES[name].exit_code == (1 if code is None else code)


@pytest.mark.parametrize("name", CLASSES)
def test_every_error_is_documented_and_crosses_processes(name: str) -> None:
    assert CLASSES[name].__doc__
    back = pickle.loads(pickle.dumps(CLASSES[name]("what, where and the fix")))
    assert type(back) is CLASSES[name]
    assert str(back) == "what, where and the fix"


def test_a_remedy_crosses_processes_with_its_error() -> None:
    remedy = errors.Remedy("Add:", (("--trust", "nets"),), 'trust=("nets",)')
    back = pickle.loads(pickle.dumps(errors.TrustError("x is not trusted.", remedy)))
    assert (back.message, back.remedy) == ("x is not trusted.", remedy)
    assert str(back) == 'x is not trusted. Add: trust=("nets",)'
