"""A web server for the pages of this project, on this machine alone unless an address is given: FastAPI and uvicorn.

Only requests to the names of this machine are answered, which excludes pages whose name was made to resolve to it, and
only its own page may post. With an address of the network, requests also need a token, which becomes a cookie. Uploads are
read into memory, up to a total size. A connection without a request is closed after some seconds.
"""
import asyncio
import contextlib
import hmac
import ipaddress
import os
import resource
import socket
import urllib.parse

from tripletreid import signals
from tripletreid.errors import InputError

try:
    import fastapi
    import starlette.exceptions
    import starlette.requests
    import uvicorn
    from uvicorn.protocols.http import h11_impl
except ImportError as error:
    raise InputError('--serve needs FastAPI and uvicorn: pip install -r requirements-search.txt') from error

LOOPBACK = '127.0.0.1'
PORT = 8000
MAX_BYTES = 32 << 20  # Size of an upload.
MAX_BYTES_TOGETHER = 8 * MAX_BYTES  # Size of all uploads that have arrived and are not answered.
PATIENCE = 60  # Seconds that an upload may take.
IDLE_SECONDS = 10  # A connection may be open without a request for one to two times this.
WAITING = 128  # Connections that the system keeps until they are accepted.
SPARE_DESCRIPTORS = 16  # Files that the process may need in addition to its connections.
COOKIE = 'search_token'
POLICY = ("default-src 'none'; img-src 'self' blob: data:; style-src 'self'; script-src 'self'; connect-src 'self'; "
          "base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
HEADERS = {'content-security-policy': POLICY, 'x-content-type-options': 'nosniff', 'referrer-policy': 'no-referrer',
           'cache-control': 'no-store', 'cross-origin-resource-policy': 'same-origin'}


class Refused(Exception):
    """A request that is not answered: a status of HTTP and a sentence."""

    def __init__(self, status, sentence):
        super().__init__(sentence)
        self.status = status


def listen(host=None, port=None):
    """Return an open socket at an address of this machine; None: for this machine only.

    Raises:
        InputError: the port is in use, or this machine has no such address.
    """
    way_out = '--port or --host' if host else '--port'
    host, port = host or LOOPBACK, PORT if port is None else port
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=WAITING)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, 'strerror', None) or error
        raise InputError(f'No page can be served at {host}, port {port} ({reason}): give another {way_out}.') from error


def address_of(listening):
    """Return the address at which a browser finds an open socket: http://NAME:PORT/."""
    name, port = listening.getsockname()[:2]
    if ipaddress.ip_address(name).is_unspecified:  # All addresses of this machine, which its name leads to.
        name = socket.gethostname()
    return f'http://{f"[{name}]" if ":" in name else name}:{port}/'


def new_app(page, style, script, purpose):
    """Return an ASGI application that serves a page, its stylesheet and its script, and reports errors as JSON.

    Args:
        page: function without arguments that returns the HTML of the page.
        style, script: texts.
        purpose: noun for a request that fails by a lack of memory or a bug, e.g. 'search'.
    """
    @contextlib.asynccontextmanager
    async def lifespan(_):
        signals.end_the_process()  # uvicorn would wait for open requests, and nothing here has anything to lose.
        yield

    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)

    def serve_text(path, text_of, kind):
        @app.get(path)
        def served():
            return fastapi.Response(text_of(), media_type=kind)

    serve_text('/', page, 'text/html')
    serve_text('/style.css', lambda: style, 'text/css')
    serve_text('/page.js', lambda: script, 'text/javascript')

    def answer_error(kind, status_of, sentence_of=str):
        @app.exception_handler(kind)
        async def answered(_, error):
            return fastapi.responses.JSONResponse({'error': sentence_of(error)}, status_of(error))

    answer_error(Refused, lambda error: error.status)
    answer_error(InputError, lambda _: 422)
    answer_error(starlette.exceptions.HTTPException, lambda error: error.status_code, lambda error: f'{error.detail}.')
    answer_error(fastapi.exceptions.RequestValidationError, lambda _: 404, lambda _: 'Images have numbers.')
    # The remaining causes are a lack of memory or a bug, whose traceback uvicorn prints.
    answer_error(Exception, lambda _: 500, lambda error: f'The {purpose} has failed ({type(error).__name__}).')
    return app


def picture_answer(content):
    """Return the answer with the bytes of a JPEG. Raises `Refused` for None, an image that cannot be shown."""
    if content is None:
        raise Refused(404, 'This image is missing, broken or outside of the image root.')
    return fastapi.Response(content, media_type='image/jpeg')


def run(app, listening, **options):
    """Run uvicorn on an open socket; `options` as of `uvicorn.Config`."""
    config = uvicorn.Config(app, access_log=False, server_header=False, http=connection_class(), ws='none',
                            backlog=WAITING, **options)
    uvicorn.Server(config).run([listening])


def connection_class():
    """Return uvicorn's class of a connection, with a limit on their number and on the time without a request."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    most = max(4, limit - len(os.listdir('/proc/self/fd' if os.path.isdir('/proc/self/fd') else '/dev/fd'))
               - SPARE_DESCRIPTORS)

    class Connection(h11_impl.H11Protocol):
        """A connection that is closed while it is idle, or at once if there are too many."""

        def connection_made(self, transport):
            super().connection_made(transport)
            self._request_before = self._timer = None
            if len(self.connections) > most:
                transport.abort()
            else:
                self._timer = self.loop.call_later(IDLE_SECONDS, self._close_if_idle)

        def connection_lost(self, exc):
            super().connection_lost(exc)
            if self._timer:
                self._timer.cancel()

        def _close_if_idle(self):
            if self.cycle is self._request_before and (self.cycle is None or self.cycle.response_complete):
                self.transport.abort()
                return
            self._request_before = self.cycle
            self._timer = self.loop.call_later(IDLE_SECONDS, self._close_if_idle)

    return Connection


class Upload(bytearray):
    """The bytes of an upload that have arrived; with `total`, a list of one number, the bytes of all uploads."""

    def __init__(self, total):
        super().__init__()
        self.total = total

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.total[0] -= len(self)

    def add(self, part):
        """Append bytes. Raises `Refused` beyond the size of an upload, or of all uploads together."""
        self.extend(part)
        self.total[0] += len(part)
        if len(self) > MAX_BYTES:
            raise too_long()
        if self.total[0] > MAX_BYTES_TOGETHER:
            raise Refused(503, 'Too many uploads arrive at once: try again in a moment.')


def too_long():
    """Return the error for an upload of too many bytes."""
    return Refused(413, f'The upload has more than {MAX_BYTES >> 20} MB.')


async def read_body(request, content):
    """Read the body of a request into an `Upload`. Raises `Refused` if it is too long or too slow."""
    try:
        announced = int(request.headers.get('content-length', 0))
    except ValueError:
        raise Refused(400, 'The length of the upload is not a number.') from None
    if announced > MAX_BYTES:
        raise too_long()

    async def arrive():
        async for part in request.stream():
            content.add(part)

    try:
        await asyncio.wait_for(arrive(), PATIENCE)
    except starlette.requests.ClientDisconnect:
        raise Refused(400, 'The upload did not arrive completely.') from None
    except asyncio.TimeoutError:
        raise Refused(408, f'The upload did not arrive within {PATIENCE} seconds.') from None


class Guard:
    """A wrapper of an ASGI application that checks each request's origin and token, and adds headers to every answer."""

    def __init__(self, app, host, token):
        self.app, self.token = app, token
        self.names = {LOOPBACK, 'localhost', '[::1]'} | ({host.lower(), socket.gethostname().lower()} if host else set())
        self.any_address = host is not None

    async def __call__(self, scope, receive, send):
        if scope['type'] != 'http':
            return await self.app(scope, receive, send)
        headers = {name.decode('latin-1'): value.decode('latin-1') for name, value in scope['headers']}

        async def send_with_headers(message):
            if message['type'] == 'http.response.start':
                message = {**message, 'headers': [*message['headers'], *(
                    (name.encode(), value.encode()) for name, value in HEADERS.items())]}
            await send(message)

        refusal = self._refusal(scope, headers)
        cookie = f'{COOKIE}_{scope["server"][1]}'  # Browsers share cookies between the ports of a machine.
        if refusal is None and self.token and not _equal(_value_of(cookie, headers), self.token):
            refusal = self._answer_without_cookie(scope, cookie)
        await (refusal or self.app)(scope, receive, send_with_headers)

    def _refusal(self, scope, headers):
        """Return the refusal of a request by a foreign host name or from another page, or None."""
        host = headers.get('host', '')
        if not self._is_own_name(_name_in(host)):
            return fastapi.responses.JSONResponse({'error': f'This is not {host[:100]}.'}, 400)
        origin = headers.get('origin')
        if scope['method'] not in ('GET', 'HEAD') and origin is not None and origin != f'http://{host}':
            return fastapi.responses.JSONResponse({'error': 'Only its own page may ask this.'}, 403)
        return None

    def _is_own_name(self, name):
        if name in self.names:
            return True
        # A name may be made to lead here by anybody, an address may not.
        try:
            return self.any_address and bool(ipaddress.ip_address(name.strip('[]')))
        except ValueError:
            return False

    def _answer_without_cookie(self, scope, cookie):
        """To the page's address with the right token: the cookie that stands for it from then on."""
        query = urllib.parse.parse_qs(scope['query_string'].decode('latin-1'))
        if scope['path'] == '/' and _equal(query.get('token', [''])[0], self.token):
            response = fastapi.responses.RedirectResponse('/', 303)
            # Strict would leave it out of this redirect if the link was in a chat or a web mail.
            response.set_cookie(cookie, self.token, httponly=True, samesite='lax')
            return response
        return fastapi.responses.JSONResponse({'error': 'Open the whole address that was printed, token and all.'}, 403)


def _name_in(host):
    """Return the host of a header in small letters, such as '[::1]' of '[::1]:8000'."""
    name, colon, port = host.rpartition(':')
    return (name if colon and port.isdigit() else host).lower()


def _value_of(cookie, headers):
    pairs = (pair.strip().partition('=') for pair in headers.get('cookie', '').split(';'))
    return {name: value for name, _, value in pairs}.get(cookie, '')


def _equal(text, secret):
    return hmac.compare_digest(text.encode(), secret.encode())
