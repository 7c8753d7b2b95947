"""Embeddings in several files: written by embed.py --shards, and read as one by every command."""
import fcntl
import itertools
import json
import pickle

import h5py
import numpy as np
import pytest

from _evaluated import embed, evaluate, write_files
from conftest import run_script
from tripletreid.dataset import Dataset, load_dataset
from tripletreid.embeddings.reader import Embeddings
from tripletreid.embeddings.shards import Shards, in_order, open_embeddings, shard_names
from tripletreid.embeddings.writer import EmbeddingWriter, FileContent, save_embeddings
from tripletreid.errors import InputError


@pytest.fixture(scope='module')
def evaluated(tmp_path_factory):
    """A gallery in one file and in parts of uneven length, one of a single row: gallery_whole.h5, gallery_part-*.h5."""
    root = tmp_path_factory.mktemp('evaluated')
    write_files(root)
    embed(root, 'whole', noise=1.0)
    for name in ('query', 'gallery'):
        dataset = load_dataset(root / f'{name}.csv')
        with Embeddings(root / f'{name}_whole.h5') as whole:
            bounds = [0, 1, len(dataset) // 2, len(dataset) - 3, len(dataset)]
            for path, (start, stop) in zip(shard_names(root / f'{name}_part.h5', 4), itertools.pairwise(bounds)):
                save_embeddings(path, dataset.take(slice(start, stop)), whole.rows(start, stop), whole.parameters)
    return root


def test_several_files_are_read_as_one(evaluated, monkeypatch):
    monkeypatch.setattr('tripletreid.embeddings.shards.FILES_AT_ONCE', 2)
    with Embeddings(evaluated / 'gallery_whole.h5') as whole, open_embeddings([evaluated / 'gallery_part-*.h5']) as parts:
        assert isinstance(parts, Shards) and (parts.shape, len(parts)) == (whole.shape, len(whole))
        assert parts.parameters == whole.parameters and not parts.pooled
        for each in (parts, pickle.loads(pickle.dumps(parts))):
            for start, stop in itertools.combinations_with_replacement([0, 1, 2, len(whole) // 2, len(whole) - 3,
                                                                        len(whole)], 2):
                assert np.array_equal(each.rows(start, stop), whole.rows(start, stop))
                assert np.array_equal(each.fids_of_rows(start, stop), whole.fids_of_rows(start, stop))
            assert len(each._open) <= 2


def without_paths(results):
    """The results of an evaluation as text, without the names of its files."""
    parameters = {name: value for name, value in results['parameters'].items()
                  if name not in ('filename', 'query_embeddings', 'gallery_embeddings')}
    return json.dumps({**results, 'parameters': parameters})


def test_an_evaluation_of_parts_is_that_of_the_whole(evaluated):
    whole = evaluate(evaluated, 'whole')
    flags = ['--query_embeddings', *shard_names(evaluated / 'query_part.h5', 4)[::-1], '--gallery_embeddings',
             evaluated / 'gallery_part-*.h5']
    parts = evaluate(evaluated, 'whole', *flags, '--batch_size', '256')
    assert without_paths(parts) == without_paths(whole)
    assert len(parts['parameters']['query_embeddings']) == 4
    # An evaluation of shards is drawn from shards.
    drawn = run_script('visualize.py', 'rankings', evaluated / 'whole.json', '--count', '2')
    assert drawn.returncode == 0, drawn.stderr
    drawn = run_script('visualize.py', 'embeddings', *shard_names(evaluated / 'gallery_part.h5', 4))
    assert drawn.returncode == 0 and (evaluated / 'gallery_part.png').is_file(), drawn.stderr


def test_parts_that_are_no_whole(evaluated, tmp_path):
    names = shard_names(evaluated / 'gallery_part.h5', 4)
    with pytest.raises(InputError, match=r'^2 of 4 parts are missing: .*-00001-of-00004.h5, .*-00002-of-00004.h5\.'):
        in_order([names[0], names[3]])
    with pytest.raises(InputError, match='is named twice'):
        in_order([*names, names[1]])
    with pytest.raises(InputError, match='are not parts of one file'):
        in_order([*names, shard_names(evaluated / 'gallery_part.h5', 8)[0]])
    with pytest.raises(InputError, match='are not parts of one file'):
        in_order([names[0], evaluated / 'query_whole.h5'])
    with pytest.raises(InputError, match='no embedding file that matches'):
        in_order([evaluated / 'gone-*.h5'])
    assert in_order(names[::-1]) == names
    assert in_order([evaluated / 'b.h5', evaluated / 'a.h5']) == [str(evaluated / 'b.h5'), str(evaluated / 'a.h5')]

    dataset = load_dataset(evaluated / 'query.csv').take(slice(2))
    for name, parameters, dim in (('0', {'checkpoint': 'a', 'dataset': 'b'}, 2), ('1', {'checkpoint': 'c'}, 2),
                                  ('2', {'checkpoint': 'a'}, 2), ('3', {'checkpoint': 'a'}, 3)):
        save_embeddings(tmp_path / f'{name}.h5', dataset, np.zeros((2, dim), np.float32), parameters)
    with pytest.raises(InputError, match='0.h5 and .*1.h5 are not parts of one file: checkpoint a there and c here'):
        open_embeddings([tmp_path / '0.h5', tmp_path / '1.h5'])
    with pytest.raises(InputError, match='dimensions 2 there and 3 here'):
        open_embeddings([tmp_path / '0.h5', tmp_path / '3.h5'])
    open_embeddings([tmp_path / '0.h5', tmp_path / '2.h5']).close()


def test_a_name_with_a_huge_count_is_checked_without_listing_all_parts(tmp_path):
    with pytest.raises(InputError, match='9999999998 of 9999999999 parts are missing: x-00001-of-9999999999.h5'):
        in_order(['x-00000-of-9999999999.h5'])
    with pytest.raises(InputError, match='x-00007-of-00002.h5 has a number that 2 parts, counted from 0, do not reach'):
        in_order(['x-00000-of-00002.h5', 'x-00007-of-00002.h5'])


def test_a_file_that_is_locked_is_not_called_damaged(tmp_path):
    dataset = Dataset('', np.array(['a'], object), np.array(['1.jpg'], object))
    save_embeddings(tmp_path / 'locked.h5', dataset, np.ones((1, 2)))
    with open(tmp_path / 'locked.h5', 'rb') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(InputError, match='is locked by another program'):
            Embeddings(tmp_path / 'locked.h5')
    Embeddings(tmp_path / 'locked.h5').close()


def test_a_file_id_with_a_nul_is_one_sentence(tmp_path):
    dataset = Dataset('', np.array(['a', 'b'], object), np.array(['1.jpg', '2.jpg'], object))
    save_embeddings(tmp_path / 'nul.h5', dataset, np.ones((2, 2)))
    path = tmp_path / 'nul.h5'
    path.write_bytes(path.read_bytes().replace(b'2.jpg', b'2\0jpg'))
    with Embeddings(path) as embeddings, pytest.raises(InputError, match='the file id of row 1 has a NUL character'):
        embeddings.check_matches(dataset)


def _reads(path):
    """Return whether a file has rows of ones; damage is a sentence."""
    try:
        with Embeddings(path) as embeddings:
            return (embeddings.rows(0, len(embeddings)) == 1).all()
    except InputError as error:
        assert 'is damaged' in str(error)
        return False


def test_a_file_whose_tail_is_zeros_is_not_taken_for_complete(tmp_path):
    dataset = Dataset('', np.array(['a'] * 50, object), np.array([f'{number}.jpg' for number in range(50)], object))
    content, path = FileContent(dataset, 4, {'x': 1}, ['original', 'original_flip']), tmp_path / 'torn.h5'
    with EmbeddingWriter(path, content) as writer:
        writer.append(np.ones((50, 4)), np.ones((2, 50, 4)))
    assert content.is_in(path)
    whole = path.read_bytes()
    assert _reads(path)
    with h5py.File(path) as file:
        place = file['emb'].id.get_offset()
    for start in range(place, place + 50 * 4 * 4, 40):  # A torn page, or a flipped bit, among the rows.
        for damaged in (bytes(40), bytes([whole[start] ^ 4]) + whole[start + 1:start + 40]):
            path.write_bytes(whole[:start] + damaged + whole[start + 40:])
            assert not _reads(path), start
    for length in range(0, len(whole) - 512, 512):
        path.write_bytes(whole[:length].ljust(len(whole), b'\0'))
        assert not content.is_in(path), length
