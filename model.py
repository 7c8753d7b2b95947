"""Net and head become one Keras model, whose variables are known by their TensorFlow 1 names."""
import functools
import inspect
import os
import re
import zipfile
import zlib

import h5py
import keras
import numpy as np
import tensorflow as tf

import arguments
import checkpoints
import distribute
import images
import plugins
from errors import InputError
from nets import trinet

MAX_NPZ_BYTES = 4 << 30


def set_precision(precision):
    """Let the models that are built from now on compute in 'none' (float32), 'bfloat16' or 'float16'.

    Weights, batch norm statistics and embeddings are float32 in any case.
    """
    keras.config.set_dtype_policy('float32' if precision == 'none' else f'mixed_{precision}')


def build(net_name, head_name, embedding_dim, input_shape, **net_options):
    """Build a net with a head on top.

    Args:
        net_name: a choice of `nets/`.
        head_name: a choice of `heads/`.
        embedding_dim: D.
        input_shape: (H, W, 3); H and W may be None for the nets that end in a global average.
        net_options: keyword arguments of the net's `body`.

    Returns: keras.Model, images [B, H, W, 3] float32 of RGB 0..255 -> the endpoints, a dict with 'emb_raw' and 'emb',
        float32 [B, D] both, and what net and head have besides. Its attribute `body` is the keras.Model of the net
        alone, made of the very same layers.

    Raises:
        InputError: no such net or head, a net that cannot take this input shape, or does not know an option.
    """
    net = plugins.load('nets', net_name)
    unknown = [f'--{option}' for option in net_options if option not in inspect.signature(net.body).parameters]
    if unknown:
        raise InputError(f'The net {net_name} has no choice of {" and ".join(unknown)}.')
    body = net.body(input_shape, **net_options)
    endpoints = plugins.load('heads', head_name).head(body.output, embedding_dim)
    network = keras.Model(body.input, endpoints, name=f'{net_name}_{head_name}')
    network.body = body
    return network


def build_for(args, input_size=None):
    """What `build` returns for the arguments of `train.py`; for images of (height, width) other than trained with."""
    height, width = input_size or (args.net_input_height, args.net_input_width)
    return build(args.model_name, args.head_name, args.embedding_dim, (height, width, 3),
                 **arguments.net_options(args))


def with_classifier(network, num_identities):
    """The model of `build` with one more endpoint, 'logits' [B, I] float32: a linear classifier of the identities.

    It has the raw embedding as its features, no bias (Luo et al. 2019, section 3.6), and is not part of the head: who
    embeds builds the network without it.
    """
    features = network.output['emb_raw']
    logits = keras.layers.Dense(num_identities, use_bias=False, kernel_initializer=keras.initializers.RandomNormal(
        stddev=0.001), dtype='float32', name='classifier')(features)
    classifying = keras.Model(network.input, {**network.output, 'logits': logits}, name=f'{network.name}_classifier')
    classifying.body = network.body
    return classifying


def named_variables(network):
    """The variables of a model under their TensorFlow 1 names, {name: variable} in the order of `model.variables`.

    A name follows from its layer by a rule: the layer's name is the TF1 scope with '.' for '/', and TF-Slim says
    `weights` (`depthwise_weights`) and `biases` where Keras says `kernel` and `bias`.
    """
    named = {}
    for layer in network.layers:
        kernel = 'depthwise_weights' if isinstance(layer, keras.layers.DepthwiseConv2D) else 'weights'
        slim_names = {'kernel': kernel, 'bias': 'biases'}
        for place, variable in enumerate(layer.weights):
            scope, _, name = variable.path.rpartition('/')
            # A variable without a name is one of all of them in this process, in Keras: here, one of its layer.
            name = f'variable_{place}' if re.fullmatch(r'variable(_\d+)?', name) else name
            named[f'{scope.replace(".", "/")}/{slim_names.get(name, name)}'] = variable
    return named


def from_experiment(root, checkpoint=None, input_size=None):
    """The trained model of an experiment root, ours or one that the original wrote.

    Args:
        root: experiment root.
        checkpoint: name of a checkpoint in the root; None: the newest one.
        input_size: (height, width) of the images; None: the size that the model was trained with.

    Returns: (model, path of the checkpoint).

    Raises:
        InputError: no experiment, no such checkpoint, or one that does not fit.
    """
    args, _ = arguments.load(root)
    newest = checkpoints.newest_first(root)[0] if checkpoint is None else None
    path = newest or checkpoints.find(os.path.join(root, checkpoint))
    network = build_for(args, input_size)
    checkpoints.load(path, named_variables(network))
    return network, path


def embed_files(network, paths, load_size=None, batch_size=256, loading_threads=8, flip=False, crop=None,
                strategy=None):
    """Embed image files, a batch at a time, while the next ones are being loaded.

    Args:
        network: as `build` or `from_experiment` gives it.
        paths: image files, list of str [N].
        load_size: (height, width) that the images are resized to before they are cropped; None: the network's input.
        batch_size: how many images, variants counted, go through the network at once, on each device.
        loading_threads: how many are loaded at a time.
        flip, crop: test-time variants, see `images.variants`.
        strategy: the `tf.distribute.Strategy` in whose scope the network was built; None: there is one device.

    Yields: float32 arrays [A, B, D], A variants (1 without augmentation) of the next B images.

    Raises:
        InputError: an image that cannot be read, or an embedding that is not finite; it names the file.
    """
    if not paths:
        return
    input_size = network.input_shape[1:3]
    load_size = load_size or input_size
    variants = len(images.variant_names(flip, crop))
    strategy = strategy or tf.distribute.get_strategy()
    images_per_device = max(1, batch_size // variants)
    images_per_batch = images_per_device * strategy.num_replicas_in_sync

    @tf.autograph.experimental.do_not_convert
    def load(path):
        return images.variants(images.load(path, load_size), flip, crop, input_size)

    # Several devices want equal parts, so the last image is repeated; what comes of that is dropped again.
    missing = -len(paths) % images_per_batch if strategy.num_replicas_in_sync > 1 else 0
    loaded = tf.data.Dataset.from_tensor_slices(paths + paths[-1:] * missing)
    loaded = loaded.map(load, num_parallel_calls=loading_threads)
    parts = loaded.batch(images_per_device).prefetch(2 * strategy.num_replicas_in_sync)
    batches = distribute.ahead(strategy, lambda: parts)
    embed = _embedding_function(network, strategy, batches.element_spec)
    for start in range(0, len(paths), images_per_batch):
        of_batch = paths[start:start + images_per_batch]
        try:
            batch = next(batches)
        except tf.errors.OpError as error:
            raise images.broken_image(of_batch, error) from error
        embs = np.concatenate(strategy.experimental_local_results(embed(batch)), axis=1)[:, :len(of_batch)]
        finite = np.isfinite(embs).all(axis=(0, 2))
        if not finite.all():
            raise InputError(f'The embedding of {of_batch[np.argmin(finite)]} is not finite: the weights of this '
                             f'checkpoint cannot be used.')
        yield embs


@functools.lru_cache(maxsize=1)
def _embedding_function(network, strategy, batch_spec):
    """From images [B, A, H, W, 3] to embeddings [A, B, D] on each device; traced once, however often a training asks."""
    def embed_part(batch):
        embs = network(tf.reshape(batch, [-1, *network.input_shape[1:]]), training=False)['emb']
        return tf.transpose(tf.reshape(embs, [-1, tf.shape(batch)[1], embs.shape[-1]]), [1, 0, 2])

    return tf.function(lambda batch: strategy.run(embed_part, [batch]), [batch_spec], autograph=False)


def load_body(network, path):
    """Initialise the body of a model from pre-trained weights; the head stays as it is.

    Args:
        network: as `build` returns it.
        path: a checkpoint of this project or of TensorFlow 1 (see `checkpoints.find`), the paper's `.npz`, or for the
            nets of Keras Applications the `.h5` or `.weights.h5` of the net without its top.

    Raises:
        InputError: nothing there, or weights that do not fit the body.
    """
    # The exponent of a pooling is no part of any pre-trained net.
    variables = {name: variable for name, variable in named_variables(network.body).items() if name != 'gem/p'}
    if path.endswith('.npz'):
        load_trinet(path, variables)
    elif path.endswith('.h5'):
        load_keras(path, network.body)
    else:
        checkpoints.load(checkpoints.find(path), variables)


def load_keras(path, body):
    """Assign the weights that Keras distributes for a net of Keras Applications, in either of its formats.

    Args:
        path: `.h5` or `.weights.h5` of the net without its top.
        body: keras.Model of such a net; what it has beside the net of Keras stays as it is.

    Raises:
        InputError: an unreadable file, one of another net or with a top, or a body that is no net of Keras.
    """
    if 'features' not in body.output:
        raise InputError(f'{path} is a file of Keras, whose weights the net {body.name} cannot take.')
    pretrained = keras.Model(body.input, body.output['features'])
    arrays = []
    try:
        with h5py.File(path) as file:
            file.visititems(lambda name, item: arrays.append(name) if isinstance(item, h5py.Dataset) else None)
        # Keras takes what it needs out of a `.weights.h5`, and does not tell of the rest.
        if len(arrays) == len(pretrained.weights):
            pretrained.load_weights(path)
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise InputError(f'{path} has no weights that the net {body.name} can take: '
                         f'{" ".join(str(error).split())}') from error
    if len(arrays) != len(pretrained.weights):
        raise InputError(f'{path} holds {len(arrays)} arrays where the net {body.name} without its top has '
                         f'{len(pretrained.weights)}. Is it the file of another net, or of one with its top?')


def load_trinet(path, variables):
    """Assign the weights that the paper's authors released for Theano to variables of the net `trinet`.

    Args:
        path: `.npz` with the arrays arr_0, arr_1, … of the net and its head `fc1024`.
        variables: {TensorFlow 1 name: variable}, e.g. of the net alone; what they do not need is left.

    Raises:
        InputError: an unreadable file, one array too many or too few, an array of another shape than its variable,
            or a variable that these weights do not have.
    """
    names, arrays = trinet.array_names(), _read_arrays(path)
    if len(arrays) != len(names):
        raise InputError(f'{path} holds {len(arrays)} arrays where the weights of the TriNet are {len(names)}.')
    values = dict(_converted(name, array) for name, array in zip(names, arrays))
    missing = [name for name in variables if name not in values]
    if missing:
        raise InputError(f'{path} holds the weights of the net trinet with the head fc1024, but not {missing[0]}'
                         f'{f" and {len(missing) - 1} more" if len(missing) > 1 else ""}.')
    for name, variable in variables.items():
        if values[name].shape != tuple(variable.shape):
            number = list(values).index(name)
            raise InputError(f'{path}: array arr_{number}, which is to become {name}, has the shape '
                             f'{values[name].shape} where {tuple(variable.shape)} is needed (both as TensorFlow orders '
                             f'the axes).')
        if not np.isfinite(values[name]).all():
            raise InputError(f'{path}: what becomes {name} is not finite everywhere.')
    for name, variable in variables.items():
        variable.assign(values[name])


def _read_arrays(path):
    """The arrays arr_0, arr_1, … of an `.npz`, a list; nothing is ever unpickled."""
    try:
        with zipfile.ZipFile(path) as file:
            declared = sum(entry.file_size for entry in file.infolist())
        if declared > MAX_NPZ_BYTES:
            raise InputError(f'{path} unpacks to {declared} bytes; the weights of the TriNet are a tenth of a gigabyte.')
        with np.load(path, allow_pickle=False) as file:
            return [file[f'arr_{i}'] for i in range(len(file.files))]
    except FileNotFoundError as error:
        raise InputError(f'There is no file {path}.') from error
    except KeyError as error:
        raise InputError(f'{path} holds arrays of other names than arr_0, arr_1, … without a gap.') from error
    # An array by itself, as of an .npy file, is no context manager (TypeError, AttributeError before Python 3.11).
    except (OSError, EOFError, ValueError, TypeError, AttributeError, MemoryError, RuntimeError, zipfile.BadZipFile,
            zlib.error) as error:
        raise InputError(f'{path} is no readable .npz file of plain arrays: {error}.') from error


def _converted(name, array):
    """(name, value) of the variable that an array of the released weights becomes."""
    scope, _, kind = name.rpartition('/')
    if kind == 'inv_std':
        with np.errstate(divide='ignore'):
            return f'{scope}/moving_variance', np.float64(array) ** -2 - 1e-5
    if array.ndim == 4:
        return name, array.transpose(2, 3, 1, 0)  # [out, in, h, w] -> [h, w, in, out]
    return name, array
