"""Facts that trace a number later: versions of the code and the libraries, hashes of the files that were read."""
import hashlib
import importlib.metadata
import pathlib
import platform
import subprocess

LIBRARIES = ('tensorflow', 'keras', 'numpy', 'h5py', 'pandas', 'scikit-learn')


def versions():
    """Versions of Python, of the libraries that touch a number, and the git commit of this code (None if unknown)."""
    found = {'python': platform.python_version(), 'git_commit': git_commit()}
    for library in LIBRARIES:
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            found[library] = None
    return found


def git_commit():
    """Return the commit of this code, with `+` after it if files were changed since; None outside of a git checkout."""
    here = pathlib.Path(__file__).resolve().parent.parent
    if not (here / '.git').exists():
        return None
    try:
        git = ['git', '-C', str(here)]
        commit = subprocess.run([*git, 'rev-parse', 'HEAD'], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, 'diff', '--quiet', 'HEAD'], capture_output=True).returncode
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ('+' if changed else '')


def file_hash(path):
    """SHA-256 of a file's content, as hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
