"""The promises of every plug-in; a new file in one of the folders is tested without touching a test."""
import inspect
import re

import numpy as np
import pytest
import tensorflow as tf

import train
from _runs import identities_of
from loss import cdist, cdist_to_memory
from tripletreid import exclusion, metrics, plugins
from tripletreid.dataset import Dataset
from tripletreid.errors import InputError
from tripletreid.evaluation import neighbours
from tripletreid.evaluation.retrieval import Retrieval
from tripletreid.evaluation.retrieval_metrics import ranks_of
from tripletreid.experiment import train_flags
from tripletreid.input_pipeline import sampling
from tripletreid.modeling import model
from tripletreid.modeling.aggregators import AGGREGATORS
from tripletreid.training import optimizer, schedule, train_state

# Small, and large enough for all the poolings of every net.
INPUT_SHAPE = (128, 64, 3)


@pytest.fixture(scope='module')
def photos():
    return tf.constant(np.random.default_rng(0).uniform(0, 255, (2, *INPUT_SHAPE)).astype(np.float32))


@pytest.mark.parametrize('name', plugins.choices('nets'))
def test_net(name, photos, monkeypatch):
    net = plugins.load('nets', name)
    check_stages(getattr(net, 'STAGES', None), list(model.named_variables(model.without_values(net.body, INPUT_SHAPE))))
    two_blocks(net, monkeypatch)
    network = model.build(name, 'direct', 8, INPUT_SHAPE)
    assert network.body.input_shape == (None, *INPUT_SHAPE)
    assert isinstance(network.body.output, dict)
    outputs = network.body(photos, training=False)
    features = outputs['model_output']
    assert features.dtype == tf.float32 and len(features.shape) == 2 and features.shape[0] == 2
    assert np.isfinite(features).all() and np.ptp(features) > 0
    names = model.named_variables(network)
    assert len(names) == len(network.variables)
    assert set(model.named_variables(network.body)) == {name for name in names if not name.startswith('emb/')}
    body = model.without_values(plugins.load('nets', name).body, INPUT_SHAPE)
    assert set(model.named_variables(body)) == set(model.named_variables(network.body)), 'a layer has no name of its own'
    check_kernels({name: variable.shape for name, variable in names.items()})


def two_blocks(net, monkeypatch):
    """Reduce a transformer, whose blocks are all the same: with values, a large one takes seconds and gigabytes."""
    architecture = getattr(net.body, '__self__', None)
    if architecture:
        few = {'depth': 2} if 'depth' in architecture._fields else {'depths': (2, 1, 1, 1)}
        monkeypatch.setattr(net, 'body', architecture._replace(**few).body)


def check_stages(stages, names):
    """Check the stages of --layer_decay. Variables come in the order in which an image passes them."""
    if stages is None:
        return
    stages_of_names = [[place for place, stage in enumerate(stages) if re.match(stage, name)] for name in names]
    assert all(len(places) <= 1 for places in stages_of_names), 'a variable is in two stages'
    found = [places[0] for places in stages_of_names if places]
    assert found == sorted(found) and set(found) == set(range(len(stages))), 'stages are out of order, or empty'
    assert all(stages_of_names[:len(found)]), 'a variable before the last stage is in no stage'


def check_kernels(shapes):
    """Check that with --optimizer adamw all variables decay by their names, except norms, biases and tokens."""
    kernels = {name for name in shapes if optimizer.is_kernel(name)}
    assert kernels and all(len(shapes[name]) >= 2 for name in kernels)
    others = [name for name, shape in shapes.items() if len(shape) >= 2 and name not in kernels]
    assert all(re.search('position|token|register', name) for name in others), others


def test_nets_say_from_which_weights_they_start_or_need_none():
    weights = {name: getattr(plugins.load('nets', name), 'WEIGHTS', None) for name in plugins.choices('nets')}
    assert {'mnist', 'lunet'} <= {name for name, text in weights.items() if text is None}
    assert all(isinstance(text, str) for text in weights.values() if text is not None)


@pytest.mark.parametrize('name', plugins.choices('heads'))
def test_head(name):
    network = model.build('mnist', name, 8, (28, 28, 3))
    images = tf.constant(np.random.default_rng(0).uniform(0, 255, (5, 28, 28, 3)).astype(np.float32))
    outputs = network(images, training=True)
    assert {'model_output', 'emb_raw', 'emb'} <= set(outputs)
    for endpoint in ('emb_raw', 'emb'):
        assert outputs[endpoint].shape == (5, 8) and outputs[endpoint].dtype == tf.float32
        assert np.isfinite(outputs[endpoint]).all()
    if name.endswith('_normalize'):
        np.testing.assert_allclose(np.linalg.norm(outputs['emb'], axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize('precision', ('bfloat16', 'float16'))
@pytest.mark.parametrize('name', plugins.choices('heads'))
def test_head_in_16_bits(name, precision):
    """The net ends in a dense layer of 128 units, which compute in 16 bits: more than that D is, or just as many."""
    try:
        model.set_precision(precision)
        for embedding_dim in (8, 128):
            outputs = model.build('mnist', name, embedding_dim, (28, 28, 3)).output
            assert {outputs[endpoint].dtype for endpoint in ('emb', 'emb_raw', 'metric_emb') if endpoint in outputs} == {
                'float32'}
    finally:
        model.set_precision('none')


@pytest.mark.parametrize('name', plugins.choices('excluders'))
def test_excluder(name):
    """Its file has EXAMPLES: the names of two images of two identities in two cameras."""
    module = plugins.load('excluders', name)
    argument = getattr(module, 'EXAMPLE_ARGUMENT', None)
    assert (argument is None) != hasattr(module, 'with_argument')
    fids = np.array(module.EXAMPLES, dtype=object)
    excluder = exclusion.load(name if argument is None else f'{name}:{argument}')(fids)
    ignored = excluder(fids[:1])
    assert ignored.shape == (1, 2) and ignored.dtype == bool
    assert ignored.tolist() == [[True, False]]
    ignored[:] = False  # The ranking writes into it: it is the caller's.
    assert excluder(fids[:1]).tolist() == [[True, False]]
    if hasattr(excluder, 'ids'):
        identities, cameras = zip(*excluder.ids(fids))
        assert len(set(identities)) == len(set(cameras)) == 2


@pytest.mark.parametrize('name', plugins.choices('scores'))
def test_score(name):
    """Scores are from 0 to 1, NaN without a match, best for a perfect ranking, and as expected for random ones."""
    def ranked(hits):
        """The `Ranks` of queries whose gallery is ranked with these hits, bool [Q, G]."""
        query, rank = np.nonzero(hits)
        in_front = rank - np.concatenate([np.arange(count) for count in hits.sum(axis=1)])
        return ranks_of(query, rank.astype(float), in_front, in_front, (~hits).sum(axis=1), junk=0)

    def values(hits):
        return dict(module.scores(ranked(hits)))

    module = plugins.load('scores', name)
    random = np.random.default_rng(0)
    hits = random.random((50, 30)) < random.random((50, 1)) / 2
    hits[:3] = False
    matched = hits.any(axis=1)
    for score, found in values(hits).items():
        assert isinstance(score, str) and found.shape == (50,)
        assert np.array_equal(np.isnan(found), ~matched)
        assert (0 <= found[matched]).all() and (found[matched] <= 1).all()
    perfect, actual = values(np.sort(hits[matched], axis=1)[:, ::-1]), values(hits[matched])
    assert all((perfect[score] >= actual[score]).all() for score in actual)
    others = [set(dict(plugins.load('scores', other).scores(ranked(hits)))) for other in plugins.choices('scores')
              if other != name]
    assert not set().union(*others) & set(values(hits)), 'two scores have one name'
    if hasattr(module, 'chance'):
        for matches, valid in ((1, 1), (1, 7), (3, 7), (7, 7), (2, 90)):
            order = random.permuted(np.tile(np.arange(valid) < matches, (6000, 1)), axis=1)
            expected = dict(module.chance(np.array([matches]), np.array([valid])))
            for score, found in values(order).items():
                if score in expected:
                    error = 5 * found.std() / np.sqrt(len(found)) + 1e-12
                    assert abs(found.mean() - expected[score][0]) <= error, (score, matches, valid)


@pytest.mark.parametrize('name', plugins.choices('distances'))
def test_distance(name):
    """The training's distances, with a finite gradient at 0, are the ones that evaluation ranks by and samplers use."""
    metric = metrics.load(name)
    assert plugins.load('distances', name).__doc__ and isinstance(metric.is_normalized, bool)
    random = np.random.default_rng(0)
    queries, gallery = (random.normal(size=(count, 6)).astype(np.float32) for count in (5, 40))
    gallery[7] = queries[2]
    a, b = (each.astype(np.float64) for each in (queries, gallery))
    if metric.is_normalized:
        a, b = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (a, b))
    expected = np.array([[metric.from_sum(metric.term(x - y, np).sum(), np) for y in b] for x in a])
    for function in (cdist, cdist_to_memory):
        np.testing.assert_allclose(function(queries, gallery, name), expected, rtol=1e-4, atol=2e-3)
    variable = tf.Variable(queries)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(cdist(variable, variable, name))
    assert np.isfinite(tape.gradient(total, variable)).all()
    sums = np.linspace(0, 10, 100)
    assert (np.diff(metric.from_sum(sums, np)) >= 0).all(), 'it does not increase with the sum'
    sets = [Dataset('', np.zeros(count, object), np.arange(count)) for count in (5, 40)]
    found = neighbours.nearest(Retrieval(queries, sets[0], gallery, sets[1], None, name), 40)
    np.testing.assert_array_equal(found.rows, np.argsort(expected, axis=1, kind='stable'))
    np.testing.assert_allclose(found.distances, np.sort(expected, axis=1), rtol=1e-12)


@pytest.mark.parametrize('name', plugins.choices('layouts'))
def test_dataset(name, tmp_path):
    dataset = plugins.load('layouts', name)
    assert dataset.__doc__ and inspect.signature(dataset.splits).parameters.keys() >= {'root'}
    if name != 'digits':
        with pytest.raises(InputError):
            dataset.splits(str(tmp_path / 'not_there'))


@pytest.mark.parametrize('name', sorted(AGGREGATORS))
def test_aggregator(name):
    embs = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    aggregated = AGGREGATORS[name](embs)
    assert aggregated.shape == (4, 5) and aggregated.dtype == np.float32
    means = embs.mean(axis=0)
    scale = np.linalg.norm(means, axis=1, keepdims=True) if name == 'normalized_mean' else 1
    np.testing.assert_allclose(aggregated, means / scale, rtol=1e-6)


def test_batch_norm_in_a_frozen_body_stays_as_it_is():
    network = model.build('resnet_v1_50', 'direct', 4, (64, 32, 3))
    network.body.trainable = False
    images = tf.random.stateless_uniform((2, 64, 32, 3), (0, 0), 0, 255)
    before = {name: variable.numpy() for name, variable in model.named_variables(network).items()}
    with tf.GradientTape() as tape:
        embs = network(images, training=True)['emb']
        distances = cdist(embs, embs, 'euclidean')
    assert [variable.path for variable in network.trainable_variables] == ['emb/kernel', 'emb/bias']
    assert all(gradient is not None for gradient in tape.gradient(distances, [v.value for v in
                                                                               network.trainable_variables]))
    for name, variable in model.named_variables(network).items():
        assert np.array_equal(before[name], variable.numpy()), name

# --- Terms of the loss and samplers -----------------------------------------------------------------------------------

IDENTITIES, P, K, DIM = 7, 3, 2, 8


def training_args(*flags):
    return train_flags.make_parser().parse_args([
        '--experiment_root', 'none', '--model_name', 'mnist', '--head_name', 'direct', '--embedding_dim', str(DIM),
        '--net_input_height', '12', '--net_input_width', '12', '--batch_p', str(P), '--batch_k', str(K), '--seed', '3',
        *flags])


def training_batch(number=0):
    random = np.random.default_rng(number)
    pids = np.repeat(random.permutation(IDENTITIES)[:P], K).astype(np.int32)
    return {'images': tf.constant(random.uniform(0, 255, (P * K, 12, 12, 3)).astype(np.float32)), 'pids': tf.constant(pids),
            'rows': tf.range(P * K, dtype=tf.int64)}


@pytest.mark.parametrize('name', plugins.choices('objectives'))
def test_objective(name):
    """Its weight switches it on, its losses have a gradient, and all that it learns is in the checkpoint."""
    args, without = training_args(f'--{name}_weight', '0.5'), training_args()
    assert train_state.chosen_objectives(without) == [] and train_state.chosen_objectives(args) == [name]
    states = [train_state.create(each, identities_of(IDENTITIES), tf.distribute.get_strategy()) for each in (without, args)]
    objective, variables = states[1].objectives[name], states[1].variables
    added = variables.keys() - states[0].variables.keys()
    assert objective.variables.keys() <= added and set(objective.identity_axes) <= added
    assert all(variables[key].shape[axis] == IDENTITIES for key, axis in objective.identity_axes.items())

    outputs = states[1].network(training_batch()['images'], training=True)
    assert set(objective.reads) <= outputs.keys()
    pids = training_batch()['pids']
    with tf.GradientTape() as tape:
        tape.watch(outputs)
        losses = objective.losses(train.Outputs(outputs, pids, outputs['emb'], pids))
        mean = tf.reduce_mean(losses)
    assert losses.dtype == tf.float32 and losses.shape == (P * K,) and np.isfinite(losses).all()
    gradients = [each for each in tape.gradient(mean, outputs).values() if each is not None]
    assert gradients and all(np.isfinite(each).all() for each in gradients) and any(np.any(each) for each in gradients)

    before = {key: value.numpy() for key, value in states[1].values().items()}
    step, settings = train.make_train_step(args, states[1], tf.distribute.get_strategy()), schedule.at(0, args)
    results = [step(training_batch(number), settings) for number in range(3)]
    assert np.isfinite([result[objective.curve].numpy() for result in results]).all()
    changed = {key for key, value in states[1].values().items() if not np.array_equal(value, before[key])}
    assert not added or added & changed, 'its variables in a checkpoint never change'
    # The loss is the sum of the metric loss and of the objective's mean times its weight.
    expected = tf.reduce_mean(results[-1]['losses']) + 0.5 * results[-1][objective.curve]
    np.testing.assert_allclose(results[-1]['loss'], expected, rtol=1e-5)


@pytest.mark.parametrize('name', plugins.choices('classifiers'))
def test_classifier(name):
    classifier = plugins.load('classifiers', name)
    assert (classifier.MARGIN is None) == (classifier.LARGEST_MARGIN is None)
    layer = classifier.layer(IDENTITIES)
    outputs = layer(tf.random.stateless_normal([P * K, DIM], (1, 2)))
    assert outputs.shape == (P * K, IDENTITIES) and outputs.dtype == tf.float32
    assert [variable.path for variable in layer.weights] == ['classifier/kernel']
    assert layer.weights[0].shape == (DIM, IDENTITIES)
    pids = tf.constant(np.arange(P * K) % IDENTITIES)
    for outputs in (outputs, tf.ones_like(outputs), -tf.ones_like(outputs)):
        with tf.GradientTape() as tape:
            tape.watch(outputs)
            logits = classifier.logits(outputs, pids, 16.0, classifier.MARGIN)
            true_logits = tf.gather(logits, pids, batch_dims=1)
        assert logits.shape == outputs.shape and np.isfinite(logits).all()
        gradient = tf.gather(tape.gradient(true_logits, outputs), pids, batch_dims=1).numpy()
        assert np.isfinite(gradient).all() and (gradient >= -1e-4).all(), 'a better output never lowers the true logit'


@pytest.mark.parametrize('name', plugins.choices('samplers'))
def test_sampler(name):
    """Batches of different identities, epochs without a second turn, and the same batches from any step on."""
    args = training_args('--sampler', name)

    def sampled(first, last, sampler):
        batches = sampling.batches_as_drawn(sampler, sampler.steps(first, last), first, last)
        return [(int(step), tuple(chosen.numpy())) for step, chosen in batches]

    def new_sampler():
        return plugins.load('samplers', name).Sampler(args, identities_of(IDENTITIES), tf.distribute.get_strategy())

    sampler, random = new_sampler(), np.random.default_rng(0)
    assert all(variable.shape[axis] == IDENTITIES for key, axis in sampler.identity_axes.items()
               for variable in [sampler.variables[key]])
    sampler.update(tf.constant(random.normal(size=(4, DIM)).astype(np.float32)), tf.constant([0, 0, 5, 6]))
    batches = sampled(0, 12, sampler)
    assert [step for step, _ in batches] == list(range(12))
    for _, chosen in batches:
        assert len(set(chosen)) == P and set(chosen) <= set(range(IDENTITIES))
    for first in range(0, 12, IDENTITIES // P):
        epoch = sum((chosen for _, chosen in batches[first:first + IDENTITIES // P]), ())
        assert len(set(epoch)) == len(epoch)
    resumed = new_sampler()
    for key, variable in resumed.variables.items():
        variable.assign(sampler.variables[key])
    assert sampled(5, 12, resumed) == batches[5:]
    (step, chosen), = sampler.steps(7, 8)
    assert (int(step), tuple(chosen.numpy())) == batches[7], 'an error message names the images of a single step'
    assert all(isinstance(notice, str) for notice in sampler.notices)
