"""Query and gallery are one set: an image does not find itself."""
import numpy as np


class Excluder:
    """Ignores the gallery image with the query's own file id."""

    def __init__(self, gallery_fids):
        """Takes file ids [G]."""
        self.gallery_fids = np.asarray(gallery_fids)

    def __call__(self, query_fids):
        """What each query ignores: bool [Q, G] for file ids [Q]."""
        return np.asarray(query_fids)[:, None] == self.gallery_fids[None]
