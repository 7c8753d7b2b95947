"""Report on the images of csv files: unusable and odd ones, copies, and images that several csv files share."""
import collections
import itertools
import os
import re
import statistics

from tripletreid.copies import SMALLEST_SIDE, show_one_picture, similar_pictures
from tripletreid.dataset import warn_of_lookalikes
from tripletreid.errors import some, warn
from tripletreid.image_root import hint_of_missing

FEW_LEVELS = 16  # Between the darkest and the brightest value.
MANY_OF_ONE_MOMENT = 0.2  # As a fraction of the images. Market-1501's queries have 0.05 with half of the test set.
# Words in the names of csv files that may share images. A name with words of several sides is on the first one.
SIDES = {'train': 'train', 'val': 'val', 'test': 'query|queries|test|gallery|probe'}


def report(datasets, looks):
    """Print a report on each dataset and on the images that each two of them share; return the faults, a list of sentences.

    Args:
        datasets: list of `Dataset`.
        looks: {file id: `looks.Look`} of all their images.
    """
    warn_of_lookalikes(*datasets)
    copies = Copies(looks)
    for dataset in datasets:
        print_report(dataset, looks, copies)
    unusable = {fid for fid, look in looks.items() if look.problem}
    hints = {hint_of_missing(dataset.fids, unusable) for dataset in datasets}
    faults = [f'{len(unusable)} of {len(looks)} images cannot be used.{"".join(sorted(hints))}'] if unusable else []
    for first, second in itertools.combinations(datasets, 2):
        faults += shared_images(first, second, copies)
    return faults


class Copies:
    """The copies among images.

    usable: set of the file ids of images that can be decoded; only these are compared.
    exact: {file id: set of the file ids with the same content}.
    saved_again: {file id: set of the file ids of the same picture with another content}.
    same_moment: {file id: set of the file ids of nearly the same picture}, which includes copies.
    Each set includes only other images; images without any are not keys.
    """

    def __init__(self, looks):
        """Compare the images of {file id: `looks.Look`}."""
        usable = {fid: look for fid, look in looks.items() if not look.problem}
        self.usable = usable.keys()
        fids_of_content = collections.defaultdict(set)
        for fid, look in usable.items():
            fids_of_content[look.content].add(fid)
        self.exact = {fid: fids - {fid} for fids in fids_of_content.values() if len(fids) > 1 for fid in fids}
        similar = similar_pictures({fid: look.prints for fid, look in usable.items()})
        again = {fid: {each for each in others if usable[each].content != usable[fid].content
                       and have_one_shape(usable[each].size, usable[fid].size)
                       and show_one_picture(usable[each].prints, usable[fid].prints)} for fid, others in similar.items()}
        self.saved_again = {fid: others for fid, others in again.items() if others}
        self.same_moment = {fid: others for fid, others in similar.items() if min(usable[fid].size) >= SMALLEST_SIDE}

    def all_copies(self, fid):
        """Return the file ids of all copies of an image, a set."""
        return self.exact.get(fid, set()) | self.saved_again.get(fid, set())


def have_one_shape(size, other):
    """Return whether two sizes have the same proportions, upright or turned, except for rounding."""
    (short, long), (other_short, other_long) = sorted(size), sorted(other)
    return abs(short * other_long - other_short * long) <= max(long, other_long) * 2


def shared_images(first, second, copies):
    """Print which images two datasets share, and warn of shared identities and moments; return a list of faults."""
    both = f'both {first.path} and {second.path}'
    first_fids = set(first.fids) & copies.usable
    shared = {fid for fid in second.fids if fid in first_fids or copies.exact.get(fid, set()) & first_fids}
    again = {fid for fid in second.fids if fid not in shared and copies.saved_again.get(fid, set()) & first_fids}
    pid_of_fid = dict(zip(first.fids, first.pids))
    other_side = side(first.path) != side(second.path)
    moment = {fid for pid, fid in zip(second.pids, second.fids) if fid not in shared | again
              and any(other_side or pid_of_fid[each] == pid for each in copies.same_moment.get(fid, set()) & first_fids)}
    print(f'images in {both}: {some(shared)}; saved again: {some(again)}; nearly equal'
          f'{"" if other_side else " and of one identity"}: {some(moment)}')
    if len(moment) > MANY_OF_ONE_MOMENT * min(len(first_fids), len(set(second.fids))):
        warn(f'{len(moment)} of {len(second)} images of {second.path} are nearly equal to one of {first.path}, as frames '
             f'of one sequence are. Even an untrained net finds those: split by sequence (make_dataset.py folder '
             f'--sequence_pattern), or evaluate with an excluder that ignores them.')
    if not other_side:
        renamed = {fid for fid in shared | again if fid not in first_fids}
        if renamed and side(first.path) != 'train':
            warn(f'{len(renamed)} images of {second.path} are in {first.path} under another path, as copies or links: '
                 f'{some(renamed)}. An evaluation finds them, since --excluder diagonal compares paths.')
        return []
    pids = set(first.pids) & set(second.pids)
    if pids:
        warn(f'Identities in {both}: {some(pids)}. If these are the same persons and not only the same numbers, '
             f'an evaluation says nothing about identities that were not trained on.')
    hint = 'only sets to evaluate on may, which have query, test or gallery in their names.'
    return ([f'{first.path} and {second.path} share images, {some(shared)}: {hint}'] if shared else []) + (
        [f'{first.path} and {second.path} share pictures that were saved again, {some(again)}: {hint}'] if again else [])


def side(path):
    """Return the side of a csv file, one of SIDES, by its name; its path if the name has none of the words."""
    name = os.path.basename(path).lower()
    return next((side for side, words in SIDES.items() if re.search(rf'(?<![a-z])({words})', name)), path)


def print_report(dataset, looks, copies):
    """Print the report on the images of one csv file."""
    fids_of_pid, fids_of_problem, fids_of_change, pids_of_fid = (collections.defaultdict(set) for _ in range(4))
    for pid, fid in zip(dataset.pids, dataset.fids):
        fids_of_pid[pid].add(fid)
        pids_of_fid[fid].add(pid)
        if looks[fid].problem:
            fids_of_problem[looks[fid].problem].add(fid)
        for change in looks[fid].changes:
            fids_of_change[change].add(fid)
    sizes = collections.Counter(looks[fid].size for fid in sorted(pids_of_fid) if not looks[fid].problem)
    print(f'{dataset.path}: {len(dataset)} rows, {len(pids_of_fid)} images, {len(fids_of_pid)} identities')
    print(f'  images of an identity: {spread(map(len, fids_of_pid.values()))}')
    if sizes:
        widths, heights = zip(*sizes.elements())
        (width, height), often = sizes.most_common(1)[0]
        print(f'  width: {spread(widths)}; height: {spread(heights)}; {width}x{height} most often ({often})')
    for problem, fids in [*sorted(fids_of_problem.items()), *sorted(fids_of_change.items())]:
        print(f'  {problem}: {some(fids)}')
    single = [pid for pid, fids in fids_of_pid.items() if len(fids) == 1]
    same, again = ([fid for fid in pids_of_fid if kind.get(fid, set()) & pids_of_fid.keys()]
                   for kind in (copies.exact, copies.saved_again))
    mixed = [fid for fid, pids in pids_of_fid.items()
             if len(pids.union(*(pids_of_fid[copy] for copy in copies.all_copies(fid) & pids_of_fid.keys()))) > 1]
    flat = [fid for fid in pids_of_fid if not looks[fid].problem and looks[fid].levels < FEW_LEVELS]
    print(f'  images of fewer than {FEW_LEVELS} grey levels, nearly uniform: {some(flat)}')
    print(f'  identities with one image: {some(single)}')
    print(f'  images with the content of another: {some(same)}')
    print(f'  pictures of another, saved again: {some(again)}')
    print(f'  images of more than one identity: {some(mixed)}')


def spread(numbers):
    """Return '2 to 72, median 15' for numbers."""
    numbers = sorted(numbers)
    return f'{numbers[0]} to {numbers[-1]}, median {statistics.median_low(numbers)}'
