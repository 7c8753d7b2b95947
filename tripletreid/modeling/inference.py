"""From an experiment root to its trained model, and from image files to embeddings."""
import contextlib
import functools

import numpy as np
import tensorflow as tf

from tripletreid.distribute import feeding
from tripletreid.errors import InputError
from tripletreid.experiment import arguments, checkpoints
from tripletreid.input_pipeline import augmentation, images
from tripletreid.modeling.aggregators import AGGREGATORS, pool_rows
from tripletreid.modeling.inference_flags import View
from tripletreid.modeling.model import build_for, named_variables


def from_experiment(root, checkpoint=None, input_size=None, weights=None):
    """Load the trained model of an experiment root, ours or the original's.

    Args:
        root: experiment root.
        checkpoint: name of a checkpoint in the root; None: the newest one.
        input_size: (height, width) of the images; None: the size that the model was trained with.
        weights: 'raw' or None, as `checkpoints.load_weights` takes it.

    Returns: (model, path of the checkpoint).

    Raises:
        InputError: no experiment, no such checkpoint, or one that does not fit.
    """
    args, _ = arguments.load(root)
    path = checkpoints.find_in_root(root, checkpoint)
    network = build_for(args, input_size)
    checkpoints.load_weights(path, named_variables(network), weights)
    return network, path


def embed_rows(network, dataset, image_root, view, aggregator=None, pool_tracklets=False, first_row=0, **how):
    """Embed the rows of an embedding file: one an image, or one a tracklet, the mean of its frames.

    Args:
        network: as `build` or `from_experiment` gives it.
        dataset: `Dataset` of the images, with tracklets where they are pooled.
        image_root: folder that their paths are relative to.
        view: `inference_flags.View`.
        aggregator: one of AGGREGATORS, of an image's variants; None: mean.
        pool_tracklets: whether a row is a tracklet, in the order of `Dataset.first_frames`.
        first_row: earlier rows are skipped.
        how: further arguments of `embed_files`.

    Yields: float32 arrays [1 + A, R, D] of the next R rows: the aggregate, then the A variants that it is made of.

    Raises:
        InputError: as `embed_files`.
    """
    # The images in the order of the rows: the frames of a tracklet adjoin.
    row_of_image = dataset.tracklet_of_row() if pool_tracklets else np.arange(len(dataset))
    missing = np.argsort(row_of_image, kind='stable')
    missing = missing[row_of_image[missing] >= first_row]
    variants_of_rows = embed_files(network, images.paths(dataset.take(missing), image_root), view, **how)
    # The aggregate comes before the variants, so that tracklets pool both.
    aggregate = AGGREGATORS[aggregator or 'mean']
    images_with_aggregate = (np.concatenate([aggregate(embs)[None], embs]) for embs in variants_of_rows)
    yield from pool_rows(images_with_aggregate, row_of_image[missing]) if pool_tracklets else images_with_aggregate


def embed_files(network, paths, view=None, batch_size=256, loading_threads=8, strategy=None, check_finite=True):
    """Embed image files, a batch at a time, while the next ones are being loaded.

    Args:
        network: as `build` or `from_experiment` gives it, or an `ExportedModel`.
        paths: image files, list of str [N].
        view: `inference_flags.View`; None: images are resized to the network's input.
        batch_size: how many images, variants counted, go through the network at once, on each device.
        loading_threads: how many are loaded at a time.
        strategy: the `tf.distribute.Strategy` in whose scope the network was built; None: there is one device.
        check_finite: whether an embedding that is not finite is an error.

    Yields: float32 arrays [A, B, D], A variants (1 without augmentation) of the next B images.

    Raises:
        InputError: an image that cannot be read, or an embedding that is not finite; it names the file.
    """
    if not paths:
        return
    view = view or View(*2 * [network.input_shape[1:3]])
    variants = len(augmentation.variant_names(view.flip, view.crop))
    strategy = strategy or tf.distribute.get_strategy()
    images_per_device = max(1, batch_size // variants)
    images_per_batch = images_per_device * strategy.num_replicas_in_sync

    @tf.autograph.experimental.do_not_convert
    def load(path):
        return augmentation.variants(images.load(path, view.load, view.pixels), view.flip, view.crop, view.net)

    # Several devices need equal parts, so the last image is repeated; its additional embeddings are dropped.
    missing = -len(paths) % images_per_batch if strategy.num_replicas_in_sync > 1 else 0
    loaded = tf.data.Dataset.from_tensor_slices(paths + paths[-1:] * missing)
    loaded = loaded.map(load, num_parallel_calls=loading_threads)
    parts = loaded.batch(images_per_device).prefetch(2 * strategy.num_replicas_in_sync)
    batches = iter(feeding.ahead(strategy, lambda: parts))
    if hasattr(network, 'embed_variants'):  # An `ExportedModel`.
        embed = network.embed_variants
    else:
        embed_on_devices = _embedding_function(network, strategy, batches.element_spec)

        def embed(batch):
            return np.concatenate(strategy.experimental_local_results(embed_on_devices(batch)), axis=1)

    for start in range(0, len(paths), images_per_batch):
        batch_paths = paths[start:start + images_per_batch]
        try:
            batch = next(batches)
        except tf.errors.OpError as error:
            raise images.broken_image(batch_paths, error) from error
        with _float32_products():
            embs = embed(batch)[:, :len(batch_paths)]
        finite = np.isfinite(embs).all(axis=(0, 2))
        if check_finite and not finite.all():
            raise InputError(f'The embedding of {batch_paths[np.argmin(finite)]} is not finite: the weights of this '
                             f'checkpoint cannot be used.')
        yield embs


def embed_content(network, content, view):
    """Embed one image that is not in a file.

    Args:
        network: as `from_experiment` returns it.
        content: bytes of an image file.
        view: `inference_flags.View`.

    Returns: float32 [A, 1, D].

    Raises:
        InputError: why the image cannot be decoded, in words without a full stop; or an embedding that is not finite.
    """
    loaded = images.load_content(content, view.load, view.pixels)
    batch = augmentation.variants(loaded, view.flip, view.crop, view.net)[None]
    if hasattr(network, 'embed_variants'):  # An `ExportedModel`.
        embed = network.embed_variants
    else:
        spec = tf.TensorSpec([None, *batch.shape[1:]], batch.dtype)
        embed = _embedding_function(network, tf.distribute.get_strategy(), spec)
    with _float32_products():
        embs = np.asarray(embed(batch))
    if not np.isfinite(embs).all():
        raise InputError('its embedding is not finite, the weights of this checkpoint cannot be used')
    return embs


@contextlib.contextmanager
def _float32_products():
    """Compute in full float32 inside this block, also while a training with --tf32 validates."""
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(before)


@functools.lru_cache(maxsize=1)
def _embedding_function(network, strategy, batch_spec):
    """Return a function from images [B, A, H, W, 3] to embeddings [A, B, D] on each device, traced once per network."""
    def embed_part(batch):
        embs = network(tf.reshape(batch, [-1, *network.input_shape[1:]]), training=False)['emb']
        return tf.transpose(tf.reshape(embs, [-1, tf.shape(batch)[1], embs.shape[-1]]), [1, 0, 2])

    return tf.function(lambda batch: strategy.run(embed_part, [batch]), [batch_spec], autograph=False)
