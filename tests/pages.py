"""Reports' pages as a reader sees them."""

from html.parser import HTMLParser
from pathlib import Path
from typing import Any


class Page(HTMLParser):
    """The page's tables as lists of cells, its tags, its images' attributes and its text."""

    VOID = ("meta", "img", "br", "wbr")

    def __init__(self, path: Path):
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.tags: set[str] = set()
        self.images: list[dict[str, Any]] = []
        self.text, self._open = "", [""]
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self._open == [""]

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self._open += [tag] if tag not in self.VOID else []
        self.images += [dict(attrs)] if tag == "img" else []
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self._open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data
