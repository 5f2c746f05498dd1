"""From a file to plain documents: JSON or YAML, ``${{VAR}}``, and leftovers of Helm and Jinja."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from gateshift.apisix.model import Origin
from gateshift.apisix.readers.builder import Builder
from gateshift.apisix.templates import EXPRESSION, REMEDY, decides, gap_in, structural_lines
from gateshift.errors import ConfigurationError
from gateshift.params.repeated import repeated_keys

__all__ = ["Document", "load", "parse"]

_VARIABLE = re.compile(r"\$\{\{\s*(\w+(?:(?!\}\}).)*?)\s*\}\}", re.ASCII)
_MAX_BYTES = 256 * 1024 * 1024
_HALF = re.compile(r"\\u[dD][89a-fA-F]")
_MAX_DEPTH = 100
_MAX_ALIASED = 5_000_000
"""Values that aliases may stand for: an alias of an alias of an alias doubles them each time."""


@dataclass(frozen=True, slots=True)
class Document:
    """One YAML document or JSON value, and the file it came from."""

    source: str
    index: int
    data: Any


_Base: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Base):  # type: ignore[misc]  # the C loader when PyYAML has it
    """YAML as APISIX's lyaml reads it: no dates and no base-60 numbers. A key that stands twice is refused.

    APISIX would take the last of both without a word, and whoever wrote the first counts on it.
    """

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        for key in repeated_keys(node):
            if key.tag != "tag:yaml.org,2002:merge":
                problem = f"the key {key.value} stands twice in one object"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
        return super().construct_mapping(node, deep)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice")  # read as YAML then, which tells the place
    return found


_INTEGER = re.compile(r"[-+]?(?:0b[01_]+|0[0-7_]+|0x[0-9a-fA-F_]+|0|[1-9][0-9_]*)\Z")
_FLOAT = re.compile(
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|\.[0-9_]+(?:[eE][-+]?[0-9]+)?|\.inf|\.nan|\.Inf|\.NaN)\Z"
)
_DROPPED = {"tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"}
_Loader.yaml_implicit_resolvers = {
    key: [(tag, regex) for tag, regex in rules if tag not in _DROPPED]
    for key, rules in _Base.yaml_implicit_resolvers.items()  # type: ignore[attr-defined]
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", _INTEGER, list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def load(path: Path, env: Mapping[str, str], builder: Builder) -> list[Document]:
    """Read one file. Raises ConfigurationError when nothing in it can be used."""
    source = str(path)
    try:
        if path.is_dir():
            raise ConfigurationError(f"{source}: is a directory", hint="name the files inside it")
        if path.stat().st_size > _MAX_BYTES:
            raise ConfigurationError(f"{source}: larger than 256 MiB", hint="is this an APISIX export?")
        raw = path.read_bytes()
    except FileNotFoundError:
        raise ConfigurationError(f"{source}: no such file", hint="check the path") from None
    except OSError as error:
        raise ConfigurationError(f"{source}: cannot be read: {error.strerror or error}") from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigurationError(
            f"{source}: byte {error.start} is not UTF-8", hint="save the file as UTF-8"
        ) from None
    return parse(text, source, env, builder)


def parse(text: str, source: str, env: Mapping[str, str], builder: Builder) -> list[Document]:
    """Parse the text of one file into documents; empty documents are left out."""
    text = _substitute(text, source, env, builder)
    said: list[str] = []
    documents = _json_documents(text)
    if documents is None:
        documents = _yaml_documents(text, source, builder, said)
    plain = _Plain(source)
    found = [
        Document(source, i, _restored(plain(data), said) if said else plain(data))
        for i, data in enumerate(documents)
        if data is not None
    ]
    if _HALF.search(text):
        _refuse_halves(found, source)
    for document in found:
        _leftovers(document.data, source, "", builder)
    return found


def _refuse_halves(documents: list[Document], source: str) -> None:
    """Refuse text with half of a character, which no file and no object can hold."""
    try:
        json.dumps([one.data for one in documents], ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = json.dumps(error.object[error.start])
        raise ConfigurationError(
            f"{source}: the text holds {half}, which is half of a character", hint="write the whole character"
        ) from None


_LEAVES = frozenset({str, int, float, bool, type(None)})


class _Plain:
    """Values as JSON has them: keys and binary data are text, and aliases do not lead back to themselves.

    What an alias stands for is converted once and counted each time, so that a few lines of aliases of
    aliases, which would take hours to walk, are refused at once.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._known: dict[int, tuple[Any, int, Any]] = {}  # the value too: its id stays its own

    def __call__(self, value: Any) -> Any:
        plain, size = self._convert(value, 0)
        if size > _MAX_ALIASED:
            self._refuse("too large")
        return plain

    def _refuse(self, what: str) -> NoReturn:
        raise ConfigurationError(
            f"{self._source}: is {what} when its aliases are followed",
            hint="write out what the aliases (*name) stand for",
        )

    def _convert(self, value: Any, depth: int) -> tuple[Any, int]:
        if depth > _MAX_DEPTH:
            self._refuse(f"more than {_MAX_DEPTH} levels deep")
        if not isinstance(value, Mapping | list | tuple | set):
            return (value.decode("utf-8", "replace") if isinstance(value, bytes) else value), 1
        known = self._known.get(id(value))
        if known is not None:
            return known[:2]
        size = 1
        plain: Any
        if isinstance(value, Mapping):
            plain = {}
            for key, item in value.items():
                plain[_key(key)], count = (
                    (item, 1) if type(item) in _LEAVES else self._convert(item, depth + 1)
                )
                size += count
        else:
            plain = []
            for item in value:
                one, count = (item, 1) if type(item) in _LEAVES else self._convert(item, depth + 1)
                plain.append(one)
                size += count
        self._known[id(value)] = plain, size, value
        return plain, size


def _key(key: Any) -> str:
    if isinstance(key, str):
        return key
    if isinstance(key, bool):
        return "true" if key else "false"
    return "null" if key is None else str(key)


def _substitute(text: str, source: str, env: Mapping[str, str], builder: Builder) -> str:
    def one(found: re.Match[str]) -> str:
        name, assign, default = found[1].partition(":=")
        name = name.strip()
        if not re.fullmatch(r"\w+", name):
            return found[0]
        if name in env:
            return env[name]
        if assign:
            return default.strip()
        line = text.count("\n", 0, found.start()) + 1
        builder.error(
            Origin(source, f"line {line}"),
            f"${{{{{name}}}}} has no value and no default: APISIX would refuse the whole file",
            f"set the environment variable {name}",
        )
        return found[0]

    return _VARIABLE.sub(one, text) if "${{" in text else text


def _json_documents(text: str) -> list[Any] | None:
    stripped = text.lstrip()
    if stripped.startswith("/"):
        return _printed_by_etcdctl(stripped)
    if not stripped.startswith(("{", "[")):
        return None
    try:
        return [json.loads(stripped, object_pairs_hook=_once)]
    except ValueError:
        pass
    except RecursionError:
        return None
    lines = [line for line in stripped.splitlines() if line.strip()]
    try:
        return [
            json.loads(line, object_pairs_hook=_once) for line in lines
        ]  # one object a line, as etcdctl and jq -c write
    except (ValueError, RecursionError):
        return None


def _printed_by_etcdctl(text: str) -> list[Any] | None:
    """Read what ``etcdctl get --prefix`` prints by default: lines of a key and its value in turn."""
    lines = [line for line in text.splitlines() if line.strip()]
    keys, values = lines[::2], lines[1::2]
    if len(keys) != len(values) or not all(key.startswith("/") for key in keys):
        return None
    return [dict(zip(keys, values, strict=True))]


def _yaml_documents(text: str, source: str, builder: Builder, said: list[str]) -> list[Any]:
    try:
        return list(yaml.load_all(text, Loader=_Loader))
    except (yaml.YAMLError, ValueError, RecursionError, TypeError) as first:
        if "{{" in text or "{%" in text:
            return _templated(text, source, builder, said, first)
        raise _not_yaml(source, first) from None


def _templated(text: str, source: str, builder: Builder, said: list[str], first: Exception) -> list[Any]:
    """Read a template as far as it is YAML: each expression in a value becomes a mark, and is put in *said*.

    Lines of nothing but expressions are left out. What they decide (whether something exists, and how
    often) or add is not known, and stands in ``unfilled``.
    """

    def mark(found: re.Match[str]) -> str:
        said.append(found[0])
        return f"\ue000{len(said) - 1}\ue001"  # a text that YAML takes wherever a value can be

    lines = text.split("\n")
    alone = structural_lines(text)
    for number in alone:
        if decides(lines[number]):
            builder.unfilled(Origin(source, f"line {number + 1}"), lines[number].strip(), exists=False)
            builder.lose(
                Origin(source, f"line {number + 1}"),
                Path(source).name,
                f"the file is a template, and {lines[number].strip()} decides what is in it",
                REMEDY,
            )
            break
    for number in alone:
        lines[number] = ""
    plain = EXPRESSION.sub(mark, "\n".join(lines))
    try:
        documents = list(yaml.load_all(plain, Loader=_Loader))
    except (yaml.YAMLError, ValueError, RecursionError, TypeError):
        raise _not_yaml(source, first, hint="render the template first (helm template, jinja)") from None
    builder.error(Origin(source, ""), "the file is a template (Helm or Jinja) that was not rendered", REMEDY)
    return documents


_MARK = re.compile("\ue000(\\d+)\ue001")


def _restored(value: Any, said: list[str]) -> Any:
    """Put the expressions back where their marks are."""
    if isinstance(value, Mapping):
        return {_restored(key, said): _restored(item, said) for key, item in value.items()}
    if isinstance(value, list):
        return [_restored(item, said) for item in value]
    if isinstance(value, str):
        return _MARK.sub(lambda found: said[int(found[1])], value)
    return value


def _not_yaml(source: str, error: Exception, *, hint: str | None = None) -> ConfigurationError:
    mark = getattr(error, "problem_mark", None)
    where = f" line {mark.line + 1}, column {mark.column + 1}:" if mark else ""
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    if "stands twice" in problem:
        return ConfigurationError(f"{source}:{where} {problem}", hint=hint)
    return ConfigurationError(f"{source}:{where} is neither JSON nor YAML: {problem}", hint=hint)


_PARTS = re.compile(r"[.\[\]]+")


def _leftovers(value: Any, source: str, path: str, builder: Builder, depth: int = 0) -> None:
    """Report text that was meant to be replaced before APISIX reads it."""
    if depth > 64:
        return
    if isinstance(value, Mapping):
        for key, item in value.items():
            _leftovers(item, source, f"{path}.{key}".lstrip("."), builder, depth + 1)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            _leftovers(item, source, f"{path}[{i}]", builder, depth + 1)
    elif isinstance(value, str) and "{" in value:
        found = gap_in(value, tuple(_PARTS.split(path)))
        if not found or found.startswith("${{"):
            return  # that one has been named, with its line
        builder.warn(
            Origin(source, path),
            f"{found} looks like a placeholder that was never replaced; APISIX would use it as text",
            "fill it in before the configuration is read",
        )
