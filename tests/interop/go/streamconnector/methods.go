package main

import (
	"errors"
	"io"
	"log"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"

	"revconn/benchmarks/registry"
)

const service = "echo.Streams"

var methods = map[string]func(*stream) *registry.StreamStatus{
	"/echo.Streams/Down":     down,
	"/echo.Streams/Up":       up,
	"/echo.Streams/Echo":     echo,
	"/echo.Streams/Overdraw": overdraw,
}

// run answers a call.
func (s *stream) run() {
	method, known := methods[s.opening.MethodPath]
	if !known {
		s.finish(failure(codes.Unimplemented, "no such method: "+s.opening.MethodPath))
		return
	}
	if status := method(s); status != nil {
		s.finish(status)
		return
	}
	log.Printf("%s is over: %v", s.opening.MethodPath, s.over)
}

// down answers as many messages as it is asked for, each its number.
func down(s *stream) *registry.StreamStatus {
	request, err := s.recv()
	if err != nil {
		return nil
	}
	count, err := strconv.Atoi(string(request))
	if err != nil {
		return failure(codes.InvalidArgument, "keine Zahl, 100 % größer")
	}
	for i := range count {
		if s.send([]byte(strconv.Itoa(i))) != nil {
			return nil
		}
	}
	return &registry.StreamStatus{}
}

// up answers how many bytes came.
func up(s *stream) *registry.StreamStatus {
	total := 0
	for {
		message, err := s.recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil
		}
		total += len(message)
	}
	if s.send([]byte(strconv.Itoa(total))) != nil {
		return nil
	}
	return &registry.StreamStatus{}
}

// echo sends back each message, and what of the metadata is called echo-... ahead of them and behind
// them, where it says what it was told of the call, too.
func echo(s *stream) *registry.StreamStatus {
	var back []*registry.MetadataEntry
	for _, entry := range s.opening.Metadata {
		if strings.HasPrefix(entry.Key, "echo-") {
			back = append(back, entry)
		}
	}
	s.begin(back)
	count := 0
	for ; ; count++ {
		message, err := s.recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil || s.send(message) != nil {
			return nil
		}
	}
	timeout := time.Duration(s.opening.TimeoutMicroseconds) * time.Microsecond
	return &registry.StreamStatus{TrailingMetadata: append(
		back,
		entry("count", strconv.Itoa(count)),
		entry("peer", s.opening.Peer),
		entry("timeout", timeout.String()),
	)}
}

// overdraw breaks the rule: it sends what it was not allowed.
func overdraw(s *stream) *registry.StreamStatus {
	s.link.mu.Lock()
	s.granted = 1 << 30
	s.link.mu.Unlock()
	for {
		if s.send(make([]byte, 1000)) != nil {
			return nil
		}
	}
}

func entry(key, value string) *registry.MetadataEntry {
	return &registry.MetadataEntry{Key: key, Value: []byte(value)}
}

func failure(code codes.Code, message string) *registry.StreamStatus {
	return &registry.StreamStatus{Code: int32(code), Message: message}
}
