"""A further part of a report: what capture, extraction and search found."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, eq=False)
class Section:
    """A title, plain text, and optionally a figure, a table and numbers for the JSON file.

    Attributes:
        title: heading.
        text: paragraphs of plain text, separated by empty lines; escaped.
        figure: a plotly figure, or None.
        columns: header of a table, or empty.
        rows: cells of the table; escaped.
        data: numbers to keep in the JSON report.
        html: markup made by steerkit itself (a direction's card); put in as it is, so never
            text of a user or a model.
    """

    title: str
    text: str = ""
    figure: Any = None
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    html: str = ""

    @property
    def paragraphs(self) -> tuple[str, ...]:
        """The text's paragraphs."""
        return tuple(p.strip() for p in self.text.split("\n\n") if p.strip())

    def to_json(self) -> dict[str, Any]:
        """Everything but the figure and the markup."""
        return {
            "title": self.title,
            "text": self.text,
            "columns": list(self.columns),
            "rows": [list(row) for row in self.rows],
            "data": dict(self.data),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Section":
        """A section without its figure and markup."""
        return cls(
            data["title"],
            data["text"],
            columns=tuple(data["columns"]),
            rows=tuple(tuple(row) for row in data["rows"]),
            data=data["data"],
        )
