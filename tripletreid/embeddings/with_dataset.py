"""An embedding file together with the csv file of its rows."""
import itertools

import numpy as np

from tripletreid.dataset import BLOCK, Dataset, load_dataset, read_blocks
from tripletreid.embeddings.shards import open_embeddings
from tripletreid.errors import InputError


def open_with_dataset(paths, dataset):
    """Open embedding files as one and check their rows against a dataset.

    Args:
        paths: a list as `shards.in_order` takes it.
        dataset: `Dataset`.

    Returns: (embeddings, dataset), the dataset reduced to one row per tracklet where the file holds pooled tracklets.

    Raises:
        InputError: a file that cannot be read, or rows of another dataset.
    """
    embeddings = open_embeddings(paths)
    try:
        if embeddings.pooled:
            if dataset.tracklets is None:
                raise InputError(f'{embeddings.path} has one row per tracklet, but {dataset.path} has no tracklet column.')
            dataset = dataset.first_frames()
        embeddings.check_matches(dataset)
    except InputError:
        embeddings.close()
        raise
    return embeddings, dataset


def open_gallery(paths, dataset_path):
    """Open embedding files and their csv file as `open_with_dataset`, for millions of images.

    The file ids stay in the embedding file, except for pooled tracklets and for files of the original, which have none.

    Args:
        paths: a list as `shards.in_order` takes it.
        dataset_path: path of the csv file.
    """
    embeddings = open_embeddings(paths)
    pids = []

    def blocks():
        for block_pids, block_fids, *_ in read_blocks(dataset_path):
            pids.append(np.array(block_pids, object))
            yield block_fids

    if embeddings.pooled or not embeddings.has_fids:
        embeddings.close()
        return open_with_dataset(paths, load_dataset(dataset_path, np.dtypes.StringDType()))
    try:
        embeddings.check_fids(blocks(), dataset_path)
    except InputError:
        embeddings.close()
        raise
    return embeddings, Dataset(str(dataset_path), np.concatenate(pids), StoredFids(embeddings, range(len(embeddings))))


class StoredFids:
    """File ids of an open embedding file, read on demand, for galleries of millions of images.

    Behaves as an object array of str [N] when indexed, sliced or iterated.
    """

    def __init__(self, embeddings, rows):
        """Takes open `Embeddings` and a range of their rows."""
        self.embeddings = embeddings
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return StoredFids(self.embeddings, self.rows[index])
        rows = np.arange(self.rows.start, self.rows.stop, self.rows.step)[index]
        first = rows.min(initial=len(self.embeddings))
        return self.embeddings.fids_of_rows(first, rows.max(initial=0) + 1)[rows - first]

    def __iter__(self):
        return itertools.chain.from_iterable(self[np.arange(start, min(start + BLOCK, len(self)))].tolist()
                                             for start in range(0, len(self), BLOCK))
