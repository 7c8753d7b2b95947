#!/usr/bin/env python3
"""What each loss and margin reaches under one budget, on two small datasets: a table of mAP, mean and range over seeds.

    benchmarks/compare_losses.py          ten minutes or so on two CPU cores

The scanned digits are those of scikit-learn: new images of the digits that were trained on are searched. The persons
are drawn, with colours of hair, shirt and trousers, and seen by two cameras: new persons are searched in the other
camera. Every run is one of train.py, which validates itself at the end. All have the same small net.
"""
import argparse
import logging
import os
import pathlib
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import make_dataset
from reid import argument_types, quiet
from reid.errors import InputError, exit_with
from reid.experiment import arguments
from tests import _people

LOSSES = ('batch_hard', 'batch_all', 'batch_all_nonzero', 'batch_sample', 'lifted', 'lifted_general')
MARGINS = ('0.2', '1.0', 'soft')
DATASETS = {
    'digits': ['--eval_excluder', 'diagonal', '--batch_p', '10', '--net_input_height', '16', '--net_input_width', '16'],
    'market1501': ['--eval_excluder', 'market1501', '--batch_p', '10', '--net_input_height', '32',
                   '--net_input_width', '16'],
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--iterations', type=argument_types.positive_int, default=100, help='(%(default)s)')
    parser.add_argument('--seeds', type=argument_types.positive_int, default=3, help='how many (%(default)s)')
    parser.add_argument('--datasets', nargs='+', choices=DATASETS, default=list(DATASETS), help='(both)')
    options = parser.parse_args()
    with quiet.tensorflow_import():
        import loss
    with tempfile.TemporaryDirectory() as folder:
        _people.write_market1501(f'{folder}/market1501', identities=100, images_per_camera=5)
        for dataset in options.datasets:
            make_dataset.make(dataset, f'{folder}/{dataset}', folder, {})
            print(f'\n| {dataset} | {" | ".join(f"margin {margin}" for margin in MARGINS)} |')
            print('| --- ' * (1 + len(MARGINS)) + '|')
            for name in LOSSES:
                cells = []
                for margin in MARGINS:
                    try:
                        loss.check_margin(name, argument_types.margin(margin))
                    except InputError:
                        cells.append('–')
                        continue
                    scores = [mean_ap(folder, dataset, name, margin, seed, options.iterations)
                              for seed in range(options.seeds)]
                    mean = sum(scores) / len(scores)
                    cells.append(f'{mean:.1%} ({min(scores):.1%} to {max(scores):.1%})')
                print(f'| {name} | {" | ".join(cells)} |', flush=True)


def mean_ap(folder, dataset, loss_name, margin, seed, iterations):
    """mAP on the validation set at the end of one training, in a folder with the datasets and their csv files."""
    import tensorflow as tf

    import train
    from reid.dataset import load_dataset
    from reid.experiment import best_checkpoint
    from reid.training import validation
    root = os.path.join(folder, f'{dataset}_{loss_name}_{margin}_{seed}')
    os.makedirs(root)
    args = arguments.make_parser().parse_args([
        '--experiment_root', root, '--image_root', f'{folder}/{dataset}',
        '--train_set', f'{folder}/{dataset}_train.csv',
        '--model_name', 'mnist', '--head_name', 'direct', '--embedding_dim', '16', '--batch_k', '4',
        '--loss', loss_name, '--margin', margin, '--learning_rate', '1e-3', '--seed', str(seed),
        '--train_iterations', str(iterations), '--decay_start_iteration', str(iterations // 2),
        '--summary_frequency', str(iterations), '--checkpoint_frequency', '0',
        '--eval_query', f'{folder}/{dataset}_query.csv', '--eval_gallery', f'{folder}/{dataset}_test.csv',
        '--eval_frequency', str(iterations), *DATASETS[dataset]])
    silent = logging.getLogger('silent')
    silent.disabled = True
    train.train(args, load_dataset(args.train_set), validation.Validation(args), tf.distribute.get_strategy(), silent)
    return best_checkpoint.results(root)[-1]['mAP']


if __name__ == '__main__':
    exit_with(main)
