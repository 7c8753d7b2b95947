"""Readers of files from outside: whatever the bytes are, they are read or refused in one clear sentence.

Hypothesis makes the bytes: garbage, and good files with a few bytes changed or their end cut off.
"""
import io
import json
import os
import pathlib

import h5py
import hypothesis.extra.numpy  # noqa: F401  (here, and not within the time of a test)
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from layouts import _files
from tripletreid import argument_types, plugins
from tripletreid.dataset import load_dataset
from tripletreid.embeddings.reader import Embeddings
from tripletreid.embeddings.writer import save_embeddings
from tripletreid.errors import InputError
from tripletreid.evaluation import results
from tripletreid.experiment import arguments, best_checkpoint, event_files, train_flags

FUZZED = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@st.composite
def damaged(draw, content):
    """A good file with some bytes changed, or cut, or with bytes added."""
    content = bytearray(content)
    for _ in range(draw(st.integers(0, 4))):
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    if draw(st.booleans()):
        del content[draw(st.integers(0, len(content))):]
    return bytes(content) + draw(st.sampled_from([b'', b'\0', b'"', b'\xff', b'[' * 100_000]))


def like(content):
    return st.one_of(st.binary(max_size=200), damaged(content))


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
                    max_leaves=6)


def with_changed_values(good):
    """JSON texts of a good object some of whose values are replaced by anything else, or missing."""
    changes = st.dictionaries(st.sampled_from(sorted(good)), JSON, max_size=3)
    left_out = st.sets(st.sampled_from(sorted(good)), max_size=2)
    return st.builds(lambda new, out: json.dumps({name: value for name, value in {**good, **new}.items()
                                                  if name not in out}).encode(), changes, left_out)


def read_or_refused(read, *arguments):
    try:
        return read(*arguments)
    except InputError as error:
        assert '\n' not in str(error).strip(), error
        return None


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('fuzz')


@FUZZED
@given(like('1,a.jpg\n0002,"b ,""c"".jpg"\r\n-1,ü.jpg\n'.encode()))
def test_csv(folder, content):
    path = folder / 'data.csv'
    path.write_bytes(content)
    dataset = read_or_refused(load_dataset, path)
    assert dataset is None or len(dataset.pids) == len(dataset.fids) > 0


def test_csv_of_one_huge_field(folder):
    path = folder / 'huge.csv'
    path.write_bytes(b'1,"' + b'a' * 10_000_000)
    with pytest.raises(InputError, match='huge.csv'):
        load_dataset(path)


GOOD_ARGUMENTS = vars(train_flags.make_parser().parse_args(['--experiment_root', 'r', '--train_set', 't', '--image_root',
                                                          'i']))


@FUZZED
@given(st.one_of(like(json.dumps(GOOD_ARGUMENTS).encode()), with_changed_values(GOOD_ARGUMENTS)))
def test_args_json(folder, content):
    """The command line would accept the values read from args.json: names of files in the folders, numbers in bounds."""
    (folder / 'args.json').write_bytes(content)
    loaded = read_or_refused(arguments.load, str(folder))
    if loaded:
        args, _ = loaded
        assert args.model_name in plugins.choices('nets')
        assert args.head_name in plugins.choices('heads')
        assert args.loss in plugins.choices('losses')
        assert 0 < args.learning_rate < float('inf') and 1 <= args.batch_p <= argument_types.LARGEST_INT


@pytest.mark.parametrize('name', ['../../etc/passwd', '_dense', 'os', '--resume', '', '/tmp/evil', 'mnist.py'])
@pytest.mark.parametrize('argument', ['model_name', 'head_name', 'loss'])
def test_args_json_names_no_code(folder, argument, name):
    (folder / 'args.json').write_text(json.dumps({**GOOD_ARGUMENTS, argument: name}))
    with pytest.raises(InputError, match=argument):
        arguments.load(str(folder))


def embedding_file(folder):
    path = folder / 'good.h5'
    (folder / 'good.csv').write_text(''.join(f'{row},{row}.jpg\n' for row in range(20)))
    save_embeddings(path, load_dataset(folder / 'good.csv'), np.ones((20, 4)), {'image_root': 'x'})
    return path


def read_embeddings(path, dataset):
    with Embeddings(path) as embeddings:
        embeddings.check_matches(dataset)
        return embeddings.rows(0, len(embeddings)), embeddings.fids


def test_h5(folder):
    """In a process of its own, since the library may crash on a damaged file: then nothing is lost but that reader."""
    import multiprocessing
    good = embedding_file(folder)
    for seed in range(3):
        process = multiprocessing.get_context('spawn').Process(target=_fuzz_h5, args=(good, seed), daemon=True)
        process.start()
        process.join(100)
        assert process.exitcode == 0, 'it crashed' if process.exitcode else 'not done within 100 s'


def _fuzz_h5(good, seed):
    random = np.random.default_rng(seed)
    content, dataset = np.frombuffer(good.read_bytes(), np.uint8), load_dataset(good.with_suffix('.csv'))
    path = good.with_name(f'{seed}.h5')
    for _ in range(150):
        changed = content.copy()
        changed[random.integers(0, len(changed), random.integers(1, 20))] = random.integers(0, 256)
        path.write_bytes(changed[:random.integers(len(changed))] if random.integers(4) == 0 else changed)
        read_or_refused(read_embeddings, path, dataset)


def link_elsewhere(file, folder):
    with h5py.File(folder / 'other.h5', 'w') as other:
        other['emb'] = np.ones((20, 4), np.float32)
    file['emb'] = h5py.ExternalLink('other.h5', 'emb')


def put_together_of_others(file, folder):
    layout = h5py.VirtualLayout((20, 4), np.float32)
    layout[:] = h5py.VirtualSource(str(folder / 'other.h5'), 'emb', (20, 4))
    file.create_virtual_dataset('emb', layout)


def raw_data_of_another_file(file, folder):
    file.create_dataset('emb', (20, 4), np.float32, external=[('/etc/passwd', 0, 320)])


def references(file, folder):
    file['emb'] = np.full((20, 4), file.ref, h5py.ref_dtype)


def far_too_large(file, folder):
    file.create_dataset('emb', (20, 10 ** 12), np.float32, chunks=(1, 1024), compression='gzip')


def huge_texts(file, folder):
    file['emb'] = np.ones((20, 4), np.float32)
    file.create_dataset('fids', (20,), 'S2000000000', chunks=(1,))


def nested_parameters(file, folder):
    file['emb'] = np.ones((20, 4), np.float32)
    file.attrs['parameters'] = '[' * 50_000


def no_rows_of_text(file, folder):
    file['emb'] = np.ones((20, 4), np.float32)
    file['fids'] = np.ones(20)


@pytest.mark.parametrize('make', [link_elsewhere, put_together_of_others, raw_data_of_another_file, references,
                                  far_too_large, huge_texts, nested_parameters, no_rows_of_text])
def test_h5_tricks(folder, make):
    dataset = load_dataset(embedding_file(folder).with_suffix('.csv'))
    path = folder / f'{make.__name__}.h5'
    with h5py.File(path, 'w') as file:
        make(file, folder)
    with pytest.raises(InputError, match=make.__name__):
        read_embeddings(path, dataset)


def npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


@FUZZED
@given(like(npz(arr_0=np.ones(3), arr_1=np.zeros((2, 2)))))
def test_npz(folder, content):
    path = folder / 'weights.npz'
    path.write_bytes(content)
    read_or_refused(_read_all, str(path))


def safetensors_of(**arrays):
    import safetensors.numpy
    return safetensors.numpy.save(arrays)


@FUZZED
@given(like(safetensors_of(a=np.ones(3, np.float32), b=np.zeros((2, 2), np.float16))))
def test_safetensors(folder, content):
    path = folder / 'weights.safetensors'
    path.write_bytes(content)
    read_or_refused(_read_all, str(path))


def _read_all(path):
    from tripletreid.modeling import weight_files
    return weight_files.read(path, list(weight_files.shapes(path)))


class Evil:
    def __reduce__(self):
        return os.system, ('touch pwned',)


def test_npz_is_never_unpickled(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / 'evil.npz').write_bytes(npz(arr_0=np.array([Evil()], dtype=object)))
    with pytest.raises(InputError, match='evil.npz'):
        _read_all('evil.npz')
    assert not pathlib.Path('pwned').exists()


def test_npz_that_declares_too_much(folder):
    import zipfile
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {'descr': '<f8', 'fortran_order': False, 'shape': (10 ** 13,)})
    with zipfile.ZipFile(folder / 'bomb.npz', 'w', zipfile.ZIP_DEFLATED) as file:
        file.writestr('arr_0.npy', header.getvalue() + bytes(1000))
    with pytest.raises(InputError, match='bomb.npz'):
        _read_all(str(folder / 'bomb.npz'))


@FUZZED
@example(b'model_checkpoint_path: "' + b'[' * 1_000_000)
@example(b'model_checkpoint_path: "checkpoint-' + b'9' * 5000 + b'"\n')
@given(like(b'model_checkpoint_path: "checkpoint-20"\nall_model_checkpoint_paths: "checkpoint-20"\n'))
def test_state_file(folder, content):
    """Whatever it says, a checkpoint of this very folder is found."""
    from tripletreid.experiment import checkpoints
    root = folder / 'root'
    root.mkdir(exist_ok=True)
    for step in (0, 20):
        (root / f'checkpoint-{step}.index').touch()
    (root / 'checkpoint').write_bytes(content)
    found = checkpoints.newest_first(root)
    assert set(found) <= {str(root / 'checkpoint-0'), str(root / 'checkpoint-20')} and found


EVALUATION = {
    'parameters': {'query_dataset': 'q.csv', 'query_embeddings': 'q.h5', 'gallery_dataset': 'g.csv',
                   'gallery_embeddings': 'g.h5', 'metric': 'euclidean', 'excluder': 'diagonal'},
    'mAP': 0.5, 'CMC': [0.5, 1.0], 'mINP': 0.2, 'aps': [0.5], 'counts': {'queries': 1},
    'confidence': {'mAP': [0.4, 0.6], 'top1': [0.4, 0.6]},
    'queries': [{'fid': 'a.jpg', 'pid': '1', 'ap': 0.5, 'ap_market1501': 0.5, 'first_match_rank': 1,
                 'last_match_rank': 2, 'matches': 1}],
}


@FUZZED
@given(st.one_of(like(json.dumps(EVALUATION).encode()), with_changed_values(EVALUATION)))
def test_evaluation_json(folder, content):
    path = folder / 'evaluation.json'
    path.write_bytes(content)
    read = read_or_refused(results.read_evaluation, str(path))
    if read:
        scores = np.stack(list(read.score_values.values()))
        assert ((0 <= scores) & (scores <= 1 + 1e-9) | np.isnan(scores)).all()


@FUZZED
@given(like(b'{"validations": [{"step": 20, "mAP": 0.5, "top1": 0.5}]}'))
def test_validations(folder, content):
    (folder / best_checkpoint.FILE).write_bytes(content)
    read_or_refused(best_checkpoint.best_step, str(folder))


@FUZZED
@given(st.one_of(st.binary(max_size=100), damaged(b'0001C1T0001F001.jpg\n0001C1T0001F002.jpg\n')))
def test_mars_names(folder, content):
    path = folder / 'test_name.txt'
    path.write_bytes(content)
    read_or_refused(_files.read_table, str(path), 1)


@FUZZED
@given(data=st.data())
def test_mars_index(folder, data):
    import scipy.io
    file = io.BytesIO()
    scipy.io.savemat(file, {'query_IDX': np.arange(5)})
    path = folder / 'query_IDX.mat'
    path.write_bytes(data.draw(like(file.getvalue())))
    read_or_refused(_files.read_mat, str(path), 'query_IDX')


def test_a_mars_index_that_crashes_the_reader(folder):
    """One changed byte in the length of the variable's name ends the process that asks SciPy to read it."""
    import scipy.io
    file = io.BytesIO()
    scipy.io.savemat(file, {'query_IDX': np.arange(5)})
    content = bytearray(file.getvalue())
    content[193] = 1
    path = folder / 'crash.mat'
    path.write_bytes(content)
    with pytest.raises(InputError, match='crash.mat cannot be read as a MATLAB file'):
        _files.read_mat(str(path), 'query_IDX')


LOG_LINE = (b'2026-01-31 12:34:56,789 [INFO] train: iter:     7, loss min|avg|max: -0.512|-0.123| 0.300, '
            b'batch-p@3: 90.00%, ETA: 0:00:01 (0.12s/it)\n')


@FUZZED
@given(st.one_of(like(LOG_LINE), damaged(LOG_LINE.replace(b'7', b'7' * 5000))))
def test_train_log(folder, content):
    root = folder / 'logged'
    root.mkdir(exist_ok=True)
    (root / 'train.log').write_bytes(content)
    read_or_refused(event_files.read_scalars, str(root))


@FUZZED
@given(like(b'\x09\0\0\0\0\0\0\0\x01\x02\x03\x04\x09\0\0\0\0\0\0\xf8\x3f\x01\x02\x03\x04' * 2))
def test_event_files(folder, content):
    from tripletreid.experiment.event_files import forget_events_after
    root = folder / 'events'
    root.mkdir(exist_ok=True)
    (root / 'events.out.tfevents.1.host').write_bytes(content)
    read_or_refused(event_files.read_scalars, str(root))
    forget_events_after(root, 0)
    assert content.startswith((root / 'events.out.tfevents.1.host').read_bytes())
