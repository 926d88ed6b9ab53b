"""A strict reader of the pages escc writes: what a browser would quietly repair is an error here."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "br", "hr", "img", "input", "link"}
EMPTY_SVG = {"path"}
"""Elements of figures that escc closes at once (``<path .../>``)."""


@dataclass
class Table:
    """A table: the ``data-key`` of each column (or ""), and for each row the (text, data-v or None) cells."""

    keys: list[str] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    rows: list[list[tuple[str, str | None]]] = field(default_factory=list)

    def column(self, key: str) -> list[float]:
        """The numbers of a column: the exact ones where the text is rounded."""
        index = self.keys.index(key)
        return [float(exact or text.replace(",", "")) for text, exact in (row[index] for row in self.rows)]


class StrictPage(HTMLParser):
    """Parses a page; raises AssertionError for unbalanced tags, attributes given twice, ids given twice."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.tables: dict[str, Table] = {}
        self.texts: list[str] = []
        self.titles: list[str] = []
        self._table: Table | None = None
        self._exact: str | None = None
        self.feed(page)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, attrs)
        assert tag not in EMPTY_SVG, f"{tag} is not closed"
        if tag not in VOID:
            self.open.append(tag)
        values = dict(attrs)
        if tag == "table":
            self._table = self.tables[values["id"] or ""] = Table()
        elif tag == "th" and self._table is not None:
            self._table.keys.append(values.get("data-key") or "")
            self._table.heads.append("")
        elif tag == "tr" and self._table is not None and "tbody" in self.open:
            self._table.rows.append([])
        elif tag == "td" and self._table is not None:
            self._table.rows[-1].append(("", values.get("data-v")))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in EMPTY_SVG, f"<{tag}/> is no way to close {tag}"
        self._note(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> inside {self.open}"
        self.open.pop()
        if tag == "table":
            self._table = None

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if "title" in self.open and "svg" in self.open:
            self.titles.append(data)
        if self._table is None:
            return
        if "td" in self.open:
            text, exact = self._table.rows[-1][-1]
            self._table.rows[-1][-1] = text + data, exact
        elif "th" in self.open:
            self._table.heads[-1] += data

    def _note(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"{tag} has an attribute twice: {names}"
        self.tags.add(tag)
        self.attributes.update(names)
        for name, value in attrs:
            assert value is not None, f"{tag} {name} has no value"
            if name == "id":
                assert value not in self.ids, f"id {value} twice"
                self.ids.add(value)
            if name in ("href", "src", "xlink:href"):
                self.links.append(value)
