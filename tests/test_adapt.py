"""Adaptation to unlabelled images: the start of a round, interruption in every phase, and bad input."""
import json
import os
import signal
import sys
import threading

import numpy as np
import pytest

import adapt
from _runs import Fault, Run, make_people, train_arguments
from conftest import assert_one_sentence, run_script, wait_until
from tripletreid import argument_types, plugins
from tripletreid.adaptation import children, record
from tripletreid.dataset import load_dataset
from tripletreid.experiment import arguments

pytestmark = pytest.mark.long

FLAGS = ['--k1', 6, '--k2', 2, '--rounds', 2, '--stop_at', 1, '--camera', r'_(\d)\.png', '--', '--train_iterations', 3,
         '--batch_p', 3, '--batch_k', 2, '--deterministic', '--checkpoint_frequency', 2, '--ema', 0.5]
# Places where an adaptation is struck, in their order: three of its first round, two of its second.
PHASES = [(adapt, 'group'), (arguments, 'save'), (record, 'publish'), ('embed.py', Fault(signal.SIGTERM, 'embedding', 1)),
          ('train.py', Fault(signal.SIGTERM, 'step', 2))]


class Struck(Exception):
    """Stands for a kill of the adaptation."""


class Forked:
    """Runs commands in forks, as `children.Children` runs them in processes of their own; a fault strikes one of them."""

    def __init__(self, script=None, fault=None):
        self.script, self.fault = script, fault

    def check(self):
        pass

    def run(self, script, *arguments):
        struck = script == self.script
        run = Run(script, *arguments, fault=self.fault if struck else None)
        assert run.wait() in ((0, 130, -signal.SIGTERM) if struck else (0,)), run.output
        if struck:
            raise children.Interrupted('SIGTERM')


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """people.csv with images of 8 identities, and run/ with a net that was trained on them for a moment."""
    root = make_people(tmp_path_factory.mktemp('people'), identities=8, images=6)
    run = Run('train.py', *train_arguments(root, root / 'run', iterations=4))
    assert run.wait() == 0, run.output
    return root


def adapted(monkeypatch, root, name, *flags, forked=None):
    monkeypatch.setattr(children, 'Children', lambda: forked or Forked())
    monkeypatch.setattr(sys, 'argv', ['adapt.py', '--experiment_root', str(root / name), *map(str, flags)])
    adapt.main()
    return root / name


def content(root):
    """Return the results of an adaptation without times and paths."""
    rounds = json.loads((root / 'adapt.json').read_text())['rounds']
    names = [f'checkpoint-{number}.{ending}' for number in (1, 2) for ending in ('index', 'data-00000-of-00001')]
    return rounds, {name: (root / name).read_bytes() for name in names}, (root / 'round-002' / 'clusters.csv').read_bytes()


@pytest.fixture(scope='module')
def undisturbed(trained):
    with pytest.MonkeyPatch.context() as monkeypatch:
        root = adapted(monkeypatch, trained, 'undisturbed', '--initial_root', trained / 'run', '--images',
                       trained / 'people.csv', '--image_root', trained, *FLAGS)
    return root


def test_an_adaptation_leaves_a_root_that_embeds(trained, undisturbed):
    rounds, *_ = content(undisturbed)
    assert [each['round'] for each in rounds] == [1, 2] and rounds[0]['agreement'] is None
    assert rounds[1]['agreement'] > 0 and rounds[0]['pairwise_f'] > 0.3
    clusters = load_dataset(undisturbed / 'round-002' / 'clusters.csv')
    assert set(clusters.tracklets) <= set('012345')  # The camera.
    assert not (undisturbed / 'round-001').exists()
    run = Run('embed.py', '--experiment_root', undisturbed, '--dataset', trained / 'people.csv', '--image_root', trained,
              '--checkpoint', 'checkpoint-1')
    assert run.wait() == 0, run.output


def test_an_interruption_in_every_phase_ends_in_the_same_bits(trained, undisturbed, monkeypatch):
    def strike(*_, **__):
        raise Struck

    root = trained / 'struck'
    flags = ['--initial_root', trained / 'run', '--images', trained / 'people.csv', '--image_root', trained, *FLAGS]
    for number, (target, fault) in enumerate(PHASES):
        if isinstance(fault, Fault):
            adapted(monkeypatch, trained, 'struck', *flags, forked=Forked(target, fault))
        else:
            with pytest.raises(Struck), monkeypatch.context() as patched:
                patched.setattr(target, fault, strike)
                adapted(patched, trained, 'struck', *flags)
        assert len(json.loads((root / 'adapt.json').read_text())['rounds']) == (0 if number < 3 else 1), PHASES[number]
        flags = ['--resume']
    assert content(adapted(monkeypatch, trained, 'struck', '--resume')) == content(undisturbed)


def test_a_round_augments_as_the_initial_training_did(trained):
    """A mirrored, cropped or rotated picture shows the same identity only where it did in that training."""
    root = trained / 'augmented'
    args, _ = arguments.load(str(trained / 'run'))
    args.experiment_root, args.crop_augment, args.pre_crop_height, args.rotate = str(root), True, 40, 10.0
    root.mkdir()
    arguments.save(args)
    parsed = adapt.make_parser().parse_args(['--experiment_root', 'new', '--initial_root', str(root), '--images', 'x', '--',
                                             '--rotate', '5'])
    round_args = adapt.train_arguments(parsed, 'new/round')
    assert (round_args.flip_augment, round_args.crop_augment, round_args.pre_crop_height) == (args.flip_augment, True, 40)
    assert round_args.rotate == 5


def test_a_round_starts_from_the_weights_and_the_means_of_its_clusters(trained, tmp_path):
    from tripletreid.adaptation import round_start
    from tripletreid.experiment import checkpoints, train_flags
    people = load_dataset(trained / 'people.csv')
    embs = np.random.default_rng(0).normal(size=(len(people), 4)).astype(np.float32) + 3
    args, _ = arguments.load(str(trained / 'run'))
    argv = [str(each) for each in ['--experiment_root', tmp_path / 'round', '--train_set', trained / 'people.csv',
                                   '--image_root', trained, *adapt.DEFAULTS, '--batch_p', 3]]
    round_args = train_flags.make_parser().parse_args(argv)
    for name in ('model_name', 'embedding_dim', 'net_input_height', 'net_input_width'):
        setattr(round_args, name, getattr(args, name))

    def read(path, name):
        return checkpoints.open_reader(str(path)).get_tensor(name)

    # All weights come from the training.
    round_args.head_name = 'direct'
    round_start.write(round_args, str(trained / 'run'), None, True, embs)
    start, before = tmp_path / 'round' / 'checkpoint-0', trained / 'run' / 'checkpoint-4'
    for name in checkpoints.open_reader(str(before)).get_variable_to_shape_map():
        if name.startswith(('emb/', 'mnist')) and 'Adam' not in name:
            assert (read(start, name) == read(before, name)).all(), name
            assert (read(start, name + checkpoints.AVERAGE) == read(before, name)).all(), name
    unit = embs / np.linalg.norm(embs, axis=1, keepdims=True)
    expected = np.stack([unit[people.pids == pid].sum(axis=0) for pid in sorted(set(people.pids))])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(read(start, 'classifier/weights').T, expected, rtol=0, atol=1e-6)


def test_what_cannot_be_adapted_is_one_sentence(trained, tmp_path, monkeypatch):
    (tmp_path / 'empty').mkdir()
    root, initial = ['--experiment_root', tmp_path / 'new'], ['--initial_root', trained / 'run']
    for flags, words in [([*root, *initial, '--images', tmp_path / 'empty'], 'no image'),
                         ([*root, '--images', trained], '--initial_root'),
                         ([*root, '--resume'], 'adapt.json'),
                         ([*root, *initial, '--images', trained, '--', '--train_set', 'x'], '--train_set')]:
        assert_one_sentence(run_script('adapt.py', *flags), words)
    with pytest.raises(Exception, match='fewer than the 50 identities of a batch: lower --batch_p'):
        adapted(monkeypatch, tmp_path, 'few', *initial, '--images', trained / 'people.csv', '--image_root', trained,
                *FLAGS[:FLAGS.index('--batch_p') + 1], 50)


def test_signals_are_passed_on_to_the_running_command(tmp_path, monkeypatch):
    (tmp_path / 'slow.py').write_text(
        'import pathlib, signal, sys, time\n'
        'def end(*_):\n    pathlib.Path("heard").touch()\n    sys.exit(0)\n'
        'signal.signal(signal.SIGTERM, end)\npathlib.Path("started").touch()\ntime.sleep(300)\n')
    monkeypatch.setattr(plugins, 'HERE', tmp_path)
    monkeypatch.chdir(tmp_path)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def interrupt():
        wait_until((tmp_path / 'started').exists, 'the command')
        os.kill(os.getpid(), signal.SIGINT)

    try:
        running = children.Children()
        threading.Thread(target=interrupt).start()
        with pytest.raises(children.Interrupted, match='SIGINT'):
            running.run('slow.py')
        with pytest.raises(children.Interrupted):
            running.check()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert (tmp_path / 'heard').exists()


def test_resume_refuses_other_flags(undisturbed):
    parser = adapt.make_parser()
    args = parser.parse_args(['--experiment_root', str(undisturbed), '--resume', '--rounds', '5'])
    assert record.resumed(args, parser).rounds == 5 and record.resumed(args, parser).k1 == 6
    args = parser.parse_args(['--experiment_root', str(undisturbed), '--resume', '--k1', '5'])
    with pytest.raises(SystemExit):
        record.resumed(args, parser)
    assert isinstance(parser, argument_types.ArgumentParser)
