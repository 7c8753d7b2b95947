"""A browser for the tests of pages, and requests to a served page without one."""
import contextlib
import http.client
import json
import shutil

import pytest

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
         '--disable-component-update', '--disable-sync']
PATIENCE = 300_000  # Milliseconds that the browser may take for a step, instead of half a minute.


@contextlib.contextmanager
def opened_browser():
    """Chromium; skips the test where it or playwright is missing."""
    if CHROMIUM is None:
        pytest.skip('no Chromium here; Debian has it as the package chromium')
    playwright = pytest.importorskip('playwright.sync_api')
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=FLAGS, timeout=PATIENCE)
        yield browser
        browser.close()


def new_page(browser, **options):
    """A page with the tests' patience.

    Give its `wait_for_function` a function, '() => …': playwright evaluates a plain expression each time it looks,
    and the policy of our pages allows that for the first look only, so that such a wait fails on slow machines.
    """
    page = browser.new_page(**options)
    page.set_default_timeout(PATIENCE)
    return page


def ask(port, method, path, body=None, host='localhost', **headers):
    """Status, headers and content of an answer; JSON is read."""
    connection = http.client.HTTPConnection('127.0.0.1', port, timeout=60)
    headers = {name.replace('_', '-'): value for name, value in headers.items()}
    connection.request(method, path, body, {'Host': host, **headers}, encode_chunked='Transfer-Encoding' in headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    if 'json' in answer.getheader('content-type', ''):
        content = json.loads(content)
    return answer.status, answer.headers, content
