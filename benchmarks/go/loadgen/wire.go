package main

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"revconn/benchmarks/registry"
)

// rawCodec passes encoded messages through, so that the load generator's own cost stays small.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(message any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(*message.(*[]byte))}, nil
}

func (rawCodec) Unmarshal(data mem.BufferSlice, message any) error {
	buffer := message.(*[]byte)
	size := data.Len()
	if cap(*buffer) < size {
		*buffer = make([]byte, size)
	}
	*buffer = (*buffer)[:size]
	data.CopyTo(*buffer)
	return nil
}

const requestIDBytes = 36

// requestIDTemplate is no other process's: ids are to be unique everywhere.
var requestIDTemplate = fmt.Appendf(
	nil, "00000000-%04x-4%03x-8000-000000000000", rand.N(1<<16), rand.N(1<<12),
)

// request is one encoded ForwardRequest, sent again and again with a new id: it is reused only
// after its answer has arrived, so nobody is still reading the bytes.
type request struct {
	message []byte
	id      []byte // within message
	uses    uint32
}

func newRequest(slot int, payload []byte) (*request, error) {
	message, err := proto.Marshal(&registry.ConnectionMessage{
		MessageType: &registry.ConnectionMessage_Request{Request: &registry.ForwardRequest{
			RequestId:  string(requestIDTemplate),
			MethodPath: methodPath,
			Headers: map[string]string{
				"content-type": "application/grpc",
				"te":           "trailers",
				"user-agent":   "grpc-go/1.80.0",
			},
			Payload:        payload,
			TimeoutSeconds: 30,
		}},
	})
	if err != nil {
		return nil, err
	}
	at := bytes.Index(message, requestIDTemplate)
	r := &request{message: message, id: message[at : at+requestIDBytes]}
	var number [4]byte
	binary.BigEndian.PutUint32(number[:], uint32(slot))
	hex.Encode(r.id[requestIDBytes-8:], number[:])
	return r, nil
}

// renew gives the request an id that was not used before.
func (r *request) renew() {
	r.uses++
	var number [4]byte
	binary.BigEndian.PutUint32(number[:], r.uses)
	hex.Encode(r.id[:8], number[:])
}

// slotOf is the slot that an id made by newRequest and renew belongs to.
func slotOf(id []byte) (int, error) {
	if len(id) != requestIDBytes {
		return 0, fmt.Errorf("answer to an unknown request id %q", id)
	}
	var number [4]byte
	if _, err := hex.Decode(number[:], id[requestIDBytes-8:]); err != nil {
		return 0, fmt.Errorf("answer to an unknown request id %q", id)
	}
	return int(binary.BigEndian.Uint32(number[:])), nil
}

// response is the part of a ForwardResponse that is checked, within the received message.
type response struct {
	id, payload, errorMessage []byte
	statusCode                int32
}

var errMalformed = errors.New("malformed message")

// parseResponse reads a ForwardResponse without allocating; ok is false for any other message.
func parseResponse(message []byte) (r response, ok bool, err error) {
	number, kind, n := protowire.ConsumeTag(message)
	if n < 0 {
		return r, false, errMalformed
	}
	if number != 3 || kind != protowire.BytesType {
		return r, false, nil
	}
	body, n := protowire.ConsumeBytes(message[n:])
	if n < 0 {
		return r, true, errMalformed
	}
	for len(body) > 0 {
		number, kind, n := protowire.ConsumeTag(body)
		if n < 0 {
			return r, true, errMalformed
		}
		body = body[n:]
		switch {
		case number == 2 && kind == protowire.VarintType:
			var status uint64
			status, n = protowire.ConsumeVarint(body)
			r.statusCode = int32(status)
		case number == 1 && kind == protowire.BytesType:
			r.id, n = protowire.ConsumeBytes(body)
		case number == 4 && kind == protowire.BytesType:
			r.payload, n = protowire.ConsumeBytes(body)
		case number == 5 && kind == protowire.BytesType:
			r.errorMessage, n = protowire.ConsumeBytes(body)
		default:
			n = protowire.ConsumeFieldValue(number, kind, body)
		}
		if n < 0 {
			return r, true, errMalformed
		}
		body = body[n:]
	}
	return r, true, nil
}
