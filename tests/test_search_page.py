"""The page of search.py: served and used in a browser, whom it keeps out, and as a file."""
import base64
import concurrent.futures
import io
import json
import os
import re
import signal
import socket
import struct
import threading
import zlib

import numpy as np
import pytest
from PIL import Image

from _browser import ask, new_page
from _runs import Fault, Run, ended_in_one_sentence
from _searched import forget_fastapi, train
from conftest import wait_until
from tripletreid import pictures
from tripletreid.dataset import Dataset
from tripletreid.embeddings.reader import Embeddings
from tripletreid.embeddings.writer import save_embeddings
from tripletreid.errors import InputError
from tripletreid.evaluation.results import OperatingPoint
from tripletreid.modeling.inference_flags import View
from tripletreid.search import page
from tripletreid.search.gallery import Gallery, Query

uvicorn = pytest.importorskip('uvicorn')
page_server = pytest.importorskip('tripletreid.page_server')
server = pytest.importorskip('tripletreid.search.server')
HOSTILE = 'sub/"\'<img src=x onerror=alert(1)>&%41#?.png'
ALL_IMAGES = '() => [...document.images].every(image => image.complete && image.naturalWidth)'
DROP = """([content, name]) => {
  const bytes = Uint8Array.from(atob(content), letter => letter.charCodeAt(0));
  const dropped = new DataTransfer();
  dropped.items.add(new File([bytes], name, {type: 'image/png'}));
  const target = document.getElementById('ask');
  for (const type of ['dragover', 'drop'])
    target.dispatchEvent(new DragEvent(type, {dataTransfer: dropped, bubbles: true, cancelable: true}));
}"""


@pytest.fixture
def look(browser):
    """A function that opens a page; none of them logs an error, opens a dialog or asks another server."""
    complaints, pages = [], []

    def open_page(address, width=1280):
        page = new_page(browser, viewport={'width': width, 'height': 900})
        # A photo that is refused is no fault of the page.
        page.on('console', lambda message: 'status of 422' in message.text or complaints.append(message.text))
        page.on('pageerror', lambda error: complaints.append(str(error)))
        page.on('dialog', lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
        page.on('request', lambda request: request.url.startswith((address.split('?')[0], 'data:', 'blob:'))
                or complaints.append(request.url))
        page.goto(address)
        pages.append(page)
        return page

    yield open_page
    for each in pages:
        each.close()
    assert complaints == []


def names(page):
    return page.locator('#found .ranked .name').evaluate_all('all => all.map(one => one.title)')


def test_a_photo_is_dropped_on_the_page_and_found(tmp_path, look):
    root = train(tmp_path)
    flags = ['--experiment_root', root / 'run', '--gallery', root / 'gallery']
    photo = root / 'photos' / '3_0.png'
    run = Run('search.py', *flags, photo, root / 'gallery' / '2_1.png', '--filename', root / 'found.json', '--count', 5)
    assert run.wait() == 0, run.output
    found = json.loads((root / 'found.json').read_text())
    photo_results, image_results = ([each['fid'] for each in one['results']] for one in found)

    run = Run('search.py', *flags, '--serve', '--port', 0, '--count', 5, '--threshold', 1e-9)
    run.wait_for('until Ctrl+C')
    address = re.search(r'http://127\.0\.0\.1:\d+/', run.output)[0]
    shown = look(address)
    shown.evaluate(DROP, [base64.b64encode(photo.read_bytes()).decode(), '3_0.png'])
    shown.wait_for_selector('#found:not([hidden])')
    assert names(shown) == photo_results
    assert shown.locator('#verdict').inner_text().startswith('Nobody: the nearest is at a distance of')
    assert shown.evaluate('document.activeElement.id') == 'name'
    shown.wait_for_function(ALL_IMAGES)
    assert shown.locator('img').count() == 7 and shown.locator('.miss').count() == 5 + 1  # One is in the legend.

    # The threshold is moved by keys, to where all are near enough.
    shown.locator('#threshold').focus()
    shown.keyboard.press('End')
    assert shown.locator('#found .match').count() == 5
    assert shown.locator('#verdict').inner_text() == 'The same identity in 5 of the 5 nearest.'
    assert shown.locator('#found .ranked img').first.get_attribute('alt') == f'rank 1, the same identity: {photo_results[0]}'

    # A picture of the list is searched with by keys: the image itself is not found.
    shown.get_by_role('button', name=photo_results[0]).focus()
    shown.keyboard.press('Enter')
    shown.locator('#name').get_by_text(photo_results[0], exact=True).wait_for()
    assert photo_results[0] not in names(shown) and len(names(shown)) == 5
    assert shown.locator('#visit button').count() == 2
    shown.locator('#visit button').last.click()
    assert names(shown) == photo_results

    # A file that is no image is reported, and the previous results stay.
    shown.set_input_files('#file', {'name': 'notes.txt', 'mimeType': 'text/plain', 'buffer': b'no image'})
    shown.wait_for_selector('#failure:not([hidden])')
    assert 'notes.txt: The photo cannot be read: it is neither a JPEG' in shown.locator('#failure').inner_text()
    assert names(shown) == photo_results

    # On a telephone, where another photo of a gallery identity is chosen.
    narrow = look(address, width=390)
    narrow.set_input_files('#file', root / 'gallery' / '2_1.png')
    narrow.wait_for_selector('#found:not([hidden])')
    assert narrow.evaluate('document.documentElement.scrollWidth') == 390
    assert names(narrow) == image_results
    narrow.wait_for_function(ALL_IMAGES)  # Otherwise those on their way fail with the server.

    # Ctrl+C, while somebody is sending a photo.
    sending = socket.create_connection(('127.0.0.1', int(address.split(':')[2].strip('/'))), timeout=60)
    sending.sendall(b'POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n12345')
    os.kill(run.pid, signal.SIGINT)
    assert run.wait(60) == -signal.SIGINT and 'Traceback' not in run.output, run.output
    sending.close()


# --- Whom it keeps out: without a browser and without a net -----------------------------------------------------------

class Embedder:
    """In place of a net: the embedding of a photo is two colours of its first pixel."""
    view = View((1, 1), (1, 1))

    def photo(self, content):
        try:
            return np.array(pictures.decode(content).getpixel((0, 0))[:2], np.float32)
        except InputError as error:
            raise InputError(f'The photo cannot be read: {error}.') from error


def photo(red, green):
    file = io.BytesIO()
    Image.new('RGB', (1, 1), (red, green, 0)).save(file, 'png')
    return file.getvalue()


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """A gallery of five images, one of a hostile name, one that is missing, one that leads out of the folder."""
    root = tmp_path_factory.mktemp('served')
    (root / 'images' / 'sub').mkdir(parents=True)
    fids = ['a.png', 'b.png', HOSTILE, 'gone.png', 'link.png']
    for number, fid in enumerate(fids[:3]):
        Image.new('RGB', (10, 20), (40 * number, 90, 0)).save(root / 'images' / fid)
    Image.new('RGB', (10, 20)).save(root / 'secret.png')
    (root / 'images' / 'link.png').symlink_to(root / 'secret.png')
    save_embeddings(root / 'gallery.h5', Dataset('', np.array(fids, object), np.array(fids, object)),
                    np.arange(10, dtype=np.float32).reshape(5, 2))
    return root


def opened(files, **more):
    return Gallery('pictures', Embeddings(files / 'gallery.h5'), 'euclidean', image_root=str(files / 'images'), **more)


@pytest.fixture
def serving(files):
    """A function that serves the gallery in a thread; returns the port."""
    running = []

    def start(host=None, token=None):
        listening = page_server.listen('127.0.0.1', 0)
        app = server.make_app(opened(files), Embedder(), 3, [], host, token)
        one = uvicorn.Server(uvicorn.Config(app, log_level='critical', lifespan='off', http=page_server.connection_class()))
        thread = threading.Thread(target=one.run, args=[[listening]], daemon=True)
        thread.start()
        running.append((one, thread, listening))
        wait_until(lambda: one.started, 'the server')
        return listening.getsockname()[1]

    yield start
    for one, thread, listening in running:
        one.should_exit = one.force_exit = True
        thread.join(60)
        listening.close()


def test_only_this_machine_and_only_this_page(serving):
    port = serving()
    for host in ('localhost', f'127.0.0.1:{port}', 'LOCALHOST:1', '[::1]:80'):
        assert ask(port, 'GET', '/', host=host)[0] == 200
    for host in ('evil.example', '127.0.0.1.evil.example', '10.0.0.1', '', 'localhost:80:80', 'localhost.'):
        status, headers, content = ask(port, 'GET', '/gallery/0', host=host)
        assert status == 400 and 'error' in content
        assert headers['content-security-policy'] == page_server.POLICY
    assert ask(port, 'POST', '/search', photo(1, 2), Origin='http://localhost')[0] == 200
    for origin in ('http://evil.example', 'null', 'https://localhost', 'http://localhost:81'):
        assert ask(port, 'POST', '/search', photo(1, 2), Origin=origin)[0] == 403
    for path in ('/', '/style.css', '/page.js', '/gallery/0', '/nothing'):
        _, headers, _ = ask(port, 'GET', path)
        assert headers['x-content-type-options'] == 'nosniff' and headers['cache-control'] == 'no-store'
        policy = headers['content-security-policy']
        assert "default-src 'none'" in policy and "script-src 'self'" in policy and 'unsafe' not in policy
        assert 'access-control-allow-origin' not in headers


def test_with_an_address_of_the_network_a_token_is_needed(serving):
    port = serving('0.0.0.0', 'secret')
    for path in ('/', '/?token=wrong', '/?token=', '/gallery/0?token=secret', '/page.js'):
        assert ask(port, 'GET', path)[0] == 403
    assert ask(port, 'POST', '/search', photo(1, 2), Cookie=f'search_token_{port}=wrong')[0] == 403
    status, headers, _ = ask(port, 'GET', '/?token=secret', host=f'10.1.2.3:{port}')
    assert status == 303 and headers['location'] == '/'
    cookie = headers['set-cookie']
    assert 'HttpOnly' in cookie and 'SameSite=lax' in cookie
    given = cookie.split(';')[0]
    assert ask(port, 'GET', '/gallery/0', host=f'10.1.2.3:{port}', Cookie=f'other=1; {given}')[0] == 200
    assert ask(port, 'GET', '/gallery/0', host='evil.example', Cookie=given)[0] == 400


def test_images_have_numbers_and_stay_inside_of_their_folder(serving):
    port = serving()
    status, headers, content = ask(port, 'GET', '/gallery/2')
    assert status == 200 and headers['content-type'] == 'image/jpeg' and content.startswith(b'\xff\xd8')
    for path in ('/gallery/3', '/gallery/4', '/gallery/5', '/gallery/-1', '/gallery/a.png', '/gallery/1e0',
                 '/gallery/%2e%2e', '/gallery/../../secret.png', '/gallery/99999999999999999999', '/secret.png',
                 '/docs', '/openapi.json'):
        status, _, content = ask(port, 'GET', path)
        assert status == 404 and isinstance(content['error'], str), path
    assert ask(port, 'POST', '/search/5')[0] == 404
    assert ask(port, 'DELETE', '/gallery/0')[0] == 405


def png_header(width, height):
    head = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    chunk = b'IHDR' + head
    return b'\x89PNG\r\n\x1a\n' + struct.pack('>I', 13) + chunk + struct.pack('>I', zlib.crc32(chunk)) + struct.pack(
        '>I', 100) + b'IDAT'


def test_uploads_are_bounded(serving, monkeypatch):
    port = serving()
    _, _, found = ask(port, 'POST', '/search', photo(2, 3))
    assert [each['row'] for each in found['results']] == [1, 0, 2] and found['results'][0]['distance'] < 1e-5
    _, _, found = ask(port, 'POST', '/search/1')
    assert [each['row'] for each in found['results']] == [0, 2, 3]
    for garbage in (b'no image', b'', photo(1, 2)[:20]):
        status, _, content = ask(port, 'POST', '/search', garbage)
        assert status == 422 and content['error'].startswith('The photo cannot be read')
    for width, height in ((10_000, 5_001), (60_000, 60_000)):
        status, _, content = ask(port, 'POST', '/search', png_header(width, height))
        assert status in (413, 422) and 'pixels' in content['error']
    status, _, content = ask(port, 'POST', '/search', png_header(10_000, 5_000))
    assert 'pixels' not in content['error']  # It has none of them, which only who decodes it sees.
    monkeypatch.setattr(page_server, 'MAX_BYTES', 1 << 20)
    too_much = (bytes(1 << 16) for _ in range(17))
    assert ask(port, 'POST', '/search', too_much, Transfer_Encoding='chunked')[0] == 413
    # One that is announced as too long is not waited for.
    with socket.create_connection(('127.0.0.1', port), timeout=60) as sending:
        sending.sendall(b'POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1048577\r\n\r\n')
        assert sending.recv(100).startswith(b'HTTP/1.1 413')
    monkeypatch.setattr(page_server, 'PATIENCE', 0.1)
    with socket.create_connection(('127.0.0.1', port), timeout=60) as sending:
        sending.sendall(b'POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n')
        assert sending.recv(100).startswith(b'HTTP/1.1 408')


def test_pictures_that_promise_little_and_take_much_are_refused_at_once(serving):
    """A JPEG with thousands of Exif segments, and a GIF with a frame larger than its canvas."""
    port = serving()
    file = io.BytesIO()
    Image.new('RGB', (1, 1), (2, 3, 0)).save(file, 'jpeg')
    jpeg = file.getvalue()
    segment = b'\xff\xe1\x00\x64Exif\0\0'.ljust(102, b'\0')
    status, _, found = ask(port, 'POST', '/search', jpeg[:2] + 60_000 * segment + jpeg[2:])
    assert status == 200 and found['doubts'] == []  # Pillow itself takes half a minute.
    status, _, content = ask(port, 'POST', '/search', jpeg[:2] + 70_000 * segment + jpeg[2:])
    assert status == 422 and 'more than 65,536 segments' in content['error']
    gif = b'GIF89a' + struct.pack('<HHBBB', 10, 10, 0x80, 0, 0) + bytes(6) + b',' + struct.pack(
        '<HHHHB', 0, 0, 20_000, 20_000, 0) + b'\x02\x02\x4c\x01\x00;'
    status, _, content = ask(port, 'POST', '/search', gif)
    assert status == 413 and 'more than 50,000,000 pixels' in content['error']


def test_uploads_have_a_limit_together(serving, monkeypatch):
    monkeypatch.setattr(page_server, 'MAX_BYTES_TOGETHER', 1 << 16)
    port = serving()
    with socket.create_connection(('127.0.0.1', port), timeout=60) as sending:
        sending.sendall(b'POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 65536\r\n\r\n' + bytes(65535))
        wait_until(lambda: ask(port, 'POST', '/search', photo(1, 2))[0] == 503, 'the upload to arrive')
    wait_until(lambda: ask(port, 'POST', '/search', photo(1, 2))[0] == 200, 'the upload to end')


def test_idle_connections_are_dropped_and_never_too_many(serving, monkeypatch, capfd):
    monkeypatch.setattr(page_server, 'IDLE_SECONDS', 0.3)
    monkeypatch.setattr(page_server.resource, 'getrlimit', lambda _: (0, 0))  # Leaves four connections.
    port = serving()
    idle = [socket.create_connection(('127.0.0.1', port), timeout=60) for _ in range(30)]
    idle[0].sendall(b'GET / HTTP/1.1\r\nHost: lo')
    for each in idle:
        try:
            assert each.recv(100) == b''
        except ConnectionResetError:
            pass
        each.close()
    assert ask(port, 'GET', '/')[0] == 200
    assert capfd.readouterr().err == ''


def test_a_hundred_requests_at_once_are_all_answered(serving):
    port = serving()
    stalled = [socket.create_connection(('127.0.0.1', port), timeout=60) for _ in range(20)]
    for each in stalled:  # An upload that never arrives must not keep the others waiting.
        each.sendall(b'POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n')
    with concurrent.futures.ThreadPoolExecutor(100) as pool:
        answers = list(pool.map(lambda n: ask(port, 'POST', '/search', photo(n, n)), range(100)))
    assert all(status == 200 for status, *_ in answers)
    nearest = [content['results'][0]['row'] for *_, content in answers]
    assert nearest == [min(range(5), key=lambda row: (abs(n - 2 * row) ** 2 + abs(n - 2 * row - 1) ** 2, row))
                       for n in range(100)]
    for each in stalled:
        each.close()


def test_what_keeps_the_page_from_being_served_is_one_sentence(tmp_path):
    train_like = tmp_path / 'run'
    train_like.mkdir()
    (train_like / 'args.json').write_text('{}')
    flags = ['search.py', '--experiment_root', train_like, '--gallery', tmp_path, '--serve']
    with socket.create_server(('127.0.0.1', 0)) as busy:
        ended_in_one_sentence(Run(*flags, '--port', busy.getsockname()[1]), 'in use', '--port')
    ended_in_one_sentence(Run(*flags, '--host', '203.0.113.7'), '203.0.113.7', '--host')

    ended_in_one_sentence(Run(*flags, fault=Fault(forget_fastapi, 'start')), 'requirements-search.txt')


# --- The page as a file -----------------------------------------------------------------------------------------------

def test_the_report_shows_what_was_found_and_what_a_threshold_means(files, tmp_path, look):
    curve = [OperatingPoint(fpr=0.0, tpr=0.25, threshold=2.0), OperatingPoint(fpr=0.0004, tpr=0.5, threshold=4.0),
             OperatingPoint(fpr=1.0, tpr=1.0, threshold=50.0)]
    gallery = opened(files, threshold=4.0)
    queries = [Query(HOSTILE, gallery.search(np.array([4, 5], np.float32), 5)),
               Query('far away', gallery.search(np.array([99, 99], np.float32), 5))]
    photos = [[files / 'images' / HOSTILE], [files / 'none.png']]
    page.write_page(tmp_path / 'found.html', gallery, queries, photos, curve, 5)
    assert page.is_page(tmp_path / 'found.html')
    named = opened(files, names=np.array(['Ann', 'Bob', 'Ann', 'Bob', 'Cy'], object))
    query = Query('photo', named.search(np.array([4, 5], np.float32), 5), ['a.png'])
    page.write_page(tmp_path / 'named.html', named, [query], [[files / 'none.png']], [], 5)
    shown = look((tmp_path / 'named.html').as_uri())
    assert shown.locator('#found .identity').all_inner_texts() == ['Ann', 'Bob', 'Bob', 'Ann', 'Cy']
    assert shown.locator('#verdict').inner_text().startswith('Ann by 2 of 5 votes. The 5 nearest')
    assert 'A vote of the 5 nearest is right for' in shown.locator('#about').inner_text()
    assert '⚠ This photo is in the gallery as a.png, which is skipped.' in shown.locator('#doubts').inner_text()
    for width in (1280, 390):
        shown = look((tmp_path / 'found.html').as_uri(), width)
        assert shown.evaluate('document.documentElement.scrollWidth') == width
        assert names(shown) == [each.fid for each in queries[0][1]] and HOSTILE in names(shown)
        assert shown.locator('#name').inner_text() == HOSTILE
        assert shown.locator('#verdict').inner_text() == 'The same identity in 3 of the 5 nearest.'
        assert shown.locator('#found .ranked .gone').count() == 2 and not shown.locator('#ask').is_visible()
        assert shown.locator('#meaning').inner_text() == (
            'In the evaluation at least 50.0% of the pairs of one identity are as near, and at most 0.04% of the pairs of '
            'different ones.')
        shown.locator('#threshold').evaluate('one => { one.value = 1; one.dispatchEvent(new Event("input")); }')
        assert 'at least 0.0%' in shown.locator('#meaning').inner_text()
        shown.locator('#visit button').nth(1).click()
        assert shown.locator('#verdict').inner_text().startswith('Nobody: the nearest is at a distance of')
        assert shown.locator('#query .gone').count() == 1
