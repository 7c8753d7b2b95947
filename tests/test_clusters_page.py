"""The page of clusters: its suspicions, and its use in a browser, whose decisions cluster.py applies."""
import csv
import hashlib
import json
import os
import re
import shutil
import signal

import numpy as np
import pytest
from PIL import Image

from _browser import ask, new_page
from _runs import Fault, Run, ended_in_one_sentence
from _searched import forget_fastapi
from conftest import assert_one_sentence, run_main, run_script
from tripletreid.clustering import review
from tripletreid.dataset import load_dataset
from tripletreid.embeddings.writer import save_embeddings

HOSTILE = '"\'<img src=x onerror=alert(1)>&%41#?.png'


def points(counts, dim=24, noise=0.1, seed=0):
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    embs = np.eye(dim)[labels] + noise * random.normal(size=(len(labels), dim))
    return (embs / np.linalg.norm(embs, axis=1, keepdims=True)).astype(np.float32), labels


def test_suspicious_clusters_are_found():
    embs, labels = points([8, 6, 5, 9, 7])
    names = np.array(['joined', 'joined', 'half', 'half of it', 'good'], object)[labels]
    names[-2:] = 'half'  # Two images with the name of another identity.
    embs[labels == 3] = points([9], seed=1)[0] @ np.roll(np.eye(24), 2, axis=1)  # As `half`, but with another name.
    reviewed = {each.name: each for each in review.review(embs, names)}
    assert reviewed['joined'].groups == (8, 6)
    assert set(np.flatnonzero(labels == 1)) == set(reviewed['joined'].rows[-6:])
    assert 'two groups of 8 and 6' in reviewed['joined'].doubts[0]
    assert reviewed['half'].groups == (5, 2) and reviewed['good'].doubts == [] and reviewed['good'].groups is None
    assert [reviewed['half'].closer[row] for row in (33, 34)] == ['good', 'good'] and not reviewed['good'].closer
    assert ('half', 'half of it') in [pair[:2] for pair in review.similar_pairs(list(reviewed.values()))]
    assert list(review.review(embs, names))[-1].name == 'good'


def test_images_of_one_moment_are_a_doubt():
    embs, _ = points([6])
    [one] = review.review(embs, np.full(6, 'a', object), np.array(['1', '2', '3', '1', '4', '1'], object))
    assert one.doubts == ['2 images are at a camera and time of another image.']


@pytest.fixture(scope='module')
def grouped(tmp_path_factory):
    """images/, groups.csv and its page: five identities of 4 to 8 images, one of them with a hostile file name."""
    root = tmp_path_factory.mktemp('grouped')
    (root / 'images').mkdir()
    embs, labels = points([8, 7, 6, 5, 8, 6])
    fids = [f'{row:02}.png' for row in range(len(labels))]
    fids[0] = HOSTILE
    for fid, label in zip(fids, labels):
        Image.new('RGB', (32, 64), tuple(int(value) for value in 40 + 30 * np.array([label, label % 3, label % 2]))).save(
            root / 'images' / fid)
    (root / 'all.csv').write_text(''.join('?,"{}"\n'.format(fid.replace('"', '""')) for fid in fids))
    save_embeddings(root / 'all.h5', load_dataset(root / 'all.csv'), embs, {'image_root': str(root / 'images')})
    process = run_script('cluster.py', '--embeddings', root / 'all.h5', '--out', root / 'groups.csv', '--k1', 5, '--k2', 2,
                         '--threshold', 0.5, '--whitening', 0)
    assert process.returncode == 0, process.stderr
    process = run_script('visualize.py', 'clusters', root / 'groups.csv')
    assert process.returncode == 0, process.stderr
    assert '6 clusters' in process.stdout and process.stderr == ''
    return root


def test_the_csv_file_of_the_outliers_names_the_clusters(grouped):
    process = run_main('visualize.py', 'clusters', grouped / 'groups_outliers.csv')
    assert_one_sentence(process, 'outside of all clusters', f'{grouped / "groups.csv"}')


def test_a_changed_csv_file_and_missing_images(grouped, tmp_path):
    for name in ('groups.csv', 'groups.json'):
        shutil.copy(grouped / name, tmp_path / name)
    process = run_main('visualize.py', 'clusters', tmp_path / 'groups.csv', '--image_root', tmp_path)
    assert process.returncode == 0 and 'are missing' in process.stderr
    facts = json.loads((tmp_path / 'groups.json').read_text())
    facts['embedding_parameters'] |= {'checkpoint_sha256': 'of another net', 'weights': 'raw'}
    (tmp_path / 'groups.json').write_text(json.dumps(facts))
    other = run_main('visualize.py', 'clusters', tmp_path / 'groups.csv', '--image_root', tmp_path)
    assert_one_sentence(other, 'groups.csv was made from other embeddings', 'weights was raw and is None')
    with open(tmp_path / 'groups.csv', 'a') as file:
        file.write('Ada,0.png\n')
    assert_one_sentence(run_main('visualize.py', 'clusters', tmp_path / 'groups.csv'), 'was changed')


def test_wrong_labels_are_found(grouped, tmp_path):
    dataset = load_dataset(grouped / 'all.csv')
    labels = points([8, 7, 6, 5, 8, 6])[1]
    labels[3], labels[labels == 5] = 1, np.arange(6) % 2 + 5  # One wrong label, and one identity with two names.
    (tmp_path / 'labelled.csv').write_text(''.join('p{},"{}"\n'.format(label, fid.replace('"', '""'))
                                                   for label, fid in zip(labels, dataset.fids)))
    process = run_main('cluster.py', '--check_labels', '--embeddings', grouped / 'all.h5', '--dataset',
                       tmp_path / 'labelled.csv', '--out', tmp_path / 'checked.csv', '--whitening', 0)
    assert process.returncode == 0, process.stderr
    assert '03.png: labelled p1, closer to p0' in process.stdout
    assert 'p5 and p6 may be one identity' in process.stdout
    process = run_main('visualize.py', 'clusters', tmp_path / 'checked.csv')
    assert process.returncode == 0 and '7 clusters' in process.stdout, process.stderr


def test_decisions_made_in_a_browser_are_applied(grouped, browser):
    before = load_dataset(grouped / 'groups.csv')
    complaints = []
    page = new_page(browser, viewport={'width': 1280, 'height': 900})
    page.on('console', lambda message: complaints.append(message.text))
    page.on('pageerror', lambda error: complaints.append(str(error)))
    page.on('request', lambda request: request.url.startswith(('file:', 'data:', 'blob:'))
            or complaints.append(request.url))
    page.goto((grouped / 'groups.html').as_uri())
    page.locator('#sort').select_option('size')
    cards = page.locator('.cluster')
    assert cards.count() == 6
    shown = page.evaluate('[...document.images].filter(image => image.naturalWidth).length')
    assert shown == len(before)
    names = cards.evaluate_all('all => all.map(one => one.dataset.name)')

    # By keys: the second cluster is merged with the most similar one and gets a name.
    page.keyboard.press('j')
    merged = page.locator('.cluster.current').get_attribute('data-name')
    assert merged == names[1]
    other = page.locator('.cluster.current button', has_text='Merge with').inner_text().split()[2].rstrip(',')
    page.keyboard.press('m')
    assert cards.count() == 5
    page.keyboard.press('u')
    assert cards.count() == 6
    page.keyboard.press('m')
    left = [name for name in names if name not in (merged, other)]
    page.keyboard.press('n')
    page.keyboard.type('Ada, "the first"')
    page.keyboard.press('Enter')

    # Two images are split off by mouse and key, one is thrown out, then a whole cluster.
    strip = page.locator(f'.cluster[data-name="{left[1]}"] .images button')
    split = [strip.nth(number).get_attribute('title') for number in (0, 1)]
    strip.nth(0).click()
    strip.nth(1).click()
    page.keyboard.press('s')
    strip = page.locator(f'.cluster[data-name="{left[1]}"] .images button')
    thrown_out = strip.nth(0).get_attribute('title')
    strip.nth(0).click()
    page.keyboard.press('x')
    page.locator(f'.cluster[data-name="{left[2]}"]').get_by_text('Throw out').click()
    with page.expect_download() as download:
        page.keyboard.press('d')
    assert download.value.suggested_filename == 'groups_decisions.csv'
    download.value.save_as(grouped / 'decisions.csv')
    page.close()
    assert complaints == []

    process = run_main('cluster.py', '--apply', grouped / 'decisions.csv', '--clusters', grouped / 'groups.csv', '--out',
                       grouped / 'named.csv')
    assert process.returncode == 0, process.stderr
    expected = {}
    for pid, fid in zip(before.pids, before.fids):
        name = dict.fromkeys((merged, other), 'Ada, "the first"').get(pid, pid)
        if fid in split:
            name = f'{pid}-2'
        if fid != thrown_out and pid != left[2]:
            expected[fid] = name
    named = load_dataset(grouped / 'named.csv')
    assert dict(zip(named.fids, named.pids)) == expected
    with open(grouped / 'decisions.csv', newline='') as file:
        assert len(list(csv.reader(file))) - 1 == sum(dict(zip(before.fids, before.pids))[fid] != expected.get(fid)
                                                      for fid in before.fids)


def test_decisions_are_saved_by_the_server_of_the_page(grouped, browser, tmp_path):
    """In one process: a browser saves twice, then only this machine, only this page and only decisions are let in."""
    pytest.importorskip('uvicorn')
    for name in ('groups.csv', 'groups.json'):
        shutil.copy(grouped / name, tmp_path / name)
    clusters, decisions = tmp_path / 'groups.csv', tmp_path / 'groups_decisions.csv'
    before = load_dataset(clusters)
    run = Run('visualize.py', 'clusters', clusters, '--serve', '--port', 0)
    run.wait_for('until Ctrl+C')
    assert str(decisions) in run.output
    port = int(re.search(r'http://127[.]0[.]0[.]1:(\d+)/', run.output)[1])
    complaints = []
    early = new_page(browser)
    early.goto(f'http://localhost:{port}/')
    for step in range(2):
        page = new_page(browser)
        page.on('console', lambda message: complaints.append(message.text))
        page.on('request', lambda request: request.url.startswith((f'http://localhost:{port}/', 'data:'))
                or complaints.append(request.url))
        page.goto(f'http://localhost:{port}/')
        page.locator('#sort').select_option('size')
        names = page.locator('.cluster').evaluate_all('all => all.map(one => one.dataset.name)')
        if step == 0:
            assert page.evaluate('[...document.images].every(image => image.loading === "lazy")')
            field = page.get_by_label(f'Name of {names[0]}', exact=True)
            field.fill('Ada, "the first"')
            field.press('Enter')
            renamed = names[0]
        else:  # The page starts with the saved decisions, and a renamed cluster keeps its spread.
            assert names[0] == 'Ada, "the first"'
            assert 'spread' in page.locator('.cluster').first.inner_text()
            page.locator('.cluster').nth(1).get_by_text('Throw out').click()
            thrown_out = names[1]
        assert ', not saved' in page.locator('#state').inner_text()
        page.keyboard.press('d')
        page.locator('#state').get_by_text('saved in groups_decisions.csv').wait_for()
        page.close()
    assert complaints == []
    saved = decisions.read_bytes()
    early.locator('.cluster').first.get_by_text('Throw out').click()
    early.keyboard.press('d')
    early.locator('#state').get_by_text('was changed since this page').wait_for()
    assert ', not saved: ' in early.locator('#state').inner_text() and decisions.read_bytes() == saved
    late = new_page(browser)
    late.goto(f'http://localhost:{port}/')
    for key in 'xdud':  # The second save does not wait until the first one is answered.
        late.keyboard.press(key)
    late.evaluate('() => sent')
    assert 'saved in groups_decisions.csv' in late.locator('#state').inner_text() and decisions.read_bytes() == saved
    late.close()
    early.close()
    process = run_main('cluster.py', '--apply', decisions, '--clusters', clusters, '--out', tmp_path / 'named.csv')
    assert process.returncode == 0, process.stderr
    named = load_dataset(tmp_path / 'named.csv')
    names = {renamed: 'Ada, "the first"'}
    assert dict(zip(named.fids, named.pids)) == {fid: names.get(pid, pid) for pid, fid in zip(before.pids, before.fids)
                                                 if pid != thrown_out}

    assert decisions.read_bytes() == saved
    head = saved.splitlines()[0].decode()
    assert ask(port, 'POST', '/decisions', saved, Origin='http://evil.example')[0] == 403
    assert ask(port, 'POST', '/decisions', saved, host='evil.example')[0] == 400
    for content, part in ((head[:-64] + '0' * 64, 'another clustering'), (f'{head}\nnone.png,Ada\n', 'line 2'),
                          ('', 'first line'), (b'\xff', 'not a csv file')):
        status, _, answer = ask(port, 'POST', '/decisions', content)
        assert status == 422 and part in answer['error']
    for path in (f'/image/{len(before)}', '/image/-1', '/image/a.png', '/groups.csv', '/image/../groups.csv'):
        assert ask(port, 'GET', path)[0] == 404
    assert ask(port, 'GET', '/image/0')[2].startswith(b'\xff\xd8')
    assert decisions.read_bytes() == saved
    before = hashlib.sha256(saved).hexdigest()
    for version in ('', before):
        status, _, answer = ask(port, 'POST', f'/decisions?before={version}', f'{head}\n', Origin='http://localhost')
        assert status == (200 if version else 409)
    assert answer == {'saved': 0, 'version': hashlib.sha256(decisions.read_bytes()).hexdigest()}
    os.kill(run.pid, signal.SIGINT)
    assert run.wait(60) == -signal.SIGINT and 'Traceback' not in run.output, run.output
    assert decisions.read_bytes() == f'{head}\n'.encode()


def test_what_keeps_the_page_from_being_served_is_one_sentence(grouped, tmp_path):
    for name in ('groups.csv', 'groups.json'):
        shutil.copy(grouped / name, tmp_path / name)
    serve = ['visualize.py', 'clusters', tmp_path / 'groups.csv', '--serve']
    assert_one_sentence(run_main(*serve, '--filename', 'x.html'), '--filename', '--serve')
    assert_one_sentence(run_main(*serve[:-1], '--port', 1), '--port needs --serve')
    (tmp_path / 'groups_decisions.csv').write_text(f'image,identity,{64 * "0"}\n')
    assert_one_sentence(run_main(*serve, '--port', 0), 'another clustering', 'groups_decisions.csv', 'move it')
    ended_in_one_sentence(Run(*serve, fault=Fault(forget_fastapi, 'start')), 'requirements-search.txt')
