// Verification of a webhook's signature, complete and ready to copy into an application in Java.

import java.nio.charset.StandardCharsets;
import java.security.GeneralSecurityException;
import java.security.MessageDigest;
import java.util.HexFormat;
import java.util.Map;
import java.util.stream.Stream;
import javax.crypto.Mac;
import javax.crypto.spec.SecretKeySpec;

public final class Verify {
    /** Seconds that a webhook may be old, or a clock wrong. */
    private static final long TOLERANCE = 300;

    private Verify() {}

    /**
     * Returns true if {@code body}, exactly as received, was signed with {@code secret}. {@code headers} have
     * lower-case names; {@code now} is in seconds since 1970. For a day after a secret was replaced, the old one
     * signs in a header of its own.
     */
    public static boolean isOurs(Map<String, String> headers, byte[] body, String secret, long now)
            throws GeneralSecurityException {
        String timestamp = headers.getOrDefault("x-payments-timestamp", "");
        if (!timestamp.matches("[0-9]{1,12}") || Math.abs(now - Long.parseLong(timestamp)) > TOLERANCE) {
            return false;
        }
        Mac mac = Mac.getInstance("HmacSHA256");
        mac.init(new SecretKeySpec(secret.getBytes(StandardCharsets.UTF_8), "HmacSHA256"));
        mac.update((timestamp + ".").getBytes(StandardCharsets.UTF_8));
        byte[] expected = ("sha256=" + HexFormat.of().formatHex(mac.doFinal(body))).getBytes(StandardCharsets.UTF_8);
        return Stream.of("x-payments-signature", "x-payments-signature-previous")
                .map(name -> headers.getOrDefault(name, "").getBytes(StandardCharsets.UTF_8))
                .anyMatch(signature -> MessageDigest.isEqual(expected, signature));
    }
}
