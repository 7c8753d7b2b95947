"""benchmarks/factors.py: the table of one factor after another. No run is made here."""
import argparse
import json
import runpy
import shlex
import sys

import numpy as np
import pytest

from conftest import ROOT
from tripletreid.errors import InputError
from tripletreid.experiment import flag_checks, train_flags
from tripletreid.training import checks

PIDS = [f'character{number}' for number in range(8) for _ in range(5)]


@pytest.fixture
def factors(monkeypatch):
    monkeypatch.setattr(sys, 'path', list(sys.path))
    monkeypatch.setattr(sys, 'argv', ['factors.py', 'digits', 'a folder'])
    return argparse.Namespace(**runpy.run_path(str(ROOT / 'benchmarks' / 'factors.py')))


def test_every_factor_can_be_trained(factors):
    parser = train_flags.make_parser()
    for setting in factors.DATASETS.values():
        for name, flags in factors.FACTORS.items():
            flags_of_run = factors.with_factor(setting.plain, flags)
            command = f'--experiment_root x --train_set x --image_root x --train_iterations 200 {flags_of_run}'
            args = parser.parse_args(shlex.split(command))
            flag_checks.check(args, parser)
            checks.check_margin(args.loss, args.margin)
            checks.check_metric(args.loss, args.metric)
            assert (name == 'plain') == (not flags)


def test_a_factor_takes_precedence_or_takes_away(factors):
    assert factors.with_factor('--a 1 --b', '--a 2') == '--a 1 --b --a 2'
    assert factors.with_factor('--a 1 --b', '--no_b --c 3') == '--a 1 --c 3'


def test_interval_of_seeds_is_students(factors):
    # Mean 2, standard deviation 1, and 4.3027 is the 97.5% quantile of t with two degrees of freedom.
    low, high = 100 * (2 - 4.3027 / 3 ** 0.5), 100 * (2 + 4.3027 / 3 ** 0.5)
    assert factors.interval_of_seeds([1, 2, 3]) == f'{low:+.1f} to {high:+.1f}'
    assert factors.interval_of_seeds([1]) == 'unknown'


def test_table(factors):
    random = np.random.default_rng(0)
    plain = [{'pids': PIDS, 'aps': list(random.uniform(0.3, 0.7, 40)), 'cpu_seconds': 10} for _ in range(3)]
    better = [{**each, 'aps': [ap + 0.2 + 0.002 * number for number, ap in enumerate(each['aps'])], 'cpu_seconds': 30}
              for each in plain]
    worse = [{**each, 'aps': [ap - 0.1 for ap in each['aps']]} for each in plain]
    results, setting = {'plain': plain, 'margin 0.2': worse, 'rotated': better}, factors.DATASETS['omniglot']
    lines = factors.table(results, setting, argparse.Namespace(iterations=300, against='plain')).splitlines()
    assert "`python benchmarks/factors.py digits 'a folder'` printed this: mAP of 40 queries, 8 characters" in lines[0]
    rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in lines[-3:]]
    assert [row[0] for row in rows] == ['plain', 'rotated `--rotate 10`', 'margin 0.2 `--margin 0.2`']
    means = [np.mean(each['aps']) for each in plain]
    assert rows[0][1:] == [f'{np.mean(means):.1%} ({min(means):.1%} to {max(means):.1%})', '', '', '', '10']
    # 0.2 and half of 0.078; the same with every seed, while characters differ in it.
    assert rows[1][2] == '+23.9' and rows[1][4] == '+23.9 to +23.9' and rows[1][5] == '30'
    low, high = map(float, rows[1][3].split(' to '))
    assert 20 < low < 23.9 < high < 28
    assert rows[2][2:5] == ['-10.0', 'unknown', '-10.0 to -10.0']
    lines = factors.table(results, setting, argparse.Namespace(iterations=300, against='margin 0.2')).splitlines()
    assert 'the difference to margin 0.2 with the same seed' in lines[0]
    assert [line.split('|')[1].split()[0] for line in lines[-3:]] == ['margin', 'rotated', 'plain']
    assert '| +33.9 |' in lines[-2] and '| +10.0 |' in lines[-1]


def test_what_is_done_is_not_done_again(factors, tmp_path):
    options = argparse.Namespace(out=str(tmp_path), images=str(tmp_path), iterations=7, dataset='digits',
                                 initial_checkpoint=None)
    setting = factors.DATASETS['digits']
    flags = f'{setting.plain} --rotate 10 --train_iterations 7 --decay_start_iteration 3 --seed 2'
    result = {'flags': flags, 'images': str(tmp_path), 'aps': [1.0]}
    (tmp_path / 'rotated-2.json').write_text(json.dumps(result))
    assert factors.result_of('rotated', 2, setting, options) == result
    options.initial_checkpoint = 'a file'
    with pytest.raises(InputError, match='rotated-2.json is of a run with other flags'):
        factors.result_of('rotated', 2, setting, options)
    options.initial_checkpoint, options.iterations = None, 8
    with pytest.raises(InputError, match='rotated-2.json is of a run with other flags'):
        factors.result_of('rotated', 2, setting, options)
