package interop;

import io.grpc.ManagedChannel;
import io.grpc.ManagedChannelBuilder;
import io.grpc.stub.StreamObserver;
import java.time.Instant;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.Executors;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;
import registry.Registry.ConnectionMessage;
import registry.Registry.ConnectionRegister;
import registry.Registry.ConnectionStatus;
import registry.Registry.ConnectionStatus.StatusType;
import registry.Registry.Heartbeat;
import registry.RegistryServiceGrpc;
import sun.misc.Signal;

/** A connector: registers demo.Greeter, sends heartbeats, answers, and leaves on SIGTERM. */
final class Connector implements StreamObserver<ConnectionMessage> {
    private static final int LARGEST_MESSAGE = 16 << 20;

    private final ScheduledExecutorService workers = Executors.newScheduledThreadPool(64);
    private final CountDownLatch ended = new CountDownLatch(1);
    private StreamObserver<ConnectionMessage> outbound;
    private volatile int exitCode;

    public static void main(String[] arguments) throws InterruptedException {
        if (arguments.length != 2) {
            System.err.println("usage: Connector GATEWAY-ADDRESS API-KEY");
            System.exit(2);
        }
        ManagedChannel channel =
                ManagedChannelBuilder.forTarget(arguments[0])
                        .usePlaintext()
                        .maxInboundMessageSize(LARGEST_MESSAGE)
                        .build();
        Connector connector = new Connector();
        connector.run(channel, arguments[1]);
        channel.shutdownNow();
        System.exit(connector.exitCode);
    }

    private void run(ManagedChannel channel, String apiKey) throws InterruptedException {
        outbound = RegistryServiceGrpc.newStub(channel).establishConnection(this);
        ConnectionRegister register =
                ConnectionRegister.newBuilder()
                        .setApiKey(apiKey)
                        .addServices("demo.Greeter")
                        .build();
        send(ConnectionMessage.newBuilder().setRegister(register));
        ended.await();
    }

    @Override
    public void onNext(ConnectionMessage message) {
        if (message.hasRequest()) {
            workers.execute(
                    () ->
                            send(
                                    ConnectionMessage.newBuilder()
                                            .setResponse(Answer.to(message.getRequest()))));
        } else if (message.hasStatus()) {
            String id = message.getStatus().getConnectionId();
            workers.scheduleAtFixedRate(() -> beat(id), 1, 1, TimeUnit.SECONDS);
            Signal.handle(new Signal("TERM"), signal -> leave(id));
        }
    }

    private void beat(String id) {
        long now = Instant.now().getEpochSecond();
        send(
                ConnectionMessage.newBuilder()
                        .setHeartbeat(Heartbeat.newBuilder().setConnectionId(id).setTimestamp(now)));
    }

    private void leave(String id) {
        send(
                ConnectionMessage.newBuilder()
                        .setStatus(
                                ConnectionStatus.newBuilder()
                                        .setConnectionId(id)
                                        .setStatus(StatusType.DISCONNECTED)));
    }

    /** An observer is not thread-safe. */
    private synchronized void send(ConnectionMessage.Builder message) {
        outbound.onNext(message.build());
    }

    @Override
    public void onCompleted() {
        ended.countDown();
    }

    @Override
    public void onError(Throwable error) {
        System.err.println(error);
        exitCode = 1;
        ended.countDown();
    }
}
