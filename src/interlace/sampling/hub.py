"""The hub's file system, one request a range.

`huggingface_hub.HfFileSystem` opens a file for each range: a listing, a look at its metadata, five
retries of its own with waits that ours would multiply. Here a range is a single attempt and
`RangeReader` decides what comes after it.
"""

import re
import time
from typing import Any

from huggingface_hub import HfFileSystem, constants, hf_hub_url
from huggingface_hub.utils import (
    build_hf_headers,
    get_session,
    hf_raise_for_status,
    http_stream_backoff,
    parse_hf_uri,
)

from interlace.sampling.ranges import OtherRange, range_ignored

SLOWEST = 25_000
"""Bytes a second; a request that comes slower, its time-out apart, is given up and tried again.
Eight workers at once get that from a link of 1.6 Mbit/s."""


class HubFiles(HfFileSystem):
    """`HfFileSystem` whose `cat_file` with bounds asks once, for these bytes.

    Token and endpoint are huggingface_hub's own (HF_TOKEN, HF_ENDPOINT). A redirect to another
    host goes without the token.
    """

    def find(self, path: str, *arguments: Any, **options: Any) -> Any:
        """List all files below `path`; a server that stalls is given up on, as for any range."""
        get_session().timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        return super().find(path, *arguments, **options)

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **options: Any
    ) -> bytes:
        """Return the bytes of `path` from `start` to `end` (exclusive) by one request.

        `options` are those of buffered files, which none is opened of. Raises `InputError` where
        the server sends more than these bytes, most of which are then left on the way, and `OSError`
        where it says that it sends others or is slower than `SLOWEST`.
        """
        if start is None or end is None or start < 0 or end < 0:
            return super().cat_file(path, start=start, end=end, **options)
        parsed = parse_hf_uri(f"{constants.HF_PROTOCOL}{self._strip_protocol(path)}")
        url = hf_hub_url(
            parsed.id,
            parsed.path_in_repo,
            repo_type=parsed.type,
            revision=parsed.revision,
            endpoint=self.endpoint,
        )
        headers = {
            **build_hf_headers(token=self.token),
            "range": f"bytes={start}-{end - 1}",
            "accept-encoding": "identity",  # so that Content-Length is of these bytes
        }
        patience_s = constants.HF_HUB_DOWNLOAD_TIMEOUT + (end - start) / SLOWEST
        deadline = time.monotonic() + patience_s
        with http_stream_backoff(
            "GET",
            url,
            headers=headers,
            timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
            max_retries=0,
        ) as response:
            if response.status_code >= 400:
                response.read()  # the error quotes it
            hf_raise_for_status(response)
            announced = int(response.headers.get("content-length", end - start))
            is_whole = response.status_code == 200 and (start > 0 or announced != end - start)
            if is_whole or announced > end - start:
                answer = f"HTTP {response.status_code}, {announced} bytes announced"
                raise range_ignored(path, start, end, answer)
            _check_range(response.headers.get("content-range"), path, start, end)
            body = bytearray()
            for part in response.iter_bytes():
                body += part
                if len(body) > end - start:
                    raise range_ignored(path, start, end, "more came")
                # The time-out is for each piece, which a server that trickles never exceeds.
                if time.monotonic() > deadline and len(body) < end - start:
                    raise TimeoutError(f"{len(body)} bytes in {patience_s:.0f} s")
            return bytes(body)


def _check_range(said: str | None, path: str, start: int, end: int) -> None:
    """Raise `OtherRange` where a Content-Range is not of bytes from `start` on, before `end`."""
    span = re.fullmatch(r"bytes (\d+)-(\d+)/(?:\d+|\*)", said.strip()) if said else None
    if said and (span is None or int(span[1]) != start or int(span[2]) >= end):
        raise OtherRange(f"Content-Range {said[:80]!r} for bytes {start} to {end}")
