"""Your own images: a folder with one sub-folder per identity, the images (.jpg, .jpeg, .png, .gif) anywhere below it.

Without options all of them train. With --val_fraction that share of the identities is held out: they are seen by the
query and the test set only. With --query_per_identity alone all identities are, for evaluating a given model.
Identities of one image are in the test set only, as there is nothing else of them to be found.

With --camera_folders or --camera_pattern a query is to find its identity in other cameras, and gets one image at least
there; --excluder regex:… is printed that reads both off the paths.

With --convert FOLDER pictures of other formats (.webp, .bmp, .tif and more) take part as well. JPEG copies of all of
them, turned as EXIF says and on white where they are transparent, go into that new folder, and the csv files name
those.
"""
import collections
import os
import re

from layouts import _convert, _files
from tripletreid.errors import InputError, some, warn

EXCLUDER = 'diagonal'
TOTALS = {'train': {}, 'query': {}, 'test': {}}
SUFFIXES = ('.jpg', '.jpeg', '.png', '.gif')
ANIMATED = 'animated .gif'  # Training reads no GIF of several frames.
CAMERA_FOLDERS = r'^(?P<pid>[^/]+)/(?P<cid>[^/]+)/'


def add_arguments(parser):
    parser.add_argument('--val_fraction', type=float, metavar='F', help='share of the identities held out, 0 < F < 1')
    parser.add_argument('--query_per_identity', type=int, metavar='N',
                        help='held-out images of an identity that are queries (default 1); the others are the test set')
    parser.add_argument('--seed', type=int, default=0, help='of what is held out and what is a query (default 0)')
    parser.add_argument('--camera_folders', action='store_true',
                        help='the folders in the folder of an identity are cameras: IDENTITY/CAMERA/…')
    parser.add_argument('--camera_pattern', metavar='REGEX',
                        help='searched in IDENTITY/…/NAME, with a group (?P<cid>…) that is the camera')
    parser.add_argument('--convert', metavar='FOLDER',
                        help='write JPEG copies of the pictures into this new folder, which is the image root then')


def excluder(camera_folders=False, camera_pattern=None, **_):
    """The excluder for what `splits` gives with these options."""
    if camera_folders:
        return f'regex:{CAMERA_FOLDERS}'
    # The identity in a look-ahead, so that the camera may stand anywhere; its slash has the excluder look at paths.
    return f'regex:^(?=(?P<pid>[^/]+)/).*?(?:{camera_pattern})' if camera_pattern else EXCLUDER


def splits(root, val_fraction=None, query_per_identity=None, seed=0, convert=None, camera_folders=False,
           camera_pattern=None):
    """The rows of each subset. What is left out, and why, is a warning.

    Args:
        val_fraction: share of the identities in the query and the test set, between 0 and 1; None: none of them, or
            all of them where `query_per_identity` is given.
        query_per_identity: how many images of such an identity are queries; None: one. One image at least stays in
            the test set, so that there is something to find.
        seed: of the order in which identities are held out and images become queries.
        convert: anything but None: the images are to be converted, so that more formats are taken.
        camera_folders: whether the folders in the folder of an identity are its cameras.
        camera_pattern: or a regular expression with a group `cid`.
    """
    if val_fraction is not None and not 0 < val_fraction < 1:
        raise InputError(f'--val_fraction {val_fraction} is not between 0 and 1.')
    if query_per_identity is not None and query_per_identity < 1:
        raise InputError(f'--query_per_identity {query_per_identity} is less than 1.')
    images = images_of_identities(root, convert)
    camera_of = cameras(images, convert, camera_folders, camera_pattern)
    if val_fraction is not None:
        if len(images) == 1:
            raise InputError(f'{root} has one identity only, which cannot be both trained on and held out.')
        held_out = min(max(1, round(val_fraction * len(images))), len(images) - 1)
    else:
        held_out = len(images) if query_per_identity else 0
    identities = _files.shuffled(images, seed)
    subsets = {'train': [(pid, fid) for pid in identities[held_out:] for fid in images[pid]], 'query': [], 'test': []}
    wanted = query_per_identity or 1
    queries = {pid: queries_of(_files.shuffled(images[pid], seed), wanted, camera_of) for pid in identities[:held_out]}
    for pid, fids in queries.items():
        subsets['query'] += [(pid, fid) for fid in fids]
        subsets['test'] += [(pid, fid) for fid in images[pid] if fid not in fids]
    # That some identities have few images is in the data; a number of queries that none of them has is a mistake.
    most = max((len(images[pid]) for pid in queries), default=0)
    if queries and most <= wanted:
        raise InputError(f'No held-out identity has {wanted + 1} images, {wanted} to search with and one to be found, '
                         f'but {most} at most; lower --query_per_identity or add images.')
    if queries and not subsets['query']:
        raise InputError(f'No held-out identity is seen by two cameras, of which {some(set(camera_of.values()))} are known: '
                         f'there would be nothing to find.')
    held = f'Of {held_out} held-out identities these'
    few = {pid: [] for pid in ('single', 'in one camera', 'short')}
    for pid, fids in queries.items():
        if len(images[pid]) == 1:
            few['single'].append(pid)
        elif camera_of and not fids:
            few['in one camera'].append(pid)
        elif len(fids) < wanted:
            few['short'].append(pid)
    if few['single']:
        warn(f'{held} have one image, which is for the test set only: {some(few["single"])}.')
    if few['in one camera']:
        warn(f'{held} are seen by one camera, and are for the test set only: {some(few["in one camera"])}.')
    if few['short']:
        warn(f'{held} have fewer than {wanted + 1} images, {wanted} to search with and one to be found'
             f'{" in another camera" if camera_of else ""}, and so fewer queries: {some(few["short"])}.')
    return {subset: rows for subset, rows in subsets.items() if rows}


def queries_of(fids, wanted, camera_of):
    """Those of the images of one identity that search for the others, a list.

    Args:
        fids: the images, in the order in which they become queries.
        wanted: at most so many of them.
        camera_of: camera of each file id; where it has none, any other image is one to be found, else one of another
            camera has to stay for each query.
    """
    if not camera_of:
        return fids[:min(wanted, len(fids) - 1)]
    left = collections.Counter(camera_of[fid] for fid in fids)  # How many of the others each camera has.
    queries, cameras_of_queries = [], set()
    for fid in fids:
        camera = camera_of[fid]
        left_then = +(left - collections.Counter([camera]))
        if len(queries) < wanted and all(set(left_then) - {each} for each in {camera, *cameras_of_queries}):
            queries.append(fid)
            cameras_of_queries.add(camera)
            left = left_then
    return queries


def cameras(images, convert, camera_folders, camera_pattern):
    """The camera of each image, {file id: name}; empty where nothing says what it is.

    Args:
        images: {pid: file ids}.
        The others are those of `splits`.

    Raises:
        InputError: both are given, no such pattern, or one that does not fit all images.
    """
    if not camera_folders and not camera_pattern:
        return {}
    if camera_folders and camera_pattern:
        raise InputError('--camera_folders and --camera_pattern both say what the camera is; leave one of them out.')
    pattern = camera_pattern or CAMERA_FOLDERS
    try:
        groups = set(re.compile(pattern).groupindex)
        of_excluder = re.compile(excluder(camera_folders, camera_pattern).partition(':')[2])
    except re.error as error:
        raise InputError(f'--camera_pattern {pattern} is not a regular expression, or not one that can be a part of '
                         f'another: {error}.') from error
    if camera_pattern and groups != {'cid'}:
        raise InputError(f'--camera_pattern {pattern} needs one named group, (?P<cid>…); the identity is the folder.')
    found, without = {}, []
    for pid, fid in ((pid, fid) for pid in images for fid in images[pid]):
        # As they are named in the csv file.
        name = _convert.name_of_copy(fid) if convert else fid
        match, again = re.search(pattern, name), of_excluder.search(name)
        if not match or not match['cid']:
            without.append(name)
        elif not again or (again['pid'], again['cid']) != (pid, match['cid']):
            raise InputError(f'--camera_pattern {pattern} means something else for {name} when it is a part of an '
                             f'excluder; write it without numbered references.')
        else:
            found[fid] = match['cid']
    if without:
        flag = '--camera_folders' if camera_folders else f'--camera_pattern {pattern}'
        raise InputError(f'{flag} tells no camera of {len(without)} of {len(without) + len(found)} images: '
                         f'{", ".join(without[:3])}{", …" if len(without) > 3 else ""}.')
    return found


def images_of_identities(root, convert=False):
    """The file ids of each identity: a dict of pid to a list. What else lies in `root` is left out with a warning.

    Hidden files, and those in hidden folders, are no images, and nothing is said of them.

    Args:
        convert: take the formats that can be converted, not only those that training reads.

    Raises:
        InputError: no such folder, or no sub-folder of it with images in it.
    """
    if not os.path.isdir(root):
        raise InputError(f'There is no folder {root}.')
    endings = _convert.SUFFIXES if convert else SUFFIXES
    kinds_of_pictures = {*_convert.SUFFIXES, ANIMATED}
    taken = kinds_of_pictures if convert else {*SUFFIXES}
    images, beside, left_out, links = {}, [], collections.Counter(), []
    for name in shown(os.listdir(root)):
        if not os.path.isdir(os.path.join(root, name)):
            beside += [name] if ending(name) in kinds_of_pictures else []
            continue
        images[name] = []
        for folder, folders, files in os.walk(os.path.join(root, name), onerror=reraise):
            folders[:] = shown(folders)
            links += [path for path in (os.path.join(folder, each) for each in folders) if os.path.islink(path)]
            for path in (os.path.join(folder, each) for each in shown(files)):
                kind = ANIMATED if ending(path) == '.gif' and is_animated(path) else ending(path)
                if kind in taken:
                    images[name].append(os.path.relpath(path, root))
                else:
                    left_out[kind] += 1

    if beside:
        warn(f'Images beside the folders of the identities are left out: {some(beside)}; move each into the folder of '
             f'its identity.')
    if left_out:
        numbers = ', '.join(f'{number} {kind}' for kind, number in sorted(left_out.items()))
        convertible = sorted(set(left_out) & kinds_of_pictures)
        advice = f'; --convert FOLDER takes {", ".join(convertible)} as well' if convertible else ''
        warn(f'Files that are not {", ".join(endings)} are left out: {numbers}{advice}.')
    if links:
        warn(f'Folders that are links are left out: {some(links)}.')
    empty = [pid for pid in images if not images[pid]]
    if len(empty) == len(images):
        raise InputError(f'There is no sub-folder with images ({", ".join(endings)}) in {root}.')
    if empty:
        warn(f'Folders without images are left out: {some(empty)}.')
    return {pid: fids for pid, fids in images.items() if fids}


def shown(names):
    """The names that are not hidden, sorted."""
    return sorted(name for name in names if not name.startswith('.'))


def ending(name):
    """'.jpg' of 'a/1.JPG'."""
    return os.path.splitext(name)[1].lower() or 'without an ending'


def is_animated(path):
    """Whether a GIF file has several frames. A broken one has none to be told of here."""
    from PIL import Image
    if not os.path.isfile(path):
        return False
    try:
        with Image.open(path, formats=['GIF']) as image:
            return image.is_animated
    except Exception:  # Pillow raises whatever a damaged byte leads it to.
        return False


def reraise(error):
    raise error
