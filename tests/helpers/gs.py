"""A local server of Google Cloud Storage."""

import importlib.util
import subprocess
import sys
from collections.abc import Iterator

import pytest
from pyarrow import fs

BUCKET = "bucket"
# In a process of its own, as pyarrow keeps Python waiting while it asks. Its own server waits for connections to end.
_SERVER = """
from http.server import ThreadingHTTPServer
from gcp_storage_emulator import server
server.server.HTTPServer = ThreadingHTTPServer
emulator = server.create_server("127.0.0.1", 0, in_memory=True, default_bucket="bucket")
emulator.start()
print(emulator._api._httpd.server_port, flush=True)
input()
"""


class Server:
    """The emulator, with files put and deleted through pyarrow."""

    def __init__(self, port: int) -> None:
        self.options = f"?anonymous=true&endpoint_override=127.0.0.1%3A{port}&scheme=http"
        self._files = fs.GcsFileSystem(anonymous=True, endpoint_override=f"127.0.0.1:{port}", scheme="http")

    def put(self, key: str, content: bytes) -> None:
        with self._files.open_output_stream(f"{BUCKET}/{key}") as file:
            file.write(content)

    def delete(self, key: str) -> None:
        self._files.delete_file(f"{BUCKET}/{key}")

    def uri(self, key: str) -> str:
        return f"gs://{BUCKET}/{key}{self.options}"


@pytest.fixture
def gs() -> Iterator[Server]:
    if importlib.util.find_spec("gcp_storage_emulator") is None:
        pytest.skip("gcp-storage-emulator is not installed")
    child = subprocess.Popen([sys.executable, "-c", _SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    yield Server(int(child.stdout.readline()))
    child.kill()
    child.communicate()
