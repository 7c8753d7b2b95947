"""The SQLite file of a search index: tables, ownership, locks and damage."""
import contextlib
import errno
import fcntl
import json
import os
import sqlite3
import time
import urllib.parse

import h5py

from tripletreid.errors import InputError

VERSION = 2  # Version 1 was an .h5 file.
APPLICATION_ID = 0x54524978
# The embeddings of several models can be in one index while it is rebuilt for another model.
SCHEMA = ('CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL)',
          'CREATE TABLE models (model INTEGER PRIMARY KEY, made_by TEXT NOT NULL UNIQUE)',
          'CREATE TABLE images (model INTEGER NOT NULL, fid TEXT NOT NULL, size INTEGER NOT NULL, changed INTEGER NOT NULL, '
          'emb BLOB, problem TEXT, checksum INTEGER NOT NULL, PRIMARY KEY (model, fid))')
POLL_SECONDS = 0.1
NOT_OURS = '{} is not an index of search.py, so it is not overwritten: give another --index.'


def connect(path, report):
    """Open the database, for this process alone where it can be written; wait while another process has it."""
    writable = os.access(path if os.path.exists(path) else os.path.dirname(os.path.abspath(path)), os.W_OK)
    address = f'file:{urllib.parse.quote(os.path.abspath(path))}?mode={"rwc" if writable else "ro"}{_vfs(path, writable)}'
    waiting = False
    while True:
        connection = sqlite3.connect(address, timeout=0, isolation_level=None, uri=True)
        try:
            _prepare(connection, path, writable)
            return connection
        except sqlite3.OperationalError as error:
            connection.close()
            if 'locked' not in str(error):
                raise
        except BaseException:
            connection.close()
            raise
        if not waiting:
            report(f'Another process is updating {path}: waiting for it.')
            waiting = True
        time.sleep(POLL_SECONDS)


def _prepare(connection, path, writable):
    """Lock an open database, create its tables if it is new, and check that it is an index of this version.

    Raises:
        InputError: a database of another program or version, which stays as it is.
        sqlite3.Error: the database is locked, damaged or unreadable.
    """
    execute = connection.execute
    for setting in ('trusted_schema = OFF', 'cell_size_check = ON'):
        execute(f'PRAGMA {setting}')
    if writable and _is_empty(connection):
        execute('PRAGMA auto_vacuum = FULL')
    else:
        _check_owner(connection, path)  # Before the first change.
    if writable:
        execute('PRAGMA locking_mode = EXCLUSIVE')
        execute('BEGIN EXCLUSIVE')
        if _is_empty(connection):
            execute(f'PRAGMA application_id = {APPLICATION_ID}')
            execute(f'PRAGMA user_version = {VERSION}')
            for table in SCHEMA:
                execute(table)
        execute('COMMIT')
        _check_owner(connection, path)
    if [sql for sql, in execute('SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY rowid')] != list(SCHEMA):
        raise sqlite3.DatabaseError('its tables are others')


def _is_empty(connection):
    tables = connection.execute('SELECT COUNT(*) FROM sqlite_master').fetchone()[0]
    return not (tables or _number(connection, 'application_id'))


def _check_owner(connection, path):
    if _number(connection, 'application_id') != APPLICATION_ID:
        raise InputError(NOT_OURS.format(path))
    if (version := _number(connection, 'user_version')) != VERSION:
        raise InputError(f'{path} is an index of version {version}, and this program reads version {VERSION}: give '
                         f'another --index.')


def _number(connection, setting):
    return connection.execute(f'PRAGMA {setting}').fetchone()[0]


def is_ours(path):
    """Check whether a file that SQLite cannot read has the header of an index."""
    with open(path, 'rb') as file:
        header = file.read(72)
    return header.startswith(b'SQLite format 3\0') and header[68:] == APPLICATION_ID.to_bytes(4, 'big')


def _vfs(path, writable):
    """Return the part of the address that does without locks, on a file system that does not have them."""
    try:
        with open(path, 'ab+' if writable else 'rb') as file:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            return '&vfs=unix-none'
    return ''


def is_damage(error):
    """Check whether an error of SQLite means a damaged file, and not a lock, a full disk or an unreadable disk."""
    return type(error) is sqlite3.DatabaseError or 'Could not decode' in str(error)


@contextlib.contextmanager
def sentences(path):
    """Turn errors of SQLite into one sentence."""
    try:
        yield
    except sqlite3.Error as error:
        if is_damage(error):
            raise InputError(NOT_OURS.format(path)) from error
        raise InputError(f'{path} cannot be used as an index ({error}). The embeddings that it holds are kept: remove '
                         f'the cause and run the same command again, or give another --index.') from error


def has_old_format(path):
    """Check whether a file is an index of version 1."""
    try:
        if not h5py.is_hdf5(path):
            return False
        with h5py.File(path, 'r') as file:
            return 'search_index' in json.loads(file.attrs['parameters'])
    except (OSError, RuntimeError, ValueError, KeyError, TypeError):
        return False


def set_aside(path, ending, why, report):
    """Rename an index that cannot be used, which deletes nothing."""
    aside = path + ending
    if os.path.lexists(aside):
        raise InputError(f'{path} {why}, and {aside} exists already: move one of them away, or give another --index.')
    for suffix in ('-journal', ''):
        with contextlib.suppress(FileNotFoundError):
            os.rename(path + suffix, aside + suffix)
    report(f'{path} {why}: it is kept as {aside}, and the index is rebuilt.')
