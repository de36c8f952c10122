from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from tests.mutations.listed import MUTATIONS, Edit, Mutation
from tests.mutations.running import ROOT, Outdated, baseline, mutated, try_mutation

SOUND = Mutation(
    "nothing", (Edit("engine/budget.py", "def has_room", "def  has_room"),), ("tests/protocol/test_index.py",)
)


def test_each_mutation_has_a_name_of_its_own() -> None:
    assert [name for name, count in Counter(one.name for one in MUTATIONS).items() if count > 1] == []


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda one: one.name)
def test_each_mutation_still_applies_and_compiles(mutation: Mutation) -> None:
    for file, text in mutated(mutation).items():
        compile(text, file, "exec")
        assert text != (ROOT / "src" / "limpet" / file).read_text()
    for path in mutation.tests:
        assert "/" not in path or Path(ROOT, path.partition("::")[0]).exists()


@pytest.mark.parametrize("old", ["def no_such_function(", "self"])
def test_a_mutation_that_does_not_apply_exactly_once_is_an_error(old: str) -> None:
    with pytest.raises(Outdated, match="times"):
        mutated(Mutation("x", (Edit("engine/budget.py", old, ""),), ()))


@pytest.mark.heavy
def test_a_change_that_breaks_nothing_survives() -> None:
    """What the harness calls caught is not merely a run that fails for any reason."""
    assert try_mutation(SOUND).problem == "SURVIVED"


@pytest.mark.heavy
@pytest.mark.timeout(400)
def test_nothing_fails_without_a_mutation() -> None:
    assert baseline(MUTATIONS) == []


@pytest.mark.heavy
@pytest.mark.timeout(200)
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda one: one.name)
def test_each_mutation_is_caught(mutation: Mutation) -> None:
    outcome = try_mutation(mutation)
    print(outcome)
    assert outcome.good, outcome.problem
