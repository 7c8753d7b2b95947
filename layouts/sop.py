"""Stanford Online Products: Ebay_train.txt, Ebay_test.txt and the folders of the twelve kinds of products.

The products of Ebay_test.txt are query and test at once (excluder `diagonal`).

Song et al., Deep Metric Learning via Lifted Structured Feature Embedding, CVPR 2016.
"""
from layouts import _files

EXCLUDER = 'diagonal'
TOTALS = {
    'train': {'identities': 11318, 'images': 59551},
    'query': {'identities': 11316, 'images': 60502},
    'test': {'identities': 11316, 'images': 60502},
}


def splits(root):
    """Return the rows of each subset."""
    test = listed(root, 'Ebay_test.txt')
    return {'train': listed(root, 'Ebay_train.txt'), 'query': test, 'test': test}


def listed(root, name):
    """Return the rows of a list file; its first line names the columns: image_id, class_id, super_class_id, path."""
    _, *table = _files.read_table(_files.find(root, name), 4)
    return [(product, path) for _, product, _, path in table]
