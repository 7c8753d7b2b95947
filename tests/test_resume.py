"""Exact resume: a run that was interrupted, however and whenever, ends in the bits of one that was not."""
import json
import time

import numpy as np
import pytest

from _runs import Run, ended_in_one_sentence, interrupt_until_done, make_people, run_results, train_arguments

# Others at each run of the tests; soak.py has as many as one likes.
INTERRUPTIONS = 3


@pytest.fixture(scope='module')
def people(tmp_path_factory):
    return make_people(tmp_path_factory.mktemp('people'))


@pytest.fixture(scope='module')
def undisturbed(people, tmp_path_factory):
    """Return the results of an undisturbed run and its seconds."""
    root = tmp_path_factory.mktemp('undisturbed') / 'run'
    Run('train.py', '--help').wait()  # The fork server has started after that.
    started = time.monotonic()
    run = Run('train.py', *train_arguments(people, root))
    assert run.wait() == 0, run.output
    return run_results(root, 20), time.monotonic() - started


def test_interrupted_runs_end_in_the_same_bits(people, undisturbed, tmp_path):
    expected, seconds = undisturbed
    assert len(expected['log']) == 20 and len(expected['curves']['loss']) == 20
    random = np.random.default_rng()
    happened, runs = [], 0
    while len(happened) < INTERRUPTIONS:
        assert runs < 10 * INTERRUPTIONS, f'hardly any fault strikes: {happened}'
        root, runs = tmp_path / str(runs), runs + 1
        happened += interrupt_until_done(train_arguments(people, root), root, random, seconds,
                                         INTERRUPTIONS - len(happened))
        found = run_results(root, 20)
        for name in expected:
            assert found[name] == expected[name], (name, happened)


def test_a_flag_that_a_resumed_run_cannot_use_is_not_stored(people, tmp_path):
    """A run of a version without the flag, whose checkpoints lack its variables, continues without it."""
    root = tmp_path / 'run'
    assert Run('train.py', *train_arguments(people, root, 4)).wait() == 0
    stored = json.loads((root / 'args.json').read_text())
    del stored['mixed_precision']
    (root / 'args.json').write_text(json.dumps(stored))
    resume = ['--experiment_root', root, '--resume', '--train_iterations', 5]
    ended_in_one_sentence(Run('train.py', *resume, '--mixed_precision', 'float16'), 'checkpoint-4', 'lacks loss_scale')
    assert json.loads((root / 'args.json').read_text()) == stored
    run = Run('train.py', *resume)
    assert run.wait() == 0, run.output
    kept = json.loads((root / 'args.json').read_text())
    assert kept == {**stored, 'train_iterations': 5, 'mixed_precision': 'none'}
