package main

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const hello = "/demo.Greeter/Hello"

// greeter is demo.Greeter's client. Its messages begin with one string, as StringValue does, and
// that is all that is needed of them here.
type greeter struct {
	connection *grpc.ClientConn
}

// call sends a name and gives back the greeting, which an interop connector makes the same.
func (g greeter) call(
	ctx context.Context, method, name string, options ...grpc.CallOption,
) (string, error) {
	reply := new(wrapperspb.StringValue)
	err := g.connection.Invoke(ctx, method, wrapperspb.String(name), reply, options...)
	return reply.GetValue(), err
}

// wish asks an interop connector for something else than an echo.
func wish(ctx context.Context, what string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "interop", what)
}
