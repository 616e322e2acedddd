// Command streamconnector is a connector whose methods stream, written from docs/topics/protocol.md
// alone: it registers echo.Streams, sends heartbeats, answers, and takes its leave on SIGTERM.
package main

import (
	"context"
	"errors"
	"io"
	"log"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"revconn/benchmarks/registry"
)

const (
	features          = "revconn-features"
	heartbeatInterval = time.Second
	largestFrame      = 4 << 20
)

func main() {
	if len(os.Args) != 3 {
		log.Fatal("usage: streamconnector GATEWAY-ADDRESS API-KEY")
	}
	if err := serve(os.Args[1], os.Args[2]); err != nil {
		log.Fatal(err)
	}
}

func serve(address, key string) error {
	connection, err := grpc.NewClient(
		address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(largestFrame)),
	)
	if err != nil {
		return err
	}
	defer connection.Close()
	ctx, done := context.WithCancel(context.Background())
	defer done()
	ctx = metadata.AppendToOutgoingContext(ctx, features, "streams")
	wire, err := registry.NewRegistryServiceClient(connection).EstablishConnection(ctx)
	if err != nil {
		return err
	}
	link := newLink()
	go link.write(wire)
	link.say(&registry.ConnectionMessage{
		MessageType: &registry.ConnectionMessage_Register{Register: registration(key)},
	})
	// They come ahead of CONNECTED; of a refusal the first Recv tells.
	if header, err := wire.Header(); err == nil && header != nil && !knowsStreams(header) {
		return errors.New("the gateway does not know streams")
	}
	for {
		message, err := wire.Recv()
		if errors.Is(err, io.EOF) {
			return nil // the gateway has let go of it
		}
		if err != nil {
			return err
		}
		switch body := message.MessageType.(type) {
		case *registry.ConnectionMessage_Status:
			if body.Status.Status == registry.ConnectionStatus_CONNECTED {
				go beat(ctx, body.Status.ConnectionId, link)
				go leave(body.Status.ConnectionId, link)
			}
		case *registry.ConnectionMessage_Request:
			link.say(refusal(body.Request))
		case *registry.ConnectionMessage_Stream:
			link.hear(body.Stream)
		}
	}
}

func registration(key string) *registry.ConnectionRegister {
	register := &registry.ConnectionRegister{ApiKey: key, Services: []string{service}}
	for path := range methods {
		register.StreamingMethods = append(register.StreamingMethods, path)
	}
	return register
}

func knowsStreams(header metadata.MD) bool {
	named := strings.Split(strings.Join(header.Get(features), ","), ",")
	return slices.Contains(named, "streams")
}

// refusal answers a call of another method, which comes as one message.
func refusal(request *registry.ForwardRequest) *registry.ConnectionMessage {
	response := &registry.ForwardResponse{
		RequestId: request.RequestId, StatusCode: 404, ErrorMessage: "no such method",
		Headers: map[string]string{"grpc-status": "12"},
	}
	return &registry.ConnectionMessage{
		MessageType: &registry.ConnectionMessage_Response{Response: response},
	}
}

func beat(ctx context.Context, connectionID string, link *link) {
	ticker := time.NewTicker(heartbeatInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			link.say(&registry.ConnectionMessage{
				MessageType: &registry.ConnectionMessage_Heartbeat{Heartbeat: &registry.Heartbeat{
					Timestamp: now.Unix(), ConnectionId: connectionID,
				}},
			})
		}
	}
}

// leave says DISCONNECTED when the process is told to end. The gateway ends the connection once the
// streams on it have ended.
func leave(connectionID string, link *link) {
	told := make(chan os.Signal, 1)
	signal.Notify(told, syscall.SIGTERM)
	<-told
	link.say(&registry.ConnectionMessage{
		MessageType: &registry.ConnectionMessage_Status{Status: &registry.ConnectionStatus{
			ConnectionId: connectionID, Status: registry.ConnectionStatus_DISCONNECTED,
		}},
	})
}
