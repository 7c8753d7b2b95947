"""The page of visualize.py clusters --serve: decisions are saved to a file when the page sends them.

Images are requested by their row, never by a path. Decisions replace the file as a whole, and only if they fit the
clusters and the file is as the page has read or saved it: two pages do not overwrite each other's decisions.
"""
import asyncio
import concurrent.futures
import hashlib
import os
import pathlib
import shlex

from tripletreid import page_server
from tripletreid.clustering import clusters_file
from tripletreid.errors import InputError
from tripletreid.files import written_whole
from tripletreid.page_server import Refused, fastapi
from tripletreid.visualization import clusters_page, html_page
from tripletreid.visualization.thumbnails import jpeg, thumbnail


def serve(listening, page):
    """Serve the page until the process is ended.

    Args:
        listening: as `page_server.listen` gives it.
        page: `ClustersPage`.

    Raises:
        InputError: the file for the decisions has other content.
    """
    clusters = page.dataset.path
    path = clusters_page.decisions_file(clusters)
    try:
        saved(path, page)
    except InputError as error:
        raise InputError(f'{error} The page would be saved in this file: move it elsewhere first.') from error
    print(f'Serving {len(page.reviewed)} clusters at {page_server.address_of(listening)} until Ctrl+C. Decisions are saved '
          f'for cluster.py --apply {shlex.quote(path)} --clusters {shlex.quote(clusters)}.', flush=True)
    page_server.run(make_app(page, path), listening, log_level='error')


def saved(path, page):
    """Return the decisions that were saved about a `ClustersPage`, and their version; {} and '' without a file.

    Raises:
        InputError: as `clusters_file.read_decisions`.
    """
    if not os.path.exists(path):
        return {}, ''
    content = clusters_file.read_decision_file(path)
    return clusters_file.parsed_decisions(content, path, page.dataset), version_of(content)


def version_of(content):
    """Return the SHA-256 of the bytes of a decision file."""
    return hashlib.sha256(content).hexdigest()


def make_app(page, decisions_path):
    """Return the ASGI application of the page.

    Args:
        page: `ClustersPage`.
        decisions_path: csv file to write.
    """
    template = clusters_page.TEMPLATE
    app = page_server.new_app(lambda: page.served(*saved(decisions_path, page)),
                              html_page.style(template.with_suffix('.css')), html_page.script(template.with_suffix('.js')),
                              'page')
    bytes_of_uploads = [0]
    one_at_a_time = concurrent.futures.ThreadPoolExecutor(1)

    def save(content, before):
        decisions = clusters_file.parsed_decisions(content, 'The upload', page.dataset)
        if os.path.exists(decisions_path) and version_of(clusters_file.read_decision_file(decisions_path)) != before:
            raise Refused(409, f'{decisions_path} was changed since this page was opened, for example by another page. '
                          f'Reload this page, which then starts with these decisions.')
        try:
            with written_whole(decisions_path) as temporary:
                pathlib.Path(temporary).write_bytes(content)
        except OSError as error:
            raise Refused(500, f'{decisions_path} cannot be written: {error.strerror}.') from error
        return {'saved': len(decisions), 'version': version_of(content)}

    @app.get('/image/{row}')
    async def picture(row: int):
        path = page.paths[row] if 0 <= row < len(page.paths) else None
        small = await asyncio.to_thread(thumbnail, path, clusters_page.WIDTH, clusters_page.HEIGHT)
        return page_server.picture_answer(small and jpeg(small))

    @app.post('/decisions')
    async def decide(request: fastapi.Request, before: str = ''):
        with page_server.Upload(bytes_of_uploads) as content:
            await page_server.read_body(request, content)
            return await asyncio.get_running_loop().run_in_executor(one_at_a_time, save, bytes(content), before)

    return page_server.Guard(app, None, None)
