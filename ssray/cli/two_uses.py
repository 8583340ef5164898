"""A command that has two uses, each with options of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click
from click.core import ParameterSource


class TwoUses(click.Command):
    """A command with two sets of options, of which a call takes one; other options go with both.

    What is required is so within its set. A call that names no option of the second set is of the
    first.
    """

    def __init__(self, *arguments: Any, uses: Mapping[str, Sequence[str]], **settings: Any) -> None:
        """Makes the command.

        Args:
            arguments: as of ``click.Command``.
            uses: the names of each set's parameters, by what it is for.
            settings: as of ``click.Command``.
        """
        super().__init__(*arguments, **settings)
        self._sets = {
            title: [each for each in self.params if each.name in names]
            for title, names in uses.items()
        }
        first, second = self._sets.values()
        self._required = [each for each in (*first, *second) if each.required]
        for parameter in self._required:
            parameter.required = False

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parses the words of a call.

        Raises:
            click.UsageError: if options of both sets are given, or a required one is missing.
        """
        rest = super().parse_args(ctx, args)
        if ctx.resilient_parsing:
            return rest
        first, second = (
            [each for each in options if _is_given(ctx, each)] for options in self._sets.values()
        )
        if first and second:
            raise click.UsageError(
                f"{_flags(first)} don't go with {_flags(second)}. {self._ways()}", ctx
            )
        for parameter in list(self._sets.values())[bool(second)]:
            if parameter in self._required and not _is_given(ctx, parameter):
                raise click.MissingParameter(self._ways(), ctx=ctx, param=parameter)
        return rest

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the help of each set under its heading, and that of the others at the end."""
        in_sets = [each for options in self._sets.values() for each in options]
        others = [each for each in self.get_params(ctx) if each not in in_sets]
        for title, options in (*self._sets.items(), ("both", others)):
            with formatter.section(f"Options for {title}"):
                formatter.write_dl([line for each in options if (line := self._help(ctx, each))])

    def _help(self, ctx: click.Context, parameter: click.Parameter) -> tuple[str, str] | None:
        record = parameter.get_help_record(ctx)
        if record and parameter in self._required:
            return record[0], f"{record[1]}  [required]"
        return record

    def _ways(self) -> str:
        """Which options each use needs, in a sentence."""
        ways = (
            f"{_flags([each for each in options if each in self._required])} for {title}"
            for title, options in self._sets.items()
        )
        return f"Give {', or '.join(ways)}."


def _is_given(ctx: click.Context, parameter: click.Parameter) -> bool:
    assert parameter.name is not None
    return ctx.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE


def _flags(parameters: Sequence[click.Parameter]) -> str:
    return " and ".join(each.opts[0] for each in parameters)
