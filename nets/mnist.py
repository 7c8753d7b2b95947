"""A small net for small grey or colour images (a grey one has three equal channels): two convolutions, two dense."""
import keras

STAGES = ('mnist/conv1/', 'mnist/conv2/', 'mnist/fc3/', 'mnist/fc4/')


def body(input_shape):
    """Map images [B, H, W, 3] of RGB 0..255 -> {'conv2': feature map, 'model_output': [B, 128]}; H and W are fixed."""
    images = keras.Input(input_shape, name='images')
    net = images / 255
    for name, filters in (('conv1', 32), ('conv2', 64)):
        net = keras.layers.Conv2D(filters, 5, padding='same', activation='relu', kernel_initializer='he_normal',
                                  name=f'mnist.{name}')(net)
        net = keras.layers.MaxPooling2D(2, 2, 'same')(net)
    endpoints = {'conv2': net}
    net = keras.layers.Flatten()(net)
    for name, units in (('fc3', 256), ('fc4', 128)):
        net = keras.layers.Dense(units, activation='relu', kernel_initializer='he_normal', name=f'mnist.{name}')(net)
    return keras.Model(images, {**endpoints, 'model_output': net}, name='mnist')
