"""Additions to the metric loss: a memory of earlier batches, classifiers with a margin, the centre loss."""
import math
import types

import numpy as np
import pytest
import tensorflow as tf
from scipy.spatial.distance import cdist as scipy_cdist

import loss
import train
from _runs import Run, ended_in_one_sentence, identities_of, make_people, run_results, train_arguments
from objectives import center, xent
from tripletreid import plugins
from tripletreid.errors import InputError
from tripletreid.experiment import flag_checks, train_flags
from tripletreid.modeling import model
from tripletreid.training import train_state
from tripletreid.training.memory import Memory
from tripletreid.training.schedule import Schedule

METRICS = 'cityblock', 'cosine', 'euclidean', 'sqeuclidean'  # Those that a test has a formula of its own for.


def gradient_by_differences(function, array, width=1e-6):
    gradient = np.zeros_like(array)
    for index in np.ndindex(array.shape):
        step = np.zeros_like(array)
        step[index] = width
        gradient[index] = (function(array + step) - function(array - step)) / (2 * width)
    return gradient


# --- Classifiers ------------------------------------------------------------------------------------------------------

def naive_entropy(cosines, pids, kind, scale, margin, fixed):
    """The mean cross-entropy, one logit after the other; `fixed` are the cosines for terms without a gradient."""
    total = 0.0
    for row, constants, pid in zip(cosines, fixed, pids):
        logits = []
        for identity, (cosine, constant) in enumerate(zip(row, constants)):
            logit = cosine
            if kind == 'circle' and identity == pid:
                logit = max(1 + margin - constant, 0) * (cosine - (1 - margin))
            elif kind == 'circle':
                logit = max(constant + margin, 0) * (cosine - margin)
            elif identity == pid and kind == 'cosface':
                logit = cosine - margin
            elif identity == pid:
                angle = math.acos(cosine) + margin
                logit = math.cos(angle) if angle < math.pi else cosine - margin * math.sin(margin)
            logits.append(scale * logit)
        total += math.log(sum(math.exp(logit - logits[pid]) for logit in logits))
    return total / len(pids)


@pytest.mark.parametrize('kind, margin', [('cosface', None), ('cosface', 0.1), ('arcface', None), ('arcface', 1.2),
                                          ('circle', None), ('circle', 0.0)])
def test_classifier_and_its_gradient(kind, margin):
    random = np.random.default_rng(1)
    cosines, pids = random.uniform(-0.95, 0.95, (8, 5)), np.array([0, 1, 2, 3, 4, 0, 0, 1])
    cosines[0, 0], cosines[1, 1] = -0.99, 0.99  # With a margin the first one's angle is beyond 180 degrees.
    cosines = cosines.astype(np.float32).astype(np.float64)
    used = plugins.load('classifiers', kind).MARGIN if margin is None else margin
    assert margin is not None or used == {'cosface': 0.35, 'arcface': 0.5, 'circle': 0.35}[kind]
    variable = tf.Variable(cosines, dtype=tf.float32)
    with tf.GradientTape() as tape:
        logits = plugins.load('classifiers', kind).logits(variable, tf.constant(pids), 4.0, used)
        mean = tf.reduce_mean(xent.cross_entropy(logits, tf.constant(pids), 0.0))
    assert float(mean) == pytest.approx(naive_entropy(cosines, pids, kind, 4.0, used, cosines), rel=1e-5)
    expected = gradient_by_differences(lambda moved: naive_entropy(moved, pids, kind, 4.0, used, cosines), cosines)
    np.testing.assert_allclose(tape.gradient(mean, variable), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize('kind', ('cosface', 'arcface', 'circle'))
def test_classifier_at_the_ends_has_a_finite_gradient(kind):
    cosines = tf.Variable([[1.0, -1.0], [-1.0, 1.0000001]])
    with tf.GradientTape() as tape:
        classifier = plugins.load('classifiers', kind)
        logits = classifier.logits(cosines, tf.constant([0, 0]), 64.0, classifier.MARGIN)
        mean = tf.reduce_mean(xent.cross_entropy(logits, tf.constant([0, 0]), 0.1))
    assert np.isfinite(mean) and np.isfinite(tape.gradient(mean, cosines)).all()


def test_classifier_of_cosines_is_separate_from_the_head():
    args = train_flags.make_parser().parse_args(['--experiment_root', 'none', '--classifier', 'arcface'])
    network = model.with_endpoints(model.build('mnist', 'direct', 4, (28, 28, 3)), [xent.Objective(args, 7).endpoints])
    images = tf.constant(np.random.default_rng(0).uniform(0, 255, (3, 28, 28, 3)).astype(np.float32))
    outputs = network(images)
    weights = model.named_variables(network)['classifier/weights'].numpy()
    np.testing.assert_allclose(outputs['logits'], 1 - scipy_cdist(outputs['emb_raw'], weights.T, 'cosine'), atol=1e-5)
    assert plugins.load('classifiers', 'linear').logits(outputs['logits'], None, 64.0, None) is outputs['logits']


# --- Memory -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('metric', METRICS)
def test_distances_to_a_memory_and_their_gradient(metric):
    """Far from the origin as well, where differences of squares would lose most of their digits."""
    random = np.random.default_rng(3)
    for offset in (0.0, 1000.0):
        if metric == 'cosine' and offset:
            continue
        a, b = (np.float32(random.normal(size=(count, 5)) + offset) for count in (4, 9))
        weights = random.normal(size=(4, 9))
        variable = tf.Variable(a)
        with tf.GradientTape() as tape:
            dists = loss.cdist_to_memory(variable, tf.constant(b), metric)
            weighted = tf.reduce_sum(dists * weights.astype(np.float32))
        np.testing.assert_allclose(dists, scipy_cdist(a, b, metric), rtol=1e-4)
        exact = a.astype(np.float64)
        expected = gradient_by_differences(lambda a: (scipy_cdist(a, b, metric) * weights).sum(), exact, 1e-4)
        np.testing.assert_allclose(tape.gradient(weighted, variable), expected, rtol=1e-2, atol=2e-3)
    same = tf.Variable(tf.ones([2, 3]))
    with tf.GradientTape() as tape:
        dists = loss.cdist_to_memory(same, tf.ones([4, 3]), metric)
    assert (dists.numpy() < 2e-6).all() and np.isfinite(tape.gradient(dists, same)).all()


def test_memory_holds_the_newest():
    memory, newest = Memory(7, 2), []
    for number in range(4):
        embs = np.random.default_rng(number).normal(size=(3, 2)).astype(np.float32)
        newest = [*zip(embs.tolist(), range(3 * number, 3 * number + 3)), *newest]
        memory.remember(tf.constant(embs), tf.range(3 * number, 3 * number + 3))
    embs, pids = memory.content()
    assert list(zip(embs.numpy().tolist(), pids.numpy())) == newest[:7]


def batch_hard(batch, batch_pids, rest, rest_pids, margin):
    """Losses [B] of a batch that is compared with itself and a rest, in loops; euclidean."""
    losses = []
    for anchor, pid in enumerate(batch_pids):
        others = [(np.sqrt(((batch[anchor] - other) ** 2).sum()), other_pid)
                  for number, (other, other_pid) in enumerate(zip([*batch, *rest], [*batch_pids, *rest_pids]))
                  if number != anchor]
        furthest = max(dist for dist, other_pid in others if other_pid == pid)
        nearest = min(dist for dist, other_pid in others if other_pid != pid)
        losses.append(max(furthest - nearest + margin, 0))
    return losses


@pytest.mark.parametrize('loss', plugins.choices('losses'))
@pytest.mark.parametrize('flags', ['--metric euclidean --xent_weight 1', '--metric cosine --center_weight 1 --memory 6 '
                                   '--xent_weight 1 --classifier arcface'], ids=['few', 'many'])
def test_no_sum_of_gradients_has_an_order_of_its_own(loss, flags):
    """AddN of three and more begins with the tensor whose memory is free first, and float32 sums depend on the order."""
    args = train_flags.make_parser().parse_args([
        '--experiment_root', 'none', '--model_name', 'mnist', '--head_name', 'direct', '--embedding_dim', '4', '--batch_p',
        '3', '--batch_k', '2', '--net_input_height', '12', '--net_input_width', '12', '--loss', loss, '--margin',
        'none' if loss == 'supervised_contrastive' else '0.2', *flags.split()])
    strategy = tf.distribute.get_strategy()
    state = train_state.create(args, identities_of(6), strategy)
    batch = {'images': tf.zeros([6, 12, 12, 3]), 'pids': tf.zeros([6], tf.int32), 'rows': tf.zeros([6], tf.int64)}
    graph = train.make_train_step(args, state, strategy).get_concrete_function(
        batch, Schedule(tf.constant(1e-3), tf.constant(0.9), memory_is_used=bool(args.memory))).graph
    functions = [graph, *(function.graph for function in graph._functions.values())]
    sums = [op for each in functions for op in each.get_operations() if op.type == 'AddN']
    assert sums and not [[term.name for term in op.inputs] for op in sums if len(op.inputs) > 2]


@pytest.mark.parametrize('precision, frames, start', [('none', 1, None), ('float16', 1, 4), ('bfloat16', 2, None)])
def test_loss_with_a_memory_equals_a_loop(precision, frames, start):
    """The embeddings of each step are the memory of the steps after it; the logged values cover the batch only."""
    args = train_flags.make_parser().parse_args([
        '--experiment_root', 'none', '--model_name', 'mnist', '--head_name', 'direct', '--embedding_dim', '4', '--batch_p',
        '3', '--batch_k', '2', '--net_input_height', '12', '--net_input_width', '12', '--margin', '0.5', '--memory', '9',
        '--mixed_precision', precision, '--frames_per_tracklet', str(frames), '--deterministic',
        *(['--memory_start', str(start)] if start else [])])
    try:
        state = train_state.create(args, identities_of(6), tf.distribute.get_strategy())
        step = train.make_train_step(args, state, tf.distribute.get_strategy())
        embs, pids, with_memory = np.zeros([0, 4], np.float32), np.zeros([0], int), 0
        for number in range(6):
            random = np.random.default_rng(number)
            batch_pids = np.repeat(random.permutation(6)[:3], 2)
            batch = {'images': tf.constant(random.uniform(0, 255, (6 * frames, 12, 12, 3)).astype(np.float32)),
                     'pids': tf.constant(np.repeat(batch_pids, frames), tf.int32),
                     'rows': tf.range(6 * frames, dtype=tf.int64)}
            used = number >= flag_checks.memory_start(args)
            result = step(batch, Schedule(tf.constant(1e-3), tf.constant(0.9), memory_is_used=used))
            emb = result['emb'].numpy()
            rest = (embs[:9], pids[:9]) if used else (embs[:0], pids[:0])
            expected = batch_hard(emb, batch_pids, *rest, 0.5)
            np.testing.assert_allclose(result['losses'], expected, rtol=1e-4, atol=1e-4)
            if used:
                with_memory += 1
                assert len(rest[0]) == 9
                assert not np.allclose(expected, batch_hard(emb, batch_pids, embs[:0], pids[:0], 0.5), rtol=1e-4)
            assert result['dists'].shape == (6, 6)
            nearest = [np.argsort(row)[1] for row in scipy_cdist(emb, emb)]
            assert result['batch_top1'] == np.mean(batch_pids[nearest] == batch_pids)
            embs, pids = np.concatenate([emb, embs]), np.concatenate([batch_pids, pids])
        assert with_memory == (2 if start else 4)
    finally:
        model.set_precision('none')


# --- Centres ----------------------------------------------------------------------------------------------------------

def test_centres_follow_their_identities():
    random = np.random.default_rng(0)
    embs, pids = random.normal(size=(6, 3)).astype(np.float32), np.array([2, 2, 0, 4, 4, 4])
    centers = center.Objective(types.SimpleNamespace(embedding_dim=3, center_learning_rate=0.25, seed=7), 5)
    before = centers.variables['centers'].numpy().astype(float)
    assert abs(np.mean(before)) < 1 and 0.5 < np.std(before) < 1.5

    def mean_loss(centers):
        return np.mean([((emb - centers[pid]) ** 2).sum() for emb, pid in zip(embs, pids)])

    variable = tf.Variable(embs)
    with tf.GradientTape() as tape:
        losses = centers.losses(types.SimpleNamespace(embs=variable, pids=tf.constant(pids)))
        mean = tf.reduce_mean(losses)
    assert losses.shape == (6,) and float(mean) == pytest.approx(mean_loss(before), rel=1e-5)
    np.testing.assert_allclose(tape.gradient(mean, variable), [(emb - before[pid]) / 3 for emb, pid in zip(embs, pids)],
                               rtol=1e-4, atol=1e-6)
    centers.update(tf.constant(embs), tf.constant(pids))
    np.testing.assert_allclose(centers.variables['centers'],
                               before - 0.25 * gradient_by_differences(mean_loss, before), atol=1e-5)


# --- All together -----------------------------------------------------------------------------------------------------

ITERATIONS = 8
ALL = ['--loss', 'multi_similarity', '--metric', 'cosine', '--margin', '0.1', '--memory', '20', '--xent_weight', '1',
       '--classifier', 'arcface', '--classifier_scale', '16', '--center_weight', '0.01', '--freeze_body_iterations', '2']


@pytest.fixture(scope='module')
def people(tmp_path_factory):
    return make_people(tmp_path_factory.mktemp('people'))


@pytest.fixture(scope='module')
def one_device(people, tmp_path_factory):
    root = tmp_path_factory.mktemp('runs') / 'one'
    run = Run('train.py', *train_arguments(people, root, ITERATIONS), *ALL)
    assert run.wait() == 0, run.output
    return root


def test_a_resumed_run_has_the_same_bits(one_device, tmp_path):
    before = run_results(one_device, ITERATIONS)
    held = tf.train.load_checkpoint(str(one_device / 'checkpoint-8'))
    assert held.get_variable_to_shape_map()['memory_embs'] == [20, 4]
    assert held.get_tensor('memory_pids').dtype == np.int32
    assert held.get_variable_to_shape_map()['centers'] == held.get_variable_to_shape_map()['classifier/weights'][::-1]
    assert 'center_loss' in before['curves']
    for path in one_device.glob('checkpoint-8*'):
        path.unlink()
    (one_device / 'checkpoint').unlink()
    run = Run('train.py', '--experiment_root', one_device, '--resume')
    assert run.wait() == 0 and 'checkpoint-4' in run.output, run.output
    after = run_results(one_device, ITERATIONS)
    assert all(before[name] == after[name] for name in before if name != 'log')


def test_two_devices_train_as_one(people, one_device, tmp_path):
    run = Run('train.py', *train_arguments(people, tmp_path / 'two', ITERATIONS), *ALL, '--distribute', 'mirrored',
              '--devices', 2)
    assert run.wait() == 0 and '2 replicas' in run.output, run.output
    held = [tf.train.load_checkpoint(str(root / 'checkpoint-8')) for root in (one_device, tmp_path / 'two')]
    for name in held[0].get_variable_to_shape_map().keys() - {'identity_names'}:
        one, two = (each.get_tensor(name) for each in held)
        np.testing.assert_allclose(two, one, rtol=1e-3, atol=2e-4, err_msg=name)
    np.testing.assert_array_equal(*(each.get_tensor('memory_pids') for each in held))
    losses = [np.load(root / 'log_losses.npy') for root in (one_device, tmp_path / 'two')]
    np.testing.assert_allclose(*losses, rtol=0, atol=1e-5)


@pytest.mark.parametrize('flags, parts', [
    (['--classifier', 'arcface'], ['--classifier', '--xent_weight']),
    (['--xent_weight', '1', '--classifier_margin', '0.3'], ['--classifier_margin', 'linear']),
    (['--xent_weight', '1', '--classifier_scale', '30'], ['--classifier_scale', 'linear']),
    (['--xent_weight', '1', '--classifier', 'softmax'], ['softmax', 'cosface']),
    (['--loss', 'none', '--xent_weight', '1', '--memory', '100'], ['--memory', '--loss']),
    (['--memory', '-1'], ['--memory', '-1']), (['--memory', '2000000'], ['--memory', '1048576']),
    (['--memory_start', '5'], ['--memory_start', '--memory']),
    (['--memory', '1000', '--memory_start', '7'], ['--memory_start 7', '8 batches of 128']),
    (['--center_learning_rate', '0.1'], ['--center_learning_rate', '--center_weight']),
    (['--center_weight', '-1'], ['--center_weight', '-1'])])
def test_flags_without_sense_or_effect(flags, parts):
    parser = train_flags.make_parser()
    errors = []

    def refuse(message):
        errors.append(message)
        raise SystemExit(2)

    parser.error = refuse
    with pytest.raises(SystemExit):
        flag_checks.check(parser.parse_args(['--experiment_root', 'never', '--train_set', 'a.csv', '--image_root', '.',
                                           *flags]), parser)
    assert all(part in errors[0] for part in parts), errors


@pytest.mark.parametrize('kind, largest', [('cosface', 2), ('arcface', 1.57), ('circle', 0.5)])
def test_a_margin_that_is_too_large_for_its_classifier(kind, largest):
    flags = ['--experiment_root', 'never', '--xent_weight', '1', '--classifier', kind, '--classifier_margin']
    xent.Objective(train_flags.make_parser().parse_args([*flags, str(largest)]), 5)
    with pytest.raises(InputError, match=f'{largest + 0.01} is above {float(largest)}.*{kind}'):
        xent.Objective(train_flags.make_parser().parse_args([*flags, str(largest + 0.01)]), 5)


def test_a_memory_that_is_never_used_is_reported():
    args = train_flags.make_parser().parse_args(['--experiment_root', 'never', '--memory', '1000', '--train_iterations',
                                                 '8'])
    assert any('never used' in sentence for sentence in flag_checks.notices(args))
    args.train_iterations = 9
    assert not any('never used' in sentence for sentence in flag_checks.notices(args))


def test_a_loss_of_cosines_wants_the_cosine_metric(people, tmp_path):
    run = Run('train.py', *train_arguments(people, tmp_path / 'root'), '--loss', 'circle', '--margin', 0.25)
    ended_in_one_sentence(run, '--loss circle', '--metric cosine')
