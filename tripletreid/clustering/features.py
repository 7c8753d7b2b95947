"""Embeddings made comparable across cameras before they are clustered: centred per camera and partly whitened."""
import dataclasses

import numpy as np

from tripletreid.errors import InputError
from tripletreid.evaluation import chunks

BLOCK = 1 << 14  # Rows read at a time.
SMALLEST_SHARE = 1e-2  # Variances below this fraction of their mean are noise, which whitening must not amplify.


@dataclasses.dataclass
class Features:
    """Embeddings of length 1, centred and whitened where they are read, so that a file of any size stays a file.

    source: open `Embeddings` or an array [N, D].
    shape: (N, D).
    centres: float64 [C, D], the mean of the normalised embeddings of each camera.
    cameras: number of the camera of each row, int [N].
    rotation: float64 [D, D], applied after centring.
    """
    source: object
    shape: tuple
    centres: np.ndarray
    cameras: np.ndarray
    rotation: np.ndarray

    def __len__(self):
        return self.shape[0]

    def rows(self, start, stop):
        """Return the features [start, stop), float32 [stop - start, D], of length 1."""
        embs = _normalised(chunks.read(self.source, start, stop))
        return _normalised((embs - self.centres[self.cameras[start:stop]]) @ self.rotation).astype(np.float32)

    def all(self):
        """Return all features, float32 [N, D]."""
        return self.rows(0, len(self))


def features(embeddings, cameras=None, whitening=0.5):
    """Prepare embeddings for clustering; the first pass computes means and covariance.

    Images of one camera share its colours and background, and so part of their embedding. Subtracting the mean of each
    camera removes that part. Whitening divides the principal components by a power of their standard deviation, because
    a few of them dominate the distances of embeddings on a domain that the net was not trained on.

    Args:
        embeddings: open `Embeddings` or an array [N, D].
        cameras: name of the camera of each row [N]; None: all rows have one camera.
        whitening: exponent from 0 (none) to 1 (all components have variance 1).

    Raises:
        InputError: an embedding of length zero or with a number that is not finite.
    """
    count, dim = embeddings.shape
    numbers = np.zeros(count, int) if cameras is None else np.unique(cameras, return_inverse=True)[1]
    sums, products = np.zeros((numbers.max(initial=0) + 1, dim)), np.zeros((dim, dim))
    for start in range(0, count, BLOCK):
        embs = chunks.read(embeddings, start, min(start + BLOCK, count))
        wrong = np.flatnonzero(~(np.isfinite(embs).all(axis=1) & embs.any(axis=1)))
        if len(wrong):
            raise InputError(f'The embedding of row {start + wrong[0]} (counted from 0) is zero or not finite, so it has '
                             f'no direction to be compared by. Embed again, or remove the image.')
        embs = _normalised(embs)
        np.add.at(sums, numbers[start:start + len(embs)], embs)
        products += embs.T @ embs
    sizes = np.bincount(numbers, minlength=len(sums))
    centres = sums / sizes[:, None] if cameras is not None or whitening else np.zeros_like(sums)
    rotation = np.eye(dim)
    if whitening and count > 1:
        covariance = products / count - (centres.T * sizes) @ centres / count
        variances, rotation = np.linalg.eigh(covariance)
        smallest = max(SMALLEST_SHARE * variances.mean(), np.finfo(np.float64).tiny)
        rotation = rotation * variances.clip(smallest) ** (-whitening / 2)
    return Features(embeddings, (count, dim), centres, numbers, rotation)


def _normalised(embs):
    embs = np.asarray(embs, np.float64)
    # An embedding that equals its camera's mean has no direction left and stays zero.
    return embs / np.sqrt(np.square(embs).sum(axis=1, keepdims=True)).clip(1e-12)
