"""Where in the user's model something happens: the path of a module, and the line of source."""

import linecache
import os
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType, TracebackType

import torch
from torch import nn

from export.capture.image_model import find_user_module

Line = tuple[FrameType, int]
"""A frame, and the number of the line that it is at."""

_LENGTH = 100
FOREIGN = tuple(
    f"{folder}{os.sep}" for folder in (Path(torch.__file__).parent, Path(__file__).parents[1])
)
"""Folders whose code is not the user's: torch's and this package's."""


def describe_place(module: nn.Module, lines: Iterable[Line]) -> str:
    """``at 'head.1' (net.py, line 12: x = F.dropout(x))`` with a space before it; or ``""``.

    Args:
        module: the user's, or what stands around it.
        lines: the innermost first. Named are the innermost of the user's own submodules that has a
            method among them, by the user's own path, and the innermost line that is neither
            torch's nor of this package.
    """
    paths = {id(child): path for path, child in find_user_module(module).named_modules()}
    path = line = ""
    for frame, number in lines:
        path = path or paths.get(id(frame.f_locals.get("self")), "")
        line = line or _describe_line(frame, number)
    return f"{f' at {path!r}' if path else ''}{f' ({line})' if line else ''}"


def list_failed_lines(traceback: TracebackType | None) -> list[Line]:
    """The lines that an exception came through, the innermost first."""
    found = []
    while traceback is not None:
        found.append((traceback.tb_frame, traceback.tb_lineno))
        traceback = traceback.tb_next
    return found[::-1]


def list_running_lines(frame: FrameType | None, end: object) -> Iterator[Line]:
    """The lines that run now, from that of `frame` out to the call of the function `end`."""
    last = getattr(end, "__code__", None)
    while frame is not None and frame.f_code is not last:
        yield frame, frame.f_lineno
        frame = frame.f_back


def is_of_user(frame: FrameType) -> bool:
    """Whether it runs code that is neither torch's nor of this package."""
    return not frame.f_code.co_filename.startswith(FOREIGN)


def _describe_line(frame: FrameType, number: int) -> str:
    name = frame.f_code.co_filename
    if not is_of_user(frame):
        return ""
    source = textwrap.shorten(linecache.getline(name, number).strip().rstrip(":"), _LENGTH)
    if name.startswith("<") and not source:  # of a file there is none; a notebook keeps its lines
        return ""
    return f"{Path(name).name}, line {number}{f': {source}' if source else ''}"
