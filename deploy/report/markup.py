"""HTML elements as strings that cannot forget to escape: only `Markup` goes in unescaped."""

import html

from deploy.report.wording import UNKNOWN, clean

_VOID = frozenset({"meta", "line", "path", "rect"})


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def element(tag: str, *children: object, **attributes: object) -> Markup:
    """``<tag attributes>children</tag>``; children and values are cleaned and escaped.

    In the names of attributes ``_`` stands for ``-`` and a trailing ``_`` is dropped (``class_``).
    An attribute that is None is left out; one that is True has no value.
    """
    written = "".join(_attribute(name, value) for name, value in attributes.items())
    if tag in _VOID:
        return Markup(f"<{tag}{written}>" if tag == "meta" else f"<{tag}{written}/>")
    return Markup(f"<{tag}{written}>{join(*children)}</{tag}>")


def join(*children: object) -> Markup:
    """The children one after the other; None is nothing."""
    return Markup("".join(_escape(child) for child in children if child is not None))


def table(
    heads: tuple[str, ...], rows: list[list[object]], *, texts: int = 1, sentences: int = 0
) -> Markup:
    """A table whose first `texts` columns are names, the last `sentences` prose, others numbers.

    Each cell carries its heading in ``data-label``: on a narrow screen rows become cards.
    """
    kinds = _kinds(heads, texts, sentences)
    head = element(
        "tr", *(element("th", h, scope="col", class_=k) for h, k in zip(heads, kinds, strict=True))
    )
    body = table_body(heads, rows, texts=texts, sentences=sentences)
    return element("table", element("thead", head), body)


def table_body(
    heads: tuple[str, ...], rows: list[list[object]], *, texts: int = 1, sentences: int = 0
) -> Markup:
    """The ``tbody`` of `table`; the first cell of a row heads it."""
    written, kinds = [], _kinds(heads, texts, sentences)
    for row in rows:
        first, *rest = row
        cells = [element("th", first, scope="row", class_="text")]
        for cell, head, kind in zip(rest, heads[1:], kinds[1:], strict=True):
            shown = element("span", "–", class_="none") if cell in (None, UNKNOWN) else cell
            cells.append(element("td", shown, class_=kind, data_label=head))
        written.append(element("tr", *cells))
    return element("tbody", *written)


def _kinds(heads: tuple[str, ...], texts: int, sentences: int) -> list[str]:
    """Class of the cells of every column."""
    numbers = len(heads) - texts - sentences
    return ["text"] * texts + ["number"] * numbers + ["sentence"] * sentences


def facts(*pairs: tuple[str, object]) -> Markup:
    """A list of terms and values; what is not known is left out."""
    known = [(term, value) for term, value in pairs if value not in (None, "", UNKNOWN)]
    return element(
        "dl",
        *(element("div", element("dt", term), element("dd", value)) for term, value in known),
    )


def _escape(child: object) -> str:
    return child if isinstance(child, Markup) else html.escape(_clean_text(child))


def _clean_text(child: object) -> str:
    """`clean`, with a space at either end kept: children are joined without one."""
    text = str(child)
    if not text.strip():
        return " " if text else ""
    return " " * text[0].isspace() + clean(text) + " " * text[-1].isspace()


def _attribute(name: str, value: object) -> str:
    name = name.rstrip("_").replace("_", "-")
    if value is None:
        return ""
    return f" {name}" if value is True else f' {name}="{html.escape(clean(value))}"'
