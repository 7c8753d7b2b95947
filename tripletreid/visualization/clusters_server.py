"""The page of visualize.py clusters --serve: decisions are saved to a file when the page sends them.

Images are requested by their row, never by a path. Decisions replace the file as a whole, and only if they fit the
clusters.
"""
import asyncio
import concurrent.futures
import os
import pathlib

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
        saved_decisions(path, page)
    except InputError as error:
        raise InputError(f'{error} The page would be saved in this file: move it elsewhere first.') from error
    print(f'Serving {len(page.reviewed)} clusters at {page_server.address_of(listening)} until Ctrl+C. Decisions are saved '
          f'for cluster.py --apply {path} --clusters {clusters}.', flush=True)
    page_server.run(make_app(page, path), listening, log_level='error')


def saved_decisions(path, page):
    """Read the decisions that were saved about a `ClustersPage`, empty without a file; raises as `read_decisions`."""
    return clusters_file.read_decisions(path, page.dataset) if os.path.exists(path) else {}


def make_app(page, decisions_path):
    """Return the ASGI application of the page.

    Args:
        page: `ClustersPage`.
        decisions_path: csv file to write.
    """
    template = clusters_page.TEMPLATE
    app = page_server.new_app(lambda: page.served(saved_decisions(decisions_path, page)),
                              html_page.style(template.with_suffix('.css')), html_page.script(template.with_suffix('.js')),
                              'page')
    bytes_of_uploads = [0]
    one_at_a_time = concurrent.futures.ThreadPoolExecutor(1)

    def save(content):
        decisions = clusters_file.parsed_decisions(content, 'The upload', page.dataset)
        try:
            with written_whole(decisions_path) as temporary:
                pathlib.Path(temporary).write_bytes(content)
        except OSError as error:
            raise Refused(500, f'{decisions_path} cannot be written: {error.strerror}.') from error
        return {'saved': len(decisions)}

    @app.get('/image/{row}')
    async def picture(row: int):
        path = page.paths[row] if 0 <= row < len(page.paths) else None
        small = await asyncio.to_thread(thumbnail, path, clusters_page.WIDTH, clusters_page.HEIGHT)
        return page_server.picture_answer(small and jpeg(small))

    @app.post('/decisions')
    async def decide(request: fastapi.Request):
        with page_server.Upload(bytes_of_uploads) as content:
            await page_server.read_body(request, content)
            return await asyncio.get_running_loop().run_in_executor(one_at_a_time, save, bytes(content))

    return page_server.Guard(app, None, None)
