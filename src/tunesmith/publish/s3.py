"""Publish to an S3-compatible store: `s3://bucket/prefix/NAME/`, the manifest last.

A reader who finds `manifest.json` finds every file that it names: an earlier manifest is removed before any of its
files is replaced, and the new one is written when all others are there. A push that broke off goes on when repeated:
files that are there with the same content are left alone, and of a large file only missing parts are sent.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import EnvironmentProblem, PublishError, missing_extra
from tunesmith.publish.package import MANIFEST, Package, manifest_bytes
from tunesmith.recipe.environment import redact
from tunesmith.store import files

# S3 allows parts of 5 MiB to 5 GiB and 10,000 of them:
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
_PART_BYTES = 16 << 20
_MAX_PARTS = 9_000
_NUM_PARTS_AT_ONCE = 4
_SHA256 = "sha256"  # key of the metadata that says what an object holds
_CAUSES = {
    "InvalidAccessKeyId": ("the access key is not known there", "check AWS_ACCESS_KEY_ID or the profile"),
    "SignatureDoesNotMatch": ("the secret key does not fit the access key", "check AWS_SECRET_ACCESS_KEY"),
    "AccessDenied": ("the credentials may not do this", "grant s3:PutObject, GetObject, DeleteObject and ListBucket"),
    "403": ("the credentials may not do this", "check the credentials and the bucket's policy"),
    "NoSuchBucket": ("there is no such bucket", "create it, or correct `publish.s3`"),
    "404": ("there is no such bucket", "create it, or correct `publish.s3`"),
}


@dataclass(frozen=True)
class Place:
    """Where a package goes. `uploads` remembers unfinished multipart uploads between commands."""

    client: Any
    bucket: str
    prefix: str  # ends with a slash
    uploads: Path

    def key(self, name: str) -> str:
        return f"{self.prefix}{name}"

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}/{self.prefix.rstrip('/')}"


def require_client() -> None:
    """Raise when boto3 is not installed.

    Raises:
        EnvironmentProblem: it is not.
    """
    try:
        import boto3  # noqa: F401
    except ImportError:
        raise missing_extra("boto3", "s3", needed_for="`publish.s3`") from None


def deliver(package: Package, url: str, *, endpoint_url: str | None, uploads: Path) -> dict[str, Any]:
    """Bring the store to hold exactly this package below `url/NAME/`. Files that were not published from here stay.

    Raises:
        PublishError: the store refused, or cannot be reached; the same call goes on.
        EnvironmentProblem: boto3 or the credentials are missing.
    """
    require_client()
    place = _place(package, url, endpoint_url, uploads)
    with _refusals_told(place, endpoint_url):
        earlier = _manifest(place)
        names = [name for name in package.files if name != MANIFEST]
        if earlier != package.manifest:
            place.client.delete_object(Bucket=place.bucket, Key=place.key(MANIFEST))
        sent = [name for name in names if _put(place, name, package.files[name], package.manifest["files"][name])]
        for name in sorted(set((earlier or {}).get("files", {})) - set(package.files)):
            place.client.delete_object(Bucket=place.bucket, Key=place.key(name))
        if sent or earlier != package.manifest:
            _put_whole(place, MANIFEST, manifest_bytes(package.manifest), package.manifest_sha256)
    return {
        "target": "s3",
        "location": place.url,
        "num_files": len(package.files),
        "num_bytes": package.num_bytes,
        "num_bytes_sent": sum(package.manifest["files"][name]["bytes"] for name in sent),
        "unchanged": not sent and earlier == package.manifest,
    }


def _place(package: Package, url: str, endpoint_url: str | None, uploads: Path) -> Place:
    import boto3
    from botocore.config import Config

    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    # Checksums of boto3's newer default kind are refused by older servers; Content-MD5, sent below, is not.
    config = Config(
        retries={"mode": "standard", "max_attempts": 5},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": "path"} if endpoint_url else None,
    )
    client = boto3.session.Session().client("s3", endpoint_url=endpoint_url, config=config)
    below = "/".join(part for part in (prefix.strip("/"), package.name) if part)
    return Place(client, bucket, f"{below}/", uploads)


def _manifest(place: Place) -> dict[str, Any] | None:
    """Return the manifest that is there, or None.

    Raises:
        PublishError: something else has its name.
    """
    from botocore.exceptions import ClientError

    try:
        content = place.client.get_object(Bucket=place.bucket, Key=place.key(MANIFEST))["Body"].read()
    except ClientError as error:
        if _code(error) in ("NoSuchKey", "404"):
            return None
        raise
    with contextlib.suppress(ValueError):
        document = json.loads(content)
        if isinstance(document, dict) and isinstance(document.get("files"), dict):
            return document
    do = "move it away, or change `publish.s3` or `name`"
    raise PublishError("something else is there, with a manifest.json that is not ours", where=place.url, do=do)


def _put(place: Place, name: str, path: Path, facts: dict[str, Any]) -> bool:
    """Send one file unless its content is there; return whether anything was sent."""
    if _is_there(place, name, facts):
        return False
    if facts["bytes"] <= _PART_BYTES:
        _put_whole(place, name, path.read_bytes(), facts["sha256"])
    else:
        _put_in_parts(place, name, path, facts)
    if not _is_there(place, name, facts):
        do = "run the same command again"
        raise PublishError(f"{name} was sent, and the store does not have it", where=place.url, do=do)
    return True


def _is_there(place: Place, name: str, facts: dict[str, Any]) -> bool:
    from botocore.exceptions import ClientError

    try:
        head = place.client.head_object(Bucket=place.bucket, Key=place.key(name))
    except ClientError as error:
        if _code(error) in ("404", "NoSuchKey", "NotFound"):
            return False
        raise
    metadata = {key.lower(): value for key, value in head.get("Metadata", {}).items()}
    return bool(head["ContentLength"] == facts["bytes"] and metadata.get(_SHA256) == facts["sha256"])


def _put_whole(place: Place, name: str, content: bytes, sha256: str) -> None:
    place.client.put_object(
        Bucket=place.bucket,
        Key=place.key(name),
        Body=content,
        ContentMD5=_md5(content),
        Metadata={_SHA256: sha256},
    )


def _put_in_parts(place: Place, name: str, path: Path, facts: dict[str, Any]) -> None:
    """Send a large file in parts, going on with an upload of the same content that an earlier command left."""
    size = int(facts["bytes"])
    part_bytes = max(_PART_BYTES, -(-size // _MAX_PARTS))
    ranges = [(n + 1, start, min(part_bytes, size - start)) for n, start in enumerate(range(0, size, part_bytes))]
    upload, there = _upload(place, name, facts["sha256"])

    def send(part: tuple[int, int, int]) -> dict[str, Any]:
        number, start, length = part
        with path.open("rb") as file:
            file.seek(start)
            content = file.read(length)
        digest = hashlib.md5(content, usedforsecurity=False)
        if there.get(number) == digest.hexdigest():
            return {"PartNumber": number, "ETag": f'"{there[number]}"'}
        answer = place.client.upload_part(
            Bucket=place.bucket,
            Key=place.key(name),
            UploadId=upload,
            PartNumber=number,
            Body=content,
            ContentMD5=base64.b64encode(digest.digest()).decode(),
        )
        return {"PartNumber": number, "ETag": answer["ETag"]}

    with ThreadPoolExecutor(_NUM_PARTS_AT_ONCE) as pool:
        parts = list(pool.map(send, ranges))
    place.client.complete_multipart_upload(
        Bucket=place.bucket, Key=place.key(name), UploadId=upload, MultipartUpload={"Parts": parts}
    )
    _remember(place, name, None)


def _upload(place: Place, name: str, sha256: str) -> tuple[str, dict[int, str]]:
    """Return the id of a multipart upload and the parts it has: number -> MD5 (the ETag of an unencrypted part)."""
    from botocore.exceptions import ClientError

    known = _remembered(place).get(_slot(place, name), {})
    if known.get("sha256") == sha256:
        with contextlib.suppress(ClientError):  # expired, aborted or completed: begin again
            there: dict[int, str] = {}
            pages = place.client.get_paginator("list_parts").paginate(
                Bucket=place.bucket, Key=place.key(name), UploadId=known["id"]
            )
            for page in pages:
                there |= {part["PartNumber"]: part["ETag"].strip('"') for part in page.get("Parts", [])}
            return str(known["id"]), there
    elif known:
        with contextlib.suppress(ClientError):
            place.client.abort_multipart_upload(Bucket=place.bucket, Key=place.key(name), UploadId=known["id"])
    begun = place.client.create_multipart_upload(Bucket=place.bucket, Key=place.key(name), Metadata={_SHA256: sha256})
    _remember(place, name, {"id": begun["UploadId"], "sha256": sha256})
    return str(begun["UploadId"]), {}


def _slot(place: Place, name: str) -> str:
    return f"{place.client.meta.endpoint_url} {place.bucket} {place.key(name)}"


def _remembered(place: Place) -> dict[str, dict[str, str]]:
    try:
        document = json.loads(place.uploads.read_text())
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _remember(place: Place, name: str, upload: dict[str, str] | None) -> None:
    document = {slot: known for slot, known in _remembered(place).items() if slot != _slot(place, name)}
    files.write_json(place.uploads, document | ({_slot(place, name): upload} if upload else {}))


def _md5(content: bytes) -> str:
    return base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


@contextlib.contextmanager
def _refusals_told(place: Place, endpoint_url: str | None) -> Iterator[None]:
    """Turn what the client raises into one sentence; never show a credential."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, ProfileNotFound

    where = f"{place.url} at {endpoint_url}" if endpoint_url else place.url
    try:
        yield
    except (NoCredentialsError, ProfileNotFound):
        do = "export AWS_ACCESS_KEY_ID=… and AWS_SECRET_ACCESS_KEY=…, or AWS_PROFILE=…"
        raise EnvironmentProblem("publishing to S3 needs credentials", where=where, do=do) from None
    except ClientError as error:
        code = _code(error)
        known = _CAUSES.get(code)
        if known:
            raise PublishError(f"the store refused ({code}): {known[0]}", where=where, do=known[1]) from None
        words = redact(" ".join(str(error).split()))[:300]
        do = "run the same command again later: what is there already is not sent again"
        raise PublishError(f"the store refused ({code}): {words}", where=where, do=do) from None
    except BotoCoreError as error:
        words = redact(" ".join(str(error).split()))[:300]
        do = "check the network and `publish.s3.endpoint_url`, then run the same command again: it goes on"
        raise PublishError(f"the store cannot be reached: {words}", where=where, do=do) from None
