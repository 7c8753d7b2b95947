"""The distances of distances/, as losses, samplers, evaluation and search use them."""
import functools
from typing import NamedTuple

from tripletreid import plugins

METRICS = tuple(plugins.choices('distances'))
TERMS = {'square': lambda differences, math: math.square(differences),
         'absolute': lambda differences, math: math.abs(differences)}


class Metric(NamedTuple):
    """A distance: a sum over coordinates, then an increasing function of the sum.

    name: its file in distances/.
    term: function (differences, math) of the coordinates' differences.
    kind: 'square', 'absolute' or 'other', the kind of `term`.
    is_normalized: whether embeddings are scaled to length one first.
    from_sum: increasing function (sums, math) that returns distances.

    `math` is `numpy` or `tf.math`.
    """
    name: str
    term: object
    kind: str
    is_normalized: bool
    from_sum: object

    def __reduce__(self):
        return load, (self.name,)  # Another process loads the file itself.


@functools.cache
def load(name):
    """Load the `Metric` of a file in distances/. Raises InputError when there is no such file."""
    module = plugins.load('distances', name)
    kind = module.TERM if isinstance(module.TERM, str) else 'other'
    return Metric(name, TERMS.get(kind, module.TERM), kind, module.NORMALIZED, module.from_sum)
