#!/usr/bin/env python3
"""Check that a GPU computes the numbers of a CPU, and measure its speed.

    benchmarks/gpu.py            on the first GPU, some ten minutes
    benchmarks/gpu.py --tiny     with or without a GPU, with a tiny net, to test this script

The checks: training in every combination of precision, family of net and loss, with and without XLA; a run that is
resumed with --deterministic ends in the same bits; embeddings are the CPU's to 1e-4 of the largest number.

The table: training steps of ResNet-50 with the head fc1024 at 256x128, batch hard; each line is a separate process.
The device's best speed is measured by a large product of matrices in the same precision.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]

PRECISIONS = {'float32': [], 'tf32': ['--tf32'], 'bfloat16': ['--mixed_precision', 'bfloat16']}
SECONDS_AT_MOST = 1200  # of each process
EMBEDDED_AT_ONCE = 256


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--tiny', action='store_true', help='a tiny net, a few steps, also without a GPU')
    parser.add_argument('--steps', type=int, default=20, help='that are timed (%(default)s)')
    parser.add_argument('--line', nargs=3, metavar=('PRECISION', 'XLA', 'P'), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.line:
        print(json.dumps(measured(args, *args.line)))
        return
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    print(f'{device_name(args)}\n', flush=True)
    with tempfile.TemporaryDirectory() as folder:
        check_matrix(args)
        check_resume_and_embeddings(args, pathlib.Path(folder))
    print('\n| precision | XLA | batch | images/s | step, ms | TFLOP/s | of a matrix product | GPU memory, MB |\n'
          '| --- | --- | --- | --- | --- | --- | --- | --- |')
    lines = [(precision, xla, p) for p in ('18', '32') for precision in PRECISIONS for xla in ('no', 'yes')]
    all_found = []
    for precision, xla, p in lines[:2] if args.tiny else lines:
        found = in_process(args, '--line', precision, xla, p)
        print(f'| {precision} | {xla} | {p}×4 | {found["images"]:.0f} | {1e3 * found["seconds"]:.1f} | '
              f'{found["flops"] / 1e12:.3g} | {found["flops"] / found["peak"]:.0%} | {found["memory"] / 1e6:.0f} |',
              flush=True)
        all_found.append(found)
    print(f'\nembedding, float32: {all_found[0]["embedded"]:.0f} images/s; loading and cropping JPEGs of 128×64 on '
          f'{os.cpu_count()} cores: {all_found[0]["loaded"]:.0f} images/s')


def device_name(args):
    import tensorflow as tf
    gpus = tf.config.list_physical_devices('GPU')
    if not gpus and not args.tiny:
        raise SystemExit('error: TensorFlow sees no GPU here; --tiny runs without one.')
    return tf.config.experimental.get_device_details(gpus[0]).get('device_name', 'GPU') if gpus else 'No GPU: the CPU'


def in_process(args, *flags):
    """Run this script with more flags in a separate process, and return its JSON output."""
    command = [sys.executable, __file__, '--steps', str(args.steps), *flags, *['--tiny'] * args.tiny]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_AT_MOST)
    if done.returncode:
        raise SystemExit(f'error: {" ".join(command)} failed: {done.stderr[-2000:]}')
    return json.loads(done.stdout.splitlines()[-1])


# --- Checks -----------------------------------------------------------------------------------------------------------

def check_matrix(args):
    """Train each combination, with XLA as well; losses before the first update are near the losses of float32."""
    import numpy as np

    import _matrix
    from tripletreid.distribute import strategies
    strategy = strategies.create('none')
    chosen = _matrix.combinations()[:1] if args.tiny else _matrix.combinations()
    for jit_compile in (False, True):
        exact = {}
        for combination in chosen:
            losses, state = _matrix.three_steps(strategy, *combination, jit_compile=jit_compile)
            exact.setdefault(combination[1:], losses[0].mean())
            near = np.isclose(losses[0].mean(), exact[combination[1:]], rtol=0.1)
            if not near or not all(np.isfinite(value).all() for value in state.values()):
                raise SystemExit(f'error: {", ".join(combination)}{", with XLA" * jit_compile}: losses of {losses[0]}')
    print(f'{2 * len(chosen)} combinations of precision, net, loss and XLA train.', flush=True)


def check_resume_and_embeddings(args, folder):
    """Check that a run that lost its end resumes to the same bits, and that its embeddings on GPU and CPU are equal."""
    import h5py
    import numpy as np

    from _runs import make_people
    people, run = make_people(folder), folder / 'run'
    net = ['mnist', 28, 28] if args.tiny else ['resnet_v1_50', 256, 128]
    project('train.py', '--experiment_root', run, '--train_set', people / 'people.csv', '--image_root', people,
            '--model_name', net[0], '--net_input_height', net[1], '--net_input_width', net[2], '--batch_p', 4,
            '--batch_k', 2, '--train_iterations', 6, '--checkpoint_frequency', 3, '--deterministic')
    ends = [run / f'checkpoint-6{ending}' for ending in ('.index', '.data-00000-of-00001')]
    before = [end.read_bytes() for end in ends]
    for end in (*ends, run / 'checkpoint'):
        end.unlink()
    project('train.py', '--experiment_root', run, '--resume')
    if [end.read_bytes() for end in ends] != before:
        raise SystemExit('error: a run that was resumed with --deterministic ended in other bits.')
    print('A run that is resumed with --deterministic ends in the same bits.', flush=True)
    embs = []
    for name, environment in (('gpu', {}), ('cpu', {'CUDA_VISIBLE_DEVICES': '-1'})):
        project('embed.py', '--experiment_root', run, '--dataset', people / 'people.csv', '--filename', f'{name}.h5',
                **environment)
        with h5py.File(run / f'{name}.h5') as file:
            embs.append(file['emb'][()])
    difference = abs(embs[0] - embs[1]).max() / abs(embs[1]).max()
    if not np.isfinite(difference) or difference > 1e-4:
        raise SystemExit(f'error: embeddings differ from the CPU by {difference:.1e} of the largest number.')
    print(f'Embeddings agree with the CPU to {difference:.0e} of the largest number.', flush=True)


def project(script, *flags, **environment):
    done = subprocess.run([sys.executable, str(ROOT / script), *map(str, flags)], capture_output=True, text=True,
                          timeout=SECONDS_AT_MOST, env={**os.environ, **environment})
    if done.returncode:
        raise SystemExit(f'error: {script} failed: {done.stderr[-2000:]}')


# --- Measurements -----------------------------------------------------------------------------------------------------

def measured(args, precision, xla, batch_p):
    """Return a row of the table, a dict."""
    import numpy as np
    import tensorflow as tf

    import train
    from tripletreid.dataset import Dataset
    from tripletreid.distribute import strategies
    from tripletreid.experiment import train_flags
    from tripletreid.input_pipeline import sampling
    from tripletreid.training import train_state
    from tripletreid.training.schedule import Schedule
    net, height, width = ('mnist', 28, 28) if args.tiny else ('resnet_v1_50', 256, 128)
    flags = train_flags.make_parser().parse_args([
        '--experiment_root', 'nowhere', '--train_set', 'none', '--image_root', 'none', '--model_name', net, '--batch_p',
        batch_p, '--net_input_height', str(height), '--net_input_width', str(width), *PRECISIONS[precision],
        *['--jit_compile'] * (xla == 'yes')])
    strategy = strategies.create('none')
    names = np.arange(int(batch_p)).astype(str)
    identities = sampling.Identities(Dataset('none', names, names), int(batch_p))
    state = train_state.create(flags, identities, strategy)
    tf.config.experimental.enable_tensor_float_32_execution(flags.tf32)
    size = int(batch_p) * 4
    images = np.random.default_rng(0).uniform(0, 255, (size, height, width, 3)).astype(np.float32)
    batch = {'images': tf.constant(images), 'pids': tf.repeat(tf.range(int(batch_p)), 4),
             'rows': tf.range(size, dtype=tf.int64)}
    step = train.make_train_step(flags, state, strategy)
    schedule = Schedule(tf.constant(3e-4), tf.constant(0.9))
    seconds = seconds_each(lambda: step(batch, schedule)['loss'], 2 if args.tiny else args.steps)
    gpu = tf.config.list_logical_devices('GPU')
    memory = tf.config.experimental.get_memory_info('GPU:0')['peak'] if gpu else 0
    flops = 3 * size * forward_flops(state.network) / seconds
    found = {'seconds': seconds, 'images': size / seconds, 'memory': memory, 'flops': flops,
             'peak': product_flops(precision, 256 if args.tiny else 8192)}
    if (precision, xla, batch_p) == ('float32', 'no', '18'):
        found |= {'embedded': embedding_speed(state.network, args), 'loaded': loading_speed(flags, args)}
    return found


def seconds_each(work, count):
    """Return the seconds per call of `count` consecutive calls, after two calls that do not count."""
    for _ in range(2):
        work().numpy()
    started = time.perf_counter()
    results = [work() for _ in range(count)]
    results[-1].numpy()
    return (time.perf_counter() - started) / count


def forward_flops(network):
    """Operations of convolutions and dense layers on one image; a multiplication and an addition are two."""
    import keras
    import numpy as np
    total = 0
    for layer in network._flatten_layers():
        if isinstance(layer, (keras.layers.Conv2D, keras.layers.Dense)):
            positions = np.prod(layer.output.shape[1:-1], dtype=np.int64)
            total += 2 * int(positions) * int(np.prod(layer.kernel.shape))
    return total


def product_flops(precision, size):
    """Operations a second of a product of two square matrices."""
    import tensorflow as tf
    tf.config.experimental.enable_tensor_float_32_execution(precision == 'tf32')
    dtype = tf.bfloat16 if precision == 'bfloat16' else tf.float32
    factor = tf.cast(tf.random.stateless_normal([size, size], (1, 2)), dtype)
    product = tf.function(lambda: tf.reduce_max(tf.matmul(factor, factor)), autograph=False)
    return 2 * size ** 3 / seconds_each(product, 10)


def embedding_speed(network, args):
    """Return the images per second of a forward pass in float32."""
    import tensorflow as tf
    tf.config.experimental.enable_tensor_float_32_execution(False)
    images = tf.zeros([8 if args.tiny else EMBEDDED_AT_ONCE, *network.input_shape[1:]])
    embed = tf.function(lambda: tf.reduce_max(network(images, training=False)['emb']), autograph=False)
    return len(images) / seconds_each(embed, 2 if args.tiny else args.steps)


def loading_speed(flags, args):
    """Return the images per second that the input pipeline loads and crops."""
    from speed import write_images
    from tripletreid.dataset import load_dataset
    from tripletreid.input_pipeline import batches, sampling
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        flags.train_set, flags.image_root = str(write_images(folder, 4 * flags.batch_p)), str(folder)
        flags.crop_augment, flags.loading_threads = True, os.cpu_count()
        flags.pre_crop_height, flags.pre_crop_width = (9 * flags.net_input_height // 8, 9 * flags.net_input_width // 8)
        train_set = load_dataset(flags.train_set)
        steps = 3 if args.tiny else 10 * args.steps
        data = iter(batches.batches_of_steps(train_set, sampling.Identities(train_set, flags.batch_p), flags, 0, steps + 1))
        next(data)
        started = time.perf_counter()
        count = sum(len(batch['rows']) for batch in data)
        return count / (time.perf_counter() - started)


if __name__ == '__main__':
    sys.exit(main())
