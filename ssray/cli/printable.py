"""What a terminal is given of names and errors that come from data."""

from __future__ import annotations

import click


def printable(text: str) -> str:
    r"""Writes out what would not show as itself: whoever names a file must not move the cursor,
    colour, erase or reorder what else is printed, nor begin a line of his own.

    >>> print(printable("a\x1b[2Jb\rc\u202egnp.exe"))
    a\x1b[2Jb\rc\u202egnp.exe
    """
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def say(line: str, err: bool = False) -> None:
    """Prints a line without colours, as scripts read it."""
    click.echo(printable(line), err=err)
