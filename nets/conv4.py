"""Four convolutions, the net of Matching Networks and its successors (Vinyals et al., arXiv 1606.04080, section 4.1)."""
import keras

from tripletreid.modeling.batch_norm import BatchNorm

STAGES = ('conv4/conv1/', 'conv4/conv2/', 'conv4/conv3/', 'conv4/conv4/')


def body(input_shape):
    """Map images [B, H, W, 3] of RGB 0..255 -> {'conv4': feature map, 'model_output': conv4 flattened}, for fixed H, W."""
    images = keras.Input(input_shape, name='images')
    net = images / 255
    for name in ('conv1', 'conv2', 'conv3', 'conv4'):
        net = keras.layers.Conv2D(64, 3, padding='same', use_bias=False, kernel_initializer='he_normal',
                                  name=f'conv4.{name}')(net)
        net = keras.layers.ReLU()(BatchNorm(name=f'conv4.{name}.BatchNorm')(net))
        net = keras.layers.MaxPooling2D(2, 2, 'same')(net)
    return keras.Model(images, {'conv4': net, 'model_output': keras.layers.Flatten()(net)}, name='conv4')
