"""Every mutation."""

from __future__ import annotations

from tests.mutations.fault_page import FAULT_PAGE
from tests.mutations.more import MORE
from tests.mutations.shape import Edit, Mutation

__all__ = ["MUTATIONS", "Edit", "Mutation"]

MUTATIONS: tuple[Mutation, ...] = (*FAULT_PAGE, *MORE)
