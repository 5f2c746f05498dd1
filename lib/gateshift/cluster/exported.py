"""What a clean-up writes into the archive of each object: enough to create it again, and no secret.

APISIX's own chart keeps the Admin API's key and etcd's password in a ConfigMap, and consumers may be custom
resources; so not only Secrets hold secrets. An object that does is exported without them and marked, and a
restore makes it from the copy kept in the cluster (:mod:`gateshift.cluster.kept`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from gateshift.archive.redact import MASK, Redactor, secret_values, telling
from gateshift.cluster.objects import Object, clean, unmasked

__all__ = ["holds_secrets", "portable", "shown"]

_HIDDEN = "gateshift.dev/secrets"
_ALSO = frozenset({"key", "keys", "keyring", "secret"})
"""Names under which APISIX's configuration and consumers have secrets, beside the telling ones."""


def portable(obj: Object) -> Object:
    """Return *obj* as it can be created again, secret values included: never to be written to an archive."""
    return _movable(unmasked(obj) or {})


def shown(obj: Object, redactor: Redactor) -> Object:
    """Return *obj* for the export: portable and without secrets; marked where a restore needs its copy."""
    whole, masked = portable(obj), _movable(clean(obj) or {})
    if whole["kind"] == "Secret":
        return masked
    hide = Redactor(_secrets_of(whole))
    bare: Object = redactor.value(hide.value(_without_variables(masked)))
    # Which object it is stays readable, also where a secret happens to be a part of its name.
    bare |= {"apiVersion": whole["apiVersion"], "kind": whole["kind"]}
    bare["metadata"] |= {
        key: whole["metadata"][key] for key in ("name", "namespace") if key in whole["metadata"]
    }
    if bare != whole:
        metadata = bare["metadata"]
        metadata["annotations"] = {**(metadata.get("annotations") or {}), _HIDDEN: "kept in the cluster"}
    return bare


def holds_secrets(exported: Mapping[str, Any]) -> bool:
    """Tell whether an exported object lacks its secrets."""
    return exported["kind"] == "Secret" or _HIDDEN in (exported["metadata"].get("annotations") or {})


def _movable(out: Object) -> Object:
    spec: dict[str, Any] = out.get("spec") or {}
    out["metadata"].pop("finalizers", None)  # set again by whoever needs them
    match out["kind"]:
        case "Service":
            # The old addresses may be taken; the load balancer gets a new one in any case.
            for field in ("clusterIP", "clusterIPs"):
                if spec.get(field) not in ("None", ["None"]):
                    spec.pop(field, None)
            spec.pop("healthCheckNodePort", None)
            for port in spec.get("ports") or []:
                port.pop("nodePort", None)
        case "PersistentVolumeClaim":
            out["metadata"].pop("ownerReferences", None)  # a claim of an owner that is gone is deleted
            notes = out["metadata"].get("annotations") or {}
            for key in [k for k in notes if k.startswith("pv.kubernetes.io/")]:
                del notes[key]
        case "Job":
            spec.pop("selector", None)
            labels = spec.get("template", {}).get("metadata", {}).get("labels") or {}
            for key in [k for k in labels if "controller-uid" in k or k.endswith("job-name")]:
                del labels[key]
        case "Namespace":
            out["spec"] = {}
        case "ServiceAccount":
            out.pop("secrets", None)  # token Secrets are made anew
        case "Pod":
            spec.pop("nodeName", None)
    return out


def _secrets_of(obj: Object) -> set[str]:
    """Collect the values below telling names, also inside files that a ConfigMap carries."""
    found = secret_values({key: obj[key] for key in obj if key != "metadata"})
    trees: Iterator[Any] = iter(())
    if obj["kind"] == "ConfigMap":
        trees = (tree for text in (obj.get("data") or {}).values() for tree in _parsed(text))
    elif obj["apiVersion"].startswith("apisix.apache.org/"):
        trees = iter([obj.get("spec")])
    for tree in trees:
        found |= secret_values(tree) | set(_also(tree))
    return found


def _parsed(text: str) -> list[Any]:
    """Return the documents of a file in a ConfigMap; a file of another format has none."""
    try:
        return list(yaml.safe_load_all(text))
    except yaml.YAMLError:
        return []


def _also(tree: Any, name: str = "") -> Iterator[str]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _also(value, str(key))
    elif isinstance(tree, list):
        for item in tree:
            yield from _also(item, name)
    elif isinstance(tree, str | int) and not isinstance(tree, bool) and name in _ALSO:
        yield str(tree)


def _without_variables(value: Any) -> Any:
    """Mask environment variables with telling names: their value stands beside the name, not below it."""
    if isinstance(value, list):
        return [_without_variables(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    found = {key: _without_variables(item) for key, item in value.items()}
    name = found.get("name")
    if isinstance(name, str) and telling(name) and isinstance(found.get("value"), str) and found["value"]:
        found["value"] = MASK
    return found
