"""``identity.v1`` built at run time: no generated code to keep in step with the protobuf version.

The text form is ``identity.proto`` beside this file; a test keeps the two equal.
"""

from __future__ import annotations

from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

__all__ = ["FILE", "METHOD", "POOL", "SERVICE", "GetUserRequest", "User"]

SERVICE: Final = "identity.v1.Identity"
METHOD: Final = f"/{SERVICE}/GetUser"


def _message(name: str, *fields: str) -> descriptor_pb2.DescriptorProto:
    message = descriptor_pb2.DescriptorProto(name=name)
    for number, field in enumerate(fields, start=1):
        message.field.add(
            name=field,
            number=number,
            type=descriptor_pb2.FieldDescriptorProto.TYPE_STRING,
            label=descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL,
            json_name=field,
        )
    return message


def _file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(
        name="identity/v1/identity.proto", package="identity.v1", syntax="proto3"
    )
    file.message_type.append(_message("GetUserRequest", "id"))
    file.message_type.append(_message("User", "id", "name", "email", "gateway"))
    file.service.add(name="Identity").method.add(
        name="GetUser", input_type=".identity.v1.GetUserRequest", output_type=".identity.v1.User"
    )
    return file


FILE: Final = _file()
POOL: Final = descriptor_pool.DescriptorPool()
POOL.Add(FILE)

GetUserRequest: Final[Any] = message_factory.GetMessageClass(
    POOL.FindMessageTypeByName("identity.v1.GetUserRequest")
)
User: Final[Any] = message_factory.GetMessageClass(POOL.FindMessageTypeByName("identity.v1.User"))
