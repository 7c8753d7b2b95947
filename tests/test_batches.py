"""Batches are a pure function of (seed, step), and hold P identities with K images as the paper draws them."""
import argparse
import collections

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from samplers.random import Sampler
from tripletreid.dataset import Dataset, joined
from tripletreid.errors import InputError
from tripletreid.experiment import train_flags
from tripletreid.input_pipeline import batches, images, sampling

P, K = 3, 4


def make_dataset(counts):
    """A dataset in which the identity i has counts[i] images, its rows in a mixed order."""
    pids = np.repeat([f'{i:04}' for i in range(len(counts))], counts).astype(object)
    pids = np.random.default_rng(0).permutation(pids)
    return Dataset('made.csv', pids, np.array([f'{row}.png' for row in range(len(pids))], dtype=object))


def random_rows(identities, seed, first, last, p, k, frames=1):
    args = argparse.Namespace(seed=seed, batch_p=p)
    return sampling.batch_rows(identities, seed, Sampler(args, identities).steps(first, last), k, frames)


def all_rows(dataset, seed, first, last, p=P, k=K):
    drawn = random_rows(sampling.Identities(dataset, p), seed, first, last, p, k)
    return {int(step): rows.numpy() for step, rows in drawn}


def test_every_epoch_is_a_fresh_permutation_of_identities_cut_to_a_multiple_of_p():
    dataset = make_dataset([5] * 11)
    rows = all_rows(dataset, 7, 0, 3 * 40)
    epochs = collections.defaultdict(list)
    for step, step_rows in rows.items():
        pids = dataset.pids[step_rows].reshape(P, K)
        assert (pids == pids[:, :1]).all()
        epochs[step // 3] += list(pids[:, 0])
    assert all(len(set(pids)) == 9 for pids in epochs.values())
    left_out = collections.Counter(pid for pids in epochs.values() for pid in set(dataset.pids) - set(pids))
    assert len(set(map(tuple, epochs.values()))) == 40
    assert len(left_out) == 11  # No identity is skipped forever.


def test_images_are_drawn_without_replacement_or_repeated_evenly():
    counts = [1, 2, 3, 4, 9, 300]
    dataset = make_dataset(counts)
    for rows in all_rows(dataset, 0, 0, 60, p=6).values():
        for pid_rows in rows.reshape(6, K):
            count = counts[int(dataset.pids[pid_rows[0]])]
            often = collections.Counter(pid_rows).values()
            if count == 3:  # Two of each, of which four are drawn.
                assert max(often) <= 2
            else:
                assert sorted(often) == [max(1, K // count)] * min(count, K)


def test_every_subset_of_images_is_equally_likely():
    drawn = [tuple(sorted(sampling.draw_of_each(3, 0, step, tf.constant([5], tf.int64), 3).numpy()[0]))
             for step in range(600)]
    counts = np.array(list(collections.Counter(drawn).values()))
    assert len(counts) == 10
    expected = len(drawn) / 10
    assert ((counts - expected) ** 2 / expected).sum() < 27.9  # chi-square, 9 degrees of freedom, p = 0.001


def test_batches_do_not_depend_on_where_a_run_starts():
    dataset = make_dataset([5] * 11)
    whole = all_rows(dataset, 1, 0, 20)
    for first, last in [(0, 1), (2, 3), (3, 20), (7, 8), (8, 16), (19, 20)]:
        part = all_rows(dataset, 1, first, last)
        assert sorted(part) == list(range(first, last))
        assert all(np.array_equal(part[step], whole[step]) for step in part)
    other_seed = all_rows(dataset, 2, 0, 20)
    assert not any(np.array_equal(other_seed[step], whole[step]) for step in whole)


def test_too_few_identities_is_an_error_and_not_a_wait_for_ever():
    with pytest.raises(InputError, match='2 identities, fewer than the 3'):
        sampling.Identities(make_dataset([4, 4]), P)


@pytest.mark.parametrize('counts, lone', [([2, 2, 3], 0), ([2, 1, 3, 1], 2), ([1, 1], 2), ([1, 5, 1], 2)])
def test_identities_with_one_image_have_no_positive(counts, lone):
    dataset = make_dataset(counts)
    identities = sampling.Identities(dataset, 2)
    assert identities.lone() == lone
    args = argparse.Namespace(frames_per_tracklet=1, loss='batch_hard', metric_weight=1.0, resume=False)
    if len(counts) - lone < 2:
        with pytest.raises(InputError, match=f'{lone} of {len(counts)} identities of made.csv have one image only'):
            sampling.check_positives(identities, dataset, args)
        # A run of before this was refused goes on, and a classifier needs no positives.
        assert 'one image' in sampling.check_positives(identities, dataset, argparse.Namespace(
            **{**vars(args), 'resume': True}))
        assert sampling.check_positives(identities, dataset, argparse.Namespace(**{**vars(args), 'loss': 'none'})) is None
    else:
        said = sampling.check_positives(identities, dataset, args)
        assert (said is None) == (lone == 0) and (not lone or said.startswith(f'{lone} of {len(counts)} '))


def test_a_lone_tracklet_has_positives_while_it_has_other_frames():
    lengths = {'a': [3], 'b': [2], 'c': [1], 'd': [1, 1]}
    names = [(pid, f'{pid}{i}') for pid, pid_rows in lengths.items() for i, n in enumerate(pid_rows) for _ in range(n)]
    pids, tracklets = (np.array(column, dtype=object) for column in zip(*names))
    dataset = Dataset('made.csv', pids, np.array([f'{row}.png' for row in range(len(pids))], dtype=object), tracklets)
    identities = sampling.Identities(dataset, 2)
    assert [identities.lone(frames) for frames in (1, 2, 3)] == [1, 2, 3]


def test_with_tracklets_k_of_them_are_drawn_and_frames_of_each():
    tracklets = {'a': [3, 1, 6], 'b': [2, 2, 5, 4], 'c': [7]}
    names = [(pid, f'{pid}{i}') for pid, lengths in tracklets.items() for i, n in enumerate(lengths) for _ in range(n)]
    names = np.random.default_rng(0).permutation(names)
    fids = np.array([f'{row}.png' for row in range(len(names))], dtype=object)
    dataset = Dataset('made.csv', names[:, 0].astype(object), fids, names[:, 1].astype(object))
    identities = sampling.Identities(dataset, 3)
    frame_counts = collections.Counter(dataset.tracklets)
    for _, rows in random_rows(identities, 0, 0, 50, 3, 2, frames=4):
        drawn = dataset.tracklets[rows.numpy()].reshape(3, 2, 4)
        assert (drawn == drawn[:, :, :1]).all()
        for pid_rows, pid_tracklets in zip(rows.numpy().reshape(3, 2, 4), drawn[:, :, 0]):
            assert len({name[0] for name in pid_tracklets}) == 1
            assert len(set(pid_tracklets)) == min(2, len(tracklets[pid_tracklets[0][0]]))
            for frames, name in zip(pid_rows, pid_tracklets):
                assert len(set(frames)) >= min(4, frame_counts[name]) - (frame_counts[name] == 3)


@pytest.fixture(scope='module')
def image_run(tmp_path_factory):
    """Args and dataset of a run on six images of noise."""
    root = tmp_path_factory.mktemp('noise')
    random = np.random.default_rng(0)
    dataset = make_dataset([2, 2, 2])
    for fid in dataset.fids:
        Image.fromarray(random.integers(0, 256, (12, 10, 3), dtype=np.uint8)).save(root / fid)
    flags = {'experiment_root': root, 'image_root': root, 'batch_p': 3, 'batch_k': 2, 'net_input_height': 8,
             'net_input_width': 6, 'pre_crop_height': 12, 'pre_crop_width': 10, 'seed': 5}
    command_line = [f'--{name}={value}' for name, value in flags.items()]
    args = train_flags.make_parser().parse_args([*command_line, '--crop_augment', '--flip_augment'])
    return args, dataset


def load(args, dataset, first, last):
    return list(batches.batches_of_steps(dataset, sampling.Identities(dataset, args.batch_p), args, first, last))


def test_images_are_flipped_and_cropped_and_the_same_again_on_resume(image_run):
    args, dataset = image_run
    whole = load(args, dataset, 0, 40)
    again = load(args, dataset, 30, 40)
    for first, second in zip(whole[30:], again):
        assert all(np.array_equal(first[key], second[key]) for key in first)
    flips, corners = collections.Counter(), set()
    for batch in whole:
        for row, image in zip(batch['rows'].numpy(), batch['images'].numpy()):
            pixels = np.asarray(Image.open(f'{args.image_root}/{dataset.fids[row]}'), np.float32)
            crops = {(top, left, mirrored): source[top:top + 8, left:left + 6]
                     for mirrored, source in ((False, pixels), (True, pixels[:, ::-1]))
                     for top in range(5) for left in range(5)}
            found = [where for where, crop in crops.items() if np.array_equal(crop, image)]
            assert len(found) == 1
            corners.add(found[0][:2])
            flips[found[0][2]] += 1
    assert len(corners) == 25
    assert 90 < flips[True] < 150  # 240 images, half of them: 120 +- 4 standard deviations of 7.7


def test_identities_are_numbered_and_images_resized_without_augmentation(image_run):
    args, dataset = image_run
    args = argparse.Namespace(**{**vars(args), 'crop_augment': False, 'flip_augment': False})
    batch = load(args, dataset, 0, 1)[0]
    assert batch['images'].shape == (6, 8, 6, 3)
    assert [f'{number:04}' for number in batch['pids'].numpy()] == list(dataset.pids[batch['rows'].numpy()])


def naive_tf1_resize(image, height, width):
    """Bilinear interpolation at y * H / height, x * W / width: TensorFlow 1's sampling, in plain loops."""
    full_height, full_width, _ = image.shape
    out = np.empty((height, width, 3))
    for y in range(height):
        for x in range(width):
            source_y, source_x = y * full_height / height, x * full_width / width
            top, left = int(source_y), int(source_x)
            bottom, right = min(top + 1, full_height - 1), min(left + 1, full_width - 1)
            dy, dx = source_y - top, source_x - left
            above = image[top, left] * (1 - dx) + image[top, right] * dx
            below = image[bottom, left] * (1 - dx) + image[bottom, right] * dx
            out[y, x] = above * (1 - dy) + below * dy
    return out


def test_resize_samples_as_tensorflow_1_eagerly_and_in_tf_data():
    image = np.random.default_rng(0).integers(0, 256, (13, 7, 3), dtype=np.uint8)
    for size in ((20, 11), (5, 4), (13, 7)):
        expected = naive_tf1_resize(image.astype(float), *size)
        np.testing.assert_allclose(images.resize(tf.constant(image), size), expected, atol=1e-3)
        in_pipeline = next(iter(tf.data.Dataset.from_tensors(image).map(lambda one: images.resize(one, size))))
        np.testing.assert_allclose(in_pipeline, expected, atol=1e-3)


def joined_sets(*counts):
    """Return datasets with these numbers of images per identity and equal names of identities, and the joined one."""
    sets = [make_dataset(each) for each in counts]
    return sets, joined(sets, [f'set{number}' for number in range(len(sets))])


def test_joined_sets_do_not_merge():
    sets, both = joined_sets([3] * 5, [2] * 8)
    assert len(set(both.pids)) == 13 and len(set(both.fids)) == len(both) == 31
    assert list(both.pids) == [f'set{number}/{pid}' for number in (0, 1) for pid in sets[number].pids]
    assert both.take([0, 20]).sets == ('set0', 'set1')
    for image_root in ('all', ['a', 'b']):
        roots = ['all', 'all'] if image_root == 'all' else ['a', 'b']
        assert images.paths(both, image_root) == [f'{root}/{fid}' for root, each in zip(roots, sets) for fid in each.fids]
    with_tracklets = Dataset('video.csv', sets[0].pids, sets[0].fids, sets[0].pids)
    with pytest.raises(InputError, match='video.csv names tracklets in a third column and made.csv does not'):
        joined([sets[1], with_tracklets], ['a', 'b'])
    assert joined([with_tracklets] * 2, ['a', 'b']).tracklets.tolist() == [*sets[0].pids, *sets[0].pids]


def test_a_batch_has_equal_parts_of_the_sets_and_the_same_again_on_resume():
    _, both = joined_sets([3] * 5, [2] * 40)
    identities = sampling.Identities(both, 6, batch_per_set=True)
    rows = {int(step): step_rows.numpy() for step, step_rows in random_rows(identities, 3, 0, 60, 6, 2)}
    seen = [collections.Counter(), collections.Counter()]
    for step, step_rows in rows.items():
        pids = both.pids[step_rows].reshape(6, 2)
        assert (pids[:, 0] == pids[:, 1]).all() and len(set(pids[:, 0])) == 6
        assert [pid[:4] for pid in pids[:, 0]] == ['set0'] * 3 + ['set1'] * 3
        for part in (0, 1):
            seen[part].update(pids[3 * part:3 * part + 3, 0])
    # An epoch of the first set is one batch, with three of its five; one of the second is thirteen, 39 of 40.
    assert len(seen[0]) == 5 and sum(seen[0].values()) == 180
    assert len(seen[1]) == 40 and max(seen[1].values()) <= 5  # The fifth epoch has begun.
    again = {int(step): step_rows.numpy() for step, step_rows in random_rows(identities, 3, 37, 60, 6, 2)}
    assert list(again) == list(range(37, 60)) and all(np.array_equal(rows[step], again[step]) for step in again)


def test_the_parts_of_a_batch_are_drawn_independently():
    _, both = joined_sets([2] * 6, [2] * 6)
    identities = sampling.Identities(both, 4, batch_per_set=True)
    drawn = [both.pids[rows.numpy()].reshape(4, 2)[:, 0] for _, rows in random_rows(identities, 0, 0, 300, 4, 2)]
    alike = sum({pid[5:] for pid in pids[:2]} == {pid[5:] for pid in pids[2:]} for pids in drawn)
    assert 5 <= alike <= 40  # 300 batches, one of fifteen pairs: 20 +- 4.3.


def test_without_equal_parts_joined_sets_are_one():
    """The batches of a csv file that holds the same rows."""
    _, both = joined_sets([3] * 5, [2] * 8)
    one = Dataset('one.csv', both.pids, both.fids)
    for (step, rows), (_, expected) in zip(
            *(random_rows(sampling.Identities(each, 4), 9, 0, 30, 4, 3) for each in (both, one)), strict=True):
        assert np.array_equal(rows, expected), step


def test_a_set_that_is_too_small_for_its_part():
    _, both = joined_sets([3] * 5, [2] * 8)
    with pytest.raises(InputError, match='The training set set0 has 5 identities, fewer than its part of a batch, 6 of'):
        sampling.Identities(both, 12, batch_per_set=True)
    assert list(sampling.shares_of_sets(sampling.Identities(both, 8, True), both, 8)) == [
        'set0: 15 images of 5 identities, 4 of the 8 identities of a batch.',
        'set1: 16 images of 8 identities, 4 of the 8 identities of a batch.']
    shares = list(sampling.shares_of_sets(sampling.Identities(both, 8), both, 8))
    assert '3.08 of the 8' in shares[0] and '4.92 of the 8' in shares[1]
