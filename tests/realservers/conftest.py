"""What runs on real servers, and what has to: whole jobs, races, takeovers, restarts in the middle of traffic."""

from __future__ import annotations

import pytest
from tests.servers import Server, azure_server, gcs_server, s3_server

__all__ = ["azure_server", "bucket", "gcs_server", "s3_server"]


@pytest.fixture(
    params=[
        pytest.param("s3_server", marks=pytest.mark.server, id="s3"),
        pytest.param("azure_server", marks=pytest.mark.server, id="az"),
        pytest.param("gcs_server", id="gs"),
    ]
)
def bucket(request: pytest.FixtureRequest) -> Server:
    """A bucket of each kind in turn."""
    server: Server = request.getfixturevalue(request.param)
    return server
