"""Excluders: the rules on the benchmarks' own file names, compared with a loop over pairs."""
import os
import pickle
import re

import numpy as np
import pytest

from tripletreid import exclusion, plugins
from tripletreid.dataset import Dataset
from tripletreid.errors import InputError
from tripletreid.evaluation import ranking
from tripletreid.evaluation.retrieval import Retrieval

MARKET = ['0002_c1s1_000451_03.jpg', '0002_c2s1_000301_01.jpg', '0007_c1s6_028546_01.jpg', '-1_c1s1_000401_02.jpg',
          '0000_c1s1_000151_01.jpg']


def ignored(name, gallery, queries):
    gallery, queries = (np.array(fids, dtype=object) for fids in (gallery, queries))
    mask = exclusion.load(name)(gallery)(queries)
    assert mask.shape == (len(queries), len(gallery)) and mask.dtype == bool
    return mask.tolist()


def test_market1501_ignores_the_persons_own_camera_and_junk():
    gallery = ['bounding_box_test/' + name for name in MARKET]
    assert ignored('market1501', gallery, ['query/0002_c1s1_000776_01.jpg']) == [[True, False, False, True, False]]
    assert ignored('market1501', gallery, ['query/0002_c2s1_000776_01.jpg']) == [[False, True, False, True, False]]
    assert ignored('market1501', gallery, ['query/0002_c3s1_000776_01.jpg']) == [[False, False, False, True, False]]


def test_market1501_names_junk_that_no_query_looks_at():
    assert exclusion.load('market1501')(MARKET).junk.tolist() == [False, False, False, True, False]


def test_duke_ignores_the_persons_own_camera():
    gallery = ['0005_c2_f0046985.jpg', '0005_c5_f0046985.jpg', '0006_c2_f0046985.jpg', '-1_c2_f0000001.jpg']
    assert ignored('duke', gallery, ['query/0005_c2_f0047105.jpg']) == [[True, False, False, True]]


@pytest.mark.parametrize('name, pattern, fids', [
    ('market1501', r'(\S+)_c(\d+)s(\d+)_', ['a/anna_c1s1_000451_03.jpg', '0002_c1s1_c2s3_000451.jpg', 'b/-1_c1s1_0.jpg',
                                            'two words/0001_c01s1_0', 'anna_c_c3s1_', 'é-ü_c2s1_x']),
    ('duke', r'(\S+)_c(\d+)_', ['a/anna_c2_f0047105.jpg', '0005_c2_c3_f1.jpg', '-1_c2_f1.jpg', '0005_c2s1_c1_f1.jpg']),
])
def test_names_that_the_original_takes(name, pattern, fids):
    """Its own patterns, matched with the file's name."""
    expected = [re.match(pattern, os.path.basename(fid)).groups()[:2] for fid in fids]
    assert exclusion.load(name)([]).ids(fids) == expected and len(set(expected)) == len(expected)


def test_diagonal_ignores_the_very_same_file():
    assert ignored('diagonal', ['a/1.jpg', 'b/1.jpg', 'a/1.jpg'], ['a/1.jpg', 'c/1.jpg']) == [
        [True, False, True], [False, False, False]]


def test_pids_are_strings_and_not_numbers():
    assert ignored('market1501', ['2_c1s1_0.jpg', '0002_c1s1_0.jpg'], ['0002_c1s1_1.jpg']) == [[False, True]]


def test_frames_later_ignores_all_but_one_moment_of_the_sequence():
    gallery = ['c/A/1_000006.png', 'c/A/2_000006.png', 'c/A/1_000001.png', 'c/B/1_000006.png', 'c/A/1_000011.png']
    assert ignored('frames_later:5', gallery, ['c/A/1_000001.png', 'c/A/1_6.png', 'c/A/1_000007.png']) == [
        [False, False, True, True, True], [True, True, True, True, False], [True] * 5]
    pattern = r'frames_later:3:(?P<sid>c\d)_(?P<frame>\d+)'
    assert ignored(pattern, ['c1_4.jpg', 'c2_4.jpg'], ['x/c1_01.jpg']) == [[False, True]]


@pytest.mark.parametrize('name, part', [
    ('frames_later', 'needs a number of frames'), ('frames_later:0', 'needs a number of frames'),
    ('frames_later:5:(', 'is not a regular expression'), ('frames_later:5:(?P<sid>.)', 'needs the named groups'),
    ('frames_later:5', 'bob/1.png does not fit the pattern'),
    (r'frames_later:5:(?P<sid>bob)(?P<frame>\d)?', 'does not fit the pattern'),
    (r'frames_later:5:(?P<sid>bob)/(?P<frame>.+)', "The frame '1.png' of bob/1.png is not a number")])
def test_frames_later_refuses(name, part):
    with pytest.raises(InputError, match=re.escape(part)):
        exclusion.load(name)(['bob/1.png'])


def test_rank_1_with_frames_later_is_the_re_association_score():
    """Compared with a loop over persons in view: is the nearest of those in view n frames later the same person?"""
    random = np.random.default_rng(0)
    crops = [(f'{sequence}_{person}', sequence, frame) for sequence in 'AB' for person in range(6)
             for frame in range(1, 40, 2) if random.random() < 0.6]
    centres = {pid: random.normal(size=4) for pid, *_ in crops}
    embs = np.array([centres[pid] + 0.7 * random.normal(size=4) for pid, *_ in crops], np.float32)
    dataset = Dataset('crops.csv', np.array([pid for pid, *_ in crops], object),
                      np.array([f'{sequence}/{pid}_{frame:06}.png' for pid, sequence, frame in crops], object))
    for later in (2, 6):
        found = ranking.rank(Retrieval(embs, dataset, embs, dataset, exclusion.load(f'frames_later:{later}'), 'euclidean'))
        expected = []
        for (pid, sequence, frame), emb in zip(crops, embs):
            in_view = [(np.linalg.norm(emb - other), name) for (name, its_sequence, its_frame), other in zip(crops, embs)
                       if (its_sequence, its_frame) == (sequence, frame + later)]
            expected.append(min(in_view)[1] == pid if pid in [name for _, name in in_view] else None)
        assert [None if np.isnan(value) else bool(value) for value in found.scores['rank-1']] == expected
        assert {True, False, None} == set(expected)


@pytest.mark.parametrize('name, separator', [('market1501', 's1_'), ('duke', '_f')])
def test_rules_hold_for_every_pair(name, separator):
    random = np.random.default_rng(0)
    draw = [(random.choice(['-1', '0000', '0001', '0002']), random.integers(1, 4)) for _ in range(300)]
    fids = [f'{pid}_c{camera}{separator}{number:06}.jpg' for number, (pid, camera) in enumerate(draw)]
    expected = [[person == '-1' or (person, camera) == query for person, camera in draw[100:]] for query in draw[:100]]
    assert ignored(name, fids[100:], fids[:100]) == expected


def test_pattern_of_ones_own_is_searched_in_the_file_name():
    pattern = r'regex:^(?P<cid>\w+)-(?P<pid>\w+)'
    gallery = ['2/door-anna-1.jpg', '2/hall-anna-1.jpg', 'door-bob.jpg']
    assert ignored(pattern, gallery, ['1/door-anna-7.jpg']) == [[True, False, False]]
    assert ignored(r'regex:(?P<pid>-?\d+)_c(?P<cid>\d)', MARKET, MARKET) == ignored('market1501', MARKET, MARKET)


def test_pattern_with_a_slash_is_searched_in_the_whole_path():
    gallery = ['door/anna/1.jpg', 'hall/anna/1.jpg', 'door/bob/1.jpg']
    assert ignored('regex:^(?P<cid>[^/]+)/(?P<pid>[^/]+)/', gallery, ['door/anna/9.jpg']) == [[True, False, False]]


def test_excluders_travel_to_other_processes():
    for name in ('market1501', 'diagonal', 'regex:(?P<pid>.)(?P<cid>.)'):
        pickle.loads(pickle.dumps(exclusion.load(name)))


@pytest.mark.parametrize('name, message', [
    ('nonsense', 'nonsense'), ('_same_camera', '_same_camera'), ('', 'choose from'), ('../data/duke', 'choose from'),
    ('regex:', 'pid'), ('regex', 'pid'), ('duke:', 'takes no argument'),
    ('regex:(', 'not a regular expression'), (r'regex:(?P<pid>\d+)', 'cid'),
])
def test_excluders_that_there_are_not(name, message):
    with pytest.raises(InputError, match=message):
        exclusion.load(name)


@pytest.mark.parametrize('name, fid', [
    ('market1501', 'query/anna b_c1s1_0.jpg'), ('market1501', 'query/_c1s1_0.jpg'),
    ('market1501', 'query/0002_c1_f000451.jpg'), ('market1501', 'query/0002.jpg'), ('duke', '0005_c2s1_f0046985.jpg'),
    (r'regex:^(?P<pid>\d+)(_(?P<cid>\d+))?', '12.jpg'),
])
def test_file_name_that_does_not_fit_is_shown_with_the_pattern(name, fid):
    excluder = exclusion.load(name)
    for make_mask in (lambda: excluder([fid]), lambda: excluder([])([fid])):
        with pytest.raises(InputError) as error:
            make_mask()
        assert fid in str(error.value) and '(?P<pid>' in str(error.value)


@pytest.mark.parametrize('name', plugins.choices('excluders'))
def test_nothing_in_query_or_gallery(name):
    argument = getattr(plugins.load('excluders', name), 'EXAMPLE_ARGUMENT', None)
    assert exclusion.load(f'{name}:{argument}' if argument else name)([])([]).shape == (0, 0)
