package interop;

import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannelBuilder;
import io.grpc.netty.InternalNettyChannelBuilder;
import io.grpc.netty.NettyChannelBuilder;
import io.grpc.okhttp.InternalOkHttpChannelBuilder;
import io.grpc.okhttp.OkHttpChannelBuilder;
import io.grpc.testing.integration.AbstractInteropTest;
import java.util.Map;
import java.util.TreeMap;
import org.junit.runner.Description;
import org.junit.runner.JUnitCore;
import org.junit.runner.RunWith;
import org.junit.runner.notification.Failure;
import org.junit.runner.notification.RunListener;
import org.junit.runners.JUnit4;

/**
 * The tests that grpc-java's own transports have to pass, with a server that is somewhere else.
 *
 * <p>JUnit makes an object for each: which transport, and where, is the same for all of a run.
 */
@RunWith(JUnit4.class)
public class GrpcTests extends AbstractInteropTest {
  private static String transport;
  private static int port;

  /** What was wrong in each: nothing, {@code skipped} or a trace. */
  static Map<String, String> problems(String ownTransport, int serverPort) {
    transport = ownTransport;
    port = serverPort;
    Map<String, String> problems = new TreeMap<>();
    JUnitCore core = new JUnitCore();
    core.addListener(
        new RunListener() {
          @Override
          public void testFinished(Description test) {
            problems.putIfAbsent(test.getMethodName(), "");
          }

          @Override
          public void testFailure(Failure failure) {
            problems.put(failure.getDescription().getMethodName(), failure.getTrace());
          }

          @Override
          public void testAssumptionFailure(Failure failure) {
            problems.put(failure.getDescription().getMethodName(), "skipped");
          }
        });
    core.run(GrpcTests.class);
    return problems;
  }

  @Override
  protected ManagedChannelBuilder<?> createChannelBuilder() {
    // As theirs, which measure what passes: what is there by itself would count twice.
    return transport.equals("netty") ? netty() : okHttp();
  }

  private ManagedChannelBuilder<?> netty() {
    NettyChannelBuilder builder =
        NettyChannelBuilder.forAddress("127.0.0.1", port, InsecureChannelCredentials.create())
            .flowControlWindow(TEST_FLOW_CONTROL_WINDOW)
            .maxInboundMessageSize(MAX_MESSAGE_SIZE);
    InternalNettyChannelBuilder.setStatsEnabled(builder, false);
    return builder.intercept(createCensusStatsClientInterceptor());
  }

  private ManagedChannelBuilder<?> okHttp() {
    OkHttpChannelBuilder builder =
        OkHttpChannelBuilder.forAddress("127.0.0.1", port, InsecureChannelCredentials.create())
            .maxInboundMessageSize(MAX_MESSAGE_SIZE);
    InternalOkHttpChannelBuilder.setStatsEnabled(builder, false);
    return builder.intercept(createCensusStatsClientInterceptor());
  }
}
