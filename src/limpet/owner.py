"""Who we are, for people: the platform's name for this attempt, or user, host and process."""

from __future__ import annotations

import getpass
import os
import platform
from collections.abc import Mapping

from limpet.errors import UsageError

__all__ = ["check_rank", "default_owner"]

_BYTES_MAX = 1024
_PLATFORMS = (
    ("flyte", ("FLYTE_INTERNAL_EXECUTION_ID", "FLYTE_INTERNAL_TASK_NAME")),
    ("slurm", ("SLURM_JOB_ID", "SLURM_STEP_ID")),
    ("torchrun", ("TORCHELASTIC_RUN_ID",)),
)


def default_owner(environ: Mapping[str, str] = os.environ) -> str:
    """A name for this process that a person can find again, in at most 1 KiB of UTF-8."""
    encoded = _find_owner(environ).encode("utf-8", "replace")  # the environment may hold any bytes
    return encoded[:_BYTES_MAX].decode("utf-8", "ignore")


def _find_owner(environ: Mapping[str, str]) -> str:
    for name, variables in _PLATFORMS:
        if environ.get(variables[0]):
            return ":".join([name, *(environ[variable] for variable in variables if environ.get(variable))])
    if environ.get("KUBERNETES_SERVICE_HOST"):
        return f"kubernetes:{environ.get('JOB_NAME') or environ.get('HOSTNAME') or platform.node()}"
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container without an entry for its user
        user = str(os.getuid())
    return f"{user}@{platform.node()}:{os.getpid()}"


def check_rank(environ: Mapping[str, str] = os.environ) -> None:
    """Refuse to write from any but the first process of a distributed job.

    Raises:
        UsageError: ``RANK`` is above 0.
    """
    rank = environ.get("RANK", "")
    if rank.isdigit() and int(rank) > 0:
        raise UsageError(
            f"RANK is {rank}: only rank 0 may write a run; every other rank would take it over from the one before.",
            hint="Write from rank 0; limpet.open() reads on every rank. Sharded writing is to come.",
            kind="rank",
        )
