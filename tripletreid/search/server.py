"""The page of search.py --serve.

Gallery images are requested by their row, never by a path. A photo is read into memory and is gone with the answer. Photos
are decoded one at a time.
"""
import asyncio
import concurrent.futures
import secrets

from tripletreid import page_server, pictures
from tripletreid.page_server import Refused, fastapi
from tripletreid.search import page, photos
from tripletreid.visualization.thumbnails import jpeg, thumbnail

MAX_PIXELS = 50_000_000  # Size of an uploaded picture; a decoded pixel takes three bytes.


def serve(listening, gallery, embedder, count, curve, host=None):
    """Serve the page until the process is ended.

    Args:
        listening: as `page_server.listen` gives it.
        gallery: `Gallery`.
        embedder: `Embedder`.
        count: how many of the nearest are shown.
        curve: points of an evaluation's ROC, as for `page.served`.
        host: the address that was asked for; with one a token is needed.
    """
    token = secrets.token_urlsafe(24) if host else None
    app = make_app(gallery, embedder, count, curve, host, token)
    embedder.warm_up()
    print(f'Serving {len(gallery)} images at {page_server.address_of(listening)}{f"?token={token}" if token else ""} until '
          f'Ctrl+C.', flush=True)
    if host:
        print('Anyone with this address can search the gallery and see its images. So can anyone who reads the network '
              'traffic, because there is no encryption.', flush=True)
    page_server.run(app, listening, log_level='error')


def make_app(gallery, embedder, count, curve, host=None, token=None):
    """Return the ASGI application of the page; all arguments but `token`, a text or None, as for `serve`."""
    html = page.served(gallery, curve, count)
    app = page_server.new_app(lambda: html, page.style(), page.script(), 'search')
    bytes_of_uploads = [0]
    one_at_a_time = concurrent.futures.ThreadPoolExecutor(1)

    async def alone(function, *args):
        return await asyncio.get_running_loop().run_in_executor(one_at_a_time, function, *args)

    def answer(emb, doubts, but):
        return {'doubts': doubts, 'results': [page.result(each) for each in gallery.search(emb, count, but)]}

    def search_with(content):
        complaint = pictures.complaint(content, MAX_PIXELS)
        if complaint:
            too_large = complaint == pictures.too_large(MAX_PIXELS)
            raise Refused(413 if too_large else 422, f'The photo cannot be read: {complaint}.')
        emb = embedder.photo(content)
        copies = gallery.copies(emb, [content])
        doubts = [f'is in the gallery as {gallery.fid(row)}, which is skipped' for row in copies]
        return answer(emb, doubts + photos.doubts(content, embedder.view.load), copies)

    @app.get('/gallery/{row}')
    async def picture(row: int):
        # Only some of many shards are open at a time.
        path = await alone(gallery.path, _checked_row(row, gallery))
        small = path and await asyncio.to_thread(thumbnail, path, page.WIDTH, page.HEIGHT)
        return page_server.picture_answer(small and jpeg(small))

    @app.post('/search')
    async def search(request: fastapi.Request):
        with page_server.Upload(bytes_of_uploads) as content:
            await page_server.read_body(request, content)
            return await alone(search_with, bytes(content))

    @app.post('/search/{row}')
    async def search_like(row: int):
        _checked_row(row, gallery)
        return await alone(lambda: answer(gallery.embeddings.rows(row, row + 1)[0], [], but=[row]))

    return page_server.Guard(app, host, token)


def _checked_row(row, gallery):
    if not 0 <= row < len(gallery):
        raise Refused(404, f'The gallery has no image {row}.')
    return row
