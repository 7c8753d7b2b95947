"""Are two images of one person? Which distance means it, and how often that errs."""
from reid.errors import InputError
from reid.evaluation.results import read_evaluation


def threshold_at(path, fpr, metric=None):
    """The operating point of an evaluation at a false positive rate.

    Args:
        path: JSON file of `evaluate.py --verification`.
        fpr: one of the rates that it has, from 1e-1 to 1e-6.
        metric: of the distances that the threshold is for, if that is to be checked.

    Returns: `OperatingPoint`, its `fpr` that of the list.

    Raises:
        InputError: no such file, one without verification or of another metric, a rate that it does not have, or no
            threshold at that rate.
    """
    verification = verification_of(path, metric)
    points = {f'{point.fpr:.0e}': point for point in verification.tpr_at_fpr}
    point = points.get(f'{fpr:.0e}')
    if point is None or abs(point.fpr - fpr) > 1e-9 * fpr:
        has = f'it has those at {", ".join(points)}' if points else 'it has none at all'
        raise InputError(f'{path} has no threshold at an FPR of {fpr:g}: with {verification.impostor_pairs} pairs of '
                         f'different identities {has}.')
    if point.threshold is None:
        raise InputError(f'{path} has no threshold at an FPR of {fpr:g}: more pairs of different identities than that '
                         f'are as near as the nearest of all.')
    return point


def operating_points(path, metric=None):
    """The points of an evaluation's ROC, nearest first: a list of `OperatingPoint`, at most a thousand.

    Each is exact: of the pairs in the evaluation the shares `tpr` and `fpr` are as near as `threshold` or nearer.
    Between two thresholds both shares lie between those of the two.

    Raises:
        InputError: as `threshold_at`.
    """
    return verification_of(path, metric).curve


def verification_of(path, metric=None):
    """The `Verification` in an evaluation's JSON file.

    Raises:
        InputError: as `threshold_at`.
    """
    evaluation = read_evaluation(path)
    if evaluation.verification is None:
        raise InputError(f'{path} has no verification: evaluate again with --verification.')
    of_file = evaluation.parameters['metric']
    if metric not in (None, of_file):
        raise InputError(f'{path} has thresholds for the {of_file} distance, and here the distance is {metric}.')
    return evaluation.verification
