"""csv files as people's editors, spreadsheets and scripts leave them; and whether the images are where they say."""
import os
import pickle
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tripletreid.dataset import Dataset, load_dataset
from tripletreid.dataset_parts import bounds, parts
from tripletreid.dataset_writer import save_dataset, save_datasets
from tripletreid.errors import InputError
from tripletreid.image_root import check_files, file_problems
from tripletreid.names import canonical_name, canonical_path


def load(tmp_path, content):
    path = tmp_path / 'set.csv'
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return load_dataset(path)


@pytest.mark.parametrize('content', [
    '0002,a/b.jpg\n-1,c.jpg\n',
    '0002,a/b.jpg\n-1,c.jpg',
    '0002,a/b.jpg\r\n-1,c.jpg\r\n',
    '0002,a/b.jpg\r-1,c.jpg\r',
    '\ufeff0002,a/b.jpg\n-1,c.jpg\n',
    '\ufeff"0002","a/b.jpg"\r\n"-1","c.jpg"\r\n',
    '0002, a/b.jpg\n-1,  c.jpg\n',
    ' 0002,"a/b.jpg"\n-1,c.jpg\n',
    '0002 ,./a/b.jpg\n\t-1,./c.jpg\n',
    '"0002\u00a0",a//b.jpg\n"\ufeff -1\u200b ",c.jpg/\n',
    '0002,a/x/../b.jpg\n-1,x/../c.jpg\n',
])
def test_the_same_two_rows(tmp_path, content):
    dataset = load(tmp_path, content)
    assert len(dataset) == 2 and dataset.path == str(tmp_path / 'set.csv')
    assert dataset.pids.tolist() == ['0002', '-1'] and dataset.fids.tolist() == ['a/b.jpg', 'c.jpg']
    assert dataset.pids.dtype == dataset.fids.dtype == object and dataset.tracklets is None


@pytest.mark.parametrize('pid, fid, line', [
    ('0000', '1e5.jpg', '0000,1e5.jpg'),
    ('NA', 'nan', 'NA,nan'),
    ('null', 'None', 'null,None'),
    ('1.0', 'True', '1.0,True'),
    ('#1', '#2.jpg', '#1,#2.jpg'),
    ('Grüße', '人/é.jpg', 'Grüße,人/é.jpg'),
    ('1', 'with blank.jpg', '1,with blank.jpg'),
    ('1', 'with, comma.jpg', '1,"with, comma.jpg"'),
    ('1', 'with "quote".jpg', '1,"with ""quote"".jpg"'),
    ('1', "it's.jpg", "1,it's.jpg"),
    ('1', 'back\\slash.jpg', '1,back\\slash.jpg'),
    ('1', 'two\nlines.jpg', '1,"two\nlines.jpg"'),
])
def test_strings_stay_as_they_are(tmp_path, pid, fid, line):
    dataset = load(tmp_path, f'{line}\n{line}\n')
    assert dataset.pids.tolist() == [pid] * 2 and dataset.fids.tolist() == [fid] * 2


@pytest.mark.parametrize('content, part', [
    (b'', 'is empty'),
    (b'\n', 'is empty'),
    (b'\xef\xbb\xbf', 'is empty'),
    (b'1,a.jpg\n\n', '1 line(s) that are empty or lack a column, the first of them line 2'),
    (b'1,a.jpg\n\n2,b.jpg\n\n', '2 line(s) that are empty or lack a column, the first of them line 2'),
    (b'1,a.jpg\n2\n', 'lack a column, the first of them line 2'),
    (b'1,a.jpg\n2,\n', 'lack a column, the first of them line 2'),
    (b',a.jpg\n', 'lack a column, the first of them line 1'),
    (b' ,a.jpg\n', 'lack a column, the first of them line 1'),
    (b'1,a.jpg,t\n2,b.jpg,"\xc2\xa0"\n', 'lack a column, the first of them line 2'),
    (b'1,a.jpg,t\n2,b.jpg\n', 'lack a column, the first of them line 2'),
    (b'1,a.jpg\n2,b.jpg,t\n', 'Expected 2 fields in line 2, saw 3'),
    (b'1\n2\n', 'has 1 column(s)'),
    (b'1;a.jpg\n', 'has 1 column(s)'),
    (b'1,a.jpg,t,u\n', 'has 4 column(s)'),
    (b'1,"a.jpg\n2,b.jpg\n', 'is not a csv file'),
    (b'1,\xff.jpg\n', 'is not UTF-8 text'),
    ('1,a.jpg\n'.encode('utf-16'), 'is not UTF-8 text'),
    (b'\xff\xd8\xff\xe0' + bytes(100), 'is not UTF-8 text'),
    (b'1,a\0.jpg\n', "NUL character in 'a\\x00.jpg'"),
    (b'\0,a.jpg\n', 'NUL character'),
    (b'1,a.jpg,\0\n', 'NUL character'),
])
def test_one_sentence(tmp_path, content, part):
    with pytest.raises(InputError) as error:
        load(tmp_path, content)
    assert part in str(error.value) and str(tmp_path / 'set.csv') in str(error.value)
    assert '\n' not in str(error.value)


def test_a_folder_is_named_as_such(tmp_path):
    with pytest.raises(InputError, match=f'^{tmp_path} is a folder, where the csv file .* make_dataset.py folder'):
        load_dataset(tmp_path)


def test_not_a_file(tmp_path):
    for path in (tmp_path, tmp_path / 'nowhere.csv'):
        with pytest.raises(InputError, match=str(path)):
            load_dataset(path)


fields = st.text(st.characters(codec='utf-8', exclude_characters='\0'), min_size=1, max_size=6)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(rows=st.lists(st.tuples(fields.filter(canonical_name), fields), min_size=1, max_size=20))
def test_what_is_written_is_read(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / 'written.csv'
    save_datasets({path: rows})
    dataset = load_dataset(path)
    assert list(zip(dataset.pids, dataset.fids)) == [(canonical_name(pid), canonical_path(fid)) for pid, fid in rows]


def test_a_dataset_is_written_as_its_rows_are(tmp_path):
    content = '1,a.jpg,t 1\n2,"b,c.jpg",t2\n'
    save_dataset(tmp_path / 'again.csv', load(tmp_path, content))
    assert (tmp_path / 'again.csv').read_text() == content


def test_all_csv_files_or_none(tmp_path):
    train, test = tmp_path / 'train.csv', tmp_path / 'test.csv'
    save_datasets({train: [('1', 'a.jpg')], test: [('2', 'b.jpg')]})
    with pytest.raises(InputError, match='not UTF-8'):
        save_datasets({train: [('2', 'b.jpg')], test: [('1', '\udcff.jpg')]})
    (tmp_path / 'query.csv').mkdir()
    for paths in ((train, tmp_path / 'query.csv'), (tmp_path / 'query.csv', train)):
        with pytest.raises(InputError, match='query.csv is a folder'):
            save_datasets({path: [('3', 'c.jpg')] for path in paths})
    assert train.read_text() == '1,a.jpg\n' and test.read_text() == '2,b.jpg\n'
    assert len(list(tmp_path.iterdir())) == 3  # And no unfinished file.


@pytest.mark.parametrize('renames', [0, 1, 2])
def test_old_and_new_csv_files_are_never_mixed(tmp_path, monkeypatch, renames):
    """A kill between two renames, here one that fails, leaves old files or new ones, but not one of each."""
    paths = [tmp_path / f'{subset}.csv' for subset in ('train', 'query', 'test')]
    save_datasets({path: [('1', 'old.jpg')] for path in paths})
    replace, done = os.replace, []

    def replace_some(source, target):
        if len(done) == renames:
            raise OSError('killed')
        done.append(target)
        replace(source, target)

    monkeypatch.setattr(os, 'replace', replace_some)
    with pytest.raises(OSError):
        save_datasets({path: [('1', 'new.jpg')] for path in paths})
    assert len({path.read_text() for path in paths if path.exists()}) == 1


def test_a_million_lines(tmp_path):
    with open(tmp_path / 'set.csv', 'w') as file:
        file.writelines(f'{row // 20:05},folder/{row // 20:05}_c1s1_{row:07}.jpg\n' for row in range(1_000_000))
    dataset = load_dataset(tmp_path / 'set.csv')
    assert len(dataset) == 1_000_000
    assert (dataset.pids[-1], dataset.fids[-1]) == ('49999', 'folder/49999_c1s1_0999999.jpg')
    # The lines of a person share one string, else the identities alone would be 50 MB.
    assert len({id(pid) for pid in dataset.pids}) < 100_000


def test_tracklets_against_a_naive_loop():
    shuffled = random.Random(0)
    rows = [(shuffled.choice('ab'), f'{row}.jpg', shuffled.choice('xyz')) for row in range(50)]
    dataset = Dataset('set.csv', *np.array(rows, dtype=object).T)
    seen = {}
    numbers = [seen.setdefault((pid, tracklet), len(seen)) for pid, _, tracklet in rows]
    assert dataset.tracklet_of_row().tolist() == numbers and len(seen) == 6
    first = dataset.first_frames()
    assert first.fids.tolist() == [rows[numbers.index(number)][1] for number in range(6)]
    assert list(zip(first.pids, first.tracklets)) == list(seen)


def test_take():
    dataset = Dataset('set.csv', *np.array([['1', '2', '3'], ['a', 'b', 'c']], dtype=object))
    assert dataset.take([2, 0]).fids.tolist() == ['c', 'a']
    assert dataset.take(np.array([False, True, True])).pids.tolist() == ['2', '3']
    assert dataset.take([2]).tracklets is None and dataset.take([2]).path == 'set.csv'


@pytest.fixture
def root(tmp_path):
    """An image root with files, links to inside and to outside, and a sibling whose name begins like its own."""
    for path in ('root/a/1.jpg', 'root/a/2.jpg', 'root/3.jpg', 'root2/4.jpg', 'outside/5.jpg'):
        (tmp_path / path).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / path).touch()
    root = tmp_path / 'root'
    (root / 'link.jpg').symlink_to(root / 'a/1.jpg')
    (root / 'out.jpg').symlink_to(tmp_path / 'outside/5.jpg')
    (root / 'dangling.jpg').symlink_to(tmp_path / 'nothing')
    (root / 'out').symlink_to(tmp_path / 'outside')
    (root / 'in').symlink_to(root / 'a')
    return root


def test_file_problems(root):
    expected = {'a/1.jpg': None, '3.jpg': None, 'a/../3.jpg': None, './a//2.jpg': None, 'link.jpg': None,
                'in/1.jpg': None, f'{root}/3.jpg': None,
                'a/3.jpg': 'missing', 'b/1.jpg': 'missing', 'a': 'missing', 'a/': 'missing', '.': 'missing',
                '../1.jpg': 'missing', 'dangling.jpg': 'missing', '3.jpg/x': 'missing', 'A/1.jpg': 'missing',
                '../root2/4.jpg': 'outside', 'out.jpg': 'outside', 'out/5.jpg': 'outside',
                f'{root}2/4.jpg': 'outside', '../outside/5.jpg': 'outside'}
    if (root / 'A').exists():  # A file system that ignores case.
        expected['A/1.jpg'] = None
    assert dict(zip(expected, file_problems(list(expected), root))) == expected
    assert file_problems(['a/1.jpg', 'a/9.jpg', 'a/1.jpg', 'a/9.jpg'], root) == [None, 'missing', None, 'missing']
    assert file_problems([], root) == []


def test_an_image_root_that_is_a_link(root, tmp_path):
    (tmp_path / 'linked').symlink_to(root)
    assert file_problems(['a/1.jpg', 'a/9.jpg'], tmp_path / 'linked') == [None, 'missing']


def test_check_files(root):
    def dataset(*fids):
        fids = np.array(fids, dtype=object)
        return Dataset('set.csv', fids, fids)

    check_files(dataset('a/1.jpg', 'link.jpg'), str(root))
    check_files(dataset('a/1.jpg', 'out.jpg'), str(root), allow_outside_root=True)
    with pytest.raises(InputError, match=r'2 of 3 images of set.csv lie outside .*: out.jpg, out/5.jpg. .*--allow_out'):
        check_files(dataset('a/1.jpg', 'out.jpg', 'out/5.jpg'), str(root))
    with pytest.raises(InputError, match=r'4 of 5 images of set.csv are not in .*root: 1, 2, 3, …\.$'):
        check_files(dataset('1', '2', '3', '4', 'a/1.jpg'), str(root), allow_outside_root=True)
    with pytest.raises(InputError, match='no image root'):
        check_files(dataset('a/1.jpg'), str(root / '3.jpg'))


@pytest.mark.parametrize('fids, hint', [
    (['path', 'a/1.jpg', 'a/2.jpg'], " Its first line, with 'path' for a path, looks like a header, which the csv file "
                                     'should not have.'),
    (['file name', 'a/9.jpg'], "with 'file name' for a path, looks like a header"),
    (['a/1.jpg', 'path'], ''),
    (['9', '1'], ''),
    (['9'], ''),
    (['a/9.jpg', 'a/1.jpg'], ''),
    (['a/1.jpg', r'a\2.jpg'], r' Paths in the csv file are written with /, not with \.'),
])
def test_hint_of_missing(root, fids, hint):
    fids = np.array(fids, dtype=object)
    with pytest.raises(InputError) as error:
        check_files(Dataset('set.csv', fids, fids), str(root))
    sentence, rest = str(error.value).split('root: ')
    assert hint in rest and (hint or rest.count('.') == 1 + rest.count('.jpg'))


@pytest.mark.skipif(os.geteuid() == 0, reason='root may list any folder')
def test_a_folder_that_may_be_entered_but_not_listed(root):
    (root / 'a').chmod(0o311)
    try:
        assert file_problems(['a/1.jpg', 'a/9.jpg'], root) == [None, 'missing']
    finally:
        (root / 'a').chmod(0o755)


@pytest.mark.parametrize('rows', [1, 7, 40])
def test_parts_of_a_csv_file_are_read_alone(tmp_path, rows):
    """By their offsets, whatever is quoted, and though not every row's offset is kept."""
    path = tmp_path / 'a.csv'
    fids = [f'ä{number}\n"b",{number}.jpg' if number % 3 else f'{number}.jpg' for number in range(rows)]
    save_datasets({path: [(str(number // 2), fid) for number, fid in enumerate(fids)]})
    if rows == 7:
        path.write_bytes(b'\xef\xbb\xbf' + path.read_bytes())
    whole = load_dataset(path)
    for count in {1, min(3, rows), rows}:
        found = pickle.loads(pickle.dumps(parts(path, count)))
        assert [part.rows for part in found] == np.diff(bounds(rows, count)).tolist()
        loaded = [part.load() for part in found]
        assert np.concatenate([part.fids for part in loaded]).tolist() == whole.fids.tolist()
        assert np.concatenate([part.pids for part in loaded]).tolist() == whole.pids.tolist()
    with pytest.raises(InputError, match=f'has {rows} rows, too few for {rows + 1} parts'):
        parts(path, rows + 1)


def test_parts_of_millions_of_rows_begin_where_offsets_are_known(tmp_path):
    path = tmp_path / 'a.csv'
    path.write_text('1,2\n' * 2_500_000)
    first, *_, last = parts(path, 3)
    assert (first.offset, last.offset, last.offset // 4 + last.rows) == (0, 1666664 * 4, 2_500_000)
