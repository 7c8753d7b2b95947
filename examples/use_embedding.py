#!/usr/bin/env python3
"""How far two images are apart, by a model taken out of this project, of which this file needs nothing else:

    python freeze.py --experiment_root DIR --any_size --frozen_model_path EXPORT
    python examples/use_embedding.py EXPORT one.jpg other.jpg
"""
import sys

import tensorflow as tf

export, *paths = sys.argv[1:]
model = tf.saved_model.load(export)
embed = model.signatures['serving_default']
dtype = embed.structured_input_signature[1]['images'].dtype


def embedding(path):
    image = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)  # Reads PNG as well.
    return embed(images=tf.cast(image[None], dtype))['emb'][0]  # [D] float32


one, other = (embedding(path) for path in paths)
print(f'distance: {tf.norm(one - other):.4f}')
