"""Batches of similar identities: the draws, their means, and that a resumed run draws the same."""
import types

import numpy as np
import pytest
import tensorflow as tf
from scipy.spatial.distance import cdist

from _runs import Fault, Run, identities_of, make_people, run_results, train_arguments
from samplers import hard_identity
from samplers.random import Sampler
from test_distribute import start_workers
from tripletreid.experiment import train_flags
from tripletreid.input_pipeline import sampling

METRICS = 'cityblock', 'cosine', 'euclidean', 'sqeuclidean'  # Those that a test has a formula of its own for.

DRAWN_AGAIN, ITERATIONS = 16, 20  # The first draws have no means yet.


def draw_often():
    hard_identity.FEWEST_STEPS = DRAWN_AGAIN


DRAWING_OFTEN, FLAGS = Fault(draw_often, 'start'), ['--sampler', 'hard_identity']


def naive_batches(order, means, metric, size, candidates=None):
    left, batches = list(order), []
    while len(left) >= size:
        batch = []
        while len(batch) < size:
            anchor = left[0]
            alike = sorted((cdist(means[[anchor]], means[[other]], metric).item(), place)
                           for place, other in enumerate(left[1:candidates]) if means[other].any() and means[anchor].any())
            group = [left[1 + place] for _, place in alike]
            group = [anchor, *group, *(other for other in left[1:] if other not in group)]
            group = group[:min(hard_identity.GROUP, size - len(batch))]
            batch += group
            left = [other for other in left if other not in group]
        batches.append(batch)
    return batches


@pytest.mark.parametrize('metric', METRICS)
def test_a_batch_has_groups_of_identities_that_look_alike(metric, monkeypatch):
    random = np.random.default_rng(0)
    means = random.normal(size=(23, 4)).astype(np.float32)
    means[[3, 11, 12]] = 0  # They were in no batch yet.
    means[5] = means[9]
    for size in (4, 6, 7):
        order = random.permutation(23)[:21]
        drawn = hard_identity.in_groups(order, means, metric, size)
        assert [list(batch) for batch in drawn] == naive_batches(order, means, metric, size)
    monkeypatch.setattr(hard_identity, 'CANDIDATES', 7)
    drawn = hard_identity.in_groups(order, means, metric, 6)
    assert [list(batch) for batch in drawn] == naive_batches(order, means, metric, 6, 7)


@pytest.mark.parametrize('counts, p', [([13], 4), ([40], 40), ([5, 30], 6), ([300], 3), ([9, 200], 4)])
def test_an_epoch_has_each_identity_once_and_the_first_ones_are_random(counts, p):
    parts = np.split(np.arange(sum(counts)), np.cumsum(counts)[:-1])
    identities = types.SimpleNamespace(parts=parts)
    none, random = np.zeros([sum(counts), 2], np.float32), np.random.default_rng(0)
    expected = np.array([chosen for _, chosen in Sampler(types.SimpleNamespace(seed=5, batch_p=p), identities).steps(0, 60)])
    drawn = [hard_identity.draw(none, 'euclidean', parts, p, 5, *steps) for steps in ((0, 33), (33, 27))]
    np.testing.assert_array_equal(np.concatenate(drawn), expected)
    drawn = hard_identity.draw(random.normal(size=none.shape).astype(np.float32), 'cosine', parts, p, 5, 0, 60)
    assert drawn.shape == (60, p)
    for part, columns, random_columns in zip(parts, *(np.split(each, len(parts), axis=1) for each in (drawn, expected))):
        per_epoch = len(part) // columns.shape[1]
        for first in range(0, 60, per_epoch):
            epoch, random_epoch = (each[first:first + per_epoch].ravel() for each in (columns, random_columns))
            assert len(set(epoch)) == len(epoch) and set(epoch) <= set(part)
            is_complete = first + per_epoch <= 60
            assert not is_complete or set(epoch) == set(random_epoch), 'an identity has its turn whatever its looks'


def test_means_follow_the_embeddings_of_their_identities():
    args = train_flags.make_parser().parse_args(['--experiment_root', 'none', '--embedding_dim', '3', '--batch_p', '2'])
    hard = hard_identity.Sampler(args, identities_of(5), tf.distribute.get_strategy())
    random, means = np.random.default_rng(0), {}
    for _ in range(8):
        pids = random.permutation([0, 0, 1, 1, 1, 4])
        embs = random.normal(size=(6, 3)).astype(np.float32)
        hard.update(tf.constant(embs), tf.constant(pids, tf.int32))
        for pid in set(pids):
            mean = embs[pids == pid].mean(axis=0)
            means[pid] = (means[pid] + mean) / 2 if pid in means else mean
    expected = np.array([means.get(pid, [0, 0, 0]) for pid in range(5)])
    np.testing.assert_allclose(hard.variables['identity_means'], expected, atol=1e-6)


@pytest.fixture(scope='module')
def people(tmp_path_factory):
    return make_people(tmp_path_factory.mktemp('people'), identities=13)


@pytest.fixture(scope='module')
def whole(people, tmp_path_factory):
    root = tmp_path_factory.mktemp('runs') / 'whole'
    run = Run('train.py', *train_arguments(people, root, ITERATIONS), *FLAGS, fault=DRAWING_OFTEN)
    assert run.wait() == 0, run.output
    return root


def pids_of_batches(root):
    return [[fid.decode().split('_')[0] for fid in fids[::2]] for fids in np.load(root / 'log_fids.npy')]


def test_batches_follow_from_the_means(people, whole):
    """The means are made again from the embeddings that the detailed log has."""
    embs, names = np.load(whole / 'log_embs.npy'), sorted(str(pid) for pid in range(13))
    means = np.zeros([13, 4], np.float32)
    for fids, step_embs in list(zip(pids_of_batches(whole), embs))[:DRAWN_AGAIN]:
        for place, name in enumerate(fids):
            number, mean = names.index(name), step_embs[2 * place:2 * place + 2].mean(axis=0)
            means[number] = (means[number] + mean) / 2 if means[number].any() else mean
    order = sampling.epoch_order(0, DRAWN_AGAIN // 4, 13).numpy()
    expected = naive_batches(order[:12], means, 'euclidean', 3)
    assert pids_of_batches(whole)[DRAWN_AGAIN:] == [[names[number] for number in batch] for batch in expected]


@pytest.mark.parametrize('step', [8, DRAWN_AGAIN])
def test_a_resumed_run_has_the_same_bits(whole, step):
    before = run_results(whole, ITERATIONS)
    for path in whole.glob('checkpoint*'):
        number = path.name.partition('-')[2].partition('.')[0]
        if not number or number.isdigit() and int(number) > step:
            path.unlink()
    run = Run('train.py', '--experiment_root', whole, '--resume', fault=DRAWING_OFTEN)
    assert run.wait() == 0 and f'checkpoint-{step}' in run.output, run.output
    after = run_results(whole, ITERATIONS)
    assert all(before[name] == after[name] for name in before if name != 'log')


def test_two_devices_and_two_workers_draw_the_same(people, whole, tmp_path):
    run = Run('train.py', *train_arguments(people, tmp_path / 'two', ITERATIONS), *FLAGS, '--distribute', 'mirrored',
              '--devices', 2, fault=DRAWING_OFTEN)
    assert run.wait() == 0 and '2 replicas' in run.output, run.output
    workers = start_workers(*train_arguments(people, tmp_path / 'workers', ITERATIONS), *FLAGS, fault=DRAWING_OFTEN)
    assert [each.wait() for each in workers] == [0, 0], workers[0].output + workers[1].output
    for root in (tmp_path / 'two', tmp_path / 'workers'):
        assert np.array_equal(np.load(root / 'log_fids.npy'), np.load(whole / 'log_fids.npy'))
        np.testing.assert_allclose(np.load(root / 'log_losses.npy'), np.load(whole / 'log_losses.npy'), atol=1e-4)
