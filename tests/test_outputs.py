"""An output replaces its like only: never an input, nor a file of another kind, a folder or a device."""
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

import embed
import evaluate
import freeze
import make_dataset
import search
import visualize
from conftest import ROOT
from tripletreid import files, signals
from tripletreid.dataset import Dataset
from tripletreid.embeddings.writer import save_embeddings
from tripletreid.errors import InputError

SETS = [f'--{role}_{kind}={role}.{ending}' for role in ('query', 'gallery')
        for kind, ending in (('dataset', 'csv'), ('embeddings', 'h5'))]
EVALUATE = ['--excluder', 'diagonal', '--metric', 'euclidean', *SETS]
EMBED = ['--experiment_root', 'root', '--dataset', 'root/set.csv', '--image_root', '.']
SEARCH = ['--experiment_root', 'root', '--gallery', 'gallery.h5', 'mine.png']
ARGS = {'train_set': 'query.csv', 'image_root': '.', 'model_name': 'mnist', 'head_name': 'direct'}


def run(command, *arguments):
    before = sys.argv
    sys.argv = [command.__name__, *map(str, arguments)]
    try:
        command.main()
    finally:
        sys.argv = before


@pytest.fixture(scope='module')
def all_made(tmp_path_factory):
    """A folder with a dataset, an experiment root without a checkpoint, and an output of every kind."""
    folder = tmp_path_factory.mktemp('outputs')
    random = np.random.default_rng(0)
    (folder / 'root').mkdir()
    (folder / 'root' / 'args.json').write_text(json.dumps(ARGS))
    (folder / 'notes.txt').write_text('mine')
    (folder / 'other.json').write_text('{"batch_p": 18}')
    (folder / 'mine.png').write_bytes(b'\x89PNG\r\n\x1a\n of a camera')
    (folder / 'mine.html').write_text('<html>my homepage</html>')
    (folder / 'mine.pb').write_bytes(b'a graph')
    (folder / 'mine.tflite').write_bytes(b'no flatbuffer')
    (folder / 'pictures').mkdir()
    (folder / 'pictures' / 'names.tsv').write_text('Anna')
    (folder / 'link.json').symlink_to('query.h5')
    for name in ('query', 'gallery'):
        pids = np.array([str(row // 2) for row in range(8)], object)
        fids = np.array([f'{name}{row}.png' for row in range(8)], object)
        for path in (f'{name}.csv', 'root/set.csv'):
            (folder / path).write_text(''.join(f'{pid},{fid}\n' for pid, fid in zip(pids, fids)))
        parameters = {'image_root': str(folder), 'dataset': str(folder / f'{name}.csv')}
        save_embeddings(folder / f'{name}.h5', Dataset(f'{name}.csv', pids, fids), random.normal(size=(8, 3)), parameters)
    before = os.getcwd()
    os.chdir(folder)
    try:
        make_all()
    finally:
        os.chdir(before)
    return folder


def make_all():
    run(evaluate, *EVALUATE, '--filename', 'e.json')
    run(visualize, 'report', 'e.json')
    run(visualize, 'embeddings', 'gallery.h5', '--projector', 'projector')
    run(visualize, 'embeddings', 'gallery.h5', '--filename', 'e.pdf')
    run(visualize, 'embeddings', 'gallery.h5', '--filename', 'e.svg')


@pytest.fixture
def made(all_made, tmp_path, monkeypatch):
    """A copy of that folder, in which the test works."""
    shutil.copytree(all_made, tmp_path / 'work', symlinks=True)
    monkeypatch.chdir(tmp_path / 'work')
    return tmp_path / 'work'


def contents(folder):
    return {str(path): path.read_bytes() for path in sorted(folder.rglob('*')) if path.is_file()}


@pytest.mark.parametrize('command, arguments, part', [
    (embed, [*EMBED, '--filename', 'args.json'], 'is not an .h5 file of embeddings'),
    (embed, [*EMBED, '--filename', 'set.csv'], 'this very command reads it'),
    (embed, [*EMBED, '--filename', '../notes.txt'], 'notes.txt is there and is not'),
    (embed, [*EMBED, '--filename', './'], 'is a folder'),
    (embed, [*EMBED, '--filename', '../root'], 'is a folder'),
    (embed, [*EMBED, '--filename', 'nowhere/a.h5'], 'there is no folder'),
    (embed, [*EMBED, '--filename', '/dev/full'], 'is no file'),
    (embed, [*EMBED, '--filename', '../query.embs', '--skip_broken_images'], 'query.csv is there and is not a list'),
    (evaluate, [*EVALUATE, '--filename', 'query.h5'], 'this very command reads it'),
    (evaluate, [*EVALUATE, '--filename', 'link.json'], 'this very command reads it'),
    (evaluate, [*EVALUATE, '--filename', 'gallery.csv'], 'this very command reads it'),
    (evaluate, [*EVALUATE, '--filename', 'root/args.json'], 'is not an evaluation'),
    (evaluate, [*EVALUATE, '--filename', 'other.json'], 'is not an evaluation'),
    (evaluate, [*EVALUATE, '--filename', '/dev/full'], 'is no file'),
    (evaluate, [*EVALUATE, '--filename', 'nowhere/'], 'name of a file is missing'),
    (visualize, ['rankings', 'e.json', '--filename', 'mine.png'], 'is not a picture'),
    (visualize, ['report', 'e.json', '--filename', 'e.json'], 'this very command reads it'),
    (visualize, ['report', 'e.json', '--filename', 'mine.html'], 'is not a page'),
    (visualize, ['report', 'e.json', '--filename', 'nowhere/'], 'name of a file is missing'),
    (visualize, ['embeddings', 'gallery.h5', '--filename', 'mine.png'], 'is not a picture'),
    (visualize, ['embeddings', 'gallery.h5', '--projector', 'pictures'], 'names.tsv'),
    (visualize, ['curves', 'root', '--filename', 'mine.png'], 'is not a picture'),
    (freeze, ['--experiment_root', 'root', '--frozen_model_path', 'mine.pb'], 'is not an export'),
    (freeze, ['--experiment_root', 'root', '--frozen_model_path', 'mine.tflite'], 'is not an export'),
    (freeze, ['--experiment_root', 'root', '--frozen_model_path', 'pictures'], 'no SavedModel'),
    (search, [*SEARCH, '--filename', 'other.json'], 'is not a result of search.py'),
    (search, [*SEARCH, '--filename', 'e.json'], 'is not a result of search.py'),
    (search, [*SEARCH, '--filename', 'mine.png'], 'this very command reads it'),
    (search, [*SEARCH, '--filename', 'nowhere/'], 'name of a file is missing'),
    (search, [*SEARCH, '--report', 'mine.html'], 'is not a page of search.py'),
    (search, [*SEARCH, '--report', 'e.html'], 'is not a page of search.py'),
    (search, [*SEARCH, '--report', 'gallery.h5'], 'this very command reads it'),
])
def test_what_is_not_its_like_is_refused(made, command, arguments, part):
    before = contents(made)
    with pytest.raises(InputError, match=part):
        run(command, *arguments)
    assert contents(made) == before


@pytest.mark.parametrize('command, arguments', [(embed, EMBED), (evaluate, EVALUATE), (search, SEARCH),
                                                (visualize, ['report', 'e.json'])])
def test_an_empty_name_is_refused(made, capsys, command, arguments):
    before = contents(made)
    with pytest.raises(SystemExit) as exited:
        run(command, *arguments, '--filename', '')
    assert exited.value.code == 2 and 'error: --filename has an empty value' in capsys.readouterr().err
    assert contents(made) == before


def test_a_csv_of_something_else_is_no_dataset(made):
    from PIL import Image
    for number in range(3):
        path = made / 'own' / str(number) / 'a.png'
        path.parent.mkdir(parents=True)
        Image.new('RGB', (4, 4)).save(path)
    (made / 'folder_train.csv').write_text('one,two,three,four\n')
    with pytest.raises(InputError, match='folder_train.csv is there and is not a csv file of images'):
        run(make_dataset, 'folder', 'own', '--out', '.')
    (made / 'folder_train.csv').write_text('old,row.png\n')
    run(make_dataset, 'folder', 'own', '--out', '.')
    assert (made / 'folder_train.csv').read_text() == '0,0/a.png\n1,1/a.png\n2,2/a.png\n'


def test_its_like_is_replaced(made):
    (made / 'e.json').write_text('{"mAP": 0.5, "CMC": [1.0], "aps": [0.5]}')  # As of the original.
    make_all()
    assert 'queries' in json.loads((made / 'e.json').read_text())


@pytest.mark.parametrize('redirected, part', [
    ('>&-', 'is closed'), ('>> list.txt', 'goes to list.txt'), ('>> weights.npz', 'goes to weights.npz')])
def test_trinet_writes_to_no_input(tmp_path, redirected, part):
    for name in ('list.txt', 'weights.npz'):
        (tmp_path / name).write_text('mine')
    command = f'"{sys.executable}" "{ROOT / "trinet_embed.py"}" list.txt weights.npz {redirected}'
    process = subprocess.run(command, shell=True, cwd=tmp_path, stderr=subprocess.PIPE, text=True, timeout=120)
    assert process.returncode == 1 and part in process.stderr and 'Traceback' not in process.stderr, process.stderr
    assert {path.read_text() for path in tmp_path.iterdir()} == {'mine'}


def test_bytes_are_found_across_blocks(tmp_path, monkeypatch):
    path = tmp_path / 'file'
    path.write_bytes(bytes((1 << 20) - 3) + b'mark of it' + bytes(10))
    assert files.holds(path, b'mark of it') and not files.holds(path, b'mark of us')
    assert not files.holds(path, b'mark', within=(1 << 20)) and files.holds(path, b'mark', within=(1 << 20) + 1)


WRITING = '''
import os, signal, sys
from tripletreid import files, startup
startup.settle()
try:
    with files.written_whole('a.json') as temporary, files.folder_written_whole('model') as folder:
        open(temporary, 'w').write('half')
        open(os.path.join(folder, 'half'), 'w')
        with files.temporary_folder(parent='.') as other:
            os.kill(os.getpid(), int(sys.argv[1]))
            for _ in range(1000):
                pass
except:  # As libraries have it.
    pass
print('swallowed')
'''


@pytest.mark.parametrize('number', signals.ENDING)
def test_what_a_signal_interrupts_is_removed_and_the_old_stays(tmp_path, number):
    (tmp_path / 'model').mkdir()
    (tmp_path / 'model' / 'old').touch()
    (tmp_path / 'a.json').write_text('old')
    process = subprocess.run([sys.executable, '-c', WRITING, str(int(number))], cwd=tmp_path, capture_output=True, text=True,
                             timeout=60, env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert (process.returncode, process.stdout, process.stderr) == (-number, '', '')
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob('*')) == ['a.json', 'model', 'model/old']
    assert (tmp_path / 'a.json').read_text() == 'old'


def test_a_folder_that_is_being_replaced_when_a_signal_comes(tmp_path):
    (tmp_path / 'model').mkdir()
    (tmp_path / 'model' / 'old').touch()
    code = '''
import os, signal
from tripletreid import files, startup
startup.settle()
rename = os.rename
def struck(source, target):
    if target == 'model' and source.endswith('.partial'):
        os.kill(os.getpid(), signal.SIGTERM)
    rename(source, target)
os.rename = struck
with files.folder_written_whole('model') as folder:
    open(os.path.join(folder, 'new'), 'w')
'''
    process = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True, timeout=60,
                             env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert process.returncode == -signal.SIGTERM, process.stderr
    assert sorted(path.name for path in pathlib.Path(tmp_path).rglob('*')) == ['model', 'old']
