// Command guideclient is the protocol guide's client in Go: it registers, sends heartbeats, and
// answers each request in a goroutine of its own.
package main

import (
	"context"
	"flag"
	"log"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"revconn/benchmarks/registry"
)

const (
	heartbeatInterval = time.Second
	queuedMessages    = 100
)

func main() {
	ca := flag.String("ca", "", "speak TLS, and trust the certificate in this file")
	flag.Parse()
	if flag.NArg() != 1 {
		log.Fatal("usage: guideclient [-ca FILE] GATEWAY-ADDRESS")
	}
	security := insecure.NewCredentials()
	if *ca != "" {
		var err error
		if security, err = credentials.NewClientTLSFromFile(*ca, ""); err != nil {
			log.Fatal(err)
		}
	}
	if err := serve(flag.Arg(0), security); err != nil {
		log.Fatal(err)
	}
}

func serve(address string, security credentials.TransportCredentials) error {
	connection, err := grpc.NewClient(address, grpc.WithTransportCredentials(security))
	if err != nil {
		return err
	}
	defer connection.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	stream, err := registry.NewRegistryServiceClient(connection).EstablishConnection(ctx)
	if err != nil {
		return err
	}

	outbound := make(chan *registry.ConnectionMessage, queuedMessages)
	go send(stream, outbound)
	outbound <- &registry.ConnectionMessage{
		MessageType: &registry.ConnectionMessage_Register{Register: &registry.ConnectionRegister{
			ApiKey: "benchmark", Services: []string{"echo.Echo"},
		}},
	}
	for {
		message, err := stream.Recv()
		if err != nil {
			return err
		}
		switch body := message.MessageType.(type) {
		case *registry.ConnectionMessage_Status:
			if body.Status.Status == registry.ConnectionStatus_CONNECTED {
				go heartbeat(ctx, body.Status.ConnectionId, outbound)
			}
		case *registry.ConnectionMessage_Request:
			go func() { outbound <- answer(body.Request) }()
		}
	}
}

func send(
	stream registry.RegistryService_EstablishConnectionClient,
	outbound <-chan *registry.ConnectionMessage,
) {
	for message := range outbound {
		if err := stream.Send(message); err != nil {
			return // the receive loop learns why
		}
	}
}

func heartbeat(
	ctx context.Context, connectionID string, outbound chan<- *registry.ConnectionMessage,
) {
	ticker := time.NewTicker(heartbeatInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			outbound <- &registry.ConnectionMessage{
				MessageType: &registry.ConnectionMessage_Heartbeat{Heartbeat: &registry.Heartbeat{
					Timestamp: now.Unix(), ConnectionId: connectionID,
				}},
			}
		}
	}
}

func answer(request *registry.ForwardRequest) *registry.ConnectionMessage {
	return &registry.ConnectionMessage{
		MessageType: &registry.ConnectionMessage_Response{Response: &registry.ForwardResponse{
			RequestId: request.RequestId, StatusCode: 200, Payload: request.Payload,
		}},
	}
}
