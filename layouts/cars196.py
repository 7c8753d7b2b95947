"""CARS196: car_ims/ with cars_annos.mat, or cars_train/, cars_test/ with devkit/ and cars_test_annos_withlabels.mat.

The split of metric learning: the first 98 models train, the other 98 are query and test at once (excluder `diagonal`).

Krause et al., 3D Object Representations for Fine-Grained Categorization, 3dRR 2013.
"""
import os

from layouts import _files

EXCLUDER = 'diagonal'
TOTALS = {
    'train': {'identities': 98, 'images': 8054},
    'query': {'identities': 98, 'images': 8131},
    'test': {'identities': 98, 'images': 8131},
}


def splits(root):
    """Return the rows of each subset."""
    _files.find(root, 'car_ims', 'devkit/cars_train_annos.mat')
    if os.path.isdir(os.path.join(root, 'car_ims')):
        rows = annotated(_files.find(root, 'cars_annos.mat'), 'relative_im_path', '')
    else:
        test = _files.find(root, 'cars_test_annos_withlabels.mat', 'devkit/cars_test_annos_withlabels.mat')
        rows = (annotated(_files.find(root, 'devkit/cars_train_annos.mat'), 'fname', 'cars_train/')
                + annotated(test, 'fname', 'cars_test/'))
    test = [row for row in rows if int(row[0]) > 98]
    return {'train': [row for row in rows if int(row[0]) <= 98], 'query': test, 'test': test}


def annotated(path, field, prefix):
    """Return the rows of an annotation file whose records have their file name in `field`."""
    annotations = _files.read_mat(path, 'annotations')
    names, models = annotations[field].ravel(), annotations['class'].ravel()
    return [(str(model.item()), prefix + name.item()) for name, model in zip(names, models)]
