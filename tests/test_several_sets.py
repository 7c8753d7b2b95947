"""Training on several csv files at once: nothing merges, each set has its images and its validation, resume is exact."""
import json
import signal

import numpy as np
import pytest

from _runs import Fault, Run, ended_in_one_sentence, make_people, run_results, train_arguments
from tripletreid.copies import warn_of_shared_images
from tripletreid.dataset import load_sets
from tripletreid.errors import InputError
from tripletreid.experiment import arguments, best_checkpoint, flag_checks, train_flags
from tripletreid.image_root import check_files

STEPS = 4


@pytest.fixture(scope='module')
def sets(tmp_path_factory):
    """Write two folders with equal names of identities and images, and the csv files ours.csv and theirs.csv next to them.

    One image of ours is broken; the image of theirs with the same name is not.
    """
    folder = tmp_path_factory.mktemp('sets')
    for name, identities in (('ours', 4), ('theirs', 9)):
        (folder / name).mkdir()
        make_people(folder / name, identities)
        (folder / f'{name}.csv').write_text((folder / name / 'people.csv').read_text())
    (folder / 'ours' / '1_2.png').write_bytes(b'torn')
    return folder


def joint(sets, root, *more):
    """The command line of a run on both sets, validated on both."""
    both = [sets / 'ours.csv', sets / 'theirs.csv']
    val = sets / 'ours' / 'val.csv'
    val.write_text('0,0_0.png\n0,0_1.png\n3,3_0.png\n3,3_3.png\n')
    return [*train_arguments(sets, root, STEPS, STEPS), '--train_set', *both, '--image_root', sets / 'ours',
            sets / 'theirs', '--batch_p', 4, '--batch_per_set', '--skip_broken_images', '--cache', 'memory',
            '--eval_query', val, both[1], '--eval_gallery', val, both[1], '--eval_excluder', 'diagonal',
            '--eval_image_root', sets / 'ours', sets / 'theirs', '--eval_frequency', STEPS, *more]


def test_joint_training_is_resumed_in_the_same_bits_and_validated_on_both(sets, tmp_path):
    whole, stopped = tmp_path / 'whole', tmp_path / 'stopped'
    run = Run('train.py', *joint(sets, whole))
    assert run.wait() == 0, run.output
    assert 'Skipped ours/1_2.png' in run.output and 'theirs/1_2.png' not in run.output
    assert 'ours: 15 images of 4 identities, 2 of the 4 identities of a batch.' in run.output
    assert 'theirs: 36 images of 9 identities, 2 of the 4 identities of a batch.' in run.output
    assert 'validation of val mAP' in run.output and 'validation of theirs mAP' in run.output
    best = best_checkpoint.results(str(whole))[0]
    assert set(best['sets']) == {'val', 'theirs'}
    for name, folder in (('val', sets / 'ours'), ('theirs', sets / 'theirs')):
        assert best['sets'][name]['embed_flags'] == f'--checkpoint checkpoint-{STEPS} --image_root {folder}'
    assert best['mAP'] == np.mean([best['sets'][name]['mAP'] for name in ('val', 'theirs')])
    # Which set a row is of.
    fids = np.load(whole / 'log_fids.npy')
    assert fids.shape == (STEPS, 8)
    assert all([fid.split(b'/')[0] for fid in step_fids] == 4 * [b'ours'] + 4 * [b'theirs'] for step_fids in fids)

    assert Run('train.py', *joint(sets, stopped), fault=Fault(signal.SIGTERM, 'step', 2)).wait() == 0
    assert (stopped / 'checkpoint-2.index').exists()
    run = Run('train.py', '--experiment_root', stopped, '--resume')
    assert run.wait() == 0, run.output
    expected, found = run_results(whole, STEPS), run_results(stopped, STEPS)
    assert all(found[name] == expected[name] for name in expected)

    mirrored = tmp_path / 'mirrored'
    run = Run('train.py', *joint(sets, mirrored, '--distribute', 'mirrored', '--devices', 2))
    assert run.wait() == 0, run.output
    assert np.array_equal(fids, np.load(mirrored / 'log_fids.npy'))
    np.testing.assert_allclose(*(np.load(root / 'log_losses.npy') for root in (whole, mirrored)), rtol=0, atol=1e-5)

    stored = json.loads((whole / 'args.json').read_text())
    assert stored['train_set'] == [str(sets / 'ours.csv'), str(sets / 'theirs.csv')] and stored['batch_per_set'] is True
    start = json.loads((whole / 'provenance.json').read_text())[-1]
    assert {*stored['train_set'], stored['eval_query'][0]} == set(start['sha256'])
    ended_in_one_sentence(Run('embed.py', '--experiment_root', whole, '--dataset', sets / 'ours.csv'),
                          'names several image roots', 'give an --image_root')


def test_one_set_is_stored_as_ever(sets, tmp_path):
    single = [str(each) for each in train_arguments(sets, tmp_path)]
    args = train_flags.make_parser().parse_args(single)
    assert args.train_set == str(sets / 'people.csv') and args.image_root == str(sets)
    several = train_flags.make_parser().parse_args([str(each) for each in joint(sets, tmp_path)])
    for given in (args, several):
        (tmp_path / arguments.FILE).unlink(missing_ok=True)
        arguments.save(given)
        assert arguments.load(str(tmp_path))[0] == given
    assert arguments.as_stored(args)['train_set'] == str(sets / 'people.csv')


@pytest.mark.parametrize('more, part', [
    (['--train_set', 'a.csv', 'b/a.csv'], 'two files of --train_set are called a'),
    (['--image_root', 'a', 'b', 'c'], '--image_root names 3 folders for 2 training set(s)'),
    (['--train_set', 'a.csv', '--image_root', 'a'], '--batch_per_set has no effect with a single training set'),
    (['--batch_p', '5'], '--batch_p 5 cannot be divided into 2 equal parts'),
    (['--eval_image_root', 'a', 'b', 'c'], '--eval_image_root names 3 folders for 2 validation set(s)'),
])
def test_flags_that_do_not_fit(sets, tmp_path, capsys, more, part):
    parser = train_flags.make_parser()
    with pytest.raises(SystemExit):
        flag_checks.check(parser.parse_args([str(each) for each in joint(sets, tmp_path, *more)]), parser)
    assert part in capsys.readouterr().err


def test_where_the_images_of_a_validation_are_has_to_be_said(sets, tmp_path, capsys):
    given = joint(sets, tmp_path)
    del given[given.index('--eval_image_root'):given.index('--eval_frequency')]
    parser = train_flags.make_parser()
    with pytest.raises(SystemExit):
        flag_checks.check(parser.parse_args([str(each) for each in given]), parser)
    assert 'say with --eval_image_root where' in capsys.readouterr().err


def test_missing_images_are_reported_with_their_set(sets, tmp_path):
    roots = [str(sets / 'theirs'), str(sets / 'ours')]
    both = load_sets([str(sets / 'ours.csv'), str(sets / 'theirs.csv')])
    check_files(both, roots[::-1])
    with pytest.raises(InputError, match=r'20 of 36 images of the set theirs are not in .*ours: 4_0.png, 4_1.png'):
        check_files(both, roots)


def test_images_that_two_training_sets_share_are_warned_of(sets, tmp_path, capsys):
    roots = [str(sets / 'ours'), str(sets / 'theirs')]
    both = load_sets([str(sets / 'ours.csv'), str(sets / 'theirs.csv')])
    fids = [fid.partition('/')[2] for fid in both.fids]
    same = [fid for fid in set(fids) if fids.count(fid) == 2
            and (sets / 'ours' / fid).read_bytes() == (sets / 'theirs' / fid).read_bytes()]
    warn_of_shared_images(both, roots)
    assert f'in several sets: {2 * len(same)} (' in capsys.readouterr().err if same else not capsys.readouterr().err
    (tmp_path / 'copy').mkdir()
    (tmp_path / 'copy' / 'new.png').write_bytes((sets / 'ours' / '0_0.png').read_bytes())
    (tmp_path / 'copy.csv').write_text('7,new.png\n')
    both = load_sets([str(sets / 'ours.csv'), str(tmp_path / 'copy.csv')])
    warn_of_shared_images(both, [roots[0], str(tmp_path / 'copy')])
    assert 'content are in several sets: 2 (copy/new.png, ours/0_0.png)' in capsys.readouterr().err
