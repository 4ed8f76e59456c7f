"""Snapshots of Hugging Face Hub repositories: from the local cache when they are there, downloaded otherwise."""

from __future__ import annotations

from pathlib import Path

from tunesmith.errors import ModelError, missing_extra

_PATTERNS = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.tiktoken")


def snapshot(repo_id: str, *, revision: str | None, trust_remote_code: bool = False) -> Path:
    """Return the directory of a model repository's files, downloading what is missing.

    Args:
        revision: branch, tag or commit; None is the default branch.
        trust_remote_code: fetch the repository's Python files, too.

    Raises:
        ModelError: the repository or the revision does not exist, is not open to this token, or cannot be reached.
    """
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
    except ImportError:
        raise missing_extra(
            "huggingface_hub", "hub", needed_for=f"the model {repo_id!r}, which is no directory,"
        ) from None
    patterns = [*_PATTERNS, "*.py"] if trust_remote_code else list(_PATTERNS)
    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=patterns))
    except GatedRepoError:
        do = f"ask for access at https://huggingface.co/{repo_id} and set HF_TOKEN"
        raise ModelError("this repository is gated", where=repo_id, do=do) from None
    except RevisionNotFoundError:
        raise ModelError(f"there is no revision {revision!r}", where=repo_id, do="check model.revision") from None
    except RepositoryNotFoundError:
        do = "check model.name_or_path; a private repository needs HF_TOKEN"
        raise ModelError(
            "there is no such directory, and no such repository on the Hub", where=repo_id, do=do
        ) from None
    except LocalEntryNotFoundError:
        do = "check model.name_or_path, or connect to the network (HF_HUB_OFFLINE=1 forbids it)"
        raise ModelError("there is no such directory, and the Hub cannot be reached", where=repo_id, do=do) from None
    except (HfHubHTTPError, OSError) as error:
        raise ModelError(f"the Hub did not deliver the model: {error}", where=repo_id, do="try again") from None
