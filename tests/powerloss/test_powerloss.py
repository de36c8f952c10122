"""Loss of power at every moment of a run's life: nothing that was acknowledged is lost, nothing torn is ever visible.

The local store's calls are recorded; from every prefix the states are built that a disk may be in
afterwards (``disk.py``), and a real recovery goes on from each (``recovery.py``).
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.powerloss.cases import Seen, cases, first_violation, judge, sharpest
from tests.powerloss.journal import Op, call_sites
from tests.powerloss.lives import CHILD, RUN, Story, main_life, next_life, place_of
from tests.powerloss.recovery import _records

from limpet.format import chunks, layout
from limpet.stores import local_objects

SITES = call_sites()
PARTS = 12
CASES_PER_KILL = 16


@pytest.fixture(scope="module")
def base() -> Iterator[Path]:
    """A folder in memory, where there is one: thousands of small trees come and go."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module", autouse=True)
def _small_numbers() -> Iterator[None]:
    """Folders of four records, so that a short log has several; chunks that a small state shares with the next; some
    packs that go past the page cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "_RECORDS_PER_FOLDER", 4)
        patch.setattr(chunks, "SHARED_BYTES", 4096)
        patch.setattr(local_objects, "DIRECT_FROM_BYTES", 4096)
        yield


@pytest.fixture(scope="module")
def life(base: Path, _small_numbers: None) -> Story:
    """One recorded life, which many deaths are taken from."""
    folder = base / "life"
    folder.mkdir()
    return main_life(folder)


@pytest.fixture
def killed(base: Path, life: Story) -> Iterator[Callable[..., Story]]:
    """Kills the life after so many ops, and lets an heir go on: power goes during the heir's time."""
    folder = base / "heir"

    def kill(count: int, story: Story = life) -> Story:
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir()
        before, disk = story.until(count)
        return next_life(before, disk, folder, story.start)

    yield kill
    shutil.rmtree(folder, ignore_errors=True)


def after(life: Story, match: Callable[[Op], bool]) -> int:
    """The number of ops up to and with the first that matches."""
    return next(number for number, op in enumerate(life.ops, 1) if match(op))


def links_the_last_record_of_a_folder(op: Op) -> bool:
    return op.kind == "link" and op.target == f"{RUN}/{layout.log_key(3)}"


def test_the_life_has_all_that_can_be_lost(life: Story) -> None:
    """Else the images below would prove less than they say."""
    records = _records(life.until(len(life.ops))[1].view(), RUN)
    commits = [record.commit for record in records.values() if record.commit is not None]
    assert {record.kind for record in records.values()} == {"open", "commit", "edit", "close"}
    assert any(commit.body and not commit.packs for commit in commits)
    assert any(commit.body and commit.packs for commit in commits)
    assert any(len(commit.packs) == 2 for commit in commits)
    assert sum(record.kind == "open" for record in records.values()) == 3
    assert any(record.pinned for record in records.values())
    assert life.acked().keys() == {RUN, place_of(CHILD)}
    assert any(op.kind == "unlink" and op.path.endswith(".pack") for op in life.ops)


def test_what_was_acknowledged_survives_a_loss_of_power_at_any_moment(life: Story, base: Path) -> None:
    for case in sharpest(life, 25):
        judge(case, life, base)


def test_an_heir_builds_only_on_what_is_durable(life: Story, base: Path, killed: Callable[..., Story]) -> None:
    """The process dies first, the power goes later: what a dead writer left visible may not be durable yet."""
    seen = Seen()
    for kill in (*range(1, 5), *range(15, len(life.ops), 90)):
        story = killed(kill)
        for case in sharpest(story, 4, kill, seen):
            judge(case, story, base)


@pytest.mark.heavy
@pytest.mark.timeout(900)
@pytest.mark.parametrize("part", range(PARTS))
def test_at_every_moment_of_a_life_and_of_its_heirs(
    part: int, life: Story, base: Path, killed: Callable[..., Story], record_property: Callable[[str, object], None]
) -> None:
    seen = Seen()
    own = list(cases(life, seen=seen))[part::PARTS]
    for case in own:
        judge(case, life, base)
    count = len(own)
    for kill in range(part + 1, len(life.ops), PARTS):
        story = killed(kill)
        for case in sharpest(story, CASES_PER_KILL, kill, seen):
            judge(case, story, base)
            count += 1
    record_property("images", count)


@pytest.mark.heavy
@pytest.mark.timeout(900)
def test_power_that_goes_again_during_recovery(life: Story, base: Path, killed: Callable[..., Story]) -> None:
    seen = Seen()
    for case in sharpest(life, 40, seed=7):
        told = [Op("acked", run, seq=seq) for run, seq in case.acked.items()]
        again = killed(len(told), Story(told, case.image))
        for crash in sharpest(again, 8, case.at, seen):
            judge(crash, again, base)


@pytest.mark.parametrize("name", sorted(SITES))
def test_a_store_that_leaves_out_this_fsync_is_caught(
    name: str, life: Story, base: Path, killed: Callable[..., Story]
) -> None:
    """Each of them is needed, and the images are harsh enough to show it."""
    story = life
    if name in AFTER_A_KILL:
        story = AFTER_A_KILL[name](life, killed)
        assert first_violation(story, base, 8) is None
    assert any(op.site == SITES[name] for op in story.ops)
    assert first_violation(story.without(SITES[name]), base) is not None, f"nothing is lost without {SITES[name]}"


def killed_after_the_first_folder(life: Story, killed: Callable[..., Story]) -> Story:
    return killed(1)


def killed_after_a_link(life: Story, killed: Callable[..., Story]) -> Story:
    return killed(after(life, links_the_last_record_of_a_folder))


def killed_after_a_hasty_link(life: Story, killed: Callable[..., Story]) -> Story:
    """Another writer of format 1, or a copy of the run: it linked before its fsync, and died between the two."""
    count = after(life, links_the_last_record_of_a_folder)
    linked = life.ops[count - 1]
    ops = [op for op in life.ops[:count] if not (op.kind == "fsync" and op.path == linked.path)]
    story = killed(len(ops), Story(ops))
    heard = next(number for number, op in enumerate(story.ops) if op.kind == "acked" and number >= len(ops))
    return replace(story, begin=heard + 1)  # until the heir has acknowledged something, it has promised nothing


AFTER_A_KILL = {
    "make_root-sync_parent-2": killed_after_the_first_folder,
    "settle_file-sync_folder-1": killed_after_a_link,
    "settle_file-fsync-1": killed_after_a_hasty_link,
}
"""What is there to be made durable by an heir shows only if there is one."""
