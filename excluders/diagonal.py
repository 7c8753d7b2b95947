"""Query and gallery are one set: an image does not find itself."""
from excluders import _same_key


class Excluder(_same_key.SameKey):
    """Ignores the gallery images with the query's own file id."""
