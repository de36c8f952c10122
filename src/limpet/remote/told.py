"""What the trainer keeps of each save that its writer's process knows of."""

from __future__ import annotations

from dataclasses import dataclass, field
from weakref import ref

from limpet.engine.save import Save
from limpet.engine.slots import Lease
from limpet.remote.channel import Packet

__all__ = ["Told"]


@dataclass(slots=True, eq=False)
class Told:
    """A save that the process knows of.

    Attributes:
        lease: of its memory; once that has ended, a save that was not started is withdrawn.
        nonces: of records that may have been created for it.
        lent: somebody over there may read from its memory to the end of that process.
        packet: that tells of it.
    """

    number: int
    save: Save
    lease: ref[Lease]
    packet: Packet | None = None
    started: bool = False
    nonces: list[str] = field(default_factory=list)
    lent: bool = False

    @property
    def is_withdrawn(self) -> bool:
        """Whether a newer save took its place."""
        lease = self.lease()
        return not self.started and (lease is None or not lease.is_held)
