"""Embeddings, a part at a time: no more of a gallery is in memory than one chunk."""
import numpy as np

GALLERY_AT_ONCE = 16384  # Images a chunk at most; with a query batch of 256 their distances take 16 MB.
TASKS_OF_A_WORKER = 8  # At most, where several share a large gallery.
CHUNK_NUMBERS = 1 << 22  # In the embeddings of a chunk, at most: another 16 MB.
QUERIES_AT_ONCE = 4096  # For more queries than these,
RERANKED_AT_ONCE = 1024  # Of queries: what re-ranking knows of each takes memory in proportion to the gallery.
MATCHES_AT_ONCE = 1 << 20  # or more true matches, the gallery is read once more.


def read(source, start, stop):
    """Embeddings [start, stop) of an open `Embeddings` or an array, float32 [stop - start, D]."""
    if hasattr(source, 'rows'):
        return source.rows(start, stop)
    return np.asarray(source[start:stop], dtype=np.float32)


def read_rows(source, rows, block=65536):
    """Some rows of open `Embeddings` or an array, float32 [len(rows), D]; of a file the blocks that they are in."""
    found = np.empty((len(rows), source.shape[1]), np.float32)
    of_row = rows // block
    for number in np.unique(of_row):
        here = of_row == number
        start = number * block
        found[here] = read(source, start, min(start + block, len(source)))[rows[here] - start]
    return found


def of_gallery(gallery, start, stop, keep=None):
    """Rows int64 [C] and embeddings [C, D] of the gallery from `start` to `stop`, a chunk at a time.

    With a mask `keep` [stop - start] only the images that it names.
    """
    images = min(GALLERY_AT_ONCE, max(1, CHUNK_NUMBERS // gallery.shape[1]))
    for first in range(start, stop, images):
        last = min(first + images, stop)
        if keep is None:
            yield np.arange(first, last), read(gallery, first, last)
            continue
        kept = np.flatnonzero(keep[first - start:last - start])
        if len(kept):
            yield first + kept, read(gallery, first, last)[kept]


def queries_at_once(reranking):
    """How many queries may pass by the gallery together, given what `k_reciprocal` returns or None."""
    return QUERIES_AT_ONCE if reranking is None else min(QUERIES_AT_ONCE, RERANKED_AT_ONCE)


def slices(count, batch_size):
    """Slices of `batch_size` that cover `count`."""
    return [slice(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]


def tasks_of_gallery(count, workers):
    """Slices of a gallery of `count` images: even ones for each of so many workers, several so that none of them waits
    for the last. Each has a result for every match of the queries, so of a large gallery they are not as small as can be.
    """
    at_most = GALLERY_AT_ONCE if workers == 1 else max(GALLERY_AT_ONCE, count // (TASKS_OF_A_WORKER * workers))
    return even_slices(count, at_most, workers)


def even_slices(count, at_most, multiple):
    """Slices of nearly one length, `at_most` long, that cover `count`: a multiple of that many, if `count` allows."""
    number = -(-count // (at_most * multiple)) * multiple
    bounds = [count * i // number for i in range(number + 1)]
    return [slice(start, stop) for start, stop in zip(bounds, bounds[1:]) if start < stop]


def ranges(starts, stops):
    """The numbers of all the ranges [start, stop), one range behind the other: int64 [sum of their lengths]."""
    lengths = stops - starts
    ends = np.cumsum(lengths)
    return np.repeat(starts - ends + lengths, lengths) + np.arange(lengths.sum())
