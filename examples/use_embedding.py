#!/usr/bin/env python3
"""Print the distance of two images by an exported model. This file needs nothing else of the project:

    python freeze.py --experiment_root DIR --any_size --frozen_model_path EXPORT
    python examples/use_embedding.py EXPORT one.jpg other.jpg

In addition to NumPy and Pillow, a SavedModel folder needs TensorFlow, a .tflite file TensorFlow or the small ai-edge-litert,
an .onnx file onnxruntime. Images are resized where the export takes one size only. The embedding of a PNG equals
embed.py's; the embedding of a JPEG, which Pillow decodes a shade differently than TensorFlow, is close to it. The model
card EXPORT.json, if it exists, names the metric and the resizing; otherwise they are Euclidean and TensorFlow 1's.
"""
import argparse
import contextlib
import json
import os
import sys

import numpy as np
from PIL import Image

METRICS = {'euclidean': lambda one, other: np.linalg.norm(one - other),
           'sqeuclidean': lambda one, other: np.square(one - other).sum(),
           'cityblock': lambda one, other: np.abs(one - other).sum(),
           'cosine': lambda one, other: 1 - one @ other / (np.linalg.norm(one) * np.linalg.norm(other))}


@contextlib.contextmanager
def silence():
    """Hide TensorFlow's messages about a missing GPU, which do not pass through Python. TF_CPP_MIN_LOG_LEVEL=0 shows."""
    if os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3') != '3':
        yield
        return
    standard_error = os.dup(2)
    with open(os.devnull, 'w') as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(standard_error, 2)
        os.close(standard_error)


def load(path):
    """Load an export.

    Returns: a function from images [B, H, W, 3] to embeddings [B, D]; the shape of the images that it takes, None or
        less than 1 for any number; their dtype.
    """
    if os.path.isdir(path):
        import tensorflow as tf
        model = tf.saved_model.load(path)
        taken = model.signatures['serving_default'].structured_input_signature[1]['images']
        return (lambda images: model.signatures['serving_default'](images=tf.constant(images))['embeddings'].numpy(),
                taken.shape, taken.dtype.as_numpy_dtype)
    if path.endswith('.tflite'):
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError:
            import tensorflow as tf
            Interpreter = tf.lite.Interpreter
        embed = Interpreter(path).get_signature_runner()
        taken = embed.get_input_details()['images']
        return lambda images: embed(images=images)['embeddings'], taken['shape_signature'], taken['dtype']
    if path.endswith('.onnx'):
        import onnxruntime
        session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
        taken = session.get_inputs()[0]
        shape = [side if isinstance(side, int) else None for side in taken.shape]
        dtype = np.uint8 if taken.type == 'tensor(uint8)' else np.float32
        return lambda images: session.run(['embeddings'], {'images': images})[0], shape, dtype
    raise ValueError('it is neither a SavedModel folder nor a .tflite or .onnx file')


def read_card(path):
    """Return (metric, resizing) of an export by its card, or the defaults without a card."""
    card = f'{os.path.normpath(path)}.json'
    if not os.path.isfile(card):
        print(f'Warning: there is no model card {card}, so the distance is Euclidean and images are resized as by '
              f'TensorFlow 1, which may differ from the training.', file=sys.stderr)
        return 'euclidean', 'tf1'
    with open(card, encoding='utf-8') as file:
        card = json.load(file)
    if (card['input']['layout'], card['input']['pixels']) != ('nhwc', 'rgb255'):
        raise ValueError('this example takes exports of --layout nhwc and RGB in 0..255')
    metric = card['metric'] or 'euclidean'
    if metric not in METRICS:
        raise ValueError(f'this example does not know the {metric} distance')
    return metric, card['input']['resize']


def read_image(path, shape, dtype, resizing='tf1'):
    """Read an image file as a batch of one, [1, H, W, 3], RGB in 0..255, in the size that an export takes.

    Args:
        path: of the file.
        shape: of a batch; None or less than 1 for any number.
        dtype: NumPy type of the pixels.
        resizing: 'tf1', or 'bilinear' or 'bicubic' as Pillow resizes.
    """
    with Image.open(path) as file:
        # The net sees the upper 8 of 16 bits; Pillow would clip them.
        image = Image.fromarray((np.asarray(file) >> 8).astype(np.uint8)) if file.mode.startswith('I') else file
        image = image.convert('RGB')
    _, height, width, _ = shape
    if resizing != 'tf1' and height and height > 0:
        image = image.resize((width, height), Image.Resampling[resizing.upper()])
    image = np.asarray(image, np.float32)
    for axis, size in (1, width), (0, height):
        if size and size > 0 and size != image.shape[axis]:
            image = resize(image, axis, size)
    return (image.round() if dtype == np.uint8 else image)[None].astype(dtype)


def resize(image, axis, size):
    """Resize one axis linearly, as TensorFlow 1 did: pixels start at multiples of their size, none are averaged."""
    place = np.arange(size, dtype=np.float32) * np.float32(image.shape[axis] / size)
    before = place.astype(int)
    after = np.minimum(before + 1, image.shape[axis] - 1)
    weight = np.expand_dims(place - before, (1, 2) if axis == 0 else (0, 2))
    return image.take(before, axis) * (1 - weight) + image.take(after, axis) * weight


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('export', metavar='EXPORT')
    parser.add_argument('images', metavar='IMAGE', nargs=2)
    args = parser.parse_args()
    for path in (args.export, *args.images):
        if not os.path.exists(path):
            parser.error(f'there is no {path}')
    try:
        with silence():
            metric, resizing = read_card(args.export)
            embed, shape, dtype = load(args.export)
    except ImportError as error:
        parser.error(f'{args.export} needs {error.name}, which is not installed')
    except Exception as error:  # Each library raises its own types.
        parser.error(f'{args.export} cannot be loaded: {error}')
    images = []
    for path in args.images:
        try:
            images.append(read_image(path, shape, dtype, resizing))
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            parser.error(f'the image {path} cannot be read: {error}')
    with silence():
        one, other = (embed(image)[0] for image in images)
    name = '' if metric == 'euclidean' else f'{metric} '
    print(f'{name}distance: {METRICS[metric](one, other):.4f}')


if __name__ == '__main__':
    sys.exit(main())
