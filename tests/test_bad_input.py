"""Bad input to train.py and embed.py: one clear sentence, status 1 or 2, no traceback, and nothing lost."""
import importlib
import json
import os
import signal
import sys

import h5py
import numpy as np
import pytest
from PIL import Image

from _runs import Fault, Run, ended_in_one_sentence
from conftest import assert_one_sentence, run_script
from tripletreid import plugins
from tripletreid.errors import InputError


@pytest.fixture
def small(tmp_path):
    """A folder with 12 images of 3 identities and a csv file."""
    random = np.random.default_rng(0)
    lines = []
    for pid in range(3):
        for number in range(4):
            fid = f'{pid}_{number}.png'
            Image.fromarray(random.integers(0, 256, (12, 8, 3), dtype=np.uint8)).save(tmp_path / fid)
            lines.append(f'{pid},{fid}\n')
    (tmp_path / 'train.csv').write_text(''.join(lines))
    return tmp_path


def train_flags(folder, train_set='train.csv', image_root='.'):
    return ['--experiment_root', folder / 'run', '--train_set', folder / train_set, '--image_root', folder / image_root,
            '--model_name', 'mnist', '--head_name', 'direct', '--net_input_height', 12, '--net_input_width', 8,
            '--batch_p', 3, '--batch_k', 2, '--train_iterations', 3]


def train(folder, *more, **files):
    return run_script('train.py', *train_flags(folder, **files), *more)


@pytest.mark.parametrize('flags, parts', [
    (['--model_name', 'resnet_9000'], ['resnet_9000', 'mnist']),
    (['--head_name', '_dense'], ['_dense']),
    (['--loss', 'batch_soft'], ['batch_soft', 'batch_hard']),
    (['--metric', 'manhattan'], ['manhattan', 'cityblock']),
    (['--margin', 'sfot'], ['sfot']),
    (['--margin', 'nan'], ['nan']),
    (['--batch_k', '1'], ['batch_k']),
    (['--batch_p', '0'], ['batch_p']),
    (['--learning_rate', 'inf'], ['learning_rate']),
    (['--crop_augment', '--pre_crop_height', '10', '--pre_crop_width', '8'], ['12x8', '10x8']),
    (['--crop_augment', '--pre_crop_height', '10'], ['12x8', '10x9']),
    (['--batch_pp', '3'], ['batch_pp', 'did you mean --batch_p']),
])
def test_arguments(small, flags, parts):
    refused = train(small, *flags)
    assert_one_sentence(refused, *parts, status=2)
    assert refused.stderr.startswith('train.py: error: ') and len(refused.stderr.splitlines()) == 2
    assert not (small / 'run').exists()


@pytest.fixture
def called(tmp_path, monkeypatch, capfd):
    """Calls the main function of a command in an empty folder: (status or type of the error, output, errors)."""
    monkeypatch.chdir(tmp_path)

    def call(script, *given):
        monkeypatch.setattr(sys, 'argv', [script, *given])
        status = 0
        try:
            importlib.import_module(script.removesuffix('.py')).main()
        except SystemExit as exit_of:
            status = exit_of.code
        except InputError as error:
            status = type(error)
        return status, *capfd.readouterr()

    return call


@pytest.mark.parametrize('command, parts', [
    (['train.py', '--experiment_rot', 'run'], ['no flag --experiment_rot;', '--experiment_root']),
    (['train.py', '--experiment_root', 'run', '--resum'], ['no flag --resum;', '--resume']),
    (['train.py', '--experiment_root', 'run', '--flub=3'], ['no flag --flub']),
    (['train.py', '--experiment_root', 'run', 'more'], ['more']),
    (['train.py', '--experiment_root', 'run', '--decay_start_iteration', '-1'], ['--train_set']),
    (['embed.py', '--experiment_root', 'run', '--datset', 'a.csv'], ['--datset', '--dataset']),
    (['evaluate.py', '--excluder', 'diagonal', '--query_embedings', 'a.h5'], ['--query_embedings', '--query_embeddings']),
    (['evaluate.py', '--excluder', 'diagonal'], ['required', '--metric']),
    (['freeze.py', '--frozen_path', 'a'], ['--frozen_path', '--frozen_model_path']),
    (['visualize.py', 'report', 'a.json', '--topk', '3'], ['--topk', '--top_k']),
    (['visualize.py', 'reprot', 'a.json'], ['reprot', 'report']),
    (['make_dataset.py', 'folder', 'a', '--val_fractoin=0.2'], ['--val_fractoin', '--val_fraction']),
    (['search.py', '--experiment_root', 'run', '--gallery', 'a'], ['PHOTO', '--serve']),
    (['search.py', '--experiment_root', 'run', '--gallery', 'a', '--serve', 'b.jpg'], ['--serve']),
    (['search.py', '--experiment_root', 'run', '--gallery', 'a', 'b.jpg', '--filename', 'c', '--report', './c'],
     ['--filename', '--report']),
    (['search.py', '--experiment_root', 'run', '--gallery', 'a', 'b.jpg', '--port', '80'], ['--port', '--serve']),
    (['search.py', '--experiment_root', 'run', '--gallery', 'a', 'b.jpg', '--fpr', '.1'], ['--threshold_from', '--fpr']),
    (['trinet_embed.py', 'a.txt', 'b.npz', '--batchsize', '3'], ['--batchsize', '--batch_size']),
])
def test_usage_errors_are_a_sentence_that_names_the_intended_flag(called, command, parts):
    status, _, printed = called(*command)
    assert status == 2 and printed.startswith(command[0]) and len(printed.splitlines()) == 2, printed
    assert ': error: ' in printed.splitlines()[0] and '--help' in printed.splitlines()[1]
    for part in parts:
        assert part in printed.splitlines()[0]


@pytest.mark.parametrize('command, name', [
    (['trinet_embed.py', 'pipe', 'b.npz'], 'files.txt'), (['evaluate.py', '--compare', 'a.json', 'pipe'], '--compare'),
    (['visualize.py', 'report', 'pipe'], 'EVALUATION'), (['embed.py', '--experiment_root', 'pipe', '--dataset', 'a.csv'],
                                                         '--experiment_root'),
])
def test_a_pipe_is_not_waited_for(called, command, name, tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    status, _, printed = called(*(str(tmp_path / 'pipe') if each == 'pipe' else each for each in command))
    assert status == 2 and f'{name} {tmp_path}/pipe is a pipe' in printed


@pytest.mark.parametrize('command', [
    'train.py', 'embed.py', 'evaluate.py', 'freeze.py', 'visualize.py', 'visualize.py curves', 'make_dataset.py',
    'make_dataset.py folder', 'make_dataset.py check', 'trinet_embed.py', 'search.py'])
def test_help_ends_in_an_example_that_the_parser_takes(called, command):
    status, shown, _ = called(*command.split(), '--help')
    assert status == 0
    example = shown.split('\nexample:\n')[1].split('\n\n')[0]
    os.makedirs('runs/first')
    for line in example.replace('\\\n', ' ').strip().splitlines():
        python, *words = line.split('>')[0].split()
        assert python == 'python' and words[0] == command.split()[0]
        status, _, printed = called(*words)
        assert status in (0, InputError), printed  # Their files are not there, but the command line is right.


def test_missing_files(small):
    assert_one_sentence(train(small, train_set='none.csv'), 'none.csv')
    assert_one_sentence(train(small, image_root='nowhere'), 'nowhere')
    (small / '1_2.png').unlink()
    (small / '2_0.png').unlink()
    assert_one_sentence(train(small), '2 of 12', '1_2.png', '2_0.png')
    (small.parent / 'secret.png').write_bytes((small / '0_0.png').read_bytes())
    (small / 'out.csv').write_text('0,../secret.png\n1,/etc/passwd\n2,2_1.png\n')
    assert_one_sentence(train(small, train_set='out.csv'), '2 of 3', '../secret.png', '--allow_outside_root')
    assert not (small / 'run').exists()


@pytest.mark.parametrize('text, part', [
    ('0\n1\n', 'column'), ('0,0_0.png\n\n1,1_0.png\n', 'line 2'), ('', 'empty'), ('0,0_0.png\n1\n', 'line 2'),
])
def test_broken_csv(small, text, part):
    (small / 'broken.csv').write_text(text)
    assert_one_sentence(train(small, train_set='broken.csv'), 'broken.csv', part)


def test_experiment_root_in_use_or_unusable(small):
    (small / 'run').mkdir()
    (small / 'run' / 'notes.txt').write_text('mine')
    assert_one_sentence(train(small), 'not empty', '--resume')
    assert [path.name for path in (small / 'run').iterdir()] == ['notes.txt']
    assert_one_sentence(train(small, '--resume'), 'args.json')
    for text, part in [('{"batch_p": ', 'JSON'), ('[1]', 'JSON object'), ('{"model_name": "os"}', 'model_name'),
                       ('{"batch_p": "many"}', 'batch_p'), ('{"batch_p": [1]}', 'batch_p'),
                       ('{"flip_augment": 1}', 'flip_augment'), ('[' * 100000, 'JSON')]:
        (small / 'run' / 'args.json').write_text(text)
        assert_one_sentence(train(small, '--resume'), 'args.json', part)
        assert (small / 'run' / 'args.json').read_text() == text


def test_a_run_that_cannot_start_can_be_started_again(small):
    (small / 'run').mkdir()
    (small / 'lone.csv').write_text('0,0_0.png\n0,0_1.png\n1,1_0.png\n2,2_0.png\n')
    for flags, parts in [
            (['--train_set', small / 'lone.csv'], ['2 of 3 identities', 'lone.csv', 'one image']),
            (['--batch_p', 4], ['3 identities', '--batch_p']), (['--initial_checkpoint', small / 'typo'], ['typo']),
            (['--last_stride', 1], ['mnist', '--last_stride']),
            (['--skip_broken_images', '--initial_checkpoint', small / 'typo'], ['typo'])]:
        ended_in_one_sentence(Run('train.py', *train_flags(small), *flags), *parts)
        assert os.listdir(small / 'run') == ['.lock']
    run = Run('train.py', *train_flags(small))
    assert run.wait() == 0, run.output


def test_image_that_does_not_decode_stops_embedding(small):
    run = Run('train.py', *train_flags(small))
    assert run.wait() == 0, run.output
    whole = (small / '1_1.png').read_bytes()
    (small / '1_1.png').write_bytes(b'no image')
    embed = ['--experiment_root', small / 'run', '--dataset', small / 'train.csv']
    ended_in_one_sentence(Run('embed.py', *embed), '1_1.png')
    assert not (small / 'run' / 'train_embeddings.h5').exists()

    # The rows before it were kept.
    (small / '1_1.png').write_bytes(whole)
    run = Run('embed.py', *embed, '--resume')
    assert run.wait() == 0, run.output
    with h5py.File(small / 'run' / 'train_embeddings.h5') as file:
        assert file['emb'].shape == (12, 128)
    ended_in_one_sentence(Run('embed.py', *embed, '--checkpoint', 'checkpoint-77'), 'checkpoint-77', 'checkpoint-3')


def test_an_interrupted_embedding_says_how_it_goes_on(small):
    run = Run('train.py', *train_flags(small))
    assert run.wait() == 0, run.output
    embed = ['--experiment_root', small / 'run', '--dataset', small / 'train.csv', '--batch_size', 5]
    # Rows are brought to the disk with each batch.
    run = Run('embed.py', *embed, fault=Fault(signal.SIGINT, 'file', 2))
    assert run.wait() == -signal.SIGINT and 'of 12 rows are kept: continue with --resume.' in run.output, run.output
    assert 'Traceback' not in run.output
    run = Run('embed.py', *embed, '--resume')
    assert run.wait() == 0 and 'Resuming after' in run.output, run.output


def test_paths_that_count_from_the_folder_of_the_training(small):
    (small / 'run').mkdir()
    stored = {'train_set': 'train.csv', 'image_root': 'images', 'model_name': 'mnist', 'head_name': 'direct'}
    (small / 'run' / 'args.json').write_text(json.dumps(stored))
    (small / 'elsewhere').mkdir()
    (small / 'elsewhere' / 'train.csv').write_text((small / 'train.csv').read_text())
    root = ['--experiment_root', '../run']
    for command in (['embed.py', *root, '--dataset', 'train.csv'], ['train.py', *root, '--resume'],
                    ['freeze.py', *root, '--check_dataset', 'train.csv']):
        refused = run_script(*command, cwd=small / 'elsewhere')
        assert_one_sentence(refused, '../run/args.json names the image root images,', 'in which training was started',
                            '--image_root', status=1)
    # With the flag it is found, and the next thing is missing.
    (small / '1_1.png').unlink()
    assert_one_sentence(run_script(*command, '--image_root', small, cwd=small / 'elsewhere'), f'not in {small}: 1_1.png')
    (small / 'elsewhere' / 'train.csv').unlink()
    refused = run_script('train.py', *root, '--resume', '--image_root', small, cwd=small / 'elsewhere')
    assert_one_sentence(refused, '../run/args.json names train_set train.csv,', 'in which training was started')
    (small / 'run' / 'args.json').write_text(json.dumps({**stored, 'image_root': '/nowhere'}))
    refused = run_script('embed.py', *root, '--dataset', small / 'train.csv', cwd=small / 'elsewhere')
    assert_one_sentence(refused, 'the image root /nowhere, which does not exist; give another --image_root')


def test_a_net_whose_layers_have_no_names(small, tmp_path_factory):
    """Validation builds it a second time, and Keras numbers such layers within a process."""
    folder = tmp_path_factory.mktemp('plugins')
    (folder / 'nets').mkdir()
    (folder / 'nets' / 'unnamed.py').write_text('''import keras


def body(input_shape):
    images = keras.Input(input_shape, name='images')
    features = keras.layers.Conv2D(4, 3)(images)
    return keras.Model(images, {'model_output': keras.layers.GlobalAveragePooling2D()(features)})
''')
    run = Run('train.py', *train_flags(small), '--model_name', 'unnamed', '--eval_query', small / 'train.csv',
              '--eval_gallery', small / 'train.csv', '--eval_excluder', 'diagonal', '--eval_frequency', 2,
              fault=Fault(_AnotherNet(folder, 'unnamed'), 'start'))
    ended_in_one_sentence(run, 'conv2d', 'name=')


class _AnotherNet:
    """Adds a net to those that a run may choose from: other tests list the project's folder at the same time."""

    def __init__(self, folder, name):
        self.folder, self.name = folder, name

    def __call__(self):
        sys.path.append(str(self.folder))  # nets/ is a namespace, which may be of several folders.
        choices = plugins.choices
        plugins.choices = lambda folder: choices(folder) + [self.name] * (folder == 'nets')


def test_a_training_set_that_was_changed_meanwhile(small):
    run = Run('train.py', *train_flags(small), '--detailed_logs')
    assert run.wait() == 0, run.output
    (small / 'run' / 'checkpoint-3.index').unlink()
    (small / 'run' / 'checkpoint').unlink()
    lines = (small / 'train.csv').read_text()
    (small / 'train.csv').write_text(''.join(lines.splitlines(keepends=True)[1:]))
    run = Run('train.py', '--experiment_root', small / 'run', '--resume')
    assert run.wait() == 0 and 'train.csv changed since the last start' in run.output, run.output

    (small / 'run' / 'checkpoint-3.index').unlink()
    (small / 'run' / 'checkpoint').unlink()
    (small / 'longer_name.png').write_bytes((small / '1_1.png').read_bytes())
    (small / 'train.csv').write_text(lines + '0,longer_name.png\n')
    logged = (small / 'run' / 'log_fids.npy').read_bytes()
    ended_in_one_sentence(Run('train.py', '--experiment_root', small / 'run', '--resume'), 'log_fids.npy')
    assert (small / 'run' / 'log_fids.npy').read_bytes() == logged


def test_broken_images_are_skipped(small):
    run = Run('train.py', *train_flags(small))
    assert run.wait() == 0, run.output
    (small / '1_1.png').write_bytes(b'no image')
    listed = (small / 'train.csv').read_bytes()
    embed = ['--experiment_root', small / 'run', '--dataset', small / 'train.csv', '--skip_broken_images', '--filename']
    ended_in_one_sentence(Run('embed.py', *embed, small / 'train.h5'), 'train.csv', '--filename')
    assert (small / 'train.csv').read_bytes() == listed
    run = Run('embed.py', *embed, small / 'others.h5')
    assert run.wait() == 0 and len((small / 'others.csv').read_text().splitlines()) == 11, run.output


def test_embedding_arguments(small):
    embed = ['embed.py', '--experiment_root', small / 'run', '--dataset', small / 'train.csv']
    assert_one_sentence(run_script(*embed), 'run')
    (small / 'run').mkdir()
    args = {'train_set': 'train.csv', 'image_root': str(small), 'model_name': 'mnist', 'head_name': 'direct'}
    (small / 'run' / 'args.json').write_text(json.dumps(args))
    assert_one_sentence(run_script(*embed, '--flip_augment'), '--aggregator')
    assert_one_sentence(run_script(*embed, '--crop_augment', 'five'), '--aggregator')
    assert_one_sentence(run_script(*embed, '--aggregator', 'mean'), '--aggregator')
    assert_one_sentence(run_script(*embed, '--pool_tracklets', 'mean'), 'third column')
    ended_in_one_sentence(Run(*embed), 'checkpoint')
    # A root of before, with the sizes of the original and a small net.
    (small / 'run' / 'args.json').write_text(json.dumps({**args, 'net_input_height': 32, 'net_input_width': 32}))
    warned = run_script(*embed[:3], '--dataset', small / 'none.csv', '--crop_augment', 'center')
    assert_one_sentence(warned, 'none.csv')
    assert 'Warning: Crops of 32x32 are a small part of images that are loaded at 288x144' in warned.stderr
