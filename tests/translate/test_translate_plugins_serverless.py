"""Functions in Lua: a few idioms are recognised word by word, and nothing else passes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateshift.translate import Translation
from tests.translate.helpers import configuration, filters, route, rules, run

NAME = "serverless-pre-function"


def one(*functions: str, phase: str = "rewrite", **params: Any) -> Translation:
    plugins = {NAME: {"phase": phase, "functions": list(functions)}}
    return run(configuration(routes=[route("r", "/r", plugins=plugins)]), **params)


def changes(translation: Translation) -> str:
    (code,) = filters(translation)[f"gateshift-{NAME}"]["spec"]["configPatches"][0]["patch"]["value"][
        "typed_config"
    ]["source_codes"].values()
    return str(code["inline_string"]).partition("\n")[0]


STRIP = """
local spoofed = {
  "x-user-id", -- never from clients
  'x-tenant';
  --[[ nor
  this ]]
}
return function()
  for _, h in ipairs(spoofed) do
    ngx.req.clear_header(h)
  end
end
"""


def test_headers_are_changed_before_any_other_plugin_sees_them() -> None:
    translation = one(
        STRIP,
        """local core = require("apisix.core")
           return function(conf, ctx)
             core.log.warn("seen ", ctx)
             core.request.set_header(ctx, "X-Gate", "yes \\"quoted\\"")
             ngx.req.set_header("X-Gone", nil);
             return
           end""",
    )
    assert not translation.blockers
    wanted = 'local CHANGES = {{"x-user-id"},{"x-tenant"},{"x-gate","yes \\034quoted\\034"},{"x-gone"}}'
    assert changes(translation) == wanted
    assert filters(translation)["gateshift-serverless-pre-function"]["spec"]["priority"] == -10000
    (entry,) = [e for e in translation.ledger if e.path.endswith("functions[0]")]
    assert str(entry.status) == "exact"


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        ('ngx.say("OK"); ngx.exit(200);', 200, "OK\n"),
        ('ngx.status = 404 ngx.print("no") return ngx.exit(404)', 404, "no"),
        ('ngx.say("sent") ngx.exit(403)', 200, "sent\n"),
        ('return 403, "go away"', 403, "go away"),
        ('return ngx.HTTP_FORBIDDEN, "go away"', 403, "go away"),
    ],
)
def test_fixed_answers(body: str, status: int, text: str) -> None:
    translation = one(f"return function(conf, ctx) {body} end")
    assert not translation.blockers
    (rule,) = rules(translation)
    assert rule["directResponse"] == {"status": status, "body": {"string": text}}


def test_an_answer_without_text_differs_and_waits() -> None:
    function = "return function() return ngx.exit(ngx.HTTP_UNAUTHORIZED) end"
    (rule,) = rules(one(function))
    assert rule["directResponse"] == {"status": 401}
    assert "no body" in one(function, accept=()).blockers[0].reason


def test_answers_are_changed_in_their_phase() -> None:
    translation = one(
        'return function() ngx.header["X_Set"] = "50%" ngx.header.server = nil end', phase="header_filter"
    )
    headers = rules(translation)[0]["headers"]["response"]
    assert headers == {"set": {"x-set": "50%%"}, "remove": ["server"]}


NOT_RECOGNISED = [
    "return function(conf, ctx) if ctx.var.x then ngx.exit(403) end end",
    "return function() ngx.req.set_uri_args({id = 1}) end",
    "return function() ngx.req.set_header('x-a', ngx.var.remote_addr) end",
    "return function() ngx.req.set_header('host', 'other') end",
    "return function() for _, h in ipairs({'x-a', 'x-b'}) do ngx.req.clear_header(h) return end end",
    "return function() for _, h in ipairs({'x-a'}) do ngx.say(h) end end",
    "local f = io.open('/etc/passwd') return function() end",
    "local http = require('resty.http') return function() end",
    "return function() ngx.say('sent') end",
    "return function() x = 1 end",
    "return function() ngx.exit(0) end",
    "return function() ngx.header.x = 'a' end",
    "return function() ngx.log(ngx.ERR, secret()) end",
    "return function() end; os.execute('true')",
    "return function() ngx.exit(403) end return function() end",
    "return function(",
    "ngx.exit(403)",
    "return [[text]]",
    "",
]


@pytest.mark.parametrize("source", NOT_RECOGNISED)
def test_what_is_not_recognised_blocks(source: str) -> None:
    translation = one(source)
    assert [b.plugin for b in translation.blockers] == ["serverless-pre-function"]
    assert "not recognised" in translation.blockers[0].reason or "goes on" in translation.blockers[0].reason
    assert not [n for n in filters(translation) if "serverless" in n]


def test_a_reason_repeats_no_text_of_the_function() -> None:
    for source in (
        "return function() ngx.req 'hunter-2' end",
        "return function() local key = #'hunter-2' end",
        "return 'hunter-2'",
    ):
        translation = one(source)
        assert translation.blockers
        assert "hunter-2" not in str(translation.as_json()) + str(translation.warnings)


@pytest.mark.parametrize("phase", ["log", "body_filter", "before_proxy"])
def test_other_phases_block(phase: str) -> None:
    assert phase in one("return function() end", phase=phase).blockers[0].reason


def test_a_credential_needs_a_decision() -> None:
    function = "return function() ngx.req.set_header('Authorization', 'Bearer abcdef') end"
    assert "credential" in one(function).blockers[0].reason
    assert "abcdef" not in str(one(function).objects)
    assert "abcdef" in changes(one(function, inline_credentials=True))


WORDS = st.sampled_from(
    [
        "return", "function", "(", ")", "end", "local", "x", "=", "ngx", ".", "req", "set_header", "exit",
        "'a'", "403", ",", "for", "_", "in", "ipairs", "do", "{", "}", "if", "then", "ctx", "[", "]", "nil",
        "say", "header", "status", "--", "\n", "==", "\\",
    ]
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(WORDS, max_size=12).map(" ".join))
def test_one_word_more_is_never_passed_by(extra: str) -> None:
    """A sound function with anything at all after a statement: known as a whole, or held back."""
    translation = one(f"return function() ngx.req.set_header('x-a', 'b') {extra} end")
    if not translation.blockers:
        assert not set(extra.split()) & {"if", "then", "==", "\\", "function", "x"} or "--" in extra
