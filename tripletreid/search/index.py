"""The index of a gallery: an embedding file of its images, in which only what is new or changed is embedded.

It is an `.h5` file as embed.py writes it, with `stamps` beside the rows (size and time of each image file, int64 [N, 2])
and `broken`, the images that could not be read: {file id: [size, time, reason]} as JSON. What is embedded goes to a
journal first, a hidden file beside the index. So an interrupted embedding goes on, whatever has become of the folder
meanwhile, and the index is always one that was whole.
"""
import contextlib
import json
import os
import zlib

import numpy as np

from tripletreid import signals
from tripletreid.dataset import Dataset
from tripletreid.embeddings.differences import difference
from tripletreid.embeddings.reader import Embeddings
from tripletreid.embeddings.writer import EmbeddingWriter, FileContent, unfinished
from tripletreid.errors import InputError
from tripletreid.evaluation import chunks
from tripletreid.files import lock, write_at

VERSION = 1


def up_to_date(path, images, embedder, say):
    """Bring the index of a gallery up to date, and open it.

    Args:
        path: of the index; made where there is none, and made anew where it is by another checkpoint or other flags.
        images: `ImageFiles` of the gallery.
        embedder: `Embedder`, or what has its `made_by`, `dim`, `files` and `why_broken`.
        say: called with a sentence for what the user should know.

    Returns: open `Embeddings` of all images that can be read, in their order; and {file id: reason} of the others.

    Raises:
        InputError: a file that is no index, is damaged, of another version or of another gallery; or no image can be
            read.
        OSError: the disk is full. What is embedded is kept.
    """
    index = _Index.read(path, images, embedder)
    if index.is_of(images):
        say(f'{path}: {len(index.embeddings)} images, none of them new.')
        return index.embeddings, index.reasons()
    index.close()
    with _journal_of(path, say) as journal:
        index = _Index.read(path, images, embedder)  # Another process may have done the work while this one waited.
        if not index.is_of(images):
            journal.open(embedder)
            say(f'{path}: {index.sentence_of_changes(images, journal)}')
            broken = _embed_missing(images, index, journal, embedder)
            _write(path, images, index, journal, broken, embedder)
            index.close()
            index = _Index.read(path, images, embedder)
        journal.remove()
    return index.embeddings, index.reasons()


class _Index:
    """An index as it was found; one without images where there is none, or one made differently.

    embeddings: open `Embeddings`, or None.
    place: path of the gallery and folder of its images.
    fids: list [N], row_of: {file id: row} and stamps: int64 [N, 2], of the images in it.
    broken: {file id: (size, time, reason)}.
    reason: why it is made anew, in words, or None.
    """

    def __init__(self):
        self.embeddings, self.reason, self.place = None, None, None
        self.fids, self.row_of, self.stamps, self.broken = [], {}, np.zeros((0, 2), np.int64), {}

    @classmethod
    def read(cls, path, images, embedder):
        """The index of a gallery. Raises InputError as `up_to_date`."""
        index = cls()
        if not os.path.lexists(path):
            return index
        try:
            embeddings = Embeddings(path)
        except InputError as error:
            raise InputError(f'{path} is no index of search.py, or a damaged one: give another --index, or remove it '
                             f'if it is of no use.') from error
        with contextlib.ExitStack() as opened:
            opened.enter_context(embeddings)
            parameters = embeddings.parameters
            version = parameters.get('search_index')
            if version is None:
                raise InputError(f'{path} is not an index of search.py, so it is not overwritten: give another --index.')
            if version != VERSION:
                raise InputError(f'{path} is an index of version {version}, and this is version {VERSION}: remove it, or '
                                 f'give another --index.')
            gallery = parameters.get('gallery')
            if gallery != images.path and os.path.exists(str(gallery)):
                raise InputError(f'{path} is the index of another gallery, {gallery}: give another --index.')
            index.reason = difference(parameters, embedder.made_by)
            if index.reason is None:
                index._take_in(embeddings, path)
                opened.pop_all()
        return index

    def _take_in(self, embeddings, path):
        try:
            self.stamps = embeddings.additional_array('stamps')
            broken = json.loads(embeddings.additional_array('broken').tobytes())
            self.broken = {fid: tuple(entry) for fid, entry in broken.items()}
            self.fids = embeddings.fids.tolist()
            if self.stamps.shape != (len(self.fids), 2) or any(len(entry) != 3 for entry in self.broken.values()):
                raise ValueError
        except (InputError, ValueError, TypeError, AttributeError) as error:
            raise InputError(f'{path} is a damaged index: remove it, or give another --index.') from error
        self.embeddings = embeddings
        self.place = embeddings.parameters.get('gallery'), embeddings.parameters.get('image_root')
        self.row_of = {fid: row for row, fid in reversed(list(enumerate(self.fids)))}

    def close(self):
        if self.embeddings is not None:
            self.embeddings.close()

    def reasons(self):
        return {fid: reason for fid, (*_, reason) in self.broken.items()}

    def row(self, fid, stamp):
        """The row of an image as it is now, or None."""
        row = self.row_of.get(fid)
        return row if row is not None and tuple(self.stamps[row].tolist()) == stamp else None

    def is_known_as_broken(self, fid, stamp):
        return fid in self.broken and self.broken[fid][:2] == stamp

    def is_of(self, images):
        """Whether it has the very images of a gallery, as they are now and in their order."""
        if self.embeddings is None or self.place != (images.path, images.root):
            return False
        fids, stamps = images.fids, images.stamps
        if self.broken:
            keep = np.array([not self.is_known_as_broken(fid, tuple(stamp))
                             for fid, stamp in zip(fids, stamps.tolist())], bool)
            if len(set(fids) & self.broken.keys()) < len(self.broken):
                return False
            fids, stamps = [fid for fid, kept in zip(fids, keep) if kept], stamps[keep]
        return self.fids == fids and np.array_equal(self.stamps, stamps)

    def sentence_of_changes(self, images, journal):
        """What has to be done, in a line."""
        stamps = list(map(tuple, images.stamps.tolist()))
        there = {**self.row_of, **self.broken}
        new = sum(fid not in there for fid in images.fids)
        changed = sum(fid in there and self.row(fid, stamp) is None and not self.is_known_as_broken(fid, stamp)
                      for fid, stamp in zip(images.fids, stamps))
        gone = len(there.keys() - set(images.fids))
        kept = sum(journal.offset(fid, stamp) is not None for fid, stamp in zip(images.fids, stamps))
        numbers = ', '.join(f'{number} {word}' for number, word in
                            ((new, 'new'), (changed, 'changed'), (gone, 'gone')) if number) or 'none of them new'
        return (f'{f"made anew, since it is by {self.reason}; " if self.reason else ""}{len(images)} images, {numbers}'
                f'{f" ({kept} were embedded before an interruption)" if kept else ""}.')


def _embed_missing(images, index, journal, embedder):
    """Embed into the journal what neither that nor the index has. Returns {file id: (size, time, reason)} of the broken."""
    stamp_of = dict(zip(images.fids, map(tuple, images.stamps.tolist())))
    broken = {fid: entry for fid, entry in index.broken.items() if stamp_of.get(fid) == entry[:2]}

    def look_for_broken(fids):
        path_of = {os.path.join(images.root, fid): fid for fid in fids}
        reasons = {path_of[path]: reason for path, reason in embedder.why_broken(list(path_of)).items()}
        broken.update({fid: (*stamp_of[fid], reason) for fid, reason in reasons.items()})
        return reasons

    missing = [fid for fid, stamp in stamp_of.items() if fid not in broken
               and index.row(fid, stamp) is None and journal.offset(fid, stamp) is None]
    while missing := [fid for fid in missing if fid not in broken and journal.offset(fid, stamp_of[fid]) is None]:
        done = 0
        try:
            for embs in embedder.files([os.path.join(images.root, fid) for fid in missing]):
                some = missing[done:done + len(embs)]
                journal.append(some, [stamp_of[fid] for fid in some], embs)
                done += len(embs)
        except InputError:
            # A look at all of them costs more than most nets, so it waits for the first one that is broken.
            if not look_for_broken(missing[done:]):
                raise
    return broken


def _write(path, images, index, journal, broken, embedder):
    """Write the index of all images that are in the one before or in the journal."""
    sources = [(fid, index.row(fid, stamp), journal.offset(fid, stamp))
               for fid, stamp in zip(images.fids, map(tuple, images.stamps.tolist()))]
    keep = np.array([(row, offset) != (None, None) for _, row, offset in sources], bool)
    if not keep.any():
        raise InputError(f'Not one image of {images.path} can be read, the first of them {images.fids[0]}: '
                         f'{broken[images.fids[0]][2]}.')
    kept = [source for source, is_kept in zip(sources, keep) if is_kept]
    fids = np.array([fid for fid, *_ in kept], object)
    parameters = {**embedder.made_by, 'search_index': VERSION, 'gallery': images.path, 'image_root': images.root}
    more = {'stamps': images.stamps[keep], 'broken': np.frombuffer(json.dumps(broken).encode(), np.uint8)}
    try:
        content = FileContent(Dataset(images.path, fids, fids), embedder.dim, parameters, arrays=more)
        with EmbeddingWriter(path, content) as writer:
            for some in chunks.slices(len(kept), chunks.GALLERY_AT_ONCE):
                writer.append(_gathered(kept[some], index, journal, embedder.dim))
    except BaseException:
        # All of it is in the journal and in the index before: it need not take room on a full disk.
        with contextlib.suppress(FileNotFoundError):
            os.remove(unfinished(path))
        raise


def _gathered(sources, index, journal, dim):
    """Embeddings float32 [n, D] of n pairs (row in the index, offset in the journal), one of both None."""
    embs = np.empty((len(sources), dim), np.float32)
    in_index = np.array([row is not None for _, row, _ in sources], bool)
    places, rows = np.flatnonzero(in_index), np.array([row for _, row, _ in sources if row is not None], np.int64)
    ends = [0, *np.flatnonzero(np.diff(rows) != 1) + 1, len(rows)]
    for first, last in zip(ends, ends[1:]):
        if first < last:
            embs[places[first:last]] = index.embeddings.rows(rows[first], rows[last - 1] + 1)
    for place in np.flatnonzero(~in_index):
        embs[place] = journal.row(sources[place][2])
    return embs


@contextlib.contextmanager
def _journal_of(path, say):
    """The `_Journal` of an index, for this process alone; others wait here."""
    folder, name = os.path.split(os.path.abspath(path))
    journal_path = os.path.join(folder, f'.{name}.journal')
    while True:
        # Not truncated before it is known that nobody else writes there.
        file = open(os.open(journal_path, os.O_RDWR | os.O_CREAT, 0o666), 'r+b', buffering=0)
        with contextlib.ExitStack() as opened:
            opened.enter_context(file)
            if not lock(file):
                say(f'Another process is at work on {path}: waiting for it.')
                lock(file, wait=True)
            # Who had the lock may have removed the file: then it is of no file any more, and somebody else may have one.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), os.stat(journal_path)):
                    opened.pop_all()
                    break
    with file:
        journal = _Journal(file, journal_path)
        with signals.undone(journal.tell_what_is_kept):
            try:
                yield journal
            except BaseException:
                journal.remove_if_empty()
                raise


class _Journal:
    """Embeddings that are on the disk, but not in the index yet: blocks that are appended, each with its checksum.

    A block is the length of its head and the CRC-32 of all that follows, both 4 bytes; the head, JSON; and the rows,
    float32 [B, D]. The head of the first block tells what made the rows, those of the others which images they are of.
    """

    def __init__(self, file, path):
        self.file, self.path, self.places, self.end = file, path, {}, 0

    def open(self, embedder):
        """Find the rows that were made in the same way; others, and a block that was not written to its end, are dropped."""
        self.dim = embedder.dim
        first = True
        while (block := self._read_block()) is not None:
            head, size = block
            if first and head != embedder.made_by:
                break
            if not first:
                for number, (fid, *stamp) in enumerate(head):
                    self.places[fid] = tuple(stamp), self.end + size - (len(head) - number) * self.dim * 4
            first = False
            self.end += size
        self.file.truncate(self.end)
        if first:
            self._append(embedder.made_by, b'')

    def _read_block(self):
        """The head of the block at the end of those that were read, and the size of the block; None where there is none."""
        count = int.from_bytes(os.pread(self.file.fileno(), 4, self.end), 'little')
        content = os.pread(self.file.fileno(), 4 + count, self.end + 4)
        with contextlib.suppress(ValueError, RecursionError, TypeError):
            head = json.loads(content[4:])
            rows = len(head) if isinstance(head, list) else 0
            payload = os.pread(self.file.fileno(), rows * self.dim * 4, self.end + 8 + count)
            whole = len(payload) == rows * self.dim * 4
            if whole and zlib.crc32(content[4:] + payload) == int.from_bytes(content[:4], 'little'):
                return head, 8 + count + len(payload)
        return None

    def append(self, fids, stamps, embs):
        """Keep the rows of some images: float32 [B, D]."""
        head = [(fid, *stamp) for fid, stamp in zip(fids, stamps)]
        start = self._append(head, np.ascontiguousarray(embs, '<f4').tobytes())
        for number, (fid, stamp) in enumerate(zip(fids, stamps)):
            self.places[fid] = stamp, start + number * self.dim * 4

    def _append(self, head, payload):
        content = json.dumps(head).encode()
        checksum = zlib.crc32(content + payload).to_bytes(4, 'little')
        try:
            write_at(self.file, self.end, len(content).to_bytes(4, 'little') + checksum + content + payload)
            os.fsync(self.file.fileno())
        except OSError as error:
            error.filename = error.filename or self.path
            raise
        start = self.end + 8 + len(content)
        self.end = start + len(payload)
        return start

    def offset(self, fid, stamp):
        """Where the row of an image as it is now begins, or None."""
        kept, offset = self.places.get(fid, (None, None))
        return offset if kept == stamp else None

    def row(self, offset):
        return np.frombuffer(os.pread(self.file.fileno(), 4 * self.dim, offset), '<f4')

    def remove(self):
        with contextlib.suppress(FileNotFoundError):
            os.remove(self.path)

    def tell_what_is_kept(self):
        """For a signal that ends the process; not by `print`, which it may have come upon."""
        if self.places:
            os.write(2, f'\nInterrupted. {len(self.places)} embeddings are kept, and the same command goes on.\n'.encode())
        self.remove_if_empty()

    def remove_if_empty(self):
        if not self.places:
            self.remove()
