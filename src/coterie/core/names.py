"""Names of files, classes and runs that strangers chose, made safe to show."""

from __future__ import annotations

_MARKDOWN = str.maketrans({mark: f"\\{mark}" for mark in "\\`*_[]|~$"} | {"<": "&lt;", "&": "&amp;"})


def printable(name: str) -> str:
    """Write odd characters as escapes: those that drive a terminal, turn the direction of text or begin a line.

    Example:
        >>> printable("cat"), printable("c" + chr(7)) == "c" + chr(92) + "x07"
        ('cat', True)
    """
    return name if name.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)


def in_markdown(name: str) -> str:
    r"""Write a name so that Markdown shows it as it is: no mark-up, no HTML, no end of a table's cell.

    Example:
        >>> in_markdown("a|b <b>") == r"a\|b &lt;b>"
        True
    """
    return printable(name).translate(_MARKDOWN)
