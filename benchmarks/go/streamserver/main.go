// streamserver serves the methods of benchmarks/peers/streams.py, and prints where.
//
// It is what a sidecar stands beside: a server that takes little itself.
package main

import (
	"fmt"
	"io"
	"log"
	"net"
	"strconv"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
)

// raw passes messages on as they are.
type raw struct{}

func (raw) Name() string { return "proto" }

func (raw) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(*v.(*[]byte))}, nil
}

func (raw) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}

func main() {
	encoding.RegisterCodecV2(raw{})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	server := grpc.NewServer(grpc.UnknownServiceHandler(serve), grpc.MaxRecvMsgSize(64<<20))
	fmt.Println(listener.Addr())
	log.Fatal(server.Serve(listener))
}

func serve(_ any, stream grpc.ServerStream) error {
	path, _ := grpc.MethodFromServerStream(stream)
	switch path {
	case "/bench.Streams/Down":
		return down(stream)
	case "/bench.Streams/Up":
		return up(stream)
	case "/bench.Streams/Echo", "/bench.Streams/Say":
		return echo(stream)
	}
	return status.Error(codes.Unimplemented, path)
}

func down(stream grpc.ServerStream) error {
	var request []byte
	if err := stream.RecvMsg(&request); err != nil {
		return err
	}
	size, err := strconv.Atoi(string(request))
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	message := make([]byte, size)
	for {
		if err := stream.SendMsg(&message); err != nil {
			return err
		}
	}
}

func up(stream grpc.ServerStream) error {
	count := 0
	for {
		var message []byte
		err := stream.RecvMsg(&message)
		if err == io.EOF {
			answer := []byte(strconv.Itoa(count))
			return stream.SendMsg(&answer)
		}
		if err != nil {
			return err
		}
		count++
	}
}

func echo(stream grpc.ServerStream) error {
	for {
		var message []byte
		err := stream.RecvMsg(&message)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := stream.SendMsg(&message); err != nil {
			return err
		}
	}
}
