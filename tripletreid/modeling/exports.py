"""A model in the file formats of others, written and read back. The ending of a path says which format it is."""
import collections
import contextlib
import importlib.util
import os
import warnings

from tripletreid.errors import InputError
from tripletreid.files import check_output, folder_written_whole, holds, tensorflow_os_errors, written_whole

# embed: NumPy array of images -> embeddings [B, D] float32. input_shape: (B, H, W, 3), None where any number will do.
Loaded = collections.namedtuple('Loaded', 'embed input_shape input_dtype')


def save_saved_model(module, path):
    """Write a folder in TensorFlow's SavedModel format, with one signature.

    Args:
        module: tf.Module whose `embed` is a tf.function with an input signature, images -> {'emb': [B, D]}, and which
            holds the variables that this uses.
        path: folder, empty or not there.
    """
    import tensorflow as tf
    with tensorflow_os_errors(path):
        tf.saved_model.save(module, path, signatures=module.embed)


def load_saved_model(path):
    """Returns: Loaded."""
    import tensorflow as tf
    module = tf.saved_model.load(path)
    signature = module.signatures['serving_default']
    (name, spec), = signature.structured_input_signature[1].items()

    def embed(images):
        # Through the module, which the variables live and die with.
        return module.signatures['serving_default'](**{name: tf.constant(images)})['emb'].numpy()

    return Loaded(embed, tuple(spec.shape), spec.dtype.as_numpy_dtype)


def save_tflite(module, path):
    """Write a TensorFlow Lite file in float32, with one signature; `module` as for `save_saved_model`."""
    import tensorflow as tf
    converter = tf.lite.TFLiteConverter.from_concrete_functions([module.embed.get_concrete_function()], module)
    _write(path, converter.convert())


def load_tflite(path):
    """Returns: Loaded."""
    import tensorflow as tf
    from tensorflow.lite.tools import flatbuffer_utils
    flatbuffer_utils.read_model(path)  # A damaged file raises here; the interpreter would crash.
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # It is to move to a package of its own.
        interpreter = tf.lite.Interpreter(path, num_threads=os.cpu_count())
    embed = interpreter.get_signature_runner()
    (name, details), = embed.get_input_details().items()
    shape = tuple(None if side < 0 else int(side) for side in details['shape_signature'])
    return Loaded(lambda images: embed(**{name: images})['emb'], shape, details['dtype'])


def save_onnx(module, path):
    """Write an ONNX file; `module` as for `save_saved_model`."""
    import tensorflow as tf
    import tf2onnx
    # Keras wraps grouped convolutions, as ConvNeXt has them, in functions for XLA, which ONNX does not know; traced anew
    # while functions run eagerly, what is in them becomes part of the graph.
    traced_anew = tf.function(module.embed.python_function, module.embed.input_signature, autograph=False)
    tf.config.run_functions_eagerly(True)
    try:
        graph = _frozen_graph(traced_anew, 'images', 'emb')
    finally:
        tf.config.run_functions_eagerly(False)
    # From a graph with constants: of a function it makes inputs of the constants from outside, as a ResNet's mean pixel.
    onnx_model, _ = tf2onnx.convert.from_graph_def(
        graph, input_names=['images:0'], output_names=['emb:0'],
        tensors_to_rename={'images:0': 'images', 'emb:0': 'emb'}, custom_op_handlers={'Erfc': (_onnx_erfc, [])})
    _write(path, onnx_model.SerializeToString())


def _onnx_erfc(graph, node, *_):
    """A handler of tf2onnx: ONNX has no erfc, as the activation of ConvNeXt needs it, but erf = 1 - erfc."""
    import numpy as np
    shapes, dtypes = ([of_output(node.output[0])] for of_output in (graph.get_shape, graph.get_dtype))
    erf = graph.make_node('Erf', node.input, shapes=shapes, dtypes=dtypes)
    one = graph.make_const(f'{node.name}/one', np.float32(1))
    graph.remove_node(node.name)
    graph.make_node('Sub', [one.output[0], erf.output[0]], outputs=node.output, shapes=shapes, dtypes=dtypes)


def load_onnx(path):
    """Returns: Loaded."""
    import numpy as np
    import onnxruntime
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    taken = session.get_inputs()[0]
    shape = tuple(side if isinstance(side, int) else None for side in taken.shape)
    dtype = np.uint8 if taken.type == 'tensor(uint8)' else np.float32
    return Loaded(lambda images: session.run(['emb'], {taken.name: images})[0], shape, dtype)


def save_frozen_graph(module, path):
    """Write a TensorFlow 1 graph with its weights as constants, with the original's names: `input`, `head/out_emb`.

    `module` as for `save_saved_model`.
    """
    _write(path, _frozen_graph(module.embed, 'input', 'head/out_emb').SerializeToString())


def _frozen_graph(embed, input_name, output_name):
    """The graph of a tf.function with constants in place of variables, a tf.compat.v1.GraphDef."""
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
    """Returns: Loaded."""
    import tensorflow as tf
    graph_def = tf.compat.v1.GraphDef()
    with open(path, 'rb') as file:
        graph_def.ParseFromString(file.read())
    imported = tf.compat.v1.wrap_function(lambda: tf.graph_util.import_graph_def(graph_def, name=''), [])
    embed = imported.prune('input:0', 'head/out_emb:0')
    taken, = embed.inputs
    return Loaded(lambda images: embed(tf.constant(images)).numpy(), tuple(taken.shape), taken.dtype.as_numpy_dtype)


def _write(path, content):
    with open(path, 'wb') as file:
        file.write(content)


# mark: bytes by which a file is known as an export of this project, or at least of this format.
Format = collections.namedtuple('Format', 'name save load libraries mark')

FORMATS = {
    '': Format('SavedModel', save_saved_model, load_saved_model, (), None),
    '.tflite': Format('TFLite', save_tflite, load_tflite, (), b'TFL3'),
    '.onnx': Format('ONNX', save_onnx, load_onnx, ('tf2onnx', 'onnxruntime'), b'tf2onnx'),
    '.pb': Format('frozen graph', save_frozen_graph, load_frozen_graph, (), b'head/out_emb'),
}


def format_of(path):
    """The Format that a path's ending means. Raises InputError when it means none, or needs what is not installed."""
    ending = os.path.splitext(os.path.basename(os.path.normpath(path)))[1]
    if ending not in FORMATS:
        raise InputError(f'{path}: there is no format {ending}. Name a file {", ".join(filter(None, FORMATS))}, or a '
                         f'folder for a SavedModel, without an ending.')
    missing = [library for library in FORMATS[ending].libraries if importlib.util.find_spec(library) is None]
    if missing:
        raise InputError(f'{path}: {ending} files need {" and ".join(missing)}, which '
                         f'{"are" if missing[1:] else "is"} not installed: pip install -r requirements-export.txt')
    return FORMATS[ending]


def check_writable(path, inputs):
    """Raises InputError when an export cannot be written to that path, or would replace what is none, or an input."""
    folder = os.path.dirname(os.path.abspath(path))
    while not os.path.lexists(folder):  # `written` makes it.
        folder = os.path.dirname(folder)
    if not os.path.isdir(folder):
        raise InputError(f'{path} cannot be written: {folder} is no folder.')
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f'{path} cannot be written: no permission to write to {folder}.')
    form = format_of(path)
    if form is FORMATS[''] and os.path.exists(path) and not os.path.isfile(os.path.join(path, 'saved_model.pb')):
        raise InputError(f'{path} is there and is no SavedModel that could be replaced: name another folder.')
    if form is not FORMATS[''] and os.path.exists(path):
        check_output(path, '--frozen_model_path', f'an export as {form.name}', lambda path: holds(path, form.mark), inputs)


@contextlib.contextmanager
def written(path, module):
    """Write an export under a temporary name, yield it loaded, and give it its name if nothing was raised meanwhile.

    Args:
        path: where to; its ending says the format. Its folder is made where it is missing.
        module: as for `save_saved_model`.
    """
    form = format_of(path)
    whole = folder_written_whole if form is FORMATS[''] else written_whole
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with whole(path) as temporary:
        form.save(module, temporary)
        yield form.load(temporary)


def load(path):
    """Read an export.

    Returns: Loaded.

    Raises:
        InputError: it is not there, damaged, or takes and gives something else than an export of this project.
    """
    form = format_of(path)
    if not os.path.exists(path):
        raise InputError(f'There is no {path}.')
    try:
        return form.load(path)
    except Exception as error:  # Each library has its own kinds.
        reason = ' '.join(str(error).split())[:200]
        raise InputError(f'{path} cannot be read as {form.name} of an embedding: {reason}') from error
