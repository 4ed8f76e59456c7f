"""Publish the tuned model: gather its files, hash them, write the model card, and hand all of it to each target.

A target is one module with `deliver(package, …) -> {"target", "location", "num_files", "num_bytes", …}`. What reaches a
target appears there as a whole, with the manifest that names every file. Nothing leaves that holds a credential.
"""

from __future__ import annotations

from typing import Any

from tunesmith.artifacts import Release, Verdict
from tunesmith.errors import PublishError
from tunesmith.publish import hub, local, s3
from tunesmith.publish.package import Package, pack
from tunesmith.publish.secrecy import refuse_secrets
from tunesmith.recipe.environment import expand
from tunesmith.recipe.schema import Publish, Recipe
from tunesmith.store.run_dir import RunDir


def run(recipe: Recipe, run_dir: RunDir) -> Release:
    """Publish to every target of `recipe.publish`. What is there already, unchanged, is left alone.

    Raises:
        PublishError: the gate failed or never decided, a file is not what the merge stage wrote or holds a credential,
            or a target refused.
        EnvironmentProblem: a package or a credential is missing.
    """
    assert recipe.publish is not None, "the recipe publishes nothing"
    if recipe.publish.hub:
        hub.require_client_and_token()  # before hashing gigabytes
    if recipe.publish.s3:
        s3.require_client()
    package = prepare(recipe, run_dir)
    return Release(targets=tuple(_deliver(recipe.publish, package, run_dir)), manifest_sha256=package.manifest_sha256)


def prepare(recipe: Recipe, run_dir: RunDir) -> Package:
    """Return what would be handed over, after every check that needs neither a network nor a credential.

    Raises:
        PublishError: the gate failed or never decided, a file is not what the merge stage wrote or holds a credential.
    """
    assert recipe.publish is not None, "the recipe publishes nothing"
    _refuse_without_gate(recipe, run_dir.find(Verdict))
    package = pack(recipe, run_dir)
    refuse_secrets(package)
    return package


def locations(publish: Publish, name: str) -> list[tuple[str, str]]:
    """Return (kind, place) of every target, in the order in which they are served."""
    found = []
    if publish.local:
        found.append(("local", f"{expand(publish.local).rstrip('/')}/{name}"))
    if publish.s3:
        found.append(("s3", f"{expand(publish.s3.url).rstrip('/')}/{name}"))
    if publish.hub:
        visibility = "private" if publish.hub.private else "public"
        found.append(("hub", f"{expand(publish.hub.repo_id)} ({visibility})"))
    return found


def _deliver(publish: Publish, package: Package, run_dir: RunDir) -> list[dict[str, Any]]:
    targets = []
    if publish.local:
        targets.append(local.deliver(package, expand(publish.local)))
    if publish.s3:
        endpoint_url = expand(publish.s3.endpoint_url) if publish.s3.endpoint_url else None
        url = expand(publish.s3.url)
        targets.append(s3.deliver(package, url, endpoint_url=endpoint_url, uploads=run_dir.unfinished_uploads))
    if publish.hub:
        targets.append(hub.deliver(package, expand(publish.hub.repo_id), private=publish.hub.private))
    return targets


def _refuse_without_gate(recipe: Recipe, verdict: Verdict | None) -> None:
    """A gate that was asked for has to have passed."""
    if recipe.publish and recipe.publish.even_if_gate_failed:
        return
    undecided = set(recipe.gate) - {rule.get("rule") for rule in (verdict.rules if verdict else ())}
    if undecided:
        do = "run the recipe to its gate, or set `publish.even_if_gate_failed: true`"
        raise PublishError(f"the gate has not decided yet on {'; '.join(sorted(undecided))}", do=do)
    if verdict is None or verdict.passed:
        return
    failed = [f"{rule['rule']} ({rule['evidence']})" for rule in verdict.rules if not rule["passed"]]
    do = "train a better model, change the rules, or set `publish.even_if_gate_failed: true`"
    raise PublishError(f"the gate failed: {'; '.join(failed)}", do=do)
