"""What a server meant to send: the body of an HTTP message, unpacked where it is packed as its head says.

Crawlers keep heads as they came beside bodies that they have unpacked, and servers name codings that are none; so a
body that is not packed as its head says is taken as it is.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Callable, Mapping

MAX_BYTES = 256 << 20  # of an unpacked body
_CHUNK = re.compile(rb"\s*([0-9A-Fa-f]{1,8})(?:;[^\r\n]*)?\r?\n")
_CHARSET = re.compile(r"charset\s*=\s*[\"']?\s*([\w.:-]+)", re.I)
_KIND = re.compile(r"[^\s;,:\"']+")
_NO_KIND = ("html", "text", "*/*", "unknown", "unknown/unknown", "application/unknown", "application/x-unknown")
_PAGE_BEGINS = re.compile(rb"\s*(?:<!--.{0,2000}?-->\s*)*<(?:!doctype\s+html|html|head|body)[\s>]", re.I | re.S)


def body_of(data: bytes, headers: Mapping[str, str]) -> bytes:
    """The unpacked body. headers: by name in small letters. OSError where a packed body is cut off or too large."""
    if "chunked" in headers.get("transfer-encoding", "").lower():
        data = _joined(data)
    for coding in reversed(headers.get("content-encoding", "").lower().split(",")):
        if (unpack := _CODINGS.get(coding.strip())) is not None:
            data = unpack(data)
    return data


def media_type(named: str | None, body: bytes) -> tuple[str, str | None]:
    """The kind of a body in small letters, and its charset; of a head that came twice, the first.

    Where nobody names a kind, or one that is none, the first tag tells a page.
    """
    named = named or ""
    kind = next(iter(_KIND.findall(named.lower().removeprefix("content-type:"))), "")
    charset = _CHARSET.search(named)
    if (not kind or kind in _NO_KIND) and _PAGE_BEGINS.match(body):
        kind = "text/html"
    return kind, charset[1] if charset else None


def _joined(data: bytes) -> bytes:
    """Chunks put together; a body that is in no chunks any more as it is."""
    parts, at = list[bytes](), 0
    while (head := _CHUNK.match(data, at)) is not None:
        length = int(head[1], 16)
        if not length:
            return b"".join(parts)
        part = data[head.end() : head.end() + length]
        if len(part) < length and parts:
            raise OSError(f"its last chunk is {len(part)} bytes in place of {length}")
        if len(part) < length:
            return data
        parts.append(part)
        at = head.end() + length
    return b"".join(parts) if parts and not data[at:].strip() else data


def _gunzip(data: bytes) -> bytes:
    return _inflated(data, 31) if data[:2] == b"\x1f\x8b" else data


def _deflate(data: bytes) -> bytes:
    """zlib's format, or the bare one that some servers send."""
    for window in (15, -15):
        try:
            return _inflated(data, window)
        except OSError as error:
            if not isinstance(error.__cause__, zlib.error):
                raise
    return data


def _inflated(data: bytes, window: int) -> bytes:
    unpacker = zlib.decompressobj(window)
    try:
        found = unpacker.decompress(data, MAX_BYTES)
    except zlib.error as error:
        raise OSError(f"its packed body is damaged: {error}") from error
    if unpacker.unconsumed_tail:
        raise OSError(f"its body unpacks to more than {MAX_BYTES} bytes")
    if not unpacker.eof:
        raise OSError("its packed body is cut off")
    return found


def _streamed(codec: str) -> Callable[[bytes], bytes]:
    def unpack(data: bytes) -> bytes:
        import pyarrow as pa

        try:
            with pa.CompressedInputStream(io.BytesIO(data), codec) as stream:
                found = bytes(stream.read(MAX_BYTES + 1))
        except OSError:
            return data
        if len(found) > MAX_BYTES:
            raise OSError(f"its body unpacks to more than {MAX_BYTES} bytes")
        return found

    return unpack


_CODINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": _gunzip,
    "x-gzip": _gunzip,
    "deflate": _deflate,
    "br": _streamed("brotli"),
    "zstd": _streamed("zstd"),
}
