"""Measure how long a model takes per image and how large it is; run as a process, so that each model starts alone."""
import json
import os
import sys
import time

import numpy as np

RUNS = 30  # Batches of one image, of which the median counts, after a first one that does not.


def seconds_per_batch(embed, images, runs):
    """Return the median duration of `embed(images)` in seconds, after a first call that is not counted."""
    durations = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        embed(images)
        durations.append(time.perf_counter() - start)
    return float(np.median(durations[1:]))


def measure(model):
    """Measure a model on images of its own input size.

    Args:
        model: path of an export, an experiment root, or a checkpoint in one.

    Returns: {'milliseconds': per image in batches of one, 'megabytes': of the export, or of the weights in float32}.
    """
    if os.path.isfile(model) or os.path.isfile(os.path.join(model, 'saved_model.pb')):
        from tripletreid.modeling import exports
        loaded = exports.load(model)
        embed, shape, dtype = loaded.embed, loaded.input_shape[1:], loaded.input_dtype
        files = [model] if os.path.isfile(model) else [os.path.join(folder, name) for folder, _, names in os.walk(model)
                                                       for name in names]
        size = sum(map(os.path.getsize, files))
    else:
        import tensorflow as tf

        from tripletreid.modeling import inference
        root, checkpoint = (model, None) if os.path.isdir(model) else os.path.split(model)
        network, _ = inference.from_experiment(root, checkpoint)
        function = tf.function(lambda images: network(images, training=False)['emb'])

        def embed(images):
            return function(images).numpy()

        shape, dtype, size = network.input_shape[1:], np.float32, 4 * network.count_params()
    image = np.random.default_rng(0).integers(0, 256, (1, *shape)).astype(dtype)
    return {'milliseconds': 1000 * seconds_per_batch(embed, image, RUNS), 'megabytes': size / 1e6}


if __name__ == '__main__':
    print(json.dumps(measure(sys.argv[1])))
