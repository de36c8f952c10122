"""Fault row 33: the server dies in the middle of traffic and comes back on the same data; saves go on by themselves."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from tests.realservers.traffic import Traffic
from tests.servers import Azurite, Daemon, SeaweedFS
from tests.servers.azurite import azurite_or_skip
from tests.servers.seaweed import weed_or_skip

pytestmark = [pytest.mark.server, pytest.mark.timeout(240)]


def restart_in_traffic(daemon: Daemon, how: signal.Signals, restarts: int) -> None:
    """Stop the server ``how`` in the middle of saves, so often, and look at what is there in between."""
    with daemon:
        traffic = Traffic(daemon.server)
        with traffic.flowing():
            for _ in range(restarts):
                traffic.wait_for(3)
                daemon.stop(how)
                traffic.check_silence()
                daemon.start()
                traffic.check_newest()
            traffic.wait_for(2)
        assert len(traffic.acknowledged) >= 3 * restarts + 2
        traffic.check_all()


@pytest.mark.slow
def test_saves_go_on_after_seaweedfs_was_killed(tmp_path: Path) -> None:
    restart_in_traffic(SeaweedFS(weed_or_skip(), tmp_path), signal.SIGKILL, 2)


@pytest.mark.heavy
def test_saves_go_on_however_often_seaweedfs_is_killed(tmp_path: Path) -> None:
    restart_in_traffic(SeaweedFS(weed_or_skip(), tmp_path), signal.SIGKILL, 12)


@pytest.mark.heavy
def test_saves_go_on_however_often_azurite_is_restarted(tmp_path: Path) -> None:
    restart_in_traffic(Azurite(azurite_or_skip(), tmp_path), signal.SIGTERM, 5)
