from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ConnectionMessage(_message.Message):
    __slots__ = ("register", "request", "response", "heartbeat", "status", "event", "subscription", "cancel", "stream")
    REGISTER_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    SUBSCRIPTION_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    register: ConnectionRegister
    request: ForwardRequest
    response: ForwardResponse
    heartbeat: Heartbeat
    status: ConnectionStatus
    event: EventMessage
    subscription: SubscriptionRequest
    cancel: CancelRequest
    stream: StreamFrame
    def __init__(self, register: _Optional[_Union[ConnectionRegister, _Mapping]] = ..., request: _Optional[_Union[ForwardRequest, _Mapping]] = ..., response: _Optional[_Union[ForwardResponse, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., status: _Optional[_Union[ConnectionStatus, _Mapping]] = ..., event: _Optional[_Union[EventMessage, _Mapping]] = ..., subscription: _Optional[_Union[SubscriptionRequest, _Mapping]] = ..., cancel: _Optional[_Union[CancelRequest, _Mapping]] = ..., stream: _Optional[_Union[StreamFrame, _Mapping]] = ...) -> None: ...

class ConnectionRegister(_message.Message):
    __slots__ = ("api_key", "services", "connection_id", "streaming_methods", "mixed_services")
    API_KEY_FIELD_NUMBER: _ClassVar[int]
    SERVICES_FIELD_NUMBER: _ClassVar[int]
    CONNECTION_ID_FIELD_NUMBER: _ClassVar[int]
    STREAMING_METHODS_FIELD_NUMBER: _ClassVar[int]
    MIXED_SERVICES_FIELD_NUMBER: _ClassVar[int]
    api_key: str
    services: _containers.RepeatedScalarFieldContainer[str]
    connection_id: str
    streaming_methods: _containers.RepeatedScalarFieldContainer[str]
    mixed_services: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, api_key: _Optional[str] = ..., services: _Optional[_Iterable[str]] = ..., connection_id: _Optional[str] = ..., streaming_methods: _Optional[_Iterable[str]] = ..., mixed_services: _Optional[_Iterable[str]] = ...) -> None: ...

class ForwardRequest(_message.Message):
    __slots__ = ("request_id", "method_path", "headers", "payload", "timeout_seconds", "streaming_info", "metadata", "peer")
    class HeadersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    METHOD_PATH_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    STREAMING_INFO_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    method_path: str
    headers: _containers.ScalarMap[str, str]
    payload: bytes
    timeout_seconds: int
    streaming_info: StreamingInfo
    metadata: _containers.RepeatedCompositeFieldContainer[MetadataEntry]
    peer: str
    def __init__(self, request_id: _Optional[str] = ..., method_path: _Optional[str] = ..., headers: _Optional[_Mapping[str, str]] = ..., payload: _Optional[bytes] = ..., timeout_seconds: _Optional[int] = ..., streaming_info: _Optional[_Union[StreamingInfo, _Mapping]] = ..., metadata: _Optional[_Iterable[_Union[MetadataEntry, _Mapping]]] = ..., peer: _Optional[str] = ...) -> None: ...

class ForwardResponse(_message.Message):
    __slots__ = ("request_id", "status_code", "headers", "payload", "error_message", "streaming_info", "response_stream_info", "initial_metadata", "trailing_metadata")
    class HeadersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_CODE_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    ERROR_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    STREAMING_INFO_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_STREAM_INFO_FIELD_NUMBER: _ClassVar[int]
    INITIAL_METADATA_FIELD_NUMBER: _ClassVar[int]
    TRAILING_METADATA_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    status_code: int
    headers: _containers.ScalarMap[str, str]
    payload: bytes
    error_message: str
    streaming_info: StreamingInfo
    response_stream_info: ResponseStreamInfo
    initial_metadata: _containers.RepeatedCompositeFieldContainer[MetadataEntry]
    trailing_metadata: _containers.RepeatedCompositeFieldContainer[MetadataEntry]
    def __init__(self, request_id: _Optional[str] = ..., status_code: _Optional[int] = ..., headers: _Optional[_Mapping[str, str]] = ..., payload: _Optional[bytes] = ..., error_message: _Optional[str] = ..., streaming_info: _Optional[_Union[StreamingInfo, _Mapping]] = ..., response_stream_info: _Optional[_Union[ResponseStreamInfo, _Mapping]] = ..., initial_metadata: _Optional[_Iterable[_Union[MetadataEntry, _Mapping]]] = ..., trailing_metadata: _Optional[_Iterable[_Union[MetadataEntry, _Mapping]]] = ...) -> None: ...

class MetadataEntry(_message.Message):
    __slots__ = ("key", "value")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    key: str
    value: bytes
    def __init__(self, key: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...

class StreamingInfo(_message.Message):
    __slots__ = ("stream_type", "is_stream_end", "sequence_number", "chunk_size")
    class StreamType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        UNARY: _ClassVar[StreamingInfo.StreamType]
        CLIENT_STREAMING: _ClassVar[StreamingInfo.StreamType]
        SERVER_STREAMING: _ClassVar[StreamingInfo.StreamType]
        BIDIRECTIONAL_STREAMING: _ClassVar[StreamingInfo.StreamType]
    UNARY: StreamingInfo.StreamType
    CLIENT_STREAMING: StreamingInfo.StreamType
    SERVER_STREAMING: StreamingInfo.StreamType
    BIDIRECTIONAL_STREAMING: StreamingInfo.StreamType
    STREAM_TYPE_FIELD_NUMBER: _ClassVar[int]
    IS_STREAM_END_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_NUMBER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_SIZE_FIELD_NUMBER: _ClassVar[int]
    stream_type: StreamingInfo.StreamType
    is_stream_end: bool
    sequence_number: int
    chunk_size: int
    def __init__(self, stream_type: _Optional[_Union[StreamingInfo.StreamType, str]] = ..., is_stream_end: bool = ..., sequence_number: _Optional[int] = ..., chunk_size: _Optional[int] = ...) -> None: ...

class ResponseStreamInfo(_message.Message):
    __slots__ = ("is_streamed", "chunk_index", "is_final_chunk", "chunk_size", "total_size")
    IS_STREAMED_FIELD_NUMBER: _ClassVar[int]
    CHUNK_INDEX_FIELD_NUMBER: _ClassVar[int]
    IS_FINAL_CHUNK_FIELD_NUMBER: _ClassVar[int]
    CHUNK_SIZE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_SIZE_FIELD_NUMBER: _ClassVar[int]
    is_streamed: bool
    chunk_index: int
    is_final_chunk: bool
    chunk_size: int
    total_size: int
    def __init__(self, is_streamed: bool = ..., chunk_index: _Optional[int] = ..., is_final_chunk: bool = ..., chunk_size: _Optional[int] = ..., total_size: _Optional[int] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("timestamp", "connection_id")
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    CONNECTION_ID_FIELD_NUMBER: _ClassVar[int]
    timestamp: int
    connection_id: str
    def __init__(self, timestamp: _Optional[int] = ..., connection_id: _Optional[str] = ...) -> None: ...

class ConnectionStatus(_message.Message):
    __slots__ = ("connection_id", "status", "message")
    class StatusType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        CONNECTED: _ClassVar[ConnectionStatus.StatusType]
        DISCONNECTED: _ClassVar[ConnectionStatus.StatusType]
        ERROR: _ClassVar[ConnectionStatus.StatusType]
    CONNECTED: ConnectionStatus.StatusType
    DISCONNECTED: ConnectionStatus.StatusType
    ERROR: ConnectionStatus.StatusType
    CONNECTION_ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    connection_id: str
    status: ConnectionStatus.StatusType
    message: str
    def __init__(self, connection_id: _Optional[str] = ..., status: _Optional[_Union[ConnectionStatus.StatusType, str]] = ..., message: _Optional[str] = ...) -> None: ...

class EventMessage(_message.Message):
    __slots__ = ("event_id", "event_type", "publisher_id", "payload", "timestamp", "metadata")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    EVENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    PUBLISHER_ID_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    event_id: str
    event_type: str
    publisher_id: str
    payload: bytes
    timestamp: int
    metadata: _containers.ScalarMap[str, str]
    def __init__(self, event_id: _Optional[str] = ..., event_type: _Optional[str] = ..., publisher_id: _Optional[str] = ..., payload: _Optional[bytes] = ..., timestamp: _Optional[int] = ..., metadata: _Optional[_Mapping[str, str]] = ...) -> None: ...

class SubscriptionRequest(_message.Message):
    __slots__ = ("action", "event_types", "subscriber_id")
    class Action(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        SUBSCRIBE: _ClassVar[SubscriptionRequest.Action]
        UNSUBSCRIBE: _ClassVar[SubscriptionRequest.Action]
    SUBSCRIBE: SubscriptionRequest.Action
    UNSUBSCRIBE: SubscriptionRequest.Action
    ACTION_FIELD_NUMBER: _ClassVar[int]
    EVENT_TYPES_FIELD_NUMBER: _ClassVar[int]
    SUBSCRIBER_ID_FIELD_NUMBER: _ClassVar[int]
    action: SubscriptionRequest.Action
    event_types: _containers.RepeatedScalarFieldContainer[str]
    subscriber_id: str
    def __init__(self, action: _Optional[_Union[SubscriptionRequest.Action, str]] = ..., event_types: _Optional[_Iterable[str]] = ..., subscriber_id: _Optional[str] = ...) -> None: ...

class CancelRequest(_message.Message):
    __slots__ = ("request_id", "reason")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    reason: str
    def __init__(self, request_id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class StreamFrame(_message.Message):
    __slots__ = ("stream_id", "opening", "initial_metadata", "messages", "piece", "half_close", "status", "cancel", "credit")
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    OPENING_FIELD_NUMBER: _ClassVar[int]
    INITIAL_METADATA_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    PIECE_FIELD_NUMBER: _ClassVar[int]
    HALF_CLOSE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    stream_id: int
    opening: StreamOpening
    initial_metadata: StreamMetadata
    messages: _containers.RepeatedScalarFieldContainer[bytes]
    piece: StreamPiece
    half_close: bool
    status: StreamStatus
    cancel: StreamCancel
    credit: int
    def __init__(self, stream_id: _Optional[int] = ..., opening: _Optional[_Union[StreamOpening, _Mapping]] = ..., initial_metadata: _Optional[_Union[StreamMetadata, _Mapping]] = ..., messages: _Optional[_Iterable[bytes]] = ..., piece: _Optional[_Union[StreamPiece, _Mapping]] = ..., half_close: bool = ..., status: _Optional[_Union[StreamStatus, _Mapping]] = ..., cancel: _Optional[_Union[StreamCancel, _Mapping]] = ..., credit: _Optional[int] = ...) -> None: ...

class StreamOpening(_message.Message):
    __slots__ = ("method_path", "metadata", "peer", "timeout_microseconds")
    METHOD_PATH_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MICROSECONDS_FIELD_NUMBER: _ClassVar[int]
    method_path: str
    metadata: _containers.RepeatedCompositeFieldContainer[MetadataEntry]
    peer: str
    timeout_microseconds: int
    def __init__(self, method_path: _Optional[str] = ..., metadata: _Optional[_Iterable[_Union[MetadataEntry, _Mapping]]] = ..., peer: _Optional[str] = ..., timeout_microseconds: _Optional[int] = ...) -> None: ...

class StreamMetadata(_message.Message):
    __slots__ = ("entries",)
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[MetadataEntry]
    def __init__(self, entries: _Optional[_Iterable[_Union[MetadataEntry, _Mapping]]] = ...) -> None: ...

class StreamPiece(_message.Message):
    __slots__ = ("data", "missing")
    DATA_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    missing: int
    def __init__(self, data: _Optional[bytes] = ..., missing: _Optional[int] = ...) -> None: ...

class StreamStatus(_message.Message):
    __slots__ = ("code", "message", "trailing_metadata")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    TRAILING_METADATA_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    trailing_metadata: _containers.RepeatedCompositeFieldContainer[MetadataEntry]
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ..., trailing_metadata: _Optional[_Iterable[_Union[MetadataEntry, _Mapping]]] = ...) -> None: ...

class StreamCancel(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class RegisterRequest(_message.Message):
    __slots__ = ("api_key", "address", "services")
    API_KEY_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    SERVICES_FIELD_NUMBER: _ClassVar[int]
    api_key: str
    address: str
    services: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, api_key: _Optional[str] = ..., address: _Optional[str] = ..., services: _Optional[_Iterable[str]] = ...) -> None: ...

class RegisterResponse(_message.Message):
    __slots__ = ("success", "message")
    SUCCESS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    success: bool
    message: str
    def __init__(self, success: bool = ..., message: _Optional[str] = ...) -> None: ...
