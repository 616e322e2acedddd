package main

import (
	"bytes"
	"fmt"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"revconn/benchmarks/registry"
)

const connectionID = "6f0f1f9e-3c59-4f0c-9d6e-2b1a7c5d8e43"

// gateway drives one connector. The stream's goroutine receives and owns the tally; a second
// goroutine sends. A slot (a request and the time it was sent) belongs to the sender while its
// number is in free, and to the receiver from the moment its answer has arrived.
type gateway struct {
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

func newGateway(o options, m *meter, start <-chan struct{}) (*gateway, error) {
	g := &gateway{
		options:   o,
		meter:     m,
		sentAt:    make([]time.Time, o.inFlight),
		free:      make(chan int, o.inFlight),
		connected: make(chan struct{}),
		start:     start,
		ended:     make(chan error, 1),
	}
	g.tally.latencies = make([]time.Duration, 0, (1<<20)/o.connections)
	for slot := range o.inFlight {
		request, err := newRequest(slot, o.payload)
		if err != nil {
			return nil, err
		}
		g.requests = append(g.requests, request)
		g.free <- slot
	}
	return g, nil
}

func runGateway(o options) (result, error) {
	var m meter
	gateways := make([]*gateway, o.connections)
	waiting := make(chan *gateway, o.connections)
	start := make(chan struct{})
	lookedAt := make(chan struct{}) // closed when the harness has read what the peers took
	for i := range gateways {
		g, err := newGateway(o, &m, start)
		if err != nil {
			return result{}, err
		}
		gateways[i] = g
		waiting <- g
	}
	server, err := serve(o, func(_ any, stream grpc.ServerStream) error {
		select {
		case g := <-waiting:
			err := g.establish(stream)
			select { // a peer may end with its stream
			case <-lookedAt:
			case <-stream.Context().Done():
			}
			return err
		default:
			if m.phase.Load() != over { // later the first to be done may come again
				for _, g := range gateways {
					g.end(fmt.Errorf("more connections than %d", o.connections))
				}
			}
			return status.Error(codes.ResourceExhausted, "every expected connection is here")
		}
	})
	if err != nil {
		return result{}, err
	}
	defer server.Stop()

	timeout := time.After(connectTimeout)
	for _, g := range gateways {
		select {
		case <-g.connected:
		case err := <-g.ended:
			return result{}, err
		case <-timeout:
			return result{}, fmt.Errorf("not every connector registered within %v", connectTimeout)
		}
	}
	close(start)
	m.run(o)
	close(lookedAt)

	var total tally
	timeout = time.After(drainTimeout)
	for _, g := range gateways {
		select {
		case err = <-g.ended:
		case <-timeout:
			server.Stop()
			err = <-g.ended
		}
		if err != nil {
			return result{}, err
		}
		total.add(&g.tally)
	}
	return m.result(&total), nil
}

// serve announces the address where establish answers each reverse connection.
func serve(o options, establish grpc.StreamHandler) (*grpc.Server, error) {
	settings := []grpc.ServerOption{
		grpc.ForceServerCodecV2(rawCodec{}),
		grpc.MaxConcurrentStreams(16),
		grpc.MaxRecvMsgSize(256 << 20),
		grpc.WriteBufferSize(128 << 10),
		grpc.ReadBufferSize(128 << 10),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{
			MinTime: 500 * time.Millisecond, PermitWithoutStream: true,
		}),
	}
	if !o.dynamicWindows {
		settings = append(settings, grpc.InitialWindowSize(staticWindow),
			grpc.InitialConnWindowSize(staticWindow))
	}
	if o.certificate != "" {
		certificate, err := makeCertificate(o.certificate)
		if err != nil {
			return nil, err
		}
		settings = append(settings, grpc.Creds(credentials.NewServerTLSFromCert(certificate)))
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	server := grpc.NewServer(settings...)
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: "registry.RegistryService",
		Streams: []grpc.StreamDesc{{
			StreamName:    "EstablishConnection",
			Handler:       establish,
			ServerStreams: true,
			ClientStreams: true,
		}},
	}, nil)
	go server.Serve(listener)
	emit(map[string]string{"event": "listening", "address": listener.Addr().String()})
	return server, nil
}

func (g *gateway) establish(stream grpc.ServerStream) error {
	if err := g.handshake(stream); err != nil {
		g.end(err)
		return status.Error(codes.InvalidArgument, err.Error())
	}
	close(g.connected)
	go g.send(stream)
	g.end(g.receive(stream))
	return nil
}

// end says how the run's stream ended; only the first word counts.
func (g *gateway) end(err error) {
	select {
	case g.ended <- err:
	default:
	}
}

func (g *gateway) handshake(stream grpc.ServerStream) error {
	var encoded []byte
	if err := stream.RecvMsg(&encoded); err != nil {
		return fmt.Errorf("waiting for register: %w", err)
	}
	var message registry.ConnectionMessage
	if err := proto.Unmarshal(encoded, &message); err != nil {
		return err
	}
	if register := message.GetRegister(); len(register.GetServices()) == 0 {
		return fmt.Errorf("the first message registers no service: %v", &message)
	}
	encoded, err := proto.Marshal(&registry.ConnectionMessage{
		MessageType: &registry.ConnectionMessage_Status{Status: &registry.ConnectionStatus{
			ConnectionId: connectionID,
			Status:       registry.ConnectionStatus_CONNECTED,
			Message:      "Connection established",
		}},
	})
	if err != nil {
		return err
	}
	g.lastBeat = time.Now()
	return stream.SendMsg(&encoded)
}

func (g *gateway) send(stream grpc.ServerStream) {
	select { // a process that is busy with the first of its connectors is slow to connect the others
	case <-g.start:
	case <-stream.Context().Done():
		return
	}
	for slot := range g.free {
		request := g.requests[slot]
		request.renew()
		g.sentAt[slot] = time.Now()
		if stream.SendMsg(&request.message) != nil {
			return // the receiver learns why
		}
	}
}

// receive reads until the window is over and everything in flight was answered.
func (g *gateway) receive(stream grpc.ServerStream) error {
	unanswered := len(g.requests)
	var message []byte
	for unanswered > 0 || g.meter.phase.Load() != over {
		if err := stream.RecvMsg(&message); err != nil {
			if g.meter.phase.Load() != over {
				return fmt.Errorf("the peer's stream ended: %w", err)
			}
			g.tally.fail(fmt.Errorf("%d requests never answered: %w", unanswered, err))
			g.tally.errors += unanswered - 1
			break
		}
		now := time.Now()
		response, ok, err := parseResponse(message)
		if err != nil {
			return err
		}
		if !ok {
			g.other(message, now)
			continue
		}
		slot, err := g.check(response)
		if err != nil {
			g.tally.fail(err)
		}
		if slot < 0 {
			continue
		}
		switch g.meter.phase.Load() {
		case measured:
			g.tally.latencies = append(g.tally.latencies, now.Sub(g.sentAt[slot]))
			g.free <- slot
		case warmingUp:
			g.free <- slot
		case over:
			unanswered--
		}
	}
	g.beat(time.Now()) // one that should have come by now is late
	return nil
}

// check returns the slot that was answered, or -1 when the answer belongs to none.
func (g *gateway) check(r response) (int, error) {
	slot, err := slotOf(r.id)
	if err != nil {
		return -1, err
	}
	if slot >= len(g.requests) || !bytes.Equal(r.id, g.requests[slot].id) {
		return -1, fmt.Errorf("answer to an unknown request id %q", r.id)
	}
	if r.statusCode != 200 {
		return slot, fmt.Errorf("status %d: %s", r.statusCode, r.errorMessage)
	}
	if !bytes.Equal(r.payload, g.options.payload) {
		return slot, fmt.Errorf("wrong payload of %d bytes", len(r.payload))
	}
	return slot, nil
}

func (g *gateway) other(encoded []byte, now time.Time) {
	var message registry.ConnectionMessage
	if err := proto.Unmarshal(encoded, &message); err != nil {
		g.tally.fail(err)
		return
	}
	heartbeat := message.GetHeartbeat()
	switch {
	case heartbeat == nil:
		g.tally.fail(fmt.Errorf("unexpected message: %v", &message))
	case heartbeat.ConnectionId != connectionID:
		g.tally.fail(fmt.Errorf("heartbeat with connection id %q", heartbeat.ConnectionId))
	case now.Sub(time.Unix(heartbeat.Timestamp, 0)).Abs() > 10*time.Second:
		g.tally.fail(fmt.Errorf("heartbeat of Unix second %d", heartbeat.Timestamp))
	default:
		g.tally.heartbeats++
		g.beat(now)
	}
}

// beat records how much later than one interval after the previous heartbeat it is.
func (g *gateway) beat(now time.Time) {
	g.tally.lateness = max(g.tally.lateness, now.Sub(g.lastBeat)-g.options.heartbeatInterval)
	g.lastBeat = now
}
