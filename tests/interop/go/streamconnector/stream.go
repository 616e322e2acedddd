package main

import (
	"errors"
	"io"
	"sync"

	"google.golang.org/grpc/codes"

	"revconn/benchmarks/registry"
)

const (
	window         = 64 << 10
	overhead       = 32       // what a message costs beside its bytes
	turn           = 16 << 10 // bytes of a frame, and of a message that goes in one
	largestMessage = 64 << 20
)

// stream is one call. The link's lock guards all of it.
type stream struct {
	link    *link
	id      uint32
	opening *registry.StreamOpening
	changed *sync.Cond // for its method: messages, room, or the end
	over    error      // why nothing is said or heard any more
	isReady bool

	// What is said
	initial *registry.StreamMetadata
	queue   [][]byte
	rest    []byte // of a message that has begun and goes in pieces
	status  *registry.StreamStatus
	credit  int
	granted int // what the gateway has allowed in all
	put     int // what all messages cost that were queued
	sent    int // of that: what was begun

	// What comes
	inbox    [][]byte
	ended    bool
	begun    []byte // a message whose pieces are coming
	missing  int
	allowed  int // what the gateway was allowed in all
	received int // what all messages cost that came
	consumed int // of that: what was read, and not given back yet
}

func newStream(l *link, id uint32, opening *registry.StreamOpening) *stream {
	s := &stream{link: l, id: id, opening: opening, granted: window, allowed: window}
	s.changed = sync.NewCond(&l.mu)
	return s
}

// What its method calls, each without the lock

// recv waits for the next message; io.EOF: there are no more.
func (s *stream) recv() ([]byte, error) {
	s.link.mu.Lock()
	defer s.link.mu.Unlock()
	for len(s.inbox) == 0 && !s.ended && s.over == nil {
		s.changed.Wait()
	}
	if s.over != nil {
		return nil, s.over
	}
	if len(s.inbox) == 0 {
		return nil, io.EOF
	}
	message := s.inbox[0]
	s.inbox = s.inbox[1:]
	s.consumed += len(message) + overhead
	if s.consumed >= window/2 && !s.ended {
		s.credit += s.consumed
		s.allowed += s.consumed
		s.consumed = 0
		s.link.enlist(s)
	}
	return message, nil
}

// send queues a message once there is room for it.
func (s *stream) send(message []byte) error {
	s.link.mu.Lock()
	defer s.link.mu.Unlock()
	for s.put >= s.granted && s.over == nil {
		s.changed.Wait()
	}
	if s.over != nil {
		return s.over
	}
	s.put += len(message) + overhead
	s.queue = append(s.queue, message)
	s.link.enlist(s)
	return nil
}

// begin sends metadata ahead of the first message.
func (s *stream) begin(entries []*registry.MetadataEntry) {
	s.link.mu.Lock()
	defer s.link.mu.Unlock()
	s.initial = &registry.StreamMetadata{Entries: entries}
	s.link.enlist(s)
}

// finish ends the answer behind all its messages.
func (s *stream) finish(status *registry.StreamStatus) {
	s.link.mu.Lock()
	defer s.link.mu.Unlock()
	if s.status == nil {
		s.status = status
		s.link.enlist(s)
	}
}

// What is sent

func (s *stream) hasOutput() bool {
	if s.link.streams[s.id] != s {
		return false
	}
	if s.initial != nil || s.credit > 0 || len(s.rest) > 0 {
		return true
	}
	if len(s.queue) > 0 {
		return s.sent < s.granted
	}
	return s.status != nil
}

func (s *stream) frame() *registry.StreamFrame {
	frame := &registry.StreamFrame{
		StreamId: s.id, InitialMetadata: s.initial, Credit: uint32(s.credit),
	}
	s.initial, s.credit = nil, 0
	left := turn
	for len(s.rest) == 0 && len(s.queue) > 0 && s.sent < s.granted && left > 0 {
		message := s.queue[0]
		s.queue = s.queue[1:]
		s.sent += len(message) + overhead
		if len(message) > turn {
			s.rest = message
			break
		}
		frame.Messages = append(frame.Messages, message)
		left -= len(message) + overhead
	}
	if len(s.rest) > 0 && left > 0 {
		size := min(left, len(s.rest))
		frame.Piece = &registry.StreamPiece{
			Data: s.rest[:size], Missing: uint32(len(s.rest) - size),
		}
		s.rest = s.rest[size:]
	}
	if len(s.rest) == 0 && len(s.queue) == 0 && s.status != nil {
		frame.Status = s.status
		s.end(errors.New("it was answered"))
	}
	return frame
}

// What comes

func (s *stream) hear(frame *registry.StreamFrame) {
	if frame.Cancel != nil {
		s.end(errors.New(frame.Cancel.Reason))
		return
	}
	problem := s.take(frame)
	if problem != "" {
		// Nothing that waits is sent: the status is all that follows.
		s.queue, s.rest, s.inbox = nil, nil, nil
		s.over = errors.New(problem)
		s.status = &registry.StreamStatus{Code: int32(codes.ResourceExhausted), Message: problem}
	}
	s.ended = s.ended || frame.HalfClose
	s.granted += int(frame.Credit)
	s.link.enlist(s)
	s.changed.Broadcast()
}

// take takes messages in; what was wrong with them, if anything was.
func (s *stream) take(frame *registry.StreamFrame) string {
	if s.over != nil || (len(frame.Messages) == 0 && frame.Piece == nil) {
		return ""
	}
	if s.ended || (len(frame.Messages) > 0 && s.missing > 0) {
		return "a message where none may be"
	}
	for _, message := range frame.Messages {
		if s.received >= s.allowed {
			return "more than was allowed"
		}
		s.received += len(message) + overhead
		s.inbox = append(s.inbox, message)
	}
	if frame.Piece == nil {
		return ""
	}
	size, missing := len(frame.Piece.Data), int(frame.Piece.Missing)
	switch {
	case s.missing == 0 && s.received >= s.allowed:
		return "more than was allowed"
	case s.missing == 0 && size+missing > largestMessage:
		return "too large a message"
	case s.missing == 0:
		s.received += size + missing + overhead
		s.begun = make([]byte, 0, size+missing)
	case s.missing != size+missing:
		return "pieces that do not make a message"
	}
	s.begun = append(s.begun, frame.Piece.Data...)
	s.missing = missing
	if missing == 0 {
		s.inbox = append(s.inbox, s.begun)
		s.begun = nil
	}
	return ""
}

func (s *stream) end(why error) {
	delete(s.link.streams, s.id)
	s.over = why
	s.changed.Broadcast()
}
