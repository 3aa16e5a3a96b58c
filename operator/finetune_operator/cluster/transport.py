"""HTTP to the API server: credentials, timeouts, typed errors, one metric a request."""

import json
from typing import Any
from urllib.parse import urlencode

import urllib3
from kubernetes import client, config

from finetune_operator.cluster.errors import Unavailable, parse_error
from finetune_operator.telemetry import Telemetry

CONNECT_TIMEOUT_SECONDS = 3.0
READ_TIMEOUT_SECONDS = 10.0

Manifest = dict[str, Any]

_METHODS = {"get": "GET", "list": "GET", "create": "POST", "update": "PUT", "patch": "PATCH", "delete": "DELETE"}


def load_client(connections: int) -> client.ApiClient:
    """A client from the pod's ServiceAccount, else from KUBECONFIG.

    :param connections: connections kept open: one for each thread that sends requests.
    :raises kubernetes.config.ConfigException: neither is there.
    """
    configuration = client.Configuration()
    try:
        config.load_incluster_config(configuration)
    except config.ConfigException:
        config.load_kube_config(client_configuration=configuration)
    configuration.connection_pool_maxsize = connections
    # urllib3 would repeat a request that timed out up to three times: past the Lease's deadline, behind our backoff.
    configuration.retries = False
    return client.ApiClient(configuration)


class Transport:
    """Sends one request and returns the parsed answer; knows no kinds."""

    def __init__(self, api_client: client.ApiClient, telemetry: Telemetry, user_agent: str) -> None:
        self._client = api_client
        self._client.user_agent = user_agent
        self._requests = telemetry.api_requests

    def request(
        self,
        verb: str,
        resource: str,
        path: str,
        body: Manifest | None = None,
        *,
        query: dict[str, str] | None = None,
        content_type: str = "application/json",
        accept: str = "application/json",
        timeout: float = READ_TIMEOUT_SECONDS,
    ) -> Manifest:
        """Send one request.

        :param verb: the Kubernetes verb (get, list, create, update, patch, delete).
        :param resource: plural, with the subresource if any; only for the metric.
        :param timeout: seconds without an answer.
        :raises ApiError: the subclass for the answer; Unavailable if there was none.
        """
        url = self._client.configuration.host + path + (f"?{urlencode(query)}" if query else "")
        headers = dict(self._client.default_headers) | {"Accept": accept, "Content-Type": content_type}
        self._client.update_params_for_auth(headers, [], ["BearerToken"], path, verb, body)
        code = "none"
        try:
            response = self._client.call_api(
                _METHODS[verb],
                url,
                header_params=headers,
                body=body,
                _request_timeout=(min(CONNECT_TIMEOUT_SECONDS, timeout), timeout),
            )
            code = str(response.status)
            content = response.read()
        except (urllib3.exceptions.HTTPError, client.ApiException) as error:  # ApiException: TLS failed
            raise Unavailable(0, "NoAnswer", f"{verb} {path}: {error}") from error
        finally:
            self._requests.labels(verb=verb, resource=resource, code=code).inc()
        if response.status < 300:
            answer: Manifest = json.loads(content)
            return answer
        raise parse_error(response.status, *_describe(content, f"{verb} {path}: HTTP {response.status}"))


def _describe(content: bytes, fallback: str) -> tuple[str, str]:
    """(reason, message) of a metav1.Status; proxies between answer with other content."""
    try:
        status = json.loads(content)
    except ValueError:
        return "Unknown", fallback
    return status.get("reason") or "Unknown", status.get("message") or fallback
