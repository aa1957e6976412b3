"""A local S3 server, whose requests are counted, and which can be made to fail."""

import os
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from werkzeug.serving import WSGIRequestHandler, make_server

BUCKET = "bucket"


class _Quiet(WSGIRequestHandler):  # type: ignore[misc]
    protocol_version = "HTTP/1.1"

    def log(self, type: str, message: str, *args: Any) -> None:
        pass


class Server:
    """Moto, with `requests` by method, and `fail`: from (method, path) to a status to answer with, or None."""

    def __init__(self) -> None:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

        self._moto = DomainDispatcherApplication(create_backend_app)
        self.requests: Counter[str] = Counter()
        self.fail: Callable[[str, str], int | None] = lambda method, path: None
        self._start(0)

    def _start(self, port: int) -> None:
        self._server = make_server("127.0.0.1", port, self._answer, threaded=True, request_handler=_Quiet)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def _answer(self, environ: Any, start: Any) -> Any:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.requests[method] += 1
        if status := self.fail(method, path):
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start(f"{status} failed", [("Content-Length", "0")])
            return [b""]
        return self._moto(environ, start)

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def start_again(self) -> None:
        self._start(self.port)

    @property
    def client(self) -> Any:
        import boto3

        return boto3.client("s3", region_name="us-east-1", endpoint_url=os.environ["AWS_ENDPOINT_URL"])

    def put(self, key: str, content: bytes) -> None:
        self.client.put_object(Bucket=BUCKET, Key=key, Body=content)

    def delete(self, key: str) -> None:
        self.client.delete_object(Bucket=BUCKET, Key=key)

    def keys(self, prefix: str = "") -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        keys = [item["Key"] for page in pages for item in page.get("Contents", [])]
        return [key for key in keys if not key.endswith("/")]  # pyarrow marks folders so that it has emptied


@pytest.fixture
def s3(monkeypatch, tmp_path):
    from moto.backends import get_backend

    from ood_audit.images import object_store

    server = Server()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-for-any-log")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("OOD_AUDIT_CACHE", str(tmp_path / "cache"))
    object_store._filesystem.cache_clear()
    server.client.create_bucket(Bucket=BUCKET)
    yield server
    server.stop()
    get_backend("s3").reset()
    object_store._filesystem.cache_clear()
