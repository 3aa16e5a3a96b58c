"""The Kubernetes API as plain JSON: paths and dicts in, dicts out."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlencode

import urllib3
from kubernetes.client import ApiException, Configuration
from kubernetes.config import new_client_from_config

Object = dict[str, Any]

MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"


class Api:
    """A connection with the credentials of one kubeconfig; safe to share between threads.

    Every method raises kubernetes.client.ApiException for a status of 400 or above.
    """

    def __init__(self, kubeconfig: Path) -> None:
        configuration = Configuration()
        configuration.connection_pool_maxsize = 64
        self.client = new_client_from_config(str(kubeconfig), persist_config=False, client_configuration=configuration)
        auth: Any = configuration.auth_settings()
        self._credentials = {each["key"]: each["value"] for each in auth.values()}

    def get(self, path: str, **query: Any) -> Object:
        return self._json("GET", path, query)

    def items(self, path: str, **query: Any) -> list[Object]:
        """The objects of a collection."""
        return list(self.get(path, **query)["items"])

    def post(self, path: str, body: Object, **query: Any) -> Object:
        return self._json("POST", path, query, body)

    def put(self, path: str, body: Object, **query: Any) -> Object:
        return self._json("PUT", path, query, body)

    def patch(self, path: str, body: Object, content_type: str = MERGE_PATCH, **query: Any) -> Object:
        return self._json("PATCH", path, query, body, content_type)

    def delete(self, path: str, body: Object | None = None, **query: Any) -> Object:
        return self._json("DELETE", path, query, body)

    def watch(self, path: str, **query: Any) -> "Watch":
        """Lists, then watches a collection."""
        return Watch(self, path, query)

    def open(
        self, method: str, path: str, query: Object, body: Object | None = None, content_type: str = "application/json"
    ) -> urllib3.BaseHTTPResponse:
        """One request; the body of the answer is not read yet."""
        url = self.client.configuration.host + path + ("?" + urlencode(query) if query else "")
        headers = self._credentials | {"Content-Type": content_type, "Accept": "application/json"}
        response: urllib3.BaseHTTPResponse = self.client.call_api(method, url, headers, body).response
        if response.status >= 400:
            raise ApiException(response.status, response.reason, body=response.read().decode())
        return response

    def _json(self, method: str, path: str, query: Object, *body: Any) -> Object:
        with contextlib.closing(self.open(method, path, query, *body)) as response:
            return dict(json.loads(response.read()))


class Watch:
    """Iterates over (event type, object), starting with ADDED for all that is there; ends after stop().

    As a context manager it stops at the end of the block.
    """

    def __init__(self, api: Api, path: str, query: Object) -> None:
        self._api, self._path, self._query = api, path, query
        self._stopped = False
        self._response: urllib3.BaseHTTPResponse | None = None

    def __iter__(self) -> Iterator[tuple[str, Object]]:
        listed = self._api.get(self._path, **self._query)
        for item in listed["items"]:
            yield "ADDED", item
        version = listed["metadata"]["resourceVersion"]
        while not self._stopped:
            query = self._query | {"watch": 1, "allowWatchBookmarks": "true", "resourceVersion": version}
            self._response = self._api.open("GET", self._path, query)
            if self._stopped:  # meanwhile, so that stop() saw only the response before
                self._response.close()
                return
            for event in self._lines(self._response):
                if event["type"] == "ERROR":
                    raise ApiException(event["object"].get("code"), event["object"].get("message"))
                version = event["object"]["metadata"]["resourceVersion"]
                if event["type"] != "BOOKMARK":
                    yield event["type"], event["object"]

    def stop(self) -> None:
        """Ends the iteration from another thread."""
        self._stopped = True
        if self._response:
            with contextlib.suppress(ValueError, OSError):  # it has just ended by itself
                self._response.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _lines(self, response: urllib3.BaseHTTPResponse) -> Iterator[Object]:
        rest = b""
        try:
            for chunk in response.stream(amt=None):
                if self._stopped:  # Python reads on after the shutdown, without decrypting
                    return
                *lines, rest = (rest + chunk).split(b"\n")
                yield from map(json.loads, lines)
        except urllib3.exceptions.HTTPError:
            if not self._stopped:
                raise
        finally:
            response.close()
