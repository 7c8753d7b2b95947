"""Find the images of each identity in a folder of folders, and the folders that divide it already."""
import collections
import os

from layouts import _convert
from tripletreid.errors import InputError, some, warn

SUFFIXES = (*_convert.JPEG_SUFFIXES, '.png', '.gif')  # Training reads these, GIFs only with one frame.
ANIMATED = 'animated .gif'
# The part of a split that a folder of such a name holds.
PART_OF_FOLDER = {**dict.fromkeys(('train', 'training'), 'train'),
                  **dict.fromkeys(('val', 'valid', 'validation'), 'val'),
                  **dict.fromkeys(('query', 'queries', 'probe'), 'query'),
                  **dict.fromkeys(('gallery',), 'gallery'), **dict.fromkeys(('test', 'testing'), 'test')}


def parts_of_split(root):
    """Return the parts of a split that its folders give, {'train' | 'val' | 'query' | 'gallery' | 'test': folder}.

    Empty if `root` has folders of other names, too, or only one folder: then the folders are identities.
    """
    if not os.path.isdir(root):
        return {}
    folders = [name for name in shown(os.listdir(root)) if os.path.isdir(os.path.join(root, name))]
    parts = {PART_OF_FOLDER.get(name.lower()): name for name in folders}
    return parts if len(parts) == len(folders) > 1 and None not in parts else {}


def images_of_identities(root, part='', depth=1, convert=False, expect_inner=False):
    """Return the file ids of each identity, {pid: list of str}. Everything else is skipped with a warning.

    Hidden files, and files in hidden folders, are skipped silently.

    Args:
        root: the image root.
        part: the folder in it that has the identities; '' for the root itself.
        depth: number of nested folders that name an identity: with 2 `Apple/Golden`.
        convert: take the formats that can be converted, not only the formats that training reads.
        expect_inner: whether folders in the folder of an identity are no reason for a warning.

    Raises:
        InputError: no such folder, or no sub-folder of it with images in it.
    """
    start = os.path.join(root, part)
    if not os.path.isdir(start):
        raise InputError(f'There is no folder {start}.')
    taken = {*_convert.suffixes(), ANIMATED} if convert else {*SUFFIXES}
    pictures = {*_convert.SUFFIXES, ANIMATED}
    names, stray = _folders_at(start, depth)
    images, inner, skipped, links = {}, {}, collections.Counter(), []
    for pid in names:
        images[pid] = []
        for folder, folders, files in os.walk(os.path.join(start, pid), onerror=_reraise):
            folders[:] = shown(folders)
            links += [path for path in (os.path.join(folder, each) for each in folders) if os.path.islink(path)]
            for path in (os.path.join(folder, each) for each in shown(files)):
                kind = ANIMATED if ending(path) == '.gif' and _is_animated(path) else ending(path)
                if kind in taken:
                    images[pid].append(os.path.relpath(path, root))
                    if folder != os.path.join(start, pid):
                        inner.setdefault(os.path.relpath(folder, start), pid)
                else:
                    skipped[kind] += 1
    _warn_of_skipped(start, taken, [name for name in stray if ending(name) in pictures], skipped, links,
                     [pid for pid in images if not images[pid]])
    images = {pid: fids for pid, fids in images.items() if fids}
    if not images:
        raise InputError(f'There is no sub-folder with images ({", ".join(sorted(taken))}) in {start}'
                         f'{f" at depth {depth}" if depth > 1 else ""}; cluster.py groups pictures without names.')
    if inner and not expect_inner:
        path, pid = next(iter(inner.items()))
        warn(f'Images in {len(inner)} folders further down count as images of the identity that the folder above names, '
             f'e.g. {path} as {pid}. If those folders are identities, give --depth {path.count(os.sep) + 1}; if they are '
             f'cameras, --camera_folders.')
    return images


def _folders_at(start, depth):
    """List the folders that are `depth` levels below a folder, relative to it, and the files in the levels between."""
    folders, files = [''], []
    for _ in range(depth):
        entries = [os.path.join(folder, name) for folder in folders
                   for name in shown(os.listdir(os.path.join(start, folder)))]
        folders = [entry for entry in entries if os.path.isdir(os.path.join(start, entry))]
        files += sorted(set(entries) - set(folders))
    return folders, files


def _warn_of_skipped(start, taken, stray, skipped, links, empty):
    """Warn of files that are not images of an identity.

    Args:
        start: the folder with the identities.
        taken: endings that are taken.
        stray: images that are in no identity's folder.
        skipped: {ending: number of files}.
        links: folders that are links.
        empty: identities without images.
    """
    if stray:
        warn(f'Images outside of the folders of the identities are skipped: {some(stray)}; move each into the folder of '
             f'its identity.')
    if skipped:
        numbers = ', '.join(f'{number} {kind}' for kind, number in sorted(skipped.items()))
        convertible = sorted({kind for kind in skipped if kind in (*_convert.suffixes(), ANIMATED)})
        advice = f'; --convert FOLDER takes {", ".join(convertible)} as well' if convertible else ''
        uninstalled = sorted(kind for kind in skipped if kind in _convert.SUFFIXES and kind not in _convert.suffixes())
        if uninstalled:
            advice += f'; "pip install pillow-heif" and then --convert FOLDER take {", ".join(uninstalled)}'
        usual = ', '.join(kind for kind in _convert.SUFFIXES if kind in taken)
        warn(f'Files that are not {usual} are skipped: {numbers}{advice}.')
    if links:
        warn(f'Folders that are links are skipped: {some(links)}.')
    if empty:
        warn(f'Folders without images are skipped: {some(empty)}.')


def shown(names):
    """Return the names that are not hidden, sorted."""
    return sorted(name for name in names if not name.startswith('.'))


def ending(name):
    """Return '.jpg' for 'a/1.JPG'."""
    return os.path.splitext(name)[1].lower() or 'without an ending'


def _is_animated(path):
    """Return whether a GIF file has several frames; False for a broken file, which the decoder reports."""
    from PIL import Image
    if not os.path.isfile(path):
        return False
    try:
        with Image.open(path, formats=['GIF']) as image:
            return image.is_animated
    except Exception:  # Pillow raises errors of many types for damaged files.
        return False


def _reraise(error):
    raise error
