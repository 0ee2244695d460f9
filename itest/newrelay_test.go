//go:build linux

package itest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"fwd/itest/fwdtest"
	"fwd/itest/lab"
)

// A network that began behind a NAT gets its first relay, which nobody there can be dialled by; later the
// relay moves to another address, at which nobody looks for it until told.
func TestAnOwnerBehindNATAddsARelayAndFollowsItsMove(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	a, b := l.Home("a", lab.PortRestricted, slow()), l.Home("b", lab.PortRestricted, slow())
	w := &world{t: t, lab: l, homes: [2]*lab.Home{a, b}, nas: fwdtest.New(t, a.Host("nas")), laptop: fwdtest.New(t, b.Host("laptop"))}
	w.expose()
	if r := w.nas.Run("invite", "--at", "7.0.0.10"); r.Code != 2 {
		t.Errorf("--at without --relay: exit %d\n%s", r.Code, r.Stderr)
	}
	code := w.nas.Invite("--relay", "--at", "7.0.0.10")
	w.nas.WaitStatus("a word that the relay does not answer yet", func(s fwdtest.Status) bool {
		return strings.Contains(strings.Join(s.Warnings, " "), "relay-waited-for")
	})
	if r := w.laptop.RunWith(code, "join"); r.Code != 2 {
		t.Errorf("an ordinary machine takes a relay's invite: exit %d\n%s", r.Code, r.Stderr)
	}

	vps := fwdtest.New(t, l.Public("relay", "7.0.0.10"))
	relaying := vps.Start("relay", code, "--as", "relay")
	relaying.Wait("waiting")
	contains(t, strings.Join(relaying.Wait("relay").Addrs, " "), "/ip4/7.0.0.10/"+quic4001)
	w.laptop.Join(w.nas.Invite(), "laptop")
	_, local := w.connect()
	w.transfer(local, load)
	if s := w.nas.Status(); len(s.Warnings) > 0 {
		t.Errorf("it still warns: %q", s.Warnings)
	}

	if r := w.laptop.Run("join", "--at", "7.0.0.10:4444"); r.Code != 6 {
		t.Errorf("an address where no relay is: exit %d\n%s", r.Code, r.Stderr)
	}

	relaying.Interrupt()
	moved := fwdtest.New(t, l.Public("moved", "7.0.0.20"))
	moved.Home = vps.Home
	moved.Start("relay").Wait("relay")
	for _, p := range []*fwdtest.Peer{w.laptop, w.nas} {
		p.Must("join", "--at", "7.0.0.20")
		p.WaitStatus("a reservation at the relay that moved", func(s fwdtest.Status) bool {
			return len(s.Relays) == 1 && s.Relays[0].Connected && s.Relays[0].Reserved
		})
	}
	phone := fwdtest.New(t, l.Home("c", lab.PortRestricted, slow()).Host("phone"))
	for until := time.Now().Add(fwdtest.Limit); ; { // the owner hears of the new address from the relay itself
		r := phone.RunWith(w.nas.Invite(), "join", "--as", "phone")
		if r.Code == 0 {
			break
		}
		if time.Now().After(until) {
			t.Fatalf("no invite leads to the relay's new address: %s", r.Stderr)
		}
	}
	phone.WaitStatus("a reservation at the new address, which only the roster tells it", func(s fwdtest.Status) bool {
		return len(s.Relays) == 1 && s.Relays[0].Reserved
	})
	w.transfer(local, load)
}

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
