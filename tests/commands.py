"""Are the `casam` commands of a page ones that casam knows? Looked at, not run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from functools import lru_cache

import click
import typer

from scenarios.commands.cli import app

PLACEHOLDER = re.compile(r"[A-Z][A-Z0-9_]*")
"""What a reader puts something in the place of; also in a number's or a choice's place."""

ENDS = ("&&", "||", "|", ";", "&", "(", ")", "$(")


def casam_commands(text: str) -> Iterator[list[str]]:
    """Arguments of every `casam` in a block of shell commands; here documents are passed over."""
    for line in _logical_lines(text):
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        command: list[str] = []
        for token in [*lexer, ";"]:
            if token in ENDS:
                yield from _arguments(command)
                command = []
            else:
                command.append(token)


def _logical_lines(text: str) -> Iterator[str]:
    end: str | None = None
    for line in re.sub(r"\\\n", " ", text).splitlines():
        if end is not None:
            end = None if line == end else end
            continue
        if opening := re.search(r"<<-?\s*['\"]?(\w+)", line):
            end = opening[1]
        yield line


def _arguments(command: Sequence[str]) -> Iterator[list[str]]:
    words = list(command)
    while words and re.fullmatch(r"\w+=.*", words[0]):
        words.pop(0)
    if words and words[0].rsplit("/", 1)[-1] == "casam":
        redirected = next((i for i, word in enumerate(words) if word and set(word) <= set("<>")), len(words))
        yield words[1:redirected]


@lru_cache(maxsize=1)
def whole_command() -> click.Command:
    """`casam` with all below it."""
    return typer.main.get_command(app)


def fault_of(arguments: Sequence[str], *, whole: bool = True) -> str | None:
    """What casam would say against these arguments; None where nothing. whole: they are all there are.

    `...` stands for arguments that are left out, `[...]` around an argument says that it may be.
    """
    words = [word.strip("[]") for word in arguments]
    if "..." in words:
        words, whole = [word for word in words if word != "..."], False
    command = whole_command()
    context = click.Context(command, info_name="casam")
    while isinstance(command, click.Group):
        if not words or words[0].startswith("-"):
            break
        name = words.pop(0)
        found = command.get_command(context, name)
        if found is None:
            return f"no command {name!r} in {context.command_path}"
        command, context = found, click.Context(found, info_name=name, parent=context)
    if isinstance(command, click.Group) and whole and not words and not command.invoke_without_command:
        return f"{context.command_path} needs a command"
    try:
        given, left, _ = command.make_parser(context).parse_args(words)
    except click.BadOptionUsage as error:  # an option without its value
        return f"{context.command_path}: {error.format_message()}" if whole else None
    except click.UsageError as error:
        return f"{context.command_path}: {error.format_message()}"
    if left:
        return f"{context.command_path}: unexpected {' '.join(left)}"
    # A sentence may name a command alone; one that gives a required option is to be typed as it stands.
    required = {p.name for p in command.params if p.required and isinstance(p, click.Option)}
    whole = whole or any(given.get(name or "") for name in required)
    for parameter in command.params:
        value = given.get(parameter.name or "")
        values = value if isinstance(value, list | tuple) else [value]
        texts = [item for item in values if isinstance(item, str)]
        if whole and parameter.required and not texts:
            return f"{context.command_path}: {parameter.name} is missing"
        for text in texts:
            try:
                if not PLACEHOLDER.fullmatch(text):
                    parameter.type.convert(text, parameter, context)
            except click.UsageError as error:
                return f"{context.command_path}: {error.format_message()}"
    return None
