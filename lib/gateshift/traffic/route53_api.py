"""The Route 53 API as gateshift needs it: retries, throttling, INSYNC, and errors a person can act on."""

from __future__ import annotations

import ipaddress
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    NoCredentialsError,
    ReadTimeoutError,
)

from gateshift.errors import TrafficError
from gateshift.params.model import Route53Params

if TYPE_CHECKING:
    from mypy_boto3_route53.client import Route53Client
    from mypy_boto3_route53.type_defs import ChangeTypeDef

__all__ = ["Conflict", "Missing", "Route53Api"]

# Route 53 serves five requests a second for a whole account, so others' calls throttle ours too.
_AGAIN = {
    "Throttling",
    "ThrottlingException",
    "ThrottledException",
    "TooManyRequestsException",
    "RequestLimitExceeded",
    "PriorRequestNotComplete",
    "ServiceUnavailable",
    "InternalError",
    "InternalFailure",
}
_CONFLICT = {"InvalidChangeBatch", "PriorConditionNotMet", "ConcurrentModification"}
_DENIED = {"AccessDenied", "AccessDeniedException", "UnauthorizedOperation"}
_CREDENTIALS = {
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidClientTokenId",
    "UnrecognizedClientException",
    "SignatureDoesNotMatch",
}
_NETWORK = (
    EndpointConnectionError,
    ConnectTimeoutError,
    ReadTimeoutError,
    ConnectionClosedError,
    HTTPClientError,
)


class Conflict(Exception):  # noqa: N818 - never leaves the room; it asks for a second look, not for help
    """The batch was refused because reality is not what it says, or its first answer was lost."""


class Missing(Exception):  # noqa: N818 - never leaves the room
    """The change that was asked for does not exist."""


class Route53Api:
    """A thin, typed face of one hosted zone's API. Durations in seconds."""

    def __init__(
        self,
        params: Route53Params,
        *,
        client: Route53Client | None,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
        retry_for: float = 90.0,
    ) -> None:
        self._params = params
        self._client = client or _make_client(params)
        self._clock = clock
        self._sleep = sleep
        self._retry_for = retry_for

    def _call(self, what: str, call: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
        """Run *call*, again while throttled or cut off, for at most ``retry_for`` seconds."""
        started, pause = self._clock(), 0.25
        while True:
            try:
                return call()
            except ClientError as error:
                code = str(error.response.get("Error", {}).get("Code", ""))
                status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
                if code in _CONFLICT:
                    raise Conflict(_message(error)) from None
                if code == "NoSuchChange":
                    raise Missing(_message(error)) from None
                if code not in _AGAIN and status != 429 and status < 500:
                    raise _explained(what, code, error) from None
                problem = f"Route 53 kept answering {code or status}"
                hint = "others use up the account's 5 requests a second, or AWS has an incident; run it again"
            except _NETWORK as error:
                problem = f"Route 53 cannot be reached ({type(error).__name__})"
                hint = "check the network, proxy and traffic.route53.endpoint_url, then run it again"
            except NoCredentialsError:
                raise TrafficError(
                    f"{what}: there are no AWS credentials",
                    hint="give the job an IAM role or set AWS_PROFILE; docs/dns.md has the policy it needs",
                ) from None
            except BotoCoreError as error:
                raise TrafficError(
                    f"{what}: {error}", hint="check the AWS configuration of this environment"
                ) from None
            waited = self._clock() - started
            if waited + pause > self._retry_for:
                raise TrafficError(f"{what}: {problem} for {waited:.0f} s", hint=hint)
            self._sleep(pause)
            pause = min(pause * 2, 8.0)

    def find_zone(self) -> str:
        """Return the id of the one hosted zone that params mean; refuse none and more than one."""
        wanted = self._params
        kind = "private" if wanted.private else "public"
        if wanted.zone_id:
            return self._check_zone(wanted.zone_id)
        got = self._call(
            f"looking for hosted zone {wanted.zone}",
            lambda: dict(self._client.list_hosted_zones_by_name(DNSName=wanted.zone, MaxItems="100")),
        )
        named = [z for z in got["HostedZones"] if _same(z["Name"], wanted.zone)]
        zones = [z for z in named if bool(z.get("Config", {}).get("PrivateZone")) == wanted.private]
        if len(zones) == 1:
            return _bare(zones[0]["Id"])
        ids = ", ".join(_bare(z["Id"]) for z in zones)
        if zones:
            raise TrafficError(
                f"there are {len(zones)} {kind} hosted zones named {wanted.zone}: {ids}",
                hint="set traffic.route53.zone_id to the one that is delegated to (`dig NS`)",
            )
        other = f"; there is one, but it is {'public' if wanted.private else 'private'}" if named else ""
        raise TrafficError(
            f"there is no {kind} hosted zone named {wanted.zone}{other}",
            hint="check traffic.route53.zone and private, and that these are the right account's credentials",
        )

    def _check_zone(self, zone_id: str) -> str:
        got = self._call(
            f"reading hosted zone {zone_id}", lambda: dict(self._client.get_hosted_zone(Id=zone_id))
        )["HostedZone"]
        private = bool(got.get("Config", {}).get("PrivateZone"))
        if not _same(got["Name"], self._params.zone) or private != self._params.private:
            raise TrafficError(
                f"hosted zone {zone_id} is {'private' if private else 'public'} {got['Name'].rstrip('.')}, "
                f"not {'private' if self._params.private else 'public'} {self._params.zone}",
                hint="correct traffic.route53.zone_id, zone or private",
            )
        return _bare(got["Id"])

    def records(self, zone_id: str, host: str | None) -> Iterator[Mapping[str, Any]]:
        """Yield all record sets of exactly *host* (they are listed together); None: of the whole zone."""
        if host is not None and not (host == self._params.zone or host.endswith("." + self._params.zone)):
            raise TrafficError(
                f"{host} is not in hosted zone {self._params.zone}",
                hint="correct traffic.route53.hosts or zone",
            )
        start: dict[str, str] = {"StartRecordName": host} if host is not None else {}
        while True:
            now = dict(start)
            got = self._call(
                f"reading the records of {host or self._params.zone}",
                lambda now=now: dict(  # type: ignore[misc]
                    self._client.list_resource_record_sets(HostedZoneId=zone_id, MaxItems="100", **now)
                ),
            )
            for record in got["ResourceRecordSets"]:
                if host is not None and not _same(record["Name"].replace("\\052", "*"), host):
                    return
                yield record
            if not got.get("IsTruncated"):
                return
            start = {"StartRecordName": got["NextRecordName"], "StartRecordType": got["NextRecordType"]}
            if got.get("NextRecordIdentifier"):
                start["StartRecordIdentifier"] = got["NextRecordIdentifier"]

    def change(self, zone_id: str, changes: Sequence[Mapping[str, Any]], comment: str) -> str:
        """Submit one atomic batch; return its change id. Raises :class:`Conflict` when it does not fit."""
        got = self._call(
            "changing the records",
            lambda: dict(
                self._client.change_resource_record_sets(
                    HostedZoneId=zone_id,
                    ChangeBatch={"Comment": comment, "Changes": cast("list[ChangeTypeDef]", changes)},
                )
            ),
        )
        return _bare(got["ChangeInfo"]["Id"])

    def check_get_change(self) -> None:
        """Raise unless a change's status may be read: an unknown one is asked for."""
        try:
            self._call("reading a change", lambda: dict(self._client.get_change(Id="C0GATESHIFTACCESSCHECK")))
        except Missing:
            return

    def wait_insync(self, change_id: str, since: float, timeout: float) -> None:
        """Poll until *change_id* is INSYNC; refuse after *timeout* seconds counted from *since*."""
        pause = 0.5
        while True:
            try:
                got = self._call(
                    f"reading change {change_id}", lambda: dict(self._client.get_change(Id=change_id))
                )
            except Missing:
                raise TrafficError(
                    f"Route 53 does not know change {change_id} any more",
                    hint="read the weights: `gateshift shift`; then run the same notebook again",
                ) from None
            if got["ChangeInfo"]["Status"] == "INSYNC":
                return
            waited = self._clock() - since
            if waited + pause > timeout:
                raise TrafficError(
                    f"Route 53 accepted change {change_id} {waited:.0f} s ago but it is not yet on all its "
                    f"servers (status {got['ChangeInfo']['Status']}, limit {timeout:.0f} s)",
                    hint="the weights are set and will arrive; see the AWS health page, then run the same "
                    "notebook again: it goes on from here",
                )
            self._sleep(pause)
            pause = min(pause * 1.5, 4.0)


def _make_client(params: Route53Params) -> Route53Client:
    # One attempt per call: our own loop retries, so that its waiting is bounded and visible.
    config = Config(
        region_name=params.region,
        connect_timeout=5,
        read_timeout=15,
        retries={"total_max_attempts": 1, "mode": "standard"},
    )
    try:
        if params.endpoint_url and _loopback(params.endpoint_url) and "AWS_ACCESS_KEY_ID" not in os.environ:
            # The rehearsal's Route 53 checks no signature; real credentials must not be needed for it.
            return boto3.client(
                "route53",
                endpoint_url=params.endpoint_url,
                config=config,
                aws_access_key_id="rehearsal",
                aws_secret_access_key="rehearsal",  # noqa: S106 - not a secret, see above
            )
        return boto3.client("route53", endpoint_url=params.endpoint_url, config=config)
    except BotoCoreError as error:
        raise TrafficError(
            f"the AWS client cannot be made: {error}",
            hint="check the AWS configuration of this environment",
        ) from None


def _loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _same(name: str, other: str) -> bool:
    return name.rstrip(".").lower() == other.rstrip(".").lower()


def _bare(identifier: str) -> str:
    return identifier.rsplit("/", 1)[-1]


def _message(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Message", error)).strip()


def _explained(what: str, code: str, error: ClientError) -> TrafficError:
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if code in _DENIED or (not code and status == 403):
        return TrafficError(
            f"{what}: AWS denies access ({_message(error)})",
            hint="attach the least-privilege policy of docs/dns.md to the role or user that runs this",
        )
    if code in _CREDENTIALS:
        return TrafficError(
            f"{what}: AWS does not accept the credentials ({code})",
            hint="renew them (aws sso login, or the job's role), then run it again",
        )
    if code == "NoSuchHostedZone":
        return TrafficError(
            f"{what}: the hosted zone does not exist (any more)",
            hint="check traffic.route53.zone and zone_id, and that these are the right account's credentials",
        )
    return TrafficError(f"{what}: Route 53 refused: {code}: {_message(error)}")
