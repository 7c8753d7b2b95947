"""`checkpoint-best`: what the validations of a run gave, and which of its checkpoints was the best."""
import json
import os

from tripletreid.errors import InputError
from tripletreid.files import write_json

FILE = 'checkpoint-best'


def results(root):
    """What an experiment's file `checkpoint-best` notes of each validation, in order.

    Returns: list of dicts: step, mAP, top1, and where they are noted embed_flags, a text: the flags of embed.py that
        give just these numbers. Of several validation sets mAP and top1 are the means, and `sets` has the same keys but
        for the step for each set, under its name.

    Raises:
        InputError: it cannot be read.
    """
    path = os.path.join(root, FILE)
    if not os.path.isfile(path):
        return []
    try:
        with open(path, encoding='utf-8') as file:
            return [{'step': int(entry['step']), **_numbers(entry),
                     **({'sets': {name: _numbers(of_set) for name, of_set in entry['sets'].items()}}
                        if 'sets' in entry else {})}
                    for entry in json.load(file)['validations']]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise InputError(f'{path} is damaged ({error}). Without this file, validation begins anew.') from error


def _numbers(entry):
    """What is noted of one set, or of the mean of several, as it should be."""
    return {'mAP': float(entry['mAP']), 'top1': float(entry['top1']),
            **({'embed_flags': str(entry['embed_flags'])} if 'embed_flags' in entry else {})}


def best_step(root):
    """The step of the best checkpoint, the earliest of equals; None before the first validation. See `results`."""
    found = results(root)
    return max(found, key=lambda entry: entry['mAP'])['step'] if found else None


def note(root, step, result):
    """Note the result of a validation, a dict as of `results` without the step.

    What is noted of this step and later ones, by a run that was killed, is void.
    """
    earlier = [entry for entry in results(root) if entry['step'] < step]
    _write(root, [*earlier, {'step': step, **result}])


def forget_after(root, step):
    """Drop what is noted of validations after `step`, from where the run goes on."""
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
