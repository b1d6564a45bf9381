"""How this process reaches out, and how much it did: one of each, as connections are shared."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field


@dataclass(slots=True)
class Settings:
    """What the command line may change. Times are seconds."""

    timeout: float = 30.0  # without a byte, or until connected
    retries: int = 5  # in a row, of one range, without progress
    connections: int = 8  # requests at the same time
    download: bool = False  # read each object once, front to back, into a temporary file


@dataclass(slots=True)
class Traffic:
    """What was sent and received. `total` is the size of all objects that were opened."""

    requests: int = 0  # redirects and attempts that failed are counted, too
    nbytes: int = 0  # of the bodies that were read
    total: int = 0
    sent: int = 0  # bytes of output that stores have taken
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, requests: int = 0, nbytes: int = 0, total: int = 0, sent: int = 0) -> None:
        """Count more of each."""
        with self._lock:
            self.requests += requests
            self.nbytes += nbytes
            self.total += total
            self.sent += sent

    def take(self) -> tuple[int, int, int, int]:
        """Requests, bytes, total and bytes sent so far; counting begins anew."""
        with self._lock:
            told = self.requests, self.nbytes, self.total, self.sent
            self.requests = self.nbytes = self.total = self.sent = 0
        return told


settings = Settings()
traffic = Traffic()
