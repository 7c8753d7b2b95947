"""Files of weights as others publish them, `.npz` and `.safetensors`, by name; nothing in them is ever unpickled."""
import math
import os
import re
import zipfile
import zlib

import numpy as np

from tripletreid.errors import InputError

ENDINGS = ('.npz', '.safetensors')
MAX_NPZ_BYTES = 4 << 30
TORCH_ENDING = re.compile(r'(\.(pth|pt|t7|tar|bin|pkl|pickle|ckpt))+(-\d+)?$')
# The conversion keeps tensors of nested dictionaries under `outer.inner` names, since an importer finds the prefix itself.
TORCH_LINES = """\
    import argparse, numpy, safetensors.torch, torch
    scalar = numpy.float64(0).__reduce__()[0]
    torch.serialization.add_safe_globals([
        argparse.Namespace, numpy.dtype, *(type(numpy.dtype(kind)) for kind in 'fdilq'),
        (scalar, 'numpy.core.multiarray.scalar'), (scalar, 'numpy._core.multiarray.scalar')])
    def tensors(found, prefix=''):
        for name, value in found.items():
            if isinstance(value, torch.Tensor):
                yield f'{{prefix}}{{name}}', value.clone().contiguous()
            elif isinstance(value, dict) and 'optim' not in str(name):
                yield from tensors(value, f'{{prefix}}{{name}}.')
    found = {loaded}
    safetensors.torch.save_file(dict(tensors(found)), {target!r})"""


def shapes(path):
    """Return {name: shape} of a file's arrays, from its headers alone.

    Raises:
        InputError: no such file, one of PyTorch, a damaged one, or one whose headers promise more than there is.
    """
    refuse_pytorch(path)
    if not os.path.isfile(path):
        raise InputError(f'There is no file {path}.')
    if path.endswith('.safetensors'):
        return _read_safetensors(path, 'np', lambda file: {name: tuple(file.get_slice(name).get_shape())
                                                           for name in file.keys()})
    return _read_npz(path, lambda file: {entry.filename.removesuffix('.npy'): _shape_in_npz(file, entry)
                                         for entry in file.infolist()}, zipfile.ZipFile)


def read(path, names):
    """Read some arrays of a file, {name: array}, as they are stored; arrays of 16 bits become float32.

    Args:
        path: `.safetensors`, or `.npz` whatever it is called.
        names: of arrays that the file holds, see `shapes`.

    Raises:
        InputError: as `shapes`.
    """
    if path.endswith('.safetensors'):
        import tensorflow as tf
        with tf.device('CPU:0'):  # NumPy by itself has no bfloat16.
            arrays = _read_safetensors(path, 'tf', lambda file: {name: file.get_tensor(name).numpy() for name in names})
    else:
        arrays = _read_npz(path, lambda file: {name: file[name] for name in names},
                           lambda path: np.load(path, allow_pickle=False))
    return {name: _without_16_bits(array) for name, array in arrays.items()}


def refuse_pytorch(path):
    """Raise InputError for a file of PyTorch's own format, with the lines that convert it to `.safetensors`."""
    content = _torch_content(path)
    if content is None and not (TORCH_ENDING.search(path) and not path.endswith('.ckpt')):
        return
    name = os.path.basename(path)
    target = TORCH_ENDING.sub('', name) + '.safetensors'
    loaded = (f"torch.jit.load({name!r}, map_location='cpu').state_dict()" if content == 'TorchScript' else
              f"torch.load({name!r}, map_location='cpu', weights_only=True)")
    raise InputError(f'{path} is a file of PyTorch, which can run any code when it is opened, so it is not read here. Where '
                     f'PyTorch 2.6 or newer is installed, these lines convert it to {target}:\n'
                     + TORCH_LINES.format(loaded=loaded, target=target))


def _torch_content(path):
    """Return 'TorchScript', 'pickle' or None for the content of a file, without unpickling anything."""
    if not os.path.isfile(path):
        return None
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as file:
                names = [name.partition('/')[2] for name in file.namelist()]
        except (OSError, zipfile.BadZipFile):
            return None
        return 'TorchScript' if 'constants.pkl' in names else 'pickle' if 'data.pkl' in names else None
    with open(path, 'rb') as file:
        head = file.read(2)
    return 'pickle' if head[:1] == b'\x80' and head[1:] in (b'\x02', b'\x03', b'\x04', b'\x05') else None


def _read_npz(path, read_from, opened):
    try:
        with zipfile.ZipFile(path) as file:
            declared = sum(entry.file_size for entry in file.infolist())
        if declared > MAX_NPZ_BYTES:
            raise InputError(f'{path} unpacks to {declared} bytes; more than {MAX_NPZ_BYTES} are not read.')
        with opened(path) as file:
            return read_from(file)
    except FileNotFoundError as error:
        raise InputError(f'There is no file {path}.') from error
    # An array by itself, as of an .npy file, is no context manager (TypeError, AttributeError before Python 3.11).
    except (OSError, EOFError, ValueError, TypeError, AttributeError, MemoryError, RuntimeError, zipfile.BadZipFile,
            zlib.error) as error:
        raise InputError(f'{path} is no readable .npz file of plain arrays: {error}.') from error


def _shape_in_npz(file, entry):
    """Return the shape of an array; raises ValueError where its bytes are not those that its header promises."""
    with file.open(entry) as array:
        version = np.lib.format.read_magic(array)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(array)
        if dtype.hasobject or math.prod(shape) * dtype.itemsize != entry.file_size - array.tell():
            raise ValueError(f'{entry.filename} does not hold the numbers {dtype} {shape} that its header promises')
    return shape


def _read_safetensors(path, framework, read_from):
    import safetensors
    try:
        # It compares the header with the size of the file first.
        with safetensors.safe_open(path, framework) as file:
            return read_from(file)
    except FileNotFoundError as error:
        raise InputError(f'There is no file {path}.') from error
    except (OSError, ValueError, TypeError, AttributeError, KeyError, safetensors.SafetensorError) as error:
        raise InputError(f'{path} is no readable .safetensors file: {error}.') from error


def _without_16_bits(array):
    if array.dtype == np.dtype('V2'):  # NumPy's type for JAX's bfloat16.
        return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32) if array.dtype.itemsize == 2 else array
