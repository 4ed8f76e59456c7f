"""Snapshots of Hugging Face Hub repositories: from the local cache when they are there, downloaded otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tunesmith.errors import DataError, ModelError, missing_extra

_PATTERNS = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.tiktoken")


def snapshot(repo_id: str, *, revision: str | None, trust_remote_code: bool = False) -> Path:
    """Return the directory of a model repository's files, downloading what is missing.

    Args:
        revision: branch, tag or commit; None is the default branch.
        trust_remote_code: fetch the repository's Python files, too.

    Raises:
        ModelError: the repository or the revision does not exist, is not open to this token, or cannot be reached.
    """
    patterns = [*_PATTERNS, "*.py"] if trust_remote_code else list(_PATTERNS)
    return _snapshot("model", repo_id, revision, patterns)


def dataset_snapshot(repo_id: str, *, revision: str | None, patterns: list[str]) -> Path:
    """Return the directory of those files of a data set's repository that match patterns.

    Raises:
        DataError: the repository or the revision does not exist, is not open to this token, or cannot be reached.
    """
    return _snapshot("dataset", repo_id, revision, patterns)


def _snapshot(kind: Literal["model", "dataset"], repo_id: str, revision: str | None, patterns: list[str]) -> Path:
    noun, error_class = {"model": ("model", ModelError), "dataset": ("data set", DataError)}[kind]
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
            "huggingface_hub", "hub", needed_for=f"the {noun} {repo_id!r}, which is no directory,"
        ) from None
    page = f"https://huggingface.co/{'datasets/' if kind == 'dataset' else ''}{repo_id}"
    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=patterns, repo_type=kind))
    except GatedRepoError:
        do = f"ask for access at {page} and set HF_TOKEN"
        raise error_class("this repository is gated", where=repo_id, do=do) from None
    except RevisionNotFoundError:
        raise error_class(f"there is no revision {revision!r}", where=repo_id, do=f"look at {page}") from None
    except RepositoryNotFoundError:
        do = f"check the {noun}'s name; a private repository needs HF_TOKEN"
        raise error_class(
            "there is no such directory, and no such repository on the Hub", where=repo_id, do=do
        ) from None
    except LocalEntryNotFoundError:
        do = f"check the {noun}'s name, or connect to the network (HF_HUB_OFFLINE=1 forbids it)"
        raise error_class("there is no such directory, and the Hub cannot be reached", where=repo_id, do=do) from None
    except (HfHubHTTPError, OSError) as error:
        raise error_class(f"the Hub did not deliver the {noun}: {error}", where=repo_id, do="try again") from None
