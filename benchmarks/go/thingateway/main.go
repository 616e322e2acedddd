// Command thingateway is the least that a registry gateway can be on grpc-go, to compare with:
// connectors register services, and calls from outside and from connectors are routed to them.
// It knows no keys, limits, chunks and time-outs, and never gives a connector up that is silent.
package main

import (
	"flag"
	"fmt"
	"log"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"

	"revconn/benchmarks/registry"
)

const (
	largestMessage = 100 << 20
	// A window that is given switches grpc-go's bandwidth estimate off, and with it the PING and
	// the WINDOW_UPDATE that follow every lone message.
	window = 1 << 20
	buffer = 128 << 10
)

func main() {
	port := flag.Int("port", 0, "where to listen on 127.0.0.1; 0 takes a free one")
	flag.Parse()
	listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", *port))
	if err != nil {
		log.Fatal(err)
	}
	g := newGateway()
	server := grpc.NewServer(
		grpc.ForceServerCodecV2(codec{encoding.GetCodecV2("proto")}),
		grpc.UnknownServiceHandler(g.call),
		grpc.MaxRecvMsgSize(largestMessage),
		grpc.InitialWindowSize(window),
		grpc.InitialConnWindowSize(window),
		grpc.ReadBufferSize(buffer),
		grpc.WriteBufferSize(buffer),
	)
	registry.RegisterRegistryServiceServer(server, g)
	fmt.Println(listener.Addr())
	log.Fatal(server.Serve(listener))
}

// raw is a message that is passed on as it came.
type raw []byte

// codec leaves raw messages alone; the others are protobuf.
type codec struct{ encoding.CodecV2 }

func (c codec) Marshal(message any) (mem.BufferSlice, error) {
	if bytes, ok := message.(*raw); ok {
		return mem.BufferSlice{mem.SliceBuffer(*bytes)}, nil
	}
	return c.CodecV2.Marshal(message)
}

func (c codec) Unmarshal(data mem.BufferSlice, message any) error {
	if bytes, ok := message.(*raw); ok {
		*bytes = data.Materialize()
		return nil
	}
	return c.CodecV2.Unmarshal(data, message)
}
