"""Read an APISIX configuration from files, whatever form they are in."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from gateshift.apisix.model import Configuration, Origin
from gateshift.apisix.readers import native
from gateshift.apisix.readers.builder import Builder
from gateshift.apisix.readers.source import Document, load
from gateshift.errors import ConfigurationError

__all__ = ["read_documents", "read_files"]


def read_files(paths: Sequence[str | Path], *, env: Mapping[str, str] | None = None) -> Configuration:
    """Read *paths* in order into one configuration.

    Each file may be a standalone file (YAML or JSON), an Admin API dump (v2 or v3), Kubernetes objects of
    the ingress controller or the Gateway API, an ADC file, or an etcd dump. *env* resolves ``${{VAR}}``
    (the process environment when None). Lax input becomes findings; a file in which nothing can be read
    raises :class:`~gateshift.errors.ConfigurationError`.
    """
    if not paths:
        raise ConfigurationError("no configuration file was named", hint="name one with --config FILE")
    builder = Builder()
    values = os.environ if env is None else env
    documents: list[Document] = []
    for path in paths:
        documents.extend(load(Path(path), values, builder))
    return read_documents(documents, builder)


def read_documents(documents: Sequence[Document], builder: Builder) -> Configuration:
    """Read parsed documents; Kubernetes objects are read together, because they name each other."""
    objects: list[Document] = []
    for document in documents:
        data = document.data
        if isinstance(data, Mapping) and "apiVersion" in data and "kind" in data:
            objects.append(document)
        elif native.is_admin(data):
            native.read_admin(document, builder)
        elif native.is_etcd(data):
            native.read_etcd(document, builder)
        elif isinstance(data, Mapping):
            from gateshift.apisix.readers import adc  # noqa: PLC0415 - only for files that need it

            if adc.is_adc(data):
                adc.read_adc(document, builder)
            else:
                native.read_standalone(document, builder)
        elif isinstance(data, list) and data and all(isinstance(x, Mapping) for x in data):
            native.read_standalone(Document(document.source, document.index, {"routes": data}), builder)
        else:
            builder.error(
                Origin(document.source, ""),
                f"an APISIX configuration is a mapping, this is {type(data).__name__}",
                "name a standalone file, an Admin API dump, ADC or Kubernetes objects",
            )
    if objects:
        from gateshift.apisix.readers import kubernetes  # noqa: PLC0415 - only for files that need it

        kubernetes.read_objects(objects, builder)
    return builder.build()
