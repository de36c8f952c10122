"""The mutations that the fault page asks for."""

from __future__ import annotations

from tests.mutations.shape import (
    FOLDERS,
    JANITOR,
    LOCAL,
    LOG,
    ON_ANSWERS,
    ON_COMMITS,
    ON_DELETING,
    ON_GAPS,
    ON_INDEX,
    ON_LOCAL,
    ON_LOG,
    ON_OBJECTS,
    PIECES,
    WRITER,
    one,
)

_TAKEN = """            except StoreError as error:
                last_error = error
"""


FAULT_PAGE = (
    one("no-fsync-of-files", LOCAL, "            self._files.fsync(fd)", "            pass", ON_LOCAL, "durable"),
    one(
        "no-fsync-of-folders",
        LOCAL,
        "            sync_folder(self._files, target_fd)",
        "            pass",
        ON_LOCAL,
        "durable",
    ),
    one(
        "no-fsync-of-a-record's-folder",
        LOCAL,
        "            sync_folder(self._files, fd)",
        "            pass",
        ON_LOCAL,
        "durable or unknown",
    ),
    one("no-fsync-of-new-folders", FOLDERS, "        sync_folder(self.files, parent)", "", ON_LOCAL, "durable"),
    one(
        "rename-for-link",
        LOCAL,
        "self._files.link(self._temporary_name, self._name, **place)",
        "self._files.rename(self._temporary_name, self._name, **place)",
        ON_LOCAL,
        "racing or record_is_durable",
    ),
    one(
        "acknowledge-before-the-record",
        WRITER,
        "            self._sent.add(number)\n",
        "            self._sent.add(number)\n            save.resolve(uploaded.receipt(save, self.log.head.seq + 1))\n",
        ON_COMMITS,
        "unknown_commit or nothing_before",
    ),
    one(
        "no-nonce",
        LOG,
        "if found.nonce == record.nonce:",
        "if found.epoch == self.epoch:",
        ON_LOG,
        "adopted or share or second_process",
    ),
    one(
        "exists-is-success",
        LOG,
        _TAKEN,
        _TAKEN + "                if isinstance(error, KeyExistsError):\n                    return True\n",
        ON_LOG,
        "conflict or fences or adopted",
    ),
    one(
        "exists-is-conflict",
        LOG,
        _TAKEN,
        _TAKEN + "                if isinstance(error, KeyExistsError):\n"
        '                    raise self.fence("taken") from error\n',
        ON_LOG,
        "repeated_our_create or conflict",
    ),
    one(
        "share-what-exists",
        "engine/index.py",
        "self._by_seq = {seq: known for seq, known in self._by_seq.items() if seq in live}",
        "pass",
        ON_INDEX,
        "left_the_live_set",
    ),
    one(
        "reuse-names",
        "engine/upload.py",
        "PackName(self.resources.epoch, self.number, secrets.token_hex(4), 0, part)",
        'PackName(self.resources.epoch, self.number, "0" * 8, 0, part)',
        ON_COMMITS,
        "fresh_name",
    ),
    one(
        "retire-outside-the-log",
        WRITER,
        "        record = await self._append(make)\n        self._bases.add(",
        "        coming = msgspec.structs.replace(\n"
        '            self.log.head, seq=self.log.head.seq + 1, kind="commit", commit=commit\n'
        "        )\n"
        "        kept = retention.decide(self.policy, [*self.live.infos(), info_of(coming)]).keep\n"
        "        self.janitor.retire(self.live.apply(msgspec.structs.replace(coming, live=to_ranges(kept))))\n"
        "        record = await self._append(make)\n        self._bases.add(",
        ON_GAPS,
        "never_landed",
    ),
    one(
        "no-open-record",
        LOG,
        "                if await log._create(record, data, deadline):",
        "                if record is not None:",
        ON_LOG,
        "epoch or takeover",
    ),
    one(
        "sweep-without-the-base",
        JANITOR,
        "self.unsettled[number] = self.live.packs()",
        "self.unsettled[number] = set()",
        ON_DELETING,
        "in_flight or unknown",
    ),
    one(
        "fall-back-on-503",
        "finding.py",
        "                state = yield from self._load(checkpoint, wanted)\n            except CorruptError as error:\n",
        "                state = yield from self._load(checkpoint, wanted)\n"
        "            except (CorruptError, StoreError) as error:\n",
        ON_ANSWERS,
        "older_checkpoint",
    ),
    one(
        "reuse-a-borrowed-buffer",
        "engine/slots.py",
        "lent = lent or self._is_borrowed()",
        "lent = False",
        "tests/test_decisions.py",
        "slot or memory or buffer or lease or borrow",
    ),
    one(
        "decompress-a-chunk-before-its-digest",
        PIECES,
        "if not checked and blake3.blake3(stored).hexdigest() != _stored_digest(chunk):",
        "if not checked and not _stored_digest(chunk):",
        ON_GAPS,
        "never_decoded",
    ),
    one(
        "decompress-a-manifest-before-its-digest",
        "format/manifest.py",
        "if blake3.blake3(stored).hexdigest() != digest:",
        "if not digest:",
        ON_GAPS,
        "never_decoded",
    ),
    one(
        "max-output-size-only",
        "format/frames.py",
        "if exactly is not None and size != exactly:",
        "if exactly is None and not size:",
        "tests/format/test_codec.py",
        "bad_frame or another_size or gigabytes",
    ),
    one(
        "a-frame-states-any-size",
        "format/frames.py",
        "if not 0 < size <= most:",
        "if not 0 < size:",
        "tests/reads/test_hostile.py",
        "bomb or more_than",
    ),
    one(
        "ignore-a-short-answer",
        "stores/objects.py",
        "            if len(found) == size:",
        "            if len(found) >= 0:",
        ON_OBJECTS,
        "short",
    ),
    one(
        "ignore-a-short-read",
        LOCAL,
        "        if count == 0:\n            raise _short(segments, offset + len(target), offset + done)",
        "        if count == 0:\n            return",
        "tests/stores/test_contract.py",
        ON_LOCAL,
        "short or range or ends or read_into",
    ),
    one(
        "newest-by-step",
        "finding.py",
        "            return view.checkpoints\n",
        "            return sorted(view.checkpoints, key=lambda one: -(one.info.step or 0))\n",
        ON_COMMITS,
        "newest_commit_wins",
    ),
    one(
        "delete-on-unknown",
        JANITOR,
        "        if unknown:\n",
        "        if not base and unknown:\n",
        ON_DELETING,
        "unknown",
    ),
    one(
        "sync-again-after-a-failed-fsync",
        LOCAL,
        "            self._files.fsync(fd)",
        "            try:\n                self._files.fsync(fd)\n            except OSError:\n"
        "                self._files.fsync(fd)",
        ON_LOCAL,
        "never_synced_again",
    ),
)
