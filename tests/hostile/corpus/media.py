"""S3: addresses of pictures, sounds and files, in every shape that has fooled a check. None is fetched."""

from __future__ import annotations

from typing import Any

from tests.hostile.case import CANARY, Case, chat, complete

__all__ = ["CASES"]

PORT = CANARY.partition(":")[2]

URLS = {
    "of loopback": f"http://{CANARY}/x.png",
    "of localhost": f"http://localhost:{PORT}/x.png",
    "with a backslash": f"http://example.com\\@{CANARY}/x.png",
    "with a user": f"http://example.com@{CANARY}/x.png",
    "with a fragment": f"http://{CANARY}#@example.com/",
    "of one number": f"http://2130706433:{PORT}/",
    "of octal numbers": f"http://0177.0.0.1:{PORT}/",
    "of a hexadecimal number": f"http://0x7f000001:{PORT}/",
    "of a short address": f"http://127.1:{PORT}/",
    "of IPv6": f"http://[::1]:{PORT}/",
    "of IPv4 in IPv6": f"http://[::ffff:127.0.0.1]:{PORT}/",
    "with a tab": f"ht\ttp://{CANARY}/",
    "with a line end": f"http://{CANARY}/\r\nx: y",
    "without scheme": f"//{CANARY}/x.png",
    "of the cloud's metadata": "http://169.254.169.254/latest/meta-data/",
    "of a file": "file:///etc/passwd",
    "of a file without slashes": "file:/etc/passwd",
    "of a path": "/etc/passwd",
    "of gopher": f"gopher://{CANARY}/_x",
    "of ftp": f"ftp://{CANARY}/",
    "of a jar": f"jar:http://{CANARY}!/",
    "of data": "data:image/png;base64," + "A" * 1000,
    "of data without end": "data:image/png;base64," + "A" * 1_000_000,
    "of data that are none": "data:,",
    "of nothing": "",
}


def part(kind: str, value: Any) -> bytes:
    """A chat whose message has one part of this kind."""
    return chat(messages=[{"role": "user", "content": [{"type": kind, kind: value}]}])


CASES = {
    **{f"a picture {name}": Case(400, part("image_url", {"url": url}), "messages") for name, url in URLS.items()},
    "a picture of a pixel": Case(400, part("image_url", {"url": "data:image/gif;base64,R0lGODlhAQABAAAAACw="})),
    "a picture that is text": Case(400, part("image_url", URLS["of loopback"])),
    "a picture that is a list": Case(400, part("image_url", [URLS["of loopback"]] * 1000)),
    "a picture without address": Case(400, part("image_url", {})),
    "a sound": Case(400, part("input_audio", {"data": "UklGRg==", "format": "wav"})),
    "a sound elsewhere": Case(400, part("input_audio", {"url": URLS["of loopback"]})),
    "a file by its id": Case(400, part("file", {"file_id": "../../etc/passwd"})),
    "a file with data": Case(400, part("file", {"file_data": "JVBERi0=", "filename": "/etc/passwd"})),
    "a film": Case(400, part("video_url", {"url": URLS["of loopback"]})),
    "a picture of another maker": Case(400, part("image", {"source": {"url": URLS["of loopback"]}})),
    "a picture in the system's message": Case(
        400,
        chat(messages=[{"role": "system", "content": [{"type": "image_url", "image_url": {"url": URLS["of IPv6"]}}]}]),
    ),
    "a picture in Markdown": Case(200, complete(prompt=f"![](http://{CANARY}/x.png)")),
    "a picture in HTML": Case(200, complete(prompt=f"<img src=http://{CANARY}/x.png>")),
    "a picture in a chat in Markdown": Case(
        200, chat(messages=[{"role": "user", "content": f"![x](http://{CANARY}/x.png)"}])
    ),
}
