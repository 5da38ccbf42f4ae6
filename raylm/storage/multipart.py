"""Writing one S3 object in several requests at a time; it is visible when the stream is closed, or not at all.

s3fs's own streams send one part after another, which leaves most of a network unused: a checkpoint has to be away
before a notice runs out.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

Call = Callable[..., Any]


class MultipartUpload(io.RawIOBase):
    """A stream into one object. `call` makes a request by its S3 name; (at_once + 1) * part_bytes is held in memory."""

    def __init__(self, call: Call, bucket: str, key: str, *, part_bytes: int, at_once: int = 4) -> None:
        self._call = call
        self._where = {"Bucket": bucket, "Key": key}
        self._part_bytes = part_bytes
        self._at_once = at_once
        self._buffer = bytearray()
        self._written = 0
        self._upload: str | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._parts: list[Future[dict[str, Any]]] = []

    def writable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """Bytes written so far."""
        return self._written

    def write(self, data: Any, /) -> int:
        """Take the next bytes, sending what fills a part; waits while at_once parts are on their way."""
        view = memoryview(data).cast("B")
        length = view.nbytes
        while view.nbytes:
            taken = view[: self._part_bytes - len(self._buffer)]
            self._buffer += taken
            view = view[taken.nbytes :]
            if len(self._buffer) == self._part_bytes:
                self._send()
        self._written += length
        return length

    def close(self) -> None:
        """Send the rest and make the object visible."""
        if self.closed:
            return
        if self._upload is None:
            self._call("put_object", Body=bytes(self._buffer), **self._where)
        else:
            if self._buffer:
                self._send()
            parts = [part.result() for part in self._parts]
            self._call(
                "complete_multipart_upload", UploadId=self._upload, MultipartUpload={"Parts": parts}, **self._where
            )
        self._end()

    def discard(self) -> None:
        """Give the upload up; nothing becomes visible, and what the server answers to that is raised."""
        if self.closed:
            return
        for part in self._parts:
            part.cancel()
        if self._pool is not None:
            self._pool.shutdown(wait=True)
        try:
            if self._upload is not None:
                self._call("abort_multipart_upload", UploadId=self._upload, **self._where)
        finally:
            self._end()

    def __del__(self) -> None:
        # io's own finaliser closes the stream, which would complete an upload that was dropped half way.
        pass

    def _send(self) -> None:
        if self._upload is None:
            self._upload = self._call("create_multipart_upload", **self._where)["UploadId"]
            self._pool = ThreadPoolExecutor(self._at_once)
        assert self._pool is not None
        if len(self._parts) >= self._at_once:
            self._parts[len(self._parts) - self._at_once].result()
        body, self._buffer = self._buffer, bytearray()
        self._parts.append(self._pool.submit(self._part, len(self._parts) + 1, body))

    def _part(self, number: int, body: bytearray) -> dict[str, Any]:
        answer = self._call("upload_part", UploadId=self._upload, PartNumber=number, Body=bytes(body), **self._where)
        return {"PartNumber": number, "ETag": answer["ETag"]}

    def _end(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True)
        self._buffer = bytearray()
        super().close()
