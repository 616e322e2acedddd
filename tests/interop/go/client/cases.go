package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

const (
	calls   = 200
	atOnce  = 50
	failure = "no such order: größer als 50 %"
)

var cases = map[string]func(greeter) error{
	"echo":  func(g greeter) error { return echo(g, "grüß dich") },
	"empty": func(g greeter) error { return echo(g, "") },
	"large": func(g greeter) error { return echo(g, strings.Repeat("x", 10_000_000)) },
	"gzip": func(g greeter) error {
		return echo(g, strings.Repeat("y", 1_000_000), grpc.UseCompressor(gzip.Name))
	},
	"metadata": inBothDirections,
	"many":     manyAtOnce,
	"error":    func(g greeter) error { return fails(g, hello, "fail", codes.NotFound, failure) },
	"details":  details,
	"unknown method": func(g greeter) error {
		method := "/demo.Greeter/Goodbye"
		return fails(g, method, "", codes.Unimplemented, "no such method: "+method)
	},
	"unknown service": func(g greeter) error {
		return fails(g, "/no.Body/Home", "", codes.Unavailable, "no connector serves no.Body")
	},
	"deadline":     deadline,
	"timeout told": timeoutTold,
	"cancel":       cancel,
}

func echo(g greeter, name string, options ...grpc.CallOption) error {
	greeting, err := g.call(context.Background(), hello, name, options...)
	if err == nil && greeting != name {
		err = fmt.Errorf("sent %d bytes, and other %d came back", len(name), len(greeting))
	}
	return err
}

func inBothDirections(g greeter) error {
	const binary = "\x00\xff\x80 \n"
	ctx := metadata.AppendToOutgoingContext(
		context.Background(), "echo-note", "a, b=c", "echo-trace-bin", binary,
	)
	var trailer metadata.MD
	if _, err := g.call(ctx, hello, "", grpc.Trailer(&trailer)); err != nil {
		return err
	}
	note, trace := trailer.Get("note"), trailer.Get("trace-bin")
	if len(note) != 1 || note[0] != "a, b=c" || len(trace) != 1 || trace[0] != binary {
		return fmt.Errorf("came back: %q", trailer)
	}
	return nil
}

func manyAtOnce(g greeter) error {
	slots := make(chan struct{}, atOnce)
	problems := make(chan error, calls)
	var underWay sync.WaitGroup
	for i := range calls {
		slots <- struct{}{}
		underWay.Add(1)
		go func() {
			defer underWay.Done()
			problems <- echo(g, strconv.Itoa(i))
			<-slots
		}()
	}
	underWay.Wait()
	close(problems)
	for err := range problems {
		if err != nil {
			return err
		}
	}
	return nil
}

func fails(g greeter, method, what string, code codes.Code, message string) error {
	_, err := g.call(wish(context.Background(), what), method, "")
	return is(err, code, message)
}

func is(err error, code codes.Code, message string) error {
	if got := status.Convert(err); got.Code() != code || got.Message() != message {
		return fmt.Errorf("not %v: %q, but %v: %q", code, message, got.Code(), got.Message())
	}
	return nil
}

func details(g greeter) error {
	info := &errdetails.ErrorInfo{Reason: "NO_SUCH_ORDER", Domain: "shop.example"}
	sent, err := status.New(codes.NotFound, failure).WithDetails(info)
	if err != nil {
		return err
	}
	encoded, err := proto.Marshal(sent.Proto())
	if err != nil {
		return err
	}
	ctx := metadata.AppendToOutgoingContext(
		wish(context.Background(), "fail"), "echo-grpc-status-details-bin", string(encoded),
	)
	_, failed := g.call(ctx, hello, "")
	if err := is(failed, codes.NotFound, failure); err != nil {
		return err
	}
	came := status.Convert(failed).Details()
	if len(came) != 1 || !proto.Equal(came[0].(proto.Message), info) {
		return fmt.Errorf("details: %v", came)
	}
	return nil
}

func deadline(g greeter) error {
	ctx, done := context.WithTimeout(wish(context.Background(), "wait"), 300*time.Millisecond)
	defer done()
	_, err := g.call(ctx, hello, "")
	if code := status.Code(err); code != codes.DeadlineExceeded {
		return fmt.Errorf("not DeadlineExceeded but %v", err)
	}
	return nil
}

func timeoutTold(g greeter) error {
	ctx, done := context.WithTimeout(wish(context.Background(), "timeout"), 9*time.Second)
	defer done()
	var trailer metadata.MD
	if _, err := g.call(ctx, hello, "", grpc.Trailer(&trailer)); err != nil {
		return err
	}
	seen := strings.Join(trailer.Get("seen-timeout"), "")
	if seconds, err := strconv.Atoi(seen); err != nil || seconds < 5 || seconds > 10 {
		return fmt.Errorf("the connector was given %q seconds of 9", seen)
	}
	return nil
}

func cancel(g greeter) error {
	ctx, giveUp := context.WithCancel(wish(context.Background(), "wait"))
	defer giveUp()
	time.AfterFunc(200*time.Millisecond, giveUp)
	_, err := g.call(ctx, hello, "")
	if code := status.Code(err); code != codes.Canceled {
		return fmt.Errorf("not Canceled but %v", err)
	}
	return nil
}
