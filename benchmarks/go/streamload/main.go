// streamload calls streaming methods of a server and says how many messages went through.
//
// It prints one line of JSON. The methods are those of benchmarks/peers/streams.py: Down answers a
// request "size" with messages of that size until its caller has had enough, Up reads messages and
// answers how many came, Echo sends each back.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"os"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
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

var (
	target  = flag.String("target", "", "host:port")
	mode    = flag.String("mode", "down", "down, up, echo, pingpong, unary or stall")
	size    = flag.Int("size", 64, "bytes of a message")
	streams = flag.Int("streams", 1, "at once")
	seconds = flag.Float64("seconds", 1, "that it takes")
	window  = flag.Int("window", 1000, "messages that an echo may have on their way")
)

type result struct {
	Messages int64   `json:"messages"`
	Seconds  float64 `json:"seconds"`
	P50      float64 `json:"p50_ms"`
}

var (
	count  atomic.Int64
	mu     sync.Mutex
	delays []float64
)

func main() {
	flag.Parse()
	encoding.RegisterCodecV2(raw{})
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20), grpc.MaxCallSendMsgSize(64<<20)),
	}
	if *mode == "stall" {
		// Windows that do not grow: what nobody reads is not to fill this process instead.
		options = append(options, grpc.WithInitialWindowSize(1<<16), grpc.WithInitialConnWindowSize(1<<28))
	}
	connection, err := grpc.NewClient(*target, options...)
	if err != nil {
		log.Fatal(err)
	}
	run := map[string]func(context.Context, *grpc.ClientConn) error{
		"down": down, "up": up, "echo": echo, "pingpong": pingpong, "unary": unary, "stall": stall,
	}[*mode]
	if run == nil {
		log.Fatalf("no mode %q", *mode)
	}
	// Warm: the connection is there, and windows have grown.
	all(300*time.Millisecond, connection, run)
	count.Store(0)
	delays = nil
	fmt.Println(`{"event": "begun"}`)
	start := time.Now()
	all(time.Duration(*seconds*float64(time.Second)), connection, run)
	taken := time.Since(start).Seconds()
	p50 := 0.0
	if len(delays) > 0 {
		sort.Float64s(delays)
		p50 = delays[len(delays)/2]
	}
	json.NewEncoder(os.Stdout).Encode(result{count.Load(), taken, p50})
}

func all(lasting time.Duration, connection *grpc.ClientConn, run func(context.Context, *grpc.ClientConn) error) {
	// No deadline, which the server would be told of: the calls are cancelled.
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(lasting, cancel)
	var group sync.WaitGroup
	for range *streams {
		group.Add(1)
		go func() {
			defer group.Done()
			if err := run(ctx, connection); err != nil && ctx.Err() == nil {
				log.Fatal(err)
			}
		}()
	}
	group.Wait()
}

func open(ctx context.Context, connection *grpc.ClientConn, name string) (grpc.ClientStream, error) {
	description := &grpc.StreamDesc{StreamName: name, ClientStreams: true, ServerStreams: true}
	return connection.NewStream(ctx, description, "/bench.Streams/"+name)
}

func down(ctx context.Context, connection *grpc.ClientConn) error {
	stream, err := open(ctx, connection, "Down")
	if err != nil {
		return err
	}
	request := []byte(fmt.Sprint(*size))
	if err := stream.SendMsg(&request); err != nil {
		return err
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	for {
		var message []byte
		if err := stream.RecvMsg(&message); err != nil {
			return err
		}
		count.Add(1)
	}
}

// stall asks for messages and reads none.
func stall(ctx context.Context, connection *grpc.ClientConn) error {
	stream, err := open(ctx, connection, "Down")
	if err != nil {
		return err
	}
	request := []byte(fmt.Sprint(*size))
	if err := stream.SendMsg(&request); err != nil {
		return err
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	<-ctx.Done()
	return ctx.Err()
}

func up(ctx context.Context, connection *grpc.ClientConn) error {
	stream, err := open(ctx, connection, "Up")
	if err != nil {
		return err
	}
	message := make([]byte, *size)
	for ctx.Err() == nil {
		if err := stream.SendMsg(&message); err != nil {
			return err
		}
		count.Add(1)
	}
	return nil
}

func echo(ctx context.Context, connection *grpc.ClientConn) error {
	stream, err := open(ctx, connection, "Echo")
	if err != nil {
		return err
	}
	free := make(chan struct{}, *window)
	for range *window {
		free <- struct{}{}
	}
	go func() {
		message := make([]byte, *size)
		for {
			select {
			case <-ctx.Done():
				return
			case <-free:
			}
			if stream.SendMsg(&message) != nil {
				return
			}
		}
	}()
	for {
		var message []byte
		if err := stream.RecvMsg(&message); err != nil {
			return err
		}
		count.Add(1)
		free <- struct{}{}
	}
}

func pingpong(ctx context.Context, connection *grpc.ClientConn) error {
	stream, err := open(ctx, connection, "Echo")
	if err != nil {
		return err
	}
	message := make([]byte, *size)
	for {
		start := time.Now()
		if err := stream.SendMsg(&message); err != nil {
			return err
		}
		var answer []byte
		if err := stream.RecvMsg(&answer); err != nil {
			return err
		}
		took(start)
	}
}

func unary(ctx context.Context, connection *grpc.ClientConn) error {
	message := make([]byte, *size)
	for {
		start := time.Now()
		var answer []byte
		if err := connection.Invoke(ctx, "/bench.Streams/Say", &message, &answer); err != nil {
			return err
		}
		took(start)
	}
}

func took(start time.Time) {
	count.Add(1)
	mu.Lock()
	delays = append(delays, float64(time.Since(start).Microseconds())/1000)
	mu.Unlock()
}
