"""The index of a gallery: a SQLite database of embeddings, so that a search embeds only new and changed images.

Each batch of embeddings is one transaction, so a killed process loses one batch at most. While one process updates the
index, others wait for SQLite's lock. Each row has a checksum, and a row that does not match it is embedded again.
"""
import contextlib
import json
import os
import sqlite3
import zlib

import numpy as np

from tripletreid import signals
from tripletreid.errors import InputError
from tripletreid.search import database
from tripletreid.search.temporary_rows import TemporaryRows

ROWS_AT_ONCE = 1024
NOT_FINITE = 'its embedding is not finite'


class IndexedEmbeddings:
    """The embeddings of a gallery, with the interface of `Embeddings`.

    Attributes:
        path: of the index.
        fids: file ids, object array [N].
        embs: `TemporaryRows` [N, D].
        problems: {file id: reason} of the images that are not among them.
    """
    has_fids = True

    def __init__(self, path, fids, embs, problems):
        self.path, self.fids, self.embs, self.problems = path, np.array(fids, object), embs, problems
        self.shape = embs.shape

    def __len__(self):
        return len(self.fids)

    def fids_of_rows(self, start, stop):
        """Return the file ids of the rows [start, stop)."""
        return self.fids[start:stop]

    def rows(self, start, stop):
        """Return the embeddings of the rows [start, stop), float32 [stop - start, D]."""
        return self.embs[start:stop]

    def read_into(self, start, embs):
        """Read as `Embeddings` does."""
        return self.embs.read_into(start, embs)


def up_to_date(path, files, embedder, report):
    """Bring the index of a gallery up to date and load it.

    Args:
        path: of the index, which is created if it does not exist.
        files: `ImageFiles` of the gallery.
        embedder: `Embedder`, or another object with its `made_by`, `dim`, `files` and `problems`.
        report: function that is called with each sentence for the user.

    Returns: `IndexedEmbeddings` of all images that can be read, in the order of `files`.

    Raises:
        InputError: the file is not an index, or is the index of another gallery, or no image can be read.
    """
    if database.has_old_format(path):
        database.set_aside(path, '.old', 'is an index of an earlier version', report)
    with database.sentences(path):
        try:
            return _updated(path, files, embedder, report)
        except sqlite3.DatabaseError as error:
            if not (database.is_damage(error) and database.is_ours(path)):
                raise
            database.set_aside(path, '.damaged', f'is damaged ({error})', report)
        return _updated(path, files, embedder, report)


def _updated(path, files, embedder, report):
    with contextlib.closing(database.connect(path, report)) as connection:
        index = _Index(connection, path, files, embedder)
        if index.is_complete():
            report(f'{path}: {len(files)} images, none of them new.')
        else:
            report(f'{path}: {index.changes()}')
            with signals.undone(index.report_interruption):
                index.embed_missing()
            index.finish()
        return index.loaded()


class _Index:
    """An open index, and the state of a gallery's images in it.

    embs: `TemporaryRows` [N, D], the embeddings of the images as far as they are known.
    missing: numbers of the images without a valid row, ascending.
    problems: {file id: reason}.
    kept: number of embeddings that this process has stored.
    """

    def __init__(self, connection, path, files, embedder):
        self.connection, self.path, self.files, self.embedder = connection, path, files, embedder
        self.made_by = json.dumps([embedder.dim, embedder.made_by], sort_keys=True)
        self.seed = zlib.crc32(self.made_by.encode())
        self.number_of = {fid: number for number, fid in reversed(list(enumerate(files.fids)))}
        self.embs = TemporaryRows(len(files), embedder.dim)
        self.problems, self.kept = {}, 0
        self._check_gallery()
        self._read()

    def _check_gallery(self):
        settings = dict(self.connection.execute('SELECT name, value FROM settings'))
        self.place = settings.get('gallery'), settings.get('image_root')
        gallery = self.place[0]
        if gallery != self.files.path and gallery and os.path.exists(gallery):
            raise InputError(f'{self.path} is the index of another gallery, {gallery}: give another --index.')
        self.complete = settings.get('complete')

    def _read(self):
        """Load the rows of the gallery's images; damaged rows and rows of changed images count as missing."""
        found = self.connection.execute('SELECT model FROM models WHERE made_by = ?', [self.made_by]).fetchone()
        self.model = found and found[0]
        self.other_models = self.connection.execute('SELECT COUNT(*) FROM models').fetchone()[0] - bool(found)
        self.gone, self.changed, self.damaged = [], set(), set()
        is_missing = np.zeros(len(self.files), bool)
        is_missing[list(self.number_of.values())] = True
        # With a + the condition does not use the table's index, which would read the rows in another order than the disk's.
        rows = self.connection.execute('SELECT rowid, fid, size, changed, emb, problem, checksum FROM images '
                                       'WHERE +model = ?', [self.model])
        while block := rows.fetchmany(ROWS_AT_ONCE):
            numbers = self._read_block(block)
            is_missing[numbers] = False
        is_missing[list(self.damaged)] = True
        self.missing = np.flatnonzero(is_missing).tolist()

    def _read_block(self, block):
        """Load rows of the table; return the numbers of their images whose rows are valid."""
        width = 4 * self.embedder.dim
        with_problem, numbers, embs = [], [], []
        for row, fid, size, changed, emb, problem, checksum in block:
            number = self.number_of.get(fid)
            if number is None:
                if not self.files.is_away(str(fid)):
                    self.gone.append([row])
            elif self.files.stamps[number].tolist() != [size, changed]:
                self.changed.add(number)
            elif checksum != self._checksum(fid, size, changed, emb, problem):
                self.damaged.add(number)
            elif isinstance(problem, str):
                self.problems[fid] = problem
                with_problem.append(number)
            elif isinstance(emb, bytes) and len(emb) == width:
                numbers.append(number)
                embs.append(emb)
            else:
                self.damaged.add(number)
        numbers = np.array(numbers, np.int64)
        embs = np.frombuffer(b''.join(embs), '<f4').reshape(-1, self.embedder.dim)
        self.embs.write(numbers, embs)
        self.damaged.update(numbers[~np.isfinite(embs.sum(axis=1, dtype=np.float64))].tolist())
        return np.concatenate([numbers, np.array(with_problem, np.int64)])

    def _checksum(self, fid, size, changed, emb, problem):
        checksum = zlib.crc32(f'{fid}\0{size} {changed}\0{problem}\0'.encode(), self.seed)
        return zlib.crc32(emb, checksum) if isinstance(emb, bytes) else checksum

    def is_complete(self):
        """Check whether the index holds exactly the images of the gallery as they are now."""
        return (self.place == (self.files.path, self.files.root) and self.model is not None and self.complete == self.made_by
                and not (self.missing or self.gone))

    def changes(self):
        """Return a sentence about the work to do."""
        new = len(self.missing) - len(self.changed | self.damaged)
        counts = (new, 'new'), (len(self.changed), 'changed'), (len(self.damaged), 'damaged'), (len(self.gone), 'gone')
        numbers = ', '.join(f'{number} {word}' for number, word in counts if number) or 'none of them new'
        rebuilt = 'rebuilt for another checkpoint or other flags; ' if self.other_models else ''
        embedded = len(self.number_of) - len(self.missing)
        kept = f'; {embedded} were embedded before an interruption' if self.complete != self.made_by and embedded else ''
        return f'{rebuilt}{len(self.files)} images, {numbers}{kept}.'

    def embed_missing(self):
        """Embed the missing images, a batch and a transaction at a time."""
        missing, retried = self.missing, False
        while missing:
            done = 0
            try:
                for embs in self.embedder.files([self._file(number) for number in missing]):
                    self._store(missing[done:done + len(embs)], embs)
                    done += len(embs)
            except InputError:
                # Checking all images costs more than most nets, so that waits for the first failure.
                failed = self._failed(missing[done:])
                if not failed and (retried and not done):
                    raise
                missing, retried = [number for number in missing[done:] if number not in failed], True
            else:
                missing = []

    def _file(self, number):
        return os.path.join(self.files.root, self.files.fids[number])

    def _failed(self, numbers):
        """Return which images cannot be read now. A problem of the file's content is stored; others may pass."""
        problems = self.embedder.problems([self._file(number) for number in numbers])
        failed = {}
        for number in numbers:
            if problem := problems.get(self._file(number)):
                failed[number] = problem
                self.problems[self.files.fids[number]] = problem.reason
        self._write([(number, None, problem.reason) for number, problem in failed.items() if problem.is_lasting])
        return failed

    def _store(self, numbers, embs):
        finite = np.isfinite(embs).all(axis=1)
        embs = np.ascontiguousarray(embs, '<f4')
        self.embs.write(np.array(numbers), embs)
        self.problems.update({self.files.fids[number]: NOT_FINITE for number, good in zip(numbers, finite) if not good})
        self._write([(number, row.tobytes(), None) if good else (number, None, NOT_FINITE)
                     for number, row, good in zip(numbers, embs, finite)])
        self.kept += len(numbers)

    def _write(self, rows):
        """Store rows (number, embedding as bytes or None, problem or None) in one transaction."""
        with self._transaction() as execute:
            if self.model is None:
                self.model = execute('INSERT INTO models (made_by) VALUES (?)', [self.made_by]).lastrowid
            for number, emb, problem in rows:
                key = self.files.fids[number], *self.files.stamps[number].tolist()
                execute('INSERT OR REPLACE INTO images VALUES (?, ?, ?, ?, ?, ?, ?)',
                        [self.model, *key, emb, problem, self._checksum(*key, emb, problem)])

    @contextlib.contextmanager
    def _transaction(self):
        self.connection.execute('BEGIN')
        try:
            yield self.connection.execute
            self.connection.execute('COMMIT')
        except BaseException:
            with contextlib.suppress(sqlite3.Error):  # SQLite has ended the transaction itself, e.g. on a full disk.
                self.connection.execute('ROLLBACK')
            raise

    def finish(self):
        """Remove images that are gone and other models, once all images of the gallery are embedded."""
        if len(self.problems) == len(self.number_of):
            fid = self.files.fids[0]
            raise InputError(f'No image of {self.files.path} can be read. The first is {fid}: {self.problems[fid]}.')
        with self._transaction() as execute:
            for row in self.gone:
                execute('DELETE FROM images WHERE rowid = ?', row)
            execute('DELETE FROM images WHERE model != ?', [self.model])
            execute('DELETE FROM models WHERE model != ?', [self.model])
            for name, value in (('gallery', self.files.path), ('image_root', self.files.root), ('complete', self.made_by)):
                execute('INSERT OR REPLACE INTO settings VALUES (?, ?)', [name, value])

    def loaded(self):
        """Return the `IndexedEmbeddings`. A file id that the gallery repeats has the embedding of its first row."""
        sources = np.array([self.number_of[fid] for fid in self.files.fids if fid not in self.problems], np.int64)
        whole = len(sources) == len(self.files) and (np.diff(sources) == 1).all()
        fids = [self.files.fids[number] for number in sources]
        return IndexedEmbeddings(self.path, fids, self.embs if whole else self.embs.take(sources), self.problems)

    def report_interruption(self):
        """Report the number of kept embeddings when a signal ends the process, which may have interrupted `print`."""
        if self.kept:
            os.write(2, f'\nInterrupted. {self.kept} embeddings are kept, and the same command goes on.\n'.encode())
