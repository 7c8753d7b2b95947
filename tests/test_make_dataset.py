"""Each dataset from its folder as distributed, here with tiny generated files of the real names, to csv files."""
import gzip
import itertools
import os
import re
import shutil
import struct
import sys
import threading
import time

import h5py
import numpy as np
import pytest
import scipy.io
from PIL import Image

import make_dataset
from conftest import ROOT, assert_one_sentence, run_script
from tripletreid import exclusion, plugins
from tripletreid.copies import similar_pairs
from tripletreid.dataset import Dataset, load_dataset
from tripletreid.errors import InputError
from tripletreid.image_root import file_problems


def put(root, *paths, content=b'not looked at'):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)


def put_picture(root, *paths, colour=0, size=(8, 16)):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', size, (colour, 0, 0)).save(root / path)


def make(name, root, out=None, **options):
    """Run it in this process; returns {subset: lines of the csv file}."""
    out = root.parent / 'out' if out is None else out
    make_dataset.make(name, str(root), str(out), options)
    return {path.stem[len(name) + 1:]: path.read_text('utf-8').splitlines() for path in sorted(out.iterdir())}


@pytest.fixture
def root(tmp_path):
    (tmp_path / 'root').mkdir()
    return tmp_path / 'root'


def ignored(name, query, gallery):
    """Return the list of gallery images that an excluder ignores for a query."""
    answer = exclusion.load(name)(np.array(gallery, dtype=object))(np.array([query], dtype=object))
    return [fid for fid, no in zip(gallery, answer[0]) if no]


MARKET = ['bounding_box_train/0002_c1s1_000451_03.jpg', 'bounding_box_train/0002_c2s1_000301_01.jpg',
          'bounding_box_train/0007_c3s3_077419_03.jpg',
          'query/0001_c1s1_001051_00.jpg', 'query/0001_c3s1_000551_00.jpg',
          'bounding_box_test/-1_c1s1_000401_03.jpg', 'bounding_box_test/0000_c1s1_000151_01.jpg',
          'bounding_box_test/0001_c1s1_001051_03.jpg', 'bounding_box_test/0001_c3s1_000551_01.jpg',
          'gt_bbox/0001_c1s1_001051_00.jpg', 'gt_bbox/0001_c1s2_003051_00.jpg', 'gt_bbox/0001_c3s1_000551_00.jpg',
          'gt_bbox/0001_c2s1_000551_00.jpg', 'gt_bbox/0002_c1s1_000451_03.jpg',
          'gt_query/0001_c1s1_001051_00_good.mat', 'readme.txt']
MARKET += [f'{folder}/Thumbs.db' for folder in ('bounding_box_train', 'query', 'bounding_box_test', 'gt_bbox')]


def test_market1501(root, capsys):
    put(root, *MARKET)
    csv = make('market1501', root)
    assert csv == {
        'train': ['0002,bounding_box_train/0002_c1s1_000451_03.jpg', '0002,bounding_box_train/0002_c2s1_000301_01.jpg',
                  '0007,bounding_box_train/0007_c3s3_077419_03.jpg'],
        'query': ['0001,query/0001_c1s1_001051_00.jpg', '0001,query/0001_c3s1_000551_00.jpg'],
        'test': ['-1,bounding_box_test/-1_c1s1_000401_03.jpg', '0000,bounding_box_test/0000_c1s1_000151_01.jpg',
                 '0001,bounding_box_test/0001_c1s1_001051_03.jpg', '0001,bounding_box_test/0001_c3s1_000551_01.jpg'],
        'multi_query': ['0001,gt_bbox/0001_c1s1_001051_00.jpg,0001_c1', '0001,gt_bbox/0001_c1s2_003051_00.jpg,0001_c1',
                        '0001,gt_bbox/0001_c3s1_000551_00.jpg,0001_c3'],
    }
    output = capsys.readouterr()
    cells = [line.split()[:-1] for line in output.out.splitlines()]
    assert cells[0] == ['subset', 'identities', 'images', 'tracklets', 'cameras']
    assert cells[1:5] == [['train', '2', '3', '-', '3'], ['query', '1', '2', '-', '2'], ['test', '3', '4', '-', '2'],
                          ['multi_query', '1', '3', '2', '2']]
    assert 'warning: train has 3 of 12936 images: 12933 missing.\n' in output.err
    assert 'warning: test has 4 of 19732 images: 19728 missing.\n' in output.err
    assert 'warning: query has 1 of 750 identities: 749 missing.\n' in output.err


def test_the_whole_dataset_gives_no_warning_and_a_bigger_one_does(root, capsys, monkeypatch):
    put(root, *MARKET)
    market1501 = plugins.load('layouts', 'market1501')
    totals = {'train': {'identities': 2, 'images': 3}, 'multi_query': {'identities': 1, 'tracklets': 2}}
    monkeypatch.setattr(market1501, 'TOTALS', totals)
    make('market1501', root)
    assert 'warning' not in capsys.readouterr().err
    totals['train']['images'] = 2
    make('market1501', root)
    assert re.findall('warning.*', capsys.readouterr().err) == ['warning: train has 3 of 2 images: 1 too many.']


def test_duke_mtmc(root, capsys):
    put(root, 'bounding_box_train/0001_c2_f0046182.jpg', 'query/0005_c2_f0046985.jpg', 'LICENSE_DukeMTMC.txt',
        'bounding_box_test/0002_c1_f0044158.jpg', 'bounding_box_test/0005_c7_f0051000.jpg')
    assert make('dukeMTMC', root) == {
        'train': ['0001,bounding_box_train/0001_c2_f0046182.jpg'], 'query': ['0005,query/0005_c2_f0046985.jpg'],
        'test': ['0002,bounding_box_test/0002_c1_f0044158.jpg', '0005,bounding_box_test/0005_c7_f0051000.jpg']}
    assert 'warning: test has 2 of 17661 images' in capsys.readouterr().err


@pytest.mark.parametrize('name, image', [('market1501', 'bounding_box_train/{:04}_c{}s1_00000{}_01.jpg'),
                                         ('dukeMTMC', 'bounding_box_train/{:04}_c{}_f000000{}.jpg')])
def test_people_held_out_of_the_training_set(root, capsys, name, image):
    cameras_of_person = {person: [1] if person == 3 else [1, 2, 4] for person in range(10)}
    cameras_of_person[4] = [1, 2]
    images_of_camera = {1: 3, 2: 2, 4: 1}
    put(root, *(image.format(person, camera, number) for person, cameras in cameras_of_person.items() for camera in cameras
                for number in range(images_of_camera[camera])))
    whole = make(name, root)['train']
    found = [make(name, root, root.parent / f'{seed}', val_fraction=0.75, seed=seed) for seed in range(4)]
    assert len({tuple(each['val_query']) for each in found}) > 1
    assert make(name, root, root.parent / 'again', val_fraction=0.75, seed=3) == found[3]
    excluder = exclusion.load(plugins.load('layouts', name).EXCLUDER)
    for each in found:
        assert sorted(each['train'] + each['val_query'] + each['val_test']) == whole
        [trained, queried, searched] = [{row[:4] for row in each[subset]} for subset in ('train', 'val_query', 'val_test')]
        assert len(searched) == 8 and not searched & trained and searched - {'0003'} == queried
        # One query a camera, where the person has other images in it and was seen by other cameras.
        query, gallery = (Dataset('', *np.array([row.split(',') for row in each[subset]], object).T)
                          for subset in ('val_query', 'val_test'))
        assert sorted(excluder(query.fids).ids(query.fids)) == sorted(
            (pid, str(camera)) for pid in queried for camera in (1, 2))
        matches = (query.pids[:, None] == gallery.pids) & ~excluder(gallery.fids)(query.fids)
        assert matches.any(1).all()
    assert 'warning: train has 56 of' in capsys.readouterr().err  # Nobody is missing because of being held out.


def test_nobody_to_hold_out(root):
    put(root, *(path for path in MARKET if '0007' not in path))
    with pytest.raises(InputError, match='--val_fraction needs two people or more in the training set; there are 1'):
        make('market1501', root, val_fraction=0.5)
    # Two people in one camera each; the person of MARKET is in two, with one image in each.
    put(root, *(f'bounding_box_train/000{pid}_c{pid}s1_00000{number}_00.jpg' for pid in (1, 3) for number in (1, 2)))
    with pytest.raises(InputError, match='None of the 2 people that --val_fraction holds out is seen by two cameras'):
        make('market1501', root, val_fraction=0.5)


@pytest.mark.parametrize('ending', ['.JPG', '.jpeg', '.png'])
def test_market1501_with_other_endings(root, capsys, ending):
    put(root, *(path.replace('.jpg', ending) for path in MARKET if not path.endswith('.db')))
    csv = make('market1501', root)
    assert [len(csv[subset]) for subset in ('train', 'query', 'test')] == [3, 2, 4]
    assert csv['query'][0] == f'0001,query/0001_c1s1_001051_00{ending}' and 'without a name' not in capsys.readouterr().err


def test_names_that_are_no_names_of_a_dataset(root, capsys):
    put(root, *MARKET, 'query/notes.txt')
    make('market1501', root)
    assert f'Files in {root}/query without a name as the images of this dataset have are skipped: 1 (notes.txt)' in (
        capsys.readouterr().err)
    shutil.rmtree(root / 'query')
    put(root, 'query/person1.jpg', 'query/person2.jpg')
    with pytest.raises(InputError, match='None of the 2 files in .*query, such as person1.jpg, has a name as'):
        make('market1501', root, root.parent / 'other')


def test_half_a_dataset(root, capsys):
    put(root, *(path for path in MARKET if path.startswith('bounding_box_train')))
    assert list(make('market1501', root)) == ['train']
    errors = capsys.readouterr().err
    for subset in ('query', 'test', 'multi_query'):
        assert f'warning: There are no images of {subset} in {root}' in errors


MARS_TRACKLETS = {  # In the order of the .mat files: person, camera, tracklet, number of frames.
    'train': [('0001', 1, 1, 2), ('0001', 2, 2, 3), ('0003', 1, 1, 1)],
    'test': [('00-1', 1, 1, 2), ('0000', 3, 1, 1), ('0002', 1, 1, 3), ('0002', 1, 2, 2), ('0002', 4, 3, 1),
             ('0004', 4, 1, 2)],
}


def put_mars(root):
    """MARS with the tracklets above, and as query the numbers 3 and 6 of the test set; returns the frames' names."""
    names = {}
    for subset, tracklets in MARS_TRACKLETS.items():
        names[subset] = [[f'{person}C{camera}T{tracklet:04}F{frame:03}.jpg' for frame in range(1, frames + 1)]
                         for person, camera, tracklet, frames in tracklets]
        put(root, *(f'bbox_{subset}/{frame[:4]}/{frame}' for frames in names[subset] for frame in frames))
        put(root, f'info/{subset}_name.txt', content='\r\n'.join(sum(names[subset], [])).encode() + b'\r\n')
        ends = np.cumsum([frames for *_, frames in tracklets])
        table = [(end - frames + 1, end, int(person.lstrip('0') or 0), camera)
                 for end, (person, camera, _, frames) in zip(ends, tracklets)]
        scipy.io.savemat(root / f'info/tracks_{subset}_info.mat', {f'track_{subset}_info': np.array(table, np.int32)})
    scipy.io.savemat(root / 'info/query_IDX.mat', {'query_IDX': np.array([[6, 3]], np.uint16)})
    put(root, 'bbox_train/Thumbs.db', 'bbox_test/0002/Thumbs.db')
    return names


def test_mars(root, capsys):
    names = put_mars(root)
    csv = make('mars', root)
    wanted = sorted(f'{name[:4]},bbox_train/{name[:4]}/{name},{name[:11]}' for name in sum(names['train'], []))
    assert csv['train'] == wanted
    assert csv['query'] == [
        '0002,bbox_test/0002/0002C1T0001F001.jpg,0002C1T0001', '0002,bbox_test/0002/0002C1T0001F002.jpg,0002C1T0001',
        '0002,bbox_test/0002/0002C1T0001F003.jpg,0002C1T0001', '0004,bbox_test/0004/0004C4T0001F001.jpg,0004C4T0001',
        '0004,bbox_test/0004/0004C4T0001F002.jpg,0004C4T0001']
    assert csv['test'][:3] == ['-1,bbox_test/00-1/00-1C1T0001F001.jpg,00-1C1T0001',
                               '-1,bbox_test/00-1/00-1C1T0001F002.jpg,00-1C1T0001',
                               '0000,bbox_test/0000/0000C3T0001F001.jpg,0000C3T0001']
    assert len(csv['test']) == 11 and set(csv['query']) < set(csv['test'])
    table = [line.split()[:-1] for line in capsys.readouterr().out.splitlines()]
    assert table[1:4] == [['train', '2', '6', '3', '2'], ['query', '2', '5', '2', '2'], ['test', '4', '11', '6', '3']]

    dataset = load_dataset(root.parent / 'out' / 'mars_test.csv')
    assert len(dataset.first_frames()) == 6
    assert ignored('mars', 'bbox_test/0002/0002C1T0001F001.jpg', list(dataset.first_frames().fids)) == [
        'bbox_test/00-1/00-1C1T0001F001.jpg', 'bbox_test/0002/0002C1T0001F001.jpg',
        'bbox_test/0002/0002C1T0002F001.jpg']


def test_mars_frames_that_are_not_there_are_left_out(root, capsys):
    put_mars(root)
    whole = make('mars', root)
    (root / 'bbox_train/0001/0001C2T0002F002.jpg').unlink()
    csv = make('mars', root)
    assert set(whole['train']) - set(csv['train']) == {'0001,bbox_train/0001/0001C2T0002F002.jpg,0001C2T0002'}
    assert (f'warning: 1 of 6 images of train are not in {root} and are skipped: '
            '1 (bbox_train/0001/0001C2T0002F002.jpg).\n') in capsys.readouterr().err


@pytest.mark.parametrize('path, content, parts', [
    ('info/tracks_train_info.mat', b'MATLAB 5.0 MAT-file' + bytes(200), ['cannot be read as a MATLAB file']),
    ('info/tracks_train_info.mat', {'tracks': 1}, ['no variable track_train_info, but tracks']),
    ('info/tracks_train_info.mat', {'track_train_info': np.ones((2, 3))}, ['shape (2, 3)']),
    ('info/tracks_train_info.mat', {'track_train_info': np.array([[1, 7, 1, 1]])}, ['refers to number 7 of 6']),
    ('info/query_IDX.mat', {'query_IDX': np.array([[0]])}, ['refers to number 0 of 6']),
    ('info/train_name.txt', b'0001C1T0001F001.jpg\n\xff\n', ['train_name.txt is not UTF-8 text']),
    ('info/train_name.txt', b'0001C1T0001F001.jpg\n\na b\n', ['train_name.txt has 2 words in line 3']),
])
def test_mars_with_a_damaged_index(root, path, content, parts):
    put_mars(root)
    if isinstance(content, dict):
        scipy.io.savemat(root / path, content)
    else:
        put(root, path, content=content)
    with pytest.raises(InputError) as error:
        make('mars', root)
    assert all(part in str(error.value) for part in [path, *parts])
    assert not (root.parent / 'out').exists()


def put_cuhk03(root):
    """Two camera pairs with two people and one; returns the pixels of each image."""
    random = np.random.default_rng(0)
    filled = {(1, 1): [1, 2, 6], (1, 2): [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], (2, 1): [5, 6]}
    pixels = {}
    with h5py.File(root / 'cuhk-03.mat', 'w') as file:
        empty = file.create_dataset('#refs#/empty', data=np.zeros(2, np.uint64))
        for version in ('detected', 'labeled'):
            pairs = file.create_dataset(version, (1, 2), h5py.ref_dtype)
            for pair, people in ((1, 2), (2, 1)):
                cell = file.create_dataset(f'#refs#/{version}{pair}', (10, people), h5py.ref_dtype)
                pairs[0, pair - 1] = cell.ref
                for person in range(1, people + 1):
                    for number in range(1, 11):
                        cell[number - 1, person - 1] = empty.ref
                    for number in filled[pair, person]:
                        name = f'{pair}_{person:03}_{1 + (number > 5)}_{number:02}.png'
                        image = random.integers(0, 256, (7, 5, 3), np.uint8)
                        pixels[version, name] = image
                        image = file.create_dataset(f'#refs#/{version}{name}', data=image.T)
                        cell[number - 1, person - 1] = image.ref
    names = [name for version, name in pixels if version == 'detected']
    for version in ('detected', 'labeled'):
        scipy.io.savemat(root / f'cuhk03_new_protocol_config_{version}.mat', {
            'filelist': np.array(names, dtype=object)[:, None], 'train_idx': np.array([[4], [5], [9]]),
            'query_idx': np.array([[1], [14 if version == 'detected' else 15]]), 'gallery_idx': np.array([[3], [15]])})
    return pixels


def test_cuhk03(root, capsys):
    pixels = put_cuhk03(root)
    csv = make('cuhk03', root)
    assert csv['detected_train'] == ['1_002,images_detected/1_002_1_01.png', '1_002,images_detected/1_002_1_02.png',
                                     '1_002,images_detected/1_002_2_06.png']
    assert csv['detected_query'] == ['1_001,images_detected/1_001_1_01.png', '2_001,images_detected/2_001_1_05.png']
    assert csv['labeled_query'] == ['1_001,images_labeled/1_001_1_01.png', '2_001,images_labeled/2_001_2_06.png']
    assert csv['labeled_test'] == ['1_001,images_labeled/1_001_2_06.png', '2_001,images_labeled/2_001_2_06.png']
    assert len(pixels) == len(list(root.glob('images_*/*.png'))) == 30
    for (version, name), image in pixels.items():
        np.testing.assert_array_equal(np.asarray(Image.open(root / f'images_{version}' / name)), image)
    assert not list(root.glob('.*'))
    assert ignored('cuhk03', 'a/1_001_1_01.png', ['a/1_001_1_02.png', 'a/1_001_2_06.png', 'a/1_002_1_01.png',
                                                  'a/2_001_1_01.png']) == ['a/1_001_1_02.png']


def test_cuhk03_is_exported_once_and_whole_or_not_at_all(root):
    put_cuhk03(root)
    with h5py.File(root / 'cuhk-03.mat', 'a') as file:
        del file['#refs#/labeled2_001_2_06.png']  # The last but one image of the second version.
    with pytest.raises(InputError, match='cannot be read as the images of CUHK03'):
        make('cuhk03', root)
    assert [path.name for path in root.iterdir() if path.is_dir()] == ['images_detected']
    before = (root / 'images_detected/1_001_1_01.png').stat().st_mtime_ns

    put_cuhk03(root)
    make('cuhk03', root)
    assert len(list(root.glob('images_labeled/*.png'))) == 15
    assert (root / 'images_detected/1_001_1_01.png').stat().st_mtime_ns == before


@pytest.mark.parametrize('damage, part', [
    (lambda path: os.truncate(path, path.stat().st_size // 2), 'cuhk-03.mat cannot be read'),
    (lambda path: path.write_bytes(b'MATLAB 5.0 MAT-file'), 'cuhk-03.mat cannot be read'),
    (lambda path: path.unlink(), 'no cuhk-03.mat nor cuhk03_release/cuhk-03.mat'),
    (lambda path: (path.parent / 'cuhk03_new_protocol_config_labeled.mat').unlink(), 'no cuhk03_new_protocol_con'),
])
def test_cuhk03_damaged(root, damage, part):
    put_cuhk03(root)
    damage(root / 'cuhk-03.mat')
    with pytest.raises(InputError, match=part):
        make('cuhk03', root)


@pytest.mark.parametrize('train, test', [('train', 'test'), ('mask_train_v2', 'mask_test_v2')])
def test_msmt17(root, capsys, train, test):
    lists = {'list_train.txt': (train, ['0000/0000_000_01_0303morning_0008_0.jpg 0',
                                        '0001/0001_038_14_0303morning_0267_0_ex.jpg 1']),
             'list_val.txt': (train, ['0000/0000_013_04_0303morning_0020_2.jpg 0']),
             'list_query.txt': (test, ['0000/0000_000_02_0303morning_0015_0.jpg 0']),
             'list_gallery.txt': (test, ['0000/0000_001_02_0303morning_0015_0_ex.jpg 0',
                                         '0000/0000_002_05_0302noon_0015_0.jpg 0'])}
    for name, (folder, lines) in lists.items():
        put(root, name, content='\n'.join(lines).encode())
        put(root, *(f'{folder}/{line.split()[0]}' for line in lines))
    assert make('msmt17', root) == {
        'train': [f'0000,{train}/0000/0000_000_01_0303morning_0008_0.jpg',
                  f'0000,{train}/0000/0000_013_04_0303morning_0020_2.jpg',
                  f'0001,{train}/0001/0001_038_14_0303morning_0267_0_ex.jpg'],
        'query': [f'0000,{test}/0000/0000_000_02_0303morning_0015_0.jpg'],
        'test': [f'0000,{test}/0000/0000_001_02_0303morning_0015_0_ex.jpg',
                 f'0000,{test}/0000/0000_002_05_0302noon_0015_0.jpg']}
    assert capsys.readouterr().out.splitlines()[1].split()[:-1] == ['train', '2', '3', '-', '3']
    gallery = list(load_dataset(root.parent / 'out' / 'msmt17_test.csv').fids)
    assert ignored('msmt17', f'{test}/0000/0000_000_02_0303morning_0015_0.jpg', gallery) == gallery[:1]


def put_cars196(path, field, cars):
    records = np.array([(np.array([[model]], np.uint8), name) for name, model in cars],
                       dtype=[('class', object), (field, object)])[None]
    scipy.io.savemat(path, {'annotations': records})


def test_cars196(root):
    cars = [(f'car_ims/{number:06}.jpg', model) for number, model in enumerate([1, 98, 99, 196, 98])]
    put(root, *(name for name, _ in cars))
    put_cars196(root / 'cars_annos.mat', 'relative_im_path', cars)
    test = ['196,car_ims/000003.jpg', '99,car_ims/000002.jpg']
    assert make('cars196', root) == {'query': test, 'test': test, 'train': [
        '1,car_ims/000000.jpg', '98,car_ims/000001.jpg', '98,car_ims/000004.jpg']}


def test_cars196_of_the_devkit(root):
    put(root, 'cars_train/00001.jpg', 'cars_train/00002.jpg', 'cars_test/00001.jpg', 'devkit/README.txt')
    put_cars196(root / 'devkit/cars_train_annos.mat', 'fname', [('00001.jpg', 14), ('00002.jpg', 150)])
    put_cars196(root / 'cars_test_annos_withlabels.mat', 'fname', [('00001.jpg', 14)])
    assert make('cars196', root) == {
        'train': ['14,cars_test/00001.jpg', '14,cars_train/00001.jpg'],
        'query': ['150,cars_train/00002.jpg'], 'test': ['150,cars_train/00002.jpg']}


def test_sop(root):
    header = 'image_id class_id super_class_id path\n'
    put(root, 'bicycle_final/111_0.JPG', 'bicycle_final/111_1.JPG', 'chair_final/222_0.JPG')
    lines = '1 1 1 bicycle_final/111_0.JPG\n2 1 1 bicycle_final/111_1.JPG'
    put(root, 'Ebay_train.txt', content=f'{header}{lines}'.encode())
    put(root, 'Ebay_test.txt', content=f'{header}3 11319 2 chair_final/222_0.JPG\n'.encode())
    assert make('sop', root) == {'train': ['1,bicycle_final/111_0.JPG', '1,bicycle_final/111_1.JPG'],
                                 'query': ['11319,chair_final/222_0.JPG'], 'test': ['11319,chair_final/222_0.JPG']}
    put(root, 'Ebay_test.txt', content=f'{header}3 11319 chair_final/222_0.JPG\n'.encode())
    with pytest.raises(InputError, match='Ebay_test.txt has 3 words in line 2 where 4'):
        make('sop', root)


def put_alphabet(root, name, first, characters, drawers=20):
    put(root, *(f'{name}/character{each + 1:02}/{first + each:04}_{drawer:02}.png' for each in range(characters)
                for drawer in range(1, drawers + 1)))


def test_omniglot_by_alphabets(root, capsys):
    put_alphabet(root, 'Greek', 394, 2)
    put_alphabet(root, 'Malay_(Jawi_-_Arabic)', 700, 1)
    put_alphabet(root, 'Latin', 683, 2, drawers=19)
    put(root, 'strokes/Greek/character01/0394_01.txt', 'Greek/character01/Thumbs.db')
    csv = make('omniglot', root, test_alphabets=['Greek'], val_alphabets=['Latin'])
    assert {subset: len(lines) for subset, lines in csv.items()} == {
        'train': 20, 'val_query': 2 * 5, 'val_test': 2 * 14, 'query': 2 * 5, 'test': 2 * 15}
    assert csv['query'][4:6] == ['Greek/character01,Greek/character01/0394_05.png',
                                 'Greek/character02,Greek/character02/0395_01.png']
    assert csv['val_test'][0] == 'Latin/character01,Latin/character01/0683_06.png'
    assert {line.split('/')[0] for line in csv['train']} == {'Malay_(Jawi_-_Arabic)'}
    output = capsys.readouterr()
    assert output.err.count('warning') == 1 and 'than 20: 2 (Latin/character01, Latin/character02)' in output.err
    assert output.out.splitlines()[1].split()[:5] == ['train', '1', '20', '-', '20']
    # Another character by the same drawer counts, although drawers are only numbered within an alphabet.
    gallery = ['0394_01.png', '0394_02.png', '0395_01.png']
    assert ignored('omniglot', 'Greek/character01/0394_01.png', gallery) == ['0394_01.png']


def test_omniglot_background_against_evaluation(root):
    for part, name, first in (('images_background', 'Greek', 394), ('images_background_small1', 'Greek', 394),
                              ('images_background_small2', 'Tagalog', 909), ('images_evaluation', 'Tengwar', 1599)):
        put_alphabet(root, f'{part}/{name}', first, 1)
    csv = make('omniglot', root)
    assert {subset: len(lines) for subset, lines in csv.items()} == {'train': 40, 'query': 5, 'test': 15}
    assert csv['train'][0] == 'Greek/character01,images_background/Greek/character01/0394_01.png'
    assert csv['query'][0] == 'Tengwar/character01,images_evaluation/Tengwar/character01/1599_01.png'


@pytest.mark.parametrize('options, part', [
    ({}, 'There is no images_evaluation in .*--test_alphabets .* of Greek, Latin'),
    ({'test_alphabets': ['greek']}, '--test_alphabets: there is no alphabet greek in .* but Greek, Latin'),
    ({'test_alphabets': ['Greek'], 'val_alphabets': ['Latin', 'Greek']}, 'Greek is to choose by and to test'),
])
def test_omniglot_with_wrong_alphabets(root, options, part):
    put_alphabet(root, 'Greek', 394, 1)
    put_alphabet(root, 'Latin', 683, 1)
    with pytest.raises(InputError, match=part):
        make('omniglot', root, **options)


SMALL_2 = ROOT.parent / 'shared' / 'data' / 'omniglot' / 'images_background_small2.zip'


@pytest.mark.skipif(not SMALL_2.exists(), reason='the drawings themselves are not here')
def test_the_real_omniglot(root, capsys):
    shutil.unpack_archive(SMALL_2, root)
    csv = make('omniglot', root, test_alphabets=['Greek', 'Tagalog'], val_alphabets=['Latin'])
    assert {subset: len(lines) for subset, lines in csv.items()} == {
        'train': (47 + 42) * 20, 'val_query': 26 * 5, 'val_test': 26 * 15, 'query': 41 * 5, 'test': 41 * 15}
    assert len({line.split('/')[-1].split('_')[0] for lines in csv.values() for line in lines}) == 156
    assert capsys.readouterr().err == ''


def idx(values):
    return struct.pack(f'>{1 + values.ndim}I', 0x0800 + values.ndim, *values.shape) + values.tobytes()


@pytest.mark.parametrize('suffix, compress', [('', bytes), ('.gz', gzip.compress)])
def test_mnist(root, suffix, compress):
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28), np.uint8)
    labels = np.array([7, 2, 1, 0, 7], np.uint8)
    for part, rows in {'train': slice(0, 3), 't10k': slice(3, 5)}.items():
        put(root, f'{part}-images-idx3-ubyte{suffix}', content=compress(idx(images[rows])))
        put(root, f'{part}-labels-idx1-ubyte{suffix}', content=compress(idx(labels[rows])))
    assert make('mnist', root) == {
        'train': ['1,mnist_train/00002.png', '2,mnist_train/00001.png', '7,mnist_train/00000.png'],
        'query': ['0,mnist_test/00000.png', '7,mnist_test/00001.png'],
        'test': ['0,mnist_test/00000.png', '7,mnist_test/00001.png']}
    written = [np.asarray(Image.open(path)) for part in ('train', 'test')
               for path in sorted((root / f'mnist_{part}').iterdir())]
    np.testing.assert_array_equal(written, images)


@pytest.mark.parametrize('name, content', [
    ('train-images-idx3-ubyte', idx(np.zeros((3, 28, 28), np.uint8))[:-1]),
    ('train-images-idx3-ubyte', b''),
    ('train-images-idx3-ubyte', idx(np.zeros(3, np.uint8))),
    ('train-images-idx3-ubyte.gz', gzip.compress(idx(np.zeros((3, 28, 28), np.uint8)), mtime=0)[:-9]),
    ('train-images-idx3-ubyte.gz', idx(np.zeros((3, 28, 28), np.uint8))),
])
def test_mnist_damaged(root, name, content):
    put(root, 't10k-images-idx3-ubyte', content=idx(np.zeros((1, 28, 28), np.uint8)))
    put(root, 't10k-labels-idx1-ubyte', content=idx(np.zeros(1, np.uint8)))
    put(root, 'train-labels-idx1-ubyte', content=idx(np.zeros(3, np.uint8)))
    put(root, name, content=content)
    with pytest.raises(InputError, match=f'{name} is damaged'):
        make('mnist', root)
    put(root, 'train-images-idx3-ubyte', content=idx(np.zeros((2, 28, 28), np.uint8)))
    with pytest.raises(InputError, match='2 images, but 3 labels'):
        make('mnist', root)


def test_digits(tmp_path, capsys):
    csv = make('digits', tmp_path / 'new', tmp_path / 'out')
    assert {subset: len(lines) for subset, lines in csv.items()} == {'train': 1000, 'query': 200, 'test': 597}
    everything = sum(csv.values(), [])
    assert len(set(everything)) == 1797
    assert 'warning' not in capsys.readouterr().err
    from sklearn.datasets import load_digits
    digits = load_digits()
    for line in everything[::100]:
        digit, fid = line.split(',')
        number = int(fid[-8:-4])
        assert int(digit) == digits.target[number]
        pixels = np.asarray(Image.open(tmp_path / 'new' / fid))
        np.testing.assert_allclose(pixels, digits.images[number] * 255 / 16, atol=0.5)

    assert make('digits', tmp_path / 'new', tmp_path / 'again') == csv
    other = make('digits', tmp_path / 'new', tmp_path / 'other', seed=1)
    assert other != csv and sorted(sum(other.values(), [])) == sorted(everything)
    # Drawn by a hash, not by a random generator, so that this holds everywhere and for ever.
    assert csv['query'][:3] == ['0,digits/0030.png', '0,digits/0079.png', '0,digits/0160.png']


def put_folder(root):
    put(root, *(f'person {person}/{image}.{suffix}' for person in range(10)
                for image, suffix in enumerate(['jpg', 'JPEG', 'png', 'txt'])))
    put(root, 'person 3/camera 2/x.jpg', 'alone/1.jpg')
    put(root, '1.jpg', '.git/1.jpg', 'person 1/.hidden.jpg', 'person 1/._1.jpg', 'person 1/.originals/2022/1.jpg')


def test_folder(root):
    put_folder(root)
    csv = make('folder', root)
    assert list(csv) == ['train'] and len(csv['train']) == 32
    assert csv['train'][:2] == ['alone,alone/1.jpg', 'person 0,person 0/0.jpg']
    assert 'person 3,person 3/camera 2/x.jpg' in csv['train']


def pids(lines):
    return {line.split(',')[0] for line in lines}


def test_folder_with_held_out_identities(root, tmp_path):
    put_folder(root)
    everything = make('folder', root)['train']
    csv = make('folder', root, tmp_path / 'a', val_fraction=0.3, query_per_identity=2)
    assert sorted(sum(csv.values(), [])) == everything
    assert pids(csv['query']) <= pids(csv['test']) and len(pids(csv['test'])) == round(0.3 * 11)
    assert not pids(csv['train']) & pids(csv['test'])
    for pid in pids(csv['test']):
        images = len([line for line in everything if line.startswith(f'{pid},')])
        assert len([line for line in csv['query'] if line.startswith(f'{pid},')]) == min(2, images - 1)
    assert make('folder', root, tmp_path / 'b', val_fraction=0.3, query_per_identity=2) == csv
    assert make('folder', root, tmp_path / 'c', val_fraction=0.3, query_per_identity=2, seed=1) != csv


def test_one_identity_at_least_is_trained_on(root):
    put(root, '1/a.jpg', '1/b.jpg', '2/a.jpg', '2/b.jpg')
    csv = make('folder', root, val_fraction=0.9)
    assert len(pids(csv['train'])) == len(pids(csv['test'])) == 1
    shutil.rmtree(root / '2')
    with pytest.raises(InputError, match='one identity'):
        make('folder', root, val_fraction=0.9)


def test_folder_for_evaluation_only(root):
    put_folder(root)
    csv = make('folder', root, query_per_identity=2)
    assert list(csv) == ['query', 'test'] and len(csv['test']) == 12 and len(csv['query']) == 20


def test_more_queries_than_images(root, tmp_path, capsys):
    put(root, *(f'{person}/{image}.jpg' for person in 'abc' for image in range(3)), 'd/0.jpg', 'd/1.jpg')
    put(root, 'e/0.jpg', 'e/1.jpg', 'e/2.jpg')
    make('folder', root, tmp_path / 'fits', query_per_identity=1)
    assert capsys.readouterr().err == ''
    csv = make('folder', root, query_per_identity=2)
    assert capsys.readouterr().err == (
        'warning: 1 of 5 held-out identities have fewer than 3 images, 2 to search with and one to be found, and '
        'so fewer queries: 1 (d).\n')
    assert [line[0] for line in csv['query']] == list('aabbccdee')
    with pytest.raises(InputError, match='^No held-out identity has 4 images, .* but 3 at most; lower'):
        make('folder', root, tmp_path / 'none', query_per_identity=3)
    assert not (tmp_path / 'none').exists()


def test_folder_in_three_sets(root, tmp_path):
    put_folder(root)
    csv = make('folder', root, val_fraction=0.2, test_fraction=0.3)
    sets = [pids(csv[each]) for each in ('train', 'val_test', 'test')]
    assert [len(each) for each in sets] == [11 - 2 - 3, 2, 3] and len(set.union(*sets)) == 11
    assert pids(csv['val_query']) <= sets[1] and pids(csv['query']) <= sets[2]
    assert sum(map(len, csv.values())) == len(make('folder', root, tmp_path / 'all')['train'])
    few = root.parent / 'few'
    put(few, *(f'{name}/{number}.jpg' for name in 'abc' for number in '12'))
    assert [len(pids(lines)) for lines in make('folder', few, tmp_path / 'few_csv', val_fraction=0.9,
                                               test_fraction=0.9).values()] == [1] * 5
    shutil.rmtree(few / 'c')
    with pytest.raises(InputError, match='has 2 identities only, too few for 3 sets'):
        make('folder', few, tmp_path / 'none', val_fraction=0.3, test_fraction=0.3)


def test_identities_in_nested_folders(root, tmp_path, capsys):
    put(root, *(f'{kind}/{sort}/box {box}/{number}.jpg' for kind in ('Apple', 'Pear') for sort in ('Red', 'Golden', 'Wild')
                for box in '12' for number in '123'), 'Apple/x.jpg')
    csv = make('folder', root)
    errors = capsys.readouterr().err
    assert pids(csv['train']) == {'Apple', 'Pear'} and 'has 2 identities only, Apple, Pear.' in errors
    assert 'e.g. Apple/Golden/box 1 as Apple. If those folders are identities, give --depth 3;' in errors
    csv = make('folder', root, tmp_path / 'deep', depth=2, camera_folders=True, query_per_identity=1)
    errors = capsys.readouterr()
    assert pids(csv['test']) == {f'{kind}/{sort}' for kind in ('Apple', 'Pear') for sort in ('Red', 'Golden', 'Wild')}
    assert 'only' not in errors.err
    assert 'Images outside of the folders of the identities are skipped: 1 (Apple/x.jpg)' in errors.err
    [name] = re.findall(r"--excluder '(.*)'\.$", errors.out, re.MULTILINE)
    gallery = ['Apple/Red/box 1/2.jpg', 'Apple/Red/box 2/2.jpg', 'Apple/Wild/box 1/1.jpg', 'Pear/Red/box 1/2.jpg']
    assert ignored(name, 'Apple/Red/box 1/1.jpg', gallery) == gallery[:1]


@pytest.mark.parametrize('folders, subsets', [
    ('train val test', {'train': 9, 'val_query': 3, 'val_test': 6, 'query': 3, 'test': 6}),
    ('Training validation', {'train': 9, 'val_query': 3, 'val_test': 6}),
    ('query gallery', {'query': 9, 'test': 9}),
    ('train query test', {'train': 9, 'query': 9, 'test': 9}),
    ('train gallery', {'train': 9, 'query': 3, 'test': 6}),
])
def test_folders_that_are_a_split_already(root, tmp_path, capsys, folders, subsets):
    names = folders.split()
    put(root, *(f'{folder}/{"seen" if folder.lower().startswith("train") else "new"} {pid}/cam{number}.jpg'
                for folder in names for pid in 'abc' for number in '123'))
    csv = make('folder', root, camera_pattern=r'/cam(?P<cid>\d)')
    output = capsys.readouterr()
    assert {subset: len(lines) for subset, lines in csv.items()} == subsets
    assert f'The folders {", ".join(sorted(names))} in {root} are taken as its split' in output.out
    [name] = re.findall(r"--excluder '(.*)'\.$", output.out, re.MULTILINE)
    paths = [f'{names[-1]}/new a/cam1.jpg', f'{names[0]}/new a/cam1.jpg', f'{names[0]}/new b/cam1.jpg']
    assert ignored(name, paths[0], paths) == paths[:2]
    with pytest.raises(InputError, match='is divided into .* already'):
        make('folder', root, tmp_path / 'other', val_fraction=0.5)
    assert pids(make('folder', root, tmp_path / 'none', no_split_folders=True)['train']) == set(names)


def test_identities_in_both_parts_of_a_split_are_warned_of(root, capsys):
    put(root, *(f'{folder}/{pid}/{number}.jpg' for folder in ('train', 'test') for pid in 'ab' for number in '12'))
    make('folder', root)
    assert 'warning: Identities in both train and test: 2 (a, b).' in capsys.readouterr().err


def put_walks(root):
    """Identities with three walks of four frames, one with a single walk."""
    put(root, *(f'{pid}/walk{walk}_{frame}.jpg' for pid in 'abcde' for walk in '123' for frame in range(4)),
        *(f'f/walk9_{frame}.jpg' for frame in range(4)))


def test_no_sequence_is_divided(root, capsys):
    put_walks(root)
    csv = make('folder', root, query_per_identity=2, sequence_pattern=r'/(?P<sid>walk\d)')
    output = capsys.readouterr()
    sequences = [{line.split('_')[0] for line in csv[each]} for each in ('query', 'test')]
    assert not sequences[0] & sequences[1] and pids(csv['query']) == set('abcde') and pids(csv['test']) == set('abcdef')
    assert len(csv['query']) == 10 and len(csv['test']) == 5 * 8 + 4
    assert '10 images of the sequences of queries are neither queries nor in the test set.' in output.out
    assert '1 of 6 held-out identities are seen in one sequence, and are for the test set only: 1 (f).' in output.err
    [name] = re.findall(r"--excluder '(.*)'\.$", output.out, re.MULTILINE)
    gallery = ['a/walk1_1.jpg', 'a/walk2_1.jpg', 'b/walk1_1.jpg']
    assert ignored(name, 'a/walk1_0.jpg', gallery) == gallery[:1]


def test_sequences_by_the_time_in_exif(root, tmp_path, capsys):
    for pid in 'abcdef':
        for second in (0, 2, 4, 50, 52):
            exif = Image.Exif()
            exif.get_ifd(0x8769)[0x9003] = f'2024:05:01 12:00:{second:02}'
            (root / pid).mkdir(exist_ok=True)
            photo(second).save(root / pid / f'{second}.jpg', exif=exif)
    csv = make('folder', root, query_per_identity=1, sequence_gap=3.0)
    early = [{line.split('/')[-1] in ('0.jpg', '2.jpg', '4.jpg') for line in csv[each] if line[0] == 'a'}
             for each in ('query', 'test')]
    assert len(csv['query']) == 6 and len(early[0]) == len(early[1]) == 1 and early[0] != early[1]
    put_picture(root, 'a/no time.png')
    make('folder', root, tmp_path / 'again', query_per_identity=1, sequence_gap=3.0)
    assert '1 of 31 images have no time in their EXIF data' in capsys.readouterr().err
    with pytest.raises(InputError, match='No held-out identity is seen in two sequences'):
        make('folder', root, tmp_path / 'one', query_per_identity=1, sequence_gap=1e9) if not os.remove(
            root / 'a/no time.png') else None
    put_walks(tmp_path / 'walks')
    with pytest.raises(InputError, match='No image in .* has a time in its EXIF data'):
        make('folder', tmp_path / 'walks', tmp_path / 'none', query_per_identity=1, sequence_gap=1.0)
    with pytest.raises(InputError, match='--sequence_pattern and --sequence_gap both say'):
        make('folder', root, tmp_path / 'both', sequence_pattern='(?P<sid>.)', sequence_gap=1.0)


def put_cameras(root):
    """Two identities in three cameras, one in one camera with three images, one of one image."""
    put(root, *(f'{pid}/{camera}/{image}.png' for pid in ('anna', 'bo b') for camera in ('left', 'right', 'c 3')
                for image in range(2)))
    put(root, 'carl/left/1.png', 'carl/left/2.png', 'carl/left/3.png', 'dora/right/1.png')


@pytest.mark.parametrize('options', [{'camera_folders': True}, {'camera_pattern': r'/(?P<cid>[a-z]+|c 3)/\d+\.png$'}])
def test_folder_with_cameras(root, capsys, options):
    put_cameras(root)
    csv = make('folder', root, query_per_identity=3, **options)
    assert [len(csv[subset]) for subset in ('query', 'test')] == [2 * 3, 2 * 3 + 4]
    output = capsys.readouterr()
    assert '1 of 4 held-out identities have one image, which is for the test set only: 1 (dora).' in output.err
    assert '1 of 4 held-out identities are seen in one camera, and are for the test set only: 1 (carl).' in output.err
    assert [line.split()[1:5] for line in output.out.splitlines()[1:3]] == [['2', '6', '-', cameras_in(csv['query'])],
                                                                           ['4', '10', '-', '3']]
    # The printed excluder leaves, for each query, images of its identity in other cameras, and other identities.
    [name] = re.findall(r"--excluder '(.*)'\.$", output.out, re.MULTILINE)
    gallery = [line.split(',')[1] for line in csv['test']]
    for line in csv['query']:
        pid, fid = line.split(',')
        own = [each for each in gallery if each.startswith(f'{pid}/')]
        same_camera = [each for each in own if each.split('/')[1] == fid.split('/')[1]]
        assert ignored(name, fid, gallery) == same_camera and len(own) > len(same_camera)


def cameras_in(lines):
    return str(len({line.split('/')[1] for line in lines}))


def test_a_query_leaves_something_to_find_in_another_camera():
    from layouts._moments import queries_of_cameras
    camera_of = {'a1': 'a', 'a2': 'a', 'b1': 'b', 'b2': 'b', 'c1': 'c'}
    for fids in itertools.permutations(camera_of):
        for wanted in (1, 2, 3, 5):
            queries = queries_of_cameras(list(fids), wanted, camera_of)
            rest = [camera_of[fid] for fid in fids if fid not in queries]
            assert 1 <= len(queries) <= wanted and all(set(rest) - {camera_of[fid]} for fid in queries)
            assert len(queries) == wanted or wanted > 2
    assert queries_of_cameras(['a1', 'a2'], 2, camera_of) == [] and queries_of_cameras(['a1', 'b1'], 2, camera_of) == ['a1']
    assert queries_of_cameras(['a1', 'b1', 'b2'], 2, camera_of) == ['a1']


@pytest.mark.parametrize('options, part', [
    ({'camera_pattern': r'cam(?P<cid>\d)'}, 'finds no camera for 16 of 16 images: anna/c 3/0.png, anna'),
    ({'camera_pattern': r'/(?P<cid>left)/'}, 'finds no camera for 9 of 16 images: anna/c 3/0.png'),
    ({'camera_pattern': r'/(?P<cid>left'}, 'is not a regular expression'),
    ({'camera_pattern': r'(?i)/(?P<cid>.*?)/'}, 'is not a regular expression, or not one that can be a part'),
    ({'camera_pattern': r'/(.*)/'}, r'needs one named group, \(\?P<cid>…\)'),
    ({'camera_pattern': r'/(?P<cid>.*?)/', 'camera_folders': True}, 'leave one of them out'),
])
def test_camera_patterns_that_cannot_be(root, options, part):
    put_cameras(root)
    with pytest.raises(InputError, match=part):
        make('folder', root, **options)


def test_no_identity_in_two_cameras(root):
    put(root, 'a/1/x.jpg', 'a/1/y.jpg', 'b/2/x.jpg', 'b/2/y.jpg')
    with pytest.raises(InputError, match='No held-out identity is seen in two cameras'):
        make('folder', root, query_per_identity=1, camera_folders=True)


def test_cameras_of_converted_pictures(root, tmp_path, capsys):
    put_picture(root, *(f'{pid}/{camera}.{ending}' for pid in 'ab' for camera, ending in (('l', 'webp'), ('r', 'jpg'))))
    csv = make('folder', root, query_per_identity=1, convert=str(tmp_path / 'jpeg'), camera_pattern=r'/(?P<cid>.)\.')
    assert sorted(csv['query'] + csv['test']) == ['a,a/l.webp.jpg', 'a,a/r.jpg', 'b,b/l.webp.jpg', 'b,b/r.jpg']
    assert len(csv['query']) == 2 and "--excluder 'regex:^" in capsys.readouterr().out


def test_a_pattern_that_means_something_else_as_a_part_of_another(root):
    put(root, 'ab/cc1.jpg', 'ab/dd2.jpg')
    with pytest.raises(InputError, match='for ab/cc1.jpg when it is a part of an excluder; write it without numbered'):
        make('folder', root, camera_pattern=r'/(.)\1(?P<cid>\d)')


def test_folder_says_what_it_leaves_out(root, capsys):
    put_folder(root)
    put(root, 'person 1/a.WEBP', 'person 1/b.webp', 'person 2/c.bmp', 'webps/1.webp', 'person 2/README', '2.webp',
        'notes.txt')
    put_gif(root / 'person 4/still.gif', frames=1)
    put_gif(root / 'person 4/moving.gif', frames=3)
    put(root, 'person 4/broken.gif')
    (root / 'nothing/at all').mkdir(parents=True)
    (root / 'person 5/link').symlink_to(root / 'person 6')
    (root / 'person 7/folder.jpg').mkdir()
    csv = make('folder', root)
    gifs = [line for line in csv['train'] if line.endswith('.gif')]
    assert len(csv['train']) == 34 and gifs == [f'person 4,person 4/{name}.gif' for name in ('broken', 'still')]
    assert capsys.readouterr().err.splitlines() == [
        'warning: Images outside of the folders of the identities are skipped: 2 (1.jpg, 2.webp); move each into the '
        'folder of its identity.',
        'warning: Files that are not .jpg, .jpeg, .jfif, .jpe, .pjp, .pjpeg, .gif, .png are skipped: 1 .bmp, 10 .txt, 3 '
        '.webp, 1 animated .gif, 1 without an ending; --convert FOLDER takes .bmp, .webp, animated .gif as well.',
        f'warning: Folders that are links are skipped: 1 ({root}/person 5/link).',
        'warning: Folders without images are skipped: 2 (nothing, webps).',
        'warning: Images in 1 folders further down count as images of the identity that the folder above names, e.g. '
        'person 3/camera 2 as person 3. If those folders are identities, give --depth 2; if they are cameras, '
        '--camera_folders.']


def test_a_folder_of_other_formats_only(root, capsys):
    put(root, 'a/1.webp', 'b/1.webp')
    with pytest.raises(InputError, match='no sub-folder with images'):
        make('folder', root)
    assert '2 .webp; --convert FOLDER takes .webp as well.' in capsys.readouterr().err


@pytest.mark.parametrize('first, second', [
    ({'val_fraction': 0.3}, {}),
    ({}, {'query_per_identity': 2}),
    ({'query_per_identity': 2}, {}),
])
def test_no_csv_file_of_an_earlier_division_stays(root, tmp_path, first, second):
    put_folder(root)
    before = make('folder', root, tmp_path / 'out', **first)
    stale = set(before) - set(make('folder', root, tmp_path / 'other', **second))
    with pytest.raises(InputError) as error:
        make('folder', root, tmp_path / 'out', **second)
    assert all(f'{tmp_path}/out/folder_{subset}.csv' in str(error.value) for subset in stale)
    assert {path.stem[7:]: path.read_text().splitlines() for path in (tmp_path / 'out').iterdir()} == before

    make_dataset.make('folder', str(root), str(tmp_path / 'out'), second, prefix='mine')
    for subset in stale:
        (tmp_path / f'out/folder_{subset}.csv').unlink()
    assert {f'folder_{subset}' for subset in make('folder', root, tmp_path / 'out', **second)} >= {
        f'folder_{subset}' for subset in set(before) - stale}


def test_files_of_others_are_no_leftovers(root, tmp_path):
    put_folder(root)
    put(tmp_path, 'out/folder_small.csv', 'out/folder_train_1.csv', 'out/other_test.csv', content=b'1,1.jpg')
    make('folder', root)
    make('folder', root, val_fraction=0.3)
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == [
        'folder_query.csv', 'folder_small.csv', 'folder_test.csv', 'folder_train.csv', 'folder_train_1.csv',
        'other_test.csv']
    assert (tmp_path / 'out/folder_small.csv').read_bytes() == b'1,1.jpg'


def test_images_outside_of_the_root(root, tmp_path, capsys):
    put_picture(root, 'a/1.png', 'b/1.png')
    put_picture(tmp_path, 'elsewhere/c/1.png')
    (root / 'a/2.png').symlink_to(tmp_path / 'elsewhere/c/1.png')
    (root / 'c').symlink_to(tmp_path / 'elsewhere/c')
    assert len(make('folder', root)['train']) == 4
    assert ('warning: 2 of 4 images of train lie outside of '
            f'{root} and are only read with --allow_outside_root: 2 (a/2.png, c/1.png).\n') in capsys.readouterr().err
    csv = make('folder', root, tmp_path / 'converted', convert=str(tmp_path / 'jpegs'))
    assert csv['train'] == ['a,a/1.png.jpg', 'b,b/1.png.jpg'] and not (tmp_path / 'jpegs/c').exists()
    assert 'are skipped: 2 (a/2.png, c/1.png).\n' in capsys.readouterr().err


def colours(size, *stripes):
    """Upright stripes of equal width."""
    pixels = np.repeat(np.array(stripes, np.uint8), size // len(stripes), 0)  # [width, 3]
    return Image.fromarray(np.repeat(pixels[None], size // 2, 0))  # [height, width, 3]


RED, GREEN, WHITE, GREY = (200, 30, 30), (20, 180, 40), (255, 255, 255), (125, 125, 125)


def put_pictures(root):
    """Write pictures of many kinds, red next to green; return each as a viewer shows it: width, height, both colours."""
    picture = colours(32, RED, GREEN)
    turned = Image.Exif()
    turned[0x0112] = 6  # To be turned by 90° clockwise.
    alpha = picture.copy()
    alpha.putalpha(Image.fromarray(np.repeat(np.repeat(np.array([[255, 0]], np.uint8), 16, 1), 16, 0)))
    palette = picture.quantize(4)
    hidden = palette.getpixel((31, 0))
    sixteen = Image.fromarray(np.full((16, 32), 125 * 256 + 99, np.uint16))
    for folder in ('röt', 'with blank/inner'):
        (root / folder).mkdir(parents=True)
    shown = {}

    def put_one(fid, image, seen=(32, 16, RED, GREEN), **options):
        image.save(root / fid, **options)
        shown[fid] = seen

    put_one('röt/plain.png', picture)
    put_one('röt/plain.jpg', picture, quality=90)
    put_one('röt/grey.jpeg', picture.convert('L'), seen=(32, 16, (81,) * 3, (116,) * 3))
    put_one('röt/a.webp', picture, lossless=True)
    put_one('röt/a.bmp', picture)
    put_one('röt/a.TIF', picture)
    put_one('röt/a.tiff', picture.convert('CMYK'))
    put_one('röt/a.gif', palette)
    put_one('röt/misnamed.png', picture, format='WEBP', lossless=True)
    put_one('röt/moving.gif', palette, save_all=True, append_images=[colours(32, GREEN, RED)])
    put_one('with blank/inner/turned.jpg', picture.transpose(Image.Transpose.ROTATE_90), exif=turned)
    put_one('with blank/inner/turned.png', picture.transpose(Image.Transpose.ROTATE_90), exif=turned)
    put_one('with blank/inner/alpha.png', alpha, seen=(32, 16, RED, WHITE))
    put_one('with blank/inner/alpha.webp', alpha, seen=(32, 16, RED, WHITE), lossless=True)
    put_one('with blank/inner/palette.png', palette, seen=(32, 16, RED, WHITE), transparency=hidden)
    put_one('with blank/inner/cmyk.jpg', picture.convert('CMYK'), quality=95)
    put_one('with blank/inner/sixteen.png', sixteen, seen=(32, 16, GREY, GREY))
    put_one('with blank/inner/sixteen.tif', sixteen, seen=(32, 16, GREY, GREY))
    return shown


def put_gif(path, frames):
    first, *others = [Image.new('RGB', (8, 8), (90 * number, 0, 0)) for number in range(frames)]
    first.save(path, save_all=True, append_images=others)


def test_convert(root, tmp_path):
    from tripletreid.input_pipeline import images
    shown = put_pictures(root)
    before = {fid: ((root / fid).read_bytes(), (root / fid).stat().st_mtime_ns) for fid in shown}
    csv = make('folder', root, convert=str(tmp_path / 'new/jpegs'))
    copies = {fid: fid if fid.endswith(('.jpg', '.jpeg')) else f'{fid}.jpg' for fid in shown}
    assert sorted(csv['train']) == sorted(f'{fid.split("/")[0]},{copy}' for fid, copy in copies.items())
    assert {fid: ((root / fid).read_bytes(), (root / fid).stat().st_mtime_ns) for fid in shown} == before
    assert sorted(path.relative_to(tmp_path / 'new/jpegs').as_posix() for path in (tmp_path / 'new').rglob('*.*')
                  if path.is_file()) == sorted(copies.values())
    for fid, (width, height, left, right) in shown.items():
        # Training's own decoder, which ignores EXIF and transparency, reads the copy as a viewer shows the original.
        content = (tmp_path / 'new/jpegs' / copies[fid]).read_bytes()
        pixels = images.decode(content).numpy()
        assert content.startswith(b'\xff\xd8\xff') and pixels.shape == (height, width, 3), fid
        np.testing.assert_allclose(pixels[height // 2, [4, -4]], [left, right], atol=6, err_msg=fid)
        assert not make_dataset._convert.changes(content), fid
    for fid in ('röt/plain.jpg', 'röt/grey.jpeg'):  # They lose nothing.
        assert (tmp_path / 'new/jpegs' / fid).read_bytes() == before[fid][0]

    # The copies divide as the originals do, and may be divided again.
    again = make('folder', tmp_path / 'new/jpegs', tmp_path / 'again')
    assert again == csv
    with pytest.raises(InputError, match='jpegs is there already; give --convert a new folder, or, .* in place of'):
        make('folder', root, convert=str(tmp_path / 'new/jpegs'))


def test_convert_leaves_out_what_cannot_be_read(root, tmp_path, capsys):
    put_picture(root, 'a/1.png', 'a/2.jpg', 'a/3.webp', 'b/1.bmp', size=(80, 90))
    for name in ('a/2.jpg', 'a/3.webp'):
        os.truncate(root / name, (root / name).stat().st_size // 2)
    put(root, 'a/page.jpg', content=b'<html>')
    put(root, 'a/empty.png', content=b'')
    put(root, 'b/postscript.tif', content=b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n')
    Image.new('F', (4, 4)).save(root / 'b/float.tif')
    csv = make('folder', root, convert=str(tmp_path / 'jpegs'))
    assert csv['train'] == ['a,a/1.png.jpg', 'b,b/1.bmp.jpg']
    assert sorted(path.name for path in (tmp_path / 'jpegs').rglob('*.*')) == ['1.bmp.jpg', '1.png.jpg']
    assert 'warning: Pictures that cannot be read are skipped: 6 (a/2.jpg: ' in capsys.readouterr().err


@pytest.mark.parametrize('damage, part', [
    (lambda root: (root / 'a/1.png').write_bytes(b''), 'Not one of the pictures in .* can be read: 1 .a/1.png: '),
    (lambda root: put_picture(root, 'a/1.png.jpg'), 'The copies of a/1.png and a/1.png.jpg in .* would have one name'),
    (lambda root: put(root.parent, 'out/folder_test.csv'), 'folder_test.csv of an earlier run would stay'),
])
def test_convert_writes_a_whole_folder_or_none(root, tmp_path, damage, part):
    put_picture(root, 'a/1.png')
    damage(root)
    before = sorted(tmp_path.rglob('*'))
    with pytest.raises(InputError, match=part):
        make('folder', root, convert=str(tmp_path / 'jpegs'))
    assert sorted(tmp_path.rglob('*')) == before


def test_convert_of_odd_pictures(root, tmp_path, capsys):
    """A picture larger than a JPEG can be is skipped with its name, a name that gets too long is shortened."""
    long_name = 'ä' * 124 + '.png'
    put_picture(root, 'a/1.png', f'a/{long_name}', 'b/1.jfif.jpg', 'b/2.jpg', colour=90)
    os.rename(root / 'b/1.jfif.jpg', root / 'b/1.jfif')
    Image.new('RGB', (65501, 2), 'red').save(root / 'b/wide.png')
    csv = make('folder', root, convert=str(tmp_path / 'jpegs'))
    assert 'are skipped: 1 (b/wide.png: 65501x2 pixels are too many for a JPEG; give --max_side)' in capsys.readouterr().err
    copies = [line.split(',')[1] for line in csv['train']]
    assert len(copies) == 4 and {'b/1.jfif.jpg', 'b/2.jpg', 'a/1.png.jpg'} < set(copies)
    assert all((tmp_path / 'jpegs' / copy).exists() and len(os.path.basename(copy).encode()) < 256 for copy in copies)
    csv = make('folder', root, tmp_path / 'small', convert=str(tmp_path / 'smaller'), max_side=10)
    sizes = {path.name: Image.open(path).size for path in (tmp_path / 'smaller').rglob('*.jpg')}
    assert len(csv['train']) == 5 and sizes['wide.png.jpg'] == (10, 1) and sizes['1.jfif.jpg'] == (5, 10)


def test_convert_of_12_bits_in_16(root, tmp_path, capsys):
    pixels = np.repeat(np.linspace(0, 3500, 32, dtype=np.uint16)[None], 16, 0)
    (root / 'a').mkdir()
    for name in ('1.png', '2.tif'):
        Image.fromarray(pixels).save(root / 'a' / name)
    make('folder', root, convert=str(tmp_path / 'dark'))
    assert 'almost black, without a pixel above 15 of 255: 2 (a/1.png, a/2.tif)' in capsys.readouterr().err
    make('folder', root, tmp_path / 'out 12', convert=str(tmp_path / 'seen'), bits=12)
    assert 'almost black' not in capsys.readouterr().err
    for copy in (tmp_path / 'seen/a').iterdir():
        np.testing.assert_allclose(np.asarray(Image.open(copy))[..., 0], pixels >> 4, atol=6)


def test_formats_that_need_a_library_are_named(root, capsys, monkeypatch):
    put(root, 'a/1.heic', 'a/2.HEIF', 'a/3.jfif', 'a/4.pjpeg')
    monkeypatch.setitem(sys.modules, 'pillow_heif', None)
    assert len(make('folder', root)['train']) == 2
    assert '1 .heic, 1 .heif; "pip install pillow-heif" and then --convert FOLDER take .heic, .heif.' in (
        capsys.readouterr().err)


def test_convert_into_the_folder_itself(root, tmp_path):
    put_picture(root, 'a/1.png')
    (tmp_path / 'link').symlink_to(root)
    for target in (root / 'new', tmp_path / 'link/a/new'):
        with pytest.raises(InputError, match=f'{target} lies in {root}'):
            make('folder', root, convert=str(target))
    assert [path.name for path in root.rglob('*')] == ['a', '1.png']


def test_convert_on_a_full_disk(root, tmp_path, monkeypatch):
    put_picture(root, 'a/1.png', 'b/1.png')
    begun, ended = threading.Event(), threading.Event()

    def write(path, content):
        """The disk is full for one picture while another thread is in the middle of the next."""
        if os.path.basename(os.path.dirname(path)) == 'a':
            begun.wait(60 if os.cpu_count() > 1 else 0)
            raise OSError(28, 'No space left on device', str(path))
        begun.set()
        for _ in range(30):  # For as long as the folder is to be there.
            if not os.path.isdir(os.path.dirname(path)):
                break
            time.sleep(0.01)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        ended.set()

    monkeypatch.setattr(make_dataset._convert, '_write', write)
    with pytest.raises(OSError, match='No space left'):
        make('folder', root, convert=str(tmp_path / 'jpegs'))
    assert ended.wait(60) or os.cpu_count() == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ['root']


NAMES = [' blank', 'blank hidden ', 'comma,', 'quote"', '"quoted"', "it's", 'new\nline', 'return\r', 'Grüße',
         '人', '#', 'NA', '\ttab']


def test_odd_names_come_back_as_they_are(root):
    put(root, *(f'{name}/{name}.jpg' for name in NAMES))
    make('folder', root)
    dataset = load_dataset(root.parent / 'out' / 'folder_train.csv')
    assert dict(zip(dataset.pids, dataset.fids)) == {name.strip(): f'{name}/{name}.jpg' for name in NAMES}
    assert not [problem for problem in file_problems(dataset.fids, root) if problem]


def test_identities_that_differ_in_blanks_or_spelling_only(root, capsys):
    put(root, 'Bob/1.jpg', 'bob/1.jpg', 'c 07/1.jpg', 'C 7/1.jpg')
    make('folder', root)
    assert ('warning: 4 identities of ' in capsys.readouterr().err)
    put(root, 'Bob /1.jpg')
    with pytest.raises(InputError, match="'Bob' and 'Bob ' in .* would be one identity"):
        make('folder', root, root.parent / 'other')


def test_a_name_that_is_not_utf8(root):
    os.makedirs(os.fsencode(root) + b'/1')
    open(os.fsencode(root) + b'/1/\xff.jpg', 'wb').close()
    with pytest.raises(InputError, match=r"'1/\\udcff.jpg' is not UTF-8"):
        make('folder', root)
    assert not list((root.parent / 'out').iterdir())


def test_a_folder_that_is_not_utf8(tmp_path):
    """The csv files, the checks and TensorFlow need UTF-8; one sentence says so, in characters that every terminal has."""
    folder = os.fsencode(tmp_path) + b'/photos \xff'
    os.makedirs(folder + b'/a')
    Image.new('RGB', (9, 9)).save(os.fsdecode(folder) + '/a/1.png')
    put(tmp_path, 'set.csv', content=b'a,a/1.png\n')
    folder = os.fsdecode(folder)
    for command in (['folder', folder], ['check', tmp_path / 'set.csv', folder],
                    ['join', 'both.csv', f'a={tmp_path}/set.csv', f'b={tmp_path}/set.csv', '--image_root', folder]):
        process = run_script('make_dataset.py', *command, cwd=tmp_path)
        assert_one_sentence(process, r"photos \udcff' is not UTF-8: rename", status=2)


def test_the_order_of_the_disk_does_not_matter(root, tmp_path, monkeypatch):
    put(root, *MARKET)
    first = make('market1501', root)
    listdir = os.listdir
    monkeypatch.setattr(os, 'listdir', lambda path: sorted(listdir(path), reverse=True))
    assert make('market1501', root, tmp_path / 'again') == first


@pytest.mark.parametrize('name', sorted(set(plugins.choices('layouts')) - {'digits'}))
def test_wrong_folder(name, root, tmp_path):
    put(root, 'readme.txt', 'Thumbs.db')
    for wrong in (root, root / 'readme.txt', root / 'nowhere'):
        with pytest.raises(InputError, match=str(wrong)):
            make_dataset.make(name, str(wrong), str(tmp_path / 'out'), {})
    assert not (tmp_path / 'out').exists()


def test_the_folder_above_the_right_one(root, tmp_path):
    put(root, *MARKET)
    process = run_script('make_dataset.py', 'market1501', tmp_path, '--out', tmp_path / 'out')
    assert_one_sentence(process, 'bounding_box_train is not in', 'but in its folder root: give that one', status=1)


def test_command_line(root, tmp_path):
    put(root, *(f'person {person}/{image}.jpg' for person in range(10) for image in range(3)))
    process = run_script('make_dataset.py', 'folder', root, '--out', 'my/csv', '--val_fraction', '.5', cwd=tmp_path)
    assert process.returncode == 0 and 'warning' not in process.stderr, process.stderr
    assert process.stdout.splitlines()[0].split() == ['subset', 'identities', 'images', 'tracklets', 'cameras', 'file']
    assert process.stdout.splitlines()[3].split()[::5] == ['test', 'my/csv/folder_test.csv']
    assert process.stdout.splitlines()[4:] == ['Evaluate with --excluder diagonal, since no cameras are known.',
                                               f'The images are in {root}: train with --image_root {root}.']
    assert sorted(path.name for path in (tmp_path / 'my/csv').iterdir()) == [
        'folder_query.csv', 'folder_test.csv', 'folder_train.csv']


def test_command_line_that_converts(root, tmp_path):
    put_picture(root, 'a/1.webp', 'b/1.png', *(f'{name}/1.jpg' for name in 'cdef'), colour=90)
    process = run_script('make_dataset.py', 'folder', root, '--out', 'csv', '--name', 'goods', '--convert', 'my jpegs',
                         cwd=tmp_path)
    assert process.returncode == 0 and process.stderr == '', process.stderr
    assert process.stdout.splitlines()[-1] == "The images are in my jpegs: train with --image_root 'my jpegs'."
    assert [path.name for path in (tmp_path / 'csv').iterdir()] == ['goods_train.csv']
    assert (tmp_path / 'csv/goods_train.csv').read_text().startswith('a,a/1.webp.jpg\nb,b/1.png.jpg\nc,c/1.jpg\n')


@pytest.mark.parametrize('arguments, part, status', [
    (['market1502', '.'], 'market1502', 2),
    (['market1501'], 'ROOT', 2),
    (['mars', '.', '--val_fraction', '0.5'], '--val_fraction', 2),
    (['market1501', '.', '--val_fraction', '1'], '--val_fraction: 1 is not a number between 0 and 1', 2),
    (['folder', '.', '--val_fraction', '1.5'], '--val_fraction: 1.5 is not a number between 0 and 1', 2),
    (['folder', '.', '--query_per_identity', '0'], '--query_per_identity', 2),
    (['folder', '.', '--test_fraction', '0.2'], '--test_fraction needs --val_fraction', 2),
    (['folder', '.', '--max_side', '200'], '--max_side needs --convert', 2),
    (['folder', '.', '--convert', 'x', '--bits', '8'], "'8' is not a number from 9 to 16", 2),
    (['folder', '.', '--name', 'a/b'], "'a/b' is not a name; the folder is given by --out", 2),
    (['check', '.', '.'], '. is a folder, where the csv file of a dataset is expected', 1),
    (['check', 'nowhere.csv', '.'], 'There is no dataset file nowhere.csv', 1),
    (['join', 'both.csv', '../a=a.csv'], "'../a=a.csv' is not NAME=CSV", 2),
])
def test_wrong_arguments(tmp_path, arguments, part, status):
    assert_one_sentence(run_script('make_dataset.py', *arguments, cwd=tmp_path), part, status=status)


def test_help_names_every_dataset_and_imports_nothing_heavy(tmp_path):
    process = run_script('make_dataset.py', '--help', env={**os.environ, 'PYTHONPROFILEIMPORTTIME': '1'})
    assert process.returncode == 0
    assert all(f'    {name}' in process.stdout for name in [*plugins.choices('layouts'), 'check'])
    for library in ('numpy', 'pandas', 'tensorflow', 'h5py', 'scipy', 'PIL', 'sklearn'):
        assert f' {library}\n' not in process.stderr


@pytest.fixture
def check(monkeypatch, capsys):
    """Checks csv files in this process, in which TensorFlow may be imported already; returns the lines printed."""
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '-1')  # As it sets itself, but undone after the test.

    def run(csv_paths, root, error=None):
        if error:
            with pytest.raises(InputError, match=error):
                make_dataset.check(csv_paths, root)
        else:
            make_dataset.check(csv_paths, root)
        return [line.strip() for line in capsys.readouterr().out.splitlines()]

    return run


def test_check(check, root, tmp_path):
    put_picture(root, 'a/1.png', 'a/2.jpg', colour=1)
    put_picture(root, 'a/3.png', colour=2, size=(20, 10))
    put_picture(root, 'b/1.png', 'c/1.png', colour=3)
    put(tmp_path, 'train.csv', content=b'a,a/1.png\na,a/2.jpg\na,a/3.png\na,a/3.png\nb,b/1.png\nc,c/1.png\nc,a/2.jpg\n')
    assert check([tmp_path / 'train.csv'], root) == [
        f'{tmp_path}/train.csv: 7 rows, 5 images, 3 identities',
        'images of an identity: 1 to 3, median 2',
        'width: 8 to 20, median 8; height: 10 to 16, median 16; 8x16 most often (4)',
        'images of fewer than 16 grey levels, nearly uniform: 5 (a/1.png, a/2.jpg, a/3.png, ...)',
        'identities with one image: 1 (b)',
        'images with the content of another: 2 (b/1.png, c/1.png)',
        'pictures of another, saved again: 0',
        'images of more than one identity: 3 (a/2.jpg, b/1.png, c/1.png)']


def test_check_finds_what_cannot_be_used(check, root, tmp_path):
    put_picture(root, 'a/1.png', 'b/truncated.png', 'b/truncated.jpg')
    for name in ('truncated.png', 'truncated.jpg'):
        os.truncate(root / 'b' / name, (root / 'b' / name).stat().st_size - 20)
    put(root, 'b/empty.jpg', content=b'')
    put(root, 'b/page.jpg', content=b'<html>')
    put(root, 'a/copy.png', content=(root / 'a/1.png').read_bytes())
    put(tmp_path, 'train.csv', content=b'a,a/1.png\nd,d/1.jpg\n')
    put(tmp_path, 'test.csv', content=b'b,b/truncated.png\nb,b/truncated.jpg\nb,b/empty.jpg\nb,b/page.jpg\n'
                                      b'd,d/1.jpg\na,a/copy.png\n')
    lines = check([tmp_path / 'train.csv', tmp_path / 'test.csv'], root,
                  error='^5 of 7 images cannot be used. .*train.csv and .*test.csv share images, 1 .a/copy.png.: ')
    assert lines[0] == f'{tmp_path}/train.csv: 2 rows, 2 images, 2 identities'
    assert 'No such file or directory: 1 (d/1.jpg)' in lines
    assert 'Not a whole image: 3 (b/empty.jpg, b/truncated.jpg, b/truncated.png)' in lines
    assert 'Neither a JPEG, a PNG nor a GIF: 1 (b/page.jpg)' in lines
    assert lines[-1].startswith(f'images in both {tmp_path}/train.csv and {tmp_path}/test.csv: 1 (a/copy.png); ')


@pytest.mark.parametrize('first, second, fails', [
    ('folder_train', 'folder_test', True),
    ('folder_train', 'folder_query', True),
    ('query', 'train', True),
    ('mine', 'others', True),
    ('folder_query', 'folder_test', False),
    ('Gallery', 'queries_2', False),
    ('detected_train', 'labeled_train', False),
    ('folder_val_query', 'folder_val_test', False),
    ('folder_val_query', 'folder_query', True),
    ('validation', 'folder_train', True),
])
def test_check_of_sets_that_share_images(check, root, tmp_path, capsys, first, second, fails):
    put_picture(root, 'a/1.png', 'b/copy.png', colour=1)
    put_picture(root, 'a/2.png', colour=2)
    put(tmp_path, f'{first}.csv', content=b'a,a/1.png\na,a/2.png\n')
    put(tmp_path, f'{second}.csv', content=b'b,b/copy.png\n')
    paths = [tmp_path / f'{name}.csv' for name in (first, second)]
    lines = check(paths, root, error=f'^{paths[0]} and {paths[1]} share images, 1 .b/copy.png.: ' if fails else None)
    assert lines[-1].startswith(f'images in both {paths[0]} and {paths[1]}: 1 (b/copy.png); saved again: 0; nearly equal')


def photo(seed, size=(160, 120), shift=0):
    """A picture with the smooth areas and the grain of a photograph; a shift moves its motif by pixels."""
    random = np.random.default_rng(seed)
    smooth = Image.fromarray(random.integers(0, 256, (9, 9, 3), np.uint8))
    smooth = smooth.resize((size[0] + 40, size[1]), Image.Resampling.BICUBIC)
    pixels = np.asarray(smooth, np.int16)[:, shift:shift + size[0]] + random.integers(-4, 5, (size[1], size[0], 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize('name, change, options', [
    ('1.png', lambda image: image, {}),
    ('1.jpg', lambda image: image, {'quality': 90}),
    ('1.jpg', lambda image: image.resize((80, 60)), {'quality': 90}),
    ('1.jpg', lambda image: image.convert('L'), {}),
    ('1.jpg', lambda image: image.transpose(Image.Transpose.ROTATE_270), {}),
])
def test_check_finds_a_picture_that_was_saved_again(check, root, tmp_path, capsys, name, change, options):
    """In training and test, and in one set under two identities, whatever became of its EXIF, format, size and turn."""
    for seed in range(4):
        put(root, f'{seed}/0.png')
        photo(seed).save(root / f'{seed}' / '0.jpg', quality=97, exif=turned(6))
        os.remove(root / f'{seed}' / '0.png')
    put(root, 'copy/' + name)
    change(photo(1)).save(root / 'copy' / name, **options)
    put(tmp_path, 'train.csv', content=b'0,0/0.jpg\n1,1/0.jpg\n2,2/0.jpg\n')
    put(tmp_path, 'test.csv', content=f'3,3/0.jpg\n4,copy/{name}\n'.encode())
    paths = [tmp_path / f'{each}.csv' for each in ('train', 'test')]
    lines = check(paths, root, error=f'train.csv and .*test.csv share pictures that were saved again, 1 .copy/{name}.: only')
    assert lines[-1] == f'images in both {paths[0]} and {paths[1]}: 0; saved again: 1 (copy/{name}); nearly equal: 0'
    put(tmp_path, 'all.csv', content=f'0,0/0.jpg\n1,1/0.jpg\n2,2/0.jpg\n4,copy/{name}\n'.encode())
    lines = check([tmp_path / 'all.csv'], root)
    assert lines[-2:] == [f'pictures of another, saved again: 2 (1/0.jpg, copy/{name})',
                          f'images of more than one identity: 2 (1/0.jpg, copy/{name})']


def test_check_warns_of_frames_of_one_moment_in_query_and_test(root, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '-1')
    for pid in range(4):
        for frame in range(4):
            put(root, f'{pid}/{frame}.png')
            photo(pid, shift=2 * frame).save(root / f'{pid}/{frame}.png')
    rows = [(pid, frame) for pid in range(4) for frame in range(4)]
    for name, frames in (('query', (0,)), ('test', (2, 3))):
        put(tmp_path, f'{name}.csv', content=''.join(f'{pid},{pid}/{frame}.png\n' for pid, frame in rows
                                                     if frame in frames).encode())
    paths = [tmp_path / f'{name}.csv' for name in ('query', 'test')]
    make_dataset.check(paths, str(root))
    output = capsys.readouterr()
    assert 'again: 0; nearly equal and of one identity: ' in output.out and 'as frames of one sequence are' in output.err
    # Another identity of the same moment is no help for finding the own one.
    put(tmp_path, 'test.csv', content=b'9,0/2.png\n9,1/2.png\n0,3/2.png\n')
    make_dataset.check(paths, str(root))
    assert 'as frames of one sequence are' not in capsys.readouterr().err


def test_check_warns_of_queries_whose_file_has_another_path_in_the_gallery(root, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '-1')
    (root / 'a').mkdir()
    for number in range(3):
        photo(number).save(root / f'a/{number}.png')
    os.link(root / 'a/1.png', root / 'hard.png')
    (root / 'soft.png').symlink_to(root / 'a/2.png')
    put(tmp_path, 'query.csv', content=b'a,a/0.png\na,a/1.png\na,a/2.png\n')
    for name, warned in (('test', True), ('test_same', False)):
        put(tmp_path, f'{name}.csv', content=b'a,hard.png\na,soft.png\n' if warned else b'a,a/1.png\na,a/2.png\n')
        make_dataset.check([tmp_path / 'query.csv', tmp_path / f'{name}.csv'], str(root))
        output = capsys.readouterr()
        assert ('under another path, as copies or links: 2 (hard.png, soft.png)' in output.err) == warned
        assert f'{name}.csv: 2 (' in output.out


def test_similar_pairs_against_a_naive_loop():
    random = np.random.default_rng(0)
    base = random.integers(0, 256, (20, 8), np.uint8)
    flips = [np.packbits(random.random(64) < chance) for chance in (0.02, 0.05, 0.1, 0.2) for _ in range(40)]
    hashes = sorted({(base[number % 20] ^ flip).tobytes() for number, flip in enumerate(flips)})
    bits = np.unpackbits(np.array([list(each) for each in hashes], np.uint8), axis=1).astype(int)
    for most in (0, 3, 6, 10):
        expected = [[i, j] for i in range(len(hashes)) for j in range(i + 1, len(hashes))
                    if np.abs(bits[i] - bits[j]).sum() <= most]
        assert similar_pairs(hashes, most).tolist() == expected and (most < 6 or len(expected) > 10)


def test_check_of_sets_that_share_identities(root, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '-1')
    for number, subset in enumerate(['train', 'query', 'test']):
        put_picture(root, f'{subset}.png', colour=number)
        put(tmp_path, f'{subset}.csv', content=f'1,{subset}.png\n'.encode())
    paths = [tmp_path / f'{subset}.csv' for subset in ('train', 'query', 'test')]
    make_dataset.check(paths, str(root))
    warnings = re.findall('warning: (Identities in both .*?)[.] If', capsys.readouterr().err)
    assert warnings == [f'Identities in both {paths[0]} and {path}: 1 (1)' for path in paths[1:]]


def test_check_counts_what_training_sees_differently(root, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '-1')
    shown = put_pictures(root)
    put_gif(root / 'röt/still.gif', frames=1)
    Image.new('RGBA', (8, 8), (1, 2, 3, 255)).save(root / 'röt/opaque.png')
    suffixes = plugins.load('layouts', 'folder')._identities.SUFFIXES
    fids = [fid for fid in (*shown, 'röt/still.gif', 'röt/opaque.png') if fid.endswith(suffixes)]
    put(tmp_path, 'set.csv', content=''.join(f'1,{fid}\n' for fid in fids).encode())
    with pytest.raises(InputError, match='^2 of 14 images cannot be used.$'):
        make_dataset.check([tmp_path / 'set.csv'], str(root))
    output = capsys.readouterr()
    lines = [line.strip() for line in output.out.splitlines()]
    folder = 'with blank/inner'
    assert f'turned by EXIF, which the net does not see: 2 ({folder}/turned.jpg, {folder}/turned.png)' in lines
    assert f'transparent, which the net does not see: 2 ({folder}/alpha.png, {folder}/palette.png)' in lines
    assert 'An animated GIF: 1 (röt/moving.gif)' in lines
    assert 'Neither a JPEG, a PNG nor a GIF: 1 (röt/misnamed.png)' in lines
    assert 'warning: Training sees 4 of 14 images differently from how a viewer shows them; ' in output.err


def test_check_guesses_why_images_are_missing(check, root, tmp_path):
    put_picture(root, 'a/1.png')
    put(tmp_path, 'set.csv', content=b'identity,path\na,a/1.png\n')
    check([tmp_path / 'set.csv'], root, error="^1 of 2 images cannot be used. Its first line, with 'path' for a path, ")


@pytest.fixture
def sets(tmp_path):
    """Write a.csv and b.csv, with equal names of identities and paths, and images/a and images/b."""
    for name, last in (('a', 'p,2/x.png'), ('b', 'q,3/x.png')):
        (tmp_path / f'{name}.csv').write_text(f'p,1/x.png\n{last}\n')
        put_picture(tmp_path / 'images' / name, *(line.split(',')[1] for line in ('p,1/x.png', last)), colour=ord(name))
    return tmp_path


def test_join(sets):
    out = sets / 'both.csv'
    process = run_script('make_dataset.py', 'join', out, f'market={sets}/a.csv', f'duke={sets}/b.csv')
    assert process.returncode == 0, process.stderr
    assert out.read_text() == 'market/p,market/1/x.png\nmarket/p,market/2/x.png\nduke/p,duke/1/x.png\nduke/q,duke/3/x.png\n'
    assert [line.split()[:4] for line in process.stdout.splitlines()[:4]] == [
        ['set', 'identities', 'images', 'tracklets'], ['market', '1', '2', '-'], ['duke', '2', '2', '-'],
        ['together', '3', '4', '-']]
    assert process.stderr.count('warning') == 1 and 'with equal names: 1 (p). They stay apart, as market/p and duke/p' in (
        process.stderr)


def test_join_warns_of_copies(sets, capsys):
    csv_files = [(name, str(sets / f'{name}.csv')) for name in 'ab']
    make_dataset.join(str(sets / 'both.csv'), csv_files, str(sets / 'images'))
    assert 'same content' not in capsys.readouterr().err  # The two images of each set are equal, but in one set.
    os.replace(sets / 'images' / 'a' / '1' / 'x.png', sets / 'images' / 'b' / '3' / 'x.png')
    put_picture(sets / 'images' / 'a', '1/x.png', colour=3)
    make_dataset.join(str(sets / 'both.csv'), csv_files, str(sets / 'images'))
    assert 'in several sets: 2 (a/2/x.png, b/3/x.png)' in capsys.readouterr().err
    os.remove(sets / 'images' / 'b' / '3' / 'x.png')
    with pytest.raises(InputError, match='1 of 4 images of .* are not in .*images: b/3/x.png'):
        make_dataset.join(str(sets / 'both.csv'), csv_files, str(sets / 'images'))


@pytest.mark.parametrize('given, part', [
    ('m=a.csv m=b.csv', 'Two csv files are called m'), ('m=a.csv', 'at least two csv files'),
    ('m=a.csv n=video.csv', 'video.csv names tracklets in a third column and'),
    ('m=a.csv n=out.csv', 'out.csv has paths that'), ('m=a.csv n=nowhere.csv', 'nowhere.csv'),
])
def test_join_of_what_does_not_fit(sets, given, part):
    (sets / 'video.csv').write_text('p,1/x.png,t1\n')
    (sets / 'out.csv').write_text('p,../1/x.png\n')
    csv_files = [(name, str(sets / path)) for name, path in (each.split('=') for each in given.split())]
    with pytest.raises(InputError, match=part):
        make_dataset.join(str(sets / 'both.csv'), csv_files, None)
    assert not (sets / 'both.csv').exists()


def put_sequence(root, name, lines, frames=range(1, 10), size=(40, 30), info=None):
    """A sequence whose frame number n has the value 10 n + x / 4 in its column x."""
    put(root, f'{name}/gt/gt.txt', content='\n'.join(lines).encode())
    folder, ending = ('frames', '.png') if info else ('img1', '.png')
    put(root, f'{name}/seqinfo.ini', content=f'[Sequence]\nname={name}\nimDir={folder}\nimExt={ending}\n'.encode())
    for frame in frames:
        pixels = np.broadcast_to(10 * frame + np.arange(size[0]) // 4, size[::-1]).astype(np.uint8)
        path = root / name / folder / f'{frame:06}{ending}'
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)


MOT = [f'{frame},7,5,3,8,20,1,1,1' for frame in (1, 2, 3, 4, 7, 8)] + [
    '1,12,-3,20,10,40,1,1,0.6', '2,12,1,1,4,4,1,1,0.4', '3,12,1,1,4,4,0,1,1', '4,12,1,1,4,4,1,8,1', '5,12,100,1,4,4,1,1,1']


def test_mot(root, capsys):
    put_sequence(root, 'A-02', MOT)
    put_sequence(root, 'A-04', [*MOT[:2], '5,9,1,1,2,2,1,1,1'], info=True)
    frame = root / 'A-04' / 'frames' / '000005.png'
    Image.fromarray(np.asarray(Image.open(frame)).astype(np.uint16) * 257).save(frame)  # 16 bits
    csv = make('mot', root, test_sequences=['A-02'], every=1, tracklet_frames=3, walk_gap=2)
    folder = 'crops_every_1_visibility_0.5'
    assert csv['train'] == [f'A-04_7,{folder}/A-04/7_000001.png,A-04_7_0', f'A-04_7,{folder}/A-04/7_000002.png,A-04_7_0',
                            f'A-04_9,{folder}/A-04/9_000005.png,A-04_9_0']
    # Frames 1 to 3 are a whole tracklet and 4 another one of the same walk; 7 and 8 are the second walk.
    assert csv['query'] == [f'A-02_7,{folder}/A-02/7_00000{frame}.png,A-02_7_{number}'
                            for frame, number in ((1, 0), (2, 0), (3, 0), (4, 1))]
    assert csv['test'] == [f'A-02_12,{folder}/A-02/12_000001.png,A-02_12_0'] + [
        f'A-02_7,{folder}/A-02/7_00000{frame}.png,A-02_7_2' for frame in (7, 8)]
    assert '1 boxes of A-02 lie outside of their frames' in capsys.readouterr().err
    crop = np.asarray(Image.open(root / folder / 'A-02' / '7_000004.png'))
    assert crop.shape == (20, 8, 3)
    assert crop[0, :, 0].tolist() == [10 * 4 + x // 4 for x in range(4, 12)]  # The fifth pixel is the first one.
    assert np.asarray(Image.open(root / folder / 'A-04' / '9_000005.png')).tolist() == [[[50] * 3] * 2] * 2
    assert Image.open(root / folder / 'A-02' / '12_000001.png').size == (6, 11)  # From -4 to 6, from 19 to the end at 30.
    assert load_dataset(root.parent / 'out' / 'mot_test.csv').tracklets is not None

    one_walk = make('mot', root, root.parent / 'one_walk', test_sequences=['A-02'], every=1, tracklet_frames=3)
    assert 'query' not in one_walk and len(one_walk['test']) == 7
    assert 'Nobody in A-02 has two walks that are more than 50 frames apart: there are no queries' in capsys.readouterr().err

    fewer = make('mot', root, root.parent / 'fewer', every=2, min_visibility=0.7)
    assert list(fewer) == ['train'] and sum('A-02' in line for line in fewer['train']) == 3  # Frames 1, 3 and 7.
    assert sorted(path.name for path in root.iterdir()) == [
        'A-02', 'A-04', folder, 'crops_every_2_visibility_0.7']


def test_mot_takes_one_of_the_detectors(root, capsys):
    for name in ('MOT17-02-DPM', 'MOT17-02-FRCNN', 'MOT17-02-SDP', 'MOT17-04-SDP'):
        put_sequence(root, name, MOT[:2])
    assert len(make('mot', root, every=1)['train']) == 4
    assert 'are skipped: 2 (MOT17-02-FRCNN, MOT17-02-SDP)' in capsys.readouterr().err


@pytest.mark.parametrize('line, frames, options, part', [
    ('1,7,5,3,8,20,1,-1,-1,-1', [1], {}, "gt.txt has '1,7,5,3,8,20,1,-1,-1,-1' in line 1, where nine numbers"),
    ('1,7,5,3,8,x,1,1,1', [1], {}, 'in line 1, where nine numbers are expected: frame, id, left'),
    ('1,7,5,3,8,9,1,1,nan', [1], {}, 'in line 1, where'), ('inf,7,5,3,8,9,1,1,1', [1], {}, 'in line 1, where'),
    ('1,7,5,3,8,nan,1,1,1', [1], {}, 'in line 1, where'),
    ('1,7,5,3,8,9,1,1,1', [2], {}, 'No box of the ground truth'),
    ('1,7,5,3,8,9,1,1,1', [1], {'test_sequences': ['B']}, '--test_sequences: there is no sequence B .* but A-02'),
])
def test_mot_damaged(root, line, frames, options, part):
    put_sequence(root, 'A-02', [line], frames)
    with pytest.raises(InputError, match=part):
        make('mot', root, **options)
    assert [path.name for path in root.iterdir()] == ['A-02']


def test_mot_with_a_damaged_frame_and_a_wrong_folder(root):
    put_sequence(root, 'train/A-02', MOT[:3])
    with pytest.raises(InputError, match='but in its folder train: give that one'):
        make('mot', root)
    frame = root / 'train' / 'A-02' / 'img1' / '000002.png'
    frame.write_bytes(frame.read_bytes()[:60])
    with pytest.raises(InputError, match='000002.png cannot be read: it is damaged'):
        make('mot', root / 'train', root / 'out', every=1)
    assert [path.name for path in (root / 'train').iterdir()] == ['A-02']
    (root / 'train' / 'A-02' / 'seqinfo.ini').write_text('[Sequence]\nimDir=../../x\n')
    with pytest.raises(InputError, match='seqinfo.ini names ../../x'):
        make('mot', root / 'train', root / 'out', every=1)
