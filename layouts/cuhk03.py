"""CUHK03, new protocol: cuhk-03.mat (or cuhk03_release/cuhk-03.mat) and cuhk03_new_protocol_config_*.mat.

The latter are the splits, `detected` and `labeled`, of github.com/zhunzhong07/person-re-ranking. The images are
exported once, as PNG into images_detected/ and images_labeled/ next to them. 1_001_2_06.png is the sixth image of person
1 of camera pair 1, in the second camera of the pair.

Li et al., DeepReID, CVPR 2014. Zhong et al., Re-ranking Person Re-identification with k-reciprocal Encoding, CVPR 2017.
"""
from layouts import _files
from tripletreid.errors import InputError

EXCLUDER = 'cuhk03'
TOTALS = {
    'detected_train': {'identities': 767, 'images': 7365},
    'detected_query': {'identities': 700, 'images': 1400},
    'detected_test': {'identities': 700, 'images': 5332},
    'labeled_train': {'identities': 767, 'images': 7368},
    'labeled_query': {'identities': 700, 'images': 1400},
    'labeled_test': {'identities': 700, 'images': 5328},
}


def splits(root):
    """Return the rows of each subset, for the detected and for the labeled images."""
    images = _files.find(root, 'cuhk-03.mat', 'cuhk03_release/cuhk-03.mat')
    subsets = {}
    for version in ('detected', 'labeled'):
        config = _files.find(root, f'cuhk03_new_protocol_config_{version}.mat')
        names = [str(name.item()) for name in _files.read_mat(config, 'filelist').ravel()]
        _files.export_png(root, f'images_{version}', read_images(images, version), len(names))
        for subset, index in {'train': 'train_idx', 'query': 'query_idx', 'test': 'gallery_idx'}.items():
            chosen = _files.pick(names, _files.read_mat(config, index).ravel().tolist(), config)
            subsets[f'{version}_{subset}'] = [(name[:5], f'images_{version}/{name}') for name in chosen]
    return subsets


def read_images(path, version):
    """Yield name and pixels, uint8 [H, W, 3], of each image of cuhk-03.mat.

    This is a MATLAB file of version 7.3, that is HDF5 with all axes reversed: a list of camera pairs, each of them an
    array [10, people] of references, five to images of the first camera and five to images of the second.
    """
    import h5py
    try:
        with h5py.File(path, 'r') as file:
            for pair, people in enumerate(file[version][0], 1):
                for person, references in enumerate(file[people][()].T, 1):
                    for number, reference in enumerate(references, 1):
                        pixels = file[reference][()].T
                        if pixels.ndim == 3:  # Else an empty cell: most people have fewer than ten images.
                            yield f'{pair}_{person:03}_{1 if number <= 5 else 2}_{number:02}.png', pixels
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f'{path} cannot be read as the images of CUHK03 ({error}).') from error
