"""``gateshift diagnose --files``: the lint of Istio objects in files, without a cluster or a params file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import yaml

from gateshift.diagnose.lint import lint
from gateshift.diagnose.lint_shapes import misshapen
from gateshift.diagnose.model import Level
from gateshift.errors import InputError

__all__ = ["lint_command", "read_objects"]


def read_objects(paths: tuple[Path, ...]) -> tuple[list[dict[str, Any]], int]:
    """Read Kubernetes objects from YAML or JSON files and folders; Lists are opened.

    Also returns how many documents of the folders are something else: a folder may hold other files too.
    Raises InputError naming the file that cannot be read or, named itself, holds something else.
    """
    files: list[tuple[Path, bool]] = []
    for path in paths:
        if path.is_dir():
            inside = (p for p in path.rglob("*") if p.suffix in {".yaml", ".yml", ".json"} and p.is_file())
            files += ((p, True) for p in sorted(inside))
        else:
            files.append((path, False))
    found: list[dict[str, Any]] = []
    others = 0
    for file, beside in files:
        try:
            documents = list(yaml.safe_load_all(file.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InputError(f"{file} cannot be read: {' '.join(str(error).split())[:200]}") from None
        for number, document in enumerate(documents, 1):
            if beside and document is not None and not _is_object(document):
                others += 1
                continue
            found += _objects(document, f"{file}, document {number}")
    if not found:
        raise InputError("no Kubernetes objects were given", hint="name files or folders with Istio objects")
    return found, others


def _is_object(document: Any) -> bool:
    """Say whether a document is meant for an API server; what only kustomize reads has no name."""
    return (
        isinstance(document, dict)
        and isinstance(document.get("kind"), str)
        and isinstance(document.get("apiVersion"), str)
        and not document["apiVersion"].startswith("kustomize.")
    )


def _objects(document: Any, where: str) -> list[dict[str, Any]]:
    if document is None:
        return []
    if not isinstance(document, dict) or not isinstance(document.get("kind"), str):
        raise InputError(f"{where} is no Kubernetes object: it has no kind")
    if document["kind"].endswith("List") and isinstance(document.get("items"), list):
        return [obj for item in document["items"] for obj in _objects(item, where)]
    for key in ("metadata", "spec"):
        if not isinstance(document.get(key) or {}, dict):
            raise InputError(f"{where} ({document['kind']}): {key} is no mapping")
    if not isinstance((document.get("metadata") or {}).get("name"), str):
        raise InputError(f"{where} ({document['kind']}) has no metadata.name")
    if said := misshapen(document):
        raise InputError(f"{where} ({document['kind']}): {said}", hint="the API server would refuse it")
    return [document]


@click.command("diagnose")
@click.option(
    "--files",
    "paths",
    multiple=True,
    required=True,
    type=click.Path(exists=True, path_type=Path),
    help="A file or folder of Kubernetes objects; repeat it for several.",
)
@click.argument("more", nargs=-1, type=click.Path(exists=True, path_type=Path))
@click.option("--istio-version", default="1.31", show_default=True, help="The Istio they are for.")
@click.option("--gateway-namespace", default="istio-system", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of lines.")
@click.help_option("-h", "--help")
def lint_command(
    paths: tuple[Path, ...],
    more: tuple[Path, ...],
    istio_version: str,
    gateway_namespace: str,
    as_json: bool,
) -> None:
    """Judge Istio objects in files by every trap that can be seen in them.

    Exit code 0: no error. 1: at least one. 2: a file cannot be read.
    """
    objects, others = read_objects((*paths, *more))
    causes = lint(objects, version=istio_version, gateway_namespace=gateway_namespace)
    if as_json:
        click.echo(json.dumps([c.as_json() for c in causes], indent=1))
    else:
        for cause in sorted(causes, key=lambda c: list(Level).index(c.level)):
            click.echo(f"{cause.level}: {cause.shown or cause.title} [{cause.code}]")
            click.echo(f"    {cause.evidence}")
            click.echo(f"    remedy: {cause.remedy}")
        click.echo(f"{len(objects)} objects, {sum(c.level == Level.ERROR for c in causes)} errors")
        if others:
            click.echo(f"{others} documents are no Kubernetes objects and were left out")
    if any(c.level == Level.ERROR for c in causes):
        click.get_current_context().exit(1)
