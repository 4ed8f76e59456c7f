"""Publish to a model repository on the Hugging Face Hub, in one commit."""

from __future__ import annotations

import fnmatch
from typing import Any

from tunesmith.errors import EnvironmentProblem, PublishError, missing_extra
from tunesmith.publish.package import Package
from tunesmith.recipe.environment import redact

# Weights of an earlier commit in another layout: loaders would take them for the model's.
_STALE_WEIGHTS = ("model*.safetensors", "model.safetensors.index.json", "pytorch_model*", "adapter_*")
_CAUSES = {
    401: ("the token is not accepted", "make a token at https://huggingface.co/settings/tokens and export HF_TOKEN"),
    403: ("the token may not write there", "use a token with write access to the repository's owner"),
    404: ("the repository or its owner does not exist for this token", "check `publish.hub.repo_id` and the token"),
    413: ("a file is too large for the Hub", "lower `merge.max_shard_gib`"),
    429: ("too many requests", "wait a while and run the same command again"),
}


def require_client_and_token() -> str:
    """Return the token of HF_TOKEN, or of an earlier `hf auth login`.

    Raises:
        EnvironmentProblem: huggingface_hub is not installed, or there is no token.
    """
    try:
        from huggingface_hub import get_token
    except ImportError:
        raise missing_extra("huggingface_hub", "hub", needed_for="`publish.hub`") from None
    token = get_token()
    if not token:
        raise EnvironmentProblem("publishing to the Hub needs a token", do="export HF_TOKEN=… (with write access)")
    return str(token)


def deliver(package: Package, repo_id: str, *, private: bool) -> dict[str, Any]:
    """Create the repository when needed and put the package into it by one commit.

    Files that are there with the same content are not sent again, so a push that broke off goes on when repeated.

    Raises:
        PublishError: the Hub refused, or cannot be reached.
        EnvironmentProblem: the package or the token is missing.
    """
    token = require_client_and_token()
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(token=token, library_name="tunesmith")
    try:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        about = api.model_info(repo_id)
        if private and about.private is False:
            do = "make it private in its settings, or set `publish.hub.private: false`"
            raise PublishError("the repository exists and is public", where=f"{api.endpoint}/{repo_id}", do=do)
        there = api.list_repo_files(repo_id)
        operations: list[Any] = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(path)) for name, path in package.files.items()
        ]
        operations += [CommitOperationDelete(path_in_repo=name) for name in there if _is_stale(name, package)]
        commit = api.create_commit(repo_id, operations, commit_message=f"{package.name}: {package.manifest['run']}")
    except PublishError:
        raise
    except Exception as error:  # noqa: BLE001 - its network errors come from whichever HTTP library its version uses
        raise _refused(error, repo_id, getattr(api, "endpoint", "")) from None
    return {
        "target": "hub",
        "location": f"{api.endpoint}/{repo_id}",
        "num_files": len(package.files),
        "num_bytes": package.num_bytes,
        "commit": str(getattr(commit, "oid", "") or ""),
        "private": private,
    }


def _is_stale(name: str, package: Package) -> bool:
    return name not in package.files and any(fnmatch.fnmatch(name, pattern) for pattern in _STALE_WEIGHTS)


def _status(error: BaseException | None) -> int | None:
    """Return the HTTP status behind an error; the client wraps those of its uploads in others."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
        error = error.__cause__ or error.__context__
    return None


def _refused(error: Exception, repo_id: str, endpoint: str) -> PublishError:
    """Turn whatever the client raised into one sentence; never show a token."""
    where = f"{endpoint}/{repo_id}"
    status = _status(error)
    words = redact(" ".join(str(error).split()))[:300]
    if type(error).__name__ == "RuntimeError" and status is not None:  # an upload to the storage behind the Hub
        do = "run the same command again: files that arrived are not sent again"
        return PublishError(f"the Hub's storage refused ({status}): {words}", where=where, do=do)
    if status in _CAUSES:
        what, do = _CAUSES[status]
        return PublishError(f"the Hub refused ({status}): {what}", where=where, do=do)
    if status is not None:
        return PublishError(f"the Hub refused ({status}): {words}", where=where, do="run the same command again later")
    if type(error).__name__ == "OfflineModeIsEnabled":
        return PublishError("HF_HUB_OFFLINE forbids publishing to the Hub", where=where, do="unset HF_HUB_OFFLINE")
    do = "check the network and the repository's name, then run the same command again"
    return PublishError(f"the Hub cannot be reached: {type(error).__name__}: {words}", where=where, do=do)
