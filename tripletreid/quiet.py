"""Importing TensorFlow and Keras quickly, as they are needed here, and without start-up noise unless the user sets
TF_CPP_MIN_LOG_LEVEL."""
import contextlib
import os
import sys

# Keras imports these, where they are installed, for wrappers and plots that nothing here uses: a third of the import.
UNUSED = ('sklearn', 'matplotlib')


@contextlib.contextmanager
def tensorflow_import():
    """Import TensorFlow inside of this block, the first time in a process."""
    # What the user has chosen for other work, in the environment or in ~/.keras/keras.json, is not for these networks.
    os.environ.update(KERAS_BACKEND='tensorflow', TF_USE_LEGACY_KERAS='0')
    hidden = [name for name in UNUSED if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # Python's way to say: not installed.
    try:
        with _silence():
            yield
            import keras
    finally:
        for name in hidden:
            del sys.modules[name]
    keras.config.set_image_data_format('channels_last')
    keras.config.set_floatx('float32')
    keras.config.set_epsilon(1e-7)


@contextlib.contextmanager
def _silence():
    """The libraries write to file descriptor 2 before they look at any setting, so that is where they are silenced."""
    if os.environ.get('TF_CPP_MIN_LOG_LEVEL', '3') != '3':  # That of a process that was started by a silenced one.
        yield
        return
    os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, 'wb') as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
