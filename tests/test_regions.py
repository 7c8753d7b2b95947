"""Parts of images that make them near: maps worked out by hand, and covered parts that change the distance."""
import base64
import json
import re
import sys
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from PIL import Image

import embed
import evaluate
import visualize
from test_freeze import write_experiment
from test_report import look  # noqa: F401
from tripletreid import metrics, plugins
from tripletreid.errors import InputError
from tripletreid.input_pipeline import images
from tripletreid.modeling import inference, regions
from tripletreid.pictures import Pixels
from tripletreid.visualization import regions_layer
from tripletreid.visualization.regions_plot import coloured

SIZE = (32, 16)


@pytest.fixture(scope='module', params=['direct', 'direct_normalize', 'linear_bn_relu'])
def network(request):
    """A small convolutional net with a global average, and a head; batch norms are not the identity."""
    keras.utils.set_random_seed(0)
    images = keras.Input((*SIZE, 3))
    features = keras.layers.Conv2D(16, 4, 4, activation='relu', bias_initializer='random_normal')(images / 255)
    body = keras.Model(images, {'map': features, 'model_output': keras.layers.GlobalAveragePooling2D()(features)})
    network = keras.Model(images, plugins.load('heads', request.param).head(body.output, 8))
    for variable in network.trainable_variables[2:]:
        variable.assign_add(keras.random.normal(variable.shape, stddev=0.1, seed=1))
    network.body, network.head_name = body, request.param
    return network


def pair(seed):
    """Return two images, one green and one blue, that share a red part at different places: float32 [H, W, 3] each."""
    random = np.random.default_rng(seed)
    images = [(random.uniform(100, 200, (*SIZE, 1)) * colour).astype(np.float32) for colour in np.eye(3)[1:]]
    images[0][8:16, :8] = images[1][20:28, 8:16] = (255, 0, 0)
    return images


def places_of(network):
    return regions.Places(network, regions.pooling_layer(network))


def test_similarity_by_hand():
    query, neighbour = np.array([[[1., 0.], [2., 0.]]]), np.array([[[3.], [0.]], [[0.], [4.]]]).reshape(2, 1, 2)
    # a = (3, 0) from places (1, 0) and (2, 0); b = (3, 4) from (3, 0) and (0, 4).
    found = regions.divide_similarity(query, neighbour, 'sqeuclidean', False, np.zeros(2))
    assert found.query.tolist() == [[3, 6]] and found.neighbour.tolist() == [[9], [0]]
    assert (found.similarity, found.remainder, found.distance) == (9, 9 + 25, 16)
    found = regions.divide_similarity(query, neighbour, 'cosine', True, np.ones(2))
    np.testing.assert_allclose(found.query, [[0.2, 0.4]])
    assert found.distance == pytest.approx(0.4) and found.similarity == pytest.approx(0.6)
    # From the origin (1, 1): a = (2, -1), b = (2, 3), half an origin subtracted at each place.
    found = regions.divide_similarity(query, neighbour, 'euclidean', False, np.ones(2))
    np.testing.assert_allclose(found.query, [[0.5 * 2 - 0.5 * 3, 1.5 * 2 - 0.5 * 3]])
    assert found.similarity == pytest.approx(1) and found.distance == pytest.approx(4)


@pytest.mark.parametrize('metric', ['cosine', 'euclidean', 'sqeuclidean'])
def test_the_sum_over_places_is_the_distance(network, metric):
    images = pair(seed=0)
    (query, is_exact), (neighbour, _) = map(places_of(network).divide, images)
    assert query.shape == (8, 4, 8) and is_exact == (network.head_name != 'linear_bn_relu')
    embs = network(np.stack(images), training=False)
    np.testing.assert_allclose([query.sum(axis=(0, 1)), neighbour.sum(axis=(0, 1))], embs['emb_raw'], atol=1e-5)
    is_normalized = places_of(network).is_normalized or metrics.load(metric).is_normalized
    found = regions.divide_similarity(query, neighbour, metric, is_normalized, np.full(8, 0.3))
    expected = regions.metric_of_pairs(embs['emb'][:1], embs['emb'][1:], metric)[0]
    assert found.distance == pytest.approx(expected, abs=1e-4)
    assert found.query.sum() == pytest.approx(found.similarity) and found.neighbour.sum() == pytest.approx(found.similarity)


def test_parts_of_linear_heads_are_exact(network):
    """Compare with the embedding without the features of a place, which lacks the part of this place."""
    places = places_of(network)
    image = pair(seed=0)[0]
    parts, is_exact = places.divide(image)
    features = np.array(places._body(image[None]))
    features[0, 3, 2] = 0
    lacking = places._head(features)[0] - places._head(0 * features)[0] / 32  # The constant is divided among all places.
    difference = np.abs(parts.sum(axis=(0, 1)) - parts[3, 2] - lacking).max()
    assert (difference < 1e-6) == is_exact


@pytest.mark.parametrize('method', ['pairs', 'occlusion'])
@pytest.mark.parametrize('seed', range(3))
def test_the_named_part_matters_most(network, method, seed):
    """Covering the part with the largest sum moves images further apart than covering any other part of its size."""
    images = pair(seed)
    if method == 'pairs':
        parts = [places_of(network).divide(image)[0] for image in images]
        found = regions.divide_similarity(*parts, 'cosine', True, np.zeros(8))
    else:
        covered = [regions.embed_covered(lambda images: network(images, training=False)['emb'], image) for image in images]
        found = regions.by_occlusion(*covered, 'cosine')
    assert found.query.shape == (8, 4)
    emb = network(images[1][None], training=False)['emb']
    sums, distances = [], []
    for row in range(0, 8, 2):
        for column in range(0, 4, 2):
            sums.append(found.query[row:row + 2, column:column + 2].sum())
            covered = images[0].copy()
            covered[4 * row:4 * row + 8, 4 * column:4 * column + 8] = regions.GREY
            distances.append(regions.metric_of_pairs(network(covered[None], training=False)['emb'], emb, 'cosine')[0])
    assert np.argmax(sums) == np.argmax(distances) == 2


# --- The script -------------------------------------------------------------------------------------------------------

def run(monkeypatch, script, *arguments):
    monkeypatch.setattr(sys, 'argv', [f'{script.__name__}.py', *map(str, arguments)])
    script.main()


def write_evaluation(monkeypatch, folder, net, name, metric, *flags, pre_crop=SIZE):
    """Write a model, 6 images of 3 identities, their embeddings with some flags, and the evaluation NAME.json."""
    random = np.random.default_rng(0)
    for number in range(6):
        Image.fromarray(random.integers(0, 256, (*SIZE, 3), np.uint8)).save(folder / f'{number}.png')
    (folder / 'all.csv').write_text(''.join(f'{number // 2},{number}.png\n' for number in range(6)))
    if not (folder / net).exists():
        write_experiment(folder / net, net, 'direct', SIZE, pre_crop)
    run(monkeypatch, embed, '--experiment_root', folder / net, '--dataset', folder / 'all.csv', '--filename', f'{name}.h5',
        '--quiet', *flags)
    sides = [[f'--{side}_dataset', folder / 'all.csv', f'--{side}_embeddings', folder / net / f'{name}.h5']
             for side in ('query', 'gallery')]
    run(monkeypatch, evaluate, *sides[0], *sides[1], '--excluder', 'diagonal', '--metric', metric, '--filename',
        folder / f'{name}.json')
    return folder / f'{name}.json'


@pytest.mark.parametrize('net, metric, method', [('conv4', 'euclidean', 'linear, so the parts are exact'),
                                                 ('mnist', 'euclidean', 'By occlusion'),
                                                 ('conv4', 'cityblock', 'By occlusion')])
def test_picture(tmp_path, monkeypatch, capsys, net, metric, method):
    path = write_evaluation(monkeypatch, tmp_path, net, 'plain', metric)
    capsys.readouterr()
    run(monkeypatch, visualize, 'regions', path, '--queries', '1.png', '4.png', '--top_k', 2)
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert len(lines) == 6 and lines[0].startswith('1.png and ') and method in lines[4] and 'warning' not in printed.err
    assert Image.open(tmp_path / 'plain_regions.png').size[0] > 300
    for line in lines[:4] if 'exact' in method else ():
        distance, squared, remainder, similarity = map(float, re.findall(r'-?\d+\.\d+', line)[:4])
        assert squared == pytest.approx(distance ** 2, abs=1e-3) == pytest.approx(remainder - 2 * similarity, abs=1e-3)


def test_the_first_queries_of_a_report_have_regions():
    """Without a match, a query comes last. A layer that is too large is refused before it is computed."""
    runs = [{'ap': [0.5, None, 0.2, 0.9]}, {'ap': [0.9, None, 0.1, 0.9]}]
    assert regions_layer.first_queries(runs[:1], 2).tolist() == [2, 0]
    assert regions_layer.first_queries(runs, 9).tolist() == [0, 3, 2, 1]
    runs[0].update({'lists': [[(0, 0.5, 0), (1, 0.6, 1)]] * 4, 'further': [[(2, 0.7)]] * 4})
    # 4 queries with 2 pairs, each with 2 maps of 4/3 bytes per place.
    with pytest.raises(InputError, match='would add about 213 MB to the page'):
        regions_layer.layer(SimpleNamespace(map_shape=(10000, 1000)), SimpleNamespace(runs=runs[:1]), 4)


def in_page(path, name):
    """Return an entry of the data of a page."""
    return json.loads(re.search(r'id="data">(.*?)</script>', path.read_text(), re.DOTALL)[1])[name]


def test_layer_of_the_report(tmp_path, monkeypatch, capsys, look):  # noqa: F811
    """Compare the maps on the page with a loop over covered cells, and the colours in the browser with Pillow's."""
    flags = '--crop_augment', 'center'
    path = write_evaluation(monkeypatch, tmp_path, 'mnist', 'plain', 'euclidean', *flags, pre_crop=(40, 20))
    (tmp_path / '5.png').write_bytes(b'broken')
    capsys.readouterr()
    run(monkeypatch, visualize, 'report', path, '--regions', 3, '--top_k', 2)
    assert '2 of 12 images are missing, broken' in capsys.readouterr().err
    layer, queries = in_page(tmp_path / 'plain.html', 'regions'), json.loads(path.read_text())['queries']
    gallery, lists = in_page(tmp_path / 'plain.html', 'gallery')['fid'], in_page(tmp_path / 'plain.html', 'runs')[0]['lists']
    assert layer['shape'] == [8, 4] and layer['area'] == [0.1, 0.1, 0.9, 0.9] and 'occlusion' in layer['method']
    worst = np.argsort([query['ap'] for query in queries], kind='stable')[:3]
    assert {int(q) for q in layer['maps']} == set(worst) - {5}

    network, _ = inference.from_experiment(str(tmp_path / 'mnist'))
    seen = [np.asarray(images.load(str(tmp_path / f'{number}.png'), (40, 20), Pixels()))[4:36, 2:18] for number in range(5)]
    embs = network(np.stack(seen), training=False)['emb'].numpy()
    maps = {}
    for q, pairs in layer['maps'].items():
        assert {int(number) for number in pairs} >= {number for number, _, excluded in lists[int(q)]
                                                     if not excluded and gallery[number] != '5.png'}
        for number, encoded in pairs.items():
            for side, image, other in (0, int(q), int(gallery[int(number)][0])), (1, int(gallery[int(number)][0]), int(q)):
                parts = np.zeros((8, 4))
                for row, column in np.ndindex(8, 4):
                    covered = seen[image].copy()
                    covered[4 * row:4 * row + 4, 4 * column:4 * column + 4] = 127.5
                    distances = [np.linalg.norm(emb - embs[other]) for emb in
                                 (network(covered[None], training=False)['emb'].numpy()[0], embs[image])]
                    parts[row, column] = distances[0] - distances[1]
                decoded = np.frombuffer(base64.b64decode(encoded[side]), np.int8).reshape(8, 4)
                np.testing.assert_allclose(decoded, 127 * parts / np.abs(parts).max(), atol=1)
                maps[gallery[int(number)] if side else 'query', q] = decoded

    page = look(tmp_path / 'plain.html')
    q = next(iter(layer['maps']))
    page.locator(f'#query-{q}').click()
    assert page.locator('canvas').count() == 0 and not page.locator('#legend').is_visible()
    page.keyboard.press('r')
    page.wait_for_function(f"() => document.querySelectorAll('canvas').length === {2 * len(layer['maps'][q])}")
    assert page.locator('#legend').is_visible()
    for entry in page.locator('.ranked li').filter(has=page.locator('canvas')).all():
        read = 'all => all.map(one => [...one.getContext("2d").getImageData(0, 0, 16, 32).data])'
        pixels = np.array(entry.locator('canvas').evaluate_all(read)).reshape(-1, 32, 16, 4)
        fid = entry.locator('.name').get_attribute('title')
        assert len(pixels) == 2
        expected = coloured(np.full((26, 13, 3), 128, np.uint8), maps[fid, q] / 127.).astype(int)
        # Grey pixels have no difference of red and blue.
        differences = pixels[0][..., 0] - pixels[0][..., 2]
        assert np.corrcoef(differences[3:29, 2:15].ravel(), (expected[..., 0] - expected[..., 2]).ravel())[0, 1] > 0.9
        assert np.abs(differences[[0, -1]]).max() <= 2
    other = next(str(number) for number in range(5) if str(number) not in layer['maps'])
    page.locator(f'#query-{other}').click()
    assert page.locator('canvas').count() == 0 and page.locator('#uncoloured').is_visible()
    page.select_option('#show', 'with regions')
    assert page.locator('.row').count() == len(layer['maps'])


def test_bad_input(tmp_path, monkeypatch, capsys):
    path = write_evaluation(monkeypatch, tmp_path, 'mnist', 'plain', 'euclidean')
    with pytest.raises(InputError, match='does not pool a single feature map: use --method occlusion'):
        run(monkeypatch, visualize, 'regions', path, '--method', 'pairs')
    augmented = write_evaluation(monkeypatch, tmp_path, 'mnist', 'augmented', 'euclidean', '--flip_augment', '--aggregator',
                                 'mean')
    capsys.readouterr()
    run(monkeypatch, visualize, 'regions', augmented, '--count', 2)
    assert capsys.readouterr().err.count('because of test-time augmentation') == 1
    (tmp_path / '1.png').rename(tmp_path / 'moved.png')
    with pytest.raises(InputError, match='1.png is missing'):
        run(monkeypatch, visualize, 'regions', path, '--queries', '1.png')
    other = write_experiment(tmp_path / 'other', 'conv4', 'direct', SIZE, SIZE)
    with pytest.raises(InputError, match='evaluates another checkpoint than'):
        run(monkeypatch, visualize, 'regions', path, '--experiment_root', other)
    results = json.loads(path.read_text())
    results['embedding_parameters']['gallery'] = {}
    path.write_text(json.dumps(results))
    with pytest.raises(InputError, match='give it as --experiment_root'):
        run(monkeypatch, visualize, 'regions', path)
