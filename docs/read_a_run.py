"""Read the newest state of a run from its folder, without limpet: docs/spec.md in one page.

    python docs/read_a_run.py runs/42

Needs blake3 and zstandard. Every digest is checked before the bytes behind it are used; what does not
match is an error. Arrays come out as ``(dtype, shape, bytes)``; what Python cannot hold without the writer's
classes comes out as plain containers of what it was made from. Nothing that is read is ever run.
"""

from __future__ import annotations

import base64
import json
import struct
import sys
from pathlib import Path
from typing import Any

from blake3 import blake3
from zstandard import ZstdDecompressor, frame_content_size


def check(holds: bool, what: str) -> None:
    """Stop at the first thing that is not as the format says."""
    if not holds:
        raise ValueError(f"damaged: {what}")


def read_record(root: Path, seq: int) -> dict[str, Any]:
    """One record of the log: its digest stands before it and covers the exact bytes of the inner object."""
    data = (root / f"log/{seq // 1000:013d}/{seq:016d}.json").read_bytes()
    check(data[:11] == b'{"digest":"' and data[75:86] == b'","record":' and data[-1:] == b"}", f"record {seq}")
    check(data[11:75] == blake3(data[86:-1]).hexdigest().encode(), f"record {seq}")
    record: dict[str, Any] = json.loads(data[86:-1])
    check(record["version"] == 1 and record["seq"] == seq, f"record {seq}, or it is of a newer format")
    return record


def inflate(frame: bytes, size: int) -> bytes:
    """One zstd frame, which must state the size that is expected before any memory is taken for it."""
    check(frame_content_size(frame) == size, "a frame's size")
    return ZstdDecompressor().decompress(frame, allow_extra_data=False)


def decode(codec: str, stored: bytes, size: int, base: bytes) -> bytes:
    """A chunk's raw bytes: as they are, one frame, or one plane after the other for each byte of a word.

    The words of a delta are its differences from those of its base, and 128 in each byte.
    """
    if codec in ("raw", "zstd"):
        return stored if codec == "raw" else inflate(stored, size)
    width = {"planes2": 2, "planes4": 4, "planes8": 8, "delta2": 2, "delta4": 4, "delta8": 8}[codec]
    words, position, raw = size // width, 4 * width, bytearray(size)
    for index, length in enumerate(struct.unpack_from(f"<{width}I", stored)):
        plane = stored[position : position + length]
        raw[index : words * width : width] = plane if length == words else inflate(plane, words)
        position += length
    for at in range(0, words * width if codec.startswith("delta") else 0, width):
        one, other = (int.from_bytes(each[at : at + width], "little") for each in (raw, base))
        word = (one + other - int.from_bytes(b"\x80" * width, "little")) % 256**width
        raw[at : at + width] = word.to_bytes(width, "little")
    raw[words * width :] = stored[position:]
    return bytes(raw)


def read_buffers(root: Path, commit: dict[str, Any]) -> tuple[Any, list[bytes]]:
    """The tree of a checkpoint and the bytes of its buffers."""

    def fetch(pack: str, offset: int, size: int) -> bytes:
        if not pack:
            return base64.b64decode(commit["body"])[offset : offset + size]
        with (root / pack).open("rb") as file:
            file.seek(offset)
            return file.read(size)

    at = commit["manifest"]
    stored = fetch(at["key"], at["offset"], at["size"])
    check(blake3(stored).hexdigest() == at["digest"] and 0 <= frame_content_size(stored) <= 64 << 20, "the manifest")
    manifest = json.loads(inflate(stored, frame_content_size(stored)))
    check(manifest["version"] in (1, 2), "the manifest, or it is of a newer format")
    chunks, base_of = manifest["chunks"] + manifest.get("bases", []), dict(manifest.get("deltas", []))

    def read_chunk(index: int, links: int = 0) -> bytes:
        name, size, codec, pack, offset, length, digest = chunks[index]
        check(links <= 8 and codec.startswith("delta") == (index in base_of), f"the chain of chunk {name}")
        base = read_chunk(base_of[index], links + 1) if index in base_of else b""
        stored = fetch(manifest["packs"][pack], offset, length)
        check(codec == "raw" or blake3(stored).hexdigest() == digest, f"stored bytes of chunk {name}")
        raw = decode(codec, stored, size, base)
        check(blake3(raw).hexdigest() == name, f"chunk {name}")
        return raw

    starts, content = [0], bytearray()
    for index in range(len(manifest["chunks"])):
        content += read_chunk(index)
        starts.append(len(content))
    spans = [(starts[chunk] + offset, size) for chunk, offset, size in manifest["buffers"]]
    return manifest["tree"], [bytes(content[start : start + size]) for start, size in spans]


def plain(node: Any, buffers: list[bytes]) -> Any:
    """A node of the tree as plain Python."""
    if not isinstance(node, list):
        return node
    tag, *rest = node
    match tag:
        case "dict" | "odict" | "ddict" | "counter":
            return dict(zip([plain(key, buffers) for key in rest[0]], plain(["list", rest[1]], buffers), strict=True))
        case "list" | "deque" | "set" | "frozenset":
            return [plain(child, buffers) for child in rest[0]]
        case "tuple":
            return tuple(plain(child, buffers) for child in rest[0])
        case "namedtuple" | "dataclass":  # module, name, fields, members
            return plain(["dict", *rest[2:]], buffers)
        case "stateful" | "custom" | "rng" | "jaxkey":  # what it is, what it was made from
            return plain(rest[1], buffers)
        case "int":
            return int(rest[0], 16)
        case "float":
            return struct.unpack(">d", bytes.fromhex(rest[0]))[0]
        case "complex":
            return complex(*struct.unpack(">dd", bytes.fromhex(rest[0])))
        case "utf8":
            return bytes.fromhex(rest[0]).decode("utf-8", "surrogatepass")
        case "hex" | "npbytes":
            return bytes.fromhex(rest[0])
        case "npstr":
            return plain(rest[0], buffers)
        case "str":
            return buffers[rest[0]].decode("utf-8", "surrogatepass")
        case "bytes" | "bytearray":
            return buffers[rest[0]]
        case "npscalar":  # dtype, bits
            return rest[0], (), bytes.fromhex(rest[1])
        case "nd" | "jax":  # dtype, shape, buffer, and "F" where the bytes are in Fortran order
            return rest[0], tuple(rest[1]), buffers[rest[2]], *rest[3:]
        case "torch":  # dtype, shape, strides, offset, buffer, flags
            return rest[0], tuple(rest[1]), rest[2], rest[3], buffers[rest[4]]
        case "pickle":  # class, buffer: shown, never loaded
            return rest[0], buffers[rest[1]]
        case "files":
            return read_files(rest[0], buffers)
    return node  # dates, decimals, paths and the like say what they are


def read_files(saved: dict[str, Any], buffers: list[bytes]) -> dict[str, bytes]:
    """The content of saved files by their paths below the directory; parents are listed first, the root is 0."""

    def path(parent: int, name: Any) -> str:
        text = name if isinstance(name, str) else base64.b64decode(name["b"]).decode("utf-8", "surrogateescape")
        return f"{folders[parent]}/{text}".lstrip("/")

    folders = [""]
    for parent, name, *_ in saved["dirs"]:
        folders.append(path(parent, name))
    return {path(file[0], file[1]): b"" if file[5] is None else buffers[file[5]] for file in saved["files"]}


def read(folder: str | Path) -> Any:
    """The newest state of the run in a folder; ``None`` if there is none."""
    root = Path(folder)
    head = max((int(path.stem) for path in root.glob("log/*/[0-9]*.json")), default=0)
    live = read_record(root, head).get("live") if head else None
    return plain(*read_buffers(root, read_record(root, live[-1][1])["commit"])) if live else None


if __name__ == "__main__":
    print(read(sys.argv[1]))
