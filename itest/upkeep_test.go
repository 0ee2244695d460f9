//go:build linux

package itest

import (
	"os"
	"path/filepath"
	"testing"

	"fwd/itest/fwdtest"
	"fwd/itest/lab"
)

// The only relay is lost, with the network's key, of which there is a backup. Nobody can reach anybody, so each machine
// is told of the new relay once.
func TestANewRelayTakesTheLostOnesPlace(t *testing.T) {
	t.Parallel()
	w := beginWorld(t, lab.Symmetric, lab.Symmetric)
	w.populate(w.homes[0].Host("nas"), w.homes[1].Host("laptop"))
	passphrase := []string{"FWD_PASSPHRASE=correct horse"}
	w.relay.Env = append(w.relay.Env, passphrase...)
	backup := filepath.Join(w.nas.Home, "home.key")
	if err := os.WriteFile(backup, []byte(w.relay.Must("owner", "export")), 0o600); err != nil {
		t.Fatal(err)
	}
	w.relaying.Kill()

	w.nas.Env = append(w.nas.Env, passphrase...)
	w.nas.Must("owner", "import", backup)
	second := fwdtest.New(t, w.lab.Public("relay2", "7.0.0.20"))
	relaying := second.Start("relay", w.nas.Invite("--relay", "--at", "7.0.0.20"), "--as", "relay2")
	relaying.Wait("relay")
	w.nas.WaitStatus("the new relay", func(s fwdtest.Status) bool {
		return len(s.Relays) > 0 && s.Relays[len(s.Relays)-1].Reserved
	})
	w.laptop.Must("join", w.nas.Invite())
	_, local := w.connect()
	w.transfer(local, fwdtest.Load{Up: mib, Down: mib})
}
