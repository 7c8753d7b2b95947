"""Files of weights as others publish them, `.npz` and `.safetensors`, by name; nothing in them is ever unpickled."""
import math
import os
import zipfile
import zlib

import numpy as np

from tripletreid.errors import InputError

ENDINGS = ('.npz', '.safetensors')
MAX_NPZ_BYTES = 4 << 30
OF_PYTORCH = ('.pth', '.pt', '.pth.tar', '.bin')


def shapes(path):
    """What a file holds, {name: shape}, by its headers alone.

    Raises:
        InputError: no such file, one of PyTorch, a damaged one, or one whose headers promise more than there is.
    """
    refuse_pytorch(path)
    if path.endswith('.safetensors'):
        return _read_safetensors(path, 'np', lambda file: {name: tuple(file.get_slice(name).get_shape())
                                                           for name in file.keys()})
    return _read_npz(path, lambda file: {entry.filename.removesuffix('.npy'): _shape_in_npz(file, entry)
                                         for entry in file.infolist()}, zipfile.ZipFile)


def read(path, names):
    """Some arrays of a file, {name: array}, as they are stored; those of 16 bits become float32.

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
    """Raises InputError for a file of PyTorch's own format, with the lines that turn it into one that is read here."""
    if path.endswith(OF_PYTORCH):
        name = os.path.basename(path)
        target = name.split('.')[0] + '.safetensors'
        raise InputError(
            f'{path} is a file of PyTorch, which can run any code when it is opened, so it is not read here. Where PyTorch '
            f'is, turn it into {target}, the weights being all of it or one of its entries, as teacher or state_dict:\n'
            f'    import safetensors.torch, torch\n'
            f"    weights = torch.load('{name}', map_location='cpu', weights_only=True)\n"
            f"    safetensors.torch.save_file({{name: value.clone().contiguous() for name, value in weights.items()}}, "
            f"'{target}')")


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
    """The shape of an array; raises ValueError where its bytes are not those that its header promises."""
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
    if array.dtype == np.dtype('V2'):  # What NumPy stores of JAX's bfloat16.
        return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32) if array.dtype.itemsize == 2 else array
