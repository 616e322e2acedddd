package main

import (
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

func runGateway(o options) (result, error) {
	var m meter
	drivers := make([]*driver, o.connections)
	waiting := make(chan *driver, o.connections)
	start := make(chan struct{})
	lookedAt := make(chan struct{}) // closed when the harness has read what the peers took
	for i := range drivers {
		d, err := newDriver(o, &m, start)
		if err != nil {
			return result{}, err
		}
		drivers[i] = d
		waiting <- d
	}
	server, err := serve(o, func(_ any, stream grpc.ServerStream) error {
		select {
		case d := <-waiting:
			err := d.establish(stream)
			select { // a peer may end with its stream
			case <-lookedAt:
			case <-stream.Context().Done():
			}
			return err
		default:
			if m.phase.Load() != over { // later the first to be done may come again
				for _, d := range drivers {
					d.end(fmt.Errorf("more connections than %d", o.connections))
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
	for _, d := range drivers {
		select {
		case <-d.connected:
		case err := <-d.ended:
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
	for _, d := range drivers {
		select {
		case err = <-d.ended:
		case <-timeout:
			server.Stop()
			err = <-d.ended
		}
		if err != nil {
			return result{}, err
		}
		total.add(&d.tally)
	}
	return m.result(&total), nil
}

// serve announces the address where establish answers each reverse connection.
func serve(o options, establish grpc.StreamHandler) (*grpc.Server, error) {
	settings := []grpc.ServerOption{
		grpc.ForceServerCodecV2(rawCodec{}),
		grpc.MaxConcurrentStreams(16),
		grpc.MaxRecvMsgSize(largestMessage),
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

func (d *driver) establish(stream grpc.ServerStream) error {
	if err := d.handshake(stream); err != nil {
		d.end(err)
		return status.Error(codes.InvalidArgument, err.Error())
	}
	close(d.connected)
	go d.send(stream)
	d.end(d.receive(stream))
	return nil
}

func (d *driver) handshake(stream grpc.ServerStream) error {
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
	d.lastBeat = time.Now()
	return stream.SendMsg(&encoded)
}
