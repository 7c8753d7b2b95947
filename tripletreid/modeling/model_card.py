"""The card of an export, EXPORT.json: its input and output, how it was evaluated, and its origin.

The same text is in the metadata of an ONNX file, under the key `model_card`.
"""
import datetime
import hashlib
import json
import os

from tripletreid import provenance
from tripletreid.argument_types import LONGEST_SIDE
from tripletreid.errors import InputError
from tripletreid.evaluation import results
from tripletreid.experiment import checkpoints, root, train_flags
from tripletreid.files import write_json
from tripletreid.modeling import exports, inference_flags

FORMAT = 1
# embed.py's flags that an export contains.
TEST_TIME = ('flip_augment', 'crop_augment', 'aggregator')


def path_of(export):
    """Return the path of an export's card."""
    return f'{os.path.normpath(export)}.json'


def describe(trained, checkpoint, view, interface, augmentation, evaluation=None):
    """Return the card of a model, a JSON-serialisable dict, without the part about a single file.

    Args:
        trained: train.py's arguments of the model.
        checkpoint: path of its checkpoint.
        view: `inference_flags.View`.
        interface: `export_module.Interface`.
        augmentation: {name: value} of the TEST_TIME flags.
        evaluation: `results.Evaluation` of the model, or None.
    """
    height, width = ('height', 'width') if interface.any_size else view.load
    folder = os.path.dirname(checkpoint)
    return {
        'format': FORMAT,
        'input': {'name': exports.INPUT, 'dtype': interface.dtype, 'layout': interface.layout, 'channels': 'RGB',
                  'shape': ['batch', 3, height, width] if interface.layout == 'nchw' else ['batch', height, width, 3],
                  'size': list(view.load), 'pixels': interface.pixels or 'rgb255', 'resized_inside': interface.any_size,
                  'resize': view.pixels.resize, 'jpeg': view.pixels.jpeg},
        'output': {'name': exports.OUTPUT, 'dtype': 'float32', 'dimensions': trained.embedding_dim},
        'metric': getattr(trained, 'eval_metric', None) or getattr(trained, 'metric', None),
        'test_time_augmentation': augmentation,
        'model': {'model_name': trained.model_name, 'head_name': trained.head_name, **train_flags.net_options(trained)},
        'training': {'train_set': getattr(trained, 'train_set', None), 'sha256': _hashes(folder),
                     'initial_checkpoint': getattr(trained, 'initial_checkpoint', None)},
        'checkpoint': {'name': os.path.basename(checkpoint),
                       'sha256': provenance.file_hash(checkpoints.index_file(checkpoint))},
        'evaluation': _scores(evaluation) if evaluation else None,
        'versions': provenance.versions(),
        'time': datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds'),
    }


def _hashes(folder):
    """Return the hashes of the files that the last start of a run read, {path: SHA-256}."""
    try:
        with open(os.path.join(folder, root.PROVENANCE_FILE), encoding='utf-8') as file:
            return json.load(file)[-1]['sha256']
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return {}


def _scores(evaluation):
    """Return the scores of an evaluation, and its thresholds with their purpose."""
    parameters = evaluation.parameters
    found = {'file': os.path.basename(evaluation.path), 'metric': parameters.get('metric'),
             'query_dataset': parameters.get('query_dataset'), 'gallery_dataset': parameters.get('gallery_dataset'),
             'mAP': evaluation.numbers['mAP'], 'rank-1': evaluation.numbers['CMC'][0]}
    if evaluation.verification:
        found['thresholds'] = {
            'purpose': 'Two images show one identity if their distance by this metric is at most the threshold. FPR is the '
                       'fraction of impostor pairs that pass, TPR the fraction of genuine pairs.',
            'points': [{'fpr': point.fpr, 'tpr': point.tpr, 'threshold': point.threshold}
                       for point in evaluation.verification.tpr_at_fpr]}
    return found


def write(export, card):
    """Write the card of an export that is complete."""
    write_json(path_of(export), {**card, 'file': {'name': os.path.basename(os.path.normpath(export)),
                                                  'sha256': hash_of(export)}})


def hash_of(export):
    """Return the SHA-256 of an export; of a SavedModel, of the names and hashes of its files."""
    if not os.path.isdir(export):
        return provenance.file_hash(export)
    lines = [f'{os.path.relpath(path, export)} {provenance.file_hash(path)}\n' for path in exports.files_of(export)]
    return hashlib.sha256(''.join(lines).encode()).hexdigest()


def read(export, metadata):
    """Return the card of an export, a dict, or None where it has none.

    Args:
        export: path.
        metadata: as `exports.Loaded` has it.

    Raises:
        InputError: a card of another export, or one that is not readable.
    """
    path = path_of(export)
    if os.path.isfile(path):
        try:
            with open(path, encoding='utf-8') as file:
                card = json.load(file)
            differs = card['file']['sha256'] != hash_of(export)
            _check(card)
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise InputError(f'{path} is not a model card as freeze.py writes it.') from error
        if differs:
            raise InputError(f'{path} is the card of another export than {export}: remove it, or export again.')
        return card
    if exports.CARD_KEY not in metadata:
        return None
    try:
        card = json.loads(metadata[exports.CARD_KEY])
        _check(card)
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise InputError(f'{export} holds a model card that is not readable.') from error
    return card


def _check(card):
    """Check the parts of a card that are used; raises ValueError, LookupError or TypeError."""
    values = card['input']
    known = (('dtype', ('float32', 'uint8')), ('layout', ('nhwc', 'nchw')), ('pixels', ('rgb255', 'imagenet', 'half')),
             ('resize', ('tf1', 'bilinear', 'bicubic')), ('jpeg', ('fast', 'accurate')))
    sides = values['size']
    sizes_fit = len(sides) == 2 and all(isinstance(side, int) and 0 < side <= LONGEST_SIDE for side in sides)
    if not (sizes_fit and all(values[name] in choices for name, choices in known)):
        raise ValueError('unknown value')


def evaluation_of(path, checkpoint):
    """Read the evaluation that an export is to match.

    Args:
        path: of evaluate.py's JSON file.
        checkpoint: path of the checkpoint to be exported.

    Returns: (`results.Evaluation`, {name: value} of the TEST_TIME flags with which it was made).

    Raises:
        InputError: no evaluation, one of another checkpoint, or one whose query and gallery were embedded differently.
    """
    evaluation = results.read_evaluation(path)
    made_with = [made for made in evaluation.made_with.values() if made]
    if not made_with:
        raise InputError(f'{path} does not hold how its embeddings were made: evaluate again.')
    sha256 = provenance.file_hash(checkpoints.index_file(checkpoint))
    if any(made.get('checkpoint_sha256', sha256) != sha256 for made in made_with):
        raise InputError(f'{path} evaluates another checkpoint than {checkpoint}: choose that one by --checkpoint.')
    flags = [{name: made.get(name) or (False if name == 'flip_augment' else None) for name in TEST_TIME}
             for made in made_with]
    if any(each != flags[0] for each in flags):
        raise InputError(f'{path} compares queries and a gallery that were embedded with different test-time augmentation, '
                         f'so no export matches it.')
    return evaluation, flags[0]


def differing_evaluations(folder, checkpoint, augmentation):
    """Return the paths of evaluations in an experiment root whose test-time augmentation differs from an export's."""
    found = []
    for name in sorted(os.listdir(folder)):
        if name.endswith('.json') and name not in ('args.json', root.PROVENANCE_FILE):
            try:
                _, flags = evaluation_of(os.path.join(folder, name), checkpoint)
            except InputError:
                continue
            if flags != augmentation:
                found.append(os.path.join(folder, name))
    return found


def flags_of(augmentation):
    """Return test-time augmentation as flags on a command line, or 'none'."""
    flags = [f'--{name}' if value is True else f'--{name} {value}' for name, value in augmentation.items() if value]
    return ' '.join(flags) or 'none'


def validation_augmentation(trained):
    """Return {name: value} of the TEST_TIME flags with which validation embedded while training."""
    flip = bool(getattr(trained, 'eval_flip', False))
    return {'flip_augment': flip, 'crop_augment': inference_flags.validation_crop(trained),
            'aggregator': 'mean' if flip else None}
