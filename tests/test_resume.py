"""Exact resume: a run that was interrupted, however and whenever, ends in the bits of one that was not."""
import time

import numpy as np
import pytest

from _runs import Run, interrupt_until_done, left_behind, make_people, train_arguments

# Others at each run of the tests; soak.py has as many as one likes.
INTERRUPTIONS = 6


@pytest.fixture(scope='module')
def people(tmp_path_factory):
    return make_people(tmp_path_factory.mktemp('people'))


@pytest.fixture(scope='module')
def undisturbed(people, tmp_path_factory):
    """(what an undisturbed run leaves behind, how many seconds it takes)."""
    root = tmp_path_factory.mktemp('undisturbed') / 'run'
    Run('train.py', '--help').wait()  # The fork server has started after that.
    started = time.monotonic()
    run = Run('train.py', *train_arguments(people, root))
    assert run.wait() == 0, run.output
    return left_behind(root, 20), time.monotonic() - started


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
        found = left_behind(root, 20)
        for what in expected:
            assert found[what] == expected[what], (what, happened)
