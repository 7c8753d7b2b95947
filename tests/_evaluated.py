"""A small gallery with queries, embedded at random around each identity and evaluated by evaluate.py."""
import json

import numpy as np
from PIL import Image

from _people import write_market1501
from conftest import run_main
from tripletreid.dataset import load_dataset
from tripletreid.embeddings.writer import save_embeddings

# The only query of its identity, with a name that a file system allows and a page and an address must treat as text.
HOSTILE = '0099_c1s1_000000_"\'<img src=x onerror=alert(1)>&%41#?.jpg'


def write_files(root):
    """Write images/, query.csv and gallery.csv: 10 identities of 2 queries and 6 gallery images in two cameras, junk,
    and a query without a match."""
    write_market1501(root / 'images', identities=20, images_per_camera=4)
    (root / 'images' / 'bounding_box_test' / '-1_c1s1_000000_00.jpg').write_bytes(
        (root / 'images' / 'bounding_box_test' / '0011_c1s1_000001_00.jpg').read_bytes())
    Image.new('RGB', (32, 64), 'teal').save(root / 'images' / 'query' / HOSTILE)
    for name, folder in (('query', 'query'), ('gallery', 'bounding_box_test')):
        fids = sorted(f'{folder}/{path.name}' for path in (root / 'images' / folder).iterdir())
        rows = ['{},"{}"\n'.format(fid.split('/')[1].split('_')[0], fid.replace('"', '""')) for fid in fids]
        (root / f'{name}.csv').write_text(''.join(rows))


def embed(root, run, noise, dim=8, seed=0):
    """Write query_RUN.h5 and gallery_RUN.h5: a point for each identity, and noise."""
    random = np.random.default_rng(seed)
    points = {}
    for name in ('query', 'gallery'):
        dataset = load_dataset(root / f'{name}.csv')
        centers = np.stack([points.setdefault(pid, random.normal(size=dim)) for pid in dataset.pids])
        embs = centers + noise * random.normal(size=centers.shape)
        parameters = {'image_root': str(root / 'images'), 'dataset': str(root / f'{name}.csv')}
        save_embeddings(root / f'{name}_{run}.h5', dataset, embs.astype(np.float32), parameters)


def evaluate(root, run, *flags):
    """Write RUN.json by evaluate.py; returns its content."""
    process = run_main(
        'evaluate.py', '--excluder', 'market1501', '--metric', 'euclidean', '--filename', root / f'{run}.json',
        '--query_dataset', root / 'query.csv', '--query_embeddings', root / f'query_{run}.h5',
        '--gallery_dataset', root / 'gallery.csv', '--gallery_embeddings', root / f'gallery_{run}.h5', *flags)
    assert process.returncode == 0, process.stderr
    return json.loads((root / f'{run}.json').read_text())


def ranked_by_hand(query_row, query_set, query_embs, gallery_set, gallery_embs):
    """The whole ranked list of one query by the definition: [(file id, distance, 'match', 'miss' or 'excluded')]."""
    def camera(fid):
        return fid.split('/')[1].split('_')[1][:2]

    pid, fid, emb = query_set.pids[query_row], query_set.fids[query_row], query_embs[query_row]
    ranked = []
    for row in range(len(gallery_set)):
        distance = np.sqrt(np.square(emb.astype(np.float64) - gallery_embs[row].astype(np.float64)).sum())
        other_pid, other_fid = gallery_set.pids[row], gallery_set.fids[row]
        if other_pid == '-1' or (other_pid == pid and camera(other_fid) == camera(fid)):
            kind = 'excluded'
        else:
            kind = 'match' if other_pid == pid else 'miss'
        ranked.append((other_fid, distance, kind))
    return sorted(ranked, key=lambda entry: entry[1])
