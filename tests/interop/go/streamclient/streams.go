package main

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc"
)

// streams is echo.Streams' client.
type streams struct {
	connection *grpc.ClientConn
}

// call is one that streams either way.
type call struct {
	grpc.ClientStream
}

func (s streams) open(ctx context.Context, method string) (call, error) {
	description := &grpc.StreamDesc{StreamName: method, ClientStreams: true, ServerStreams: true}
	stream, err := s.connection.NewStream(ctx, description, "/echo.Streams/"+method)
	return call{stream}, err
}

// say sends messages, and that there are no more. When the call is over receiving tells why.
func (c call) say(messages ...[]byte) error {
	for _, message := range messages {
		if err := c.SendMsg(&message); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
	}
	return c.CloseSend()
}

func (c call) next() ([]byte, error) {
	var message []byte
	err := c.RecvMsg(&message)
	return message, err
}

// rest is what comes until the call ends.
func (c call) rest() ([][]byte, error) {
	var came [][]byte
	for {
		message, err := c.next()
		if errors.Is(err, io.EOF) {
			return came, nil
		}
		if err != nil {
			return came, err
		}
		came = append(came, message)
	}
}

// ask sends all messages while it receives.
func (s streams) ask(ctx context.Context, method string, messages ...[]byte) ([][]byte, error) {
	call, err := s.open(ctx, method)
	if err != nil {
		return nil, err
	}
	said := make(chan error, 1)
	go func() { said <- call.say(messages...) }()
	came, err := call.rest()
	if err != nil {
		return came, err
	}
	return came, <-said
}
