"""What every plug-in promises; a new file in one of the folders is tested without touching a test."""
import inspect
import re

import numpy as np
import pytest
import tensorflow as tf

from loss import cdist, cdist_to_memory
from tripletreid import exclusion, metrics, plugins
from tripletreid.dataset import Dataset
from tripletreid.errors import InputError
from tripletreid.evaluation import neighbours
from tripletreid.evaluation.retrieval import Retrieval
from tripletreid.evaluation.retrieval_metrics import ranks_of
from tripletreid.modeling import model
from tripletreid.modeling.aggregators import AGGREGATORS
from tripletreid.training import optimizer

# Small, and large enough for all the poolings of every net.
INPUT_SHAPE = (128, 64, 3)


@pytest.fixture(scope='module')
def photos():
    return tf.constant(np.random.default_rng(0).uniform(0, 255, (2, *INPUT_SHAPE)).astype(np.float32))


@pytest.mark.parametrize('name', plugins.choices('nets'))
def test_net(name, photos):
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
    check_stages(getattr(plugins.load('nets', name), 'STAGES', None), list(model.named_variables(body)))
    check_kernels({name: variable.shape for name, variable in names.items()})


def check_stages(stages, names):
    """What --layer_decay goes by. Variables come in the order in which an image meets them."""
    if stages is None:
        return
    of_names = [[place for place, stage in enumerate(stages) if re.match(stage, name)] for name in names]
    assert all(len(places) <= 1 for places in of_names), 'a variable is in two stages'
    found = [places[0] for places in of_names if places]
    assert found == sorted(found) and set(found) == set(range(len(stages))), 'stages are out of order, or empty'
    assert all(of_names[:len(found)]), 'a variable in front of the last stage is in none'


def check_kernels(shapes):
    """What decays with --optimizer adamw goes by names: in these nets all but those of norms, biases and tokens do."""
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
