"""Time and memory of cluster.py on made-up embeddings: python benchmarks/cluster.py FOLDER 100000."""
import pathlib
import resource
import subprocess
import sys
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tripletreid.dataset import Dataset
from tripletreid.embeddings.writer import save_embeddings

IMAGES_PER_IDENTITY, DIM, NOISE = 20, 128, 0.8


def make(path, count):
    """Write `count` embeddings around a random point per identity."""
    random = np.random.default_rng(0)
    pids = np.arange(count) // IMAGES_PER_IDENTITY
    points = random.normal(size=(pids[-1] + 1, DIM)).astype(np.float32)
    embs = points[pids] + NOISE * random.normal(size=(count, DIM)).astype(np.float32)
    names = np.array([f'{pid:06}' for pid in pids], object)
    fids = np.array([f'{row:07}.jpg' for row in range(count)], object)
    save_embeddings(path, Dataset(str(path), names, fids), embs)


def main():
    folder, count = pathlib.Path(sys.argv[1]), int(sys.argv[2])
    path = folder / f'made_up_{count}.h5'
    make(path, count)
    started = time.monotonic()
    command = [sys.executable, str(ROOT / 'cluster.py'), '--embeddings', str(path), '--out', str(folder / f'{count}.csv')]
    subprocess.run([*command, *sys.argv[3:]], check=True)
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f'{count} embeddings of {DIM} dimensions: {time.monotonic() - started:.0f} s, '
          f'{usage.ru_utime + usage.ru_stime:.0f} s of CPU, {usage.ru_maxrss / 1e6:.2f} GB at most.')


if __name__ == '__main__':
    main()
