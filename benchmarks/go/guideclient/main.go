// Command guideclient is the protocol guide's client in Go: it registers, sends heartbeats, answers
// each request in a goroutine of its own, and takes its leave on SIGTERM.
package main

import (
	"context"
	"errors"
	"flag"
	"io"
	"log"
	"os"
	"os/signal"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"revconn/benchmarks/registry"
)

const (
	heartbeatInterval = time.Second
	queuedMessages    = 100
	largestMessage    = 100 << 20 // what a gateway may send
)

func main() {
	ca := flag.String("ca", "", "speak TLS, and trust the certificate in this file")
	key := flag.String("api-key", "benchmark", "the key to show to the gateway")
	service := flag.String("service", "echo.Echo", "the service to register")
	flag.Parse()
	if flag.NArg() != 1 {
		log.Fatal("usage: guideclient [-ca FILE] [-api-key KEY] [-service NAME] GATEWAY-ADDRESS")
	}
	security := insecure.NewCredentials()
	if *ca != "" {
		var err error
		if security, err = credentials.NewClientTLSFromFile(*ca, ""); err != nil {
			log.Fatal(err)
		}
	}
	registration := &registry.ConnectionRegister{ApiKey: *key, Services: []string{*service}}
	if err := serve(flag.Arg(0), security, registration); err != nil {
		log.Fatal(err)
	}
}

func serve(
	address string, security credentials.TransportCredentials, as *registry.ConnectionRegister,
) error {
	connection, err := grpc.NewClient(
		address,
		grpc.WithTransportCredentials(security),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(largestMessage)),
	)
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
		MessageType: &registry.ConnectionMessage_Register{Register: as},
	}
	for {
		message, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil // the gateway has let go of it
		}
		if err != nil {
			return err
		}
		switch body := message.MessageType.(type) {
		case *registry.ConnectionMessage_Status:
			if body.Status.Status == registry.ConnectionStatus_CONNECTED {
				go heartbeat(ctx, body.Status.ConnectionId, outbound)
				go leave(body.Status.ConnectionId, outbound)
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

// leave says DISCONNECTED when the process is told to end. The gateway ends the stream once
// everything that it had sent is answered.
func leave(connectionID string, outbound chan<- *registry.ConnectionMessage) {
	told := make(chan os.Signal, 1)
	signal.Notify(told, syscall.SIGTERM)
	<-told
	outbound <- &registry.ConnectionMessage{
		MessageType: &registry.ConnectionMessage_Status{Status: &registry.ConnectionStatus{
			ConnectionId: connectionID, Status: registry.ConnectionStatus_DISCONNECTED,
		}},
	}
}
