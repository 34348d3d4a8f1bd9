package balancer

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/slipwayhq/slipway/firstboot/status"
)

const columns = "# pxname,svname,status,check_status,check_code,last_chk,\n"

func TestWhatHAProxySaysOfItsServersIsPutInWords(t *testing.T) {
	got, err := parse([]byte(columns +
		"read-write,a,UP,L7OK,200,,\n" +
		"read-write,b,DOWN,* L4CON,,Connection refused,\n" +
		"read-write,c,UP 1/2,L6RSP,,\"SSL handshake, refused\",\n" +
		"read-only,d,no check,INI,,Initializing,\n" +
		"read-only,e,DOWN,L9NEW,,,\n" +
		"read-only,f\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := []status.Backend{
		{Name: "read-write", Server: "a", Up: true, Check: "HTTP 200"},
		{Name: "read-write", Server: "b", Check: "no connection: Connection refused"},
		{Name: "read-write", Server: "c", Up: true, Check: "the TLS handshake failed: SSL handshake, refused"},
		{Name: "read-only", Server: "d", Check: "not checked yet"},
		{Name: "read-only", Server: "e", Check: "L9NEW"},
		{Name: "read-only", Server: "f"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestWhatIsNotHAProxysStatisticsIsRefused(t *testing.T) {
	for _, text := range []string{"", "# ", "pxname,svname\n", "# pxname,svname\n", columns + "\"read-write\n"} {
		if got, err := parse([]byte(text)); err == nil {
			t.Errorf("%q: %+v", text, got)
		}
	}
}

func FuzzStatistics(f *testing.F) {
	for _, text := range []string{"", "# \n", columns, columns + "a,b,UP,L7OK,200,,\n", columns + "a\n\n"} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		list, err := parse(data)
		if (list == nil) == (err == nil) {
			t.Errorf("%v, %v", list, err)
		}
		judge(list, false)
		judge(list, true)
	})
}
