"""The commands, flags and links of README and docs: every block of commands runs, every flag, test and link exists.

A block below the comment `<!-- not run: REASON -->` does not run, but its flags are checked.
"""
import argparse
import functools
import re
import subprocess
import sys
import urllib.parse

import pytest

from _forked_python import forking_python
from _runs import Run
from conftest import ROOT
from tripletreid.experiment import train_flags

sys.path.insert(0, str(ROOT / 'docs'))

import tables  # noqa: E402

pytestmark = pytest.mark.long

DOCS = sorted((ROOT / 'docs').glob('*.md'))
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *DOCS]
# Training makes the experiment root, evaluation its embeddings, verification the threshold of the search. The others follow.
FIRST = ('training', 'evaluation', 'verification', 'search')
RUN_ELSEWHERE = ('your_own_images',)  # In test_your_own_images.py.
WITHOUT_COMMANDS = ('glossary',)
SHORTER = [('--train_iterations 300', '--train_iterations 2'), ('--train_iterations 100', '--train_iterations 1'),
           ('--checkpoint_frequency 50', '--checkpoint_frequency 1'), ('checkpoint-150', 'checkpoint-1'),
           ('--fpr 1e-4', '--fpr 1e-1')]
DATASET = 'python make_dataset.py digits digits --out digits\n'
SMALLER_DATASET = '''cd digits
for SUBSET in train query test; do
    awk 'NR % 6 == 1' digits_$SUBSET.csv > smaller && mv smaller digits_$SUBSET.csv
done
{ cut -d , -f 2 digits_*.csv; printf 'digits/%s.png\\n' 0000 0001 0030; } > kept
ls digits/*.png | grep -vxFf kept | xargs rm
cd ..
'''
COMMANDS = {path.name for path in ROOT.glob('*.py')} - {'loss.py'}
WITH_SUBCOMMANDS = {'make_dataset.py', 'visualize.py'}
FLAG = re.compile(r'(?<![-\w])--[a-z][a-z_0-9]+(?![-\w])')  # This project's flags have no dash inside.
FOREIGN_FLAGS = {'--protocol', '--nthreads', '--help', '--logdir',  # Flags of Dask, argparse and TensorBoard,
                 '--length_weight'}  # and of the example objective in docs/extending.md.
PYTHON = f"""#!/bin/sh
case "$1" in
*/* | -*) exec {sys.executable} "$@" ;;
*) exec python3 "$@" ;;
esac
"""


def blocks(page):
    """Return the blocks of commands of a page, in order: a list of (commands, whether they run)."""
    found = re.findall(r'^(<!-- not run: [^\n]+ -->\n)?```sh\n(.*?)^```', page.read_text(encoding='utf-8'),
                       re.DOTALL | re.MULTILINE)
    assert all(comment or '…' not in commands for comment, commands in found), f'{page}: a block with … cannot run'
    return [(commands, not comment) for comment, commands in found]


def names(pages):
    return [page.stem for page in pages]


@functools.lru_cache(None)
def flags_of(command, subcommand=None):
    """Return all flags in the help of a command."""
    usage = Run(command, *filter(None, [subcommand]), '--help')
    assert usage.wait() == 0, usage.output
    return set(FLAG.findall(usage.output))


@functools.lru_cache(None)
def all_flags():
    """Return every flag that stands in the code as text of its own, and the options of nets."""
    folders = ('tripletreid', 'layouts', 'nets', 'benchmarks', 'tests')
    code = [*ROOT.glob('*.py'), *(path for name in folders for path in (ROOT / name).rglob('*.py'))]
    in_code = (re.findall(r"'(--[a-z][a-z_0-9]+)'", path.read_text(encoding='utf-8')) for path in code)
    return FOREIGN_FLAGS.union({f'--{name}' for name in train_flags.NET_OPTIONS}, *in_code)


def test_every_block_of_commands_runs(tmp_path):
    """All in one folder and in one shell, with shorter trainings on fewer images."""
    for path in [*ROOT.glob('*.py'), *(ROOT / name for name in ('docs', 'examples', 'benchmarks'))]:
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / 'bin').mkdir()
    (tmp_path / 'bin' / 'python').write_text(PYTHON)
    (tmp_path / 'bin' / 'python').chmod(0o755)
    pages = sorted(PAGES, key=lambda page: FIRST.index(page.stem) if page.stem in FIRST else len(FIRST))
    lines = ''.join(f'echo "--- {page.stem}" >&2\n{commands}' for page in pages if page.stem not in RUN_ELSEWHERE
                    for commands, run in blocks(page) if run)
    for line in set(re.findall(r'(?<!\\\n)^python .*[^\\]\n', lines, re.MULTILINE)):
        first, *others = lines.split(line)
        lines = first + line + ''.join(others)  # A command that stands on several pages runs once.
    lines = lines.replace(DATASET, DATASET + SMALLER_DATASET)
    for long, short in SHORTER:
        assert long in lines, long
        lines = lines.replace(long, short)
    with forking_python(tmp_path / 'bin') as environment:
        done = subprocess.run(['sh', '-e', '-c', lines], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              text=True, timeout=500, env=environment)
    assert done.returncode == 0, done.stdout
    assert 'Traceback' not in done.stdout, done.stdout


@pytest.mark.parametrize('page', DOCS, ids=names(DOCS))
def test_a_page_begins_with_a_command_that_runs(page):
    if page.stem not in WITHOUT_COMMANDS:
        assert blocks(page)[0][1], page
        beginning = page.read_text(encoding='utf-8').split('\n## ')[0]
        assert blocks(page)[0][0] in beginning, page


@pytest.mark.parametrize('page', PAGES, ids=names(PAGES))
def test_every_flag_exists(page):
    text = page.read_text(encoding='utf-8')
    assert set(FLAG.findall(text)) <= all_flags(), page
    for commands, _ in blocks(page):
        for line in commands.replace('\\\n', ' ').splitlines():
            for command, first, rest in re.findall(r'python3? (\w+\.py)(?: +(\w+))?([^;|]*)', line.partition('  #')[0]):
                flags = flags_of(command, first if command in WITH_SUBCOMMANDS else None)
                own, _, passed_on = rest.partition(' -- ')
                assert set(FLAG.findall(own)) <= flags, line
                assert set(FLAG.findall(passed_on)) <= flags_of('train.py', None), line


@pytest.mark.parametrize('page', PAGES, ids=names(PAGES))
def test_every_link_leads_to_a_file_and_a_heading(page):
    text = page.read_text(encoding='utf-8')
    for target in re.findall(r'\]\(([^)\s]+)\)', text):
        if not urllib.parse.urlparse(target).scheme:
            path, _, anchor = target.partition('#')
            linked = page.parent / path if path else page
            assert linked.exists(), target
            assert not anchor or anchor in anchors(linked), target


def anchors(page):
    """Return the anchors that code hosts give to the headings of a page."""
    headings = re.findall(r'^#+ (.*)$', page.read_text(encoding='utf-8'), re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


@pytest.mark.parametrize('page', PAGES, ids=names(PAGES))
def test_every_test_and_file_that_is_named_exists(page):
    text = page.read_text(encoding='utf-8')
    tests = ''.join(path.read_text(encoding='utf-8') for path in (ROOT / 'tests').glob('*.py'))
    for name in re.findall(r'(?<=[`:])test_\w+(?=[`:])', text):
        assert f'def {name}(' in tests, name
    for path in re.findall(r'`((?:tests|benchmarks|recipes|examples|nets|heads|losses|tripletreid)/[\w/]+\.\w+)', text):
        assert (ROOT / path).exists(), path


def test_the_readme_names_every_page_and_every_command():
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    assert {page.name for page in DOCS} - {'factors.md'} <= set(re.findall(r'\(docs/([\w.]+)', text))
    assert COMMANDS <= set(re.findall(r'`(\w+\.py)`', text))
    assert len(text.splitlines()) < 220


@pytest.mark.parametrize('page', tables.pages(), ids=names(tables.pages()))
def test_tables_are_fresh(page):
    text = page.read_text(encoding='utf-8')
    assert tables.renewed(text) == text, f'{page.name} is out of date: run `make docs`'


def parsers():
    """Return the parser of every command and sub-command: {'train.py': parser, 'visualize.py report': …}."""
    found = {}
    for command in sorted(COMMANDS):
        found[command] = tables.parser_of(command)
        found.update({f'{command} {name}': each for name, each in tables.subcommands_of(found[command]).items()})
    return found


PARSERS = parsers()


@pytest.mark.parametrize('command', sorted(PARSERS))
def test_help_fits_100_columns_and_explains_every_flag(command, monkeypatch):
    monkeypatch.setenv('COLUMNS', '100')
    text = PARSERS[command].format_help()
    assert [line for line in text.splitlines() if len(line) > 100] == []
    assert 'docs/glossary.md' in text.splitlines()[-1]
    for actions in tables.groups_of(PARSERS[command]).values():
        for action in actions:
            if isinstance(action, argparse._SubParsersAction) or action.help == argparse.SUPPRESS:
                continue
            help_text = tables.help_of(PARSERS[command], action)
            # A help string that is only a default, such as '(default: 3)', explains nothing.
            assert re.sub(r'\(.*?\)|; one of .*', '', help_text).split(), (action.dest, help_text)


def test_every_flag_is_in_a_table():
    pages = ''.join(page.read_text(encoding='utf-8') for page in tables.pages())
    markers = re.findall(r'<!-- flags: ([^:>]*?)(?:: [^>]*)? -->', pages)
    without_table = [command for command, parser in PARSERS.items() if not tables.subcommands_of(parser)
                     and command not in markers and not command.startswith('make_dataset.py ')]
    assert not without_table, without_table
