package main

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// runClient calls an ordinary gRPC server, from one goroutine per request in flight. By default all
// of them share one channel, which is one HTTP/2 connection: what a client has.
func runClient(o options) (result, error) {
	channels := make([]*grpc.ClientConn, o.channels)
	for i := range channels {
		channel, err := dial(o, o.connect)
		if err != nil {
			return result{}, err
		}
		defer channel.Close()
		channels[i] = channel
	}

	var m meter
	tallies := make([]tally, o.inFlight)
	var callers sync.WaitGroup
	for i := range tallies {
		callers.Add(1)
		go func() {
			defer callers.Done()
			call(channels[i%o.channels], o, &m, &tallies[i])
		}()
	}
	m.run(o)
	callers.Wait()

	var total tally
	for i := range tallies {
		total.add(&tallies[i])
	}
	return m.result(&total), nil
}

// dial makes a channel, which connects when it is called.
func dial(o options, address string) (*grpc.ClientConn, error) {
	security := insecure.NewCredentials()
	if o.ca != "" {
		var err error
		if security, err = credentials.NewClientTLSFromFile(o.ca, ""); err != nil {
			return nil, err
		}
	}
	settings := []grpc.DialOption{
		grpc.WithTransportCredentials(security),
		grpc.WithDefaultCallOptions(
			grpc.ForceCodecV2(rawCodec{}), grpc.MaxCallRecvMsgSize(largestMessage),
		),
	}
	if !o.dynamicWindows {
		settings = append(settings, grpc.WithInitialWindowSize(staticWindow),
			grpc.WithInitialConnWindowSize(staticWindow))
	}
	return grpc.NewClient(address, settings...)
}

// call repeats the request until the window is over, or until it fails.
func call(connection *grpc.ClientConn, o options, m *meter, t *tally) {
	var answer []byte
	for m.phase.Load() != over {
		started := time.Now()
		ctx, cancel := context.WithTimeout(context.Background(), connectTimeout)
		err := connection.Invoke(ctx, methodPath, &o.payload, &answer, grpc.WaitForReady(true))
		cancel()
		latency := time.Since(started)
		if err == nil && !bytes.Equal(answer, o.payload) {
			err = errors.New("wrong payload")
		}
		if err != nil {
			t.fail(err)
			return
		}
		if m.phase.Load() == measured {
			t.latencies = append(t.latencies, latency)
		}
	}
}
