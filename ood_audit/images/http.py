"""Single files over HTTP and HTTPS, as lists of URLs have them.

The state of a file is its size and its `Last-Modified`; where a server sends none, a (negative) number made of its
`ETag` stands for the time. Each is asked for at every run, by a HEAD request.

A URL may grant access by its query (a presigned URL). What does is left out of the name in the store, and is known only
while the process lives that was given the URL: later the image's row, its features and its scores are there, and its
picture can't be shown again unless the server gives it to anyone.
"""

import threading
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from hashlib import blake2b
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from ood_audit.errors import UsageError
from ood_audit.images.content import Content, UnreadableError
from ood_audit.text import printable

if TYPE_CHECKING:
    import requests

_TIMEOUT = (10, 60)  # seconds to connect, and between two pieces of an answer
_TRIES = 3
_LARGEST = 1 << 30  # bytes; an endless answer must end
_SECRETS = {  # names in a query that grant access: AWS, Google, CloudFront, Azure, and common words
    *("signature", "expires", "awsaccesskeyid", "googleaccessid", "key-pair-id", "policy"),
    *("sig", "se", "sp", "sv", "sr", "st", "spr", "sip", "skoid", "sktid", "skt", "ske", "sks", "skv"),
    *("token", "access_token", "auth", "authorization", "key", "api_key", "apikey", "secret", "password", "jwt"),
}
_SECRET_PREFIXES = ("x-amz-", "x-goog-")
_given: dict[str, str] = {}  # the full URL of a name whose query held secrets
_local = threading.local()


def canonical(url: str) -> str:
    """The name of a URL in the store: without fragment and secrets. The URL itself is kept for this process.

    Raises:
        UsageError: it has a password in it, or no host.

    """
    parts = urlsplit(url)
    if parts.username or parts.password:
        raise UsageError("leave the password out of the URL, which is stored and shown; put it into ~/.netrc")
    if not parts.hostname:
        raise UsageError(f"{printable(url)} names no host")
    values = parse_qsl(parts.query, keep_blank_values=True)
    kept = [(name, value) for name, value in values if not _is_secret(name)]
    path = quote(parts.path, safe="/%:@!$&'()*+,;=~")
    base = f"{parts.scheme.lower()}://{parts.netloc.lower()}{path}"
    if len(kept) == len(values):
        return f"{base}?{quote(parts.query, safe='/%:@!$&()*+,;=~?')}" if parts.query else base
    name = f"{base}?{urlencode(kept)}" if kept else base
    _given[name] = f"{base}?{parts.query}"
    return name


def facts(uri: str) -> tuple[int, int] | None:
    """See `access.facts`. A size that the server does not tell is 0."""
    try:
        answer = _request("HEAD", uri)
    except UnreadableError:
        answer = _request("GET", uri)  # a URL may be signed for GET alone; what comes is not read
    if answer is None:
        return None
    with answer:
        return int(answer.headers.get("Content-Length", 0)), _stamp(answer.headers)


def read(uri: str) -> Content:
    """See `access.read`."""
    import requests

    answer = _request("GET", uri)
    if answer is None:
        raise UnreadableError("not found (HTTP 404)")
    with answer:
        pieces = []
        size = 0
        try:
            for piece in answer.iter_content(1 << 20):
                pieces.append(piece)
                size += len(piece)
                if size > _LARGEST:
                    raise UnreadableError(f"more than {_LARGEST:,} bytes")
        except (requests.RequestException, OSError) as error:
            if isinstance(error, UnreadableError):
                raise
            raise UnreadableError(_reason(error)) from error
        return Content(b"".join(pieces), size, _stamp(answer.headers))


def _request(method: str, uri: str) -> "requests.Response | None":
    """An answer, whose content is still to be read; None where there is nothing at that URL."""
    import requests

    try:
        answer = _session().request(
            method,
            _given.get(uri, uri),
            stream=True,
            timeout=_TIMEOUT,
            allow_redirects=True,
            headers={"Accept-Encoding": "identity"},  # the size is that of the file
        )
    except requests.RequestException as error:
        raise UnreadableError(_reason(error)) from error
    if answer.status_code in (404, 410):
        answer.close()
        return None
    if answer.status_code != 200:
        answer.close()
        denied = "access denied" if answer.status_code in (401, 403) else "the server refuses"
        raise UnreadableError(f"{denied} (HTTP {answer.status_code})")
    return answer


def _session() -> "requests.Session":
    """This thread's session: it keeps its connections, and tries again what may work the next time."""
    if not hasattr(_local, "session"):
        try:
            import requests
        except ImportError:
            raise UsageError("https:// needs the package requests: pip install 'ood-audit[remote]'") from None
        from urllib3.util import Retry

        # Not on a refused connection: with a host that is down, each of a million URLs would wait.
        again = Retry(
            _TRIES, connect=1, backoff_factor=0.3, status_forcelist=(429, 500, 502, 503, 504), raise_on_status=False
        )
        _local.session = requests.Session()
        for scheme in ("http://", "https://"):
            _local.session.mount(scheme, requests.adapters.HTTPAdapter(max_retries=again))
        _local.session.headers["User-Agent"] = "ood-audit"
    return _local.session


def _stamp(headers: Mapping[str, str]) -> int:
    if modified := headers.get("Last-Modified"):
        try:
            return int(parsedate_to_datetime(modified).timestamp()) * 10**9
        except ValueError:
            pass
    if tag := headers.get("ETag"):
        return -int.from_bytes(blake2b(tag.encode(), digest_size=7).digest(), "big")
    return 0


def _is_secret(name: str) -> bool:
    return name.lower() in _SECRETS or name.lower().startswith(_SECRET_PREFIXES)


def _reason(error: Exception) -> str:
    """In few words, and without the URL, which may hold secrets."""
    import requests

    if isinstance(error, requests.exceptions.SSLError):
        return "the server's certificate is not valid"
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, (requests.exceptions.ChunkedEncodingError, requests.exceptions.ContentDecodingError)):
        return "the connection broke off"
    if isinstance(error, requests.ConnectionError):
        text = str(error)
        if "timed out" in text:
            return "no answer in time"
        return "the connection broke off" if "Connection aborted" in text else "cannot be reached"
    if isinstance(error, requests.TooManyRedirects):
        return "too many redirects"
    return f"cannot be asked for ({type(error).__name__})"
