"""Nets of Keras Applications: https://keras.io/api/applications, with this project's batch norm.

Layers have Keras's names, and so the variables have: `conv1_conv/weights`. The endpoint 'features' of these nets is
the output of Keras's net without its top, where the part with pre-trained weights ends.
"""
import keras

from tripletreid.errors import InputError
from tripletreid.modeling.batch_norm import with_fused_batch_norm

IMAGENET_BGR_MEAN = (103.939, 116.779, 123.68)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
RESNET_STAGES = ('conv1_', 'conv2_', 'conv3_', 'conv4_', 'conv5_')


def as_caffe(images):
    """Convert RGB 0..255 to BGR minus the mean, as for Keras's ResNets."""
    return keras.ops.flip(images, axis=-1) - keras.ops.array(IMAGENET_BGR_MEAN)


def as_torch(images, mean=IMAGENET_MEAN, std=IMAGENET_STD):
    """Scale RGB 0..255 to mean 0 and variance 1, as for Keras's DenseNets."""
    return (images / 255 - keras.ops.array(mean)) / keras.ops.array(std)


# Choices of --pixels: normalisations in training.
PIXELS = {'imagenet': as_torch, 'half': lambda images: images / 127.5 - 1,
          'clip': lambda images: as_torch(images, CLIP_MEAN, CLIP_STD)}


def backbone(application, images):
    """Build a net of Keras Applications without its top.

    Args:
        application: such as `keras.applications.ResNet50`.
        images: [B, H, W, 3], preprocessed for it.

    Returns: keras.Model, from the input of `images` to the last feature map.

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
