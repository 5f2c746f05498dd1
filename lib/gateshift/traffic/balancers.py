"""Room for one more load balancer in an AWS account: what the Elastic Load Balancing API says."""

from __future__ import annotations

import re
from dataclasses import dataclass

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from gateshift.errors import TrafficError

__all__ = ["Room", "network_room", "region_of"]

# NLB: <name>.elb.<region>.amazonaws.com; Classic and ALB: <name>.<region>.elb.amazonaws.com
_NAME = re.compile(r"\.(?:elb\.(?P<nlb>[a-z0-9-]+)|(?P<other>[a-z0-9-]+)\.elb)\.amazonaws\.com(?:\.cn)?$")
_LIMIT = "network-load-balancers"


@dataclass(frozen=True, slots=True)
class Room:
    """How many load balancers of one kind a region has, and how many it may have."""

    region: str
    used: int
    allowed: int


def region_of(name: str) -> str:
    """Return the AWS region in a load balancer's DNS name; empty for a name that is not AWS's."""
    found = _NAME.search(name.rstrip(".").lower())
    return (found["nlb"] or found["other"]) if found else ""


def network_room(region: str) -> Room:
    """Ask how many network load balancers *region* has and may have.

    By ``DescribeAccountLimits`` and ``DescribeLoadBalancers`` of Elastic Load Balancing v2. Raises
    :class:`TrafficError` when they are not permitted or give no answer.
    """
    config = Config(region_name=region, connect_timeout=4, read_timeout=8, retries={"total_max_attempts": 2})
    try:
        client = boto3.client("elbv2", config=config)
        limits = {
            str(one.get("Name")): int(one.get("Max") or 0)
            for one in client.describe_account_limits(PageSize=400)["Limits"]
        }
        pages = client.get_paginator("describe_load_balancers").paginate()
        used = sum(b.get("Type") == "network" for page in pages for b in page["LoadBalancers"])
    except (BotoCoreError, ClientError) as error:
        raise TrafficError(
            f"the load balancers of {region} cannot be counted: {error}",
            hint="allow elasticloadbalancing:DescribeAccountLimits and DescribeLoadBalancers, "
            "or compare the quota by hand",
        ) from None
    if _LIMIT not in limits:
        raise TrafficError(f"{region} tells no limit of network load balancers")
    return Room(region, used, limits[_LIMIT])
