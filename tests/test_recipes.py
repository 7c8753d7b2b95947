"""Each recipe runs end to end on a small dataset in the layout of its own, shortened by flags appended to it."""
import functools
import json
import os
import subprocess

import keras
import numpy as np
import pytest
from PIL import Image

from _few_units import few_units
from _forked_python import forking_python
from _people import write_market1501
from _published_vit import DEPTH, HEADS, PATCH, WIDTH, jax_arrays, random_weights, torch_arrays, written
from conftest import ROOT
from nets import _vit
from tripletreid.experiment import checkpoints
from tripletreid.modeling import model

pytestmark = pytest.mark.long

RECIPES = sorted(str(path.relative_to(ROOT / 'recipes')) for path in (ROOT / 'recipes').rglob('[!_]*.sh'))
SMALL = ['--batch_p', '2', '--batch_k', '2', '--train_iterations', '1', '--net_input_height', '32', '--net_input_width',
         '32']
# The initial weights of each recipe; a recipe that differs from another one only in the loss runs with a smaller net.
# ResNets have few units here; test_fidelity.py trains one with all of them. Transformers are tiny.
STARTS_FROM = {
    'lunet_market1501.sh': None,
    'mobilenet_market1501.sh': 'mnist',
    'two_tricks_market1501.sh': 'resnet_v1_50',
    'strong_baseline_market1501.sh': 'resnet_v1_50',
    'sbs_market1501.sh': 'resnet_v1_50',
    'xent_market1501.sh': 'resnet50',
    'xent_triplet_market1501.sh': 'mnist',
    'osnet_market1501.sh': 'mnist with head',
    'vit_market1501.sh': 'augreg',
    'personvit_market1501.sh': 'personvit',
}

ON_CLUSTERS = ('cluster/slurm_embed.sh', 'cluster/slurm_train.sh', 'cluster/ssh_embed.sh')

# Their sources lower Adam's beta1 with the learning rate, as the paper says (section 4.1).
LOWER_BETA1 = ('lunet_market1501.sh', 'two_tricks_market1501.sh')


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    """A folder with the project in it, by links, whose data/ gets the csv files that the recipes make."""
    folder = tmp_path_factory.mktemp('project')
    for name in ('data', 'recipes/cluster'):
        (folder / name).mkdir(parents=True)
    scripts = ('train.py', 'embed.py', 'evaluate.py', 'visualize.py', 'make_dataset.py')
    for name in (*scripts, 'recipes/_start.sh', *(f'recipes/{recipe}' for recipe in RECIPES)):
        (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.fixture(scope='module')
def market1501(tmp_path_factory):
    folder = tmp_path_factory.mktemp('datasets') / 'market1501'
    write_market1501(folder, identities=4, images_per_camera=2)
    return folder


TRANSFORMER_BODY = _vit.Architecture.body


@functools.wraps(TRANSFORMER_BODY)
def _tiny(architecture, input_shape, **options):
    tiny = architecture._replace(patch=PATCH, width=WIDTH, heads=HEADS, depth=DEPTH)
    return TRANSFORMER_BODY(tiny, input_shape, **options)


def _make_shallow():
    _vit.Architecture.body = _tiny
    few_units(setattr)


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    """Files with random weights, to start from: name of a net -> path."""
    folder = tmp_path_factory.mktemp('weights')
    with pytest.MonkeyPatch.context() as patch:
        few_units(patch.setattr)
        for name in ('resnet_v1_50', 'mnist'):
            body = model.build(name, 'direct', 2, (32, 32, 3)).body
            checkpoints.save(folder, ('resnet_v1_50', 'mnist').index(name), model.named_variables(body))
        whole = model.build('mnist', 'linear_bn_relu', 8, (32, 32, 3))
        checkpoints.save(folder, 2, model.named_variables(whole))
        keras.applications.ResNet50(include_top=False, weights=None).save_weights(folder / 'resnet50.weights.h5')
    siglip = random_weights((4, 4), class_token=False, map_head=True)
    transformers = {
        'augreg': written(folder / 'augreg.npz', jax_arrays(random_weights((4, 4)))),
        'personvit': written(folder / 'personvit.safetensors', torch_arrays(random_weights((8, 4)), 'module.backbone.')),
        'siglip2': written(folder / 'siglip2.npz', jax_arrays(siglip, 'params/img/', stacked=True) | {
            'params/t': np.zeros(1), 'params/b': np.zeros(1), 'params/txt/head/bias': np.zeros(3)})}
    return {**transformers, 'resnet_v1_50': folder / 'checkpoint-0', 'mnist': folder / 'checkpoint-1',
            'mnist with head': folder / 'checkpoint-2',
            'resnet50': folder / 'resnet50.weights.h5'}


@pytest.fixture(scope='module')
def run_recipe(project, tmp_path_factory):
    """A function (name of a recipe, arguments) -> the finished process."""
    with forking_python(tmp_path_factory.mktemp('python'), _make_shallow) as environment:
        yield lambda name, *arguments: subprocess.run(
            ['sh', str(project / 'recipes' / name), *map(str, arguments)], capture_output=True, text=True, timeout=500,
            env=environment)


def test_there_is_a_test_of_every_recipe():
    assert RECIPES == sorted([*STARTS_FROM, 'mnist.sh', 'omniglot.sh', 'siglip2_folder.sh', *ON_CLUSTERS])


@pytest.mark.parametrize('name', RECIPES)
def test_recipe_prints_its_usage(name, run_recipe):
    process = run_recipe(name)
    assert process.returncode == 1 and 'Usage:' in process.stderr and 'IMAGE_ROOT' in process.stderr


@pytest.mark.parametrize('name', STARTS_FROM)
def test_recipe_on_market1501(name, run_recipe, project, market1501, weights, tmp_path):
    start = STARTS_FROM[name]
    smaller = {'mnist': ['--model_name', 'mnist', '--embedding_dim', 8],
               'mnist with head': ['--model_name', 'mnist', '--embedding_dim', 8], 'augreg': ['--embedding_dim', WIDTH],
               'personvit': ['--embedding_dim', WIDTH]}.get(start, [])
    crops = '--pre_crop_height' in (ROOT / 'recipes' / name).read_text()
    process = run_recipe(name, market1501, *([weights[start]] if start else []), tmp_path / 'run', *SMALL, *smaller,
                         *(['--pre_crop_height', 36, '--pre_crop_width', 36] if crops else []))
    assert process.returncode == 0, process.stderr
    assert (tmp_path / 'run' / 'checkpoint-1.index').exists()
    assert (project / 'data' / 'market1501_train.csv').exists()
    if start:
        assert f'Initialised {"body and head" if start == "mnist with head" else "the body"} from' in process.stderr
    args = json.loads((tmp_path / 'run' / 'args.json').read_text())
    assert any(word in name for word in ('xent', 'strong', 'vit', 'sbs', 'osnet')) == (args['xent_weight'] == 1)
    assert (args['center_weight'] > 0) == ('strong' in name) and (args['classifier'] == 'circle') == ('sbs' in name)
    assert (args['pad_crop'] == 10) == any(word in name for word in ('strong', 'vit', 'sbs', 'osnet'))
    assert [args[option] for option in ('class_token', 'gelu', 'pixels')] == {
        'augreg': ['yes', 'tanh', 'half'], 'personvit': ['yes', 'exact', 'half']}.get(start, [None] * 3)
    assert args['decay_beta1'] == (0.5 if name in LOWER_BETA1 else None)


def test_slurm_starts_all_tasks_and_goes_on_when_it_is_submitted_again(project, tmp_path):
    (tmp_path / 'srun').write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / 'srun').chmod(0o755)
    environment = {**os.environ, 'PATH': f'{tmp_path}{os.pathsep}{os.environ["PATH"]}'}
    printed = []
    for _ in range(2):
        recipe = project / 'recipes/cluster/slurm_train.sh'
        process = subprocess.run(['sh', recipe, tmp_path / 'run', '--train_set', 'a.csv'],
                                 capture_output=True, text=True, timeout=60, env=environment, check=True)
        printed.append(process.stdout.split())
        (tmp_path / 'run').mkdir(exist_ok=True)
        (tmp_path / 'run' / 'args.json').write_text('{}')
    start = ['python3', 'train.py', '--experiment_root', str(tmp_path / 'run'), '--distribute', 'multi_worker']
    assert printed == [[*start, '--train_set', 'a.csv'], [*start, '--resume']]


def write_idx(path, array):
    header = np.array([0x0800 + array.ndim, *array.shape], '>u4').tobytes()
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def test_mnist_recipe_draws_the_embedding_of_each_checkpoint(run_recipe, project, tmp_path):
    random = np.random.default_rng(0)
    for part, count in (('train', 30), ('t10k', 20)):
        labels = np.arange(count) % 10
        write_idx(tmp_path / f'{part}-labels-idx1-ubyte', labels)
        write_idx(tmp_path / f'{part}-images-idx3-ubyte', random.integers(0, 256, (count, 28, 28)) // 10 + 20 *
                  labels[:, None, None])
    process = run_recipe('mnist.sh', tmp_path, tmp_path / 'run', '--train_iterations', 2, '--checkpoint_frequency', 0,
                         '--batch_k', 2)
    assert process.returncode == 0, process.stderr
    pictures = sorted(path.name for path in (tmp_path / 'run').glob('*.png'))
    assert pictures == ['mnist_test_checkpoint-0.png', 'mnist_test_checkpoint-2.png']
    assert (project / 'data' / 'mnist_train.csv').exists()


def test_omniglot_recipe_chooses_by_one_alphabet_and_tests_on_others(run_recipe, tmp_path):
    random = np.random.default_rng(0)
    for number, alphabet in enumerate(('Greek', 'Latin', 'Sanskrit', 'Tagalog')):
        for character in (1, 2, 3):
            folder = tmp_path / 'images' / alphabet / f'character{character:02}'
            folder.mkdir(parents=True)
            strokes = np.kron(random.integers(0, 2, (7, 7)), np.ones((15, 15))) > 0
            for drawer in range(1, 21):
                Image.fromarray(np.roll(strokes, drawer % 3)).save(folder / f'{3 * number + character:04}_{drawer:02}.png')
    process = run_recipe('omniglot.sh', tmp_path / 'images', tmp_path / 'run', *SMALL, '--eval_frequency', 1)
    assert process.returncode == 0, process.stderr
    evaluation = json.loads((tmp_path / 'run' / 'evaluation.json').read_text())
    assert evaluation['counts'] == {'queries': 2 * 3 * 5, 'queries_without_match': 0, 'gallery': 2 * 3 * 15, 'junk': 0}
    assert 'Training on 60 images of 3 identities' in process.stderr
    assert json.loads((tmp_path / 'run' / 'checkpoint-best').read_text())['checkpoint'] == 'checkpoint-1'


def test_siglip2_recipe_trains_the_head_alone(run_recipe, weights, tmp_path):
    random = np.random.default_rng(0)
    for thing in range(10):
        (tmp_path / 'images' / f'{thing}').mkdir(parents=True)
        for number in range(4):
            pixels = np.kron(random.integers(0, 256, (4, 4, 3)), np.ones((9, 9, 1)))
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / 'images' / f'{thing}' / f'{number}.png')
    process = run_recipe('siglip2_folder.sh', tmp_path / 'images', weights['siglip2'], tmp_path / 'run', *SMALL,
                         '--embedding_dim', 8, '--eval_frequency', 1)
    assert process.returncode == 0, process.stderr
    assert 'siglip2.npz, ignoring its params/b, params/t, params/txt/head/bias.' in process.stderr
    args = json.loads((tmp_path / 'run' / 'args.json').read_text())
    assert [args[option] for option in ('pooling', 'class_token', 'gelu', 'pixels')] == ['map', 'no', 'tanh', 'half']
    first, last = (checkpoints.open_reader(str(tmp_path / 'run' / f'checkpoint-{step}')) for step in (0, 1))
    for name in ('vit_b16/block_2/fc1/weights', 'vit_b16/map_head/probe', 'emb/weights'):
        assert (first.get_tensor(name) == last.get_tensor(name)).all() == (name != 'emb/weights'), name
