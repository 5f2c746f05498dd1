"""The gRPC service of the lab: ``identity.v1.Identity/GetUser`` with server reflection."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import grpc
from grpc_reflection.v1alpha import reflection

from gateshift.errors import LabError
from gateshift.lab.backends.faults import Faults, origin
from gateshift.lab.backends.messages import POOL, SERVICE, GetUserRequest, User

__all__ = ["serve"]

_HANG = 3600.0


async def serve(service: str, faults: Faults, stack: AsyncExitStack, port: int = 0) -> int:
    """Serve until *stack* closes; return the port."""

    async def get_user(request: Any, context: Any) -> Any:
        gateway = origin(key for key, _ in context.invocation_metadata())
        account = faults.account(service, gateway)
        account.requests += 1
        fault = faults.find(service, gateway)
        if fault is not None:
            if fault.latency_ms:
                await asyncio.sleep(fault.latency_ms / 1000)
            if fault.hang:
                account.hung += 1
                await asyncio.sleep(_HANG)
            if fault.refuse:
                account.cut += 1
                await context.abort(grpc.StatusCode.UNAVAILABLE, "cut by the fault API")
            if faults.strikes(fault):
                account.errors += 1
                await context.abort(grpc.StatusCode.UNAVAILABLE, "fault injected")
        return User(id=request.id, name="Ada", email="ada@voiceassistant.com", gateway=str(gateway))

    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                SERVICE,
                {
                    "GetUser": grpc.unary_unary_rpc_method_handler(
                        get_user,
                        request_deserializer=GetUserRequest.FromString,
                        response_serializer=lambda user: user.SerializeToString(),
                    )
                },
            ),
        )
    )
    reflection.enable_server_reflection((SERVICE, reflection.SERVICE_NAME), server, POOL)
    try:
        bound = server.add_insecure_port(f"127.0.0.1:{port}")
    except RuntimeError as error:
        raise LabError(f"cannot listen on 127.0.0.1:{port} for gRPC: {error}") from None
    await server.start()
    stack.push_async_callback(server.stop, 0.2)
    return int(bound)
