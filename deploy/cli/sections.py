"""Options of the commands in sections, as the help lists them, and switches with their opposite."""

from collections.abc import Callable
from typing import Any

import click

Decorator = Callable[..., Any]


class SectionOption(click.Option):
    """An option with the title of its section; of a switch with ``--no-`` the help is one word."""

    section = "Options"

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """``--[no-]name`` in place of ``--name / --no-name``."""
        record = super().get_help_record(ctx)
        if record is None or len(self.opts) != 1 or len(self.secondary_opts) != 1:
            return record
        if self.secondary_opts[0] != f"--no-{self.opts[0][2:]}":
            return record
        return f"--[no-]{self.opts[0][2:]}", record[1]


class SectionedCommand(click.Command):
    """A command whose help has a paragraph for every section, in the order of its options."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Options without a section come first."""
        sections: dict[str, list[tuple[str, str]]] = {SectionOption.section: []}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if record is not None:
                title = param.section if isinstance(param, SectionOption) else SectionOption.section
                sections.setdefault(title, []).append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


def option(*names: str, **settings: Any) -> Decorator:
    """`click.option` for an option that can stand in a section."""
    return click.option(*names, cls=SectionOption, **settings)


def switch(name: str, *opposite: str, help: str) -> Decorator:
    """A switch that the command line can turn off as well, where a file has turned it on.

    Args:
        name: of the switch.
        opposite: that turns it off; without one, ``--no-`` and the name.
    """
    (off,) = opposite or (f"--no-{name[2:]}",)
    return option(f"{name}/{off}", default=None, help=help)


def shared(*decorators: Decorator) -> Decorator:
    """Several options as one decorator, in the order of the help."""

    def decorate(function: Any) -> Any:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


def section(title: str, *decorators: Decorator) -> Decorator:
    """Several options as one decorator, under a title of their own in the help."""

    def decorate(function: Any) -> Any:
        before = list(_params(function))
        function = shared(*decorators)(function)
        for param in _params(function):
            if isinstance(param, SectionOption) and param not in before:
                param.section = title
        return function

    return decorate


def _params(function: Any) -> list[click.Parameter]:
    """Those that decorators have left at a function, where click makes the command of them."""
    found: list[click.Parameter] = getattr(function, "__click_params__", [])
    return found
