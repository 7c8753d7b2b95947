#!/usr/bin/env python3
"""Measure the effect of single changes: a plain recipe with one factor at a time, on a small dataset; a table of mAP.

    benchmarks/factors.py omniglot ~/omniglot/images_background_small2 --out compared --table docs/factors.md
    benchmarks/factors.py digits digits --out compared_digits
    benchmarks/factors.py market1501 ~/Market-1501-v15.09.15 --out compared_people \\
        --initial_checkpoint ~/mobilenet_v1_1.0_224.ckpt
    benchmarks/factors.py … --against batch_all --only 'batch_all, hard identities'

Omniglot is evaluated on the characters of its validation alphabet, which are not trained on and differ from the test
characters; scikit-learn's digits are evaluated on new images, Market-1501 on people who are held out of its training
set. Every factor of FACTORS is added to the plain recipe and trained with some seeds, each by one run of train.py.
Results in the folder --out are not computed again, so that an interrupted table, or one with a new factor, is completed.

A factor is compared with the plain recipe, or with the factor --against, per query and with equal seeds. One interval
covers the difference with other characters, for these models; the other one covers it with other seeds, for these characters
(Student's t of a few differences). If either contains 0, the factor shows no effect.
"""
import argparse
import json
import os
import pathlib
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
import time
import typing

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # Not this folder: `evaluate` is the project's.

import make_dataset
from tripletreid import argument_types, quiet
from tripletreid.errors import InputError, exit_with
from tripletreid.files import check_replaceable, write_json, written_whole


class Setting(typing.NamedTuple):
    """A dataset with its plain recipe."""
    plain: str  # flags of train.py
    iterations: int
    options: dict  # arguments of make_dataset.make
    query: str  # names of subsets
    gallery: str
    searched: str  # description of the searched images
    excluder: str = 'diagonal'  # Query and gallery share no images: nothing is ignored.


DATASETS = {
    # recipes/omniglot.sh with the triplet loss alone and a shorter schedule.
    'omniglot': Setting(
        '--model_name conv4 --head_name fc1024 --embedding_dim 128 --net_input_height 48 --net_input_width 48 '
        '--crop_augment --batch_p 18 --batch_k 4 --learning_rate 3e-3', 300,
        {'test_alphabets': ['Greek', 'Tagalog'], 'val_alphabets': ['Latin']}, 'val_query', 'val_test',
        'characters of Latin'),
    'digits': Setting(
        '--model_name mnist --head_name direct --embedding_dim 16 --net_input_height 16 --net_input_width 16 '
        '--batch_p 10 --batch_k 4 --learning_rate 1e-3', 100, {}, 'query', 'test', 'digits'),
    # market1501_train.sh with MobileNet at 128x64 and a shorter schedule.
    'market1501': Setting(
        '--model_name mobilenet_v1_1_224 --head_name fc1024 --embedding_dim 128 --net_input_height 128 --net_input_width 64 '
        '--crop_augment --flip_augment --batch_p 18 --batch_k 4 --learning_rate 3e-4', 300,
        {'val_fraction': 0.15}, 'val_query', 'val_test', 'held-out people', 'market1501'),
}
# Name of a row of the table: flags, which take precedence over the plain ones; --no_X removes the plain --X.
FACTORS = {
    'plain': '',
    'margin 0.2': '--margin 0.2',
    'margin 1.0': '--margin 1.0',
    'batch_all': '--loss batch_all',
    'batch_all_nonzero': '--loss batch_all_nonzero --margin 0.2',
    'batch_sample': '--loss batch_sample',
    'lifted': '--loss lifted --margin 1.0',
    'lifted_general': '--loss lifted_general',
    'circle': '--loss circle --margin 0.25 --metric cosine',
    'multi_similarity': '--loss multi_similarity --margin 0.1 --metric cosine',
    'supervised_contrastive': '--loss supervised_contrastive --metric cosine',
    'memory': '--memory 288 --memory_start 100',  # Once the embeddings have settled.
    'centre loss': '--center_weight 5e-4',
    'cross-entropy alone': '--loss none --xent_weight 1',
    'with cross-entropy': '--xent_weight 1',
    'with cross-entropy, bnneck': '--xent_weight 1 --head_name bnneck',
    'with cosface': '--xent_weight 1 --classifier cosface --classifier_scale 16',
    'with arcface': '--xent_weight 1 --classifier arcface --classifier_scale 16',
    'with circle classifier': '--xent_weight 1 --classifier circle',
    'normalised, margin 0.2': '--head_name fc1024_normalize --margin 0.2',
    'head direct': '--head_name direct',
    'squared distances, margin 1.0': '--metric sqeuclidean --margin 1.0',
    'mirrored': '--flip_augment',
    'rotated': '--rotate 10',
    'sheared': '--shear 10',
    'scaled': '--scale 0.1',
    'rotated, sheared and scaled': '--rotate 10 --shear 10 --scale 0.1',
    'whole images': '--no_crop_augment',
    'padded crop': '--no_crop_augment --pad_crop 4',
    'blurred': '--blur 1',
    'brightness and contrast': '--color_jitter 0.2,0.2,0,0',
    'AutoAugment': '--auto_augment 0.5',
    'random erasing': '--random_erasing 0.5',
    'batches of 9x8': '--batch_p 9 --batch_k 8',
    'hard identities': '--sampler hard_identity',
    'batch_all, hard identities': '--loss batch_all --sampler hard_identity',
    'warm-up': '--warmup_iterations 50',
    'cosine': '--lr_schedule cosine',
    'beta1 0.5': '--decay_beta1 0.5',
    'weight decay': '--weight_decay 5e-4',
    'EMA': '--ema 0.98',
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('dataset', choices=DATASETS)
    parser.add_argument('images', metavar='FOLDER', help='folder of the dataset, as for make_dataset.py')
    parser.add_argument('--out', required=True, metavar='DIR', help='folder of the results of the runs')
    parser.add_argument('--initial_checkpoint', metavar='FILE', help='weights that every run starts from')
    parser.add_argument('--only', nargs='+', metavar='NAME', choices=FACTORS, help='factors (all)')
    parser.add_argument('--against', default='plain', metavar='NAME', choices=FACTORS, help='reference of the differences '
                        '(%(default)s)')
    parser.add_argument('--seeds', type=argument_types.positive_int, default=3, help='number of seeds (%(default)s)')
    parser.add_argument('--iterations', type=argument_types.positive_int,
                        help=f'({", ".join(f"{name}: {each.iterations}" for name, each in DATASETS.items())})')
    parser.add_argument('--table', metavar='FILE', help='write the table there, as Markdown')
    options = parser.parse_args()
    setting = DATASETS[options.dataset]
    options.iterations = options.iterations or setting.iterations
    if options.table:
        check_replaceable(options.table)
    os.makedirs(options.out, exist_ok=True)
    make_dataset.make(options.dataset, options.images, options.out, setting.options)
    names = list(dict.fromkeys([options.against, *(options.only or FACTORS)]))
    # Seed by seed, so that an interrupted command leaves a complete table of fewer seeds.
    results = {name: [] for name in names}
    for seed in range(options.seeds):
        for name in names:
            results[name].append(result_of(name, seed, setting, options))
            print(f'{name}, seed {seed}: mAP {mean_ap(results[name][-1]):.2%}, '
                  f'{results[name][-1]["cpu_seconds"]:.0f} CPU seconds', file=sys.stderr, flush=True)
    text = table(results, setting, options)
    print(text)
    if options.table:
        with written_whole(options.table) as temporary:
            pathlib.Path(temporary).write_text(text + '\n', encoding='utf-8')


def with_factor(plain, factor):
    """Return the flags of the plain recipe with the flags of a factor."""
    taken_away = [flag.replace('--no_', '--') for flag in factor.split() if flag.startswith('--no_')]
    kept = [flag for flag in plain.split() if flag not in taken_away]
    return ' '.join([*kept, *(flag for flag in factor.split() if not flag.startswith('--no_'))])


def result_of(name, seed, setting, options):
    """Return the result of one run; train only if it does not exist yet.

    Returns: dict of `flags`, `images`, `aps` (a number a query), `pids` (of the queries), `cpu_seconds` and
        `seconds` of train.py.
    """
    iterations = options.iterations
    schedule = f'--train_iterations {iterations} --decay_start_iteration {iterations // 2} --seed {seed}'
    flags = f'{with_factor(setting.plain, FACTORS[name])} {schedule}'
    if options.initial_checkpoint:
        flags += f' --initial_checkpoint {shlex.quote(os.path.abspath(options.initial_checkpoint))}'
    stem = os.path.join(options.out, f'{name.replace(" ", "_").replace(",", "")}-{seed}')
    if os.path.isfile(f'{stem}.json'):
        with open(f'{stem}.json', encoding='utf-8') as file:
            result = json.load(file)
        if (result['flags'], result['images']) != (flags, os.path.abspath(options.images)):
            raise InputError(f'{stem}.json is of a run with other flags or images ({result["flags"]}); remove it, or choose '
                             f'another --out.')
        return result
    # An interrupted run is not resumed, because its time would be unknown.
    shutil.rmtree(stem, ignore_errors=True)
    command = [sys.executable, str(ROOT / 'train.py'), '--experiment_root', stem, '--image_root', options.images,
               '--train_set', os.path.join(options.out, f'{options.dataset}_train.csv'), '--cache', 'memory',
               '--checkpoint_frequency', '0', '--log_frequency', '100', '--summary_frequency', '100', *shlex.split(flags)]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    process = subprocess.run(command, capture_output=True, text=True)
    seconds = time.monotonic() - started
    if process.returncode:
        raise InputError(f'{shlex.join(command)} failed: {process.stderr.strip()}')
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = {'flags': flags, 'images': os.path.abspath(options.images), 'seconds': seconds,
              'cpu_seconds': after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
              **scores(stem, setting, options)}
    write_json(f'{stem}.json', result)
    shutil.rmtree(stem)
    return result


def scores(root, setting, options):
    """Return `pids` and `aps` of the queries with the last checkpoint of an experiment root."""
    with quiet.tensorflow_import():
        from tripletreid.modeling import inference, inference_flags
    import numpy as np

    from tripletreid import exclusion
    from tripletreid.dataset import load_dataset
    from tripletreid.evaluation import ranking
    from tripletreid.evaluation.retrieval import Retrieval
    from tripletreid.experiment import arguments
    args, _ = arguments.load(root)
    network, _ = inference.from_experiment(root)
    query, gallery = (load_dataset(os.path.join(options.out, f'{options.dataset}_{name}.csv'))
                      for name in (setting.query, setting.gallery))
    embs = []
    for dataset in (query, gallery):
        row_embs = inference.embed_rows(network, dataset, options.images, inference_flags.validation_view(args))
        embs.append(np.concatenate([each[0] for each in row_embs]))
    ranks = ranking.rank(Retrieval(embs[0], query, embs[1], gallery, exclusion.load(setting.excluder), args.metric))
    return {'pids': list(query.pids), 'aps': ranks.ap_sklearn.tolist()}


def mean_ap(result):
    return statistics.fmean(result['aps'])


def table(results, setting, options):
    """Return the Markdown table of {name: results per seed}."""
    against = results[options.against]
    recipe = 'the plain recipe' if options.against == 'plain' else options.against
    lines = [f'`{shlex.join(["python", "benchmarks/factors.py", *sys.argv[1:]])}` printed this: mAP of '
             f'{len(against[0]["aps"])} queries, {len(set(against[0]["pids"]))} {setting.searched}, after '
             f'{options.iterations} iterations, mean of {len(against)} seeds (lowest to highest); the difference to '
             f'{recipe} with the same seed, in percentage points, and its 95% intervals, with other {setting.searched} and '
             f'with other seeds; and the CPU seconds of `train.py`.', '', f'Plain is `{setting.plain}`.', '',
             f'| factor | mAP | difference | other {setting.searched} | other seeds | CPU seconds |',
             '| --- | --- | --- | --- | --- | --- |']
    rows = []
    for name, seed_results in results.items():
        means = [mean_ap(result) for result in seed_results]
        differences = [mean - mean_ap(other) for mean, other in zip(means, against)]
        flags = f' `{FACTORS[name]}`' if FACTORS[name] else ''
        cells = [f'{name}{flags}', f'{statistics.fmean(means):.1%} ({min(means):.1%} to {max(means):.1%})']
        cells += ['', '', ''] if name == options.against else [
            points(statistics.fmean(differences)), interval_of_identities(seed_results, against),
            interval_of_seeds(differences)]
        cells.append(f'{statistics.fmean(result["cpu_seconds"] for result in seed_results):.0f}')
        rows.append((name != options.against, -statistics.fmean(means), f'| {" | ".join(cells)} |'))
    return '\n'.join([*lines, *(line for *_, line in sorted(rows))])


def points(difference):
    return f'{100 * difference:+.1f}'


def interval_of_identities(seed_results, against):
    """Return the bootstrap interval over identities of the queries' mean differences over seeds."""
    import numpy as np

    from tripletreid.evaluation import bootstrap
    differences = np.mean([np.subtract(one['aps'], other['aps']) for one, other in zip(seed_results, against)], axis=0)
    [interval] = bootstrap.interval(against[0]['pids'], differences[:, None], lowest=-1)
    return 'unknown' if interval is None else f'{points(interval[0])} to {points(interval[1])}'


def interval_of_seeds(differences):
    """Return Student's t interval of the mean difference."""
    if len(differences) < 2:
        return 'unknown'
    import scipy.stats

    from tripletreid.evaluation import bootstrap
    half = (scipy.stats.t.ppf((1 + bootstrap.CONFIDENCE) / 2, len(differences) - 1) * statistics.stdev(differences) /
            len(differences) ** 0.5)
    mean = statistics.fmean(differences)
    return f'{points(mean - half)} to {points(mean + half)}'


if __name__ == '__main__':
    exit_with(main)
