"""What lies below a place in a store, page by page: memory holds one page, however many objects there are.

names in the store's own order (by their UTF-8 bytes), which is the same at every listing.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from audiobatch.address import Address

    Call = Callable[[Callable[[], Any]], Any]

PAGE_OBJECTS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One object.

    Attributes:
        path: relative to the place that was listed.
        version: changes whenever the object does; see `version_of`.
    """

    path: str
    size_bytes: int
    version: int


def listed(filesystem: Any, place: Address, call: Call) -> Iterator[Entry]:
    """Every object below a place, not the place itself.

    Args:
        filesystem: of `filesystem_of`.
        place: a container or bucket, or a prefix in it.
        call: makes one request, again where it failed for a reason that passes.
    """
    prefix = place.path + "/"
    match place.protocol:
        case "az":
            pages = _azure_pages(filesystem, prefix, call)
        case "s3":
            pages = _s3_pages(filesystem, prefix, call)
        case _:
            found = call(lambda: filesystem.find(place.path, detail=True))
            pages = iter([[{**info, "name": str(name).lstrip("/")} for name, info in sorted(found.items())]])
    for page in pages:
        for info in page:
            path = info["name"].removeprefix(prefix)
            # Some programs write an empty object for a folder.
            if path and not path.endswith("/"):
                yield Entry(path=path, size_bytes=int(info["size"] or 0), version=version_of(info))


def version_of(info: Mapping[str, Any]) -> int:
    """A number that changes whenever the object does, made from its etag; from its time where it has none.

    A time alone would not do: stores give it in seconds, and an object can change twice within one.
    """
    tag = info.get("ETag") or info.get("etag")
    if not tag:
        made = info.get("created") or info.get("mtime") or 0
        tag = str(made.timestamp() if isinstance(made, datetime) else made)
    # 60 bits: it is kept where times in nanoseconds are.
    return int(hashlib.sha256(str(tag).strip('"').encode()).hexdigest()[:15], 16)


def _azure_pages(filesystem: Any, prefix: str, call: Call) -> Iterator[list[dict[str, Any]]]:
    from fsspec.asyn import sync

    container, _, start = prefix.partition("/")
    token: str | None = None

    async def page() -> tuple[list[dict[str, Any]], str | None]:
        async with filesystem.service_client.get_container_client(container) as client:
            pages = client.list_blobs(
                name_starts_with=start, include=["metadata"], results_per_page=PAGE_OBJECTS
            ).by_page(token)
            async for blobs in pages:
                found = [
                    {"name": f"{container}/{one.name}", "size": one.size, "etag": one.etag}
                    async for one in blobs
                    if not _is_folder_mark(one.metadata)
                ]
                return found, pages.continuation_token
        return [], None

    while True:
        infos, token = call(lambda: sync(filesystem.loop, page))
        yield infos
        if not token:
            return


def _is_folder_mark(metadata: Mapping[str, str] | None) -> bool:
    """A folder of an account with a hierarchical namespace, which is listed like a blob."""
    return any(
        name.lower() in {"hdi_isfolder", "is_directory"} and value == "true"
        for name, value in (metadata or {}).items()
    )


def _s3_pages(filesystem: Any, prefix: str, call: Call) -> Iterator[list[dict[str, Any]]]:
    bucket, _, start = prefix.partition("/")
    more: dict[str, str] = {}

    def page() -> Any:
        return filesystem.call_s3(
            "list_objects_v2", Bucket=bucket, Prefix=start, MaxKeys=PAGE_OBJECTS, **more
        )

    while True:
        answer = call(page)
        yield [
            {"name": f"{bucket}/{one['Key']}", "size": one["Size"], "ETag": one["ETag"]}
            for one in answer.get("Contents", ())
        ]
        if not answer.get("IsTruncated"):
            return
        more = {"ContinuationToken": answer["NextContinuationToken"]}
