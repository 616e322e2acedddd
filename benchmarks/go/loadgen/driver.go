package main

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"revconn/benchmarks/registry"
)

// stream is a reverse connection's, seen from either end.
type stream interface {
	Context() context.Context
	SendMsg(message any) error
	RecvMsg(message any) error
}

// driver keeps requests in flight on one stream: as the gateway of a connector, or as a connector
// that calls another. The stream's goroutine receives and owns the tally; a second goroutine sends.
// A slot (a request and the time it was sent) belongs to the sender while its number is in free, and
// to the receiver from the moment its answer has arrived.
type driver struct {
	options   options
	meter     *meter
	requests  []*request
	sentAt    []time.Time
	free      chan int
	tally     tally
	lastBeat  time.Time
	connected chan struct{}
	start     <-chan struct{} // closed when every connector of the run is connected
	ended     chan error
}

func newDriver(o options, m *meter, start <-chan struct{}) (*driver, error) {
	d := &driver{
		options:   o,
		meter:     m,
		sentAt:    make([]time.Time, o.inFlight),
		free:      make(chan int, o.inFlight),
		connected: make(chan struct{}),
		start:     start,
		ended:     make(chan error, 1),
	}
	d.tally.latencies = make([]time.Duration, 0, (1<<20)/o.connections)
	for slot := range o.inFlight {
		request, err := newRequest(slot, o.payload)
		if err != nil {
			return nil, err
		}
		d.requests = append(d.requests, request)
		d.free <- slot
	}
	return d, nil
}

// end says how the run's stream ended; only the first word counts.
func (d *driver) end(err error) {
	select {
	case d.ended <- err:
	default:
	}
}

func (d *driver) send(stream stream) {
	select { // a process that is busy with the first of its connectors is slow to connect the others
	case <-d.start:
	case <-stream.Context().Done():
		return
	}
	for slot := range d.free {
		request := d.requests[slot]
		request.renew()
		d.sentAt[slot] = time.Now()
		if stream.SendMsg(&request.message) != nil {
			return // the receiver learns why
		}
	}
}

// receive reads until the window is over and everything in flight was answered.
func (d *driver) receive(stream stream) error {
	unanswered := len(d.requests)
	var message []byte
	for unanswered > 0 || d.meter.phase.Load() != over {
		if err := stream.RecvMsg(&message); err != nil {
			if d.meter.phase.Load() != over {
				return fmt.Errorf("the peer's stream ended: %w", err)
			}
			d.tally.fail(fmt.Errorf("%d requests never answered: %w", unanswered, err))
			d.tally.errors += unanswered - 1
			break
		}
		now := time.Now()
		response, ok, err := parseResponse(message)
		if err != nil {
			return err
		}
		if !ok {
			d.other(message, now)
			continue
		}
		slot, err := d.check(response)
		if err != nil {
			d.tally.fail(err)
		}
		if slot < 0 {
			continue
		}
		switch d.meter.phase.Load() {
		case measured:
			d.tally.latencies = append(d.tally.latencies, now.Sub(d.sentAt[slot]))
			d.free <- slot
		case warmingUp:
			d.free <- slot
		case over:
			unanswered--
		}
	}
	d.beat(time.Now()) // one that should have come by now is late
	return nil
}

// check returns the slot that was answered, or -1 when the answer belongs to none.
func (d *driver) check(r response) (int, error) {
	slot, err := slotOf(r.id)
	if err != nil {
		return -1, err
	}
	if slot >= len(d.requests) || !bytes.Equal(r.id, d.requests[slot].id) {
		return -1, fmt.Errorf("answer to an unknown request id %q", r.id)
	}
	if r.statusCode != 200 {
		return slot, fmt.Errorf("status %d: %s", r.statusCode, r.errorMessage)
	}
	if !bytes.Equal(r.payload, d.options.payload) {
		return slot, fmt.Errorf("wrong payload of %d bytes", len(r.payload))
	}
	return slot, nil
}

func (d *driver) other(encoded []byte, now time.Time) {
	var message registry.ConnectionMessage
	if err := proto.Unmarshal(encoded, &message); err != nil {
		d.tally.fail(err)
		return
	}
	heartbeat := message.GetHeartbeat()
	switch {
	case heartbeat == nil:
		d.tally.fail(fmt.Errorf("unexpected message: %v", &message))
	case heartbeat.ConnectionId != connectionID:
		d.tally.fail(fmt.Errorf("heartbeat with connection id %q", heartbeat.ConnectionId))
	case now.Sub(time.Unix(heartbeat.Timestamp, 0)).Abs() > 10*time.Second:
		d.tally.fail(fmt.Errorf("heartbeat of Unix second %d", heartbeat.Timestamp))
	default:
		d.tally.heartbeats++
		d.beat(now)
	}
}

// beat records how much later than one interval after the previous heartbeat it is.
func (d *driver) beat(now time.Time) {
	d.tally.lateness = max(d.tally.lateness, now.Sub(d.lastBeat)-d.options.heartbeatInterval)
	d.lastBeat = now
}
