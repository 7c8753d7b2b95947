"""One contender of speed.py, in a process of its own: does its work once, then again for each line on standard input.

    _contender.py NAME BATCH_SIZE

Each time it writes how many seconds that took. `NAME` is one of CONTENDERS: functions that get the batch size and return
the function that does the work once.
"""
import atexit
import importlib
import pathlib
import shutil
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]

import numpy as np

HEIGHT, WIDTH, EMBEDDING_DIM = 256, 128, 128


def batch(batch_size):
    images = np.random.default_rng(0).uniform(0, 255, (batch_size, HEIGHT, WIDTH, 3)).astype(np.float32)
    return images, np.repeat(np.arange(batch_size // 4), 4).astype(np.int32)


def network(precision='none', name='resnet_v1_50'):
    from tripletreid import quiet
    with quiet.tensorflow_import():
        from tripletreid.modeling import model
    model.set_precision(precision)
    return model.build(name, 'fc1024', EMBEDDING_DIM, (HEIGHT, WIDTH, 3))


def training(batch_size, net=None, recomputes=False):
    """Return the training step of train.py: batch hard, soft margin, Adam."""
    net = net or network()
    import tensorflow as tf

    from loss import cdist
    from losses import batch_hard
    from tripletreid.modeling import model, recompute
    from tripletreid.training import optimizer
    forward = recompute.recomputing(net, ['emb']) if recomputes else net
    images, pids = (tf.constant(array) for array in batch(batch_size))
    trainable = {name: each for name, each in model.named_variables(net).items() if each.trainable}
    adam = optimizer.Adam(trainable)

    @tf.function(autograph=False)
    def step():
        with tf.GradientTape() as tape:
            emb = forward(images, training=True)['emb']
            loss = tf.reduce_mean(batch_hard.loss(cdist(emb, emb, 'euclidean'), pids, pids, 'soft'))
        gradients = tape.gradient(loss, [variable.value for variable in trainable.values()])
        adam.apply(dict(zip(trainable, gradients)), tf.constant(3e-4))
        return loss

    return lambda: step().numpy()


def training_keras_bn(batch_size):
    """Return the same step with Keras's batch norm."""
    from tripletreid import quiet
    with quiet.tensorflow_import():
        import keras
    from tripletreid.modeling import batch_norm
    batch_norm.BatchNorm = lambda epsilon=1e-5, momentum=0.9, **kwargs: keras.layers.BatchNormalization(
        epsilon=epsilon, momentum=momentum, **kwargs)
    return training(batch_size)


def training_keras_net_keras_bn(batch_size):
    """Return the same network as Keras builds it."""
    from tripletreid.modeling.batch_norm import with_keras_batch_norm
    return training(batch_size, net=with_keras_batch_norm(network(name='resnet50')))


def training_tf1(batch_size):
    """TF-Slim's net in TensorFlow 1's graph mode, as the original trained it."""
    import tf1_oracle
    from tf1_oracle import tf1
    images, pids = batch(batch_size)
    images_in, pids_in = tf1.placeholder(tf1.float32, images.shape), tf1.placeholder(tf1.int32, pids.shape)
    features = tf1_oracle.body('resnet_v1_50', images_in, is_training=True)
    emb = tf1_oracle.head('fc1024', features, is_training=True)
    emb = emb[0] if isinstance(emb, tuple) else emb
    loss = tf1.reduce_mean(tf1_oracle.batch_hard(emb, pids_in, 'soft'))
    with tf1.control_dependencies(tf1.get_collection(tf1.GraphKeys.UPDATE_OPS)):
        train = tf1.train.AdamOptimizer(3e-4).minimize(loss)
    session = tf1.Session()
    session.run(tf1.global_variables_initializer())
    return lambda: session.run([loss, train], {images_in: images, pids_in: pids})


def embedding(batch_size, net=None):
    net = net or network()
    import tensorflow as tf
    images = tf.constant(batch(batch_size)[0])
    embed = tf.function(lambda: net(images, training=False)['emb'], autograph=False)
    return lambda: embed().numpy()


def embedding_of_files(batch_size):
    """Embed as embed.py does, from JPEG files of Market-1501's size, while the next ones are loaded."""
    net = network()
    from PIL import Image

    from tripletreid.modeling import inference
    folder = pathlib.Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    paths = [str(folder / f'{number}.jpg') for number in range(batch_size)]
    for path, image in zip(paths, batch(batch_size)[0].astype(np.uint8)):
        Image.fromarray(image).resize((64, 128)).save(path)
    embedded = inference.embed_files(net, 1000 * paths, batch_size=batch_size)
    return lambda: next(embedded)


def embedding_folded(batch_size):
    """Batch norm folded into the convolutions: variables become constants, and TensorFlow's grappler folds them."""
    net = network()
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2
    images = tf.constant(batch(batch_size)[0])
    embed = tf.function(lambda each: net(each, training=False)['emb'], autograph=False)
    folded = convert_variables_to_constants_v2(embed.get_concrete_function(images))
    return lambda: folded(images)[0].numpy()


def in_torch(module, work):
    """Return a contender of a module that has PyTorch, and no TensorFlow."""
    def contender(batch_size):
        arrays = batch(batch_size)[:2 if work == 'training' else 1]
        return getattr(importlib.import_module(module), work)(*arrays, EMBEDDING_DIM)
    return contender


CONTENDERS = {
    'training': training,
    'training_bfloat16': lambda size: training(size, network('bfloat16')),
    'training_recompute': lambda size: training(size, recomputes=True),
    'training_keras_bn': training_keras_bn,
    'training_keras_net': lambda size: training(size, network(name='resnet50')),
    'training_keras_net_keras_bn': training_keras_net_keras_bn,
    'training_tf1': training_tf1,
    'training_vit': lambda size: training(size, network(name='vit_b16')),
    'training_vit_bfloat16': lambda size: training(size, network('bfloat16', 'vit_b16')),
    'embedding': embedding,
    'embedding_bfloat16': lambda size: embedding(size, network('bfloat16')),
    'embedding_of_files': embedding_of_files,
    'embedding_folded': embedding_folded,
    'embedding_vit': lambda size: embedding(size, network(name='vit_b16')),
    'embedding_vit_bfloat16': lambda size: embedding(size, network('bfloat16', 'vit_b16')),
    **{f'{work}{net}_torch': in_torch(module, work) for work in ('training', 'embedding')
       for net, module in (('', '_torch_resnet'), ('_vit', '_torch_vit'))}}

if __name__ == '__main__':
    name, batch_size = sys.argv[1], int(sys.argv[2])
    work = CONTENDERS[name](batch_size)
    while True:
        started = time.perf_counter()
        work()
        print(time.perf_counter() - started, flush=True)
        if not sys.stdin.readline():
            break
