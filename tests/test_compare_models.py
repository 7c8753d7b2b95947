"""compare.py: one row per model and dataset, kept rows, verdicts. Its commands run in forks that have TensorFlow."""
import json
import sys

import pytest

import compare
from _runs import Run, make_people, train_arguments
from conftest import assert_one_sentence, run_script
from tripletreid.modeling import latency


@pytest.fixture(scope='module')
def people(tmp_path_factory):
    """Write pictures and csv files, and train two steps with a checkpoint after each."""
    people = make_people(tmp_path_factory.mktemp('people'))
    rows = (people / 'people.csv').read_text().splitlines(keepends=True)
    (people / 'query.csv').write_text(''.join(rows[::4]))
    (people / 'test.csv').write_text(''.join(row for number, row in enumerate(rows) if number % 4))
    run = Run('train.py', *train_arguments(people, people / 'run', iterations=2, checkpoint_frequency=1))
    assert run.wait() == 0, run.output
    return people


def flags(people, folder, *models):
    return ['--models', *models, '--query_dataset', people / 'query.csv', '--gallery_dataset', people / 'test.csv',
            '--image_root', people, '--excluder', 'diagonal', '--metric', 'euclidean', '--folder', folder]


@pytest.fixture
def commands(monkeypatch):
    """Record the commands that compare.py runs, and run them in forks."""
    ran = []

    def run_in_fork(command):
        ran.append(command[0])
        if command[0] == '-m':
            return json.dumps(latency.measure(command[-1]))
        run = Run(*command)
        assert run.wait() == 0, run.output
        return run.output

    monkeypatch.setattr(compare, 'run', run_in_fork)
    return ran


def compared(monkeypatch, *arguments):
    monkeypatch.setattr(sys, 'argv', ['compare.py', *map(str, arguments)])
    compare.main()


def test_rows_are_those_of_the_commands_and_are_kept(people, tmp_path, monkeypatch, commands, capsys):
    root = people / 'run'
    arguments = flags(people, tmp_path / 'out', root, root / 'checkpoint-1', root / 'checkpoint-0')
    compared(monkeypatch, *arguments)
    assert len(commands) == 3 * 4
    rows = json.loads((tmp_path / 'out' / 'comparison.json').read_text())['rows']
    assert [row['model'] for row in rows] == ['run', 'run-checkpoint-1', 'run-checkpoint-0']
    for row in rows:
        evaluation = json.loads(open(row['evaluation']).read())
        assert row['mAP'] == evaluation['mAP'] and row['rank-1'] == evaluation['CMC'][0]
        assert row['milliseconds'] > 0 and 0.1 < row['megabytes'] < 100
    assert sorted(row['verdict'] == compare.BEST for row in rows) == [False, False, True]
    assert next(row for row in rows if row['verdict'] == compare.BEST)['mAP'] == max(row['mAP'] for row in rows)
    assert (tmp_path / 'out' / 'comparison.png').stat().st_size > 1000
    assert (tmp_path / 'out' / 'comparison.md').read_text().strip() in capsys.readouterr().out

    # Rows are kept until their model or csv files change.
    commands.clear()
    compared(monkeypatch, *arguments)
    assert commands == [] and json.loads((tmp_path / 'out' / 'comparison.json').read_text())['rows'] == rows
    monkeypatch.setattr(compare.provenance, 'file_hash', lambda path: 'changed')
    compared(monkeypatch, *flags(people, tmp_path / 'out', root))
    assert len(commands) == 4


def test_an_export_is_a_model_and_with_other_weights_another(people, tmp_path, monkeypatch, commands):
    """A SavedModel of other weights has the same graph, so that only its variables differ."""
    exports = {}
    for name in ('checkpoint-1', 'checkpoint-2'):
        exports[name] = tmp_path / name
        run = Run('freeze.py', '--checkpoint_name', people / 'run' / name,
                  '--frozen_model_path', exports[name])
        assert run.wait() == 0, run.output
    assert compare.fingerprint(str(exports['checkpoint-1'])) != compare.fingerprint(str(exports['checkpoint-2']))
    compared(monkeypatch, *flags(people, tmp_path / 'out', exports['checkpoint-2'], people / 'run'))
    export_row, run_row = json.loads((tmp_path / 'out' / 'comparison.json').read_text())['rows']
    assert export_row['mAP'] == pytest.approx(run_row['mAP'], abs=1e-3)
    assert export_row['milliseconds'] > 0 and 0.1 < export_row['megabytes'] < 100
    exported_again, card = tmp_path / 'checkpoint-1.json', tmp_path / 'checkpoint-2.json'
    exported_again.write_bytes(card.read_bytes())
    assert_one_sentence(run_script('embed.py', '--exported', exports['checkpoint-1'], '--dataset', people / 'query.csv',
                                   '--image_root', people, '--filename', tmp_path / 'x.h5'), 'card of another export')


def test_bad_input(people, tmp_path):
    root, out = people / 'run', tmp_path / 'out'
    assert_one_sentence(run_script('compare.py', *flags(people, out, root, root)), 'one model twice')
    assert_one_sentence(run_script('compare.py', *flags(people, out, tmp_path / 'away')), 'There is no model', 'away')
    more = ['--query_dataset', 'a.csv', 'b.csv']
    assert_one_sentence(run_script('compare.py', *flags(people, out, root), *more), '--gallery_dataset 1')
    (people / 'short.csv').write_text('only one column\n')
    more = ['--query_dataset', people / 'short.csv']
    assert_one_sentence(run_script('compare.py', *flags(people, out, root), *more), 'short.csv', 'embed.py')
