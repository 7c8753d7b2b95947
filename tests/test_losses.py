"""Losses and distances against plain loops over triplets in float64: values, and gradients by finite differences."""
import itertools
import math

import numpy as np
import pytest
import tensorflow as tf
from scipy.spatial.distance import cdist as scipy_cdist

import loss
from conftest import assert_one_sentence, run_script
from objectives import xent
from tripletreid import metrics, plugins
from tripletreid.errors import InputError
from tripletreid.training import checks

METRICS = 'cityblock', 'cosine', 'euclidean', 'sqeuclidean'  # Those that a test has a formula of its own for.

MARGINS = (0.2, 1.0, 'soft', 'none')


# --- The loops --------------------------------------------------------------------------------------------------------

def hinge(difference, margin):
    if margin == 'soft':
        return math.log1p(math.exp(difference))
    return difference if margin == 'none' else max(difference + margin, 0.0)


def naive(name, dists, anchor_pids, pids, margin, fixed=None):
    """Return the mean loss over the anchors of a batch; `fixed` are the distances for terms without a gradient."""
    fixed = dists if fixed is None else fixed
    anchors = range(len(anchor_pids))
    positives = {a: [p for p in range(len(pids)) if p != a and pids[p] == anchor_pids[a]] for a in anchors}
    negatives = {a: [n for n in range(len(pids)) if pids[n] != anchor_pids[a]] for a in anchors}
    triplets = [hinge(dists[a, p] - dists[a, n], margin)
                for a in anchors for p in positives[a] for n in negatives[a]]
    with_triplet = [a for a in anchors if positives[a] and negatives[a]]
    if name == 'batch_all':
        return np.mean(triplets) if triplets else 0.0
    if name == 'batch_all_nonzero':
        active = [loss for loss in triplets if loss > 0]
        return np.mean(active) if active else 0.0
    if name == 'batch_hard':
        return sum(hinge(max(dists[a, p] for p in positives[a]) - min(dists[a, n] for n in negatives[a]), margin)
                   for a in with_triplet) / len(anchors)
    if name == 'lifted_general':
        return sum(hinge(math.log(sum(math.exp(dists[a, p]) for p in positives[a]))
                         + math.log(sum(math.exp(-dists[a, n]) for n in negatives[a])), margin)
                   for a in with_triplet) / len(anchors)
    if name == 'lifted':
        pairs = [(a, p) for a in anchors for p in positives[a]]
        squares = [max(0.0, dists[a, p] + math.log(sum(math.exp(margin - dists[end, n])
                                                       for end in (a, p) for n in negatives.get(end, [])))) ** 2
                   for a, p in pairs if negatives[a]]
        return sum(squares) / (2 * len(pairs)) if pairs else 0.0
    if name == 'circle':
        return sum(math.log1p(sum(math.exp(128 * max(1 - fixed[a, n] + margin, 0) * (1 - dists[a, n] - margin))
                                  for n in negatives[a])
                              * sum(math.exp(-128 * max(fixed[a, p] + margin, 0) * (margin - dists[a, p]))
                                    for p in positives[a])) for a in anchors) / len(anchors)
    if name == 'multi_similarity':
        mean = 0.0
        for a in with_triplet:
            hardest, nearest = max(dists[a, p] for p in positives[a]), min(dists[a, n] for n in negatives[a])
            positive_terms = [math.exp(-2 * (0.5 - dists[a, p])) for p in positives[a] if dists[a, p] > nearest - margin]
            negative_terms = [math.exp(50 * (0.5 - dists[a, n])) for n in negatives[a] if dists[a, n] < hardest + margin]
            mean += (math.log1p(sum(positive_terms)) / 2 + math.log1p(sum(negative_terms)) / 50) / len(anchors)
        return mean
    if name == 'supervised_contrastive':
        mean = 0.0
        for a in anchors:
            others = sum(math.exp(-10 * dists[a, other]) for other in range(len(pids)) if other != a)
            mean -= sum(math.log(math.exp(-10 * dists[a, p]) / others) / len(positives[a]) for p in positives[a])
        return mean / len(anchors)
    raise ValueError(name)


def differences(function, array, width=1e-6):
    """The gradient of a function of a float64 array, by central differences."""
    gradient = np.zeros_like(array)
    for index in np.ndindex(array.shape):
        step = np.zeros_like(array)
        step[index] = width
        gradient[index] = (function(array + step) - function(array - step)) / (2 * width)
    return gradient


# --- Losses -----------------------------------------------------------------------------------------------------------

def is_defined(name, margin):
    try:
        checks.check_margin(name, margin)
    except InputError:
        return False
    return True


DETERMINED = [(name, margin) for name in plugins.choices('losses') for margin in MARGINS
              if name not in ('none', 'batch_sample') and is_defined(name, margin)]

# Identities of anchors and of the batch. The last two are anchors before others that are none, as a memory has them.
BATCHES = {
    'pk': (np.repeat(range(4), 3),) * 2,
    'shuffled': (np.array([2, 0, 1, 1, 0, 2, 0, 2]),) * 2,
    'some alone': (np.array([0, 1, 1, 2, 3, 3, 3]),) * 2,
    'all alone': (np.arange(5),) * 2,
    'one identity': (np.zeros(5, int),) * 2,
    'replica': (np.repeat([5, 6], 2), np.repeat([5, 6, 7, 8], 2)),
    'parted': (np.array([5, 5, 6]), np.array([5, 5, 6, 6, 5, 7, 7])),
}


def loss_and_gradient(name, dists, anchor_pids, pids, margin):
    """Losses [B1] and the gradient of their mean with respect to the distances, as float64."""
    dists = tf.constant(dists, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(dists)
        losses = plugins.load('losses', name).loss(dists, tf.constant(anchor_pids), tf.constant(pids), margin)
        mean = tf.reduce_mean(losses)
    gradient = tape.gradient(mean, dists, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return losses.numpy().astype(np.float64), gradient.numpy().astype(np.float64)


def test_every_loss_refuses_undefined_margins_and_metrics():
    undefined = {(name, margin) for name in plugins.choices('losses') for margin in MARGINS
                 if not is_defined(name, margin)}
    with_number = ('batch_all_nonzero', 'lifted', 'circle', 'multi_similarity')
    assert undefined == {*itertools.product(with_number, ('soft', 'none')), ('supervised_contrastive', 0.2),
                         ('supervised_contrastive', 1.0)}
    for name in plugins.choices('losses'):
        checks.check_metric(name, 'cosine')
        if name in ('circle', 'multi_similarity', 'supervised_contrastive'):
            with pytest.raises(InputError, match='--metric cosine'):
                checks.check_metric(name, 'euclidean')
        else:
            checks.check_metric(name, 'euclidean')


@pytest.mark.parametrize('name, margin, batch', [
    (name, margin, batch) for name, margin in DETERMINED for batch in BATCHES])
def test_loss_and_gradient_are_those_of_a_loop(name, margin, batch):
    anchor_pids, pids = BATCHES[batch]
    random = np.random.default_rng(1)
    dists = random.uniform(0.1, 2.0, (len(anchor_pids), len(pids))).astype(np.float32).astype(np.float64)
    losses, gradient = loss_and_gradient(name, dists, anchor_pids, pids, margin)
    assert losses.shape == anchor_pids.shape
    assert losses.mean() == pytest.approx(naive(name, dists, anchor_pids, pids, margin), rel=1e-5, abs=1e-6)
    expected = differences(lambda moved: naive(name, moved, anchor_pids, pids, margin, dists), dists)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('name, margin', DETERMINED)
def test_loss_of_a_collapsed_batch(name, margin):
    pids = np.repeat(range(3), 3)
    embs = tf.Variable(tf.ones([9, 4]))
    with tf.GradientTape() as tape:
        dists = loss.cdist(embs, embs, 'euclidean')
        losses = plugins.load('losses', name).loss(dists, tf.constant(pids), tf.constant(pids), margin)
        mean = tf.reduce_mean(losses)
    assert float(mean) == pytest.approx(naive(name, np.full((9, 9), 1e-6), pids, pids, margin), rel=1e-5, abs=1e-6)
    assert np.isfinite(tape.gradient(mean, embs)).all()


@pytest.mark.parametrize('name', plugins.choices('losses'))
def test_loss_is_the_same_in_a_graph_of_unknown_shape(name):
    losses_of = plugins.load('losses', name).loss
    unknown = [tf.TensorSpec([None, None]), tf.TensorSpec([None], tf.int64), tf.TensorSpec([None], tf.int64)]
    margin = 0.5 if is_defined(name, 0.5) else 'soft'
    in_graph = tf.function(lambda *arguments: losses_of(*arguments, margin), input_signature=unknown)
    for anchor_pids, pids in BATCHES.values():
        dists = tf.random.stateless_uniform([len(anchor_pids), len(pids)], (5, 6))
        eager = losses_of(dists, tf.constant(anchor_pids), tf.constant(pids), margin)
        np.testing.assert_allclose(in_graph(dists, tf.constant(anchor_pids), tf.constant(pids)), eager, rtol=1e-6)


@pytest.mark.parametrize('name, margin', DETERMINED)
def test_large_distances_have_a_finite_loss_and_gradient(name, margin):
    pids = np.repeat(range(3), 2)
    dists = np.random.default_rng(0).uniform(0, 1e4, (6, 6))
    losses, gradient = loss_and_gradient(name, dists, pids, pids, margin)
    assert np.isfinite(losses).all() and np.isfinite(gradient).all()


def test_batch_sample_draws_every_positive_and_negative_alike_by_the_seed():
    pids = np.repeat(range(3), 3)
    # From a difference of such distances, one reads which column is the positive and which the negative.
    dists = np.where(pids[:, None] == pids, 0.0, -100.0) + np.where(pids[:, None] == pids, 1.0, -10.0) * np.arange(9)
    arguments = tf.constant(dists, tf.float32), tf.constant(pids), tf.constant(pids), 'none'
    losses_of = tf.function(lambda seed: plugins.load('losses', 'batch_sample').loss(*arguments, seed=seed))
    draws = 600
    counts = np.zeros((2, 9, 9))
    for number in range(draws):
        seed = tf.constant([number, 7])
        losses = losses_of(seed).numpy()
        assert np.array_equal(losses, losses_of(seed))
        negative, positive = np.divmod(losses.round().astype(int) - 100, 10)
        counts[0, np.arange(9), positive] += 1
        counts[1, np.arange(9), negative] += 1
    same = pids[:, None] == pids
    for count, kind in zip(counts, (same & ~np.eye(9, dtype=bool), ~same)):
        assert not count[~kind].any()
        probability = 1 / kind.sum(axis=1, keepdims=True)
        five_sigma = 5 * np.sqrt(draws * probability * (1 - probability))
        assert (np.abs(count - draws * probability) < five_sigma)[kind].all()


def test_batch_sample_takes_the_margin_and_leaves_anchors_without_a_triplet():
    anchor_pids, pids = BATCHES['some alone']
    dists = np.random.default_rng(2).uniform(0, 2, (7, 7)).astype(np.float32)
    losses_of = plugins.load('losses', 'batch_sample').loss
    losses = {margin: losses_of(dists, anchor_pids, pids, margin, seed=(3, 4)).numpy() for margin in MARGINS}
    assert not any(losses_with_margin[[0, 3]].any() for losses_with_margin in losses.values())
    for margin in MARGINS:
        expected = [hinge(difference, margin) for difference in losses['none'][[1, 2, 4, 5, 6]]]
        np.testing.assert_allclose(losses[margin][[1, 2, 4, 5, 6]], expected, rtol=1e-5)


def test_no_metric_loss_is_zero_without_a_gradient():
    losses, gradient = loss_and_gradient('none', np.ones((4, 6)), np.zeros(4, int), np.zeros(6, int), 'soft')
    assert losses.shape == (4,) and not losses.any() and not gradient.any()


def test_one_image_of_an_identity_is_refused():
    process = run_script('train.py', '--experiment_root', 'never', '--train_set', 'a.csv', '--image_root', '.',
                         '--batch_k', 1)
    assert_one_sentence(process, '--batch_k', status=2)


# --- Distances --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('metric', METRICS)
def test_distances_and_their_gradient(metric):
    random = np.random.default_rng(3)
    a, b = random.normal(size=(4, 5)), random.normal(size=(6, 5))
    weights = random.normal(size=(4, 6))
    variable = tf.Variable(a, dtype=tf.float32)
    with tf.GradientTape() as tape:
        dists = loss.cdist(variable, tf.constant(b, tf.float32), metric)
        weighted = tf.reduce_sum(dists * weights.astype(np.float32))
    np.testing.assert_allclose(dists, scipy_cdist(a, b, metric), rtol=1e-5)
    expected = differences(lambda a: (scipy_cdist(a, b, metric) * weights).sum(), a)
    np.testing.assert_allclose(tape.gradient(weighted, variable), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('metric', METRICS)
def test_distances_of_equal_and_of_zero_embeddings(metric):
    embs = tf.Variable([[0.0, 0.0], [0.0, 0.0], [1.0, 2.0], [1.0, 2.0]])
    with tf.GradientTape() as tape:
        dists = loss.cdist(embs, embs, metric)
        total = tf.reduce_sum(dists)
    # An embedding of zeros has no direction: its cosine is 0 to every embedding, itself included.
    zero_distance = 1 if metrics.load(metric).is_normalized else 0
    assert np.diag(dists) == pytest.approx([zero_distance, zero_distance, 0, 0], abs=2e-6)
    if zero_distance:
        assert dists[0].numpy() == pytest.approx(np.ones(4)) and float(dists[2, 0]) == pytest.approx(1)
    assert (dists.numpy() >= 0).all()
    assert np.isfinite(tape.gradient(total, embs)).all()


# --- Cross-entropy ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('smoothing', (0.0, 0.1, 1.0))
def test_cross_entropy_and_its_gradient(smoothing):
    random = np.random.default_rng(4)
    logits, pids = random.normal(size=(5, 7)) * 3, random.integers(0, 7, 5)

    def loop(logits):
        total = 0.0
        for row, pid in zip(logits, pids):
            normaliser = math.log(sum(math.exp(value) for value in row))
            for identity, value in enumerate(row):
                label = smoothing / len(row) + (1 - smoothing) * (identity == pid)
                total += label * (normaliser - value)
        return total / len(pids)

    variable = tf.Variable(logits, dtype=tf.float32)
    with tf.GradientTape() as tape:
        losses = xent.cross_entropy(variable, tf.constant(pids), smoothing)
        mean = tf.reduce_mean(losses)
    assert losses.shape == (5,)
    assert float(mean) == pytest.approx(loop(logits), rel=1e-5)
    np.testing.assert_allclose(tape.gradient(mean, variable), differences(loop, logits), rtol=1e-4, atol=1e-6)
