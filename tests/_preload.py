"""Imported once by the fork server, so that each run of a script starts as its fork, without seconds of imports.

TensorFlow may be imported before a fork, but not used: nothing here makes a tensor.
"""
import gc
import importlib
import pathlib

import PIL.Image

import tripletreid
from tripletreid import quiet

with quiet.tensorflow_import():
    import tensorflow  # noqa: F401
import h5py  # noqa: F401
import keras  # noqa: F401
import numpy.ma  # noqa: F401
import pytest  # noqa: F401
import tensorboard.plugins.histogram.summary_v2  # noqa: F401
import tensorboard.plugins.scalar.summary_v2  # noqa: F401
import tqdm  # noqa: F401

import embed  # noqa: F401
import train  # noqa: F401

# Scripts import most modules of the library when they need them; each fork would compile these again.
for folder in ('distribute', 'embeddings', 'evaluation', 'experiment', 'input_pipeline', 'modeling', 'training'):
    for path in pathlib.Path(tripletreid.__path__[0], folder).glob('[!_]*.py'):
        importlib.import_module(f'tripletreid.{folder}.{path.stem}')
PIL.Image.init()

# Or each fork would go through all of these objects again when it collects garbage, and copy their pages.
gc.collect()
gc.freeze()
