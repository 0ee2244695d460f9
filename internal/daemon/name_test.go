package daemon

import (
	"errors"
	"strings"
	"testing"
)

// ssh's names end in .fwd, so that its configuration can tell them.
func TestConnectTakesEachFormOfAName(t *testing.T) {
	nas, laptop := newPair(t)
	nas.hold(ExposeRequest{Target: reverser(t), Name: "nas"}, "exposed")
	for _, name := range []string{"nas", "NAS", "nas.fwd", "nas.nas-box", "nas.nas-box.fwd"} {
		e, end := laptop.hold(ConnectRequest{Name: name, Local: "127.0.0.1:0", Timeout: patience}, "listening")
		if !reverses(t, e.Local) {
			t.Errorf("%s does not answer", name)
		}
		end()
	}
}

func TestConnectTellsAMachinesNameFromAServices(t *testing.T) {
	nas, laptop := newPair(t)
	nas.hold(ExposeRequest{Target: reverser(t), Name: "web"}, "exposed")
	eventually(t, "the name's arrival", func() bool {
		_, err := laptop.call(ConnectRequest{Name: "nas-box", Local: "127.0.0.1:0"})
		var f *Failure
		return errors.As(err, &f) && f.Exit == ExitUnknownName && strings.Contains(f.What, "is a machine") && strings.Contains(f.Hint, "fwd connect web")
	})
	_, err := laptop.call(ConnectRequest{Name: "web.laptop", Local: "127.0.0.1:0"})
	wantCode(t, err, "unknown-name")
	_, err = nas.call(ConnectRequest{Name: "web.nas-box", Local: "127.0.0.1:0"})
	wantCode(t, err, "usage")
}
