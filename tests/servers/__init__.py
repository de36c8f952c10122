"""Real stores, for tests: started on 127.0.0.1 before them, and gone after them.

A fixture gives a ``Server`` that lives as long as the session. A test that kills its server, or restarts it, starts one
of its own as a ``Daemon``.
"""

from __future__ import annotations

from tests.servers.azurite import Azurite, azure_server
from tests.servers.daemon import Daemon, Server, free_ports
from tests.servers.gcs import GcsServer, gcs_server
from tests.servers.seaweed import S3Server, SeaweedFS, s3_server

__all__ = [
    "Azurite",
    "Daemon",
    "GcsServer",
    "S3Server",
    "SeaweedFS",
    "Server",
    "azure_server",
    "free_ports",
    "gcs_server",
    "s3_server",
]
