package main

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// runClient calls an ordinary gRPC server over one connection, from one goroutine per request in
// flight.
func runClient(o options) (result, error) {
	settings := []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(rawCodec{})),
	}
	if !o.dynamicWindows {
		settings = append(settings, grpc.WithInitialWindowSize(staticWindow),
			grpc.WithInitialConnWindowSize(staticWindow))
	}
	connection, err := grpc.NewClient(o.connect, settings...)
	if err != nil {
		return result{}, err
	}
	defer connection.Close()

	m := meter{enough: make(chan struct{})}
	tallies := make([]tally, o.inFlight)
	var callers sync.WaitGroup
	for i := range tallies {
		callers.Add(1)
		go func() {
			defer callers.Done()
			call(connection, o, &m, &tallies[i])
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
			if m.answered.Add(1) == o.requests {
				close(m.enough)
			}
		}
	}
}
