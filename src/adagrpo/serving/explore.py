"""Which lists are drawn, and with which seed: an option of the service, and a function of the request id alone.

A request that is sent again draws the same list. Whether a request draws does not depend on what it asks.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

__all__ = ["Explore"]

SEEDS = 2**63
NEVER = (0.0, None)


@dataclass(frozen=True)
class Explore:
    """Draw a share of the lists at a temperature; none if that is 0."""

    temperature: float = 0.0
    share: float = 1.0  # of the requests

    def draws(self, request_id: str) -> tuple[float, int | None]:
        """Temperature and seed of the list of a request; 0 and None where it is not drawn."""
        if self.temperature <= 0:
            return NEVER
        digest = hashlib.sha256(request_id.encode()).digest()
        if int.from_bytes(digest[:8]) >= self.share * 2**64:
            return NEVER
        return self.temperature, int.from_bytes(digest[8:16]) % SEEDS
