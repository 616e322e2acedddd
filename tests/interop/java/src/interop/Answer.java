package interop;

import java.net.URLEncoder;
import java.nio.charset.StandardCharsets;
import java.util.Map;
import registry.Registry.ForwardRequest;
import registry.Registry.ForwardResponse;

/**
 * What the connector answers: the payload, and each header echo-NAME as the header NAME.
 *
 * <p>The method Goodbye is not there. The header "interop" asks for something else: "fail" for
 * NOT_FOUND, "wait" for an answer that comes late, "timeout" for the request's timeout in the
 * header seen-timeout.
 */
final class Answer {
    private static final String ECHO_PREFIX = "echo-";
    private static final long WAITING_MILLISECONDS = 2000;

    private Answer() {}

    static ForwardResponse to(ForwardRequest request) {
        ForwardResponse.Builder response =
                ForwardResponse.newBuilder()
                        .setRequestId(request.getRequestId())
                        .setStatusCode(200);
        for (Map.Entry<String, String> header : request.getHeadersMap().entrySet()) {
            if (header.getKey().startsWith(ECHO_PREFIX)) {
                String name = header.getKey().substring(ECHO_PREFIX.length());
                response.putHeaders(name, header.getValue());
            }
        }
        if (request.getMethodPath().endsWith("/Goodbye")) {
            return fail(response, 12, "no such method: " + request.getMethodPath());
        }
        switch (request.getHeadersOrDefault("interop", "")) {
            case "fail":
                return fail(response, 5, "no such order: größer als 50 %");
            case "wait":
                sleep();
                break;
            case "timeout":
                response.putHeaders("seen-timeout", String.valueOf(request.getTimeoutSeconds()));
                break;
            default:
                break;
        }
        return response.setPayload(request.getPayload()).build();
    }

    private static ForwardResponse fail(ForwardResponse.Builder response, int code, String message) {
        String encoded = URLEncoder.encode(message, StandardCharsets.UTF_8).replace("+", "%20");
        return response.setStatusCode(404)
                .setErrorMessage(message)
                .putHeaders("grpc-status", String.valueOf(code))
                .putHeaders("grpc-message", encoded)
                .build();
    }

    private static void sleep() {
        try {
            Thread.sleep(WAITING_MILLISECONDS);
        } catch (InterruptedException stopping) {
            Thread.currentThread().interrupt();
        }
    }
}
