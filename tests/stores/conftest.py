from __future__ import annotations

from tests.servers import azure_server, gcs_server, s3_server

__all__ = ["azure_server", "gcs_server", "s3_server"]
