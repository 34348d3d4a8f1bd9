package halt

import (
	"reflect"
	"testing"
)

func TestTheDeepestMountsGoFirstAndTheKernelsStay(t *testing.T) {
	got := unmountable(`1 0 0:2 / / rw - rootfs none rw
2 1 0:3 / /oldroot rw - overlay slipway rw
3 2 8:3 /data/srv /oldroot/srv rw - ext4 /dev/vda3 rw
4 1 0:5 / /proc rw - proc proc rw
5 6 8:3 / /run/slipway/state rw - ext4 /dev/vda3 rw
6 1 0:6 / /run rw - tmpfs tmpfs rw
7 3 8:4 / /oldroot/srv/a\040b rw - ext4 /dev/vdb1 rw

`)
	want := []string{"/run/slipway/state", "/oldroot/srv/a b", "/oldroot/srv", "/oldroot"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func FuzzUnmountable(f *testing.F) {
	f.Add("2 1 0:3 / /oldroot rw - overlay slipway rw\n")
	f.Fuzz(func(t *testing.T, text string) { unmountable(text) })
}
