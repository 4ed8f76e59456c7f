"""Publish the tuned model: gather its files, hash them, write the model card, and hand all of it to each target.

A target is one module with `deliver(package, …) -> {"target", "location", "num_files", "num_bytes", …}`. What reaches a
target appears there as a whole, with the manifest that names every file.
"""

from __future__ import annotations

from typing import Any

from tunesmith.artifacts import Release, Verdict
from tunesmith.errors import PublishError
from tunesmith.publish import hub, local
from tunesmith.publish.package import pack
from tunesmith.recipe.environment import expand
from tunesmith.recipe.schema import Recipe
from tunesmith.store.run_dir import RunDir


def run(recipe: Recipe, run_dir: RunDir) -> Release:
    """Publish to every target of `recipe.publish`. What is there already, unchanged, is left alone.

    Raises:
        PublishError: the gate failed, a file is not what the merge stage wrote, or a target refused.
        EnvironmentProblem: a package or a credential is missing.
    """
    assert recipe.publish is not None, "the recipe publishes nothing"
    _refuse_after_failed_gate(recipe, run_dir.find(Verdict))
    if recipe.publish.hub:
        hub.require_client_and_token()  # before hashing gigabytes
    package = pack(recipe, run_dir)
    targets: list[dict[str, Any]] = []
    if recipe.publish.local:
        targets.append(local.deliver(package, expand(recipe.publish.local)))
    if recipe.publish.hub:
        targets.append(hub.deliver(package, expand(recipe.publish.hub.repo_id), private=recipe.publish.hub.private))
    return Release(targets=tuple(targets), manifest_sha256=package.manifest_sha256)


def _refuse_after_failed_gate(recipe: Recipe, verdict: Verdict | None) -> None:
    if verdict is None or verdict.passed or (recipe.publish and recipe.publish.even_if_gate_failed):
        return
    failed = [f"{rule['rule']} ({rule['evidence']})" for rule in verdict.rules if not rule["passed"]]
    do = "train a better model, change the rules, or set `publish.even_if_gate_failed: true`"
    raise PublishError(f"the gate failed: {'; '.join(failed)}", do=do)
