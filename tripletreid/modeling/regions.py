"""Parts of two images that make them near, for a network: by pairs of places of its last feature map, or by occlusion."""
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tripletreid import metrics

CELLS = 32  # Number of cells per image that are covered one after another.
GREY = 127.5
TOLERANCE = 1e-4  # Rounding error of a linear head, relative to the embedding.


class Regions(NamedTuple):
    """Parts of a query and of a neighbour that make them near.

    distance: of the two images.
    query, neighbour: float64 [h, w] and [h', w'], the part of each place; places above 0 make the images near. By pairs of
        places, both sum up to `similarity`. By occlusion, they are the increase of the distance when a cell is covered.
    similarity: the sum over pairs of places; None by occlusion.
    remainder: distance = from_sum(remainder - 2 similarity) by the metric; None by occlusion.
    """
    distance: float
    query: np.ndarray
    neighbour: np.ndarray
    similarity: float | None = None
    remainder: float | None = None


def divide_similarity(query, neighbour, metric, is_normalized, origin):
    """Divide the similarity of two embeddings into pairs of places.

    The squared distance of embeddings a and b is |a|² + |b|² - 2 a·b, from any origin. With a and b as sums over places,
    a·b is a sum over pairs of places.

    Args:
        query, neighbour: float [h, w, D] and [h', w', D], which sum up to the embeddings.
        metric: one of METRICS, a sum of squares.
        is_normalized: whether the metric or the network scales embeddings to length one; the origin is then zero.
        origin: [D].

    Returns: `Regions`.
    """
    places = [np.asarray(each, np.float64) for each in (query, neighbour)]
    if is_normalized:
        places = [each / np.linalg.norm(each.sum(axis=(0, 1))) for each in places]
    else:
        places = [each - origin / (each.shape[0] * each.shape[1]) for each in places]
    embs = [each.sum(axis=(0, 1)) for each in places]
    similarity = float(embs[0] @ embs[1])
    remainder = float(sum(emb @ emb for emb in embs))
    distance = metrics.load(metric).from_sum(max(0, remainder - 2 * similarity), np)
    # The sum of a place's pairs is its product with the other embedding.
    return Regions(float(distance), places[0] @ embs[1], places[1] @ embs[0], similarity, remainder)


class Places:
    """A network divided at its last feature map, so that an embedding is a sum over the places of the map.

    is_normalized: whether the network scales embeddings to length one; the sums are the embeddings before that.
    map_shape: (height, width) of the map.
    """

    def __init__(self, network, pooling):
        """Divide a network; `pooling` as `pooling_layer` returns it."""
        self.map_shape = tuple(pooling.input.shape[1:3])
        self.is_normalized = network.output['emb'] is not network.output['emb_raw']
        self._body = keras.Model(network.input, pooling.input)
        self._head = keras.Model(pooling.input, network.output['emb_raw'])
        self._compute = tf.function(self._parts, autograph=False)

    def divide(self, image):
        """Return the part of each place in an embedding.

        A place's part is its features times the gradient of the embedding with respect to them. The remainder, such
        as the bias of the last layer, is divided evenly.

        Args:
            image: [H, W, 3], RGB 0..255.

        Returns: (float32 [h, w, D], whether the layers after the map are linear, so that the parts are exact).
        """
        parts, is_linear = self._compute(image[None])
        return parts.numpy(), bool(is_linear)

    def _parts(self, images):
        """Compute `divide` for images [1, H, W, 3], as tensors."""
        features = self._body(images, training=False)
        height, width = self.map_shape
        repeated = tf.repeat(features, height * width, axis=0)
        single = tf.reshape(tf.eye(height * width), [-1, height, width, 1])
        with tf.autodiff.ForwardAccumulator(repeated, repeated * single) as gradients:
            embs = self._head(repeated, training=False)
        parts = gradients.jvp(embs)
        rest = embs[0] - tf.reduce_sum(parts, axis=0)
        negative, zero = (self._head(scale * features, training=False)[0] for scale in (-1, 0))
        is_linear = tf.norm(embs[0] + negative - 2 * zero) <= TOLERANCE * tf.norm(embs[0])
        return tf.reshape(parts + rest / (height * width), [height, width, -1]), is_linear


def pooling_layer(network):
    """Return the layer that makes features of the last feature map, or None where that is not a single layer."""
    layer = network.body.output['model_output']._keras_history.operation
    is_map = isinstance(layer.input, keras.KerasTensor) and len(layer.input.shape) == 4
    return layer if is_map else None


class Covered(NamedTuple):
    """Embeddings of an image, float32 [D], and of its copies with one cell grey in each, float32 [rows, columns, D]."""
    emb: np.ndarray
    copies: np.ndarray


def embed_covered(embed, image):
    """Return the `Covered` of an image.

    Args:
        embed: function from images [N, H, W, 3] to embeddings [N, D].
        image: [H, W, 3], RGB 0..255.
    """
    shape = grid(image.shape[:2])
    embs = np.asarray(embed(np.concatenate([image[None], covered(image, shape)])))
    return Covered(embs[0], embs[1:].reshape(*shape, -1))


def by_occlusion(query, neighbour, metric):
    """Measure how much further two images are when a cell of one of them is grey.

    Args:
        query, neighbour: `Covered`.
        metric: one of METRICS.

    Returns: `Regions`.
    """
    distance = float(metric_of_pairs(query.emb[None], neighbour.emb[None], metric)[0])
    maps = []
    for image, other in ((query, neighbour), (neighbour, query)):
        distances = metric_of_pairs(image.copies.reshape(-1, image.emb.size), other.emb[None], metric)
        maps.append(distances.reshape(image.copies.shape[:2]) - distance)
    return Regions(distance, *maps)


def grid(size):
    """Return the rows and columns of about CELLS cells that are nearly square, given (height, width)."""
    height, width = size
    rows = min(height, max(1, round((CELLS * height / width) ** 0.5)))
    return rows, min(width, max(1, round(CELLS / rows)))


def covered(image, shape):
    """Return copies of an image [H, W, 3] with one cell grey in each, [rows * columns, H, W, 3]."""
    ends = [np.linspace(0, side, count + 1).round().astype(int) for side, count in zip(image.shape, shape)]
    copies = np.repeat(np.asarray(image, np.float32)[None], shape[0] * shape[1], axis=0)
    for number, copy in enumerate(copies):
        row, column = divmod(number, shape[1])
        copy[ends[0][row]:ends[0][row + 1], ends[1][column]:ends[1][column + 1]] = GREY
    return copies


def metric_of_pairs(first, second, metric):
    """Return the distances of rows of embeddings [N, D] and [N or 1, D], float64 [N]."""
    metric = metrics.load(metric)
    first, second = (np.asarray(each, np.float64) for each in (first, second))
    if metric.is_normalized:
        first, second = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (first, second))
    return metric.from_sum(metric.term(first - second, np).sum(axis=1), np)
