// Command client calls interop connectors through gateways, as any grpc-go program would, and
// prints one line of JSON for each try: its name, and what was wrong or an empty string.
package main

import (
	"encoding/json"
	"log"
	"os"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

const largestMessage = 16 << 20

func main() {
	if len(os.Args) < 2 {
		log.Fatal("usage: client GATEWAY-ADDRESS/CASE...")
	}
	for _, one := range os.Args[1:] {
		address, name, _ := strings.Cut(one, "/")
		report(one, try(address, name))
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
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(largestMessage)),
	)
	if err != nil {
		return err
	}
	defer connection.Close()
	return run(greeter{connection})
}

func report(name string, err error) {
	problem := ""
	if err != nil {
		problem = err.Error()
	}
	line, err := json.Marshal(map[string]string{"try": name, "problem": problem})
	if err != nil {
		log.Fatal(err)
	}
	os.Stdout.Write(append(line, '\n'))
}
