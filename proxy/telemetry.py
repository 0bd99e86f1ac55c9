"""A request's id, its line in the log, and the counts for Prometheus."""

import json
import logging
import re
import time
import uuid
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)

SECONDS = (0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")  # an X-Request-Id that is adopted


class Counts:
    """The proxy's own figures, in their own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "sd_requests", "Requests that were answered.", ["route", "dialect", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "sd_request_seconds", "From a request's head to the end of its answer.", ["route"],
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self.in_flight = Gauge("sd_requests_in_flight", "Open requests, and open jobs.", registry=self.registry)
        self.jobs = Counter("sd_jobs", "Jobs that ended.", ["dialect", "status"], registry=self.registry)
        self.waiting = Gauge(
            "sd_requests_waiting", "Requests that wait for their client's turn.", registry=self.registry
        )
        self.waited_seconds = Counter(
            "sd_waited_seconds", "Seconds that requests waited for it, summed.", registry=self.registry
        )


class Telemetry:
    """Gives each request an id, which the handlers' log has too and the answer carries as X-Request-Id.

    The log gets no prompts, images or keys, only the route, the dialect, the status and the duration.
    """

    def __init__(self, app: ASGIApp, counts: Counts) -> None:
        self._app = app
        self._counts = counts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        request_id = sent if _ID.fullmatch(sent) else uuid.uuid4().hex.encode()
        scope["state"] = {**scope.get("state", {}), "request_id": request_id}
        seen: dict[str, Any] = {"status": 499, "bytes": 0}  # 499: the client disconnected before there was an answer
        begin = time.perf_counter()

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen["status"] = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id)]
            elif message["type"] == "http.response.body":
                seen["bytes"] += len(message.get("body", b""))
            await send(message)

        self._counts.in_flight.inc()
        try:
            await self._app(scope, receive, sending)
        except Exception:
            seen["status"] = 500
            raise
        finally:
            self._counts.in_flight.dec()
            # a stream's head says 200 before anything can fail
            seen["status"] = scope["state"].get("failure_status", seen["status"])
            self._report(scope, request_id, time.perf_counter() - begin, seen)

    def _report(self, scope: Scope, request_id: bytes, seconds: float, seen: dict[str, Any]) -> None:
        # the route that matched, not the path: clients may ask for any number of paths
        route = getattr(scope.get("route"), "path", "other")
        dialect = scope["state"].get("dialect", "")  # of a route that generates
        self._counts.requests.labels(route, dialect, seen["status"]).inc()
        self._counts.seconds.labels(route).observe(seconds)
        fields = {
            "request_id": request_id.decode("latin-1"), "method": scope["method"], "route": route, "dialect": dialect,
            "status": seen["status"], "seconds": round(seconds, 4), "bytes": seen["bytes"],
        }  # fmt: skip
        line = "%(method)s %(route)s %(status)s %(seconds)ss %(request_id)s %(dialect)s"
        logger.info(line, fields, extra={"fields": fields})


class JsonFormatter(logging.Formatter):
    """A log line as JSON, for log collectors."""

    def format(self, record: logging.LogRecord) -> str:
        line = {"time": self.formatTime(record), "level": record.levelname, "logger": record.name}
        line |= getattr(record, "fields", {"message": record.getMessage()})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)
