"""Signed runs: `key=` signs every record; what is not signed with it, or is older than what was seen, is refused."""

from __future__ import annotations

import json
import pickle
import secrets
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support import noise

import limpet
from limpet import Checkpointer, CorruptError, FencedError, UntrustedError, UsageError
from limpet.format.layout import log_key
from limpet.format.record import decode_record, encode_record
from limpet.format.seal import SEAL_BYTES, Seal, is_sealed
from limpet.stores.head_memory import HeadMemory, Remembered

KEY = b"a key that nobody can guess, 32 b"
OTHER = b"another key of more than 16 bytes"
pytestmark = pytest.mark.filterwarnings("ignore:limpet took", "ignore:limpet left")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A memory of heads of this test's own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "limpet" / "heads"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def signed(place: Path) -> Path:
    """A signed run of three checkpoints."""
    write(place, range(3))
    return place


def write(place: Path, steps: range, key: bytes | None = KEY) -> None:
    with Checkpointer(place, key=key) as cp:
        for step in steps:
            cp.write({"step": step, "weights": noise(step, 20_000)}, step=step, durable=True)


def step_of(place: Path, key: bytes | None = KEY) -> Any:
    with limpet.open(place, key=key) as run:
        found = run.read()
        return None if found is None else found["step"]


def records(place: Path) -> list[Path]:
    return sorted(place.glob("log/*/*.json"))


class TestWithTheKey:
    def test_a_signed_run_is_written_resumed_and_read(self, signed: Path) -> None:
        with Checkpointer(signed, key=KEY) as cp:
            assert cp.resume().next_step == 3
            cp.write({"step": 3}, step=3)
        assert step_of(signed) == 3
        assert all(is_sealed(path.read_bytes()) for path in records(signed))

    def test_children_are_signed_too(self, place: Path) -> None:
        with Checkpointer(place, key=KEY) as cp, cp.child("shard") as child:
            child.write({"step": 7}, step=7)
        with limpet.open(place, key=KEY) as run:
            assert run.child("shard").read() == {"step": 7}
        with limpet.open(place) as run, pytest.raises(UntrustedError):
            run.child("shard").read()

    def test_a_run_starts_from_another_that_is_signed_with_the_same_key(self, signed: Path, tmp_path: Path) -> None:
        with Checkpointer(tmp_path / "next", key=KEY, start_from=signed) as cp:
            assert cp.read()["step"] == 2

    async def test_coroutines_sign_too(self, place: Path) -> None:
        async with Checkpointer(place, key=KEY) as cp:
            await cp.write_async({"step": 1}, step=1)
        assert step_of(place) == 1

    def test_bit_rot_of_the_newest_record_still_falls_back(self, signed: Path) -> None:
        with Checkpointer(signed, key=KEY) as cp:
            newest = cp.latest
        assert newest is not None
        flip(signed / log_key(newest.seq), 300)
        with pytest.warns(RuntimeWarning, match="damaged"):
            assert step_of(signed) == 1


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


class TestRefused:
    def test_no_key(self, signed: Path) -> None:
        with pytest.raises(UntrustedError, match="key=") as caught:
            step_of(signed, None)
        assert caught.value.kind == "key_needed"

    def test_a_writer_without_the_key_adds_nothing(self, signed: Path) -> None:
        before = records(signed)
        with pytest.raises(UntrustedError), Checkpointer(signed) as cp:
            cp.write({})
        assert records(signed) == before

    def test_another_key(self, signed: Path) -> None:
        with pytest.raises(UntrustedError, match=Seal(KEY).id) as caught:
            step_of(signed, OTHER)
        assert caught.value.kind == "forged"

    def test_a_run_that_was_begun_without_a_key(self, place: Path) -> None:
        write(place, range(1), key=None)
        with pytest.raises(UntrustedError, match="not signed") as caught:
            step_of(place)
        assert caught.value.kind == "unsigned"

    def test_a_newest_record_that_somebody_without_the_key_wrote(self, signed: Path) -> None:
        """Right digests and links do not help: whoever can write to the store could make those."""
        last = records(signed)[-1]
        seq = int(last.stem)
        plain = Seal(KEY).open(last.read_bytes(), "")
        _, digest = decode_record(plain, seq)
        changes = {"seq": seq + 1, "nonce": "0" * 32, "kind": "edit", "prev": {"seq": seq, "digest": digest}}
        forged = {**json.loads(plain)["record"], **changes}
        inner = json.dumps(forged, separators=(",", ":")).encode()
        import blake3

        data = b'{"digest":"%s","record":%s}' % (blake3.blake3(inner).hexdigest().encode(), inner)
        (signed / log_key(seq + 1)).write_bytes(data)
        with pytest.raises(UntrustedError, match="not signed"):
            step_of(signed)
        (signed / log_key(seq + 1)).write_bytes(Seal(OTHER).sign(data))
        with pytest.raises(UntrustedError, match="not signed with this key"):
            step_of(signed)

    def test_a_live_record_that_was_replaced(self, signed: Path) -> None:
        """Older checkpoints are trusted no more than the newest."""
        with limpet.open(signed, key=KEY) as run:
            first = run.checkpoints()[0]
        path = signed / log_key(first.seq)
        path.write_bytes(Seal(OTHER).sign(Seal(KEY).open(path.read_bytes(), "")))
        with limpet.open(signed, key=KEY) as run:
            with pytest.raises(UntrustedError):
                run.read(at=first)
            assert run.read()["step"] == 2  # the others are as good as before, and there is a way out:
        with pytest.warns(RuntimeWarning, match="drop_damaged"), Checkpointer(signed, key=KEY) as cp:
            assert cp.drop_damaged() == (first.seq,)

    def test_a_short_key_is_refused_and_not_shown(self, place: Path) -> None:
        for key in (b"short", "a text of more than 16 characters"):
            with pytest.raises(UsageError, match="key=") as caught:
                Checkpointer(place, key=key)  # type: ignore[arg-type]
            assert str(key) not in str(caught.value)
            with pytest.raises(UsageError, match="key="):
                limpet.open(place, key=key)  # type: ignore[arg-type]

    def test_a_source_that_is_not_signed(self, place: Path, tmp_path: Path) -> None:
        write(place, range(1), key=None)
        with Checkpointer(tmp_path / "next", key=KEY, start_from=place) as cp, pytest.raises(UntrustedError):
            cp.read()

    def test_a_writer_meets_the_record_of_somebody_without_the_key(self, place: Path) -> None:
        with pytest.raises(FencedError), Checkpointer(place, key=KEY) as cp:
            cp.write({"step": 1}, step=1, durable=True)
            plain = Seal(KEY).open(records(place)[-1].read_bytes(), "")
            seq = int(records(place)[-1].stem)
            foreign, _ = encode_record(decode_record(plain, seq)[0])
            (place / log_key(seq + 1)).write_bytes(foreign)
            cp.write({"step": 2}, step=2, durable=True)


class TestRolledBack:
    def test_an_older_copy_of_the_run_is_refused(self, signed: Path, tmp_path: Path) -> None:
        shutil.copytree(signed, tmp_path / "old")
        write(signed, range(3, 5))
        shutil.rmtree(signed)
        shutil.move(tmp_path / "old", signed)
        with pytest.raises(UntrustedError, match="rolled back") as caught:
            step_of(signed)
        assert caught.value.kind == "rolled_back"
        with pytest.raises(UntrustedError, match="rolled back"), Checkpointer(signed, key=KEY):
            pass

    def test_a_history_that_was_replaced_is_refused(
        self, signed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shutil.copytree(signed, tmp_path / "fork")
        write(signed, range(3, 5))
        with monkeypatch.context() as elsewhere:
            elsewhere.setenv("XDG_STATE_HOME", str(tmp_path / "another machine"))
            write(tmp_path / "fork", range(7, 9))
        shutil.rmtree(signed)
        shutil.move(tmp_path / "fork", signed)
        with pytest.raises(UntrustedError, match="is not the one"):
            step_of(signed)

    def test_newer_records_that_were_made_junk_are_a_rollback_too(self, signed: Path) -> None:
        """Else junk would do what an older copy must not: lead everybody back to an old state."""
        for path in records(signed)[-3:]:
            path.write_bytes(b"junk")
        with pytest.raises(UntrustedError, match="rolled back"):
            step_of(signed)
        with pytest.raises(UntrustedError, match="rolled back"), Checkpointer(signed, key=KEY):
            pass

    @pytest.mark.filterwarnings("ignore:limpet")
    def test_a_record_that_rots_after_others_were_built_on_it_is_none(
        self, signed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        newest = records(signed)[-1]
        with monkeypatch.context() as elsewhere:
            elsewhere.setenv("XDG_STATE_HOME", str(tmp_path / "another machine"))
            write(signed, range(3, 5))
        flip(newest, 300)
        assert step_of(signed) == 4

    def test_the_message_names_the_file_that_accepts_it(self, signed: Path, home: Path) -> None:
        for path in records(signed)[-2:]:
            path.unlink()
        with pytest.raises(UntrustedError) as caught:
            step_of(signed)
        [memory] = home.glob("*.json")
        assert str(memory) in str(caught.value)
        memory.unlink()
        assert step_of(signed) == 1

    def test_a_run_that_is_begun_anew_in_the_same_place_is_another_one(self, signed: Path) -> None:
        shutil.rmtree(signed)
        assert step_of(signed) is None
        write(signed, range(1))
        assert step_of(signed) == 0

    def test_what_was_seen_later_is_not_forgotten_for_what_was_seen_before(self) -> None:
        memory = HeadMemory("run", "seal", "url")
        memory.note(Remembered(9, "b"))
        memory.note(Remembered(3, "a"))
        assert memory.recall() == Remembered(9, "b")

    @pytest.mark.filterwarnings("error")
    def test_many_threads_note_and_recall_and_none_reads_half_of_it(self) -> None:
        memory = HeadMemory("run", "seal", "url")
        memory.note(Remembered(1, "x" * 64))
        read: list[Remembered | None] = []

        def note_and_recall(first: int) -> None:
            for seq in range(first, 200, 4):
                memory.note(Remembered(seq, f"{seq}" * 20))
                read.append(memory.recall())

        threads = [threading.Thread(target=note_and_recall, args=(first,)) for first in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert None not in read
        assert memory.recall() == Remembered(199, "199" * 20)

    def test_the_memory_is_of_this_user_alone_and_holds_no_key(self, signed: Path, home: Path) -> None:
        [memory] = home.glob("*.json")
        assert memory.stat().st_mode & 0o777 == 0o600
        assert home.stat().st_mode & 0o777 == 0o700
        assert KEY not in memory.read_bytes()

    @pytest.mark.parametrize("content", [b"", b"[1", b'{"seq": "x"}', b"\xff" * 99])
    def test_a_memory_that_cannot_be_read_is_none(self, signed: Path, home: Path, content: bytes) -> None:
        [memory] = home.glob("*.json")
        memory.write_bytes(content)
        assert step_of(signed) == 2

    def test_a_machine_without_a_home_says_so_and_goes_on(
        self, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").touch()
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
        with pytest.warns(RuntimeWarning, match="cannot remember"):
            write(place, range(1))

    def test_a_user_without_a_home_is_told_and_goes_on(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("XDG_STATE_HOME")
        monkeypatch.setattr("os.path.expanduser", lambda path: path)
        with pytest.warns(RuntimeWarning, match="no home folder"):
            write(place, range(1))
        assert not Path("~").exists()

    def test_runs_and_keys_are_not_mixed_up(self) -> None:
        paths = {HeadMemory(run, seal, "url").path for run in ("a", "b") for seal in ("1" * 16, "2" * 16)}
        assert len(paths) == 4


class TestTheSeal:
    def test_every_changed_byte_of_a_sealed_record_is_found(self, signed: Path) -> None:
        path = records(signed)[-1]
        seq, whole = int(path.stem), path.read_bytes()
        for at in range(len(whole)):
            changed = bytearray(whole)
            changed[at] ^= 1 << secrets.randbelow(8)
            with pytest.raises((UntrustedError, CorruptError)):
                decode_record(Seal(KEY).open(bytes(changed), ""), seq)

    def test_a_seal_takes_what_it_says(self, signed: Path) -> None:
        data = records(signed)[0].read_bytes()
        assert len(data) - len(Seal(KEY).open(data, "")) == SEAL_BYTES

    def test_a_record_of_full_size_can_be_sealed_and_read(self, place: Path) -> None:
        meta = {"text": "x" * 60_000}
        with Checkpointer(place, key=KEY) as cp:
            cp.write({}, meta=meta, durable=True)
        with limpet.open(place, key=KEY) as run:
            assert run.checkpoints()[-1].meta == meta


class TestTheKeyIsASecret:
    @pytest.fixture
    def things(self, signed: Path) -> Iterator[list[object]]:
        with Checkpointer(signed, key=KEY) as cp, limpet.open(signed, key=KEY) as run:
            yield [cp, run, Seal(KEY), cp._settings, cp._store, run._store]

    def test_nothing_shows_it(self, things: list[object]) -> None:
        shown = " ".join(repr(thing) + str(vars(thing) if hasattr(thing, "__dict__") else "") for thing in things[:3])
        assert "nobody can guess" not in shown
        assert all("nobody can guess" not in repr(thing) for thing in things)

    def test_it_is_not_pickled(self) -> None:
        with pytest.raises(UsageError, match="pickled"):
            pickle.dumps(Seal(KEY))

    def test_it_is_nowhere_in_the_run(self, signed: Path) -> None:
        assert not [path for path in signed.rglob("*") if path.is_file() and KEY in path.read_bytes()]


def test_the_command_line_takes_the_key_from_a_file(signed: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from limpet.cli.app import app

    (tmp_path / "key").write_bytes(KEY)
    for command in ("ls", "show", "verify"):
        told = CliRunner().invoke(app, [command, str(signed), "--key-file", str(tmp_path / "key")])
        assert told.exit_code == 0, told.output
    assert CliRunner().invoke(app, ["ls", str(signed), "--key-file", str(tmp_path / "none")]).exit_code == 2
