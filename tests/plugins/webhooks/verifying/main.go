// Prints the verdict of examples/webhooks/verify.go about each vector.

package main

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
)

func main() {
	content, err := os.ReadFile(os.Args[1])
	if err != nil {
		panic(err)
	}
	for _, line := range strings.Split(strings.TrimRight(string(content), "\n"), "\n")[1:] {
		told := strings.Split(line, "\t")
		now, _ := strconv.ParseInt(told[2], 10, 64)
		body, _ := base64.StdEncoding.DecodeString(told[7])
		header := http.Header{}
		for number, name := range []string{"X-Payments-Timestamp", "X-Payments-Signature", "X-Payments-Signature-Previous"} {
			if told[4+number] != "" {
				header.Set(name, told[4+number])
			}
		}
		fmt.Println(told[0], IsOurs(header, body, told[3], now))
	}
}
