"""The structure of the code: places of files, allowed imports, and no circle among them."""
import ast
import os
import shutil
import subprocess
import sys

import pytest

from conftest import ROOT
from tripletreid import plugins

COMMANDS = {'train', 'embed', 'evaluate', 'compare', 'make_dataset', 'visualize', 'freeze', 'trinet_embed', 'search',
            'cluster', 'import_model', 'adapt'}
PLUGINS = ('nets', 'heads', 'origins', 'losses', 'objectives', 'classifiers', 'samplers', 'excluders', 'scores', 'distances',
           'layouts')
GROUND = {'errors', 'files', 'names', 'provenance', 'quiet', 'plugins', 'exclusion', 'metrics', 'cluster', 'argument_types',
          'signals', 'startup', 'dask_cluster', 'pictures', 'fan_out', 'page_server'}
# Each level imports from itself and from the levels before it. Other names are folders of tripletreid/.
LEVELS = [GROUND,
          {'dataset', 'dataset_parts', 'dataset_writer', 'image_root', 'image_report', 'copies', 'embeddings', 'distribute',
           'input_pipeline'}, {'evaluation'}, {'clustering', 'experiment'}, {'modeling'},
          {'training', 'visualization', 'search'}, {'adaptation'}]
# In addition to the ground: parts of losses, layers for training, the random numbers of the seed.
ALLOWED_IN_PLUGINS = {'nets': {'tripletreid.modeling.batch_norm', 'tripletreid.modeling.stochastic_depth',
                               'tripletreid.modeling.torch_names'},
                      'origins': set(),
                      'heads': {'tripletreid.modeling.batch_norm'},
                      'losses': {'loss', 'tripletreid.distribute.collectives'},
                      'objectives': {'loss', 'tripletreid.input_pipeline.sampling'}, 'classifiers': set(),
                      'samplers': {'tripletreid.input_pipeline.sampling', 'tripletreid.distribute.agreement'},
                      'excluders': set(), 'scores': set(), 'distances': set(), 'layouts': set()}
# Folders of plug-ins whose files load plug-ins of another folder.
LOADED_BY_PLUGINS = {('objectives', 'classifiers')}
WITHOUT_TENSORFLOW = [*sorted(COMMANDS), 'tripletreid.experiment.arguments', 'tripletreid.evaluation.ranking',
                      'tripletreid.search.index', 'tripletreid.search.image_files', 'tripletreid.search.gallery',
                      'tripletreid.search.photos',
                      *(f'layouts.{name}' for name in plugins.choices('layouts')),
                      *(f'excluders.{name}' for name in plugins.choices('excluders'))]


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


FILES = {module_of(path): path for folder in ('.', 'tripletreid', *PLUGINS) for path in
         (ROOT.glob('*.py') if folder == '.' else (ROOT / folder).rglob('*.py'))}


TREES = {name: ast.parse(path.read_text(encoding='utf-8')) for name, path in FILES.items()}


def calls(name, *functions):
    """The calls of some functions in a module, by the functions' source text."""
    return [node for node in ast.walk(TREES[name]) if isinstance(node, ast.Call) and ast.unparse(node.func) in functions]


def loaded_folders(name):
    """The folders of plug-ins from which a module loads files by name."""
    return {call.args[0].value for call in calls(name, 'plugins.load', 'load') if isinstance(call.args[0], ast.Constant)
            and call.args[0].value in PLUGINS}


def imports(name):
    """The project's own modules that a module imports by a statement, at its top or anywhere in it."""
    found = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f'{node.module}.{alias.name}' if f'{node.module}.{alias.name}' in FILES else node.module
                      for alias in node.names}
    return {each for each in found if each in FILES}


def level(name):
    """The place of a module of tripletreid/ in LEVELS."""
    part = name.split('.')[1]
    return next(number for number, parts in enumerate(LEVELS) if part in parts)


def test_top_level_holds_the_commands_and_the_loss():
    assert {path.stem for path in ROOT.glob('*.py')} == COMMANDS | {'loss'}


def test_arrows_go_down_only():
    for name in FILES:
        for imported in imports(name):
            folder, arrow = name.split('.')[0], f'{name} → {imported}'
            if name in COMMANDS:
                assert imported not in COMMANDS, arrow
            elif folder in PLUGINS:
                is_ground = imported.startswith('tripletreid.') and level(imported) == 0
                assert is_ground or imported.split('.')[0] == folder or imported in ALLOWED_IN_PLUGINS[folder], arrow
            elif folder == 'tripletreid' and imported.startswith('tripletreid.'):
                assert level(imported) <= level(name), arrow
            elif folder == 'tripletreid':
                assert imported == 'loss', arrow


def test_plugins_are_loaded_by_the_value_of_a_flag():
    """Only `plugins.load` imports a module by its name; the library does not name a plug-in."""
    for name in FILES:
        assert name == 'tripletreid.plugins' or not calls(name, 'importlib.import_module', '__import__'), name
        for call in calls(name, 'plugins.load'):
            names_plugin = isinstance(call.args[1], ast.Constant) and name.startswith('tripletreid.')
            assert not names_plugin or call.args[1].value == 'trinet', ast.unparse(call)  # It has a file format of its own.
        for folder in loaded_folders(name):
            loader = name.split('.')[0]
            assert loader not in PLUGINS or loader == folder or (loader, folder) in LOADED_BY_PLUGINS, (name, folder)


def test_every_folder_of_plugins_states_its_contract():
    for folder in ('losses', 'objectives', 'classifiers', 'samplers'):
        assert 5 <= len((ROOT / folder / 'README.md').read_text(encoding='utf-8').splitlines()) <= 30


def test_no_import_goes_round_in_a_circle():
    """Neither by statements nor by the name of a plug-in."""
    graph = {name: imports(name) for name in FILES}
    for name in FILES:
        folders = loaded_folders(name)
        graph[name] |= {each for each in FILES if each.split('.')[0] in folders and each != name}
    done = set()

    def visit(name, path):
        assert name not in path, ' → '.join([*path[path.index(name):], name])
        if name not in done:
            for imported in sorted(graph[name]):
                visit(imported, [*path, name])
            done.add(name)

    for name in sorted(graph):
        visit(name, [])


def test_every_module_of_the_library_says_what_it_is_for():
    for name, path in FILES.items():
        text = path.read_text(encoding='utf-8')
        if path.name == '__init__.py' and name.startswith('tripletreid'):
            assert not text, f'{name} is not empty'
        else:
            assert ast.get_docstring(TREES[name]), f'{name} has no docstring'


@pytest.mark.parametrize('name', WITHOUT_TENSORFLOW)
def test_what_needs_no_tensorflow_imports_none(name):
    code = f'import sys, {name}; sys.exit("tensorflow" in sys.modules or "keras" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT, timeout=120).returncode == 0


def test_the_commit_is_that_of_the_checkout(tmp_path):
    """The commit belongs to the folder above tripletreid/, has a + if a file was changed, and is None elsewhere."""
    code = 'from tripletreid import plugins, provenance; print(provenance.git_commit(), len(plugins.choices("nets")) > 5)'

    def printed_commit(folder):
        return subprocess.run([sys.executable, '-c', code], cwd=folder, capture_output=True, text=True, timeout=120,
                              check=True).stdout.strip()

    def git(*arguments):
        identity = ['-c', 'user.name=test', '-c', 'user.email=test@example.com']
        return subprocess.run(['git', *identity, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=60,
                              check=True).stdout.strip()

    for folder in ('tripletreid', *PLUGINS):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns('__pycache__'))
    assert printed_commit(tmp_path) == 'None True'
    git('init', '-q')
    git('add', '.')
    git('commit', '-q', '-m', 'all')
    assert printed_commit(tmp_path) == f'{git("rev-parse", "HEAD")} True'
    with open(tmp_path / 'tripletreid' / 'errors.py', 'a', encoding='utf-8') as file:
        file.write('\n')
    assert printed_commit(tmp_path) == f'{git("rev-parse", "HEAD")}+ True'
    inside = tmp_path / 'vendored'
    inside.mkdir()
    for folder in ('tripletreid', *PLUGINS):
        os.rename(tmp_path / folder, inside / folder)
    assert printed_commit(inside) == 'None True'
