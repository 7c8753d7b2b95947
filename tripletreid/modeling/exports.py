"""A model in the file formats of others, written and read. The ending of a path selects the format.

An export takes `images` and gives `embeddings`. Exports of other projects are read as well, whatever their names are.
"""
import contextlib
import importlib.util
import os
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tripletreid.errors import InputError
from tripletreid.files import check_output, folder_written_whole, holds, tensorflow_os_errors, written_whole
from tripletreid.modeling import quantization

INPUT, OUTPUT = 'images', 'embeddings'
OLD_OUTPUT = 'emb'  # The output of exports of this project before they had a card.
CARD_KEY = 'model_card'  # The key of the card in an ONNX file's metadata.
OPSET = 15  # OpenCV 4.5 and onnxruntime 1.9 read it.


class Loaded(NamedTuple):
    """An export that can be run.

    embed: function from an array of images to embeddings, float32 [B, D].
    input_shape: (B, H, W, 3) or (B, 3, H, W), None for any number.
    input_dtype: NumPy dtype of the images.
    metadata: {key: text} that the file holds about itself.
    """
    embed: Callable
    input_shape: tuple
    input_dtype: object
    metadata: dict = {}


def save_saved_model(module, path, metadata=None):
    """Write a folder in TensorFlow's SavedModel format, with one signature.

    Args:
        module: tf.Module that holds the variables of its attribute `embed`, a tf.function with an input signature:
            images -> {OUTPUT: [B, D]}.
        path: folder, empty or missing.
        metadata: not stored in this format.
    """
    import tensorflow as tf
    with tensorflow_os_errors(path):
        tf.saved_model.save(module, path, signatures=module.embed)


def load_saved_model(path):
    """Return a SavedModel as `Loaded`."""
    import tensorflow as tf
    module = tf.saved_model.load(path)
    if 'serving_default' not in module.signatures:
        raise InputError('it has no signature serving_default')
    signature = module.signatures['serving_default']
    taken = signature.structured_input_signature[1]
    name, output = _only(taken, 'input'), _output(list(signature.structured_outputs))

    def embed(images):
        # Through the module, because the variables live as long as it does.
        return module.signatures['serving_default'](**{name: tf.constant(images)})[output].numpy()

    return Loaded(embed, _shape(taken[name].shape), taken[name].dtype.as_numpy_dtype)


def save_tflite(module, path, metadata=None, quantize=None):
    """Write a TensorFlow Lite file with one signature; arguments as of `save_saved_model`, and a `Quantization` or None."""
    import tensorflow as tf
    converter = tf.lite.TFLiteConverter.from_concrete_functions([module.embed.get_concrete_function()], module)
    if quantize:
        quantization.set_up_tflite(converter, quantize)
    _write(path, converter.convert())


def load_tflite(path):
    """Return a TensorFlow Lite file as `Loaded`; numbers of 8 bits are scaled as the file says."""
    import tensorflow as tf
    from tensorflow.lite.tools import flatbuffer_utils
    flatbuffer_utils.read_model(path)  # A damaged file raises an error here; the interpreter would crash.
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # TensorFlow announces a package of its own for the interpreter.
        interpreter = tf.lite.Interpreter(path, num_threads=os.cpu_count())
    details = {each['name']: each for each in interpreter.get_input_details()}
    taken = details[_only(details, 'input')]
    outputs = {each['name']: each for each in interpreter.get_output_details()}
    output = outputs[_output(list(outputs))]
    shape = _shape(side if side > 0 else None for side in taken['shape_signature'])
    is_quantized = taken['dtype'] == np.int8  # uint8 is taken as pixels, unless the file says otherwise.

    def embed(images):
        if tuple(interpreter.get_input_details()[0]['shape']) != images.shape:
            interpreter.resize_tensor_input(taken['index'], images.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(taken['index'], _quantized(images, taken) if is_quantized else images)
        interpreter.invoke()
        return _dequantized(interpreter.get_tensor(output['index']), output)

    return Loaded(embed, shape, np.float32 if is_quantized else taken['dtype'])


def _quantized(images, details):
    scale, zero = details['quantization']
    return np.clip(np.rint(images / scale + zero), -128, 127).astype(np.int8)


def _dequantized(values, details):
    scale, zero = details['quantization']
    return (values.astype(np.float32) - zero) * scale if scale else values.astype(np.float32)


def save_onnx(module, path, metadata=None, quantize=None):
    """Write an ONNX file with its metadata; arguments as of `save_saved_model`, and a `Quantization` or None."""
    import onnx
    import tensorflow as tf
    import tf2onnx
    # Keras wraps grouped convolutions, e.g. of ConvNeXt, in functions for XLA, which ONNX does not know. When functions run
    # eagerly while it is traced again, their content becomes part of the graph.
    traced_again = tf.function(module.embed.python_function, module.embed.input_signature, autograph=False)
    tf.config.run_functions_eagerly(True)
    try:
        graph = _frozen_graph(traced_again, INPUT, OUTPUT)
    finally:
        tf.config.run_functions_eagerly(False)
    # From a graph with constants, because tf2onnx makes inputs of the constants that a function takes from outside, such as
    # the mean pixel of a ResNet.
    onnx_model, _ = tf2onnx.convert.from_graph_def(
        graph, input_names=[f'{INPUT}:0'], output_names=[f'{OUTPUT}:0'], opset=OPSET,
        tensors_to_rename={f'{INPUT}:0': INPUT, f'{OUTPUT}:0': OUTPUT}, custom_op_handlers={'Erfc': (_onnx_erfc, [])})
    if quantize:
        _write(path, onnx_model.SerializeToString())
        quantization.quantize_onnx(path, INPUT, quantize)
        onnx_model = onnx.load(path)
        onnx_model.producer_name = 'tf2onnx'  # The mark of such files.
    _name_dimensions(onnx_model.graph)
    for key, text in (metadata or {}).items():
        onnx_model.metadata_props.add(key=key, value=text)
    _write(path, onnx_model.SerializeToString())


def _name_dimensions(graph):
    """Name the dimensions of any size: batch, height, width."""
    taken, given = graph.input[0].type.tensor_type.shape.dim, graph.output[0].type.tensor_type.shape.dim
    names = ('batch', None, 'height', 'width') if taken[1].dim_value == 3 else ('batch', 'height', 'width', None)
    for dimension, name in (*zip(taken, names), *zip(given, ('batch',))):
        if name and dimension.dim_value <= 0:
            dimension.Clear()
            dimension.dim_param = name


def _onnx_erfc(graph, node, *_):
    """Handle erfc for tf2onnx: ONNX lacks it, ConvNeXt's activation needs it, and erf = 1 - erfc."""
    shapes, dtypes = ([get(node.output[0])] for get in (graph.get_shape, graph.get_dtype))
    erf = graph.make_node('Erf', node.input, shapes=shapes, dtypes=dtypes)
    one = graph.make_const(f'{node.name}/one', np.float32(1))
    graph.remove_node(node.name)
    graph.make_node('Sub', [one.output[0], erf.output[0]], outputs=node.output, shapes=shapes, dtypes=dtypes)


def load_onnx(path):
    """Return an ONNX file as `Loaded`."""
    import onnxruntime
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    inputs = {each.name: each for each in session.get_inputs()}
    taken = inputs[_only(inputs, 'input')]
    output = _output([each.name for each in session.get_outputs()])
    shape = _shape(side if isinstance(side, int) and side > 0 else None for side in taken.shape)
    dtypes = {'tensor(uint8)': np.uint8, 'tensor(float)': np.float32, 'tensor(float16)': np.float16}
    if taken.type not in dtypes:
        raise InputError(f'its input is {taken.type}, not an array of float or uint8 images')
    return Loaded(lambda images: session.run([output], {taken.name: images})[0], shape, dtypes[taken.type],
                  dict(session.get_modelmeta().custom_metadata_map))


def save_frozen_graph(module, path, metadata=None):
    """Write a TensorFlow 1 graph with its weights as constants, with the original's names: `input`, `head/out_emb`.

    Arguments as of `save_saved_model`.
    """
    _write(path, _frozen_graph(module.embed, 'input', 'head/out_emb').SerializeToString())


def _frozen_graph(embed, input_name, output_name):
    """Return the graph of a tf.function with constants in place of variables, a tf.compat.v1.GraphDef."""
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2
    frozen = convert_variables_to_constants_v2(embed.get_concrete_function())
    with tf.Graph().as_default() as graph:
        images = tf.compat.v1.placeholder(frozen.inputs[0].dtype, frozen.inputs[0].shape, input_name)
        emb, = tf.graph_util.import_graph_def(frozen.graph.as_graph_def(), {frozen.inputs[0].name: images},
                                              [frozen.outputs[0].name])
        tf.identity(emb, output_name)
    return graph.as_graph_def()


def load_frozen_graph(path):
    """Return a frozen graph of this project or of the original as `Loaded`."""
    import tensorflow as tf
    graph_def = tf.compat.v1.GraphDef()
    with open(path, 'rb') as file:
        graph_def.ParseFromString(file.read())
    imported = tf.compat.v1.wrap_function(lambda: tf.graph_util.import_graph_def(graph_def, name=''), [])
    embed = imported.prune('input:0', 'head/out_emb:0')
    taken, = embed.inputs
    return Loaded(lambda images: embed(tf.constant(images)).numpy(), _shape(taken.shape), taken.dtype.as_numpy_dtype)


def _only(names, kind):
    """Return the single name. Raises InputError where there are several."""
    if len(names) != 1:
        raise InputError(f'it has {len(names)} {kind}s ({", ".join(map(str, names))}) where one is expected')
    return next(iter(names))


def _output(names):
    """Return the name of the embeddings among the outputs."""
    return next((name for name in (OUTPUT, OLD_OUTPUT) if name in names), None) or _only(names, 'output')


def _shape(sides):
    """Return a shape as a tuple of 4 numbers, None for any number. Raises InputError where there are not 4."""
    try:
        shape = tuple(None if side is None else int(side) for side in sides)
    except ValueError:  # TensorFlow does not give a number; ONNX Runtime gives an empty shape.
        shape = ()
    if not shape:
        raise InputError('its input has any number of dimensions, not 4')
    if len(shape) != 4:
        raise InputError(f'its input has {len(shape)} dimensions where images have 4')
    return shape


def _write(path, content):
    with open(path, 'wb') as file:
        file.write(content)


class Format(NamedTuple):
    """A file format. mark: bytes that identify a file as an export of this project, or at least as of this format."""
    name: str
    save: Callable
    load: Callable
    libraries: tuple
    mark: bytes | None


FORMATS = {
    '': Format('SavedModel', save_saved_model, load_saved_model, (), None),
    '.tflite': Format('TFLite', save_tflite, load_tflite, (), b'TFL3'),
    '.onnx': Format('ONNX', save_onnx, load_onnx, ('tf2onnx', 'onnxruntime'), b'tf2onnx'),
    '.pb': Format('frozen graph', save_frozen_graph, load_frozen_graph, (), b'head/out_emb'),
}


def _is_saved_model(path):
    return os.path.isfile(os.path.join(path, 'saved_model.pb'))


def is_export(path):
    """Return whether a path is an export, a file or a SavedModel, and no experiment root or checkpoint."""
    return os.path.isfile(path) or _is_saved_model(path)


def files_of(export):
    """Return the paths of the files of an export, sorted."""
    if not os.path.isdir(export):
        return [export]
    return sorted(os.path.join(folder, name) for folder, _, names in os.walk(export) for name in names)


def format_of(path, to_read=False):
    """Return the Format that a path's ending means.

    Raises:
        InputError: the ending means none, or the format needs a library that is not installed.
    """
    ending = os.path.splitext(os.path.basename(os.path.normpath(path)))[1]
    if _is_saved_model(path):
        ending = ''
    if ending not in FORMATS:
        raise InputError(f'{path}: there is no format {ending}. Name a file {", ".join(filter(None, FORMATS))}, or a '
                         f'folder for a SavedModel, without an ending.')
    missing = [library for library in FORMATS[ending].libraries
               if not (to_read and library == 'tf2onnx') and importlib.util.find_spec(library) is None]
    if missing:
        raise InputError(f'{path}: {ending} files need {" and ".join(missing)}, which '
                         f'{"are" if missing[1:] else "is"} not installed: pip install -r requirements-export.txt')
    return FORMATS[ending]


def check_writable(path, inputs):
    """Raise InputError when an export cannot be written to a path, or would replace an input or a file of another kind."""
    folder = os.path.dirname(os.path.abspath(path))
    while not os.path.lexists(folder):  # `written` makes it.
        folder = os.path.dirname(folder)
    if not os.path.isdir(folder):
        raise InputError(f'{path} cannot be written: {folder} is no folder.')
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f'{path} cannot be written: no permission to write to {folder}.')
    form = format_of(path)
    if form is FORMATS[''] and os.path.exists(path) and not _is_saved_model(path):
        raise InputError(f'{path} is there and is no SavedModel that could be replaced: name another folder.')
    if form is not FORMATS[''] and os.path.exists(path):
        check_output(path, '--frozen_model_path', f'an export as {form.name}', lambda path: holds(path, form.mark), inputs)


@contextlib.contextmanager
def written(path, module, metadata=None, quantize=None):
    """Write an export under a temporary name, yield it loaded, and rename it unless an error was raised meanwhile.

    Args:
        path: of the export; its ending selects the format. Missing folders are made.
        module, metadata: as for `save_saved_model`.
        quantize: `Quantization` or None.
    """
    form = format_of(path)
    complete = folder_written_whole if form is FORMATS[''] else written_whole
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with complete(path) as temporary:
        form.save(module, temporary, metadata, *([quantize] if quantize else []))
        yield form.load(temporary)


def load(path):
    """Read an export, of this project or of another.

    Returns: Loaded.

    Raises:
        InputError: it is missing or damaged, or it does not have one input and one output.
    """
    form = format_of(path, to_read=True)
    if not os.path.exists(path):
        raise InputError(f'There is no {path}.')
    try:
        return form.load(path)
    except Exception as error:  # Each library has its own kinds.
        reason = ' '.join(str(error).split())[:200].rstrip('.')
        raise InputError(f'{path} cannot be read as {form.name} of an embedding: {reason}.') from error
