"""Gallery images that have the key of a query: file id, (identity, camera), or anything else that is hashable."""
import numpy as np


class SameKey:
    """Compares keys as integers: the gallery's keys are numbered once, so that millions of images are compared fast."""

    def __init__(self, gallery_keys):
        """Number the keys [G] of a gallery."""
        self.numbers = {}
        numbers = [self.numbers.setdefault(key, len(self.numbers)) for key in gallery_keys]
        self.gallery_numbers = np.array(numbers, dtype=np.int32)

    def __call__(self, query_keys):
        """Return where the keys of queries [Q] equal the keys of gallery images: bool [Q, G]."""
        not_in_gallery = -1
        query_numbers = np.array([self.numbers.get(key, not_in_gallery) for key in query_keys], dtype=np.int32)
        return query_numbers[:, None] == self.gallery_numbers[None]
