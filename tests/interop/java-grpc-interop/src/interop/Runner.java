package interop;

import com.google.common.base.Throwables;
import com.google.gson.Gson;
import io.grpc.testing.integration.TestServiceClient;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.util.Arrays;

/**
 * Runs what it is asked for, a line each, one after the other: to start costs more than most.
 *
 * <p>{@code case FLAG...} is one of grpc-java's client, as it is published, and {@code tests
 * netty|okhttp PORT} are {@link GrpcTests}. Answers what was wrong, in one line of JSON; all else
 * that is said goes to stderr.
 */
final class Runner {
  public static void main(String[] none) throws IOException {
    PrintStream answers = System.out;
    System.setOut(System.err);
    BufferedReader asked = new BufferedReader(new InputStreamReader(System.in));
    for (String line = asked.readLine(); line != null; line = asked.readLine()) {
      answers.println(new Gson().toJson(run(line.split(" "))));
    }
    System.exit(0);
  }

  private static Object run(String[] words) {
    return words[0].equals("tests")
        ? GrpcTests.problems(words[1], Integer.parseInt(words[2]))
        : problem(Arrays.copyOfRange(words, 1, words.length));
  }

  private static String problem(String[] flags) {
    try {
      TestServiceClient.main(flags);
      return "";
    } catch (Throwable wrong) {
      return Throwables.getStackTraceAsString(wrong);
    }
  }
}
