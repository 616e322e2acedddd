package interop;

import com.google.common.util.concurrent.ListenableFuture;
import com.google.gson.JsonObject;
import com.google.protobuf.Any;
import com.google.protobuf.ByteString;
import com.google.rpc.ErrorInfo;
import demo.Demo.HelloReply;
import demo.Demo.HelloRequest;
import demo.GreeterGrpc;
import demo.GreeterGrpc.GreeterBlockingStub;
import io.grpc.CallOptions;
import io.grpc.ManagedChannel;
import io.grpc.ManagedChannelBuilder;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.Status.Code;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.ClientCalls;
import io.grpc.stub.MetadataUtils;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CancellationException;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Semaphore;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicReference;

/**
 * Calls interop connectors through gateways, as any program with grpc-java would, and prints one
 * line of JSON for each try: its name, and what was wrong or an empty string.
 */
final class Client {
    private static final int LARGEST_MESSAGE = 16 << 20;
    private static final int CALLS = 200;
    private static final int AT_ONCE = 50;
    private static final String FAILURE = "no such order: größer als 50 %";
    private static final Metadata.Key<String> WISH = text("interop");

    private final ManagedChannel channel;
    private final GreeterBlockingStub greeter;

    private Client(ManagedChannel channel) {
        this.channel = channel;
        this.greeter = GreeterGrpc.newBlockingStub(channel);
    }

    private interface Case {
        void run() throws Exception;
    }

    public static void main(String[] arguments) {
        if (arguments.length == 0) {
            System.err.println("usage: Client GATEWAY-ADDRESS/CASE...");
            System.exit(2);
        }
        for (String one : arguments) {
            String[] addressAndCase = one.split("/");
            ManagedChannel channel =
                    ManagedChannelBuilder.forTarget(addressAndCase[0])
                            .usePlaintext()
                            .maxInboundMessageSize(LARGEST_MESSAGE)
                            .build();
            report(one, new Client(channel).cases().get(addressAndCase[1]));
            channel.shutdownNow();
        }
    }

    private static void report(String name, Case run) {
        String problem = "";
        try {
            run.run();
        } catch (Exception | AssertionError error) {
            problem = error.toString();
        }
        JsonObject line = new JsonObject();
        line.addProperty("try", name);
        line.addProperty("problem", problem);
        System.out.println(line);
    }

    private Map<String, Case> cases() {
        Map<String, Case> cases = new HashMap<>();
        cases.put("echo", () -> echo(greeter, "grüß dich", new byte[] {0, 1, -1}));
        cases.put("empty", () -> echo(greeter, "", new byte[0]));
        cases.put("large", () -> echo(greeter, "", new byte[10_000_000]));
        cases.put("gzip", () -> echo(greeter.withCompression("gzip"), "", new byte[1_000_000]));
        cases.put("metadata", this::inBothDirections);
        cases.put("many", this::manyAtOnce);
        cases.put("error", () -> fails(wishing("fail"), Code.NOT_FOUND, FAILURE));
        cases.put("details", this::details);
        cases.put("unknown method", this::unknownMethod);
        cases.put("unknown service", this::unknownService);
        cases.put("deadline", this::deadline);
        cases.put("timeout told", this::timeoutTold);
        cases.put("cancel", this::cancel);
        return cases;
    }

    private static void echo(GreeterBlockingStub stub, String name, byte[] padding) {
        HelloRequest request =
                HelloRequest.newBuilder()
                        .setName(name)
                        .setPadding(ByteString.copyFrom(padding))
                        .build();
        HelloReply reply = stub.hello(request);
        check(reply.getGreeting().equals(name), reply.getGreeting());
        check(reply.getPadding().equals(request.getPadding()), "other bytes came back");
    }

    private void inBothDirections() {
        byte[] trace = {0x00, (byte) 0xff, (byte) 0x80, 0x20, 0x0a};
        Metadata sent = new Metadata();
        sent.put(text("echo-note"), "a, b=c");
        sent.put(binary("echo-trace-bin"), trace);
        Metadata trailers = trailersOf(with(greeter, sent));
        check("a, b=c".equals(trailers.get(text("note"))), trailers.toString());
        check(Arrays.equals(trace, trailers.get(binary("trace-bin"))), trailers.toString());
    }

    private void manyAtOnce() throws Exception {
        Semaphore slots = new Semaphore(AT_ONCE);
        List<ListenableFuture<HelloReply>> replies = new ArrayList<>();
        for (int i = 0; i < CALLS; i++) {
            slots.acquire();
            HelloRequest request = HelloRequest.newBuilder().setName("call " + i).build();
            ListenableFuture<HelloReply> reply = GreeterGrpc.newFutureStub(channel).hello(request);
            reply.addListener(slots::release, Runnable::run);
            replies.add(reply);
        }
        for (int i = 0; i < CALLS; i++) {
            String greeting = replies.get(i).get().getGreeting();
            check(greeting.equals("call " + i), greeting);
        }
    }

    private void details() {
        ErrorInfo info =
                ErrorInfo.newBuilder().setReason("NO_SUCH_ORDER").setDomain("shop.example").build();
        com.google.rpc.Status status =
                com.google.rpc.Status.newBuilder()
                        .setCode(Code.NOT_FOUND.value())
                        .setMessage(FAILURE)
                        .addDetails(Any.pack(info))
                        .build();
        Metadata sent = new Metadata();
        sent.put(binary("echo-grpc-status-details-bin"), status.toByteArray());
        StatusRuntimeException error =
                fails(with(wishing("fail"), sent), Code.NOT_FOUND, FAILURE);
        com.google.rpc.Status came = StatusProto.fromThrowable(error);
        check(status.equals(came), String.valueOf(came));
    }

    private void unknownMethod() {
        try {
            greeter.goodbye(HelloRequest.getDefaultInstance());
        } catch (StatusRuntimeException error) {
            is(error, Code.UNIMPLEMENTED, "no such method: /demo.Greeter/Goodbye");
            return;
        }
        throw new AssertionError("it did not fail");
    }

    private void unknownService() {
        MethodDescriptor<HelloRequest, HelloReply> home =
                GreeterGrpc.getHelloMethod().toBuilder().setFullMethodName("no.Body/Home").build();
        HelloRequest request = HelloRequest.getDefaultInstance();
        try {
            ClientCalls.blockingUnaryCall(channel, home, CallOptions.DEFAULT, request);
        } catch (StatusRuntimeException error) {
            is(error, Code.UNAVAILABLE, "no connector serves no.Body");
            return;
        }
        throw new AssertionError("it did not fail");
    }

    private void deadline() {
        GreeterBlockingStub stub = wishing("wait").withDeadlineAfter(300, TimeUnit.MILLISECONDS);
        fails(stub, Code.DEADLINE_EXCEEDED, null);
    }

    private void timeoutTold() {
        Metadata trailers = trailersOf(wishing("timeout").withDeadlineAfter(9, TimeUnit.SECONDS));
        int seconds = Integer.parseInt(trailers.get(text("seen-timeout")));
        check(seconds >= 5 && seconds <= 10, "the connector was given " + seconds + " of 9 s");
    }

    private void cancel() throws Exception {
        Metadata wish = new Metadata();
        wish.put(WISH, "wait");
        ListenableFuture<HelloReply> reply =
                GreeterGrpc.newFutureStub(channel)
                        .withInterceptors(MetadataUtils.newAttachHeadersInterceptor(wish))
                        .hello(HelloRequest.getDefaultInstance());
        Thread.sleep(200);
        reply.cancel(true);
        try {
            reply.get();
        } catch (CancellationException expected) {
            return;
        } catch (ExecutionException error) {
            throw new AssertionError(error.getCause());
        }
        throw new AssertionError("it was not cancelled");
    }

    private GreeterBlockingStub wishing(String what) {
        Metadata wish = new Metadata();
        wish.put(WISH, what);
        return with(greeter, wish);
    }

    private static GreeterBlockingStub with(GreeterBlockingStub stub, Metadata metadata) {
        return stub.withInterceptors(MetadataUtils.newAttachHeadersInterceptor(metadata));
    }

    private static Metadata trailersOf(GreeterBlockingStub stub) {
        AtomicReference<Metadata> headers = new AtomicReference<>();
        AtomicReference<Metadata> trailers = new AtomicReference<>();
        stub.withInterceptors(MetadataUtils.newCaptureMetadataInterceptor(headers, trailers))
                .hello(HelloRequest.getDefaultInstance());
        return trailers.get();
    }

    private static StatusRuntimeException fails(
            GreeterBlockingStub stub, Code code, String description) {
        try {
            stub.hello(HelloRequest.getDefaultInstance());
        } catch (StatusRuntimeException error) {
            return is(error, code, description);
        }
        throw new AssertionError("it did not fail");
    }

    private static StatusRuntimeException is(
            StatusRuntimeException error, Code code, String description) {
        check(error.getStatus().getCode() == code, error.toString());
        String came = error.getStatus().getDescription();
        check(description == null || description.equals(came), error.toString());
        return error;
    }

    private static void check(boolean right, String problem) {
        if (!right) {
            throw new AssertionError(problem);
        }
    }

    private static Metadata.Key<String> text(String name) {
        return Metadata.Key.of(name, Metadata.ASCII_STRING_MARSHALLER);
    }

    private static Metadata.Key<byte[]> binary(String name) {
        return Metadata.Key.of(name, Metadata.BINARY_BYTE_MARSHALLER);
    }
}
