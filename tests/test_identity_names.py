"""State per identity follows the identities' names when the csv file has changed before a run is resumed."""
import logging
import types

import numpy as np
import pytest
import tensorflow as tf

import train
from _runs import Run, ended_in_one_sentence, make_people, train_arguments
from tripletreid.errors import InputError
from tripletreid.experiment import checkpoints, train_flags
from tripletreid.training import identity_rows, schedule, train_state

LOG = logging.getLogger('identities')
FLAGS = ['--xent_weight', '1', '--classifier', 'cosface', '--center_weight', '0.1', '--memory', '10', '--sampler',
         'hard_identity', '--ema', '0.5']
NAMES = ['a', 'b', 'c', 'd', 'e', 'f']


def state_of(names, *flags):
    args = train_flags.make_parser().parse_args([
        '--experiment_root', 'none', '--model_name', 'mnist', '--head_name', 'direct', '--embedding_dim', '4',
        '--batch_p', '3', '--batch_k', '2', '--net_input_height', '12', '--net_input_width', '12', *flags])
    identities = types.SimpleNamespace(names=np.array(names, object), parts=[np.arange(len(names))])
    return args, train_state.create(args, identities, tf.distribute.get_strategy())


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """(a root with a checkpoint after three steps, the values in it)."""
    root = str(tmp_path_factory.mktemp('root'))
    args, state = state_of(NAMES, *FLAGS)
    state.average.begin()
    step, random = train.make_train_step(args, state, tf.distribute.get_strategy()), np.random.default_rng(0)
    state.sampler.draw(0)
    for number, pids in enumerate(([0, 1, 2], [3, 4, 5], [0, 2, 5])):
        images = tf.constant(random.uniform(0, 255, (6, 12, 12, 3)).astype(np.float32))
        batch = {'images': images, 'pids': tf.repeat(tf.constant(pids, tf.int32), 2), 'rows': tf.range(6, dtype=tf.int64)}
        step(batch, schedule.at(number, args))
    checkpoints.save(root, 3, state.values())
    return root, {name: value.numpy() for name, value in state.values().items()}


def restored(root, names, *flags):
    args, state = state_of(names, *flags)
    state.average.begin()
    fresh = {name: value.numpy() for name, value in state.values().items()}
    identity_rows.load(state, checkpoints.newest_first(root)[0], LOG)
    return state, fresh, {name: value.numpy() for name, value in state.values().items()}


def by_name(values, names):
    """{name of an identity: {variable: its row}}, the memory as the embeddings of the identity."""
    axes = {name: 1 if name.startswith('classifier/') else 0 for name in values
            if name.startswith('classifier/') or name in ('centers', 'identity_means')}
    rows = {name: {key: np.take(values[key], place, axis) for key, axis in axes.items()} for place, name in enumerate(names)}
    for place, name in enumerate(names):
        rows[name]['memory'] = {tuple(emb) for emb, pid in zip(values['memory_embs'], values['memory_pids']) if pid == place}
    return rows


@pytest.mark.parametrize('names', [
    NAMES, ['B', 'a', 'c', 'd', 'e', 'f'], ['0', 'a', 'b', 'c', 'd', 'e', 'f', 'g'], ['b', 'd', 'f', 'z'],
    ['A', 'f', 'g', 'h']])
def test_rows_follow_their_names(trained, names, caplog):
    root, stored = trained
    state, fresh, values = restored(root, names, *FLAGS)
    before, initial, after = by_name(stored, NAMES), by_name(fresh, names), by_name(values, names)
    assert len(after['f']) == 7, 'the weights of the classifier, their moments and average, centres, means and the memory'
    for name in names:
        expected = before[name] if name in NAMES else {**initial[name], 'memory': set()}
        for key, row in after[name].items():
            assert row == expected[key] if key == 'memory' else np.array_equal(row, expected[key]), (name, key)
    assert len(values['memory_pids']) == 10
    others = [name for name in stored if name not in after['f'] and not name.startswith(('memory', 'identit'))]
    assert all(np.array_equal(values[name], stored[name]) for name in others) and len(others) > 20
    new, gone = sorted(set(names) - set(NAMES)), sorted(set(NAMES) - set(names))
    printed = ' '.join(record.getMessage() for record in caplog.records)
    assert (f'{len(new)} (' in printed) == bool(new) and all(name in printed for name in new)
    assert ('gone' in printed) == bool(new)
    assert f'{len(gone)} (' in printed or not gone
    # The sampler's draw is the stored one, or a new one of today's identities.
    assert np.array_equal(values['identities_drawn'], stored['identities_drawn']) == (names == NAMES)
    state.sampler.draw(3)
    chosen = [pids.numpy() for _, pids in state.sampler.steps(3, 6)]
    assert len(chosen) == 3 and all(len(set(pids)) == 3 and pids.max() < len(names) for pids in chosen)


def test_a_memory_of_gone_identities_is_refused(trained):
    with pytest.raises(InputError, match='memory of .*checkpoint-3 has no identity of the training set'):
        restored(trained[0], ['u', 'v', 'w'], *FLAGS)


def test_a_checkpoint_of_an_earlier_version_has_no_names(trained, tmp_path, caplog):
    checkpoints.save(str(tmp_path), 3, {name: value for name, value in trained[1].items() if name != identity_rows.NAMES})
    _, _, values = restored(str(tmp_path), ['b', 'c', 'd', 'e', 'f', 'g'], *FLAGS)
    assert all(np.array_equal(values[name], value) for name, value in trained[1].items() if name != identity_rows.NAMES)
    assert 'does not store the names of the identities' in caplog.text
    with pytest.raises(InputError, match='checkpoint-3 was written for 6 identities .* has 5 now'):
        restored(str(tmp_path), NAMES[:5], *FLAGS)


def test_a_run_goes_on_after_an_identity_was_renamed_and_one_added(tmp_path):
    people, root = make_people(tmp_path), tmp_path / 'run'
    run = Run('train.py', *train_arguments(people, root, 8), *FLAGS)
    assert run.wait() == 0, run.output
    rows = (people / 'people.csv').read_text().replace('\n0,', '\nzoe,').replace('0,', 'zoe,', 1)
    (people / 'people.csv').write_text(rows + ''.join(f'ann,{row.split(",")[1]}\n' for row in rows.splitlines()[-4:]))
    run = Run('train.py', '--experiment_root', root, '--resume', '--train_iterations', 12)
    assert run.wait() == 0, run.output
    assert 'other identities than checkpoint-8: 2 (ann, zoe) new, 1 (0) gone' in run.output, run.output
    reader = tf.train.load_checkpoint(str(root / 'checkpoint-12'))
    assert reader.get_tensor(identity_rows.NAMES).tolist() == [b'1', b'2', b'3', b'4', b'5', b'ann', b'zoe']
    assert reader.get_tensor('classifier/weights').shape == (4, 7)
    rows = (people / 'people.csv').read_text()
    (people / 'people.csv').write_text(''.join(f'new{row}\n' for row in rows.splitlines()))
    run = Run('train.py', '--experiment_root', root, '--resume', '--train_iterations', 13)
    ended_in_one_sentence(run, 'The memory of', 'no identity of the training set')
