"""error-page: texts for the gateway's own errors, set for the whole gateway as in APISIX."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateshift.apisix.model import Kind
from gateshift.translate.conditions import Inexpressible
from gateshift.translate.model import Fidelity
from gateshift.translate.plugins.envoy import on_gateway
from gateshift.translate.plugins.registry import Use, handles

_CODES = (404, 500, 502, 503)


def _mapper(code: int, page: Mapping[str, Any]) -> dict[str, Any]:
    comparison = {
        "op": "EQ",
        "value": {"default_value": code, "runtime_key": f"gateshift.error_page_{code}"},
    }
    return {
        "filter": {"status_code_filter": {"comparison": comparison}},
        "body_format_override": {
            "text_format_source": {"inline_string": str(page["body"]).replace("%", "%%")},
            "content_type": str(page.get("content_type", "text/html")),
        },
    }


@handles("error-page")
def error_page(use: Use) -> None:
    """Answer 404, 500, 502 and 503 of the gateway with the pages of plugin_metadata."""
    metadata = use.job.configuration.get(Kind.PLUGIN_METADATA, "error-page")
    mappers = []
    for code in _CODES:
        page = metadata.spec.get(f"error_{code}") if metadata else None
        if isinstance(page, Mapping) and page.get("body") and metadata is not None:
            mappers.append(_mapper(code, page))
            note = "for every route of the gateway, and not for errors that a backend sent"
            place = (f"error_{code}",)
            use.job.mark(metadata, place, Fidelity.APPROXIMATE, "EnvoyFilter local_reply_config", note)
    if metadata is not None and metadata.spec.get("enable") is False:
        use.ignored(note="switched off in plugin_metadata")
        return
    if not mappers:
        raise Inexpressible("plugin_metadata has no page for it; APISIX's own HTML is not carried over")
    on_gateway(use, "error-page", {"local_reply_config": {"mappers": mappers}})
    use.approximate(target="EnvoyFilter local_reply_config", note="for every route of the gateway")
