"""ResNet-50 in Caffe's layout, as the paper's own TriNet used it (Theano and Lasagne, arXiv 1703.07737).

Other than in TF-Slim's layout, the stride 2 of a block sits in the *first* unit's 1×1 convolutions, the first max
pooling starts at the first pixel and covers the last one, the channels are BGR, and conv1 has a bias.
"""
import keras

from nets import _resnet

UNIT_COUNTS = (3, 4, 6, 3)
BGR_MEAN = (103.0626238, 115.90288257, 123.15163084)
WEIGHTS = "the paper's own .npz"
STAGES = _resnet.STAGES


def body(input_shape):
    """Map images [B, H, W, 3] of RGB 0..255 -> {'block1'..'block4': feature maps, 'model_output': [B, 2048]}."""
    images = keras.Input(input_shape, name='images')
    net = keras.ops.flip(images, axis=-1) - keras.ops.array(BGR_MEAN)
    net = _resnet.conv_bn(net, 'trinet.conv1', 64, 7, 2, use_bias=True)
    # Caffe's "ceil mode". Zeros are no maximum after a ReLU.
    net = keras.layers.ZeroPadding2D(((0, 1), (0, 1)))(net)
    net = keras.layers.MaxPooling2D(3, 2)(net)
    endpoints = {}
    for block, (depth, units) in enumerate(zip(_resnet.DEPTHS, UNIT_COUNTS), start=1):
        for unit in range(1, units + 1):
            strides = (2 if block > 1 and unit == 1 else 1, 1)
            net = _resnet.bottleneck(net, f'trinet.block{block}.unit_{unit}', depth, strides)
        endpoints[f'block{block}'] = net
    # In float32 under a mixed precision policy as well.
    endpoints['model_output'] = keras.layers.GlobalAveragePooling2D(dtype='float32')(net)
    return keras.Model(images, endpoints, name='trinet')


def array_names():
    """Variable names of the arrays arr_0, arr_1, … in the weights that the paper's authors released.

    Lasagne's order: from the image to the embedding, a unit's projection before its convolutions. Where Lasagne
    stores 1/sqrt(variance + epsilon) the name is …/inv_std, of which there is no variable here.
    """
    convolutions = ['trinet/conv1']
    for block, units in enumerate(UNIT_COUNTS, start=1):
        for unit in range(1, units + 1):
            scope = f'trinet/block{block}/unit_{unit}'
            convolutions += [f'{scope}/shortcut'] if unit == 1 else []
            convolutions += [f'{scope}/conv{i}' for i in (1, 2, 3)]
    names = []
    for scope in [*convolutions, 'fully_connected']:
        names += [f'{scope}/weights'] + ([f'{scope}/biases'] if scope == 'trinet/conv1' else [])
        names += [f'{scope}/BatchNorm/{statistic}' for statistic in ('beta', 'gamma', 'moving_mean', 'inv_std')]
    return names + ['emb/weights', 'emb/biases']
