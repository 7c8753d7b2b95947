#!/usr/bin/env python3
"""Write the tables of flags and of plug-ins into the pages of docs/, from the parsers and the plug-ins' docstrings.

    python docs/tables.py            # `make docs`

A page contains a pair of comments, and the table between them:

    <!-- flags: train.py: loss, batches -->          groups of a command's flags
    <!-- flags: train.py: all except loss -->        the other groups
    <!-- flags: visualize.py report -->              all flags of a command or of a sub-command
    <!-- plug-ins: losses -->                        the files of a folder, each with the first line of its docstring
    <!-- end -->
"""
import argparse
import ast
import importlib
import pathlib
import re
import sys
from unittest import mock

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

MARKED = re.compile(r'(<!-- (flags|plug-ins): ([^>]*?) -->\n).*?(<!-- end -->)', re.DOTALL)


class _ParserReached(Exception):
    """Raised by the parser of a command in place of parsing."""


def parser_of(command):
    """Return the argparse parser of a command, e.g. 'train.py' or 'visualize.py report'."""
    name, _, subcommand = command.partition(' ')
    parsers = []

    def stop(parser, *_):
        parsers.append(parser)
        raise _ParserReached

    with mock.patch.object(argparse.ArgumentParser, 'parse_known_args', stop), mock.patch.object(sys, 'argv', [name]):
        try:
            importlib.import_module(name.removesuffix('.py')).main()
        except _ParserReached:
            pass
    subcommands = subcommands_of(parsers[0])
    if subcommand and subcommand not in subcommands:
        raise ValueError(f'{name} has no command {subcommand}')
    return subcommands[subcommand] if subcommand else parsers[0]


def subcommands_of(parser):
    """Return the parsers of a parser's sub-commands: {name: parser}."""
    found = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return found[0] if found else {}


def groups_of(parser):
    """Return the arguments of a parser by the title of their group, without --help: {title: list of argparse actions}."""
    groups = {group.title: [action for action in group._group_actions if action.dest != 'help'] for group in
              parser._action_groups}
    return {title: actions for title, actions in groups.items() if actions}


def flags_table(selection):
    """Return the table of the flags that a marker selects."""
    command, _, titles = selection.partition(': ')
    parser = parser_of(command)
    groups = groups_of(parser)
    is_except, titles = titles.startswith('all except '), titles.removeprefix('all except ')
    selected = [title for title in titles.split(', ') if title]
    if unknown := set(selected) - set(groups):
        raise ValueError(f'{command} has no group of flags {", ".join(unknown)}; it has {", ".join(groups)}')
    shown = [title for title in groups if (title in selected) != is_except] if selected else list(groups)
    rows = [f'| `{command}` | meaning |', '| --- | --- |']
    for title in shown:
        if len(shown) > 1:
            rows.append(f'| **{title}** | |')
        rows += [f'| {_cell(f"`{usage(parser, action)}`")} | {_cell(help_of(parser, action))} |' for action in groups[title]]
    return rows


def usage(parser, action):
    """Return a flag with its values as `--help` shows it."""
    if action.nargs == 0 or not action.option_strings:
        return ', '.join(action.option_strings) or parser._get_formatter()._format_args(action, action.dest)
    values = parser._get_formatter()._format_args(action, action.dest.upper())
    return f'{", ".join(action.option_strings)} {re.sub("[{](.*)[}]", lambda match: match[1].replace(",", "|"), values)}'


def help_of(parser, action):
    """Return the help of a flag with its default filled in."""
    return ' '.join(parser._get_formatter()._expand_help(action).split()) if action.help else ''


def _cell(text):
    return text.replace('|', '\\|')


def plug_ins_table(folder):
    """Return the table of the plug-ins of a folder."""
    rows = [f'| `{folder}/` | content |', '| --- | --- |']
    for path in sorted((ROOT / folder).glob('[!_]*.py')):
        text = ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))) or ''
        summary = ' '.join(text.partition('\n\n')[0].split())
        rows.append(f'| [`{path.stem}`](../{folder}/{path.name}) | {_cell(summary)} |')
    return rows


def renewed(text):
    """Return the text of a page with all of its tables written again."""
    tables = {'flags': flags_table, 'plug-ins': plug_ins_table}
    return MARKED.sub(lambda match: f'{match[1]}\n' + '\n'.join(tables[match[2]](match[3])) + f'\n\n{match[4]}', text)


def pages():
    """Return the pages that may contain tables."""
    return [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]


def main():
    """Write all tables again."""
    for page in pages():
        text = page.read_text(encoding='utf-8')
        if (new := renewed(text)) != text:
            page.write_text(new, encoding='utf-8')
            print(f'{page.relative_to(ROOT)}: written again')


if __name__ == '__main__':
    main()
