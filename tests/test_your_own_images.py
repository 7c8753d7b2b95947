"""The walkthrough of docs/your_own_images.md, line by line as it stands there, on pictures that are made up."""
import json
import re
import subprocess

import numpy as np
import pytest
from PIL import Image

from _forked_python import forking_python
from conftest import ROOT

MANUAL = ROOT / 'docs' / 'your_own_images.md'


@pytest.fixture
def folder(tmp_path):
    """Write links to the commands, and the folder `products`: 20 identities, 4 pictures of each of its own colours."""
    for command in ROOT.glob('*.py'):
        (tmp_path / command.name).symlink_to(command)
    random = np.random.default_rng(0)
    for identity in range(20):
        colours = random.integers(0, 200, (5, 4, 3))
        (tmp_path / 'products' / f'product {identity}').mkdir(parents=True)
        for number in range(4):
            pixels = np.kron(colours + random.integers(0, 56, colours.shape), np.ones((9, 9, 1))).astype(np.uint8)
            ending = ('jpg', 'png', 'webp', 'bmp')[number]
            Image.fromarray(pixels).save(tmp_path / 'products' / f'product {identity}' / f'{number}.{ending}')
    return tmp_path


def test_every_line_of_the_walkthrough_runs(folder, tmp_path_factory):
    lines = '\n'.join(re.findall(r'^```sh\n(.*?)^```', MANUAL.read_text(encoding='utf-8'), re.DOTALL | re.MULTILINE))
    assert lines.count('python ') == 9
    commands = tmp_path_factory.mktemp('bin')
    (commands / 'python').symlink_to('python3')
    with forking_python(commands) as environment:
        done = subprocess.run(['sh', '-e', '-c', lines], cwd=folder, capture_output=True, text=True, timeout=300,
                              env={**environment, 'ITERATIONS': '8'})
    assert done.returncode == 0, done.stdout + done.stderr
    assert not re.search(r'^[Ww]arning: |\[WARNING\]', done.stderr, re.MULTILINE), done.stderr
    run = folder / 'runs' / 'first'
    args = json.loads((run / 'args.json').read_text())
    assert args['train_iterations'] == 8 and args['decay_start_iteration'] == 4
    evaluation = json.loads((run / 'evaluation.json').read_text())
    assert evaluation['counts'] == {'queries': 8, 'queries_without_match': 0, 'gallery': 8, 'junk': 0}
    assert evaluation['mAP'] > 0.5
    validations = re.findall(r'\[VALIDATION\] train: iter: *(\d+), validation mAP', (run / 'train.log').read_text())
    assert validations == ['2', '4', '6', '8']
    for name in ('evaluation.html', 'found.html', 'evaluation_rankings.png', 'curves.png'):
        assert (run / name).stat().st_size > 1000, name
