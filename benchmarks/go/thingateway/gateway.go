package main

import (
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"revconn/benchmarks/registry"
)

const (
	queuedMessages = 1000
	timeout        = 30 // seconds; what a request says, and nobody watches
)

// connector is one that has registered, and what it is to be sent.
type connector struct {
	services []string
	outbound chan *registry.ConnectionMessage
	left     chan struct{} // closed when its stream has ended
}

func (c *connector) tell(message *registry.ConnectionMessage) {
	select {
	case c.outbound <- message:
	case <-c.left:
	}
}

// gateway has the connectors of each service, which take turns, and who waits for an answer.
type gateway struct {
	registry.UnimplementedRegistryServiceServer
	mutex   sync.Mutex
	routes  map[string][]*connector
	turn    int
	pending map[string]func(*registry.ForwardResponse)
}

func newGateway() *gateway {
	return &gateway{
		routes:  make(map[string][]*connector),
		pending: make(map[string]func(*registry.ForwardResponse)),
	}
}

// EstablishConnection holds a connector's stream.
func (g *gateway) EstablishConnection(
	stream registry.RegistryService_EstablishConnectionServer,
) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	register := first.GetRegister()
	if register == nil {
		return status.Error(codes.InvalidArgument, "register first")
	}
	c := &connector{
		services: register.Services,
		outbound: make(chan *registry.ConnectionMessage, queuedMessages),
		left:     make(chan struct{}),
	}
	defer close(c.left)
	c.tell(&registry.ConnectionMessage{
		MessageType: &registry.ConnectionMessage_Status{Status: &registry.ConnectionStatus{
			ConnectionId: newID(), Status: registry.ConnectionStatus_CONNECTED,
		}},
	})
	go c.send(stream)
	g.add(c)
	defer g.remove(c)
	for {
		message, err := stream.Recv()
		if err != nil {
			return nil // it has left, or is lost
		}
		switch body := message.MessageType.(type) {
		case *registry.ConnectionMessage_Request:
			g.callFor(c, body.Request)
		case *registry.ConnectionMessage_Response:
			g.answer(body.Response)
		}
	}
}

func (c *connector) send(stream registry.RegistryService_EstablishConnectionServer) {
	for {
		select {
		case message := <-c.outbound:
			if stream.Send(message) != nil {
				return // the receive loop learns why
			}
		case <-c.left:
			return
		}
	}
}

func (g *gateway) add(c *connector) {
	g.mutex.Lock()
	defer g.mutex.Unlock()
	for _, service := range c.services {
		g.routes[service] = append(g.routes[service], c)
	}
}

func (g *gateway) remove(c *connector) {
	g.mutex.Lock()
	defer g.mutex.Unlock()
	for _, service := range c.services {
		g.routes[service] = slices.DeleteFunc(
			g.routes[service], func(other *connector) bool { return other == c },
		)
	}
}

// forward sends a request to a connector of its service; whether there is one.
func (g *gateway) forward(
	request *registry.ForwardRequest, answered func(*registry.ForwardResponse),
) bool {
	service, _, _ := strings.Cut(strings.TrimPrefix(request.MethodPath, "/"), "/")
	g.mutex.Lock()
	routes := g.routes[service]
	if len(routes) == 0 {
		g.mutex.Unlock()
		return false
	}
	g.turn++
	c := routes[g.turn%len(routes)]
	g.pending[request.RequestId] = answered
	g.mutex.Unlock()
	c.tell(&registry.ConnectionMessage{
		MessageType: &registry.ConnectionMessage_Request{Request: request},
	})
	return true
}

func (g *gateway) answer(response *registry.ForwardResponse) {
	if answered := g.forget(response.RequestId); answered != nil {
		answered(response)
	}
}

func (g *gateway) forget(id string) func(*registry.ForwardResponse) {
	g.mutex.Lock()
	defer g.mutex.Unlock()
	answered := g.pending[id]
	delete(g.pending, id)
	return answered
}

// callFor is a call from a connector, which is answered on its stream.
func (g *gateway) callFor(c *connector, request *registry.ForwardRequest) {
	request.TimeoutSeconds = timeout
	answered := func(response *registry.ForwardResponse) {
		c.tell(&registry.ConnectionMessage{
			MessageType: &registry.ConnectionMessage_Response{Response: response},
		})
	}
	if !g.forward(request, answered) {
		answered(&registry.ForwardResponse{
			RequestId: request.RequestId, StatusCode: 500, ErrorMessage: "no such service",
		})
	}
}

// call is one from outside, of whatever method.
func (g *gateway) call(_ any, stream grpc.ServerStream) error {
	var payload raw
	if err := stream.RecvMsg(&payload); err != nil {
		return err
	}
	method, _ := grpc.MethodFromServerStream(stream)
	received, _ := metadata.FromIncomingContext(stream.Context())
	headers := make(map[string]string, len(received))
	for name, values := range received {
		headers[name] = strings.Join(values, ",")
	}
	id := newID()
	answers := make(chan *registry.ForwardResponse, 1)
	routed := g.forward(&registry.ForwardRequest{
		RequestId:      id,
		MethodPath:     method,
		Headers:        headers,
		Payload:        payload,
		TimeoutSeconds: timeout,
	}, func(response *registry.ForwardResponse) { answers <- response })
	if !routed {
		return status.Error(codes.Unimplemented, "no such service")
	}
	select {
	case response := <-answers:
		if response.StatusCode != 200 {
			return status.Error(codes.Unknown, response.ErrorMessage)
		}
		answer := raw(response.Payload)
		return stream.SendMsg(&answer)
	case <-stream.Context().Done():
		g.forget(id)
		return status.FromContextError(stream.Context().Err()).Err()
	}
}

// newID is a random UUID.
func newID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
