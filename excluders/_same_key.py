"""Which gallery images have the very key of a query: file id, (person, camera), or anything else that can be hashed."""
import numpy as np


class SameKey:
    """Numbers the keys of the gallery once, so that millions of images are compared as integers."""

    def __init__(self, gallery_keys):
        """Takes keys [G]."""
        self.numbers = {}
        numbers = [self.numbers.setdefault(key, len(self.numbers)) for key in gallery_keys]
        self.gallery_numbers = np.array(numbers, dtype=np.int32)

    def __call__(self, query_keys):
        """Where the key of a query [Q] is that of a gallery image: bool [Q, G]."""
        not_in_gallery = -1
        query_numbers = np.array([self.numbers.get(key, not_in_gallery) for key in query_keys], dtype=np.int32)
        return query_numbers[:, None] == self.gallery_numbers[None]
