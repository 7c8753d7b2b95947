"""Typical faults on GPUs and several devices: places of variables, images of a replica, the loop."""
import json
import os
import sys
import time
import types

import numpy as np
import pytest
import tensorflow as tf

import train
from _runs import FORKS, Run, ended_in_one_sentence, identities_of, make_people, start_fork_server, train_arguments
from conftest import ROOT, assert_one_sentence, run_script
from tripletreid.dataset import load_dataset
from tripletreid.distribute import collectives, feeding, strategies
from tripletreid.errors import InputError
from tripletreid.experiment import event_files, flag_checks, train_flags, train_log
from tripletreid.input_pipeline import batches, sampling
from tripletreid.modeling import inference, model
from tripletreid.training import checks, train_state
from tripletreid.training.loop import Loop
from tripletreid.training.schedule import Schedule

pytestmark = pytest.mark.long


@pytest.fixture(scope='module')
def people(tmp_path_factory):
    return make_people(tmp_path_factory.mktemp('people'))


def parsed(people, *more):
    return train_flags.make_parser().parse_args([str(each) for each in (*train_arguments(people, 'nowhere'), *more)])


def in_child(function, *given):
    """Start a function (…, connection) in a process of its own, in which TensorFlow has not computed yet.

    Returns: a function that waits for its results.
    """
    start_fork_server()
    from_child, to_parent = FORKS.Pipe(duplex=False)
    child = FORKS.Process(target=function, args=(*given, to_parent))
    child.start()
    to_parent.close()

    def received():
        assert from_child.poll(500), 'the child says nothing'
        found = from_child.recv()
        child.join(60)
        return found

    return received


# --- Where variables live ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize('precision', ['none', 'float16'])
def test_no_int32_variable_is_part_of_a_step(people, precision):
    """TensorFlow keeps them on the host, where code that XLA compiled for a GPU cannot read them."""
    args = parsed(people, '--mixed_precision', precision)
    strategy = tf.distribute.get_strategy()
    state = train_state.create(args, identities_of(6), strategy)
    batch = {'images': tf.zeros([6, 28, 28, 3]), 'pids': tf.zeros([6], tf.int32), 'rows': tf.zeros([6], tf.int64)}
    step = train.make_train_step(args, state, strategy).get_concrete_function(
        batch, Schedule(tf.constant(1e-3), tf.constant(0.9)))
    model.set_precision('none')
    dtypes = {variable.dtype for variable in step.graph.variables}
    assert tf.float32 in dtypes and tf.int64 in dtypes and tf.int32 not in dtypes
    stored = {name: value.dtype for name, value in state.values().items() if value.dtype.is_integer}
    assert set(stored.values()) == {tf.int32}, "checkpoints have the original's types"


def test_tf32_is_off_but_for_a_training_that_asks_for_it(people, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(tf.config.experimental, 'enable_tensor_float_32_execution', calls.append)
    network = model.build('mnist', 'direct', 4, (28, 28, 3))
    assert calls == [False]
    monkeypatch.setattr(tf.config.experimental, 'tensor_float_32_execution_enabled', lambda: True)
    list(inference.embed_files(network, [str(people / '0_0.png')]))
    assert calls == [False, False, True], 'off while it embeds, then as it was'
    assert not parsed(people).tf32 and parsed(people, '--tf32').tf32


def test_only_the_gpus_that_are_used_are_visible_and_their_memory_grows(monkeypatch):
    seen, grows = [], set()
    gpus = ['gpu0', 'gpu1', 'gpu2']
    monkeypatch.setattr(tf.config, 'list_physical_devices', lambda kind: gpus)
    monkeypatch.setattr(tf.config, 'list_logical_devices', lambda kind: [])
    monkeypatch.setattr(tf.config.experimental, 'set_memory_growth', lambda gpu, grow: grows.add((gpu, grow)))
    monkeypatch.setattr(tf.config, 'set_visible_devices', lambda devices, kind: seen.append((devices, kind)))
    monkeypatch.setattr(tf.distribute, 'MirroredStrategy', lambda names: names)
    strategies.create('none')
    strategies.create('mirrored', 2)
    strategies.create('mirrored')
    assert seen == [(gpus[:1], 'GPU'), (gpus[:2], 'GPU'), (gpus, 'GPU')]
    assert grows == {(gpu, True) for gpu in gpus}
    with pytest.raises(InputError, match='--devices 4 is more than the 3 GPUs'):
        strategies.create('mirrored', 4)


def test_depthwise_convolutions_have_no_deterministic_gradient_on_a_gpu(monkeypatch):
    mobile = model.build('mobilenet_v1_1_224', 'direct', 4, (32, 32, 3))
    checks.check_determinism(mobile)
    monkeypatch.setattr(tf.config, 'get_visible_devices', lambda kind: ['gpu0'])
    checks.check_determinism(model.build('mnist', 'direct', 4, (28, 28, 3)))
    with pytest.raises(InputError, match='--deterministic.*depthwise.*Conv2d_1_depthwise'):
        checks.check_determinism(mobile)


# --- Several devices --------------------------------------------------------------------------------------------------

def _overflowing_step(folder, to_parent):
    """Send the loss scale and the log after a step on two devices whose gradients overflow float16."""
    strategy = strategies.create('mirrored', 2)
    args = parsed(folder, '--mixed_precision', 'float16', '--experiment_root', folder / 'run', '--train_iterations', 1)
    state = train_state.create(args, identities_of(6), strategy)
    state.loss_scale.scale.assign(2.0 ** 120)
    weights = {name: value.numpy() for name, value in state.values().items() if 'loss_scale' not in name}
    printed = []
    log = types.SimpleNamespace(warning=lambda *parts: printed.append(parts[0] % parts[1:]), info=lambda *_: None)
    train_set = load_dataset(folder / 'people.csv')
    identities = sampling.Identities(train_set, args.batch_p)
    data = iter(feeding.data(strategy, args, lambda *parts: batches.batches_of_steps(
        train_set, identities, args, 0, 1, *parts)))
    loop = Loop(args, state, strategy, None, None, types.SimpleNamespace(requested=None), train_set.fids, log)
    loop.run(train.make_train_step(args, state, strategy), data, None)
    after = state.values()
    changed = [name for name in weights if name != 'global_step' and (weights[name] != after[name].numpy()).any()]
    to_parent.send((printed, changed, float(after['loss_scale']), int(after['global_step'])))


def test_an_overflow_of_float16_on_two_devices_skips_the_step(people):
    printed, changed, scale, step = in_child(_overflowing_step, people)()
    assert printed == [f'Iteration 1 skipped: gradients overflowed float16. Loss scale reduced to {2.0 ** 119:g}.']
    assert not changed and scale == 2.0 ** 119 and step == 1


def _dealt_images(folder, frames, to_parent):
    """Send the identities of a batch that each of four replicas sees, and the values gathered in the batch's order."""
    strategy = strategies.create('mirrored', 4)
    args = parsed(folder, '--batch_p', 2, '--batch_k', 4, '--frames_per_tracklet', frames, '--train_set', folder / 'set.csv')
    train_set = load_dataset(folder / 'set.csv')
    identities = sampling.Identities(train_set, args.batch_p)
    data = iter(feeding.data(strategy, args, lambda *parts: batches.batches_of_steps(
        train_set, identities, args, 0, 1, *parts)))

    def step(batch):
        pids = collectives.own_part(collectives.dealt(batch['pids'], frames))
        mean = tf.reduce_mean(batch['images'], axis=[1, 2, 3])
        one_of_each = collectives.dealt(batch['pids'][::frames])
        dists = tf.cast(collectives.own_part(one_of_each)[:, None] * 100 + collectives.own_first(one_of_each), tf.float32)
        return {'own': pids, 'pids': collectives.gathered(tf.cast(pids, tf.float32), frames), 'batch': batch['pids'],
                'rows': batch['rows'], 'means': collectives.gathered(mean, frames),
                'dists': collectives.gathered(collectives.columns_of_batch(dists))}

    result = strategy.run(tf.function(step, autograph=False), (next(data),))
    to_parent.send({name: [each.numpy() for each in strategy.experimental_local_results(value)]
                    for name, value in result.items()})


@pytest.mark.parametrize('frames', [1, 2])
def test_images_are_dealt_round_the_replicas(people, frames):
    lines = (people / 'people.csv').read_text().split()
    (people / 'set.csv').write_text(''.join(
        f'{line}{"," + line.split(",")[1] if frames > 1 else ""}\n' for line in lines for _ in range(frames)))
    found = in_child(_dealt_images, people, frames)()
    batch, rows = found['batch'][0], found['rows'][0]
    for replica, own in enumerate(found['own']):
        slots = [item * frames + frame for item in range(replica, 8, 4) for frame in range(frames)]
        assert own.tolist() == batch[slots].tolist()
        assert len(set(own.tolist())) == 2, 'one image an identity, of as many identities as there can be'
    assert found['pids'][3].tolist() == batch.tolist()
    items = batch[::frames]
    assert (found['dists'][2] == items[:, None] * 100 + items).all()
    # A replica received the images of its slots: their means, in the batch's order, are the files' means.
    fids = load_dataset(people / 'set.csv').fids[rows]
    images = {fid: tf.image.decode_png((people / fid).read_bytes()).numpy().mean() for fid in set(fids)}
    np.testing.assert_allclose(found['means'][0], [images[fid] for fid in fids], rtol=1e-5)


def test_on_one_device_no_worker_has_ended():
    with pytest.raises(tf.errors.CancelledError):
        with strategies.losing_a_worker_is_an_error(tf.distribute.get_strategy()):
            raise tf.errors.CancelledError(None, None, 'the input pipeline was closed')


# --- Everything with everything ---------------------------------------------------------------------------------------

FINE_TUNING = ['--optimizer', 'adamw', '--weight_decay', '0.05', '--layer_decay', '0.5', '--ema', '0.9',
               '--head_learning_rate_factor', '2']


def _matrix(devices, to_parent):
    import _matrix
    strategy = strategies.create('mirrored' if devices > 1 else 'none', devices if devices > 1 else None)
    tf.config.experimental.enable_op_determinism()
    found = _matrix.train_all(strategy, _matrix.pairs(devices))
    again = {each: _matrix.three_steps(strategy, *each) for each in list(found)[:1]}
    tuned = [_matrix.three_steps(strategy, 'float16', 'slim', 'batch_hard', more_flags=[*FINE_TUNING, *more])
             for more in ([], ['--recompute'])]
    model.set_precision('none')
    to_parent.send((found, again, tuned))


@pytest.fixture(scope='module')
def matrix():
    """{devices: ({combination: (losses, state)}, the same of some that ran twice, fine-tuning and with --recompute)}."""
    received = {devices: in_child(_matrix, devices) for devices in (1, 2)}
    return {devices: result() for devices, result in received.items()}


def test_matrix_trains_and_is_near_float32(matrix):
    for devices, (found, *_) in matrix.items():
        for (precision, family, loss), (losses, state) in found.items():
            where = (devices, precision, family, loss)
            assert np.isfinite(losses).all() and state['global_step'] == 3, where
            assert all(np.isfinite(value).all() for value in state.values()), where
            exact = found['none', family, loss][0]
            # Before the first update only the forward pass is rounded. Batch norm over four images makes more of that.
            np.testing.assert_allclose(losses[0].mean(), exact[0].mean(), rtol=0.1, err_msg=str(where))


def test_matrix_on_two_devices_has_the_losses_of_one(matrix):
    for combination, (losses, _) in matrix[2][0].items():
        if combination[:2] in (('none', 'without batch norm'), ('none', 'transformer')):
            np.testing.assert_allclose(matrix[1][0][combination][0], losses, rtol=1e-5, atol=1e-5,
                                       err_msg=str(combination))


def test_matrix_checkpoints_fit_any_number_of_devices(matrix):
    for combination, (_, other) in matrix[2][0].items():
        state = matrix[1][0][combination][1]
        forms = [{name: (value.shape, value.dtype) for name, value in each.items()} for each in (state, other)]
        assert forms[0] == forms[1], combination


def test_matrix_is_deterministic(matrix):
    for found, again, _ in matrix.values():
        for combination, (losses, state) in again.items():
            assert (losses == found[combination][0]).all(), combination
            assert all((state[name] == value).all() for name, value in found[combination][1].items()), combination


def test_matrix_of_fine_tuning(matrix):
    """Recomputed activations equal kept ones, also in 16 bits and on several devices; checkpoints fit any number of them."""
    forms = []
    for *_, ((losses, state), (losses_again, state_again)) in matrix.values():
        np.testing.assert_allclose(losses_again, losses, rtol=0.02)
        assert state['global_step'] == 3 and all(np.isfinite(value).all() for value in state.values())
        for name in [name for name in state if 'BatchNorm/moving' in name]:
            np.testing.assert_allclose(state_again[name], state[name], rtol=0.02, atol=1e-3, err_msg=name)
        average = state['small/conv1/BatchNorm/moving_mean/ExponentialMovingAverage']
        assert 0 < abs(average).max() < abs(state['small/conv1/BatchNorm/moving_mean']).max()
        forms.append({name: (value.shape, value.dtype) for name, value in state.items()})
    assert forms[0] == forms[1]


# --- The loop ---------------------------------------------------------------------------------------------------------

class Device:
    """A stand-in for a training step and for the reporter, which records the order of events and the time of steps."""

    def __init__(self, interruption=None):
        self.happened, self.seconds, self.step, self.interruption = [], [], 0, interruption
        self.loss_scale = types.SimpleNamespace(skipped=lambda *_: False)

    def train_step(self, *_):
        self.step += 1
        self.happened.append(f'dispatch {self.step}')
        time.sleep(0.01)
        numbers = {'loss': 0.5, 'emb': np.ones(2), 'gradient_norm': 1.0, 'loss_scale': 1.0, 'rows': np.arange(2)}
        return {name: types.SimpleNamespace(numpy=lambda value=value: value) for name, value in numbers.items()}

    def values(self):
        return {'global_step': tf.constant(self.step)}

    def iteration(self, step, rows, result, learning_rate, seconds):
        self.happened.append(f'tell {step + 1}')
        self.seconds.append(seconds)
        if self.interruption and step + 1 == 3:
            self.interruption.requested = 'SIGTERM'

    def flush(self):
        self.happened.append('flush')


def run_on(device, people, root, *more):
    args = parsed(people, '--experiment_root', root, *more)
    root.mkdir(exist_ok=True)
    log = types.SimpleNamespace(info=lambda text, *parts: device.happened.append((text % parts).split(' ')[0]))
    interruption = device.interruption or types.SimpleNamespace(requested=None)
    loop = Loop(args, device, tf.distribute.get_strategy(), device, None, interruption, np.array(['a', 'b']), log)
    loop.run(device.train_step, iter(lambda: {}, None), None)
    return device.happened


def test_a_step_is_logged_while_the_next_one_is_computed(people, tmp_path):
    device = Device()
    happened = run_on(device, people, tmp_path / 'run', '--train_iterations', 5, '--checkpoint_frequency', 3)
    assert happened == ['dispatch 1', 'tell 1', 'dispatch 2', 'dispatch 3', 'tell 2', 'tell 3', 'flush', 'Saved',
                        'dispatch 4', 'dispatch 5', 'tell 4', 'tell 5', 'flush', 'Saved']
    assert min(device.seconds) >= 0.01, 'also for a step that is logged at once, before a checkpoint'


def test_an_interruption_ends_after_the_current_step(people, tmp_path):
    device = Device(types.SimpleNamespace(requested=None))
    happened = run_on(device, people, tmp_path / 'run', '--train_iterations', 9, '--checkpoint_frequency', 0)
    assert happened[-6:] == ['dispatch 4', 'tell 3', 'tell 4', 'Interrupted', 'flush', 'Saved']
    assert (tmp_path / 'run' / 'checkpoint-4.index').exists()


def test_nothing_is_stored_after_a_step_that_is_not_finite(people, tmp_path):
    device = Device()
    whole = device.train_step

    def train_step(*given):
        result = whole(*given)
        if device.step == 2:
            result['loss'] = types.SimpleNamespace(numpy=lambda: np.nan)
        return result

    device.train_step = train_step
    with pytest.raises(InputError, match='Iteration 2 gave a loss of nan'):
        run_on(device, people, tmp_path / 'run', '--train_iterations', 9, '--checkpoint_frequency', 3)
    assert device.happened == ['dispatch 1', 'tell 1', 'dispatch 2', 'dispatch 3']
    assert not os.listdir(tmp_path / 'run')


# --- A start ----------------------------------------------------------------------------------------------------------

def test_a_run_that_fails_before_its_first_step_is_as_if_never_started(people, tmp_path):
    """A wrong cache is only noticed after checkpoint-0."""
    root, wrong = tmp_path / 'run', tmp_path / 'other'
    wrong.mkdir()
    (wrong / 'precious.txt').write_text('')
    run = Run('train.py', *train_arguments(people, root, 4), '--cache', wrong)
    ended_in_one_sentence(run, wrong)
    assert set(os.listdir(root)) <= {'.lock'}
    run = Run('train.py', *train_arguments(people, root, 4), '--cache', 'memory')
    assert run.wait() == 0, run.output


def test_the_log_has_lines_at_intervals_and_tensorboard_all(people, tmp_path):
    """The first line, which is the sign of life, every third, and the last."""
    run = Run('train.py', *train_arguments(people, tmp_path / 'run', 8), '--log_frequency', 3)
    assert run.wait() == 0, run.output
    printed = train_log.read_iterations(tmp_path / 'run')
    losses, seconds = ([value for _, value in sorted(event_files.read_scalars(str(tmp_path / 'run'))[tag].items())]
                       for tag in ('loss', 'secs_per_iter'))
    assert list(printed['loss']) == [1, 3, 6, 8] and len(losses) == 8
    assert list(printed['loss'].values()) == pytest.approx([losses[step - 1] for step in printed['loss']], abs=1e-3)
    # The duration is the mean since the line before.
    means = [seconds[0], np.mean(seconds[1:3]), np.mean(seconds[3:6]), np.mean(seconds[6:])]
    assert list(printed['secs_per_iter'].values()) == pytest.approx(means, abs=0.01)
    assert len(np.load(tmp_path / 'run' / 'log_losses.npy')) == 8


def test_what_belongs_to_the_machine_is_free_at_every_start(people, tmp_path):
    root, moved = tmp_path / 'run', tmp_path / 'scratch'
    assert Run('train.py', *train_arguments(people, root, 4)).wait() == 0
    stored = (root / 'args.json').read_bytes()
    for file in (*root.glob('checkpoint-4.*'), root / 'checkpoint'):
        file.unlink()
    moved.mkdir()
    for file in people.glob('*.png'):
        (moved / file.name).write_bytes(file.read_bytes())
    run = Run('train.py', '--experiment_root', root, '--resume', '--image_root', moved, '--cache', 'memory',
              '--keep_checkpoints', 1, '--loading_threads', 2, '--batch_p', 2)
    assert run.wait() == 0, run.output
    assert f"image_root is '{moved}' in this start" in run.output and "cache is 'memory'" in run.output
    assert 'batch_p was given as 2, but' in run.output
    assert (root / 'args.json').read_bytes() == stored, 'the next start has the run its own again'
    start = json.loads((root / 'provenance.json').read_text())[-1]['arguments']
    assert start['image_root'] == str(moved) and start['cache'] == 'memory' and start['keep_checkpoints'] == 1


def test_a_run_becomes_longer_and_its_detailed_logs_grow(people, tmp_path):
    root = tmp_path / 'run'
    assert Run('train.py', *train_arguments(people, root, 4)).wait() == 0
    before = np.load(root / 'log_losses.npy')
    run = Run('train.py', '--experiment_root', root, '--resume', '--train_iterations', 3)
    assert run.wait() == 0 and 'using the stored value' in run.output, run.output
    assert 'Training has already finished (4 iterations).' in run.output, run.output
    run = Run('train.py', '--experiment_root', root, '--resume', '--train_iterations', 6)
    assert run.wait() == 0 and 'extended to 6 iterations, from 4' in run.output and 'stretched' in run.output, run.output
    after = np.load(root / 'log_losses.npy')
    assert len(after) == 6 and (after[:4] == before).all() and after[4:].all()
    assert len(np.load(root / 'log_fids.npy')) == 6
    assert json.loads((root / 'args.json').read_text())['train_iterations'] == 6
    assert json.loads((root / 'provenance.json').read_text())[-1]['arguments']['train_iterations'] == 6


def test_devices_without_several(people, tmp_path):
    printed = run_script('train.py', *train_arguments(people, tmp_path / 'run'), '--devices', 8)
    assert_one_sentence(printed, '--devices', '--distribute mirrored', status=2)


@pytest.mark.parametrize('flags, sentence', [
    ([], None), (['--decay_start_iteration', -1], None),
    (['--lr_schedule', 'constant', '--decay_start_iteration', 30], None),
    (['--decay_start_iteration', 20], 'iteration 20, after the end of the run at 20: the learning rate will not fall'),
    (['--lr_schedule', 'cosine', '--decay_start_iteration', 20], '--lr_schedule cosine has no effect'),
    (['--decay_beta1', 0.5, '--decay_start_iteration', 30], 'will not fall and --decay_beta1 has no effect'),
    (['--lr_schedule', 'step', '--lr_steps', '5', '--decay_beta1', 0.5, '--decay_start_iteration', 30],
     'iteration 30, after the end of the run at 20: --decay_beta1 has no effect')])
def test_a_decay_after_the_end_is_noticed(people, flags, sentence):
    printed = flag_checks.notices(parsed(people, *flags))
    assert sentence in printed[0] if sentence else printed == []


def _line_of_gpu_benchmark(flags, to_parent):
    import gpu
    to_parent.send(gpu.measured(types.SimpleNamespace(tiny=True, steps=2), *flags))


@pytest.mark.soak
def test_the_benchmark_of_gpus_works(monkeypatch, capsys):
    """On the CPU, with its processes as forks."""
    monkeypatch.syspath_prepend(str(ROOT / 'benchmarks'))
    import gpu

    def project(script, *flags, **environment):
        run = Run(script, *flags, environment=environment)
        assert run.wait() == 0, run.output

    monkeypatch.setattr(gpu, 'project', project)
    monkeypatch.setattr(gpu, 'in_process', lambda args, _, *flags: in_child(_line_of_gpu_benchmark, flags)())
    monkeypatch.setattr(sys, 'argv', ['gpu.py', '--tiny'])
    gpu.main()
    printed = capsys.readouterr().out
    assert '2 combinations of precision, net, loss and XLA train' in printed and 'ends in the same bits' in printed
    assert 'Embeddings agree with the CPU' in printed
    lines = [line.split('|')[1:-1] for line in printed.splitlines() if line.startswith('| float32')]
    assert [line[:3] for line in lines] == [[' float32 ', ' no ', ' 18×4 '], [' float32 ', ' yes ', ' 18×4 ']]
    assert all(float(number.strip(' %')) > 0 for line in lines for number in line[3:6])
