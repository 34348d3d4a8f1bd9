package peers

import (
	"strings"
	"testing"

	"github.com/slipwayhq/slipway/firstboot/membertest"
)

func TestAMachineThatWasReplacedLearnsOfItAndOfNothingElse(t *testing.T) {
	c, s := membertest.New(t), &street{}
	gone := c.Member(t, "a-db2")
	c.Plan.Generation, c.Plan.Revoked = 2, []string{gone.Serial()}
	one := s.agent(t, c.Member(t, "a-db1"), "1")
	if err := one.apply(t); err != nil {
		t.Fatal(err)
	}
	old := s.agent(t, gone, "old")
	if err := old.apply(t); err == nil || !strings.Contains(err.Error(), "was replaced") {
		t.Errorf("the machine that was replaced goes on: %v", err)
	}
	if len(old.kept) != 1 || old.kept[0] != 2 {
		t.Errorf("it has kept the plans %v", old.kept)
	}
	request := func(path string) int {
		cert := old.Service.current().cert
		response, err := s.asks(t, &cert).Get("https://127.0.0.1:7420" + path)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		return response.StatusCode
	}
	for path, want := range map[string]int{"/v1/hello": 200, "/v1/plan": 200, "/v1/status": 403} {
		if got := request(path); got != want {
			t.Errorf("%s: status %d, want %d", path, got, want)
		}
	}
	// Nor is it taken for the node where it answers, and its name is free.
	one.Service.poll(t.Context())
	if peers, _ := one.observe(t); peers["a-db2"].Answers || !strings.Contains(peers["a-db2"].Problem, "was replaced") {
		t.Errorf("it is taken for %+v", peers["a-db2"])
	}
	fresh := s.agent(t, c.Member(t, "a-db2"), "fresh")
	if err := fresh.apply(t); err != nil {
		t.Errorf("the machine in its place: %v", err)
	}
	one.Service.poll(t.Context())
	if peers, _ := one.observe(t); !peers["a-db2"].Answers {
		t.Errorf("the machine in its place: %+v", peers["a-db2"])
	}
}
