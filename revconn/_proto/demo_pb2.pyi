from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class HelloRequest(_message.Message):
    __slots__ = ("name", "padding")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PADDING_FIELD_NUMBER: _ClassVar[int]
    name: str
    padding: bytes
    def __init__(self, name: _Optional[str] = ..., padding: _Optional[bytes] = ...) -> None: ...

class HelloReply(_message.Message):
    __slots__ = ("greeting", "padding", "connection_id")
    GREETING_FIELD_NUMBER: _ClassVar[int]
    PADDING_FIELD_NUMBER: _ClassVar[int]
    CONNECTION_ID_FIELD_NUMBER: _ClassVar[int]
    greeting: str
    padding: bytes
    connection_id: str
    def __init__(self, greeting: _Optional[str] = ..., padding: _Optional[bytes] = ..., connection_id: _Optional[str] = ...) -> None: ...
