// Command streamclient calls the streaming methods of interop connectors through gateways, as any
// grpc-go program would, and prints one line of JSON for each try: its name, what was wrong or an
// empty string, and how many milliseconds it took.
package main

import (
	"encoding/json"
	"log"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
)

// raw passes messages on as they are.
type raw struct{}

func (raw) Name() string { return "proto" }

func (raw) Marshal(message any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(*message.(*[]byte))}, nil
}

func (raw) Unmarshal(data mem.BufferSlice, message any) error {
	*message.(*[]byte) = data.Materialize()
	return nil
}

type report struct {
	Try          string `json:"try"`
	Problem      string `json:"problem"`
	Milliseconds int64  `json:"ms"`
}

func main() {
	if len(os.Args) < 2 {
		log.Fatal("usage: streamclient GATEWAY-ADDRESS/CASE...")
	}
	lines := json.NewEncoder(os.Stdout)
	for _, one := range os.Args[1:] {
		address, name, _ := strings.Cut(one, "/")
		began := time.Now()
		said := report{Try: one}
		if err := try(address, name); err != nil {
			said.Problem = err.Error()
		}
		said.Milliseconds = time.Since(began).Milliseconds()
		if err := lines.Encode(said); err != nil {
			log.Fatal(err)
		}
	}
}

func try(address, name string) error {
	run, known := cases[name]
	if !known {
		log.Fatalf("no such case: %q", name)
	}
	connection, err := grpc.NewClient(
		address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(raw{})),
	)
	if err != nil {
		return err
	}
	defer connection.Close()
	return run(streams{connection})
}
