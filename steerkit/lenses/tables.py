"""The same rows for a terminal and for a notebook."""

import html
from collections.abc import Sequence


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table; bars inside cells are escaped."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def html_table(title: str, summary: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A titled HTML table under a few lines of text."""

    def line(tag: str, cells: Sequence[str]) -> str:
        inner = (f"<{tag} style='text-align:left'>{html.escape(c)}</{tag}>" for c in cells)
        return f"<tr>{''.join(inner)}</tr>"

    text = "<br>".join(html.escape(part) for part in summary.splitlines())
    body = "".join(line("td", row) for row in rows)
    return f"<b>{html.escape(title)}</b><br>{text}<table>{line('th', head)}{body}</table>"
