// Prints the verdict of examples/webhooks/Verify.java about each vector.

import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Base64;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

public final class Main {
    public static void main(String[] arguments) throws Exception {
        List<String> lines = Files.readAllLines(Path.of(arguments[0]));
        for (String line : lines.subList(1, lines.size())) {
            String[] told = line.split("\t", -1);
            Map<String, String> headers = new HashMap<>();
            headers.put("x-payments-timestamp", told[4]);
            headers.put("x-payments-signature", told[5]);
            headers.put("x-payments-signature-previous", told[6]);
            headers.values().removeIf(String::isEmpty);
            byte[] body = Base64.getDecoder().decode(told[7]);
            System.out.println(told[0] + " " + Verify.isOurs(headers, body, told[3], Long.parseLong(told[2])));
        }
    }
}
