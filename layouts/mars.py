"""MARS, video: bbox_train/, bbox_test/ and the folder info/ of github.com/liangzheng06/MARS-evaluation.

A tracklet is the frames that info/tracks_*_info.mat count out of info/*_name.txt. Its name, such as 0001C1T0002, is the
csv's third column. The test set holds the queries too, as in the benchmark's own evaluation, the junk (folder 00-1,
identity -1 as in Market-1501) and the distractors (identity 0000).

Zheng et al., MARS: A Video Benchmark for Large-Scale Person Re-Identification, ECCV 2016.
"""
from layouts import _files
from tripletreid.errors import InputError

EXCLUDER = 'mars'
TOTALS = {
    'train': {'identities': 625, 'images': 509914, 'tracklets': 8298},
    'query': {'identities': 626, 'tracklets': 1980},
    'test': {'identities': 636, 'images': 681089, 'tracklets': 12180},  # Junk and distractors are two of 636.
}


def splits(root):
    """Return the rows of each subset."""
    train = tracklets(root, 'train')
    test = tracklets(root, 'test')
    query_path = _files.find(root, 'info/query_IDX.mat')
    query = _files.pick(test, _files.read_mat(query_path, 'query_IDX').ravel().tolist(), query_path)
    return {
        'train': [row for tracklet in train for row in tracklet],
        'query': [row for tracklet in query for row in tracklet],
        'test': [row for tracklet in test for row in tracklet],
    }


def tracklets(root, subset):
    """Return the tracklets of bbox_train/ or bbox_test/, each a list of rows, in the order of info/tracks_*_info.mat."""
    names = _files.read_table(_files.find(root, f'info/{subset}_name.txt'), 1)
    rows = [row(f'bbox_{subset}', name) for [name] in names]
    path = _files.find(root, f'info/tracks_{subset}_info.mat')
    tracks = _files.read_mat(path, f'track_{subset}_info')
    if tracks.ndim != 2 or tracks.shape[1] != 4:
        raise InputError(f'{path} holds an array of shape {tracks.shape} where [tracklets, 4] is expected.')
    return [_files.pick(rows, range(first, last + 1), path) for first, last, pid, camera in tracks.astype(int).tolist()]


def row(folder, name):
    """Return the row of a frame: 0001C1T0002F003.jpg is frame 3 of tracklet 0001C1T0002, of person 0001 in camera 1."""
    person = name[:4]
    return person.replace('00-1', '-1'), f'{folder}/{person}/{name}', name.split('F')[0]
