"""Write output files atomically, by a temporary name in the same folder and a rename; replace only files of their kind."""
import contextlib
import fcntl
import itertools
import json
import os
import re
import secrets
import shutil
import stat
import tempfile

from tripletreid import signals
from tripletreid.errors import InputError


def check_output(path, flag, kind, is_of_kind, inputs=()):
    """Check, before the work, that a command may write its output to a path: only a file of the same kind is replaced.

    Args:
        path: the file to be written.
        flag: the flag that names it.
        kind: the kind of such a file, in words with an article, for the message.
        is_of_kind: function of a path that returns whether the file is of that kind; an OSError means no.
        inputs: paths that the command reads, or lists of paths, or None.

    Raises:
        InputError: the name is empty, its folder is missing, or there is an input of the command, a folder, a device or
            a file of another kind.
    """
    try:
        check_replaceable(path)
    except InputError as error:
        raise InputError(f'{flag} {error}') from error
    if not os.path.basename(path):
        raise InputError(f'{flag} {path}: the name of a file is missing; it should be {kind}.')
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise InputError(f'{path} cannot be written: there is no folder {folder}.')
    if not os.path.exists(path):
        return
    for each in itertools.chain.from_iterable([each] if isinstance(each, str | os.PathLike) else each or ()
                                              for each in inputs):
        if os.path.exists(each) and os.path.samefile(path, each):
            raise InputError(f'{path} would be overwritten, but this very command reads it ({each}): choose another '
                             f'{flag}.')
    try:
        replaceable = is_of_kind(path)
    except OSError:
        replaceable = False
    if not replaceable:
        raise InputError(f'{path} is there and is not {kind}, so it is not overwritten: choose another {flag}, or remove '
                         f'it first.')


def holds(path, mark, within=None):
    """Return whether a file contains some bytes, in its first `within` bytes or anywhere. It is read in blocks."""
    before, left = b'', os.path.getsize(path) if within is None else within
    with open(path, 'rb') as file:
        while block := file.read(min(left, 1 << 20)):
            if mark in before + block:
                return True
            before, left = block[-len(mark):], left - len(block)
    return False


def check_file(path, kind, ending):
    """Check that a file exists and can be read.

    Args:
        path: of the file.
        kind: the expected kind, e.g. 'embedding file'.
        ending: ending of such files; the message lists the ones in a folder that was given instead of a file.

    Raises:
        InputError: there is none, or it is a folder.
    """
    if os.path.isdir(path):
        folder = 'an experiment root' if os.path.isfile(os.path.join(path, 'args.json')) else 'a folder'
        names = sorted(name for name in os.listdir(path)
                       if name.endswith(ending) and name not in ('args.json', 'provenance.json'))
        some = ', '.join(names[:5]) + (', …' if names[5:] else '') or f'no {ending} file'
        raise InputError(f'{path} is {folder}, not the expected {kind}; it holds {some}.')
    if not os.path.isfile(path):
        raise InputError(f'There is no {kind} {path}.')


def is_pipe(path):
    """Return whether a path leads to a named pipe or a socket. The pipes of a shell, as /dev/stdin, do not count."""
    try:
        mode = os.stat(os.path.realpath(path)).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def check_replaceable(path):
    """Raise InputError where something is at `path` that no file can take the place of: a folder, a device, a pipe."""
    if os.path.exists(path) and not os.path.isfile(path):
        kind = 'a folder' if os.path.isdir(path) else 'no file'
        raise InputError(f'{path} is {kind}, which cannot be replaced by a file; give another name.')


@contextlib.contextmanager
def written_whole(path):
    """Yield a temporary path in the folder of `path`; on success it becomes `path`, on any failure it is removed.

    The data reach the disk before the rename, so that a power loss leaves the old file or the new one. An
    OSError without a file name, as for a full disk, gets the name of this file.

    Raises:
        InputError: there is a folder or a device of that name.
    """
    check_replaceable(path)
    folder, name = os.path.split(os.path.abspath(path))
    temporary = os.path.join(folder, f'.{name}.{secrets.token_hex(4)}.partial')
    with signals.undone(lambda: os.remove(temporary)):
        try:
            yield temporary
            _sync_file(temporary)
            os.replace(temporary, path)
        except OSError as error:
            error.filename = error.filename or os.fspath(path)
            raise
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.remove(temporary)


def left_unfinished(folder, name):
    """Return the names of temporary files of `name` that killed processes left in a folder, a list."""
    return [each for each in os.listdir(folder) if re.fullmatch(rf'\.{re.escape(name)}\..*partial', each)]


@contextlib.contextmanager
def folder_written_whole(path):
    """Yield an empty folder that replaces `path`, as `written_whole` does for a file."""
    parent, name = os.path.split(os.path.abspath(path))
    temporary, old = (os.path.join(parent, f'.{name}.{secrets.token_hex(4)}.{kind}') for kind in ('partial', 'old'))

    def clean():
        if os.path.exists(old) and not os.path.exists(path):
            os.rename(old, path)
        for folder in (temporary, old):
            shutil.rmtree(folder, ignore_errors=True)

    with signals.undone(clean):
        try:
            os.mkdir(temporary)
            yield temporary
            for folder, _, files in os.walk(temporary):
                for file in files:
                    _sync_file(os.path.join(folder, file))
            if os.path.exists(path):
                os.rename(path, old)
            os.rename(temporary, path)
        finally:
            clean()


@contextlib.contextmanager
def temporary_folder(prefix=None, parent=None):
    """Yield an empty folder, in the folder for temporary files or in `parent`, and remove it at the end."""
    with tempfile.TemporaryDirectory(prefix=prefix, dir=parent) as folder:
        with signals.undone(lambda: shutil.rmtree(folder, ignore_errors=True)):
            yield folder


def _sync_file(path):
    with open(path, 'rb') as written:
        os.fsync(written.fileno())


def sync_folder(folder):
    """Bring a folder's entries, i.e. the renames in it, to the disk, where the file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock(file, wait=False, without_locks=True):
    """Lock an open file or folder until it is closed.

    Args:
        file: open file or descriptor.
        wait: wait for other processes that hold it.
        without_locks: the result on a file system without locks.

    Returns: False if another process holds it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return without_locks
    return True


def reserve(file, size):
    """Make an open file `size` bytes long, on a disk that has room for them. Raises OSError where it has none."""
    if hasattr(os, 'posix_fallocate'):
        os.posix_fallocate(file.fileno(), 0, size)
    else:
        file.truncate(size)


def write_at(file, start, content):
    """Write bytes, all of them, to a place in an open file without a buffer, which would fail only later.

    Args:
        file: open for writing in binary mode.
        start: offset in bytes.
        content: bytes, or a contiguous array.
    """
    left = memoryview(content).cast('B')
    while left:
        written = os.pwrite(file.fileno(), left, start)
        left, start = left[written:], start + written


@contextlib.contextmanager
def tensorflow_os_errors(path):
    """Turn errors of TensorFlow inside of this block, which writes to `path`, into the OSError that they stand for."""
    import tensorflow as tf
    try:
        yield
    except tf.errors.OpError as error:
        # {{node}} path; No space left on device [Op:SaveV2]
        reason = re.sub(r' \[Op:\w+\]$', '', error.message.splitlines()[0]).rpartition('; ')[2]
        raise OSError(None, reason, path) from error


def write_json(path, content):
    """Write `content` atomically as JSON with sorted keys and an indent of two."""
    with written_whole(path) as temporary:
        with open(temporary, 'w', encoding='utf-8') as file:
            json.dump(content, file, indent=2, sort_keys=True)
            file.write('\n')
