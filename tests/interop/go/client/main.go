// Command client calls an interop connector through a gateway, as any grpc-go program would, and
// prints one line of JSON for each case: its name, and what was wrong or an empty string.
package main

import (
	"encoding/json"
	"log"
	"os"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

const largestMessage = 16 << 20

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: client GATEWAY-ADDRESS")
	}
	connection, err := grpc.NewClient(
		os.Args[1],
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(largestMessage)),
	)
	if err != nil {
		log.Fatal(err)
	}
	defer connection.Close()
	for _, one := range cases {
		report(one.name, one.run(greeter{connection}))
	}
}

func report(name string, err error) {
	problem := ""
	if err != nil {
		problem = err.Error()
	}
	line, err := json.Marshal(map[string]string{"case": name, "problem": problem})
	if err != nil {
		log.Fatal(err)
	}
	os.Stdout.Write(append(line, '\n'))
}
