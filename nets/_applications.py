"""Nets of Keras Applications: https://keras.io/api/applications, with this project's batch norm.

Layers have Keras's names, and so the variables have: `conv1_conv/weights`. The endpoint 'features' of these nets is
what Keras has as the output of such a net without its top: there ends the part that has pre-trained weights.
"""
import keras

from tripletreid.errors import InputError
from tripletreid.modeling.batch_norm import with_fused_batch_norm

IMAGENET_BGR_MEAN = (103.939, 116.779, 123.68)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RESNET_STAGES = ('conv1_', 'conv2_', 'conv3_', 'conv4_', 'conv5_')


def as_caffe(images):
    """RGB 0..255 to BGR without the mean, as Keras's ResNets have it."""
    return keras.ops.flip(images, axis=-1) - keras.ops.array(IMAGENET_BGR_MEAN)


def as_torch(images):
    """RGB 0..255 to mean 0 and variance 1, as Keras's DenseNets have it."""
    return (images / 255 - keras.ops.array(IMAGENET_MEAN)) / keras.ops.array(IMAGENET_STD)


# Choices of --pixels: what others train with.
PIXELS = {'imagenet': as_torch, 'half': lambda images: images / 127.5 - 1}


def backbone(application, images):
    """A net of Keras Applications without its top.

    Args:
        application: such as `keras.applications.ResNet50`.
        images: [B, H, W, 3], preprocessed for it.

    Returns: keras.Model, from what `images` was made of to the last feature map.

    Raises:
        InputError: images smaller than the application takes.
    """
    input_shape = images.shape[1:]
    try:
        net = application(include_top=False, weights=None, input_tensor=images, input_shape=input_shape)
    except ValueError as error:
        raise InputError(f'{application.__name__} takes no images of {input_shape[0]}x{input_shape[1]}: '
                         f'{" ".join(str(error).split())}') from error
    has_batch_norm = any(isinstance(layer, keras.layers.BatchNormalization) for layer in net.layers)
    return with_fused_batch_norm(net) if has_batch_norm else net
