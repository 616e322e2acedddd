package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"revconn/benchmarks/registry"
)

// callingService is what the calling connector registers, and nobody calls.
const callingService = "benchmark.Caller"

// runConnector is a connector that calls another one through their gateway: requests go up its
// stream, and answers come down. It sends no heartbeat, so a run is to be shorter than the
// gateway's patience.
func runConnector(o options) (result, error) {
	connection, err := dial(o, o.through)
	if err != nil {
		return result{}, err
	}
	defer connection.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	description := &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}
	establish := "/registry.RegistryService/EstablishConnection"
	stream, err := connection.NewStream(ctx, description, establish, grpc.WaitForReady(true))
	if err != nil {
		return result{}, err
	}
	if err := register(stream); err != nil {
		return result{}, err
	}

	var m meter
	start := make(chan struct{})
	close(start)
	d, err := newDriver(o, &m, start)
	if err != nil {
		return result{}, err
	}
	d.lastBeat = time.Now()
	go d.send(stream)
	go func() { d.end(d.receive(stream)) }()
	m.run(o)
	select {
	case err = <-d.ended:
	case <-time.After(drainTimeout):
		cancel()
		err = <-d.ended
	}
	if err != nil {
		return result{}, err
	}
	return m.result(&d.tally), nil
}

func register(stream grpc.ClientStream) error {
	encoded, err := proto.Marshal(&registry.ConnectionMessage{
		MessageType: &registry.ConnectionMessage_Register{Register: &registry.ConnectionRegister{
			ApiKey: "benchmark", Services: []string{callingService},
		}},
	})
	if err != nil {
		return err
	}
	if err := stream.SendMsg(&encoded); err != nil {
		return err
	}
	if err := stream.RecvMsg(&encoded); err != nil {
		return fmt.Errorf("waiting for the status: %w", err)
	}
	var message registry.ConnectionMessage
	if err := proto.Unmarshal(encoded, &message); err != nil {
		return err
	}
	if message.GetStatus().GetConnectionId() == "" {
		return errors.New("the gateway gave no connection id")
	}
	return nil
}
