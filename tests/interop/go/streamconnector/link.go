package main

import (
	"sync"

	"revconn/benchmarks/registry"
)

// link is what a connection's goroutines share: its streams, and what waits to be sent. Whoever has
// something to say leaves it here, so that receiving never waits for sending.
type link struct {
	mu      sync.Mutex
	wake    *sync.Cond                    // there is something to send
	said    []*registry.ConnectionMessage // goes ahead of streams
	ready   []*stream                     // in whose turn it is to send
	streams map[uint32]*stream
	lastID  uint32
}

func newLink() *link {
	l := &link{streams: make(map[uint32]*stream)}
	l.wake = sync.NewCond(&l.mu)
	return l
}

// say sends a message that is of no stream.
func (l *link) say(message *registry.ConnectionMessage) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.said = append(l.said, message)
	l.wake.Signal()
}

// hear takes in a frame. What comes of a stream that is over is ignored.
func (l *link) hear(frame *registry.StreamFrame) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.streams[frame.StreamId]
	if s == nil {
		if frame.StreamId <= l.lastID || frame.Opening == nil {
			return
		}
		l.lastID = frame.StreamId
		s = newStream(l, frame.StreamId, frame.Opening)
		l.streams[s.id] = s
		go s.run()
	}
	s.hear(frame)
}

// enlist gives a stream a turn if it has something to send. Requires the lock.
func (l *link) enlist(s *stream) {
	if !s.isReady && s.hasOutput() {
		s.isReady = true
		l.ready = append(l.ready, s)
		l.wake.Signal()
	}
}

// write sends what there is to send until the connection ends, of which the receiver learns why.
func (l *link) write(wire registry.RegistryService_EstablishConnectionClient) {
	for {
		if err := wire.Send(l.next()); err != nil {
			return
		}
	}
}

func (l *link) next() *registry.ConnectionMessage {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		if len(l.said) > 0 {
			message := l.said[0]
			l.said = l.said[1:]
			return message
		}
		if len(l.ready) == 0 {
			l.wake.Wait()
			continue
		}
		s := l.ready[0]
		l.ready = l.ready[1:]
		s.isReady = false
		if !s.hasOutput() {
			continue
		}
		frame := s.frame()
		l.enlist(s)
		return &registry.ConnectionMessage{
			MessageType: &registry.ConnectionMessage_Stream{Stream: frame},
		}
	}
}
