// The repository's own schemas, read as they are.
import { fileURLToPath } from "node:url";

import grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";

const PROTOS = fileURLToPath(new URL("../../../protos/", import.meta.url));

export const LARGEST_MESSAGE = 16 << 20;

export function load(name) {
  const definition = loadSync(name, { includeDirs: [PROTOS], longs: Number, oneofs: true });
  return grpc.loadPackageDefinition(definition);
}
