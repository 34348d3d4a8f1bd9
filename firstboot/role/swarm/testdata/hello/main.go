// Command hello says on every page which node it runs on.
package main

import (
	"fmt"
	"net/http"
	"os"
)

func main() {
	http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, os.Getenv("NODE")) })
	panic(http.ListenAndServe(":8080", nil))
}
