"""search.py: the index of a gallery, its results and their order, and bad input."""
import collections
import contextlib
import errno
import fcntl
import hashlib
import json
import os
import pathlib
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import NamedTuple

import h5py
import numpy as np
import pytest
from PIL import Image
from sklearn import neighbors

import search as search_command
from _runs import Fault, Run, ended_in_one_sentence
from _searched import train
from conftest import ROOT
from tripletreid import exclusion
from tripletreid.dataset import Dataset, load_dataset
from tripletreid.embeddings.reader import Embeddings
from tripletreid.embeddings.writer import save_embeddings
from tripletreid.errors import InputError
from tripletreid.evaluation.retrieval import Retrieval
from tripletreid.search import database, gallery, image_files, index, photos, temporary_rows, votes

DIM = 3


class Maker:
    """A stand-in for a net: an embedding depends on the bytes of a file, and a file beginning with 'broken' is no image."""

    def __init__(self, checkpoint='one', batch=2, interrupted_at=None):
        self.made_by = {'checkpoint_sha256': checkpoint, 'flip_augment': False}
        self.dim, self.batch, self.interrupted_at = DIM, batch, interrupted_at
        self.embedded = []

    @staticmethod
    def row(path):
        content = pathlib.Path(path).read_bytes()
        if content.startswith(b'broken'):
            raise InputError(f'{path} is broken')
        return np.frombuffer(hashlib.sha256(content).digest(), np.uint8)[:DIM].astype(np.float32)

    def files(self, paths):
        for start in range(0, len(paths), self.batch):
            if self.interrupted_at is not None and len(self.embedded) >= self.interrupted_at:
                raise KeyboardInterrupt
            some = paths[start:start + self.batch]
            rows = [self.row(path) for path in some]
            self.embedded += [os.path.basename(path) for path in some]
            yield np.stack(rows)

    def problems(self, paths):
        found = {}
        for path in paths:
            try:
                if pathlib.Path(path).read_bytes().startswith(b'broken'):
                    found[path] = Problem('it is broken', is_lasting=True)
            except OSError as error:
                found[path] = Problem(error.strerror, is_lasting=False)
        return found


class Problem(NamedTuple):
    """As of the embedder, which imports TensorFlow."""
    reason: str
    is_lasting: bool


@pytest.fixture
def folder(tmp_path):
    """A folder `images` with a.png to j.png, two of them in a sub-folder, which are no images but to a `Maker`."""
    for number, letter in enumerate('abcdefghij'):
        path = tmp_path / 'images' / ('sub' if letter in 'bh' else '') / f'{letter}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([number]) * (number + 1))
    return tmp_path / 'images'


def update(folder, maker=None, path=None, report=None):
    """Bring the index up to date and check its rows. Returns names of the embedded files, and the sentences."""
    maker, sentences = maker or Maker(), []
    files, _ = image_files.in_folder(folder)
    embeddings = index.up_to_date(str(path or folder.parent / 'index.sqlite'), files, maker, report or sentences.append)
    here = [fid for fid in files.fids if not (folder / fid).read_bytes().startswith(b'broken')]
    assert embeddings.fids.tolist() == here == sorted(here)
    assert sorted(embeddings.problems) == sorted(set(files.fids) - set(here))
    expected = [Maker.row(folder / fid) for fid in here]
    np.testing.assert_array_equal(embeddings.rows(0, len(here)), expected)
    left = {each.name for each in folder.parent.iterdir()} - {'images', 'index.sqlite'}
    assert not left, left
    return sorted(maker.embedded), ' '.join(sentences)


def names(letters):
    return [f'{letter}.png' for letter in letters]


def test_only_what_is_new_or_changed_is_embedded(folder):
    embedded, said = update(folder)
    assert embedded == names('abcdefghij') and '10 images, 10 new.' in said
    embedded, said = update(folder)
    assert embedded == [] and 'none of them new' in said
    (folder / 'aa.png').write_bytes(b'new')
    (folder / 'sub' / 'z.png').write_bytes(b'another')
    (folder / 'c.png').write_bytes(b'changed')
    os.utime(folder / 'd.png', ns=(0, 0))
    (folder / 'j.png').unlink()
    embedded, said = update(folder)
    assert embedded == ['aa.png', 'c.png', 'd.png', 'z.png'] and '11 images, 2 new, 2 changed, 1 gone.' in said
    assert update(folder)[0] == []


def test_another_picture_of_the_same_size_and_time_is_a_change(folder):
    update(folder)
    contents = (folder / 'a.png').read_bytes()
    other = folder.parent / 'other.png'
    other.write_bytes(contents[::-1])
    times = (folder / 'a.png').stat()
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))  # As cp -p, rsync -t and most archives do.
    other.replace(folder / 'a.png')
    assert update(folder)[0] == ['a.png']


def test_broken_images_are_left_out_until_they_are_mended(folder):
    for name in ('c.png', 'k.png'):
        (folder / name).write_bytes(b'broken')
    assert update(folder)[0] == names('abdefghij')
    assert update(folder)[0] == []
    (folder / 'c.png').write_bytes(b'mended')
    (folder / 'a.png').write_bytes(b'broken too')
    assert update(folder)[0] == names('c')
    (folder / 'k.png').unlink()
    assert update(folder)[0] == []
    for path in folder.rglob('*.png'):
        path.write_bytes(b'broken as all')
    with pytest.raises(InputError, match='No image .* a.png: it is broken'):
        update(folder)


def test_an_interrupted_embedding_goes_on_whatever_became_of_the_folder(folder):
    with pytest.raises(KeyboardInterrupt):
        update(folder, Maker(interrupted_at=6))
    (folder / 'a.png').unlink()
    (folder / 'c.png').write_bytes(b'changed')
    (folder / 'k.png').write_bytes(b'new')
    # The images of sub/ come last; `a` and `c` to `g` were done.
    embedded, sentences = update(folder)
    assert embedded == names('bchijk')
    assert '10 images, 5 new, 1 changed, 1 gone; 4 were embedded before an interruption.' in sentences


def test_kill_in_the_middle_of_a_batch_keeps_the_batches_before_it(folder):
    """The process is killed between a transaction's first row and its end."""
    code = """if True:
        import os, signal, sys
        from test_search import Maker, image_files, index
        files, _ = image_files.in_folder(sys.argv[1])
        checksum, calls = index._Index._checksum, []
        def killing(*args):
            calls.append(args)
            if len(calls) == 8:
                os.kill(os.getpid(), signal.SIGKILL)
            return checksum(*args)
        index._Index._checksum = killing
        index.up_to_date(sys.argv[2], files, Maker(), print)
    """
    killed = subprocess.run([sys.executable, '-c', code, folder, folder.parent / 'index.sqlite'], cwd=ROOT, timeout=120,
                            env={**os.environ, 'PYTHONPATH': os.pathsep.join([str(ROOT), str(ROOT / 'tests')])})
    assert killed.returncode == -signal.SIGKILL
    assert (folder.parent / 'index.sqlite-journal').exists()
    embedded, sentences = update(folder)
    assert len(embedded) == 4 and '4 new; 6 were embedded before an interruption' in sentences


def test_a_file_that_is_away_for_a_moment_is_tried_again(folder):
    class Interfering(Maker):
        """The disk of one file fails while the files are embedded."""
        def files(self, paths):
            for path in paths:
                if path.endswith('d.png'):
                    raise InputError('Input/output error')
                self.embedded.append(os.path.basename(path))
                yield self.row(path)[None]

        def problems(self, paths):
            return {path: Problem('Input/output error', is_lasting=False) for path in paths if path.endswith('d.png')}

    files, _ = image_files.in_folder(folder)
    path = str(folder.parent / 'index.sqlite')
    embeddings = index.up_to_date(path, files, Interfering(), print)
    assert embeddings.problems == {'d.png': 'Input/output error'} and len(embeddings) == 9
    assert update(folder)[0] == ['d.png'] and update(folder)[0] == []

    # A folder that cannot be listed, and a file without a stamp, keep their rows.
    files = image_files.in_folder(folder)[0]
    kept = np.array([not fid.startswith('sub/') and fid != 'a.png' for fid in files.fids])
    away = image_files.ImageFiles(files.path, files.root, [fid for fid, keep in zip(files.fids, kept) if keep],
                                  files.stamps[kept], {'sub': 'Stale file handle', 'a.png': 'Input/output error'})
    assert len(index.up_to_date(path, away, Maker(), print)) == 7
    assert update(folder)[0] == []


def test_what_no_file_system_can_list_now_is_said(folder, monkeypatch):
    scandir, stat = os.scandir, os.stat

    def failing(path):
        if str(path).endswith('sub'):
            raise OSError(errno.EIO, 'Input/output error')
        return scandir(path)

    def failing_stat(path, **options):
        if str(path).endswith('c.png'):
            raise OSError(errno.EMFILE, 'Too many open files')
        return stat(path, **options)

    monkeypatch.setattr(os, 'scandir', failing)
    monkeypatch.setattr(os, 'stat', failing_stat)
    files, sentences = image_files.in_folder(folder)
    assert [pathlib.Path(fid).stem for fid in files.fids] == list('adefgij')
    assert files.is_away('sub/b.png') and files.is_away('c.png') and not files.is_away('subject.png')
    assert '2 (c.png, sub) cannot be read now (Input/output error, Too many open files)' in ' '.join(sentences)


def test_an_embedding_that_is_not_finite_is_skipped(folder):
    class Overflowing(Maker):
        @staticmethod
        def row(path):
            return Maker.row(path) * np.float32(np.nan if path.endswith('c.png') else 1)

    files, _ = image_files.in_folder(folder)
    for expected in (10, 0):
        maker = Overflowing()
        embeddings = index.up_to_date(str(folder.parent / 'index.sqlite'), files, maker, print)
        assert len(maker.embedded) == expected and len(embeddings) == 9
        assert embeddings.problems == {'c.png': 'its embedding is not finite'}


def test_a_full_disk_loses_nothing_that_was_embedded(folder, monkeypatch):
    class Wide(Maker):
        """Two rows fill four pages of the database."""
        @staticmethod
        def row(path):
            return np.tile(Maker.row(path), 700)

    def on_small_disk(connection, *args, prepare=database._prepare):
        prepare(connection, *args)
        connection.execute('PRAGMA max_page_count = 20')

    files, _ = image_files.in_folder(folder)
    path, maker, more = str(folder.parent / 'index.sqlite'), Wide(), Wide()
    maker.dim = more.dim = 3 * 700
    with monkeypatch.context() as patch:
        patch.setattr(database, '_prepare', on_small_disk)
        with pytest.raises(InputError, match='index.sqlite .*full'):
            index.up_to_date(path, files, maker, print)
    assert len(index.up_to_date(path, files, more, print)) == 10
    # The last batch did not fit.
    assert 4 <= len(maker.embedded) <= 8 and len(more.embedded) == 10 - (len(maker.embedded) - 2)


def test_each_flipped_bit_is_noticed(folder):
    """Rows that do not match their checksum are embedded again; a file that SQLite cannot read is kept and rebuilt."""
    path = folder.parent / 'index.sqlite'
    update(folder)
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    rows = [np.frombuffer(Maker.row(each).tobytes(), np.uint8) for each in sorted(folder.rglob('*.png'))]
    for row in rows[:3]:  # Certainly in an embedding.
        place = whole.index(row.tobytes()) + int(random.integers(0, len(row)))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << int(random.integers(0, 7))]) + whole[place + 1:])
        embedded, sentences = update(folder)
        assert len(embedded) == 1 and '1 damaged' in sentences
    for place in random.integers(100, len(whole), 40):  # After the header.
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << int(random.integers(0, 8))]) + whole[place + 1:])
        for aside in folder.parent.glob('*.damaged*'):
            aside.unlink()
        files, _ = image_files.in_folder(folder)
        embeddings = index.up_to_date(str(path), files, Maker(), print)
        np.testing.assert_array_equal(embeddings.rows(0, 10), [Maker.row(folder / fid) for fid in files.fids])


@pytest.mark.parametrize('size', [100, 1000, 10000])
def test_a_torn_index_is_kept_and_rebuilt(folder, size):
    path = folder.parent / 'index.sqlite'
    update(folder)
    whole = path.read_bytes()
    path.write_bytes(torn := whole[:size])
    files, _ = image_files.in_folder(folder)
    sentences = []
    assert len(index.up_to_date(str(path), files, Maker(), sentences.append)) == 10
    assert 'is damaged' in sentences[0] and 'index.sqlite.damaged' in sentences[0]
    assert path.with_name('index.sqlite.damaged').read_bytes() == torn
    path.write_bytes(torn)
    with pytest.raises(InputError, match='move one of them away'):
        index.up_to_date(str(path), files, Maker(), print)


def test_a_crafted_index_is_one_sentence_or_rebuilt(folder):
    path = folder.parent / 'index.sqlite'
    files, _ = image_files.in_folder(folder)
    for statements in (
            ['DROP TABLE images', 'CREATE VIEW images AS SELECT 1'],
            ['CREATE TRIGGER t AFTER INSERT ON images BEGIN DELETE FROM settings; END'],
            ['UPDATE images SET emb = zeroblob(1000000) WHERE fid = "a.png"'], ['UPDATE images SET emb = 7'],
            ["UPDATE OR IGNORE images SET fid = x'ff00'"], ["UPDATE images SET size = 'large'"],
            ['UPDATE images SET checksum = -1'], ["UPDATE models SET made_by = '{'"], ['DELETE FROM models'],
            ["UPDATE settings SET value = x'ff'"], ['UPDATE images SET problem = 1, emb = NULL']):
        update(folder)
        with contextlib.closing(sqlite3.connect(path)) as connection:
            for statement in statements:
                connection.execute(statement)
            connection.commit()
        embeddings = index.up_to_date(str(path), files, Maker(), print)
        assert len(embeddings) == 10 and not embeddings.problems, statements
        np.testing.assert_array_equal(embeddings.rows(0, 10), [Maker.row(folder / fid) for fid in files.fids])
        for aside in folder.parent.glob('*.damaged*'):
            aside.unlink()


def test_an_index_without_locks_or_without_rights(folder, monkeypatch):
    def lockf(*_):
        raise OSError(errno.ENOLCK, 'No locks available')

    connect, addresses = sqlite3.connect, []
    monkeypatch.setattr(sqlite3, 'connect', lambda address, **options: (addresses.append(address),
                                                                        connect(address, **options))[1])
    monkeypatch.setattr(fcntl, 'lockf', lockf)
    assert len(update(folder)[0]) == 10 and update(folder)[0] == []
    assert all(address.endswith('vfs=unix-none') for address in addresses)
    monkeypatch.setattr(os, 'access', lambda *_: False)
    assert update(folder)[0] == [] and 'mode=ro' in addresses[-1]
    (folder / 'new.png').write_bytes(b'new')
    with pytest.raises(InputError, match='readonly database.*give another --index'):
        update(folder)


def test_two_at_once_embed_everything_once(folder):
    started, waits = threading.Event(), threading.Event()

    class Slow(Maker):
        def files(self, paths):
            started.set()
            assert waits.wait(60)
            yield from super().files(paths)

    slow, fast, said = Slow(), Maker(), []

    def say(sentence):
        said.append(sentence)
        if 'waiting' in sentence:
            waits.set()

    files, _ = image_files.in_folder(folder)
    path = str(folder.parent / 'index.sqlite')
    first = threading.Thread(target=lambda: index.up_to_date(path, files, slow, print))
    first.start()
    assert started.wait(60)
    embeddings = index.up_to_date(path, files, fast, say)
    first.join(60)
    assert len(slow.embedded) == 10 and fast.embedded == [] and len(embeddings) == 10
    assert 'waiting' in ' '.join(said)
    assert update(folder)[0] == []


def test_another_checkpoint_or_another_place_of_the_folder(folder):
    update(folder)
    embedded, sentences = update(folder, Maker('two'))
    assert len(embedded) == 10 and 'rebuilt for another checkpoint or other flags; 10 images, 10 new.' in sentences
    # Until it is rebuilt, the index keeps the embeddings of both.
    with pytest.raises(KeyboardInterrupt):
        update(folder, Maker('three', interrupted_at=4))
    assert update(folder, Maker('two'))[0] == []
    embedded, sentences = update(folder, Maker('four'))  # Nothing of the others is taken.
    assert len(embedded) == 10 and 'interruption' not in sentences
    moved = folder.parent.parent / f'{folder.parent.name} moved'
    moved.mkdir()
    for name in ('images', 'index.sqlite'):
        (folder.parent / name).rename(moved / name)
    assert update(moved / 'images', Maker('four'))[0] == []


def test_what_is_no_index_of_this_gallery_stays_as_it_is(folder):
    path = folder.parent / 'index.sqlite'
    update(folder)
    whole = path.read_bytes()

    def refused(content, match):
        path.write_bytes(content)
        with pytest.raises(InputError, match=match):
            update(folder)
        assert path.read_bytes() == content

    refused(b'my notes', 'not an index of search.py')
    refused(whole[:40], 'not an index of search.py')
    refused(whole[:60] + bytes([0, 0, 0, 7]) + whole[64:], 'version 7, and this program reads version 2')
    path.unlink()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute('CREATE TABLE mine (number)')
    refused(path.read_bytes(), 'not an index of search.py')
    save_embeddings(path, load_dataset_of(folder.parent, ['x.png']), np.ones((1, DIM), np.float32))
    refused(path.read_bytes(), 'not an index of search.py')
    path.write_bytes(whole)
    shutil.copytree(folder, folder.parent / 'others')
    files, _ = image_files.in_folder(folder.parent / 'others')
    with pytest.raises(InputError, match='index of another gallery.*give another --index'):
        index.up_to_date(str(path), files, Maker(), print)


def test_an_index_of_an_earlier_version_is_kept_and_rebuilt(folder):
    path = folder.parent / 'index.h5'
    save_embeddings(path, load_dataset_of(folder.parent, ['x.png']), np.ones((1, DIM), np.float32), {'search_index': 1})
    before = path.read_bytes()
    files, _ = image_files.in_folder(folder)
    sentences = []
    assert len(index.up_to_date(str(path), files, Maker(), sentences.append)) == 10
    assert 'is an index of an earlier version: it is kept as' in sentences[0]
    assert path.with_name('index.h5.old').read_bytes() == before


def load_dataset_of(folder, fids):
    (folder / 'some.csv').write_text(''.join(f'0,{fid}\n' for fid in fids))
    dataset = load_dataset(folder / 'some.csv')
    (folder / 'some.csv').unlink()
    return dataset


def test_an_image_with_two_identities_in_a_gallery_is_warned_of(folder, capsys):
    (folder.parent / 'set.csv').write_text('0,a.png\n1,a.png\n0,c.png\n')
    image_files.in_dataset(folder.parent / 'set.csv', folder)
    assert 'have more than one identity, e.g. a.png has 0 and 1' in capsys.readouterr().err


def test_rows_of_a_csv_file_stay_in_its_order_and_may_repeat(folder):
    fids = ['j.png', 'a.png', 'sub/b.png', 'j.png', 'c.png']
    path = folder.parent / 'set.csv'
    path.write_text(''.join(f'0,{fid}\n' for fid in fids))
    for expected, add in ((4, 'e.png'), (1, 'a.png'), (0, None)):
        maker = Maker()
        files = image_files.in_dataset(path, folder)
        embeddings = index.up_to_date(str(folder.parent / 'index.sqlite'), files, maker, print)
        assert embeddings.fids.tolist() == fids and len(maker.embedded) == expected
        np.testing.assert_array_equal(embeddings.rows(0, len(fids)), [Maker.row(folder / fid) for fid in fids])
        if add:
            fids.insert(1, add)
            path.write_text(''.join(f'0,{fid}\n' for fid in fids))


def test_what_a_folder_holds(tmp_path):
    root = tmp_path / 'images'
    for name in ('b.PNG', 'a b\'"<é>.jpg', 'sub/c.jpeg', 'sub/.hidden.png', '.git/d.png', 'notes.txt', 'e.gif'):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b'.')
    (tmp_path / 'secret.png').write_bytes(b'.')
    (root / 'inside.png').symlink_to('b.PNG')
    (root / 'outside.png').symlink_to(tmp_path / 'secret.png')
    (root / 'nowhere.png').symlink_to(root / 'gone.png')
    (root / 'linked').symlink_to(tmp_path)
    for name in ('circle.png', 'loop'):
        (root / name).symlink_to(name)
    for name in ('pipe.png', 'tty\x1b[2J\n.png'):
        os.mkfifo(root / name)
    taken = ['a b\'"<é>.jpg', 'b.PNG', 'e.gif', 'inside.png', 'sub/c.jpeg']
    try:
        (root / os.fsdecode(b'\xff.png')).write_bytes(b'.')
        odd = True
    except OSError:
        odd = False  # A file system that has only names in UTF-8.
    found, sentences = image_files.in_folder(root)
    assert found.fids == taken and found.stamps.shape == (5, 2)
    printed = ' '.join(sentences)
    for sentence in ('Links to files outside the folder are skipped: 1 (outside.png).',
                     'Links to folders are skipped: 1 (linked).',
                     'Links to files that do not exist are skipped: 1 (nowhere.png).', '1 .txt',
                     'Links that lead in a circle are skipped: 2 (circle.png, loop)',
                     'Pipes, sockets and devices are skipped: 2 (pipe.png, tty\\x1b[2J\\n.png)'):
        assert sentence in printed, (sentence, printed)
    assert ('udcff' in printed) == odd and printed.isprintable()
    found, _ = image_files.in_folder(root, allow_outside_root=True)
    assert found.fids == sorted([*taken, 'outside.png'])
    (tmp_path / 'empty').mkdir()
    with pytest.raises(InputError, match='no image'):
        image_files.in_folder(tmp_path / 'empty')


# --- The command ------------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    return train(tmp_path_factory.mktemp('search'))


def search(root, *flags, gallery='gallery'):
    run = Run('search.py', '--experiment_root', root / 'run', '--gallery', root / gallery, *flags)
    assert run.wait() == 0, run.output
    return run.output


def test_the_order_is_that_of_evaluate(trained, tmp_path):
    """With an image twice in the gallery, of another name the second time: they are as near, to the last bit.

    Also with a threshold, and with several photos together.
    """
    augmented = ['--flip_augment', '--aggregator', 'mean']
    for subset in ('query', 'test'):
        run = Run('embed.py', '--experiment_root', trained / 'run', '--dataset', trained / f'{subset}.csv',
                  '--filename', tmp_path / f'{subset}.h5', '--quiet', *augmented)
        assert run.wait() == 0, run.output
    run = Run('evaluate.py', '--excluder', 'diagonal', '--metric', 'euclidean', '--filename', tmp_path / 'found.json',
              '--query_dataset', trained / 'query.csv', '--query_embeddings', tmp_path / 'query.h5',
              '--gallery_dataset', trained / 'test.csv', '--gallery_embeddings', tmp_path / 'test.h5')
    assert run.wait() == 0, run.output
    evaluated = json.loads((tmp_path / 'found.json').read_text())['queries']
    queries = [trained / query['fid'] for query in evaluated]
    with Embeddings(tmp_path / 'query.h5') as query_file, Embeddings(tmp_path / 'test.h5') as test_file:
        queries_by_hand, gallery_by_hand = (file.rows(0, len(file)).astype(float) for file in (query_file, test_file))
        fids = test_file.fids

    def by_hand(emb):
        distances = np.sqrt(np.square(emb - gallery_by_hand).sum(axis=1) + 1e-12)
        order = np.argsort(distances, kind='stable')
        return fids[order].tolist(), distances[order]

    def found(gallery, *flags):
        output = search(trained, *queries, '--count', 30, '--filename', tmp_path / 'search.json', *augmented, *flags,
                        gallery=gallery)
        results = json.loads((tmp_path / 'search.json').read_text())
        assert all([each['rank'] for each in one['results']] == [*range(1, 20)] for one in results)
        return results, [[each['fid'] for each in one['results']] for one in results], output

    expected = [by_hand(emb) for emb in queries_by_hand]
    results, ranked, _ = found(tmp_path / 'test.h5')
    assert ranked == [order for order, _ in expected]
    assert [one['query'] for one in results] == list(map(str, queries))
    for one, (_, distances) in zip(results, expected):
        np.testing.assert_allclose([each['distance'] for each in one['results']], distances, atol=1e-4)
        assert {each['same'] for each in one['results']} == {None}
    pids = dict(zip(*(getattr(load_dataset(trained / 'test.csv'), name).tolist() for name in ('fids', 'pids'))))
    for query, order in zip(evaluated, ranked):
        hits = [rank for rank, fid in enumerate(order, 1) if pids[fid] == query['pid']]
        assert (query['first_match_rank'], query['last_match_rank']) == (hits[0], hits[-1])

    # Embedded from the csv file; between the 5th and the 6th of the first query lies the threshold.
    threshold = expected[0][1][4:6].mean()
    results, ranked, output = found('test.csv', '--image_root', trained, '--threshold', threshold)
    assert ranked == [order for order, _ in expected]
    for one, (_, distances) in zip(results, expected):
        assert [each['same'] for each in one['results']] == (distances <= threshold).tolist()
    assert 'of 5 votes: the same identity in 5 of the 19 nearest' in output

    # In a folder the order of names decides between equal distances, and the csv file has them the other way round.
    nearest = min(distances[0] for _, distances in expected)
    _, in_folder, output = found('gallery', '--threshold', nearest / 2)
    assert in_folder != [[fid.split('/')[1] for fid in order] for order in ranked]
    for order in in_folder:
        assert order.index('2_1.png') == order.index('0_copy_of_2.png') + 1
    assert output.count(': nobody. The nearest, ') == 6

    # All photos as one.
    results, ranked, _ = found(tmp_path / 'test.h5', '--together')
    assert [one['query'] for one in results] == [' + '.join(map(str, queries))]
    assert ranked == [by_hand(queries_by_hand.mean(axis=0))[0]]


def stay_small():
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, resource.RLIM_INFINITY))


def test_a_full_disk_is_one_sentence(trained, tmp_path):
    command = ['search.py', '--experiment_root', trained / 'run', '--gallery', trained / 'gallery', '--index',
               tmp_path / 'index.sqlite', trained / 'photos' / '0_0.png']
    ended_in_one_sentence(Run(*command, fault=Fault(stay_small, 'start')), 'index.sqlite', 'disk')
    run = Run(*command)
    assert run.wait() == 0 and '19 images, 19 new.' in run.output, run.output
    assert os.listdir(tmp_path) == ['index.sqlite']


def interrupt_third_batch():
    write, calls = index._Index._write, []

    def interrupting(self, rows):
        calls.append(rows)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        write(self, rows)

    index._Index._write = interrupting


def test_ctrl_c_while_the_gallery_is_embedded(trained, tmp_path):
    command = ['search.py', '--experiment_root', trained / 'run', '--gallery', trained / 'gallery', '--batch_size', 4,
               trained / 'photos' / '0_0.png', '--index', tmp_path / 'index.sqlite']
    run = Run(*command, fault=Fault(interrupt_third_batch, 'start'))
    assert run.wait() == -signal.SIGINT and 'Interrupted. 8 embeddings are kept' in run.output, run.output
    run = Run(*command)
    assert run.wait() == 0 and '19 images, 11 new; 8 were embedded before an interruption.' in run.output, run.output


def test_bad_input_is_one_sentence(trained, tmp_path):
    photo = trained / 'photos' / '0_0.png'
    (tmp_path / 'notes.jpg').write_text('no image')
    (tmp_path / 'evaluation.json').write_text(json.dumps({'mAP': 1}))
    (tmp_path / 'empty').mkdir()
    dataset = load_dataset_of(tmp_path, ['x.png'])
    save_embeddings(tmp_path / 'other.h5', dataset, np.ones((1, 7), np.float32))
    save_embeddings(tmp_path / 'made.h5', dataset, np.ones((1, 4), np.float32), {'checkpoint_sha256': 'another'})
    with h5py.File(tmp_path / 'nameless.h5', 'w') as file:
        file['emb'] = np.ones((1, 4), np.float32)
    shutil.copytree(trained / 'run', tmp_path / 'untrained',
                    ignore=shutil.ignore_patterns('checkpoint*', '*.h5', '*.sqlite'))
    for flags, parts in (
            (['--gallery', trained / 'gallery', tmp_path / 'notes.jpg'], ['notes.jpg', 'neither a JPEG']),
            (['--gallery', trained / 'gallery', tmp_path / 'none.jpg'], ['There is no photo', 'none.jpg']),
            (['--gallery', tmp_path / 'empty', photo], ['no image', 'empty']),
            (['--gallery', tmp_path / 'nowhere', photo], ['nowhere']),
            (['--gallery', tmp_path / 'other.h5', photo], ['7 dimensions', 'gives 4']),
            (['--gallery', tmp_path / 'made.h5', photo], ['another checkpoint']),
            (['--gallery', tmp_path / 'nameless.h5', photo], ['have no names in', 'nameless.h5']),
            (['--gallery', trained / 'gallery', photo, '--filename', photo], ['0_0.png']),
            (['--gallery', trained / 'gallery', photo, '--threshold_from', tmp_path / 'evaluation.json', '--fpr', '1e-3'],
             ['evaluation.json']),
            (['--gallery', trained / 'gallery', photo, '--experiment_root', tmp_path / 'untrained'], ['no checkpoint'])):
        ended_in_one_sentence(Run('search.py', '--experiment_root', trained / 'run', *flags), *parts)
    assert not list(tmp_path.rglob('*index.sqlite'))


def test_photos_whose_shape_or_marks_promise_nothing_good(trained, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 128, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'wide.png')
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels[:, :64]).save(tmp_path / 'turned.jpg', exif=exif)
    output = search(trained, tmp_path / 'wide.png', tmp_path / 'turned.jpg', trained / 'photos' / '0_0.png')
    assert f'Warning: {tmp_path / "wide.png"} is 128 pixels wide and 64 high' in output
    assert f'Warning: {tmp_path / "turned.jpg"} is turned by EXIF, which the net does not see' in output
    assert output.count('Warning') == 2
    wide = (tmp_path / 'wide.png').read_bytes()
    for size, is_far in (((64, 128), False), ((48, 64), False), ((64, 64), True), ((256, 128), True), ((32, 128), True)):
        assert bool(photos.doubts(wide, size)) == is_far, size
    assert photos.doubts(b'no image', (64, 128)) == []


@pytest.fixture
def crop_boxes(tmp_path, monkeypatch):
    """A function that writes boxes.csv and crops photos/a.png, of 40 x 30 pixels, and other photos."""
    sys.path.insert(0, str(ROOT / 'examples'))
    import crop_by_boxes
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    (tmp_path / 'photos' / 'day 1').mkdir(parents=True)
    Image.fromarray(pixels).save(tmp_path / 'photos' / 'day 1' / 'a.png')

    def crop(text):
        (tmp_path / 'boxes.csv').write_bytes(text if isinstance(text, bytes) else text.encode())
        paths = [str(tmp_path / name) for name in ('boxes.csv', 'photos', 'crops')]
        monkeypatch.setattr(sys, 'argv', ['crop_by_boxes.py', *paths])
        crop_by_boxes.main()
        return {path.name: np.asarray(Image.open(path)) for path in (tmp_path / 'crops').iterdir()}

    yield crop, pixels, tmp_path / 'photos'
    sys.path.remove(str(ROOT / 'examples'))


def test_photos_are_cut_by_boxes_of_a_csv_file(crop_boxes, capsys):
    crop, pixels, photos = crop_boxes
    crops = crop('\ufeffimage,left,top,right,bottom,class\nday 1/a.png,1,2,11,22,person\n\n"day 1/a.png",20.4,0,30,9.6\n'
                 'day 1/a.png,-5,-5,10,10\n')
    assert sorted(crops) == ['a_2.png', 'a_4.png', 'a_5.png']
    np.testing.assert_array_equal(crops['a_2.png'], pixels[2:22, 1:11])
    np.testing.assert_array_equal(crops['a_4.png'], pixels[0:10, 20:30])
    np.testing.assert_array_equal(crops['a_5.png'], pixels[:10, :10])
    assert 'line 5: the box is clipped' in capsys.readouterr().err


def test_boxes_are_those_of_the_upright_photo_in_the_pixels_of_the_net(crop_boxes):
    crop, pixels, photos = crop_boxes
    for orientation in range(1, 9):
        upright = Image.fromarray(pixels)
        inverse = {5: 5, 6: 8, 7: 7, 8: 6}.get(orientation, orientation)
        from crop_by_boxes import UPRIGHT
        stored = upright if inverse == 1 else upright.transpose(UPRIGHT[inverse])
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored.save(photos / f'{orientation}.png', exif=exif)
        np.testing.assert_array_equal(crop(f'{orientation}.png,4,3,30,20')[f'{orientation}_1.png'], pixels[3:20, 4:30])
    deep = (np.arange(20 * 10, dtype=np.uint16) * 300).reshape(20, 10)
    Image.fromarray(deep).save(photos / 'deep.png')
    np.testing.assert_array_equal(crop('deep.png,0,0,10,20')['deep_1.png'], np.repeat((deep >> 8)[..., None], 3, axis=2))


@pytest.mark.parametrize('text, match', [
    ('day 1/a.png,9,9,8,20', 'line 1: the box .* is empty'), ('day 1/a.png,40,0,50,10', 'line 1: the box .* is outside'),
    ('day 1/a.png,1,2,3,4\nday 1/a.png,nan,2,3,4', 'line 2: "day 1/a.png,nan,2,3,4" is not photo,left'),
    ('person,day 1/a.png,1,2,3,4', 'line 1: .* is not photo,left'), ('day 1/a.png,1,2,3', 'line 1: .* is not photo,left'),
    ('none.png,1,2,3,4', 'none.png'), ('\n\n', 'has no boxes'), (b'\xff\xfe', 'UTF-8')])
def test_a_box_that_cannot_be_cut_is_one_sentence(crop_boxes, text, match):
    with pytest.raises(InputError, match=match):
        crop_boxes[0](text)


def test_words_about_what_is_found():
    near, far = gallery.Found(1, 7, 'a.png', 0.25, True), gallery.Found(2, 3, 'b.png', 1.5, False)
    assert gallery.verdict([near, far], 0.5) == 'the same identity in 1 of the 2 nearest, at a distance of 0.5 at most.'
    assert gallery.verdict([far], 0.5).startswith('nobody. The nearest, b.png, is at a distance of 1.5')
    assert gallery.verdict([near._replace(same=None)], None) == 'the 1 nearest.'
    vote = votes.Vote('Ann', 2, 3)
    assert gallery.verdict([near._replace(same=None)], None, vote) == 'Ann by 2 of 3 votes: the 1 nearest.'
    assert [line.split() for line in gallery.table([near, far])] == [
        ['1', '0.25', 'same', 'a.png'], ['2', '1.5', 'other', 'b.png']]
    assert gallery.table([near._replace(name='Ann'), far])[0].split() == ['1', '0.25', 'same', 'Ann', 'a.png']


def indexed(embs):
    """Return an array [N, D] as `IndexedEmbeddings`."""
    rows = temporary_rows.TemporaryRows(*embs.shape)
    rows.write(np.arange(len(embs)), embs)
    return index.IndexedEmbeddings('', [f'{number}.png' for number in range(len(embs))], rows, {})


@pytest.mark.parametrize('seed', range(3))
def test_temporary_rows_are_an_array(seed):
    random = np.random.default_rng(seed)
    rows, array = temporary_rows.TemporaryRows(9000, 3), np.zeros((9000, 3), np.float32)
    for count in (1, 100, 5000):
        numbers = random.permutation(9000)[:count]
        if seed:
            numbers.sort()
        embs = random.standard_normal((count, 3)).astype(np.float32)
        rows.write(numbers, embs)
        array[numbers] = embs
        assert (rows[:] == array).all() and (rows[8000:9500] == array[8000:]).all()
        assert (rows.take(numbers)[:] == array[numbers]).all()
    assert rows[5:5].shape == (0, 3) and rows.take(np.arange(0)).shape == (0, 3)


def test_a_vote_names_the_photo_and_its_accuracy_is_measured():
    """Against a naive loop over the images that are not alone."""
    random = np.random.default_rng(0)
    names = np.array([f'{number}' for number in random.integers(0, 8, 60)] + ['alone'], object)
    embs = random.standard_normal((61, 3)).astype(np.float32)
    for threshold in (None, 0.8):
        opened = gallery.Gallery('made up', indexed(embs), 'euclidean', threshold, names=names)
        right = nobody = 0
        for row in range(60):
            distances = np.sqrt(((embs - embs[row]) ** 2).sum(axis=1))
            near = [other for other in np.argsort(distances, kind='stable') if other != row][:5]
            near = [names[other] for other in near if threshold is None or distances[other] <= threshold]
            counts = [near.count(name) for name in near]
            right += bool(near) and near[counts.index(max(counts))] == names[row]
            nobody += not near
        sentence = opened.vote_accuracy(5)
        assert f'is right for {right / 60:.1%} of 60 gallery images' in sentence
        assert (f'{nobody / 60:.1%} get no vote' in sentence) == bool(nobody) == (threshold is not None)
        found = opened.search(embs[60], 5)
        vote = opened.vote(found)
        assert found[0].name == 'alone' and vote.count == sum(each.same is not False for each in found)


def test_the_vote_on_labelled_photos():
    """Against a naive loop and scikit-learn. Identities 6 and 7 are not in the gallery; the first 5 photos are its rows."""
    random = np.random.default_rng(1)
    names = np.array([f'{number}' for number in random.integers(0, 6, 60)], object)
    centres = 2 * random.standard_normal((8, 3))
    embs = (centres[names.astype(int)] + random.standard_normal((60, 3))).astype(np.float32)
    true = random.integers(0, 8, 600)
    photos = np.concatenate([embs[:5], centres[true] + random.standard_normal((600, 3))]).astype(np.float32)
    true = np.array([*names[:5], *map(str, true)], object)
    fids = np.array([f'{row}.png' for row in [*range(60), *range(5), *range(60, 660)]], object)
    own_rows = np.concatenate([np.arange(5), np.full(600, -1)])

    def searched(count, rows=slice(None), name=None):
        pids = true[rows] if name is None else np.array([name], object)
        retrieval = Retrieval(photos[rows], Dataset('', pids, fids[60:][rows]), embs, Dataset('', names, fids[:60]),
                              exclusion.load('diagonal'), 'euclidean')
        return votes.labelled_photos(retrieval, count)

    labelled = searched(5)
    limits = votes.thresholds(labelled)
    assert len(limits) == 2 and len(labelled) == 605  # 0.1 % of the photos of unknown identities are not one photo.
    unknown = np.array([name in '67' for name in true])
    for limit, most in zip([None, *limits], (1, 0.1, 0.01)):
        counts = collections.Counter()
        for row, name in enumerate(true):
            distances = np.sqrt(((embs - photos[row]) ** 2).sum(axis=1))
            near = [other for other in np.argsort(distances, kind='stable') if other != own_rows[row]][:5]
            near = [names[other] for other in near if limit is None or distances[other] <= limit * (1 + 1e-6)]
            found = max(near, key=near.count) if near else None  # The first of equally frequent names.
            counts['unnamed' if found is None else 'named'] += bool(unknown[row])
            counts['nobody' if found is None else 'right' if found == name else 'wrong'] += not unknown[row]
        measured = votes.accuracy(labelled, limit)
        assert measured == (limit, *(counts[name] for name in votes.Accuracy._fields[1:]))
        assert measured.named == int(most * unknown.sum())
    for count in (1, 5):
        classifier = neighbors.KNeighborsClassifier(count).fit(embs, names.astype(str))
        for photo, name in zip(searched(count)[5:], classifier.predict(photos[5:])):
            frequent = collections.Counter(near for near, _ in photo.near).most_common(2)
            assert photo.vote(None).name == name or frequent[0][1] == frequent[-1][1]
    only_known = [photo for photo in labelled if photo.is_known]
    assert [votes.accuracy(only_known, limit).nobody for limit in votes.thresholds(only_known)] == [
        len(only_known) - int(fraction * len(only_known)) for fraction in (0.99, 0.9, 0.5)]
    assert votes.table([votes.accuracy(only_known, None)])[1].split()[-1] == '-'
    alone = searched(5, slice(1), '9')
    assert searched(5, slice(1), '-1') == []
    measured = votes.accuracy(alone, None)
    assert 'There are no people, so' in votes.sentence(measured, 'people', 5)
    assert votes.table([measured])[1].split() == ['none', '-', '-', '-', '100.00%']


def test_flags_without_effect_on_labelled_photos(tmp_path, capsys):
    """They are refused before a gallery is embedded."""
    save_embeddings(tmp_path / 'a.h5', load_dataset_of(tmp_path, ['x.png']), np.ones((1, 4), np.float32))
    parser = search_command.make_parser()
    for flags, part in ((['--gallery', tmp_path], 'have no identities'),
                        (['--gallery', tmp_path / 'a.h5', '--index', 'b.sqlite'], '--index without effect')):
        args = parser.parse_args(['--experiment_root', 'a', '--validation_set', 'b.csv', *map(str, flags)])
        with pytest.raises(SystemExit):
            search_command.check_gallery(args, parser)
        assert part in capsys.readouterr().err


def test_a_labelled_photo_does_not_find_itself_under_another_root(monkeypatch, capsys):
    """The first of three photos is a gallery image, whose path starts at another image root."""
    opened = gallery.Gallery('', indexed(np.array([[0], [1], [2]], np.float32)), 'euclidean', image_root='/a/images',
                             names=['Ann', 'Bob', 'Ann'])
    labelled = indexed(np.array([[0], [1], [2]], np.float32))
    labelled.fids = np.array(['images/0.png', 'photos/1.png', '2.png'], object)
    monkeypatch.setattr(search_command, 'open_images', lambda *_: (labelled, '/a', ['Ann', 'Bob', 'Ann']))
    args = SimpleNamespace(gallery='a.csv', validation_set='b.csv', index=None, excluder=None, count=1)
    search_command.measure_votes(opened, args, None, SimpleNamespace(index_name=lambda path: f'{path}.sqlite'))
    assert capsys.readouterr().out.splitlines()[1].split()[1:3] == ['66.67%', '33.33%']


def test_junk_is_nobody():
    """It has neither a name nor a vote, and the accuracy of the vote is measured without it."""
    embs = np.array([[0], [0.1], [0.2], [5], [5.1]], np.float32)
    opened = gallery.Gallery('made up', indexed(embs), 'euclidean', names=['-1', '-1', 'Ann', 'Bob', 'Bob'])
    found = opened.search(np.zeros(1, np.float32), 3)
    assert [each.name for each in found] == [None, None, 'Ann'] and opened.vote(found) == ('Ann', 1, 1)
    assert opened.vote(found[:2]) is None
    assert 'is right for 100.0% of 2 gallery images' in opened.vote_accuracy(1)


def test_names_copies_and_the_open_set_threshold(trained, tmp_path):
    """A photo from the gallery itself is skipped, whatever its name, in a csv gallery and in an .h5 file of it."""
    photo = tmp_path / 'another\nname\x1b[2J.png'
    shutil.copy(trained / 'gallery' / '2_1.png', photo)
    run = Run('embed.py', '--experiment_root', trained / 'run', '--dataset', trained / 'test.csv', '--filename',
              tmp_path / 'test.h5', '--quiet')
    assert run.wait() == 0, run.output
    answers = []
    shutil.copy(trained / 'query.csv', tmp_path / 'test.csv')  # It has the gallery's name.
    for flags in (['--image_root', trained], []):
        output = search(trained, photo, '--filename', tmp_path / 'found.json', *flags, '--validation_set',
                        tmp_path / 'test.csv' if flags else tmp_path / 'test.h5',
                        gallery='test.csv' if flags else tmp_path / 'test.h5')
        assert '\x1b' not in output and 'another\\nname\\x1b[2J.png is in the gallery as gallery/2_1.png' in output
        lines = output.splitlines()
        sentence = lines[-2] if lines[-1].startswith('Saved') else lines[-1]
        assert sentence.startswith('A vote of the 10 nearest is right for')
        size = 6 if flags else 19
        assert f"% of {size} photos of {'test.csv' if flags else 'test.h5'} with a known identity" in sentence
        head = next(number for number, line in enumerate(lines) if line.startswith(' threshold'))
        assert lines[head + 1].split()[0] == 'none' and len(lines[head + 1].split()) == 5
        (answer,) = json.loads((tmp_path / 'found.json').read_text())
        assert sorted(answer['skipped_copies']) == ['gallery/0_copy_of_2.png', 'gallery/2_1.png']
        assert len(answer['results']) == 10 and not {'gallery/0_copy_of_2.png', 'gallery/2_1.png'} & {
            each['fid'] for each in answer['results']}
        pids = dict(zip(*(getattr(load_dataset(trained / 'test.csv'), name).tolist() for name in ('fids', 'pids'))))
        assert all(each['name'] == pids[each['fid']] for each in answer['results'])
        votes = [each['name'] for each in answer['results']]
        assert answer['vote']['votes'] == votes.count(answer['vote']['name']) and answer['vote']['count'] == 10
        answers.append([each['fid'] for each in answer['results']])
    assert answers[0] == answers[1]
    run = Run('search.py', '--experiment_root', trained / 'run', '--gallery', trained / 'gallery', photo, '--far', '0.1',
              '--threshold_from', write_open_set(tmp_path / 'closed.json', []))
    ended_in_one_sentence(run, '--hold_out')
    output = search(trained, photo, '--metric', 'euclidean', '--far', '0.1', '--threshold_from', write_open_set(
        tmp_path / 'open.json', [{'far': 0.1, 'dir': 0.5, 'threshold': 1e-9}]))
    assert 'nobody. The nearest' in output and 'would be at 1e-09 at most' in output


def write_open_set(path, points):
    """Write an evaluation with open-set identification; return its path."""
    rates = {'tpr_at_fpr': [], 'auc': 0.5, 'eer': 0.5, 'genuine_pairs': 1, 'impostor_pairs': 1, 'curve': {
        'fpr': [1.0], 'tpr': [1.0], 'threshold': [1.0]}, 'histogram': {'edges': [0.0, 1.0], 'genuine': [1], 'impostor': [1]}}
    parameters = {name: 'x' for name in ('query_dataset', 'query_embeddings', 'gallery_dataset', 'gallery_embeddings')}
    query = {'fid': 'a', 'pid': '0', 'matches': 1, 'ap': 1.0, 'ap_market1501': 1.0, 'first_match_rank': 1,
             'last_match_rank': 1}
    path.write_text(json.dumps({
        'mAP': 1.0, 'mINP': 1.0, 'CMC': [1.0], 'aps': [1.0], 'queries': [query], 'counts': {}, 'confidence': {
            'mAP': None, 'top1': None}, 'parameters': {**parameters, 'metric': 'euclidean', 'excluder': 'diagonal'},
        'verification': rates, **({'open_set': {'queries': 1, 'unmatched_queries': 10, 'dir_at_far': points}} if points
                                  else {})}))
    return path
