"""What is kept for a while to be fetched: jobs, and images that were answered by address."""

import re
import secrets
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from proxy.errors import Failure

KEEP_S = 600  # seconds after its end
GONE = 10_000  # ids that are remembered after that, to say 410 instead of 404
RETRY_S = 10
_ID = re.compile(r"[a-z]+_(?:([A-Za-z0-9.-]+)_)?[0-9a-f]{32}")  # as `add` makes them, with the node

T = TypeVar("T")


@dataclass(frozen=True)
class KeptImage:
    """An image's file."""

    data: bytes
    mime_type: str


@dataclass
class _Entry:
    owner: str
    value: Any
    size: int = 0
    expires: float | None = None  # on the monotonic clock; None for a job that has not ended


class Kept:
    """Values by ids of 128 random bits, each with its owner.

    Where there is no room, the oldest ended value goes of the owner who has most, so nobody displaces others' values.

    Args:
        max_entries: values that are held, jobs that have not ended among them.
        max_bytes: of all of them together.
        node: the name of this server among others, which ids contain: `job_node1_…`; a load balancer routes by it.
        clock: seconds that only grow.
    """

    def __init__(
        self, max_entries: int, max_bytes: int, node: str = "", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_entries, self._max_bytes, self._clock = max_entries, max_bytes, clock
        self._node = node and f"{node}_"
        self._entries: dict[str, _Entry] = {}
        self._gone: dict[str, str] = {}  # the owner by id

    @property
    def bytes_held(self) -> int:
        return sum(entry.size for entry in self._entries.values())

    def add(self, owner: str, value: Any, prefix: str) -> str:
        """The id of a value that has not ended. Raises Failure 429 if there is room for no more of them."""
        self._expire()
        if len(self._entries) >= self._max_entries and not self._evict(
            Counter(e.owner for e in self._ended().values())
        ):
            raise Failure(429, f"{self._max_entries} jobs are open, the limit: wait for one to finish.", RETRY_S)
        name = prefix + self._node + secrets.token_hex(16)
        self._entries[name] = _Entry(owner, value)
        return name

    def check(self, size: int) -> None:
        """Raises Failure 413 for a value of more bytes than may be held in all."""
        if size > self._max_bytes:
            raise Failure(413, f"These images exceed the {self._max_bytes} bytes that are kept here: ask for fewer.")

    def end(self, name: str, size: int) -> None:
        """The value has ended, and has `size` bytes, which `check` has allowed: it expires after KEEP_S."""
        entry = self._entries.get(name)
        if entry is None:
            return
        entry.size = size
        while self.bytes_held > self._max_bytes:
            held: Counter[str] = Counter()
            for one in self._ended().values():
                held[one.owner] += one.size
            self._evict(held)
        entry.expires = self._clock() + KEEP_S

    def get(self, name: str, kind: type[T], owner: str | None = None) -> T:
        """A value. Raises Failure 410 for one that has expired, 404 for an unknown one.

        Args:
            owner: whose value it must be; None: whoever knows the id may have it.
        """
        self._expire()
        entry = self._entries.get(name)
        if entry is not None and isinstance(entry.value, kind) and owner in (None, entry.owner):
            return entry.value
        if name in self._gone and owner in (None, self._gone[name]):
            raise Failure(410, f"{name[:50]} has expired: results are kept for {KEEP_S // 60} minutes.")
        node = (found := _ID.fullmatch(name)) and found[1]
        if node and f"{node}_" != self._node:
            raise Failure(404, f"This is on the server {node[:50]!r}, to which the load balancer did not send you.")
        raise Failure(404, f"There is no {name[:50]!r} here, or no longer: a restart of the server drops all of them.")

    def of(self, owner: str, kind: type[T]) -> list[T]:
        """The owner's values of a kind, the oldest first."""
        self._expire()
        return [e.value for e in self._entries.values() if e.owner == owner and isinstance(e.value, kind)]

    def holds(self, name: str) -> bool:
        entry = self._entries.get(name)
        return entry is not None and (entry.expires is None or entry.expires > self._clock())

    def expires_in(self, name: str) -> float | None:
        """Seconds until an ended value expires."""
        expires = self._entries[name].expires if name in self._entries else None
        return None if expires is None else expires - self._clock()

    def _ended(self) -> Mapping[str, _Entry]:
        return {name: entry for name, entry in self._entries.items() if entry.expires is not None}

    def _expire(self) -> None:
        now = self._clock()
        for name, entry in self._ended().items():
            if entry.expires is not None and entry.expires <= now:
                self._drop(name)

    def _evict(self, held: Counter[str]) -> bool:
        """Drops the oldest ended value of the owner who holds most. Whether there was one."""
        for owner, _ in held.most_common(1):
            self._drop(next(name for name, entry in self._ended().items() if entry.owner == owner))
            return True
        return False

    def _drop(self, name: str) -> None:
        self._gone[name] = self._entries.pop(name).owner
        if len(self._gone) > GONE:
            del self._gone[next(iter(self._gone))]
