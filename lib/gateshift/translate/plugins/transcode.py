"""grpc-transcode: Envoy's JSON transcoder, from the proto of the configuration.

The route's own paths and methods become the HTTP rules of the gRPC method: they are written into the compiled
descriptor, whatever rules the proto may bring.
"""

from __future__ import annotations

import base64
import binascii
import os
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorSet, MethodDescriptorProto, MethodOptions
from google.protobuf.message import DecodeError
from grpc_tools import protoc

from gateshift.apisix.model import Kind, Resource
from gateshift.translate.conditions import Inexpressible
from gateshift.translate.job import HttpFilter
from gateshift.translate.model import Fidelity
from gateshift.translate.paths import Pattern
from gateshift.translate.plugins.registry import Use, handles

_FILTER = "type.googleapis.com/envoy.extensions.filters.http.grpc_json_transcoder.v3.GrpcJsonTranscoder"
_RULE_FIELD = {"GET": 2, "PUT": 3, "POST": 4, "DELETE": 5, "PATCH": 6}
"""Fields of google.api.HttpRule (googleapis, google/api/http.proto)."""
_BODY, _BINDING, _HTTP = 7, 11, 72295728


def _field(number: int, data: bytes) -> bytes:
    """Write a length-delimited protobuf field."""

    def varint(value: int) -> bytes:
        out = b""
        while value > 127:
            out += bytes([value & 127 | 128])
            value >>= 7
        return out + bytes([value])

    return varint(number << 3 | 2) + varint(len(data)) + data


def _template(pattern: Pattern) -> str:
    """Write an APISIX path as a template of google.api.http."""
    source = pattern.source
    if pattern.kind == "exact":
        return source
    if pattern.kind == "prefix" and pattern.text.endswith("/"):
        return f"{pattern.text}**"
    segments = ["*" if one.startswith(":") else one for one in source.split("/")]
    if pattern.kind == "regex" and not any("*" in one and one != "*" for one in segments):
        return "/".join(segments)
    raise Inexpressible(f"the path {source} is no template that the transcoder knows")


def _rules(templates: Iterable[str], methods: Iterable[str]) -> bytes:
    """Return a serialized HttpRule: the first path and method, the others as additional bindings."""
    rules = []
    for template in templates:
        for method in methods:
            rule = _field(_RULE_FIELD[method], template.encode())
            rules.append(rule + (b"" if method in ("GET", "DELETE") else _field(_BODY, b"*")))
    return rules[0] + b"".join(_field(_BINDING, one) for one in rules[1:])


def _descriptors(text: str) -> FileDescriptorSet:
    """Return the descriptors of a proto: base64 of a descriptor set, or source text."""
    found = FileDescriptorSet()
    if "syntax" not in text and "message" not in text:
        try:
            found.ParseFromString(base64.b64decode("".join(text.split()), validate=True))
        except (binascii.Error, DecodeError) as error:
            raise Inexpressible("the proto is neither source text nor a base64 descriptor set") from error
    else:
        found.ParseFromString(_compiled(text))
    return found


def _protoc(options: Sequence[str]) -> str:
    """Run protoc; return the first line of what is wrong, empty when nothing is.

    It is no Python and writes to the standard error itself, with a path that nobody knows.
    """
    with tempfile.TemporaryFile() as said:
        sys.stderr.flush()
        kept = os.dup(2)
        os.dup2(said.fileno(), 2)
        try:
            code = protoc.main(["protoc", *options])
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        said.seek(0)
        lines = said.read().decode("utf-8", "replace").splitlines()
    return "" if code == 0 else (lines or ["no reason given"])[0]


@lru_cache(maxsize=64)
def _compiled(text: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "route.pb")
        Path(folder, "route.proto").write_text(text, encoding="utf-8")
        known = Path(protoc.__file__).parent / "_proto"
        options = [f"-I{folder}", f"-I{known}", "--include_imports", f"--descriptor_set_out={target}"]
        options.append(str(Path(folder, "route.proto")))
        wrong = _protoc(options)
        if wrong:
            raise Inexpressible(f"protoc cannot compile the proto: {wrong.removeprefix(f'{folder}/')}")
        return target.read_bytes()


def _method(descriptors: FileDescriptorSet, service: str, method: str) -> MethodDescriptorProto:
    for file in descriptors.file:
        for one in file.service:
            if service in (f"{file.package}.{one.name}" if file.package else one.name, one.name):
                for candidate in one.method:
                    if candidate.name == method:
                        return candidate
    raise Inexpressible(f"the proto has no method {service}/{method}")


def _proto(use: Use) -> Resource:
    found = use.job.configuration.get(Kind.PROTO, use.config["proto_id"])
    if found is None or not isinstance(found.spec.get("content"), str):
        raise Inexpressible(f"proto {use.config['proto_id']} is not in the configuration")
    return found


def _print_options(raw: object) -> dict[str, bool]:
    # APISIX's default prints unset fields and names enums.
    options = {str(one) for one in raw} if isinstance(raw, list | tuple) else {"auto_default_values"}
    found = {"preserve_proto_field_names": True}
    if options & {"auto_default_values", "use_default_values"}:
        found["always_print_primitive_fields"] = True
    if "enum_as_value" in options:
        found["always_print_enums_as_ints"] = True
    return found


def _methods(raw: Mapping[str, Any]) -> list[str]:
    named = raw.get("methods") or list(_RULE_FIELD)
    return [one for one in ([named] if isinstance(named, str) else named) if one in _RULE_FIELD]


@handles("grpc-transcode")
def grpc_transcode(use: Use) -> None:
    """Turn JSON requests into calls of one gRPC method, and its answers into JSON."""
    config, draft = use.config, use.draft
    proto = _proto(use)
    service, method = str(config["service"]), str(config["method"])
    descriptors = _descriptors(str(proto.spec["content"]))
    found = _method(descriptors, service, method)
    methods = _methods(draft.route.spec)
    if not methods:
        raise Inexpressible("none of the route's methods can carry a gRPC call")
    rule = _rules([_template(one) for one in draft.patterns], methods)
    for file in descriptors.file:
        for one in file.service:
            for other in one.method:
                other.ClearField("options")
    found.options.CopyFrom(MethodOptions.FromString(_field(_HTTP, rule)))
    settings = {
        "@type": _FILTER,
        "proto_descriptor_bin": base64.b64encode(descriptors.SerializeToString(deterministic=True)).decode(),
        "services": [service],
        "match_incoming_request_route": True,
        "ignore_unknown_query_parameters": True,
        "print_options": _print_options(config.get("pb_option")),
    }
    name = "gateshift.grpc_transcode" + ("_global" if use.is_global else "")
    use.job.use_filter(HttpFilter(name, "grpc-transcode", use.priority, settings, disabled=True))
    draft.filters[name] = settings
    target = "EnvoyFilter grpc_json_transcoder"
    if config.get("deadline"):
        draft.headers("request", "set")["grpc-timeout"] = f"{int(config['deadline'])}m"
    use.exact("proto_id", "service", "method", target=target)
    use.exact("deadline", target="VirtualService http[].headers.request")
    use.approximate("pb_option", target=target, note="64-bit integers are printed as text")
    use.none("show_status_in_body", "status_detail_type", note="errors have the HTTP status, no details")
    if "pb_option" not in config:
        note = "64-bit integers are printed as text"
        use.approximate("method", target=target, note=note)
    note = "compiled into the EnvoyFilter's descriptor"
    use.job.mark(proto, ("content",), Fidelity.EXACT, target, note)
