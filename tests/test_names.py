"""One spelling per path and name: names that differ only in spelling are equal, or there is a warning."""
import argparse
import hashlib
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tripletreid import exclusion
from tripletreid.dataset import Dataset, load_dataset, warn_of_lookalikes
from tripletreid.embeddings.with_dataset import open_gallery, open_with_dataset
from tripletreid.embeddings.writer import FileContent, save_embeddings
from tripletreid.errors import InputError
from tripletreid.image_root import OwnFileExcluder, check_files, paths_of_one_file
from tripletreid.names import canonical_name, canonical_path, canonical_paths, lookalikes, spelling_key
from tripletreid.training.validation import Validation


@pytest.mark.parametrize('spelled, path', [
    ('a/1.png', 'a/1.png'), ('./a/1.png', 'a/1.png'), ('a//1.png', 'a/1.png'), ('a/./1.png', 'a/1.png'),
    ('a/b/../1.png', 'a/1.png'), ('././/a/1.png', 'a/1.png'), ('a/1.png/', 'a/1.png'), ('a/..', '.'),
    ('/a//1.png', '/a/1.png'), ('//a/1.png', '/a/1.png'), ('../1.png', '../1.png'), ('a/../../1.png', '../1.png'),
    (' a.png ', ' a.png '), ('a\n/./1.png', 'a\n/1.png'), ('..a/.b/c.', '..a/.b/c.'), ('a\\b.png', 'a\\b.png'),
])
def test_paths_have_one_spelling(spelled, path):
    assert canonical_path(spelled) == path
    assert canonical_paths(['x.png', spelled]) == ['x.png', path]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(paths=st.lists(st.lists(st.sampled_from(['/', '.', 'a', '\n', ' ', 'ä']), min_size=1, max_size=7).map(''.join)))
def test_many_paths_are_spelled_as_each_of_them(paths):
    assert canonical_paths(paths) == [canonical_path(path) for path in paths]
    assert canonical_paths(canonical_paths(paths)) == canonical_paths(paths)


@pytest.mark.parametrize('spelled', ['Anna', ' Anna', 'Anna\t', '\u00a0Anna\u2003', '\ufeff Anna\u200b ', '\nAnna\r'])
def test_blanks_around_a_name_are_not_part_of_it(spelled):
    assert canonical_name(spelled) == 'Anna'


@pytest.mark.parametrize('one, other, equal', [
    ('7', '07', True), ('0', '000', True), ('c1', 'c01', True), ('cam 1_7', 'cam 01_007', True), ('Bob', 'bob', True),
    ('José', 'Jose\u0301', True), ('A B', 'a\u00a0 b', True), ('Straße', 'STRASSE', True),
    ('7', '70', False), ('1.5', '1.05', False), ('-1', '1', False), ('a', 'á', False), ('0000', '0002', False),
])
def test_lookalikes(one, other, equal):
    assert (spelling_key(one) == spelling_key(other)) == equal
    assert lookalikes([one, other, 'else']) == ([sorted([one, other])] if equal else [])


def dataset(path, *rows):
    return Dataset(path, *(np.array(column, object) for column in zip(*rows)))


def test_lookalikes_within_and_between_sets_are_warned_of(capsys):
    query = dataset('q.csv', ('7', 'a/1.png', 't1'), ('José', 'a/É.png', 't'), ('7', 'a/2.png', 't01'))
    gallery = dataset('g.csv', ('07', 'b/1.png', 't1'), ('Jose\u0301', 'a/E\u0301.png', 't'), ('8', 'A/2.png', 't'))
    warn_of_lookalikes(query)
    assert capsys.readouterr().err == (
        'warning: 2 tracklets of q.csv differ from another one only in leading zeros, case, blanks or Unicode form, and '
        'count as different: t01 and t1. If two of them mean the same, give both one spelling.\n')
    warn_of_lookalikes(query, gallery)
    errors = capsys.readouterr().err.splitlines()
    assert [line.split(': ')[1].split(' differ')[0] for line in errors] == [
        f'{number} {kind} of q.csv and g.csv' for number, kind in ((4, 'identities'), (2, 'tracklets'), (4, 'paths'))]
    assert r"'Jose\u0301' and 'Jos\xe9'" in errors[0] and '07 and 7' in errors[0] and 'A/2.png and a/2.png' in errors[2]
    warn_of_lookalikes(dataset('m.csv', ('0002', 'a.jpg'), ('-1', 'b.jpg'), ('0000', 'c.jpg')))
    assert capsys.readouterr().err == ''


def test_images_in_several_rows_are_warned_of(capsys):
    rows = ('1', 'a.png'), ('1', 'b.png'), ('2', 'a.png'), ('1', 'a.png')
    warn_of_lookalikes(dataset('q.csv', *rows[:2]), dataset('g.csv', *rows[1:2]))
    assert capsys.readouterr().err == ''
    warn_of_lookalikes(dataset('q.csv', *rows[:2]), dataset('g.csv', *rows))
    assert capsys.readouterr().err.startswith('warning: 2 rows of g.csv repeat an image')


def test_images_with_several_identities_are_warned_of(capsys):
    rows = ('1', 'a.png'), ('1', 'b.png'), ('2', 'a.png'), ('-1', 'b.png')
    warn_of_lookalikes(dataset('q.csv', *rows[:2]), dataset('g.csv', *rows[2:]))
    assert capsys.readouterr().err.startswith('warning: 1 images of q.csv and g.csv have more than one identity, e.g. '
                                              'a.png has 1 and 2:')
    warn_of_lookalikes(dataset('q.csv', *rows[:2]), dataset('g.csv', *rows[3:]))
    assert capsys.readouterr().err == ''


def test_an_excluder_that_disagrees_with_the_csv_files_is_warned_of(capsys):
    query = dataset('q.csv', ('7', '7_c1s1_1.jpg'), ('8', '8_c1s1_1.jpg'), ('-1', '-1_c1s1_1.jpg'))
    gallery = dataset('g.csv', ('7', '7_c1s1_2.jpg'), ('8', '8_c2s1_2.jpg'), ('-1', '-1_c2s1_1.jpg'), ('0', '0_c1s1_1.jpg'))

    def warnings(query, *rows, name='market1501'):
        exclusion.warn_of_disagreement(name, exclusion.load(name), query, dataset('g.csv', *rows))
        return capsys.readouterr().err

    rows = list(zip(gallery.pids, gallery.fids))
    assert warnings(query, *rows) == ''
    # Some cameras or identities are spelled in another way, in one file name of many.
    assert 'of 1 pairs of an identity and a camera' in (one := warnings(query, *rows, ('7', '7_c01s1_3.jpg')))
    assert '7 in 01 and 7 in 1' in one
    assert '07 in 1 and 7 in 1' in warnings(query, *rows, ('7', '07_c1s1_3.jpg'))
    assert 'one identity in file names of several: 7 for 7, 9.' in warnings(query, *rows, ('9', '7_c3s1_3.jpg'))
    # Junk of the csv file that the excluder does not know as such.
    assert 'hold junk' in warnings(query, *rows, ('-1', '5_c1s1_3.jpg'))
    assert 'hold junk' in warnings(query, *rows, name='diagonal')
    assert warnings(query.take(slice(2)), *rows[:2], name='diagonal') == ''


def test_the_hash_of_a_canonical_dataset_is_that_of_earlier_versions(tmp_path):
    (tmp_path / 'set.csv').write_text('0002,a/1.jpg\n-1,b c.jpg\n')
    digest = hashlib.sha256(b'0002\0a/1.jpg\0-1\0b c.jpg\0').hexdigest()
    assert load_dataset(tmp_path / 'set.csv').content_hash() == digest


def test_embeddings_of_earlier_versions_fit_their_csv_file(tmp_path):
    """They hold the paths as the csv file spells them."""
    (tmp_path / 'set.csv').write_text('1 ,./a/1.jpg\n2,b//2.jpg\n')
    spelled = dataset('set.csv', ('1 ', './a/1.jpg'), ('2', 'b//2.jpg'))
    embs = np.eye(2, dtype=np.float32)
    save_embeddings(tmp_path / 'set.h5', spelled, embs, {'made': 'long ago'})
    loaded = load_dataset(tmp_path / 'set.csv')
    with open_with_dataset([tmp_path / 'set.h5'], loaded)[0] as embeddings:
        assert embeddings.fids.tolist() == ['a/1.jpg', 'b/2.jpg']
    embeddings, gallery = open_gallery([tmp_path / 'set.h5'], tmp_path / 'set.csv')
    with embeddings:
        assert list(gallery.fids) == loaded.fids.tolist() and gallery.content_hash() == loaded.content_hash()
    assert FileContent(loaded, 2, {'made': 'long ago'}).is_in(tmp_path / 'set.h5')
    assert not FileContent(loaded, 2, {'made': 'today'}).is_in(tmp_path / 'set.h5')
    (tmp_path / 'set.csv').write_text('1,a/2.jpg\n2,b/2.jpg\n')
    with pytest.raises(InputError, match='made from other rows'):
        open_with_dataset([tmp_path / 'set.h5'], load_dataset(tmp_path / 'set.csv'))


def test_diagonal_ignores_an_image_however_its_path_is_spelled(tmp_path):
    (tmp_path / 'query.csv').write_text('1,./a/1.jpg\n1,b/../a/2.jpg\n2,a/3.jpg\n')
    (tmp_path / 'gallery.csv').write_text('1,a/1.jpg\n1,a//2.jpg\n2,././a/3.jpg\n')
    query, gallery = (load_dataset(tmp_path / f'{name}.csv') for name in ('query', 'gallery'))
    assert (exclusion.load('diagonal')(gallery.fids)(query.fids) == np.eye(3, dtype=bool)).all()


@pytest.fixture
def linked(tmp_path):
    """Images of two identities, where images 1 to 3 have a second path by a hard link, a link and a linked folder."""
    root = tmp_path / 'root'
    for number in range(5):
        (root / 'a').mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (8, 8), (number, 0, 0)).save(root / 'a' / f'{number}.png')
    os.link(root / 'a/1.png', root / 'hard.png')
    (root / 'soft.png').symlink_to(root / 'a/2.png')
    (root / 'folder').symlink_to(root / 'a')
    return root


def test_an_image_never_finds_its_own_file(linked):
    query = np.array(['a/0.png', 'a/1.png', 'a/2.png', 'a/3.png'], object)
    gallery = np.array(['a/4.png', 'hard.png', 'soft.png', 'folder/3.png', 'a/1.png'], object)
    first_path = paths_of_one_file([*query, *gallery], linked)
    assert first_path == {path: path_of_query for path, path_of_query in (
        ('a/1.png', 'a/1.png'), ('hard.png', 'a/1.png'), ('a/2.png', 'a/2.png'), ('soft.png', 'a/2.png'),
        ('a/3.png', 'a/3.png'), ('folder/3.png', 'a/3.png'))}
    diagonal = exclusion.load('diagonal')
    assert diagonal(gallery)(query).sum() == 1
    ignored = OwnFileExcluder(diagonal, first_path)(gallery)(query)
    assert ignored.tolist() == [[False] * 5, [False, True, False, False, True], [False, False, True, False, False],
                                [False, False, False, True, False]]
    assert (OwnFileExcluder(diagonal, {})(gallery)(query) == diagonal(gallery)(query)).all()
    junk = OwnFileExcluder(exclusion.load('market1501'), {})(np.array(['-1_c1s1_1.jpg', '2_c1s1_1.jpg'], object)).junk
    assert junk.tolist() == [True, False]


def test_a_validation_never_finds_the_own_file(linked, tmp_path):
    """The only match of each query is the query's own file under another path."""
    (tmp_path / 'query.csv').write_text('1,a/1.png\n2,a/2.png\n')
    (tmp_path / 'gallery.csv').write_text('1,hard.png\n2,soft.png\n3,a/4.png\n')
    args = argparse.Namespace(
        eval_query=[str(tmp_path / 'query.csv')], eval_gallery=[str(tmp_path / 'gallery.csv')], allow_outside_root=False,
        eval_excluder=['diagonal'], eval_image_root=None, image_root=str(linked))
    with pytest.raises(InputError, match='No query of .* has a match'):
        Validation(args)
    (tmp_path / 'gallery.csv').write_text('1,hard.png\n2,soft.png\n1,a/4.png\n')
    Validation(args)


def test_a_path_with_blanks_opens_the_file_of_that_name(tmp_path):
    for name in (' 1.png', '2.png ', '3.png'):
        (tmp_path / name).touch()
    (tmp_path / 'set.csv').write_text('a," 1.png"\nb,2.png \nc,"3.png"\n')
    loaded = load_dataset(tmp_path / 'set.csv')
    assert loaded.fids.tolist() == [' 1.png', '2.png ', '3.png']
    check_files(loaded, str(tmp_path))
    (tmp_path / 'set.csv').write_text('a,3.png\nb,3.png \n')
    with pytest.raises(InputError, match="The path '3.png ' begins or ends with a blank, which counts"):
        check_files(load_dataset(tmp_path / 'set.csv'), str(tmp_path))
