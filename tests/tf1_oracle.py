"""The original's side of the fidelity tests: TF-Slim in TensorFlow 1's graph mode, run as a process of its own.

    tf1_oracle.py FOLDER

reads FOLDER/images/ (dataset.csv and its files), for each training FOLDER/NAME-training/args.json and
FOLDER/NAME-batches.npz (the images and pids of all steps), and writes, of weights and batch norm statistics at random,

    FOLDER/slim/NET.ckpt        a checkpoint as TF-Slim's nets were released: one file of the old format
    FOLDER/slim/NET-v2.ckpt.*   the same in the format of today
    FOLDER/slim/NET.npz         images of two sizes, and the net's output for them
    FOLDER/NET-FAMILY/          checkpoint-25000 as the original left it, of the heads FAMILY and FAMILY_normalize;
                                for the largest net only with fc1024
    FOLDER/NET-HEAD.npz         embeddings of the dataset, one array for each variant of its images
    FOLDER/NAME-training/       checkpoint-FIRST_STEPS as the original left it, with the optimizer's state
    FOLDER/NAME-training.npz    all losses, and all variables at the end of the training
"""
import csv
import gc
import importlib
import json
import os
import pathlib
import sys
import zlib

os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'

import numpy as np
import tensorflow as tf
from tensorflow.python.framework import ops

# TF-Slim asks for these by the names that they had in older releases.
ops.Tensor = tf.Tensor
LEGACY_LAYERS = 'tf_keras.legacy_tf_layers'
for module in ('', '.base', '.convolutional', '.core', '.normalization', '.pooling'):
    sys.modules[LEGACY_LAYERS + module] = importlib.import_module('tf_keras.src.legacy_tf_layers' + module)

import tf_slim as slim
from tf_slim.nets import resnet_v1

tf1 = tf.compat.v1
tf1.disable_v2_behavior()

NETS = ('resnet_v1_50', 'resnet_v1_101', 'mobilenet_v1_1_224')
EMBEDDING_DIM = 16
CROP, PRE_CROP = (64, 32), (72, 36)
SIZES = {'regular': (256, 128), 'odd': (97, 61)}
FIRST_STEPS = 3
# Optimizing a graph is not worth the time where it runs a few times only.
UNOPTIMIZED = tf1.ConfigProto()
UNOPTIMIZED.graph_options.rewrite_options.disable_meta_optimizer = True


def body(net, images, is_training):
    """The features [B, F] that TF-Slim computes from images [B, H, W, 3] of RGB 0..255."""
    statistics = {'is_training': is_training, 'decay': 0.9, 'scale': True}
    if net == 'mobilenet_v1_1_224':
        return mobilenet(images / 255, {**statistics, 'epsilon': 1e-3})
    with slim.arg_scope(resnet_v1.resnet_arg_scope(batch_norm_decay=0.9, weight_decay=0.0)):
        build = getattr(resnet_v1, net)
        features, _ = build(images - [123.68, 116.78, 103.94], is_training=is_training, global_pool=True)
    return tf.squeeze(features, [1, 2])


def mobilenet(images, statistics):
    widths = [64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024]
    convolution = {'normalizer_fn': slim.batch_norm, 'normalizer_params': statistics, 'activation_fn': tf.nn.relu6}
    with tf1.variable_scope('MobilenetV1'), slim.arg_scope([slim.conv2d, slim.separable_conv2d], **convolution):
        net = slim.conv2d(images, 32, [3, 3], stride=2, scope='Conv2d_0')
        for i, width in enumerate(widths, start=1):
            stride = 2 if i in (2, 4, 6, 12) else 1
            net = slim.separable_conv2d(net, None, [3, 3], 1, stride=stride, scope=f'Conv2d_{i}_depthwise')
            net = slim.conv2d(net, width, [1, 1], scope=f'Conv2d_{i}_pointwise')
    return tf.reduce_mean(net, [1, 2])


def head(name, features, is_training):
    """The embedding [B, D]."""
    if name.startswith('fc1024'):
        statistics = {'is_training': is_training, 'decay': 0.9, 'epsilon': 1e-5, 'scale': True}
        features = slim.fully_connected(features, 1024, normalizer_fn=slim.batch_norm, normalizer_params=statistics)
    emb = slim.fully_connected(features, EMBEDDING_DIM, activation_fn=None, scope='emb')
    return tf.nn.l2_normalize(emb, -1) if name.endswith('normalize') else emb


def randomize(session, variables):
    """Set weights and statistics to random values that keep the scale of the activations in all depths."""
    values = {variable.initializer.inputs[1]: random_value(variable) for variable in variables}
    session.run([variable.initializer for variable in variables], values)


def random_value(variable):
    name, kind = variable.op.name, variable.op.name.split('/')[-1]
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    value = rng.standard_normal(variable.shape.as_list(), np.float32)
    # After the first convolution of a ResNet, which sees pixels of 0..255, everything is about a hundred times larger.
    scale = 100 if '/conv1/BatchNorm' in name and 'block' not in name else 1
    if kind == 'gamma':
        # The branches of residual units stay small, or their sums would grow from unit to unit.
        return np.exp(value / 4) * (0.3 if '/conv3/' in name else 1)
    if kind == 'moving_mean':
        return value / 4 * scale
    if kind == 'moving_variance':
        return np.exp(value / 4) * scale ** 2
    if kind in ('beta', 'biases'):
        return value / 4
    fan_in = np.prod(value.shape[:2] if kind == 'depthwise_weights' else value.shape[:-1])
    return value * np.sqrt(2 / fan_in)


def write_slim_checkpoints(folder, net, session):
    """Write the contents of the released checkpoints: the net, logits, a step, slots of optimizer and moving averages."""
    variables = tf1.global_variables()
    scope, first = variables[0].op.name.split('/')[0], variables[0].op.name
    others = [tf1.get_variable(name, shape) for name, shape in (
        (f'{scope}/logits/weights', (1, 1, 8, 10)), (f'{scope}/logits/biases', (10,)), ('mean_rgb', (3,)),
        (f'{first}/RMSProp', variables[0].shape), (f'{first}/ExponentialMovingAverage', variables[0].shape))]
    others.append(tf1.train.create_global_step())
    session.run(tf1.variables_initializer(others))
    for name, version in ((f'{net}.ckpt', tf1.train.SaverDef.V1), (f'{net}-v2.ckpt', tf1.train.SaverDef.V2)):
        saver = tf1.train.Saver(variables + others, write_version=version)
        saver.save(session, str(folder / name), write_meta_graph=False, write_state=False)


def read_image(path, size):
    """An image as the original loads it, float32 [H, W, 3]."""
    image = tf.io.decode_jpeg(tf.io.read_file(str(path)), channels=3)
    return tf1.image.resize_images(image, size)


def variants(paths):
    """All test-time variants of the images, {name: float32 [N, H, W, 3]}."""
    with tf.Graph().as_default(), tf1.Session(config=UNOPTIMIZED) as session:
        resized = np.stack([session.run(read_image(path, CROP)) for path in paths])
        large = np.stack([session.run(read_image(path, PRE_CROP)) for path in paths])
    found = {}
    for flip, step in (('', 1), ('_flip', -1)):
        name, images = f'original{flip}', large[:, :, ::step]
        y, x = PRE_CROP[0] - CROP[0], PRE_CROP[1] - CROP[1]
        found[f'{name}_resize'] = resized[:, :, ::step]
        found[f'{name}_avgpool'] = images
        found[f'{name}_center'] = images[:, y // 2:y // 2 + CROP[0], x // 2:x // 2 + CROP[1]]
        found[f'{name}_top_left'] = images[:, :-y, :-x]
        found[f'{name}_top_right'] = images[:, :-y, x:]
        found[f'{name}_bottom_left'] = images[:, y:, :-x]
        found[f'{name}_bottom_right'] = images[:, y:, x:]
    return found


def embed(folder, net, images_of_variants):
    """Write slim checkpoints, roots and expected outputs of a net with all heads."""
    rng = np.random.default_rng(0)
    with tf.Graph().as_default(), tf1.Session(config=UNOPTIMIZED) as session:
        images = tf1.placeholder(tf.float32, (None, None, None, 3))
        features = body(net, images, is_training=False)
        body_variables = tf1.model_variables()
        randomize(session, body_variables)
        write_slim_checkpoints(folder / 'slim', net, session)
        outputs = {}
        for name, size in SIZES.items():
            outputs[name] = rng.uniform(0, 255, (2, *size, 3)).astype(np.float32)
            outputs[f'{name}_output'] = session.run(features, {images: outputs[name]})
        np.savez(folder / 'slim' / f'{net}.npz', **outputs)

        features_of = {name: session.run(features, {images: pixels}) for name, pixels in images_of_variants.items()}
        for family in ('direct', 'fc1024') if net != 'resnet_v1_101' else ('fc1024',):
            with tf1.variable_scope(family):
                emb_raw = head(family, features, is_training=False)
            heads = {family: emb_raw, f'{family}_normalize': tf.nn.l2_normalize(emb_raw, -1)}
            head_variables = tf1.model_variables(f'{family}/')
            randomize(session, head_variables)
            # Without the scope that keeps the heads apart here.
            named = {variable.op.name: variable for variable in body_variables}
            named |= {variable.op.name.removeprefix(f'{family}/'): variable for variable in head_variables}
            saver = tf1.train.Saver(named, max_to_keep=0)
            saver.save(session, str(folder / f'{net}-{family}' / 'checkpoint'), global_step=25000)
            for name, emb in heads.items():
                embs = {variant: session.run(emb, {features: values}) for variant, values in features_of.items()}
                np.savez(folder / f'{net}-{name}.npz', **embs)


def batch_hard(embs, pids, margin):
    """One loss an anchor [B], of euclidean distances (section 2 of the paper)."""
    differences = embs[:, None] - embs[None]
    dists = tf.sqrt(tf.reduce_sum(tf.square(differences), -1) + 1e-12)
    same = tf.equal(pids[:, None], pids[None])
    others = tf.cast(same, tf.float32) - tf.eye(tf.shape(pids)[0])
    furthest_positive = tf.reduce_max(dists * others, 1)
    closest_negative = tf.reduce_min(tf.where(same, 1e9 * tf.ones_like(dists), dists), 1)
    difference = furthest_positive - closest_negative
    return tf.nn.softplus(difference) if margin == 'soft' else tf.maximum(difference + margin, 0)


def train(root, args, images_of_steps, pids_of_steps):
    """Train a net with a head from weights at random; the root gets the checkpoint after FIRST_STEPS steps."""
    with tf.Graph().as_default(), tf1.Session() as session:
        images, pids = tf1.placeholder(tf.float32, images_of_steps.shape[1:]), tf1.placeholder(tf.int32, [None])
        embs = head(args['head_name'], body(args['model_name'], images, is_training=True), is_training=True)
        losses = batch_hard(embs, pids, args['margin'])
        step = tf1.Variable(0, name='global_step', trainable=False)
        start, iterations = args['decay_start_iteration'], args['train_iterations']
        learning_rate = tf1.train.exponential_decay(
            args['learning_rate'], tf.maximum(0, step - start), iterations - start, 0.001)
        with tf.control_dependencies(tf1.get_collection(tf1.GraphKeys.UPDATE_OPS)):
            train_op = tf1.train.AdamOptimizer(learning_rate).minimize(tf.reduce_mean(losses), global_step=step)
        saver = tf1.train.Saver(max_to_keep=0)
        session.run(tf1.variables_initializer(set(tf1.global_variables()) - set(tf1.model_variables())))
        randomize(session, tf1.model_variables())

        all_losses = []
        for t, batch in enumerate(zip(images_of_steps, pids_of_steps)):
            if t == FIRST_STEPS:
                saver.save(session, str(root / 'checkpoint'), global_step=step)
            all_losses.append(session.run([losses, train_op], dict(zip((images, pids), batch)))[0])
        variables = {variable.op.name: variable for variable in tf1.global_variables()}
        np.savez(f'{root}.npz', losses=all_losses, **session.run(variables))


def main(folder):
    (folder / 'slim').mkdir()
    with open(folder / 'images' / 'dataset.csv') as file:
        paths = [folder / 'images' / fid for _, fid in csv.reader(file)]
    images_of_variants = variants(paths)
    for net in NETS:
        embed(folder, net, images_of_variants)
    for root in folder.glob('*-training'):
        batches = np.load(folder / f'{root.name.removesuffix("-training")}-batches.npz')
        train(root, json.loads((root / 'args.json').read_text()), batches['images'], batches['pids'])


if __name__ == '__main__':
    gc.disable()  # Graphs are a million objects, and none of them is garbage.
    main(pathlib.Path(sys.argv[1]))
