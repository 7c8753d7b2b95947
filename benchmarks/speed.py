#!/usr/bin/env python3
"""Print a table of times and memory, each as a ratio to a reference that is measured alternately with it.

    benchmarks/speed.py
    benchmarks/speed.py --torch_python PYTHON_WITH_PYTORCH step embedding

A ratio below 1 means faster (or smaller) than the reference. Times are the best of several that alternate with the
reference's times, so that other load on the machine disturbs both equally.
"""
import argparse
import functools
import os
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
CONTENDER = str(ROOT / 'benchmarks' / '_contender.py')


def main():
    measurements = {'step': measure_step, 'embedding': measure_embedding, 'vit': measure_vit, 'start': measure_start,
                    'input': measure_input, 'augmentation': measure_augmentation, 'draw': measure_draw,
                    'losses': measure_losses, 'loop': measure_loop, 'memory': measure_memory,
                    'recompute': measure_recompute}
    parser = argparse.ArgumentParser(description='Measure the speed of the pipeline against references.')
    parser.add_argument('parts', nargs='*', metavar='PART', help=f'measurements to run: {", ".join(measurements)} (all)')
    parser.add_argument('--batch_size', type=int, default=16, help='images in a step of ResNet-50 or ViT-B/16 (%(default)s)')
    parser.add_argument('--repeats', type=int, default=5, help='of each measurement (%(default)s)')
    parser.add_argument('--torch_python', metavar='PYTHON', help='a Python that has PyTorch, for comparison')
    args = parser.parse_args()
    unknown = set(args.parts) - set(measurements)
    if unknown:
        parser.error(f'no such part: {", ".join(sorted(unknown))}')
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    print('| measured | ours | reference | ratio |\n| --- | --- | --- | --- |', flush=True)
    for part in args.parts or measurements:
        measurements[part](args)


def print_row(measured, ours, reference_name, reference, unit='s'):
    print(f'| {measured} | {ours:.3g} {unit} | {reference_name}: {reference:.3g} {unit} | {ours / reference:.2f} |',
          flush=True)


class Contender:
    """A process of `_contender.py`. `first`: seconds from its start to the end of its first work."""

    def __init__(self, name, args, python=sys.executable):
        started = time.perf_counter()
        self._process = subprocess.Popen([python, CONTENDER, name, str(args.batch_size)], text=True, stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self._answer()
        self.first = time.perf_counter() - started

    def again(self):
        """Seconds of its work, once more."""
        self._process.stdin.write('\n')
        self._process.stdin.flush()
        return self._answer()

    def _answer(self):
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f'error: {" ".join(self._process.args)} failed; run it by itself to see why.')
        return float(line)

    def end(self):
        self._process.communicate('')


def best(timings, rounds):
    """Call functions that return seconds in turn, several rounds; return the least seconds of each, {name: seconds}.

    The first round, in which functions are traced, does not count.
    """
    times = [{name: timing() for name, timing in timings.items()} for _ in range(rounds + 1)]
    return {name: min(each[name] for each in times[1:]) for name in timings}


def seconds_of(work, calls):
    """Return the mean seconds of a call of a function."""
    started = time.perf_counter()
    for _ in range(calls):
        work()
    return (time.perf_counter() - started) / calls


def seconds_per_image(batches):
    """Return the seconds per image of eight batches of 128 from a `tf.data.Dataset`, after four."""
    # A new iterator each time: an old one would work ahead while others are measured.
    iterator = iter(batches)
    for _ in range(4):
        next(iterator)
    return seconds_of(iterator.__next__, 8) / 128


def best_times(names, args, with_torch=True):
    """Return the best time of each contender, a dict, all of them taking turns."""
    contenders = {name: Contender(name, args) for name in names}
    if args.torch_python and with_torch:
        name = names[0] + '_torch'
        contenders[name] = Contender(name, args, args.torch_python)
    times = best({name: contender.again for name, contender in contenders.items()}, args.repeats)
    for contender in contenders.values():
        contender.end()
    return times


def measure_step(args):
    times = best_times(['training', 'training_bfloat16', 'training_tf1', 'training_keras_bn'], args)
    measured = f'training step, ResNet-50, {args.batch_size} images'
    for name in sorted(set(times) - {'training', 'training_bfloat16'}):
        print_row(measured, times['training'], name.removeprefix('training_'), times[name])
    print_row(f'{measured}, bfloat16', times['training_bfloat16'], 'float32', times['training'])
    times = best_times(['training_keras_net', 'training_keras_net_keras_bn'], args, with_torch=False)
    print_row(f"training step, Keras's ResNet-50, {args.batch_size} images", times['training_keras_net'],
              "Keras's batch norm", times['training_keras_net_keras_bn'])


def measure_embedding(args):
    times = best_times(['embedding', 'embedding_bfloat16', 'embedding_folded', 'embedding_of_files'], args)
    measured = f'forward pass, ResNet-50, {args.batch_size} images'
    if 'embedding_torch' in times:
        print_row(measured, times['embedding'], 'torch', times['embedding_torch'])
    print_row(f'embedding of {args.batch_size} files', times['embedding_of_files'], 'forward pass', times['embedding'])
    print_row(f'{measured}, bfloat16', times['embedding_bfloat16'], 'float32', times['embedding'])
    print_row(f'{measured}, batch norm folded', times['embedding_folded'], 'not folded', times['embedding'])


def measure_vit(args):
    for name, measured in (('training_vit', 'training step'), ('embedding_vit', 'forward pass')):
        times = best_times([name, f'{name}_bfloat16'], args)
        measured = f'{measured}, ViT-B/16, {args.batch_size} images'
        if f'{name}_torch' in times:
            print_row(measured, times[name], 'torch', times[f'{name}_torch'])
        print_row(f'{measured}, bfloat16', times[f'{name}_bfloat16'], 'float32', times[name])


def write_images(folder, count, size=(128, 64)):
    """Write JPEG files as large as Market-1501's, four per identity, and their csv file; return its path."""
    import numpy as np
    from PIL import Image
    random = np.random.default_rng(0)
    lines = []
    for number in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (16, 8, 3), np.uint8)).resize(size[::-1], Image.BILINEAR)
        noisy = np.clip(np.asarray(coarse) + random.normal(0, 8, (*size, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f'{number}.jpg', quality=90)
        lines.append(f'{number // 4},{number}.jpg\n')
    (folder / 'images.csv').write_text(''.join(lines))
    return folder / 'images.csv'


def train_arguments(root, csv, *more):
    return [*map(str, ('--experiment_root', root, '--train_set', csv, '--image_root', csv.parent)), *map(str, more)]


def measure_start(args):
    """From the start of train.py to the log line of its first step, data and checkpoint included; the others: a step."""
    ours, others = [], {'training_tf1': [], 'training_keras_bn': []}
    with tempfile.TemporaryDirectory() as folder:
        csv = write_images(pathlib.Path(folder), 64)
        for repeat in range(max(1, args.repeats // 2)):
            root = pathlib.Path(folder) / f'run{repeat}'
            started = time.perf_counter()
            process = subprocess.Popen(
                [sys.executable, str(ROOT / 'train.py'), *train_arguments(root, csv, '--batch_p', args.batch_size // 4)],
                text=True, stderr=subprocess.PIPE)
            for line in process.stderr:
                if 'iter:' in line:
                    break
            ours.append(time.perf_counter() - started)
            process.kill()
            process.communicate()
            for name, times in others.items():
                contender = Contender(name, args)
                times.append(contender.first)
                contender.end()
    for name, times in others.items():
        print_row('start to first finished step, ResNet-50', min(ours), f'{name[9:]}, the step alone', min(times))


def measure_input(args):
    import tensorflow as tf

    from tripletreid import dataset
    from tripletreid.experiment import train_flags
    from tripletreid.input_pipeline import batches, images, sampling
    with tempfile.TemporaryDirectory() as folder:
        csv = write_images(pathlib.Path(folder), 512)
        flags = train_flags.make_parser().parse_args(train_arguments('nowhere', csv, '--crop_augment'))
        cached = train_flags.make_parser().parse_args(train_arguments('nowhere', csv, '--crop_augment', '--cache', 'memory'))
        train_set = dataset.load_dataset(csv)
        identities = sampling.Identities(train_set, flags.batch_p)

        def bare(path):
            image = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
            return tf.image.random_crop(images.resize(image, (flags.pre_crop_height, flags.pre_crop_width)), (256, 128, 3))

        paths = tf.data.Dataset.from_tensor_slices(images.paths(train_set, folder)).shuffle(512).repeat()
        pipelines = {'bare': paths.map(bare, flags.loading_threads).batch(128).prefetch(2),
                     'ours': batches.batches_of_steps(train_set, identities, flags, 0, 10 ** 6),
                     'cached': batches.batches_of_steps(train_set, identities, cached, 0, 10 ** 6)}
        times = best({name: functools.partial(seconds_per_image, each) for name, each in pipelines.items()}, args.repeats)
    times = {name: 1e6 * seconds for name, seconds in times.items()}
    print_row('input pipeline, an image', times['ours'], 'bare decode, resize, crop', times['bare'], 'µs')
    print_row('input pipeline with --cache memory', times['cached'], 'without', times['ours'], 'µs')


AUGMENTATIONS = (['--flip_augment'], ['--crop_augment'], ['--pad_crop', '10'], ['--random_erasing', '1'],
                 ['--rotate', '10', '--shear', '5', '--scale', '0.1'], ['--color_jitter', '0.2,0.15,0.1,0'],
                 ['--color_jitter', '0.2,0.15,0.1,0.05'], ['--random_gray', '1'], ['--blur', '2'], ['--auto_augment', '0.1'],
                 ['--auto_augment', '1'])


def measure_augmentation(args):
    """Measure the cost of each augmentation per decoded image, with the threads of the input pipeline."""
    from tripletreid import dataset
    from tripletreid.experiment import train_flags
    from tripletreid.input_pipeline import batches, sampling
    with tempfile.TemporaryDirectory() as folder:
        csv = write_images(pathlib.Path(folder), 128)
        train_set = dataset.load_dataset(csv)
        names = {'none': [], **{' '.join(flags): flags for flags in AUGMENTATIONS}}
        timings = {}
        for name, flags in names.items():
            parsed = train_flags.make_parser().parse_args(train_arguments('nowhere', csv, '--cache', 'memory', *flags))
            identities = sampling.Identities(train_set, parsed.batch_p)
            pipeline = batches.batches_of_steps(train_set, identities, parsed, 0, 10 ** 6)
            timings[name] = functools.partial(seconds_per_image, pipeline)
        times = best(timings, args.repeats)
    for name in list(names)[1:]:
        print_row(f'{name}, 256x128, {1 / times[name]:.0f} images/s', 1e6 * times[name], 'none', 1e6 * times['none'], 'µs')


def best_milliseconds(works, rounds, calls):
    """Measure a call of each function, {name: milliseconds}: the best of several rounds that alternate."""
    timings = {name: functools.partial(seconds_of, work, calls) for name, work in works.items()}
    return {name: 1e3 * seconds for name, seconds in best(timings, rounds).items()}


def measure_draw(args):
    """Measure the draw of one batch from datasets of growing size; four images an identity."""
    import numpy as np

    from samplers.random import Sampler
    from tripletreid import dataset
    from tripletreid.input_pipeline import sampling
    draws = {}
    for size in (10 ** 3, 10 ** 5, 10 ** 7):
        pids = np.repeat(np.arange(size // 4), 4)
        identities = sampling.Identities(dataset.Dataset('simulated', pids, pids), 32)
        flags = argparse.Namespace(seed=0, batch_p=32)
        steps = Sampler(flags, identities).steps(0, 10 ** 9)
        draws[size] = iter(sampling.batch_rows(identities, 0, steps, 4)).__next__
    # The best of several: the first draw of an epoch permutes all identities.
    times = best_milliseconds(draws, 4 * args.repeats, 20)
    for size in (10 ** 5, 10 ** 7):
        print_row(f'batch draw, {size:.0e} images', times[size], '1e+03 images', times[1000], 'ms')


def measure_losses(args):
    """Distances, loss and gradient, at the batch sizes of the paper (18 x 4) and of MARS's (32 x 4)."""
    import numpy as np
    import tensorflow as tf

    from loss import cdist
    from tripletreid import plugins
    for batch_p in (18, 32):
        emb = tf.constant(np.random.default_rng(0).normal(size=(batch_p * 4, 128)).astype(np.float32))
        pids = tf.constant(np.repeat(np.arange(batch_p), 4).astype(np.int32))
        steps = {}
        for name in set(plugins.choices('losses')) - {'none'}:
            loss = plugins.load('losses', name).loss
            margin = 'soft' if name == 'supervised_contrastive' else 0.2

            @tf.function(autograph=False)
            def step(loss=loss, margin=margin):
                with tf.GradientTape() as tape:
                    tape.watch(emb)
                    dists = cdist(emb, emb, 'euclidean')
                    mean = tf.reduce_mean(loss(dists, pids, pids, margin, seed=tf.constant([0, 0])))
                return tape.gradient(mean, emb)

            steps[name] = lambda step=step: step().numpy()
        times = best_milliseconds(steps, 4 * args.repeats, 10)
        for name in sorted(set(times) - {'batch_hard'}):
            print_row(f'{name}, {batch_p} x 4', times[name], 'batch_hard', times['batch_hard'], 'ms')


class Device:
    """A stand-in for the training step on a GPU, which computes consecutive steps in a given number of seconds each.

    idle: seconds in which it had nothing to compute, since its first step.
    """

    def __init__(self, seconds, result):
        import types
        self.seconds, self.result, self.idle, self.step = seconds, result, 0.0, 0
        self.ready = None  # When it has computed all that it was handed.
        self.loss_scale = types.SimpleNamespace(skipped=lambda *_: False)

    def train_step(self, *_):
        now = time.perf_counter()
        if self.ready is not None:
            self.idle += max(0.0, now - self.ready)
        self.ready = max(now, self.ready or now) + self.seconds
        self.step += 1
        return {name: Computed(value, self.ready) for name, value in self.result.items()}

    def values(self):
        import tensorflow as tf
        return {'global_step': tf.constant(self.step)}


class Computed:
    """A number that is there from a moment on."""

    def __init__(self, value, moment):
        self.value, self.moment = value, moment

    def numpy(self):
        time.sleep(max(0.0, self.moment - time.perf_counter()))
        return self.value


def measure_loop(args):
    """Measure the wait for Python of a device that computes a step of 32 x 4 images in 100 ms."""
    import logging
    import types

    import numpy as np
    import tensorflow as tf

    from tripletreid.experiment import train_flags
    from tripletreid.training.loop import Loop
    from tripletreid.training.reporter import Reporter
    random = np.random.default_rng(0)
    rows = np.arange(128)
    result = {'losses': random.random(128, np.float32), 'dists': random.random((128, 128), np.float32), 'rows': rows,
              'emb': random.random((128, 128), np.float32), 'emb_raw': random.random((128, 128), np.float32)}
    result |= {name: np.float32(1) for name in ('loss', 'batch_top1', 'batch_prec_at_k', 'active_count', 'gradient_norm',
                                                'loss_scale')}
    log = logging.getLogger('benchmark')
    log.propagate = False
    log.addHandler(logging.NullHandler())
    steps, seconds = 50, 0.1
    for histograms, frequency in (('with histograms', 1), ('without', steps + 1)):
        with tempfile.TemporaryDirectory() as folder:
            flags = train_flags.make_parser().parse_args([
                '--experiment_root', folder, '--train_iterations', str(steps), '--checkpoint_frequency', '0',
                '--summary_frequency', str(frequency)])
            reporter = Reporter(flags, log, 0, rows.astype(str).astype(object), (rows // 4).astype(np.int32))
            device = Device(seconds, result)
            Loop(flags, device, tf.distribute.get_strategy(), reporter, None, types.SimpleNamespace(requested=None),
                 rows.astype(str), log).run(device.train_step, iter(dict, None), None)
            reporter.close()
        print_row(f'a device waits between two steps, {histograms}', 1e3 * device.idle / steps, 'a step', 1e3 * seconds,
                  'ms')


def measure_memory(args):
    """Peak memory of embed.py, by the number of images."""
    from tests._memory import peak_memory
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        csv = write_images(folder, 64, (32, 32))
        root, lines = folder / 'run', csv.read_text().splitlines(keepends=True)
        small = ['--model_name', 'mnist', '--head_name', 'direct', '--net_input_height', 32, '--net_input_width', 32,
                 '--batch_p', 4, '--train_iterations', 1]
        subprocess.run([sys.executable, str(ROOT / 'train.py'), *train_arguments(root, csv, *small)], check=True,
                       stderr=subprocess.DEVNULL)
        peaks = []
        for count in (2_000, 20_000):
            (folder / f'{count}.csv').write_text(''.join((lines * (count // len(lines) + 1))[:count]))
            peaks.append(peak_memory(ROOT / 'embed.py', '--experiment_root', root, '--dataset',
                                     folder / f'{count}.csv', '--quiet'))
    print_row('peak memory of embedding 20,000 images', peaks[1], '2,000 images', peaks[0], 'MiB')


def measure_recompute(args):
    """Time and peak memory of a training step with --recompute."""
    from tests._memory import peak_memory
    names = ['training_recompute', 'training']
    measured = f'training step with --recompute, ResNet-50, {args.batch_size} images'
    times = best_times(names, args, with_torch=False)
    print_row(measured, times[names[0]], 'without', times[names[1]])
    peaks = [peak_memory(CONTENDER, name, args.batch_size) for name in names]
    print_row(f'peak memory of a {measured}', peaks[0], 'without', peaks[1], 'MiB')


if __name__ == '__main__':
    main()
