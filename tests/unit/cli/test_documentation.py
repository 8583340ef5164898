"""Every ``ssray`` command and every job that the documentation tells is one that can be typed, and
every file that it names is there.

Commands are taken from the Markdown pages, from ``cluster.yaml`` and from the docstrings of the
package and the jobs, and parsed by click as if they were typed; nothing is run. In running text a
command's name alone is a mention of it; with an option it has to be whole, and so has everything
in a block of code. ``...`` stands for what is left out.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).parents[3]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
MODULES = [path for folder in ("ssray", "jobs") for path in sorted((ROOT / folder).rglob("*.py"))]
SETTINGS = [ROOT / name for name in ("cluster.yaml", "constraints.txt", "mkdocs.yml")]
PLACE = re.compile(
    r"(?<![\w./-])(?P<file>(?:ssray|jobs|benchmarks|tests|docs)(?:/[\w-]+)+\.(?:py|md|jsonl?|png))"
    r"(?::(?P<name>[A-Za-z_][\w.]*\w))?"
)
"""A file below the root and perhaps what is in it, as ``ssray/config.py:Recipe``."""
ELLIPSIS = "..."
_ANY = re.compile("")
_IN_DOCSTRINGS = re.compile(r"ray job submit |python (jobs/|-m ssray)|    +(\$ )?ssray [a-z-]+ --")
_ENDS_A_COMMAND = {"|", "||", "&&", ";", "&", ">", "2>"}


@dataclass(frozen=True)
class Told:
    """A command that some text tells.

    Attributes:
        place: file and line.
        text: on one line, from the program's name on.
        mention: whether it stands in running text, where a name alone needs no options.
    """

    place: str
    text: str
    mention: bool


def commands_in_page(text: str, name: str) -> Iterator[Told]:
    """Commands of a Markdown page: lines of its code blocks, and code in running text."""
    fenced = False
    prose = []
    block: list[tuple[int, str]] = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
            yield from _lines_of_block(block, name)
            block = []
        elif fenced:
            block.append((number, line))
        prose.append("" if fenced or line.lstrip().startswith("```") else line)
    yield from _literals("\n".join(prose), name, 1)


def commands_in_comments(text: str, name: str) -> Iterator[Told]:
    """Commands of a YAML file's comments."""
    lines = [(n, line.lstrip("# ")) for n, line in enumerate(text.splitlines(), 1) if "#" in line]
    yield from _lines_of_block(lines, name)


def commands_in_module(source: str, name: str) -> Iterator[Told]:
    """Commands of a module's docstrings: of itself, of what is in it, and below assignments."""
    for node in ast.walk(ast.parse(source)):
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.Expr) or not isinstance(child.value, ast.Constant):
                continue
            if isinstance(child.value.value, str):
                text = inspect.cleandoc(child.value.value)
                lines = list(enumerate(text.splitlines(), child.lineno))
                yield from _lines_of_block(lines, name, _IN_DOCSTRINGS)
                yield from _literals(text, name, child.lineno)


def _lines_of_block(
    lines: list[tuple[int, str]], name: str, begin: re.Pattern[str] = _ANY
) -> Iterator[Told]:
    """Lines that begin with a command, those that a backslash continues being one."""
    first, words = 0, list[str]()
    for number, line in lines:
        if not words and not begin.match(line):
            continue
        first = first if words else number
        words.append(line.strip().removesuffix("\\").strip())
        if line.endswith("\\"):
            continue
        told = _command(" ".join(" ".join(words).split()).removeprefix("$ "))
        if told:
            yield Told(f"{name}:{first}", told, mention=False)
        words = []


def _literals(text: str, name: str, first: int) -> Iterator[Told]:
    for literal in re.finditer(r"(?<!`)(`{1,2})(?!`)(.+?)(?<!`)\1(?!`)", text, re.DOTALL):
        told = _command(" ".join(literal[2].split()))
        if told:
            line = first + text.count("\n", 0, literal.start())
            yield Told(f"{name}:{line}", told, mention=True)


def _command(text: str) -> str | None:
    """What of a line is ours: of ``ray job submit`` the job; None if nothing is."""
    if re.match(r"ray job submit\b", text):
        text = text.partition(" -- ")[2]
    text = re.sub(r"^(\S*/)?(ssray(?= |$)|python -m ssray(?= |$))", "ssray", text)
    ours = re.match(r"ssray( [a-z-]|$)|python jobs/", text)
    return text if ours else None


def complaint(told: Told) -> str | None:
    """What click says of a command; None if it can be typed."""
    program, *arguments = shlex.split(told.text, comments=True)
    arguments = arguments[
        : next((n for n, word in enumerate(arguments) if word in _ENDS_A_COMMAND), None)
    ]
    root: click.Command = _ssray()
    if program != "ssray":
        job, *arguments = arguments
        if not (ROOT / job).exists():
            return f"no such job: {job}"
        program, root = job, _job(ROOT / job)
    shortened = ELLIPSIS in arguments
    if arguments and arguments[-1] == ELLIPSIS and not arguments[-2:][0].startswith("-"):
        arguments.pop()
    try:
        _parse(root, program, arguments, told.mention)
    except click.exceptions.Exit:  # --help and --version
        return None
    except click.MissingParameter as error:
        return None if shortened else error.format_message()
    except click.ClickException as error:
        return error.format_message()
    return None


def _parse(
    command: click.Command,
    name: str,
    arguments: list[str],
    mention: bool,
    parent: click.Context | None = None,
) -> None:
    if not arguments and (mention or isinstance(command, click.Group)):
        return
    context = command.make_context(name, list(arguments), parent=parent)
    left = [*context._protected_args, *context.args]
    if isinstance(command, click.Group) and (left or not command.invoke_without_command):
        inner, chosen, rest = command.resolve_command(context, left)
        assert inner is not None and chosen is not None
        _parse(chosen, inner, rest, mention, context)


def _ssray() -> click.Group:
    from ssray.cli.main import cli

    return cli


def _job(path: Path) -> click.Command:
    """What a job's last line runs."""
    [name] = [
        argument.id
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "run"
        for argument in node.args
        if isinstance(argument, ast.Name)
    ]
    spec = importlib.util.spec_from_file_location(f"job_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    command = getattr(module, name)
    assert isinstance(command, click.Command)
    return command


def _all_commands() -> list[Told]:
    found: list[Told] = []
    for page in PAGES:
        found += commands_in_page(page.read_text(), str(page.relative_to(ROOT)))
    for module in MODULES:
        found += commands_in_module(module.read_text(), str(module.relative_to(ROOT)))
    found += commands_in_comments((ROOT / "cluster.yaml").read_text(), "cluster.yaml")
    return found


@pytest.mark.parametrize("told", _all_commands(), ids=lambda told: f"{told.place}")
def test_what_is_told_can_be_typed(told: Told) -> None:
    problem = complaint(told)
    assert problem is None, f"{told.place}: {told.text}\n{problem}"


def _missing(text: str) -> list[str]:
    """The places that a text names and that are not there."""
    return [found[0] for found in PLACE.finditer(text) if not _is_there(found)]


def _is_there(place: re.Match[str]) -> bool:
    file = ROOT / place["file"]
    if not file.exists() or place["name"] is None:
        return file.exists()
    names = place["name"].split(".")
    body: list[ast.stmt] = ast.parse(file.read_text()).body
    for name in names:
        found = [
            node
            for node in body
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name
        ]
        if not found:
            return False
        body = found[0].body
    return True


@pytest.mark.parametrize(
    "path", [*PAGES, *SETTINGS, *MODULES], ids=lambda path: str(path.relative_to(ROOT))
)
def test_what_is_named_is_there(path: Path) -> None:
    missing = _missing(path.read_text())
    assert not missing, f"{path.relative_to(ROOT)} names what is not there: {', '.join(missing)}"


def test_a_name_that_moved_is_found() -> None:
    assert _missing("`ssray/config.py:Recipe`, ssray/scoring/scorer.py:Scorer, jobs/*.py") == []
    assert _missing("See ssray/recipes.py and `ssray/config.py:Recipt`.") == [
        "ssray/recipes.py",
        "ssray/config.py:Recipt",
    ]
    assert _missing("ssray/scoring/scorer.py:Scorer.jugde") == [
        "ssray/scoring/scorer.py:Scorer.jugde"
    ]


def test_commands_are_found_wherever_they_stand() -> None:
    page = (
        "Say `ssray evaluate`, or ``ssray\ntrain --seed 1``; not `ssray/config.py`.\n"
        "```console\n$ ssray score --images A \\\n    --out B   # there\nssray/  a folder\n"
        "$ . .venv/bin/activate\n$ .venv/bin/ssray demo\n```\n"
        "```\nray job submit --working-dir . -- python jobs/train_all.py --data R\n```\n"
    )
    found = [(each.place, each.text, each.mention) for each in commands_in_page(page, "a.md")]
    assert found == [
        ("a.md:4", "ssray score --images A --out B # there", False),
        ("a.md:8", "ssray demo", False),
        ("a.md:11", "python jobs/train_all.py --data R", False),
        ("a.md:1", "ssray evaluate", True),
        ("a.md:1", "ssray train --seed 1", True),
    ]


def test_commands_are_found_in_docstrings() -> None:
    source = (
        '"""First.\n\nray job submit -- python jobs/a.py \\\\\n    --data R\n"""\n'
        'def f():\n    """Or ``ssray train --data R``.\n\n        ssray score --images A\n\n'
        '    or so.\n    """\n'
        'X = 1\n"""As ``ssray demo`` does; ssray itself is no command."""\n'
    )
    found = [(each.place, each.text) for each in commands_in_module(source, "a.py")]
    assert sorted(found) == [
        ("a.py:14", "ssray demo"),
        ("a.py:3", "python jobs/a.py --data R"),
        ("a.py:7", "ssray train --data R"),
        ("a.py:9", "ssray score --images A"),
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("ssray evaluate --data R --models S --out O --categry grid", "No such option"),
        ("ssray evaluate --data R --models S", "Missing option '--out'"),
        ("ssray evaluate --data R --models S --out O --device tpu", "is not one of"),
        ("ssray evaluate --data R --models S --out O --seed", "No such option"),
        ("ssray score --images I --models S --category C --out", "requires an argument"),
        ("ssray evalute --data R", "No such command"),
        ("ssray models pubish --models S", "No such command"),
        ("ssray demo --seed one", "is not a valid integer"),
        ("python jobs/evaluate_all.py --data R --models S --categories all", "No such option"),
        ("python jobs/no_such.py --data R", "no such job"),
    ],
)
def test_what_cannot_be_typed_is_found(text: str, problem: str) -> None:
    for mention in (False, True):
        found = complaint(Told("a.md:1", text, mention))
        assert found is not None and problem in found


def test_a_name_alone_is_a_mention_in_running_text_only() -> None:
    assert complaint(Told("a.md:1", "ssray evaluate", mention=True)) is None
    missing = complaint(Told("a.md:1", "ssray evaluate", mention=False))
    assert missing is not None and "Missing option" in missing


def test_what_is_left_out_is_not_missed_and_the_rest_is_read() -> None:
    text = "ssray evaluate --data R {} ..."
    assert complaint(Told("a.md:1", text.format("--device cpu"), mention=False)) is None
    unknown = complaint(Told("a.md:1", text.format("--nothing"), mention=False))
    assert unknown is not None and "No such option" in unknown


def test_nothing_is_run(tmp_path: Path) -> None:
    assert complaint(Told("a.md:1", f"ssray demo-data --out {tmp_path / 'x'}", False)) is None
    assert not (tmp_path / "x").exists()
