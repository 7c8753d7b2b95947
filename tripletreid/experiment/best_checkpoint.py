"""checkpoint-best: the results of the validations of a run, and its best checkpoint."""
import json
import os

from tripletreid.errors import InputError
from tripletreid.files import write_json

FILE = 'checkpoint-best'


def results(root):
    """Return the validations in an experiment's file `checkpoint-best`, in order.

    Returns: list of dicts: step, mAP, top1, and, if stored, scores, {name: mean}, and embed_flags, a string: the flags of
        embed.py that give exactly these numbers. For several validation sets, mAP, top1 and scores are means, and `sets`
        has these keys, except the step, for each set under its name.

    Raises:
        InputError: it cannot be read.
    """
    path = os.path.join(root, FILE)
    if not os.path.isfile(path):
        return []
    try:
        with open(path, encoding='utf-8') as file:
            return [{'step': int(entry['step']), **_numbers(entry),
                     **({'sets': {name: _numbers(set_entry) for name, set_entry in entry['sets'].items()}}
                        if 'sets' in entry else {})}
                    for entry in json.load(file)['validations']]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise InputError(f'{path} is damaged ({error}). Without this file, validation starts again from nothing.') from error


def _numbers(entry):
    """Return the stored numbers of one set, or of the mean of several sets, in their types."""
    return {'mAP': float(entry['mAP']), 'top1': float(entry['top1']),
            **({'scores': {str(name): float(score) for name, score in entry['scores'].items()}}
               if 'scores' in entry else {}),
            **({'embed_flags': str(entry['embed_flags'])} if 'embed_flags' in entry else {})}


def best_step(root):
    """Return the step of the best checkpoint, the earliest of equals; None before the first validation. See `results`."""
    found = results(root)
    return max(found, key=lambda entry: entry['mAP'])['step'] if found else None


def note(root, step, result):
    """Store the result of a validation, a dict as in `results` without the step.

    Results of this step and later ones, which a killed run stored, are removed.
    """
    earlier = [entry for entry in results(root) if entry['step'] < step]
    _write(root, [*earlier, {'step': step, **result}])


def forget_after(root, step):
    """Remove the validations after `step`, from which the run continues."""
    found = results(root)
    kept = [entry for entry in found if entry['step'] <= step]
    if not kept and found:
        os.remove(os.path.join(root, FILE))
    elif len(kept) < len(found):
        _write(root, kept)


def _write(root, entries):
    best = max(entries, key=lambda entry: entry['mAP'])
    content = {**best, 'checkpoint': f'checkpoint-{best["step"]}', 'validations': entries}
    write_json(os.path.join(root, FILE), content)
