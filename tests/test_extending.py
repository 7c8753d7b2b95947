"""The examples of docs/extending.md keep the contracts of their folders."""
import inspect
import re

import numpy as np
import pytest
import tensorflow as tf

import test_contracts
from conftest import ROOT
from tripletreid import plugins
from tripletreid.argument_types import non_negative_float
from tripletreid.experiment import train_flags

BLOCKS = re.findall(r'```python\n(.*?)```', (ROOT / 'docs' / 'extending.md').read_text(encoding='utf-8'), re.DOTALL)
EXAMPLES = {found[1]: block for block in BLOCKS if (found := re.match(r'"""(\w+/\w+)\.py: ', block))}
FLAGS = [block for block in BLOCKS if block.startswith('add(')]
TESTS = {'nets': test_contracts.test_net, 'objectives': test_contracts.test_objective,
         'samplers': test_contracts.test_sampler}


def test_there_are_examples():
    assert TESTS.keys() <= {example.split('/')[0] for example in EXAMPLES} and FLAGS


@pytest.mark.parametrize('example', [example for example in EXAMPLES if example.split('/')[0] in TESTS])
def test_example(example, tmp_path, monkeypatch):
    """As if its file were in the folder of the plug-ins, and its flags in the parser."""
    folder, name = example.split('/')
    (tmp_path / folder).mkdir()
    (tmp_path / folder / f'{name}.py').write_text(EXAMPLES[example])
    monkeypatch.syspath_prepend(tmp_path)
    choices, make_parser = plugins.choices, train_flags.make_parser
    monkeypatch.setattr(plugins, 'choices', lambda where: sorted([*choices(where), *[name] * (where == folder)]))

    def with_flags():
        parser = make_parser()
        for flag in FLAGS:
            exec(flag, {'add': parser.add_argument, 'non_negative_float': non_negative_float})
        return parser

    monkeypatch.setattr(train_flags, 'make_parser', with_flags)
    test = TESTS[folder]
    photos = np.random.default_rng(0).uniform(0, 255, (2, *test_contracts.INPUT_SHAPE)).astype(np.float32)
    fixtures = {'photos': tf.constant(photos), 'monkeypatch': monkeypatch}
    test(name, **{name: fixtures[name] for name in fixtures.keys() & inspect.signature(test).parameters.keys()})
