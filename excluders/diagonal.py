"""Query and gallery are one set: an image never finds itself."""
from excluders import _same_key

EXAMPLES = ('a/1.jpg', 'b/1.jpg')


class Excluder(_same_key.SameKey):
    """Ignores the gallery images with the query's own file id."""
