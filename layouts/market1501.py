"""Market-1501: bounding_box_train/, query/, bounding_box_test/ and gt_bbox/ of Market-1501-v15.09.15.

The test set holds the junk (identity -1) and the distractors (identity 0000). `multi_query` are the hand-drawn boxes
of gt_bbox/ that show a query's person in the query's camera. They are one tracklet, so that embeddings pooled over
tracklets are one for each query.

Zheng et al., Scalable Person Re-identification: A Benchmark, ICCV 2015.
"""
from layouts import _files, _held_out

EXCLUDER = 'market1501'
TOTALS = {
    **_held_out.TOTALS,
    'train': {'identities': 751, 'images': 12936},
    'query': {'identities': 750, 'images': 3368},
    'test': {'identities': 752, 'images': 19732},  # 750 people, junk, distractors.
    'multi_query': {'identities': 750, 'tracklets': 3368},
}
PATTERN = rf'^(?P<pid>-1|\d+)_c\d+s\d+_.*{_files.IMAGE_ENDING}'

add_arguments = _held_out.add_arguments


def splits(root, val_fraction=None, seed=0):
    """Return the rows of each subset; see `_held_out.divide`."""
    _files.find(root, 'bounding_box_train', 'query', 'bounding_box_test')
    train = _files.named_images(root, 'bounding_box_train', PATTERN)
    query = _files.named_images(root, 'query', PATTERN)
    queries = {person_and_camera(fid) for _, fid in query}
    drawn = [(pid, fid, person_and_camera(fid)) for pid, fid in _files.named_images(root, 'gt_bbox', PATTERN)]
    return {
        **_held_out.divide(train, EXCLUDER, val_fraction, seed),
        'query': query,
        'test': _files.named_images(root, 'bounding_box_test', PATTERN),
        'multi_query': [row for row in drawn if row[2] in queries],
    }


def person_and_camera(fid):
    """Return '0001_c1' for 'query/0001_c1s1_001051_00.jpg'."""
    return fid.split('/')[-1].split('s')[0]
