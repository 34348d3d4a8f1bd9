package noanswer

import (
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// serves accepts connections and does with each what is said.
func serves(t *testing.T, with func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			with(c)
		}
	}()
	return l.Addr().String()
}

func TestTheReasonIsToldWithoutURLAndAddress(t *testing.T) {
	speaks := func(text string) func(net.Conn) {
		return func(c net.Conn) {
			c.Read(make([]byte, 4096))
			io.WriteString(c, text)
			c.Close()
		}
	}
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	unknown := httptest.NewUnstartedServer(http.NotFoundHandler())
	unknown.Config.ErrorLog = log.New(io.Discard, "", 0)
	unknown.StartTLS()
	t.Cleanup(unknown.Close)

	for url, want := range map[string]string{
		"http://" + closed.Addr().String():                                    "connection refused",
		"http://" + serves(t, speaks("")):                                     "hung up",
		"http://" + serves(t, speaks("220 mail ESMTP\r\n")):                   "answered something that is no HTTP",
		"https://" + serves(t, speaks("220 mail ESMTP\r\n")):                  "answered something that is no TLS",
		"http://" + serves(t, func(c net.Conn) { go io.Copy(io.Discard, c) }): "no answer",
		unknown.URL:              "x509: certificate signed by unknown authority",
		"ftp://192.0.2.1/secret": `unsupported protocol scheme "ftp"`,
	} {
		client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true}}
		if want == "no answer" {
			client.Timeout = time.Second
		}
		response, err := client.Get(url)
		if err == nil {
			response.Body.Close()
			t.Errorf("want %q: %s", want, response.Status)
		} else if got := Words(err); got != want {
			t.Errorf("want %q: %q (%v)", want, got, err)
		}
	}
}
