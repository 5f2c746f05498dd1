"""Reference pages generated from the code: params, commands, errors, translation examples. Markdown."""

from __future__ import annotations

import ast
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import click
import yaml
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

import gateshift
from gateshift import errors
from gateshift.apisix.readers import read_files
from gateshift.archive.outcome import OUTCOMES
from gateshift.cli import cli
from gateshift.cli.notebooks import forms_of
from gateshift.params import Params, TranslateParams
from gateshift.params.base import listed_in
from gateshift.translate import Target, Translation, translate
from gateshift.words import catalogue

__all__ = ["commands_page", "errors_page", "params_page", "rows", "translate_row", "translation_page"]


# -- params ---------------------------------------------------------------------------------------------


def params_page(example: Path, more: Path) -> str:
    """Return every key with its form, default, range and an example, and remarks of the *example* file.

    The example of a key is the file's value; the model has one for what the file leaves out or empty. *more*
    has remarks for keys, by their whole name, on which the example has none.
    """
    further: Mapping[str, str] = yaml.safe_load(more.read_text(encoding="utf-8"))
    remarks, values = _remarks(example), _flat(yaml.safe_load(example.read_text(encoding="utf-8")))
    lines = [
        "# Params reference",
        "",
        (
            "Generated from the model. Durations carry a unit (`30s`, `30m`, `1h`, `14d`), versions are "
            "quoted, secrets are references: `${env:NAME}`, with `${env:NAME:-default}` for a default. An "
            "unknown key, a wrong type or a value out of range is one error naming file, key and remedy "
            "(exit code 2)."
        ),
    ]
    for section, model in _sections(Params):
        title = section or "Top level"
        lines += ["", f"## {title}", "", " ".join((model.__doc__ or "").split()), ""]
        lines += ["| key | form | default | example | remark |", "|---|---|---|---|---|"]
        for name, field in model.model_fields.items():
            if _model_of(field.annotation) is not None and not section:
                continue
            key = f"{section}.{name}" if section else name
            shown = _example(field, values.get(key.replace("[]", "")))
            cells = (
                f"`{key}`",
                _form(name, field),
                _default(field),
                shown,
                further.get(key) or remarks.get(name, ""),
            )
            lines.append("| " + " | ".join(_cell(c) for c in cells) + " |")
    return "\n".join(lines) + "\n"


def _sections(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    yield prefix, model
    for name, field in model.model_fields.items():
        inner = _model_of(field.annotation)
        if inner is not None:
            many = "[]" if "tuple" in str(field.annotation) else ""
            yield from _sections(inner, f"{prefix}.{name}{many}" if prefix else f"{name}{many}")


def _model_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((m for a in get_args(annotation) if (m := _model_of(a)) is not None), None)


_UNITS = {"_percent": "in percent", "_ms": "in milliseconds"}
"""Units that the end of a key says; durations carry theirs in the value."""


def _form(key: str, field: FieldInfo) -> str:
    text = str(field.annotation)
    marks = " ".join(str(m) for m in field.metadata)
    if "_seconds" in marks or "_seconds" in text:
        form = "duration"
    elif SecretStr in (field.annotation, *get_args(field.annotation)):
        form = "secret (reference)"
    elif choices := _choices(field):
        form = "one of " + ", ".join(f"`{one}`" for one in choices)
    else:
        plain = {"bool": "true or false", "int": "whole number", "float": "number", "str": "text"}
        found = re.findall(r"\b(bool|int|float|str|dict|tuple)\b", text)
        form = plain.get(found[0], {"dict": "mapping", "tuple": "list"}.get(found[0], "")) if found else ""
        if _model_of(field.annotation) is not None:
            form = "list of sections" if "tuple" in text else "section"
        elif "SecretStr" in text:
            form = "list of secrets (references)"
    unit = [words for end, words in _UNITS.items() if key.endswith(end)]
    limits = [
        f"{sign} {getattr(mark, name):g}"
        for mark in field.metadata
        for name, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))
        if getattr(mark, name, None) is not None
    ]
    return ", ".join([form, *unit, *limits])


def _choices(field: FieldInfo) -> list[str]:
    """Return the values that may be written, where the model lists them: an enum, a Literal or a pattern."""
    found: list[str] = []
    kinds = [field.annotation]
    for kind in kinds:
        kinds += get_args(kind)  # what is optional or annotated holds it inside
        found += [str(m.value) for m in getattr(kind, "__members__", {}).values()]
        found += [kind] if isinstance(kind, str) else []
    for mark in field.metadata:
        found += listed_in(str(getattr(mark, "pattern", None)))
    return list(dict.fromkeys(found))


def _example(field: FieldInfo, value: Any) -> str:
    if _model_of(field.annotation) is not None:
        return "see its section"
    shown = value if value not in (None, "", [], {}) else next(iter(field.examples or ()), "")
    if "_version" in f"{field.annotation} {field.metadata}":
        return _code(f'"{shown}"')  # YAML would read 1.10 as a number
    return _code(None if shown == "" else _yaml(shown))


def _yaml(value: Any) -> str:
    """Return *value* as it is written in a params file, on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined or value is None:
        return "none"
    if isinstance(value, BaseModel):
        return "see its section"
    if "_seconds" in " ".join(str(m) for m in field.metadata):
        return _code(_duration(float(value)))
    return _code(_yaml(getattr(value, "value", list(value) if isinstance(value, tuple) else value)))


def _duration(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g}{unit}"
    return f"{seconds:g}s"


def _flat(data: Any, prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in (data or {}).items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, dict):
            found |= _flat(value, name)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            found |= _flat(value[0], name)
        else:
            found[name] = value
    return found


def _remarks(example: Path) -> dict[str, str]:
    found = {}
    for line in example.read_text(encoding="utf-8").splitlines():
        hit = re.match(r"\s*(?:# )?(\w+):.*?\s# ?(.+)$", line)
        if hit:
            found[hit[1]] = re.sub(r"^ADAPT:? ?", "", hit[2])
    return found


def _code(text: str | None) -> str:
    return "" if text is None else f"`{text}`"


def _cell(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")


# -- commands -------------------------------------------------------------------------------------------


def commands_page() -> str:
    """Return every command with its options, as ``--help`` has them."""
    lines = ["# Command reference", "", "Generated from `gateshift --help`.", ""]
    context = click.Context(cli, info_name="gateshift")
    for name in cli.list_commands(context):
        for called, command in forms_of(name) or ((name, cli.get_command(context, name)),):
            lines += _command(called, command, context, 2)
    return "\n".join(lines) + "\n"


def _command(name: str, command: click.Command | None, parent: click.Context, level: int) -> Iterator[str]:
    if command is None:
        return
    context = click.Context(command, info_name=name, parent=parent, terminal_width=100, max_content_width=100)
    yield from ("", f"{'#' * level} {context.command_path}", "", "```text", command.get_help(context), "```")
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            yield from _command(child, command.get_command(context, child), context, level + 1)


# -- errors ---------------------------------------------------------------------------------------------


def errors_page() -> str:
    """Return the exit codes, the classes of errors, and every message in the code with its remedy."""
    lines = [
        "# Exit codes and errors",
        "",
        (
            "Generated from the code. Each error says what happened, what was not changed and the next step; "
            "in a notebook the next step is a link."
        ),
        "",
        "## Exit codes",
        "",
        "| code | outcome | what a pipeline does |",
        "|---|---|---|",
        *[f"| {code} | {word} | {_TO_DO[code]} |" for code, word in OUTCOMES.items()],
        "",
        "## Classes",
        "",
        "| error | exit code | what it means | next step | 下一步 |",
        "|---|---|---|---|---|",
    ]
    for name in errors.__all__:
        kind = getattr(errors, name)
        meaning = (kind.__doc__ or "").strip().splitlines()[0]
        hint = catalogue()[f"hint.{name}"]
        lines.append(
            f"| {name} | {kind.exit_code} | {_cell(meaning)} | {_cell(hint['en'])} | {_cell(hint['zh'])} |"
        )
    lines += ["", "## Messages", "", "`{…}` stands for what is filled in.", ""]
    lines += ["| error | message | remedy |", "|---|---|---|"]
    rows = sorted(set(_raised(Path(gateshift.__file__).parent)))
    lines += [f"| {kind} | {_cell(text)} | {_cell(hint)} |" for kind, text, hint in rows]
    return "\n".join(lines) + "\n"


_TO_DO = {
    0: "goes on",
    1: "stops; a person reads the error",
    2: "stops; correct the params or the command, nothing was touched",
    3: "waits for a person: an approval, a signature, more evidence, another run's lock",
    4: "stops; users are on APISIX again, read the rollback notebook",
    5: "runs the same command again; it resumes from the journal",
}


def _raised(folder: Path) -> Iterator[tuple[str, str, str]]:
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)):
                continue
            name = getattr(node.exc.func, "id", "")
            if name not in errors.__all__ or not node.exc.args:
                continue
            message = _template(node.exc.args[0])
            hint = next((_template(k.value) for k in node.exc.keywords if k.arg == "hint"), "")
            if re.search(r"[a-z]{3}", re.sub(r"\{[^}]*\}", "", message)):
                yield name, message, hint or getattr(errors, name).default_hint


def _template(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(v.value if isinstance(v, ast.Constant) else "{…}" for v in node.values)  # type: ignore[misc]  # text
    if isinstance(node, ast.BinOp):
        return _template(node.left) + _template(node.right)
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "tell" and node.args:
        key = getattr(node.args[0], "value", "")
        return re.sub(r"\{\w+\}", "{…}", catalogue().get(key, {"en": "{…}"})["en"])
    return "{…}"


# -- translation examples -------------------------------------------------------------------------------


def rows(file: Path) -> list[dict[str, Any]]:
    """Read the examples of the guide's rows."""
    found: list[dict[str, Any]] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return found


def translate_row(row: Mapping[str, Any]) -> Translation:
    """Translate one example as ``gateshift translate --in`` would."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "apisix.yaml"
        path.write_text(row["apisix"] + "#END\n", encoding="utf-8")
        configuration = read_files([path])
    params = TranslateParams.model_validate(row.get("params", {}))
    target = Target(version="1.31", namespace="shop", gateway_namespace="istio-system")
    return translate(configuration, params, target)


def translation_page(file: Path) -> str:
    """Return the guide's rows side by side, translated now."""
    lines = [
        "# What becomes what",
        "",
        (
            "The guide's twelve rows, each translated when this page was built. Every plugin is listed in "
            "[plugins](../plugins.md), the rest is under [translation](../translation.md); every "
            "field of your own configuration in the ledger of `20_translate`."
        ),
    ]
    for number, row in enumerate(rows(file), 1):
        translation = translate_row(row)
        kinds = {row["kind"], row.get("also", row["kind"])}
        objects = [o for o in translation.objects if o["kind"] in kinds]
        text = yaml.safe_dump_all(objects, sort_keys=False, default_flow_style=False, width=72)
        shown = "\n".join(text.splitlines()[:90])
        lines += ["", f"## {number}. {row['row']} → {row['becomes']}", "", row["note"], ""]
        lines += [
            '<div class="side" markdown>',
            "",
            '```yaml title="APISIX"',
            row["apisix"].rstrip(),
            "```",
            "",
        ]
        lines += [f'```yaml title="Istio: {row["file"]}"', shown, "```", "", "</div>"]
        different = [
            f"* {e.status}: {e.note}" for e in translation.ledger if e.note and str(e.status) in _TELLING
        ]
        if different:
            lines += ["", "From the ledger:", "", *dict.fromkeys(different[:6])]
        if translation.blockers:
            lines += ["", "Blocks until signed: " + "; ".join(str(b) for b in translation.blockers)]
    return "\n".join(lines) + "\n"


_TELLING = {"approximate", "manual", "none"}
