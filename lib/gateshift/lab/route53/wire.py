"""Route 53's XML: change batches in, results and errors out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from xml.sax.saxutils import escape

from defusedxml import ElementTree  # type: ignore[import-untyped]  # no stubs in the lock file

__all__ = ["Change", "Refused", "batch", "change_info", "error"]

_NAMESPACE = "https://route53.amazonaws.com/doc/2013-04-01/"
_NUMBERS = {"Weight", "TTL"}
_FLAGS = {"EvaluateTargetHealth", "MultiValueAnswer"}


class Refused(Exception):  # noqa: N818 - named after what the service does
    """The service refuses the request; carries what goes into the error document."""

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status


@dataclass(frozen=True, slots=True)
class Change:
    """One change of a batch: the record set in boto3's field names, names with a final dot, lower case."""

    action: str
    record: Mapping[str, Any]

    def __str__(self) -> str:
        identifier = self.record.get("SetIdentifier", "null")
        return (
            f"[Action={self.action}, Name={self.record.get('Name')}, "
            f"Type={self.record.get('Type')}, SetIdentifier={identifier}]"
        )


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]


def _dotted(name: str) -> str:
    return name.lower().rstrip(".") + "."


def _value(element: Any) -> Any:
    tag = _local(element.tag)
    if tag == "ResourceRecords":
        return [one.findtext("{*}Value", "") for one in element]
    if tag == "AliasTarget":
        inner = {_local(child.tag): _value(child) for child in element}
        inner["DNSName"] = _dotted(str(inner.get("DNSName", "")))
        return inner
    if len(element):
        return {_local(child.tag): _value(child) for child in element}
    text = element.text or ""
    if tag in _NUMBERS:
        try:
            return int(text)
        except ValueError:
            raise Refused(
                "InvalidInput",
                f"Invalid XML ; cvc-datatype-valid.1.2.1: '{text}' is not a valid value for 'integer'.",
            ) from None
    if tag in _FLAGS:
        return text == "true"
    return _dotted(text) if tag == "Name" else text


def batch(body: bytes) -> tuple[Change, ...]:
    """Read a ChangeResourceRecordSetsRequest; raises :class:`Refused` for XML that is none."""
    try:
        root = ElementTree.fromstring(body)
    except ElementTree.ParseError as problem:
        raise Refused("InvalidInput", f"Invalid XML ; {problem}") from None
    changes = []
    for element in root.iterfind("{*}ChangeBatch/{*}Changes/{*}Change"):
        record_set = element.find("{*}ResourceRecordSet")
        record = {_local(child.tag): _value(child) for child in record_set} if record_set is not None else {}
        changes.append(Change(element.findtext("{*}Action", ""), record))
    return tuple(changes)


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def change_info(operation: str, change_id: str, status: str, submitted: float) -> bytes:
    """The answer to ChangeResourceRecordSets and GetChange."""
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<{operation}Response xmlns="{_NAMESPACE}"><ChangeInfo>'
        f"<Id>/change/{change_id}</Id><Status>{status}</Status>"
        f"<SubmittedAt>{_time(submitted)}</SubmittedAt></ChangeInfo></{operation}Response>"
    ).encode()


def error(code: str, messages: str | Sequence[str], request_id: str) -> bytes:
    """An error document."""
    message = messages if isinstance(messages, str) else f"[{', '.join(messages)}]"
    return (
        f'<?xml version="1.0"?>\n<ErrorResponse xmlns="{_NAMESPACE}"><Error><Type>Sender</Type>'
        f"<Code>{escape(code)}</Code><Message>{escape(message)}</Message></Error>"
        f"<RequestId>{request_id}</RequestId></ErrorResponse>"
    ).encode()
