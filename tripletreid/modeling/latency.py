"""Measure how long a model takes per image and how large it is; run as a process, so that each model starts alone."""
import json
import os
import sys

import numpy as np

from tripletreid.modeling import export_check, exports

RUNS = 30  # Batches of one image, of which the median counts, after a first one that does not.
SIZE = (256, 128)  # Height and width of the images of a model that takes any.


def measure(model):
    """Measure a model on images of its own input size.

    Args:
        model: path of an export, an experiment root, or a checkpoint in one.

    Returns: {'milliseconds': per image in batches of one, 'megabytes': of the export, or of the weights in float32}.
    """
    if exports.is_export(model):
        loaded, size = exports.load(model), sum(map(os.path.getsize, exports.files_of(model)))
    else:
        import tensorflow as tf

        from tripletreid.modeling import inference
        root, checkpoint = (model, None) if os.path.isdir(model) else os.path.split(model)
        network, _ = inference.from_experiment(root, checkpoint)
        function = tf.function(lambda images: network(images, training=False)['emb'])
        loaded = exports.Loaded(lambda images: function(images).numpy(), network.input_shape, np.float32)
        size = 4 * network.count_params()
    return {'milliseconds': 1000 * export_check.seconds_per_batch(loaded, 1, SIZE, RUNS), 'megabytes': size / 1e6}


if __name__ == '__main__':
    print(json.dumps(measure(sys.argv[1])))
