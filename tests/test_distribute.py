"""Several devices and several hosts: the numbers of one device, checkpoints for any number, workers that go away."""
import json
import shutil
import socket

import numpy as np
import pytest

from _runs import FORKS, Run, ended_in_one_sentence, make_people, run_results, start_fork_server, train_arguments
from conftest import assert_one_sentence, run_script
from tripletreid import cluster, plugins
from tripletreid.errors import InputError

pytestmark = pytest.mark.long

ITERATIONS = 10


@pytest.fixture(scope='module')
def people(tmp_path_factory):
    return make_people(tmp_path_factory.mktemp('people'))


@pytest.fixture(scope='module')
def one_device(people, tmp_path_factory):
    """The experiment root of ten steps on one device."""
    root = tmp_path_factory.mktemp('runs') / 'one'
    run = Run('train.py', *train_arguments(people, root, ITERATIONS))
    assert run.wait() == 0, run.output
    return root


@pytest.fixture(scope='module')
def mirrored(people, one_device):
    """The same on two parts of the CPU."""
    root = one_device.parent / 'mirrored'
    run = Run('train.py', *train_arguments(people, root, ITERATIONS), '--distribute', 'mirrored', '--devices', 2)
    assert run.wait() == 0, run.output
    assert '2 replicas' in run.output
    return root


def free_addresses(count):
    sockets = [socket.create_server(('localhost', 0)) for _ in range(count)]
    addresses = [f'localhost:{each.getsockname()[1]}' for each in sockets]
    for each in sockets:
        each.close()
    return addresses


def start_workers(*arguments, count=2, fault=None):
    """Processes that train together over the loopback interface, the chief first."""
    addresses = free_addresses(count)
    config = {'cluster': {'worker': addresses}}
    return [Run('train.py', *arguments, '--distribute', 'multi_worker', fault=fault, environment={
        'TF_CONFIG': json.dumps({**config, 'task': {'type': 'worker', 'index': index}})}) for index in range(count)]


def all_free(ports):
    try:
        for each in [socket.create_server(('localhost', port)) for port in ports]:
            each.close()
    except OSError:
        return False
    return True


def start_tasks_of_slurm(*arguments, count=2):
    """The same with the environment of `srun` instead, on consecutive free ports."""
    first = next(port for port in np.random.permutation(20000 - count) + 20000 if all_free(range(port, port + count)))
    step = {'SLURM_JOB_ID': str(first - 20000), 'SLURM_STEP_NUM_TASKS': str(count), 'SLURM_STEP_NODELIST': 'localhost',
            'SLURM_STEP_TASKS_PER_NODE': str(count)}
    return [Run('train.py', *arguments, '--distribute', 'multi_worker', environment={**step, 'SLURM_PROCID': str(number)})
            for number in range(count)]


def assert_same_training(root, other):
    for log, tolerance in (('losses', 1e-5), ('embs', 2e-4)):
        logs = [np.load(each / f'log_{log}.npy') for each in (root, other)]
        np.testing.assert_allclose(*logs, rtol=0, atol=tolerance)
    np.testing.assert_array_equal(*(np.load(each / 'log_fids.npy') for each in (root, other)))
    logs = [run_results(each, ITERATIONS)['log'] for each in (root, other)]
    assert len(logs[0]) == len(logs[1]) == ITERATIONS


@pytest.mark.parametrize('start', [start_workers, start_tasks_of_slurm])
def test_two_processes_give_the_losses_of_one(people, one_device, start):
    root = one_device.parent / start.__name__
    chief, other = start(*train_arguments(people, root, ITERATIONS))
    assert (chief.wait(), other.wait()) == (0, 0), chief.output + other.output
    assert_same_training(one_device, root)
    assert 'iter:' not in other.output and 'Saved' not in other.output, 'only the chief logs the run'
    assert len(json.loads((root / 'provenance.json').read_text())) == 1


def test_workers_that_were_not_started_alike(people, tmp_path):
    """The second one has another number of frozen iterations, and another csv file under the same name."""
    other_people = tmp_path / 'others'
    other_people.mkdir()
    make_people(other_people, identities=7)
    addresses = free_addresses(2)
    runs = []
    for index, (folder, frozen) in enumerate(((people, 0), (other_people, 3))):
        task = {'cluster': {'worker': addresses}, 'task': {'type': 'worker', 'index': index}}
        runs.append(Run('train.py', *train_arguments(folder, tmp_path / 'run'), '--freeze_body_iterations', frozen,
                        '--distribute', 'multi_worker', environment={'TF_CONFIG': json.dumps(task)}))
    for run in runs:
        ended_in_one_sentence(run, 'freeze_body_iterations and train_set differ between them')
    assert not (tmp_path / 'run' / 'args.json').exists(), 'as if never started'


def test_two_devices_give_the_losses_of_one(one_device, mirrored):
    assert_same_training(one_device, mirrored)


def _losses_and_gradients(replicas, to_parent):
    """Send each loss of a batch with one identity that is divided between two replicas."""
    import tensorflow as tf

    from loss import cdist
    from tripletreid.distribute import collectives, strategies
    strategy = strategies.create('mirrored', replicas)
    embs = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
    found = {}
    for name in plugins.choices('losses'):
        losses_of = plugins.load('losses', name).loss
        with strategy.scope():
            variable = tf.Variable(embs)

        def step():
            with tf.GradientTape() as tape:
                pids, emb = tf.repeat([0, 1, 2], 4), collectives.own_part(variable.value())
                dists = cdist(emb, collectives.own_first(collectives.gather(emb)), 'euclidean')
                losses = losses_of(dists, collectives.own_part(pids), collectives.own_first(pids),
                                   'soft' if name == 'supervised_contrastive' else 0.3, (1, 2))
                share = collectives.part_of_mean(losses)
            return collectives.total([share, tape.gradient(share, variable, unconnected_gradients='zero')])

        loss, gradient = tf.function(lambda: collectives.run(strategy, step), autograph=False)()
        found[name] = loss.numpy(), gradient.numpy()
    to_parent.send(found)


def test_each_loss_is_the_same_on_two_replicas():
    start_fork_server()
    found = []
    for replicas in (1, 2):
        from_child, to_parent = FORKS.Pipe(duplex=False)
        child = FORKS.Process(target=_losses_and_gradients, args=(replicas, to_parent), daemon=True)
        child.start()
        to_parent.close()  # So that the end of a child that has failed is heard.
        assert from_child.poll(300), 'no losses within 300 s'
        found.append(from_child.recv())
        child.join(60)
        assert child.exitcode == 0
    for name in found[0]:
        for one, two in zip(found[0][name], found[1][name]):
            if name != 'batch_sample':  # It draws other triplets.
                np.testing.assert_allclose(two, one, rtol=1e-5, atol=1e-6, err_msg=name)
    assert found[0]['lifted'][1].any() and found[0]['batch_all_nonzero'][1].any()


def test_checkpoints_are_the_same_for_any_number_of_devices(one_device, mirrored, tmp_path):
    """One device resumes a checkpoint of two devices after eight of ten steps, and ends as one device alone."""
    root = tmp_path / 'root'
    shutil.copytree(mirrored, root)
    for file in root.glob('checkpoint-10.*'):
        file.unlink()
    (root / 'checkpoint').unlink()
    np.load(root / 'log_losses.npy', mmap_mode='r+')[8:] = 0
    run = Run('train.py', '--experiment_root', root, '--resume')
    assert run.wait() == 0, run.output
    assert 'checkpoint-8' in run.output and 'on CPU:0' in run.output, run.output
    assert_same_training(one_device, root)


def test_a_worker_is_killed_then_all_are_resumed_then_one_gets_a_signal(people, tmp_path):
    """With batch norm, whose statistics differ between the workers and are averaged when they are saved."""
    root = tmp_path / 'root'
    arguments = train_arguments(people, root, 100_000)
    arguments[arguments.index('direct')] = 'fc1024'
    arguments.remove('--detailed_logs')
    chief, other = start_workers(*arguments)
    chief.wait_for('Saved')
    other._process.kill()
    ended_in_one_sentence(chief, 'Another worker has ended', '--resume')

    chief, other = start_workers('--experiment_root', root, '--resume')
    chief.wait_for('iter:')
    other._process.terminate()
    assert (chief.wait(), other.wait()) == (0, 0), chief.output + other.output
    assert 'Resuming from' in chief.output and 'Interrupted by another worker' in chief.output, chief.output


def test_a_resumed_run_on_two_devices_has_the_same_bits_with_batch_norm(people, tmp_path):
    """Each device moves the statistics with its own images; a checkpoint stores the value on which they agree."""
    root, arguments = tmp_path / 'root', train_arguments(people, tmp_path / 'root', 8)
    arguments[arguments.index('direct')] = 'fc1024'
    run = Run('train.py', *arguments, '--ema', 0.8, '--distribute', 'mirrored', '--devices', 2)
    assert run.wait() == 0, run.output
    undisturbed = run_results(root, 8)
    for path in (*root.glob('checkpoint-8.*'), root / 'checkpoint'):
        path.unlink()
    run = Run('train.py', '--experiment_root', root, '--resume', '--distribute', 'mirrored', '--devices', 2)
    assert run.wait() == 0 and 'checkpoint-4' in run.output, run.output
    resumed = run_results(root, 8)
    assert [name for name in undisturbed if name != 'log' and undisturbed[name] != resumed[name]] == []


def test_devices_divide_the_images_to_embed(people, one_device):
    embeddings = []
    for name, more in (('one', []), ('two', ['--distribute', 'mirrored', '--devices', 2])):
        run = Run('embed.py', '--experiment_root', one_device, '--dataset', people / 'people.csv', '--batch_size', 5,
                  '--filename', f'{name}.h5', *more)
        assert run.wait() == 0, run.output
        import h5py
        with h5py.File(one_device / f'{name}.h5') as file:
            embeddings.append(file['emb'][()])
    np.testing.assert_allclose(*embeddings, rtol=0, atol=1e-6)


@pytest.mark.parametrize('config', [
    None, '', '{', '[]', '{"cluster": {"worker": []}, "task": {"type": "worker", "index": 0}}',
    '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
    '{"cluster": {"worker": ["a"]}, "task": {"type": "worker", "index": 0}}',
    '{"cluster": {"worker": ["a:1"], "ps": ["b:1"]}, "task": {"type": "ps", "index": 0}}'])
def test_a_cluster_that_is_none(config, monkeypatch):
    monkeypatch.delenv('TF_CONFIG', raising=False)
    if config is not None:
        monkeypatch.setenv('TF_CONFIG', config)
    with pytest.raises(InputError, match='TF_CONFIG'):
        cluster.task('multi_worker')
    assert cluster.task('none') == cluster.task('mirrored') == cluster.Task(0, 1)


def test_a_batch_that_cannot_be_divided(people, tmp_path):
    run = Run('train.py', *train_arguments(people, tmp_path / 'root'), '--distribute', 'mirrored', '--devices', 4)
    ended_in_one_sentence(run, 'cannot be divided among 4')


def test_xla_is_for_one_device(people, tmp_path):
    arguments = train_arguments(people, tmp_path / 'root')
    process = run_script('train.py', *arguments, '--jit_compile', '--distribute', 'mirrored')
    assert_one_sentence(process, '--jit_compile', status=2)
    assert not (tmp_path / 'root').exists()
