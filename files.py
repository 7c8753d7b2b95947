"""Output files are whole or not there: a temporary name beside the target, then a rename."""
import contextlib
import json
import os
import secrets


@contextlib.contextmanager
def written_whole(path):
    """Yield a temporary path in the folder of `path`; on success it becomes `path`, on any failure it is removed.

    The data reach the disk before the rename, so that after a power loss there is the old file or the new one.
    """
    folder, name = os.path.split(os.path.abspath(path))
    temporary = os.path.join(folder, f'.{name}.{secrets.token_hex(4)}.partial')
    try:
        yield temporary
        with open(temporary, 'rb') as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)


def write_json(path, content):
    """Write `content` as JSON with sorted keys and an indent of two, whole or not at all."""
    with written_whole(path) as temporary:
        with open(temporary, 'w', encoding='utf-8') as file:
            json.dump(content, file, indent=2, sort_keys=True)
            file.write('\n')
