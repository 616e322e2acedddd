package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

const (
	many    = 5000
	large   = 1 << 20
	atOnce  = 20
	endless = "1000000000"
	patient = 30 * time.Second
)

var cases = map[string]func(streams) error{
	"down":            func(s streams) error { return down(s, 10) },
	"down nothing":    func(s streams) error { return down(s, 0) },
	"down many":       func(s streams) error { return down(s, many) },
	"up":              func(s streams) error { return up(s, numbers(10)) },
	"up nothing":      func(s streams) error { return up(s, nil) },
	"up empty":        func(s streams) error { return up(s, [][]byte{{}}) },
	"up many":         func(s streams) error { return up(s, numbers(many)) },
	"up large":        func(s streams) error { return up(s, larges(8)) },
	"echo":            func(s streams) error { return echo(s, numbers(10)) },
	"echo nothing":    func(s streams) error { return echo(s, nil) },
	"echo empty":      func(s streams) error { return echo(s, [][]byte{{}, {1}, {}}) },
	"echo many":       func(s streams) error { return echo(s, numbers(many)) },
	"echo large":      func(s streams) error { return echo(s, larges(8)) },
	"echo all sizes":  func(s streams) error { return echo(s, allSizes()) },
	"to and fro":      toAndFro,
	"at once":         manyAtOnce,
	"one is not read": oneIsNotRead,
	"metadata":        inBothDirections,
	"error":           fails,
	"unknown method":  unknownMethod,
	"timeout told":    timeoutTold,
	"deadline":        deadline,
	"cancel down":     func(s streams) error { return cancel(s, "Down", []byte(endless)) },
	"cancel up":       func(s streams) error { return cancel(s, "Up", []byte("a")) },
	"cancel echo":     func(s streams) error { return cancel(s, "Echo", []byte("a")) },
	"overdrawn":       overdrawn,
	"lost":            lost,
}

func numbers(count int) [][]byte {
	messages := make([][]byte, count)
	for i := range messages {
		messages[i] = []byte(strconv.Itoa(i))
	}
	return messages
}

func larges(count int) [][]byte {
	messages := make([][]byte, count)
	for i := range messages {
		messages[i] = bytes.Repeat([]byte{byte(i), 1, 2, 3}, large/4)
	}
	return messages
}

func allSizes() [][]byte {
	var messages [][]byte
	for _, size := range []int{
		0, 1, 1023, 1024, 16<<10 - 1, 16 << 10, 16<<10 + 1, 64<<10 - 32, 64 << 10, 64<<10 + 1,
		256 << 10, 256<<10 + 1, 3_000_000, 0, 5,
	} {
		messages = append(messages, bytes.Repeat([]byte{'x'}, size))
	}
	return messages
}

func soon() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), patient)
}

func down(s streams, count int) error {
	ctx, done := soon()
	defer done()
	came, err := s.ask(ctx, "Down", []byte(strconv.Itoa(count)))
	return is(came, err, numbers(count))
}

func up(s streams, messages [][]byte) error {
	ctx, done := soon()
	defer done()
	total := 0
	for _, message := range messages {
		total += len(message)
	}
	came, err := s.ask(ctx, "Up", messages...)
	return is(came, err, [][]byte{[]byte(strconv.Itoa(total))})
}

func echo(s streams, messages [][]byte) error {
	ctx, done := soon()
	defer done()
	came, err := s.ask(ctx, "Echo", messages...)
	return is(came, err, messages)
}

func is(came [][]byte, err error, wanted [][]byte) error {
	if err != nil {
		return err
	}
	if !slices.EqualFunc(came, wanted, bytes.Equal) {
		return fmt.Errorf("not %d messages but %d came, or others", len(wanted), len(came))
	}
	return nil
}

func toAndFro(s streams) error {
	ctx, done := soon()
	defer done()
	call, err := s.open(ctx, "Echo")
	if err != nil {
		return err
	}
	for _, message := range numbers(200) {
		if err := call.SendMsg(&message); err != nil {
			return err
		}
		if came, err := call.next(); err != nil || !bytes.Equal(came, message) {
			return fmt.Errorf("not %q but %q, %v", message, came, err)
		}
	}
	if err := call.say(); err != nil {
		return err
	}
	came, err := call.rest()
	return is(came, err, nil)
}

func manyAtOnce(s streams) error {
	problems := make(chan error)
	for i := range atOnce {
		go func() {
			if i%2 == 0 {
				problems <- down(s, 200)
			} else {
				problems <- echo(s, append(larges(1), numbers(200)...))
			}
		}()
	}
	var problem error
	for range atOnce {
		if err := <-problems; err != nil {
			problem = err
		}
	}
	return problem
}

// oneIsNotRead holds one call up, which may hold up no other one.
func oneIsNotRead(s streams) error {
	ctx, giveUp := context.WithCancel(context.Background())
	defer giveUp()
	call, err := s.open(ctx, "Down")
	if err != nil {
		return err
	}
	if err := call.say([]byte("100000")); err != nil {
		return err
	}
	time.Sleep(200 * time.Millisecond)
	if err := echo(s, append(larges(4), numbers(200)...)); err != nil {
		return err
	}
	came, err := call.rest()
	return is(came, err, numbers(100_000))
}

func inBothDirections(s streams) error {
	ctx, done := soon()
	defer done()
	ctx = metadata.AppendToOutgoingContext(
		ctx, "echo-note", "a, b=c", "echo-note", "again", "echo-trace-bin", "\x00\xff\x80 \n",
	)
	call, err := s.open(ctx, "Echo")
	if err != nil {
		return err
	}
	header, err := call.Header() // before anything was said
	if err != nil {
		return err
	}
	if err := call.say([]byte("a"), []byte("b")); err != nil {
		return err
	}
	if _, err := call.rest(); err != nil {
		return err
	}
	trailer := call.Trailer()
	for _, came := range []metadata.MD{header, trailer} {
		notes, traces := came.Get("echo-note"), came.Get("echo-trace-bin")
		if !slices.Equal(notes, []string{"a, b=c", "again"}) ||
			!slices.Equal(traces, []string{"\x00\xff\x80 \n"}) {
			return fmt.Errorf("came back: %q and %q", header, trailer)
		}
	}
	if !slices.Equal(trailer.Get("count"), []string{"2"}) {
		return fmt.Errorf("behind it came: %q", trailer)
	}
	return nil
}

func fails(s streams) error {
	ctx, done := soon()
	defer done()
	_, err := s.ask(ctx, "Down", []byte("no number"))
	return failed(err, codes.InvalidArgument, "keine Zahl, 100 % größer")
}

func unknownMethod(s streams) error {
	ctx, done := soon()
	defer done()
	_, err := s.ask(ctx, "Sideways", []byte("1"), []byte("2"))
	return failed(err, codes.Unimplemented, "")
}

func failed(err error, code codes.Code, message string) error {
	got := status.Convert(err)
	if got.Code() != code || (message != "" && got.Message() != message) {
		return fmt.Errorf("not %v: %q, but %v: %q", code, message, got.Code(), got.Message())
	}
	return nil
}

func timeoutTold(s streams) error {
	ctx, done := context.WithTimeout(context.Background(), 9*time.Second)
	defer done()
	call, err := s.open(ctx, "Echo")
	if err != nil {
		return err
	}
	if err := call.say(); err != nil {
		return err
	}
	if _, err := call.rest(); err != nil {
		return err
	}
	told := call.Trailer().Get("timeout")
	if len(told) != 1 {
		return fmt.Errorf("told of %q", told)
	}
	left, err := time.ParseDuration(told[0])
	if err != nil || left > 9*time.Second || left < 5*time.Second {
		return fmt.Errorf("the connector was given %v of 9 s", told)
	}
	return nil
}

func deadline(s streams) error {
	ctx, done := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer done()
	call, err := s.open(ctx, "Echo")
	if err != nil {
		return err
	}
	_, err = call.rest()
	return failed(err, codes.DeadlineExceeded, "")
}

// cancel gives up in the middle of a call.
func cancel(s streams, method string, message []byte) error {
	ctx, giveUp := context.WithCancel(context.Background())
	defer giveUp()
	call, err := s.open(ctx, method)
	if err != nil {
		return err
	}
	if err := call.SendMsg(&message); err != nil {
		return err
	}
	for i := 0; i < 10 && method == "Down" || i < 1 && method == "Echo"; i++ {
		if _, err := call.next(); err != nil {
			return err
		}
	}
	time.AfterFunc(100*time.Millisecond, giveUp)
	if method == "Down" {
		time.Sleep(200 * time.Millisecond) // it is not read meanwhile: the window is used up
	}
	_, err = call.rest()
	return failed(err, codes.Canceled, "")
}

// overdrawn has the connector break a rule, which costs that one call.
func overdrawn(s streams) error {
	ctx, done := soon()
	defer done()
	call, err := s.open(ctx, "Echo")
	if err != nil {
		return err
	}
	other, err := s.open(ctx, "Overdraw")
	if err != nil {
		return err
	}
	if err := other.say([]byte("go")); err != nil {
		return err
	}
	time.Sleep(500 * time.Millisecond)
	_, err = other.rest()
	message := "the connector sent more than it was allowed"
	if err := failed(err, codes.ResourceExhausted, message); err != nil {
		return err
	}
	if err := call.say([]byte("a")); err != nil {
		return err
	}
	came, err := call.rest()
	return is(came, err, [][]byte{[]byte("a")})
}

// lost reads until the connector is no more; it says when that may happen.
func lost(s streams) error {
	ctx, done := soon()
	defer done()
	call, err := s.open(ctx, "Down")
	if err != nil {
		return err
	}
	if err := call.say([]byte(endless)); err != nil {
		return err
	}
	if _, err := call.next(); err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "reading")
	for err == nil {
		_, err = call.next()
	}
	return failed(err, codes.Unavailable, "")
}
