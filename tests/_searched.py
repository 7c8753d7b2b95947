"""A net, a gallery without labels and photos to search it with."""
import shutil
import sys

from _runs import Run, make_people, train_arguments


def train(folder):
    """Fill a folder: the experiment `run`, `gallery` with 3 images of 6 identities and a copy of one of them, `photos`
    with one of each identity, and query.csv and test.csv of both."""
    root = make_people(folder)
    for name in ('gallery', 'photos', 'all'):
        (root / name).mkdir()
    for path in root.glob('*.png'):
        number = int(path.stem[-1])
        shutil.copy(path, root / ('photos' if number == 0 else 'gallery') / path.name)
        path.rename(root / 'all' / path.name)
    shutil.copy(root / 'gallery' / '2_1.png', root / 'gallery' / '0_copy_of_2.png')
    for name, fids in (('train', sorted((root / 'all').iterdir())), ('query', sorted((root / 'photos').iterdir())),
                       ('test', sorted((root / 'gallery').iterdir(), reverse=True))):
        (root / f'{name}.csv').write_text(''.join(
            f'{path.stem[-1] if "copy" in path.stem else path.stem[0]},{path.parent.name}/{path.name}\n' for path in fids))
    flags = train_arguments(root, root / 'run', iterations=6, checkpoint_frequency=3)
    flags[flags.index(root / 'people.csv')] = root / 'train.csv'
    assert (run := Run('train.py', *flags)).wait() == 0, run.output
    return root


def forget_fastapi():
    sys.modules['fastapi'] = None  # Python's way to say: not installed.
