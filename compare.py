#!/usr/bin/env python3
"""Compare models on datasets: embed and evaluate each pair, time each model → table, Markdown and a plot."""
if __name__ == '__main__':  # Before all other imports.
    from tripletreid import startup
    startup.settle()

import json
import os
import shlex
import subprocess
import sys

from tripletreid import argument_types, provenance, quiet
from tripletreid.errors import InputError, exit_with
from tripletreid.evaluation import comparison, scores
from tripletreid.evaluation.results import read_evaluation
from tripletreid.files import write_json
from tripletreid.metrics import METRICS

HERE = os.path.dirname(os.path.abspath(__file__))
BEST, EQUAL, WORSE = 'best', 'difference from the best may be noise', 'worse'


def make_parser():
    """Return the parser of compare.py's command line."""
    parser = argument_types.ArgumentParser(
        description='Compare models: mAP and rank-1 on each dataset, time per image, and size.',
        usage='%(prog)s --models MODEL [MODEL ...] --query_dataset CSV --gallery_dataset CSV\n'
              '                  --image_root DIR --excluder NAME --metric METRIC --folder DIR',
        example='python compare.py --models runs/first runs/first/checkpoint-500 first.tflite \\\n'
                '    --query_dataset data/folder_query.csv --gallery_dataset data/folder_test.csv \\\n'
                '    --image_root shoes --excluder diagonal --metric euclidean --folder comparison')
    add = parser.add_argument_group('required').add_argument
    add('--models', nargs='+', required=True, metavar='MODEL', help='experiment roots (the last checkpoint), checkpoints '
        'in experiment roots, and exported files (.onnx, .tflite or a SavedModel)')
    add('--query_dataset', nargs='+', required=True, metavar='CSV', help='query images; several files are several datasets')
    add('--gallery_dataset', nargs='+', required=True, metavar='CSV', help='gallery images, one file per query dataset')
    add('--image_root', nargs='+', required=True, metavar='DIR', help='folder of the images: one for all datasets, or one '
        'for each')
    add('--excluder', nargs='+', type=argument_types.excluder, required=True, metavar='NAME', help='excluder of '
        'evaluate.py: one for all datasets, or one for each')
    add('--metric', required=True, choices=METRICS, help='distance of embeddings')
    add('--folder', required=True, metavar='DIR', help='folder for embeddings, evaluations and results; rows that are '
        'there already are not computed again')
    add = parser.add_argument_group('more').add_argument
    add('--use_market_ap', action='store_true', help='average precision of the Market-1501 benchmark')
    add('--batch_size', type=argument_types.positive_int, default=256, metavar='B', help='images embedded at a time '
        '(default: %(default)s)')
    return parser


def main():
    parser = make_parser()
    args = parser.parse_args()
    sets = datasets(args, parser)
    names = model_names(args.models)
    os.makedirs(args.folder, exist_ok=True)
    rows = [row(args, name, model, dataset) for name, model in names.items() for dataset in sets]
    for dataset in sets:
        judge([each for each in rows if each['dataset'] == dataset['name']])
    write_json(os.path.join(args.folder, 'comparison.json'), {'rows': rows, 'versions': provenance.versions()})
    lines = table(rows)
    with open(os.path.join(args.folder, 'comparison.md'), 'w', encoding='utf-8') as file:
        file.write('\n'.join(lines) + '\n')
    print('\n'.join(lines))
    from tripletreid.visualization import comparison_plot
    comparison_plot.save(rows, os.path.join(args.folder, 'comparison.png'))
    print(f'Saved comparison.json, comparison.md and comparison.png in {args.folder}.')


def datasets(args, parser):
    """Return the datasets of the command line, a list of dicts; ends through `parser.error` where numbers differ."""
    count = len(args.query_dataset)
    if len(args.gallery_dataset) != count:
        parser.error(f'--query_dataset names {count} files and --gallery_dataset {len(args.gallery_dataset)}')
    columns = {}
    for flag in ('image_root', 'excluder'):
        values = getattr(args, flag)
        if len(values) not in (1, count):
            parser.error(f'--{flag} names {len(values)} for {count} datasets: give one for all, or one for each')
        columns[flag] = values * count if len(values) == 1 else values
    names = [os.path.splitext(os.path.basename(path))[0] for path in args.gallery_dataset]
    if len(set(names)) < count:
        parser.error('two files of --gallery_dataset have the same name: rename one of them')
    return [dict(zip(('name', 'query', 'gallery', 'image_root', 'excluder'), values)) for values in
            zip(names, args.query_dataset, args.gallery_dataset, columns['image_root'], columns['excluder'])]


def model_names(models):
    """Return {short name: path}: the shortest endings of the paths that differ; a checkpoint's names its root.

    Raises:
        InputError: a path is given twice, or is not there.
    """
    parts = [os.path.normpath(os.path.abspath(path)).split(os.sep) for path in models]
    for path in models:
        if not (os.path.exists(path) or os.path.exists(f'{path}.index')):
            raise InputError(f'There is no model {path}.')
    for length in range(1, max(map(len, parts)) + 1):
        names = ['-'.join(part[-max(length, 1 if os.path.exists(path) else 2):]) for part, path in zip(parts, models)]
        if len(set(names)) == len(names):
            return dict(zip(names, models))
    raise InputError('--models names one model twice.')


# --- Rows -------------------------------------------------------------------------------------------------------------

def row(args, name, model, dataset):
    """Return the row of one model and one dataset; from its file, if it was made of the same model and csv files."""
    path = os.path.join(args.folder, f'{name}--{dataset["name"]}.row.json')
    source = {'model': fingerprint(model), 'query': provenance.file_hash(dataset['query']),
              'gallery': provenance.file_hash(dataset['gallery']), 'excluder': dataset['excluder'],
              'metric': args.metric, 'use_market_ap': args.use_market_ap}
    if os.path.exists(path):
        with open(path, encoding='utf-8') as file:
            stored = json.load(file)
        if stored['source'] == source:
            return stored
    stem = os.path.join(os.path.abspath(args.folder), f'{name}--{dataset["name"]}')
    evaluate = ['evaluate.py', '--excluder', dataset['excluder'], '--metric', args.metric, '--filename', f'{stem}.json']
    for role in ('query', 'gallery'):
        run(['embed.py', *model_flags(model), '--dataset', dataset[role], '--image_root', dataset['image_root'],
             '--filename', f'{stem}_{role}.h5', '--batch_size', str(args.batch_size), '--quiet', '--resume'])
        evaluate += [f'--{role}_dataset', dataset[role], f'--{role}_embeddings', f'{stem}_{role}.h5']
    run([*evaluate, *(['--use_market_ap'] if args.use_market_ap else [])])
    timing = json.loads(run(['-m', 'tripletreid.modeling.latency', model]).splitlines()[-1])
    found = read_evaluation(f'{stem}.json')
    result = {'model': name, 'dataset': dataset['name'], 'evaluation': f'{stem}.json', 'source': source, **timing,
              'mAP': found.numbers['mAP'], 'rank-1': found.numbers['CMC'][0],
              'interval': found.numbers['confidence']['mAP']}
    write_json(path, result)
    return result


def fingerprint(model):
    """Return a hash of the files that a model consists of."""
    with quiet.tensorflow_import():
        from tripletreid.experiment import checkpoints
        from tripletreid.modeling import exports, model_card
    if exports.is_export(model):
        return model_card.hash_of(model)
    root, checkpoint = root_and_checkpoint(model)
    return provenance.file_hash(checkpoints.index_file(checkpoints.find_in_root(root, checkpoint)))


def root_and_checkpoint(model):
    """Split the path of a model into its experiment root and the name of a checkpoint, None for the last one."""
    return (model, None) if os.path.isdir(model) else os.path.split(model)


def model_flags(model):
    """Return the flags of embed.py that choose a model and embed as the validation of its training does."""
    from tripletreid.experiment import arguments
    from tripletreid.modeling import exports, inference_flags
    if exports.is_export(model):
        return ['--exported', model]
    root, checkpoint = root_and_checkpoint(model)
    crop = inference_flags.validation_crop(arguments.load(root)[0])
    return ['--experiment_root', root, *(['--checkpoint', checkpoint] if checkpoint else []),
            *(['--crop_augment', crop] if crop else [])]


def run(command):
    """Run a command of the project and return its standard output.

    Raises:
        InputError: it failed; with its last line.
    """
    path = command if command[0] == '-m' else [os.path.join(HERE, command[0]), *command[1:]]
    done = subprocess.run([sys.executable, *path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          env={**os.environ, 'PYTHONPATH': HERE})
    if done.returncode:
        last = [line for line in done.stderr.splitlines() if 'error' in line][-1:] or done.stderr.splitlines()[-1:]
        raise InputError(f'{" ".join(last)} The command was: {shlex.join(command)}')
    return done.stdout


# --- Results ----------------------------------------------------------------------------------------------------------

def judge(rows):
    """Set 'verdict' of the rows of one dataset: which is best by mAP, and which differ from it by more than noise."""
    best = max(rows, key=lambda each: each['mAP'])
    reference = read_evaluation(best['evaluation'])
    for each in rows:
        if each is best:
            each['verdict'] = BEST
            continue
        row_scores, best_scores, pids = comparison.paired(read_evaluation(each['evaluation']), reference)
        name = 'mAP_market1501' if each['source']['use_market_ap'] else 'mAP_sklearn'
        difference = scores.summary({name: best_scores[name] - row_scores[name]}, pids, lowest=-1).get(name)
        is_noise = difference is None or difference.interval is None or difference.interval[0] <= 0
        each['verdict'] = EQUAL if is_noise else WORSE


def table(rows):
    """Return the rows as lines of a Markdown table, the best model of each dataset first."""
    lines = ['| dataset | model | mAP | 95% interval | rank-1 | ms per image | MB | verdict |',
             '| --- | --- | --- | --- | --- | --- | --- | --- |']
    for each in sorted(rows, key=lambda each: (each['dataset'], -each['mAP'])):
        interval = ' to '.join(f'{end:.2%}' for end in each['interval']) if each['interval'] else '–'
        lines.append(f'| {each["dataset"]} | {each["model"]} | {each["mAP"]:.2%} | {interval} | {each["rank-1"]:.2%} | '
                     f'{each["milliseconds"]:.1f} | {each["megabytes"]:.1f} | {each["verdict"]} |')
    return lines


if __name__ == '__main__':
    exit_with(main, lower='--batch_size')
