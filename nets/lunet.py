"""LuNet, the net that the paper trains from scratch (arXiv 1703.07737), made for images of 128×64."""
import keras

from tripletreid.errors import InputError
from tripletreid.modeling.batch_norm import BatchNorm

# (channels in, channels inside, channels out) of the residual blocks; a max pooling follows each group.
GROUPS = (
    ((128, 32, 128),),
    ((128, 32, 128), (128, 32, 128), (128, 64, 256)),
    ((256, 64, 256), (256, 64, 256)),
    ((256, 64, 256), (256, 64, 256), (256, 128, 512)),
    ((512, 128, 512), (512, 128, 512)),
)
STAGES = ('lunet/conv/', *(f'lunet/block{block}/' for block in range(1, 2 + len(GROUPS))))


def body(input_shape):
    """Build the paper's own net.

    Args:
        input_shape: (H, W, 3); its last feature map is flattened, so that H and W are fixed.

    Returns: keras.Model, images [B, H, W, 3] of RGB 0..255 -> {'block6': [B, H/32, W/32, 128] (rounded up),
        'model_output': the same, flattened}.

    Raises:
        InputError: no fixed size.
    """
    if None in input_shape:
        raise InputError('lunet flattens its last feature map, so that it takes images of the size only that it was '
                         'trained with: --crop_augment avgpool is not for it.')
    images = keras.Input(input_shape, name='images')
    net = _conv(images / 255, 'lunet.conv', 128, 7)
    for group, blocks in enumerate(GROUPS, start=1):
        for unit, channels in enumerate(blocks, start=1):
            net = _block(net, f'lunet.block{group}.unit_{unit}', *channels)
        net = keras.layers.MaxPooling2D(3, 2, 'same')(net)
    net = _conv(_bn_relu(net, 'lunet.block6.conv1'), 'lunet.block6.conv1', 512, 3)
    net = _conv(_bn_relu(net, 'lunet.block6.conv2'), 'lunet.block6.conv2', 128, 3)
    return keras.Model(images, {'block6': net, 'model_output': keras.layers.Flatten()(net)}, name='lunet')


def _block(net, name, channels_in, channels_inside, channels_out):
    """Apply a bottleneck with activations before its convolutions (*Identity Mappings*, arXiv 1603.05027)."""
    shortcut = net
    net = _bn_relu(net, f'{name}.conv1')
    if channels_in != channels_out:
        shortcut = _conv(net, f'{name}.shortcut', channels_out, 1)
    net = _conv(net, f'{name}.conv1', channels_inside, 1)
    net = _conv(_bn_relu(net, f'{name}.conv2'), f'{name}.conv2', channels_inside, 3)
    net = _conv(_bn_relu(net, f'{name}.conv3'), f'{name}.conv3', channels_out, 1)
    return keras.layers.Add()([shortcut, net])


def _bn_relu(net, name):
    """Apply batch norm and leaky ReLU before the convolution `name`."""
    return keras.layers.LeakyReLU(0.3)(BatchNorm(name=f'{name}.BatchNorm')(net))


def _conv(net, name, filters, kernel_size):
    return keras.layers.Conv2D(filters, kernel_size, padding='same', use_bias=False,
                               kernel_initializer='he_normal', name=name)(net)
