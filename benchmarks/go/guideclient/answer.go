package main

import (
	"net/url"
	"strconv"
	"strings"
	"time"

	"revconn/benchmarks/registry"
)

const (
	echoPrefix  = "echo-"
	failure     = "no such order: größer als 50 %"
	waitingTime = 2 * time.Second
)

// answer echoes the payload, and each header echo-NAME as the header NAME. The method Goodbye is
// not there. The header "interop" asks for something else: "fail" for NOT_FOUND, "wait" for an
// answer that comes late, "timeout" for the request's timeout in the header seen-timeout.
func answer(request *registry.ForwardRequest) *registry.ConnectionMessage {
	response := &registry.ForwardResponse{
		RequestId: request.RequestId, StatusCode: 200, Headers: echoed(request.Headers),
	}
	switch wish := request.Headers["interop"]; {
	case strings.HasSuffix(request.MethodPath, "/Goodbye"):
		fail(response, 404, 12, "no such method: "+request.MethodPath)
	case wish == "fail":
		fail(response, 404, 5, failure)
	default:
		if wish == "wait" {
			time.Sleep(waitingTime)
		}
		if wish == "timeout" {
			response.Headers["seen-timeout"] = strconv.Itoa(int(request.TimeoutSeconds))
		}
		response.Payload = request.Payload
	}
	return &registry.ConnectionMessage{
		MessageType: &registry.ConnectionMessage_Response{Response: response},
	}
}

func fail(response *registry.ForwardResponse, status int32, code int, message string) {
	response.StatusCode, response.ErrorMessage = status, message
	response.Headers["grpc-status"] = strconv.Itoa(code)
	response.Headers["grpc-message"] = url.PathEscape(message)
}

func echoed(headers map[string]string) map[string]string {
	back := make(map[string]string)
	for name, value := range headers {
		if echo, found := strings.CutPrefix(name, echoPrefix); found {
			back[echo] = value
		}
	}
	return back
}
