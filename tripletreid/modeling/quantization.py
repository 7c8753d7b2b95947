"""Exports with fewer bits: weights in 16 or 8 bits, or all computation in 8 bits, calibrated on images.

dynamic: weights in 8 bits, of dense layers only in ONNX files; computation in float32 where the format has no faster way.
float16: weights in 16 bits.
int8: weights and activations in 8 bits; their ranges come from calibration images. Input and output stay as they are.
"""
import contextlib
import logging
import os
import shutil
from typing import NamedTuple

import numpy as np

from tripletreid.errors import InputError
from tripletreid.files import temporary_folder

CHOICES = ('dynamic', 'float16', 'int8')
FORMATS = {'.tflite': CHOICES, '.onnx': ('dynamic', 'int8')}


class Quantization(NamedTuple):
    """How to quantise an export.

    kind: one of CHOICES.
    batches: arrays of images in the layout of the export, for the ranges of int8; a list.
    """
    kind: str
    batches: list = []


def check(path, kind):
    """Raise InputError if a format has no such quantisation."""
    ending = os.path.splitext(os.path.basename(os.path.normpath(path)))[1]
    if kind not in FORMATS.get(ending, ()):
        possible = ', '.join(each for each, kinds in FORMATS.items() if kind in kinds)
        raise InputError(f'{path}: --quantize {kind} is for {possible} files.')


def set_up_tflite(converter, quantization):
    """Set the options of a `tf.lite.TFLiteConverter`."""
    import tensorflow as tf
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantization.kind == 'float16':
        converter.target_spec.supported_types = [tf.float16]
    if quantization.kind == 'int8':
        converter.representative_dataset = lambda: ([image[None]] for batch in quantization.batches for image in batch)
        # Operations without a version in 8 bits stay in float32.
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8, tf.lite.OpsSet.TFLITE_BUILTINS]


def quantize_onnx(path, input_name, quantization):
    """Quantise an ONNX file in place."""
    from onnxruntime import quantization as onnx_quantization
    with temporary_folder() as folder, _without_logs():
        prepared, quantized = os.path.join(folder, 'prepared.onnx'), os.path.join(folder, 'quantized.onnx')
        # It folds batch norms into convolutions; inferring symbolic shapes would need SymPy.
        onnx_quantization.quant_pre_process(path, prepared, skip_symbolic_shape=True)
        if quantization.kind == 'dynamic':
            # With the scale of one image, convolutions of MobileNet lose everything and take six times as long.
            onnx_quantization.quantize_dynamic(prepared, quantized, op_types_to_quantize=['MatMul', 'Gemm'])
        else:
            onnx_quantization.quantize_static(
                prepared, quantized, _reader(input_name, quantization.batches), per_channel=True,
                activation_type=onnx_quantization.QuantType.QInt8, weight_type=onnx_quantization.QuantType.QInt8)
        shutil.copyfile(quantized, path)


def _reader(input_name, batches):
    """Return a reader of calibration images, as onnxruntime calls it."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self):
            self._images = iter([image[None] for batch in batches for image in batch])

        def get_next(self):
            image = next(self._images, None)
            return None if image is None else {input_name: image}

    return Reader()


@contextlib.contextmanager
def _without_logs():
    """Silence onnxruntime's advice, which it logs as warnings."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def loss_in_words(embs, expected):
    """Return how far the embeddings of a quantised export are from the expected ones, in words.

    Args:
        embs, expected: float32 [N, D].

    Raises:
        InputError: they are so far that images could not be distinguished.
    """
    embs, expected = (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12) for rows in (embs, expected))
    changes = 1 - np.sum(embs * expected, axis=1)
    between = 1 - expected @ expected.T
    apart = between[np.triu_indices(len(expected), 1)]
    found = (f'its embeddings differ from embed.py by a cosine distance of {changes.mean():.1e} (at most '
             f'{changes.max():.1e}), while two of these images are {apart.mean():.1e} apart')
    if not changes.mean() < apart.mean() / 2:
        raise InputError(f'The quantised export is not kept: {found}.')
    return found
