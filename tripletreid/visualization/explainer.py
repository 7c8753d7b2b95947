"""The model of an evaluation, which finds the parts of a query and of its nearest images that make them near."""
import functools
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tripletreid import metrics, provenance
from tripletreid.errors import InputError, warn
from tripletreid.evaluation import chunks
from tripletreid.experiment import arguments, checkpoints
from tripletreid.input_pipeline import augmentation, images
from tripletreid.modeling import inference, inference_flags, regions

TOLERANCE = 1e-3  # Difference of a distance from the evaluation's that is not worth a warning.
KEPT = 256  # Images whose parts are kept, because several queries have them in their lists.


class Seen(NamedTuple):
    """An image as the network sees it, float32 [H, W, 3], and its `regions.Covered` or its places [h, w, D]."""
    pixels: np.ndarray
    parts: object


class Explainer:
    """The model of an evaluation, which finds the parts of images that make them near.

    is_exact: whether the parts by pairs of places are exact for all images so far.
    """

    def __init__(self, evaluation, query, gallery, root=None, method=None):
        """Load the model.

        Args:
            evaluation, query, gallery: as `ranked_lists.open_evaluation` returns them.
            root: experiment root, if it is another one than the embeddings name.
            method: 'pairs', 'occlusion', or None for pairs where the net has a last feature map.

        Raises:
            InputError: no experiment root, another checkpoint, or a net or a metric without pairs of places.
        """
        made_with = evaluation.made_with.get('gallery', {})
        root = root or made_with.get('experiment_root')
        if not root:
            raise InputError(f'{evaluation.path} does not name the experiment root of its embeddings, because an export or '
                             f'another program made them: give it as --experiment_root.')
        self._evaluation, self._query, self._gallery = evaluation, query, gallery
        self.metric = evaluation.parameters['metric']
        trained, crop = arguments.load(root)[0], made_with.get('crop_augment')
        self._view = inference_flags.view(trained, 'center' if crop == 'five' else crop)
        network, path = inference.from_experiment(root, made_with.get('checkpoint'), self._view.net,
                                                  made_with.get('weights'))
        sha256 = provenance.file_hash(checkpoints.index_file(path))
        if made_with.get('checkpoint_sha256', sha256) != sha256:
            raise InputError(f'{evaluation.path} evaluates another checkpoint than {path}.')
        self._embed = tf.function(lambda images: network(images, training=False)['emb'], autograph=False)
        self.places = self._divided(network, method)
        self.is_exact, self._warned = True, False
        self._origin = None if self.places is None else self._mean_of_gallery()
        self._see = functools.lru_cache(KEPT)(self._look_at)

    def _divided(self, network, method):
        """Return the network as `regions.Places`, or None for occlusion."""
        pooling, is_sum = regions.pooling_layer(network), metrics.load(self.metric).kind == 'square'
        if method == 'pairs' and not (pooling and is_sum):
            reason = f'{self.metric} is not a sum of squares' if pooling else 'the net does not pool a single feature map'
            raise InputError(f'--method pairs does not fit, because {reason}: use --method occlusion.')
        return regions.Places(network, pooling) if method != 'occlusion' and pooling and is_sum else None

    def _mean_of_gallery(self):
        """Return the mean embedding of the gallery [D], the origin of similarities where the metric has none."""
        embeddings = self._evaluation.gallery_embeddings
        sums = [embs.sum(axis=0, dtype=np.float64) for _, embs in chunks.gallery_chunks(embeddings, 0, embeddings.shape[0])]
        return np.sum(sums, axis=0) / embeddings.shape[0]

    @property
    def map_shape(self):
        """(h, w) of the parts of an image."""
        return regions.grid(self._view.net) if self.places is None else self.places.map_shape

    @property
    def area(self):
        """Part of an image that the network sees: (top, left, bottom, right) as fractions of the image's sides."""
        margins = [(load - net) // 2 for load, net in zip(self._view.load, self._view.net)]
        ends = [margin + net for margin, net in zip(margins, self._view.net)]
        return [place / side for places in (margins, ends) for place, side in zip(places, self._view.load)]

    def query(self, number):
        """Return the `Seen` of a query, given its row. Raises InputError for an image that is missing or broken."""
        return self._see(self._query.paths[number], self._query.dataset.fids[number])

    def neighbour(self, row):
        """Return the `Seen` of a gallery image, given its row. Raises InputError for an image that is missing or broken."""
        return self._see(self._gallery.paths[row], self._gallery.dataset.fids[row])

    def _look_at(self, path, fid):
        """Return the `Seen` of an image file."""
        if path is None:
            raise InputError(f'{fid} is missing or outside of the image root: give its folder as --image_root.')
        try:
            loaded = images.load(path, self._view.load, self._view.pixels)
        except tf.errors.OpError as error:
            raise images.broken_image([path], error) from error
        pixels = augmentation.variants(loaded, False, self._view.crop, self._view.net)[0].numpy()
        if self.places is None:
            return Seen(pixels, regions.embed_covered(self._embed, pixels))
        parts, is_exact = self.places.divide(pixels)
        self.is_exact &= is_exact
        return Seen(pixels, parts)

    def explain(self, number, row, evaluated):
        """Return the `Regions` of a query and a gallery image.

        Args:
            number, row: their rows.
            evaluated: their distance by the evaluation; another one is warned of, once.

        Raises:
            InputError: an image that is missing or cannot be read.
        """
        parts = self.query(number).parts, self.neighbour(row).parts
        if self.places is None:
            found = regions.by_occlusion(*parts, self.metric)
        else:
            is_normalized = self.places.is_normalized or metrics.load(self.metric).is_normalized
            found = regions.divide_similarity(*parts, self.metric, is_normalized, self._origin)
        if not self._warned and abs(found.distance - evaluated) > TOLERANCE * max(1, found.distance):
            self._warned = True
            warn(f'two images have a distance of {found.distance:.4f}, and of {evaluated:.4f} in {self._evaluation.path}, '
                 f'because of test-time augmentation, re-ranking, several images per query or another precision.')
        return found

    def method_in_words(self):
        """Return how the parts were found, a sentence; after the last `explain`."""
        if self.places is None:
            return 'By occlusion: the parts are the increase of the distance when a cell of the image is grey.'
        if self.is_exact:
            return 'By pairs of places: the layers after the last feature map are linear, so the parts are exact.'
        return 'By pairs of places: the layers after the last feature map are not linear, so the parts use their gradient.'
