"""Fuzzes dialects and token verification, one target after another, for FUZZ_SECONDS in total.

Seeds are the golden frames of tests/edge/dialects, and the corpus of earlier runs in build/fuzz. Exits with 1
if a target failed, and prints the command that reproduces it.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from google.protobuf import text_format
from request_corpus import BODIES, CONNECTS, EXCHANGE_BODIES
from targets import CODECS, EXCHANGES, REGISTRY, TARGETS
from token_corpus import verify_seeds
from trunkline.v1.frame_pb2 import ClientFrame, ServerFrame

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "edge" / "dialects"
BUILD = ROOT / "build" / "fuzz"
#: Time limit of one input.
SLOW_S = 5
MAX_BYTES = 8192


def golden() -> Iterator[tuple[str, str]]:
    """The first line and the rest of each block of the golden files."""
    for path in sorted(GOLDEN.glob("golden_*.txt")):
        for block in path.read_text("utf-8").strip().split("\n\n"):
            if not block.startswith("#"):
                first, _, rest = block.partition("\n")
                yield first, rest


def as_protobuf(text: str, frame: ClientFrame | ServerFrame) -> bytes:
    """A serialized frame from protobuf's text format; empty if the text is not one."""
    try:
        return text_format.Parse(text, frame).SerializeToString()
    except text_format.ParseError:
        return b""


def decode_seeds() -> Iterator[bytes]:
    """Messages of clients for each codec, as text and as binary messages."""
    for first, rest in golden():
        wire = first.partition(" ")[2].encode()
        for number in range(len(CODECS)):
            yield bytes((number << 1,)) + wire
            yield bytes((number << 1 | 1,)) + (as_protobuf(rest, ClientFrame()) or wire)


def encode_seeds() -> Iterator[bytes]:
    """Frames to clients for each codec."""
    for _, rest in golden():
        if frame := as_protobuf(rest, ServerFrame()):
            yield from (bytes((number,)) + frame for number in range(len(CODECS)))


def route_seeds() -> Iterator[bytes]:
    """A request with each body to each route."""
    for dialect in REGISTRY.dialects:
        for route in dialect.routes:
            path = route.path.text.replace("{session_type}", "person")
            path = re.sub(r"{\w+}", "demo", re.sub(r"{pipeline\w*}", "p1", path))
            for body in BODIES:
                yield f"{route.method} {path}?limit=2\nauthorization: Bearer x\n\n{body}".encode()


def exchange_seeds() -> Iterator[bytes]:
    """Each body to each exchange, with frames to clients."""
    frames = [frame for _, rest in golden() if (frame := as_protobuf(rest, ServerFrame()))]
    pieces = b"".join(_piece(frame) for frame in frames[:40])
    for number in range(len(EXCHANGES)):
        for body in EXCHANGE_BODIES:
            yield bytes((number,)) + _piece(body.encode()) + pieces
        yield from (
            bytes((number,)) + _piece(EXCHANGE_BODIES[0].encode()) + _piece(frame) for frame in frames
        )


def _piece(content: bytes) -> bytes:
    return len(content).to_bytes(2, "big") + content


SEEDS: dict[str, Callable[[], Iterator[bytes]]] = {
    "decode": decode_seeds,
    "encode": encode_seeds,
    "connect": lambda: (text.encode("latin-1") for text in CONNECTS),
    "route": route_seeds,
    "exchange": exchange_seeds,
    "verify": verify_seeds,
}


def fuzz(target: str, seconds: int) -> bool:
    """Run one target. Returns true if it found nothing."""
    corpus = BUILD / target
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in SEEDS[target]():
        (corpus / hashlib.blake2b(seed, digest_size=16).hexdigest()).write_bytes(seed)
    failed = BUILD / f"{target}-failed-"
    options = {
        "max_total_time": seconds,
        "timeout": SLOW_S,
        "max_len": MAX_BYTES,
        "artifact_prefix": failed,
        "print_final_stats": 1,
    }
    command = [sys.executable, "fuzz/targets.py", target, str(corpus)]
    command += [f"-{name}={value}" for name, value in options.items()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        print(done.stdout, done.stderr, sep="\n")
        print(f"{target} failed. Reproduce: {sys.executable} fuzz/targets.py {target} {failed}…")
        return False
    runs = re.search(r"number_of_executed_units:\s*(\d+)", done.stderr)
    print(f"{target}: nothing found in {int(runs[1]):,} runs" if runs else done.stderr, flush=True)
    return True


def main() -> None:
    """Run all targets, even if one fails."""
    seconds = int(os.environ.get("FUZZ_SECONDS", "60"))
    share = max(1, seconds // len(TARGETS))
    print(f"{len(CODECS)} codecs of {len(REGISTRY.dialects)} dialects, {share} s for each target", flush=True)
    results = [fuzz(target, share) for target in TARGETS]
    sys.exit(not all(results))


if __name__ == "__main__":
    main()
