// A connector: registers demo.Greeter, sends heartbeats, answers, and takes its leave on SIGTERM.
// usage: connector.js GATEWAY-ADDRESS API-KEY
import process from "node:process";
import { setTimeout as sleep } from "node:timers/promises";

import grpc from "@grpc/grpc-js";

import { LARGEST_MESSAGE, load } from "./proto.js";

const HEARTBEAT_INTERVAL = 1000; // milliseconds
const WAITING_TIME = 2000;
const ECHO_PREFIX = "echo-";
const FAILURE = "no such order: größer als 50 %";

// Echoes the payload, and each header echo-NAME as the header NAME. The method Goodbye is not
// there. The header "interop" asks for something else: "fail" for NOT_FOUND, "wait" for an answer
// that comes late, "timeout" for the request's timeout in the header seen-timeout.
async function answer(request) {
  const headers = {};
  for (const [name, value] of Object.entries(request.headers)) {
    if (name.startsWith(ECHO_PREFIX)) headers[name.slice(ECHO_PREFIX.length)] = value;
  }
  const response = { requestId: request.requestId, statusCode: 200, headers };
  const wish = request.headers.interop;
  if (request.methodPath.endsWith("/Goodbye")) {
    return failed(response, 12, `no such method: ${request.methodPath}`);
  }
  if (wish === "fail") return failed(response, 5, FAILURE);
  if (wish === "wait") await sleep(WAITING_TIME);
  if (wish === "timeout") headers["seen-timeout"] = String(request.timeoutSeconds);
  return { ...response, payload: request.payload };
}

function failed(response, code, message) {
  response.headers["grpc-status"] = String(code);
  response.headers["grpc-message"] = encodeURIComponent(message);
  return { ...response, statusCode: 404, errorMessage: message };
}

function connect(address, apiKey) {
  const { RegistryService } = load("registry.proto").registry;
  const client = new RegistryService(address, grpc.credentials.createInsecure(), {
    "grpc.max_receive_message_length": LARGEST_MESSAGE,
  });
  const stream = client.EstablishConnection();
  let heart;
  stream.on("data", async (message) => {
    if (message.request) {
      stream.write({ response: await answer(message.request) });
    } else if (message.status) {
      const { connectionId } = message.status;
      heart = setInterval(() => {
        const timestamp = Math.floor(Date.now() / 1000);
        stream.write({ heartbeat: { timestamp, connectionId } });
      }, HEARTBEAT_INTERVAL);
      process.on("SIGTERM", () => {
        stream.write({ status: { connectionId, status: "DISCONNECTED" } });
      });
    }
  });
  stream.on("end", () => stream.end());
  stream.on("error", (error) => {
    console.error(String(error));
    process.exitCode = 1;
  });
  stream.on("status", () => {
    clearInterval(heart);
    client.close();
  });
  stream.write({ register: { apiKey, services: ["demo.Greeter"] } });
}

connect(...process.argv.slice(2));
