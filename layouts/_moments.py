"""Where and when a picture was taken: its camera or its sequence, by folders, file names or EXIF."""
import collections
import datetime
import re

from layouts import _convert
from tripletreid.errors import InputError, some, warn

CAMERA_FOLDER = r'/(?P<cid>[^/]+)/'
TIME_TAGS = ((0x8769, 0x9003), (0x8769, 0x9004), (None, 0x0132))  # Original, digitised and file time of EXIF.


def pid_pattern(depth, part):
    """Return the pattern of the part of a path that names the identity, a group `pid`.

    Args:
        depth: number of nested folders that name an identity.
        part: whether the folders of the identities are in folders of a split.
    """
    return ('[^/]+/' if part else '') + '(?P<pid>[^/]+' + '/[^/]+' * (depth - 1) + ')'


def excluder_pattern(group, pattern, depth, part):
    """Return the argument of an excluder that reads identity and camera or sequence off a path.

    Args:
        group: 'cid' or 'sid'.
        pattern: a regular expression with that group, searched in the path from the identity's folder on; None for the
            folder below it.
        depth, part: as for `pid_pattern`.
    """
    if pattern is None:
        return f'^{pid_pattern(depth, part)}{CAMERA_FOLDER}'
    # The identity in a look-ahead, so that the camera may be anywhere; its slash makes the excluder search paths.
    return f'^(?={pid_pattern(depth, part)}/).*?(?:{pattern})'


def by_pattern(images, flag, group, pattern, pattern_of_excluder, convert):
    """Return the camera or the sequence of each image, {file id: name}.

    Args:
        images: list of (pid, file ids).
        flag: the flag of the pattern, for messages.
        group: name of its group.
        pattern: a regular expression, searched in the path.
        pattern_of_excluder: the pattern of the excluder, which has to find the same.
        convert: whether the images are converted, so that the csv file has other paths.

    Raises:
        InputError: no regular expression, without the group, or it does not fit all images.
    """
    try:
        groups = set(re.compile(pattern).groupindex)
        pattern_of_excluder = re.compile(pattern_of_excluder)
    except re.error as error:
        raise InputError(f'{flag} {pattern} is not a regular expression, or not one that can be a part of another: '
                         f'{error}.') from error
    if group not in groups or groups - {group, 'pid'}:
        raise InputError(f'{flag} {pattern} needs one named group, (?P<{group}>…); the identity is the folder.')
    found, without = {}, []
    for pid, fid in ((pid, fid) for pid, fids in images for fid in fids):
        path = _convert.name_of_copy(fid) if convert else fid
        match, again = re.search(pattern, path), pattern_of_excluder.search(path)
        if not match or not match[group]:
            without.append(path)
        elif not again or (again['pid'], again[group]) != (pid, match[group]):
            raise InputError(f'{flag} {pattern} means something else for {path} when it is a part of an excluder; write '
                             f'it without numbered references.')
        else:
            found[fid] = match[group]
    if without:
        kind = {'cid': 'camera', 'sid': 'sequence'}[group]
        raise InputError(f'{flag} finds no {kind} for {len(without)} of {len(without) + len(found)} images: '
                         f'{", ".join(without[:3])}{", …" if len(without) > 3 else ""}.')
    return found


def by_time(root, images, gap):
    """Return the sequence of each image by the time in its EXIF data, {file id: number}.

    An image of an identity that was taken at most `gap` seconds after another one is in the same sequence. An image
    without a time is a sequence of its own, with a warning.

    Args:
        root: the image root.
        images: list of (pid, file ids).
        gap: in seconds.

    Raises:
        InputError: no image has a time.
    """
    sequence_of, without = {}, []
    for _, fids in images:
        times = {fid: time_of(f'{root}/{fid}') for fid in fids}
        without += [fid for fid in fids if times[fid] is None]
        before = None
        for fid in sorted((fid for fid in fids if times[fid] is not None), key=lambda fid: (times[fid], fid)):
            if before is None or (times[fid] - times[before]).total_seconds() > gap:
                number = len(sequence_of)
            sequence_of[fid] = number
            before = fid
        for fid in fids:
            sequence_of.setdefault(fid, len(sequence_of) + (1 << 40))
    if len(without) == len(sequence_of):
        raise InputError(f'No image in {root} has a time in its EXIF data, which --sequence_gap needs.')
    if without:
        warn(f'{len(without)} of {len(sequence_of)} images have no time in their EXIF data, and count as a sequence each: '
             f'{some(without)}.')
    return sequence_of


def time_of(path):
    """Return the time when a picture was taken, a datetime, or None without one in its EXIF data."""
    from PIL import Image
    try:
        with Image.open(path) as image:
            exif = image.getexif()
            texts = [(exif.get_ifd(folder) if folder else exif).get(tag) for folder, tag in TIME_TAGS]
    except Exception:  # Pillow raises errors of many types for damaged files, which the decoder reports.
        return None
    for text in texts:
        try:
            return datetime.datetime.strptime(str(text).strip('\0 '), '%Y:%m:%d %H:%M:%S')
        except ValueError:
            continue
    return None


def queries_of_cameras(fids, wanted, camera_of):
    """Choose the images of one identity that search for the others in other cameras; return a list.

    Args:
        fids: the images, in the order in which they become queries.
        wanted: the most queries.
        camera_of: {file id: camera}. An image of another camera stays in the gallery for each query.
    """
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


def queries_of_sequences(fids, wanted, sequence_of):
    """Choose the images of one identity that search for the others in other sequences.

    No sequence has images on both sides. One sequence at least stays in the gallery.

    Args:
        fids: the images, in the order in which they become queries.
        wanted: the most queries.
        sequence_of: {file id: sequence}.

    Returns: (queries, gallery), two lists. The other images of the queries' sequences are in neither.
    """
    order = list(dict.fromkeys(sequence_of[fid] for fid in fids))
    queries, used = [], set()
    for sequence in order[:-1]:
        if len(queries) < wanted:
            queries += [fid for fid in fids if sequence_of[fid] == sequence][:wanted - len(queries)]
            used.add(sequence)
    return queries, [fid for fid in fids if sequence_of[fid] not in used]
