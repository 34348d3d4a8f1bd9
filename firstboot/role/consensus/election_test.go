package consensus

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"testing"

	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/role/mtls"
	"github.com/slipwayhq/slipway/firstboot/role/roletest"
)

// While etcd elects a leader, it refuses what a majority has to answer.
func TestAnElectionIsWaitedForBeforeMembersAreTakenOut(t *testing.T) {
	// These tests have a network of their own, in which nothing is up yet.
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	asked := 0
	etcd := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if asked++; asked == 1 {
			w.WriteHeader(http.StatusServiceUnavailable)
			io.WriteString(w, `{"error":"etcdserver: leader changed","code":14}`)
			return
		}
		io.WriteString(w, `{"members":[{"ID":"1","name":"a-db1"}]}`)
	}))
	t.Cleanup(etcd.Close)
	m := roletest.Members(t, roletest.Plan())["a-db1"]
	asks, err := mtls.New(m.EtcdAuthority, m.Certificates[member.EtcdCert])
	if err != nil {
		t.Fatal(err)
	}
	client := &Client{mtls: asks}
	t.Cleanup(client.Close)
	known, err := client.settled(t.Context(), etcd.URL)
	if err != nil || len(known) != 1 || known[0].Name != "a-db1" || asked != 2 {
		t.Errorf("asked %d times: %+v, %v", asked, known, err)
	}
}
