"""Process-wide settings for remote access, and traffic counters."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field


@dataclass(slots=True)
class RemoteSettings:
    """Settings that the command line can change. Times are in seconds."""

    timeout: float = 30.0  # for connecting, and for each wait for data
    retries: int = 5  # consecutive, for one range, without progress
    connections: int = 8  # requests at the same time
    download: bool = False  # read each object once, front to back, into a temporary file


@dataclass(slots=True)
class Traffic:
    """Counters of traffic. `total` is the size of all objects that were opened."""

    requests: int = 0  # including redirects and failed attempts
    nbytes: int = 0  # bytes of bodies that were read
    total: int = 0
    sent: int = 0  # bytes of output accepted by stores
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, requests: int = 0, nbytes: int = 0, total: int = 0, sent: int = 0) -> None:
        """Add to the counters."""
        with self._lock:
            self.requests += requests
            self.nbytes += nbytes
            self.total += total
            self.sent += sent

    def take(self) -> tuple[int, int, int, int]:
        """Return requests, bytes, total and bytes sent so far, and reset the counters."""
        with self._lock:
            counts = self.requests, self.nbytes, self.total, self.sent
            self.requests = self.nbytes = self.total = self.sent = 0
        return counts


settings = RemoteSettings()
traffic = Traffic()
