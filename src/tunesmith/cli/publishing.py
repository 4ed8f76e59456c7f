"""`publish`: hand a finished run's model to the places of its recipe, or to any others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse

    from tunesmith.publish.package import Package
    from tunesmith.recipe.schema import Publish, Recipe


def add_arguments_publish(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", nargs="?", default="latest", help="a run (default: latest)")
    parser.add_argument(
        "--to",
        metavar="PLACE",
        action="append",
        default=[],
        help="a directory, s3://bucket/prefix or hf://owner/name, instead of the recipe's places; repeatable",
    )
    parser.add_argument("--endpoint-url", metavar="URL", help="server of an S3-compatible store that is not AWS")
    parser.add_argument("--public", action="store_true", help="create the Hub repository as public")
    parser.add_argument("--even-if-gate-failed", action="store_true", help="publish nevertheless; the card says so")
    parser.add_argument("--dry-run", action="store_true", help="list what would be sent where, and send nothing")
    parser.add_argument("--output-dir", default="outputs", help="where runs are (default: outputs)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run_publish(args: argparse.Namespace) -> int:
    """Publish and say where. The record of the run's own `publish` stage is left as it is."""
    import dataclasses

    from tunesmith import stage_process
    from tunesmith.publish import stage
    from tunesmith.store.run_dir import find_run

    run = find_run(args.run, args.output_dir)
    recipe = stage_process.load_resolved(run)
    recipe = dataclasses.replace(recipe, publish=_places(args, recipe))
    if args.dry_run:
        return _list(recipe, stage.prepare(recipe, run), as_json=args.json)
    stage_process.raise_on_signals()
    with run.locked():
        release = stage.run(recipe, run)
    if args.json:
        import json

        print(json.dumps({"run": str(run.path)} | release.to_json(), indent=2, ensure_ascii=False))
        return 0
    for target in release.targets:
        state = "unchanged" if target.get("unchanged") else f"{target['num_bytes'] / 1e6:,.1f} MB"
        print(f"✓ {target['target']:<6} {target['location']}  {target['num_files']} files, {state}")
    return 0


def _places(args: argparse.Namespace, recipe: Recipe) -> Publish:
    import dataclasses

    from tunesmith.errors import UsageError
    from tunesmith.recipe.schema import HubTarget, Publish, S3Target

    publish = recipe.publish
    if args.to:
        publish = Publish()
        for place in args.to:
            if place.startswith("s3://"):
                publish = dataclasses.replace(publish, s3=S3Target(place, args.endpoint_url))
            elif place.startswith("hf://"):
                target = HubTarget(place.removeprefix("hf://"), private=not args.public)
                publish = dataclasses.replace(publish, hub=target)
            elif "://" in place:
                raise UsageError(f"--to {place}: no such kind of place", do="a directory, s3://… or hf://owner/name")
            else:
                publish = dataclasses.replace(publish, local=place)
        _check(dataclasses.replace(recipe, publish=publish))
    if publish is None:
        raise UsageError("the recipe of this run has no `publish`", do="name a place with --to")
    forced = args.even_if_gate_failed or publish.even_if_gate_failed
    return dataclasses.replace(publish, even_if_gate_failed=forced)


def _check(recipe: Recipe) -> None:
    """Hold the places of the command line against the rules that a recipe's have to keep."""
    from tunesmith.errors import UsageError
    from tunesmith.recipe.check import check

    for misfit in check(recipe, needs_variables=False):
        if misfit.path[:1] == ("publish",):
            raise UsageError(misfit.what, where="--to", do=misfit.do)


def _list(recipe: Recipe, package: Package, *, as_json: bool) -> int:
    from tunesmith.publish.stage import locations

    assert recipe.publish is not None
    places = locations(recipe.publish, package.name)
    sizes = {name: path.stat().st_size for name, path in package.files.items()}
    if as_json:
        import json

        hashes = {name: facts["sha256"] for name, facts in package.manifest["files"].items()}
        hashes["manifest.json"] = package.manifest_sha256
        listed: list[dict[str, Any]] = [
            {"name": name, "bytes": size, "sha256": hashes[name]} for name, size in sizes.items()
        ]
        told = {"places": [{"target": kind, "location": place} for kind, place in places], "files": listed}
        print(json.dumps(told, indent=2, ensure_ascii=False))
        return 0
    width = max(map(len, sizes))
    print("\n".join(f"would publish to {kind}: {place}" for kind, place in places))
    print("\n".join(f"  {name:<{width}}  {size:>15,} bytes" for name, size in sizes.items()))
    print(f"  {'in all':<{width}}  {sum(sizes.values()):>15,} bytes; no file holds a credential")
    return 0
