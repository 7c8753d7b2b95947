"""Embeddings in chunks: at most one chunk of a gallery is in memory."""
import numpy as np

GALLERY_AT_ONCE = 16384  # Most images of a chunk; with a query batch of 256 their distances take 16 MB.
IMAGES_OF_A_TILE = 1024  # With a query batch of 256 their distances in float64, 2 MB, stay in the CPU cache.
TASKS_OF_A_WORKER = 8  # Most tasks per worker, where several workers share a large gallery.
CHUNK_NUMBERS = 1 << 22  # Most numbers in the embeddings of a chunk: another 16 MB.
QUERIES_AT_ONCE = 4096  # Most queries per reading of the gallery; for more it is read again.
RERANKED_AT_ONCE = 1024  # Most re-ranked queries per reading, because each takes memory for the whole gallery.
MATCHES_AT_ONCE = 1 << 20  # Most true matches per reading of the gallery.


def read(source, start, stop):
    """Read rows [start, stop) of open `Embeddings` or an array, float32 [stop - start, D]."""
    if hasattr(source, 'rows'):
        return source.rows(start, stop)
    return np.asarray(source[start:stop], dtype=np.float32)


def read_rows(source, rows, block=65536):
    """Read some rows of open `Embeddings` or an array, float32 [len(rows), D]; a file is read in blocks."""
    found = np.empty((len(rows), source.shape[1]), np.float32)
    block_numbers = rows // block
    for number in np.unique(block_numbers):
        here = block_numbers == number
        start = number * block
        found[here] = read(source, start, min(start + block, len(source)))[rows[here] - start]
    return found


def gallery_chunks(gallery, start, stop, keep=None):
    """Yield rows int64 [C] and embeddings [C, D] of the gallery from `start` to `stop`, chunk by chunk.

    A mask `keep` [stop - start] selects images.
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
    """Return the most queries per reading of the gallery, given a `Reranking` or None."""
    return QUERIES_AT_ONCE if reranking is None else min(QUERIES_AT_ONCE, RERANKED_AT_ONCE)


def slices(count, batch_size):
    """Return slices of `batch_size` that cover `count`."""
    return [slice(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]


def tasks_of_gallery(count, workers):
    """Return equal slices of a gallery of `count` images for `workers` workers, several for each to balance the load.

    Every slice returns counts for all matches of the queries, so that slices of a large gallery are not the smallest.
    """
    at_most = GALLERY_AT_ONCE if workers == 1 else max(GALLERY_AT_ONCE, count // (TASKS_OF_A_WORKER * workers))
    return even_slices(count, at_most, workers)


def even_slices(count, at_most, multiple):
    """Return nearly equal slices of at most `at_most` that cover `count`; their number is a multiple of `multiple`."""
    number = -(-count // (at_most * multiple)) * multiple
    bounds = [count * i // number for i in range(number + 1)]
    return [slice(start, stop) for start, stop in zip(bounds, bounds[1:]) if start < stop]


def ranges(starts, stops):
    """Return the numbers of all ranges [start, stop), range after range: int64 [sum of their lengths]."""
    lengths = stops - starts
    ends = np.cumsum(lengths)
    return np.repeat(starts - ends + lengths, lengths) + np.arange(lengths.sum())
