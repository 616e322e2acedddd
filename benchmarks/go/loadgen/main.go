// Command loadgen keeps a fixed number of echo requests in flight and measures a window of time.
//
// Without -connect it is the gateway of a reverse connection: it listens, accepts its connectors
// and pushes requests down their streams. With -connect it is an ordinary client of a gRPC server,
// with -through a connector at a gateway, which calls another one there.
//
// It prints one JSON object per line: {"event": "listening", "address": …} once it accepts
// connectors, "window-start" and "window-end" at those moments, and "result" at the end.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"os"
	"runtime/debug"
	"time"
)

const (
	methodPath     = "/echo.Echo/Say"
	connectTimeout = 10 * time.Second
	drainTimeout   = 5 * time.Second
	largestMessage = 256 << 20
	// A window that is given switches grpc-go's bandwidth estimate off, and with it the PING and
	// the WINDOW_UPDATE that follow every lone request.
	staticWindow = 1 << 20
)

type options struct {
	connect           string
	through           string
	ca                string
	channels          int
	certificate       string
	connections       int
	inFlight          int
	payload           []byte
	warmup            time.Duration
	window            time.Duration
	heartbeatInterval time.Duration
	dynamicWindows    bool
}

func main() {
	var o options
	var payloadBytes int
	flag.StringVar(&o.connect, "connect", "", "be a client of the gRPC server at this address")
	flag.StringVar(&o.through, "through", "",
		"be a connector of the gateway at this address, and call another one")
	flag.StringVar(&o.ca, "ca", "",
		"with -connect: speak TLS, and trust the certificate in this file")
	flag.IntVar(&o.channels, "channels", 1,
		"with -connect: HTTP/2 connections that the requests are spread over")
	directory := flag.String("make-certificate", "",
		"write a certificate and its key, cert.pem and key.pem, into this directory, and end")
	flag.StringVar(&o.certificate, "certificate", "",
		"speak TLS, with a certificate that is made now and written to this file")
	flag.IntVar(&o.connections, "connections", 1, "connectors to wait for")
	flag.IntVar(&o.inFlight, "in-flight", 64, "requests kept in flight, for each connector")
	flag.IntVar(&payloadBytes, "payload", 64, "bytes per request")
	warmup := flag.Float64("warmup", 0.5, "seconds of load before the window")
	seconds := flag.Float64("seconds", 3, "length of the measured window")
	heartbeat := flag.Float64("heartbeat-interval", 1,
		"seconds between heartbeats, as the connector was told")
	flag.BoolVar(&o.dynamicWindows, "dynamic-windows", false,
		"grpc-go's own windows, which it adapts to bandwidth that it estimates with pings")
	flag.Parse()
	o.payload = protobufBytes(payloadBytes)
	o.warmup, o.window = duration(*warmup), duration(*seconds)
	o.heartbeatInterval = duration(*heartbeat)

	// Few and large collections: the load generator must not be what is measured.
	debug.SetGCPercent(800)

	run := runGateway
	switch {
	case *directory != "":
		if err := writeCertificate(*directory); err != nil {
			log.Fatal(err)
		}
		return
	case o.connect != "":
		run = runClient
	case o.through != "":
		run = runConnector
	}
	result, err := run(o)
	if err != nil {
		fmt.Fprintln(os.Stderr, "loadgen:", err)
		os.Exit(1)
	}
	emit(result)
}

func duration(seconds float64) time.Duration {
	return time.Duration(seconds * float64(time.Second))
}

// protobufBytes begins like a protobuf message, with the tag of a length-delimited field 1: a
// payload that begins with 0x00 or 0x01 would be taken for one with gRPC's prefix.
func protobufBytes(size int) []byte {
	payload := make([]byte, size)
	for i := range payload {
		payload[i] = byte('a' + i%26)
	}
	if size > 0 {
		payload[0] = 0x0a
	}
	return payload
}

func emit(event any) {
	line, err := json.Marshal(event)
	if err != nil {
		panic(err)
	}
	os.Stdout.Write(append(line, '\n'))
}
