"""Import TensorFlow and Keras quickly, configured for this project, and without start-up messages unless the user sets
TF_CPP_MIN_LOG_LEVEL."""
import contextlib
import os
import sys

# Keras and TensorFlow import these for wrappers, plots and tables that this project does not use, which takes a third of the
# import.
UNUSED = ('sklearn', 'matplotlib', 'pandas', 'scipy')


@contextlib.contextmanager
def tensorflow_import():
    """Import TensorFlow inside of this block, for the first time in a process."""
    # The user's settings for other work, in the environment or in ~/.keras/keras.json, are not for these networks.
    os.environ.update(KERAS_BACKEND='tensorflow', TF_USE_LEGACY_KERAS='0')
    hidden = [name for name in UNUSED if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # For Python, these modules are not installed now.
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
    """Silence file descriptor 2, because the libraries write to it before they read any setting."""
    if os.environ.get('TF_CPP_MIN_LOG_LEVEL', '3') != '3':  # Inherited from a silenced process.
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
