"""Parts of images that make a query and its nearest images near, as a picture with a row per query."""
import numpy as np
import tensorflow as tf
from PIL import Image

from tripletreid import metrics, provenance
from tripletreid.errors import InputError, warn
from tripletreid.evaluation import chunks
from tripletreid.experiment import arguments, checkpoints
from tripletreid.input_pipeline import augmentation, images
from tripletreid.modeling import inference, inference_flags, regions
from tripletreid.visualization.figures import new_figure
from tripletreid.visualization.rankings_plot import FRAMES, GAP, WIDTH, Cell, draw_cell

NEAR, FAR = (215, 25, 28), (44, 123, 182)  # Colours of places that make images near, and of the others.
OPACITY = 0.7  # Opacity of the place with the largest part.
TOLERANCE = 1e-3  # Difference of a distance from the evaluation's that is not worth a warning.


class Explainer:
    """The model of an evaluation, which finds the parts of images that make them near."""

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
        self._network, path = inference.from_experiment(root, made_with.get('checkpoint'), self._view.net,
                                                        made_with.get('weights'))
        sha256 = provenance.file_hash(checkpoints.index_file(path))
        if made_with.get('checkpoint_sha256', sha256) != sha256:
            raise InputError(f'{evaluation.path} evaluates another checkpoint than {path}.')
        self.places = self._divided(method)
        self.is_exact, self._warned = True, False
        self._origin = None if self.places is None else self._mean_of_gallery()

    def _divided(self, method):
        """Return the network as `regions.Places`, or None for occlusion."""
        pooling, is_sum = regions.pooling_layer(self._network), metrics.load(self.metric).kind == 'square'
        if method == 'pairs' and not (pooling and is_sum):
            reason = f'{self.metric} is not a sum of squares' if pooling else 'the net does not pool a single feature map'
            raise InputError(f'--method pairs does not fit, because {reason}: use --method occlusion.')
        return regions.Places(self._network, pooling) if method != 'occlusion' and pooling and is_sum else None

    def _mean_of_gallery(self):
        """Return the mean embedding of the gallery [D], the origin of similarities where the metric has none."""
        embeddings = self._evaluation.gallery_embeddings
        sums = [embs.sum(axis=0, dtype=np.float64) for _, embs in chunks.gallery_chunks(embeddings, 0, embeddings.shape[0])]
        return np.sum(sums, axis=0) / embeddings.shape[0]

    def row(self, number, ranked):
        """Explain a ranked list; print the distance of each image and its summands.

        Args:
            number: row of the query.
            ranked: its nearest images, a list of `Ranked`.

        Returns: list of (`Cell`, uint8 [H, W, 3], parts [h, w] or None), as `picture_of_regions` draws them.

        Raises:
            InputError: an image that is missing or cannot be read.
        """
        fid, pid = self._query.dataset.fids[number], self._query.dataset.pids[number]
        query = self._load(self._query.paths[number], fid)
        row = [(Cell(0, 0, None, fid, 'query', (pid,)), shown(query), None)]
        for rank, entry in enumerate(ranked, 1):
            other_fid, other_pid = (names[entry.row] for names in (self._gallery.dataset.fids, self._gallery.dataset.pids))
            neighbour = self._load(self._gallery.paths[entry.row], other_fid)
            found = self._regions(query, neighbour)
            self._warn_of_other_distance(found.distance, entry.distance)
            print(f'{fid} and {other_fid}: {in_words(found)}')
            frame = 'match' if other_pid == pid else 'no match'
            row.append((Cell(0, 0, None, fid, 'query', (f'query, {rank}',)), shown(query), found.query))
            row.append((Cell(0, 0, None, other_fid, frame, (f'{FRAMES[frame][2]}{rank}   {found.distance:.3f}', other_pid)),
                        shown(neighbour), found.neighbour))
        return row

    def _load(self, path, fid):
        """Return an image as the network sees it, float32 [H, W, 3]."""
        if path is None:
            raise InputError(f'{fid} is missing or outside of the image root: give its folder as --image_root.')
        try:
            loaded = images.load(path, self._view.load, self._view.pixels)
        except tf.errors.OpError as error:
            raise images.broken_image([path], error) from error
        return augmentation.variants(loaded, False, self._view.crop, self._view.net)[0].numpy()

    def _regions(self, query, neighbour):
        """Return the `Regions` of two images."""
        if self.places is None:
            return regions.by_occlusion(self._network, query, neighbour, self.metric)
        (parts, is_exact), (other_parts, other_is_exact) = map(self.places.divide, (query, neighbour))
        self.is_exact &= is_exact and other_is_exact
        is_normalized = self.places.is_normalized or metrics.load(self.metric).is_normalized
        return regions.divide_similarity(parts, other_parts, self.metric, is_normalized, self._origin)

    def _warn_of_other_distance(self, distance, evaluated):
        """Warn once where the distance of two images is not the evaluation's."""
        if not self._warned and abs(distance - evaluated) > TOLERANCE * max(1, distance):
            self._warned = True
            warn(f'two images have a distance of {distance:.4f}, and of {evaluated:.4f} in {self._evaluation.path}, because '
                 f'of test-time augmentation, re-ranking, several images per query or another precision.')

    def method_in_words(self):
        """Return how the parts were found, a sentence; after the last `row`."""
        if self.places is None:
            return 'By occlusion: the parts are the increase of the distance when a cell of the image is grey.'
        if self.is_exact:
            return 'By pairs of places: the layers after the last feature map are linear, so the parts are exact.'
        return 'By pairs of places: the layers after the last feature map are not linear, so the parts use their gradient.'


def in_words(found):
    """Return the distance of `Regions` and its summands in words."""
    if found.similarity is None:
        return f'distance {found.distance:.4f}'
    places = ' x '.join(f'{parts.shape[0] * parts.shape[1]}' for parts in (found.query, found.neighbour))
    return (f'distance {found.distance:.4f}; squared {found.remainder - 2 * found.similarity:.4f} = {found.remainder:.4f} - '
            f'2 x {found.similarity:.4f}, the sum over {places} pairs of places')


def shown(image):
    """Return an image float32 [H, W, 3] as uint8."""
    return np.uint8(np.rint(image).clip(0, 255))


def picture_of_regions(rows):
    """Draw parts of images.

    Args:
        rows: per query a list, as `Explainer.row` returns it.

    Returns: figure.
    """
    height = WIDTH * np.clip(rows[0][0][1].shape[0] / rows[0][0][1].shape[1], 0.5, 2)
    across, down = WIDTH + GAP, height + 40
    page_width, page_height = max(map(len, rows)) * across + 8, len(rows) * down
    figure = new_figure(page_width / 72, page_height / 72, layout=None)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    for number, row in enumerate(rows):
        for place, (cell, pixels, parts) in enumerate(row):
            picture = Image.fromarray(pixels if parts is None else coloured(pixels, parts))
            draw_cell(axes, cell, picture, place * across + 8, number * down + 8, height)
    axes.set(xlim=(0, page_width), ylim=(page_height, 0), aspect='auto')
    return figure


def coloured(pixels, parts):
    """Colour a grey copy of an image, uint8 [H, W, 3], by the parts of its places [h, w]: uint8 [H, W, 3]."""
    scaled = (parts / max(np.abs(parts).max(), 1e-12)).astype(np.float32)
    grey = np.asarray(Image.fromarray(pixels).convert('L'))[..., None]
    strength = np.asarray(Image.fromarray(scaled).resize(pixels.shape[1::-1], Image.Resampling.BILINEAR))[..., None]
    opacity = OPACITY * np.abs(strength)
    return np.uint8(np.rint(grey * (1 - opacity) + np.where(strength > 0, NEAR, FAR) * opacity))
