package database

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/role/consensus"
	"github.com/slipwayhq/slipway/firstboot/role/roletest"
)

// etcd takes down that the database is being made, and Patroni does not hear of it: what it
// finds then is what its own attempt left behind.
func TestADatabaseIsMadeThoughEtcdsAnswerWasLost(t *testing.T) {
	p := roletest.Plan()
	members := roletest.Members(t, p)
	first, second := boot(t, members["a-db1"]), boot(t, members["a-db2"])
	ctx, stop := context.WithTimeout(t.Context(), patience)
	defer stop()
	go func() {
		for !first.Running(Unit) { // then the mark of an earlier start is gone, and Patroni has not looked yet
			if ctx.Err() != nil {
				return
			}
			time.Sleep(time.Millisecond)
		}
		client, err := consensus.Dial(members["a-db1"])
		if err == nil {
			defer client.Close()
			err = client.Put(ctx, initializeKey(members["a-db1"]), "")
		}
		if err != nil {
			t.Error(err)
		}
	}()
	all(t, first, second)
	if log := first.Log(Unit); !strings.Contains(log, "went unheard: beginning again") {
		t.Errorf("Patroni found nothing:\n%s", log)
	}
}
