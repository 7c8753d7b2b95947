"""The flags that settle how a graph of neighbours is grouped, the same for each command that groups."""
import dataclasses

from tripletreid.argument_types import fraction, inner_fraction, positive_int
from tripletreid.clustering import partition
from tripletreid.clustering.clusterer import Settings

NAMES = tuple(field.name for field in dataclasses.fields(Settings))


def add_to(add, threshold_default):
    """Add the flags that each command with groups has.

    Args:
        add: `add_argument` of an argument group.
        threshold_default: where the threshold comes from unless it is given, for the help.
    """
    add('--method', choices=partition.METHODS, default='dbscan', help='clustering of the graph of neighbours (default: '
        '%(default)s)')
    add('--threshold', type=inner_fraction, metavar='D', help='Jaccard distance up to which images are grouped, 0 to '
        f'1 (default: {threshold_default})')
    add('--min_size', type=positive_int, default=2, metavar='N', help='smaller clusters are outliers (default: %(default)s)')
    add('--min_samples', type=positive_int, default=4, metavar='N', help='images within the threshold that make a dense '
        'region of DBSCAN, the image itself included (default: %(default)s)')
    add('--k1', type=positive_int, default=30, metavar='N', help='neighbours that may be reciprocal (default: %(default)s)')
    add('--k2', type=positive_int, default=6, metavar='N', help='neighbours of the query expansion (default: %(default)s)')
    add('--whitening', type=fraction, default=0.5, metavar='W', help='exponent of the whitening, from 0 (off) '
        'to 1 (default: %(default)s)')


def settings(args):
    """Return the `Settings` of parsed arguments."""
    return Settings(**{name: getattr(args, name) for name in NAMES if hasattr(args, name)})
